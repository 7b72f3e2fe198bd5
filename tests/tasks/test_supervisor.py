"""The supervisor, tried on real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
POLITE = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("up", flush=True)
time.sleep(60)
"""
WITH_A_CHILD_IN_ITS_OWN_SESSION = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], start_new_session=True)
time.sleep(60)
"""


def start(tmp_path: Path, *command: str, grace_s: float = 0.5, usage: Path | None = None) -> "subprocess.Popen[bytes]":
    options = ["--usage", str(usage)] if usage else []
    arguments = ["--log", str(tmp_path / "log.txt"), "--grace-s", str(grace_s), *options, "--", *command]
    return subprocess.Popen([sys.executable, "-m", "tasks.supervisor", *arguments], stdin=subprocess.PIPE)


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def log_says(tmp_path: Path, text: str) -> Callable[[], bool]:
    return lambda: (tmp_path / "log.txt").exists() and text in (tmp_path / "log.txt").read_text()


def test_the_commands_status_and_output_come_through(tmp_path: Path) -> None:
    supervisor = start(tmp_path, sys.executable, "-c", "print('hello'); raise SystemExit(7)")
    assert supervisor.wait(10) == 7
    assert (tmp_path / "log.txt").read_text() == "hello\n"


def test_the_usage_file_tells_the_memory_of_the_largest_process_below(tmp_path: Path) -> None:
    usage = tmp_path / "usage.json"
    large = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = 200_000_000 * b\"x\"'])"
    for command, least, most in ((large, 200e6, 300e6), ("pass", 1e6, 100e6)):
        assert start(tmp_path, sys.executable, "-c", command, usage=usage).wait(20) == 0
        assert least < json.loads(usage.read_text())["peak_rss_bytes"] < most


def test_a_command_that_a_signal_ended_gives_128_plus_the_signal(tmp_path: Path) -> None:
    supervisor = start(tmp_path, sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    assert supervisor.wait(10) == 128 + signal.SIGKILL


def test_a_closed_lifeline_lets_the_command_save_its_work(tmp_path: Path) -> None:
    supervisor = start(tmp_path, sys.executable, "-c", POLITE, str(tmp_path / "work"), grace_s=10)
    wait_for(log_says(tmp_path, "up"))
    supervisor.stdin.close()
    assert supervisor.wait(10) == 143
    assert (tmp_path / "work").read_text() == "saved"


def test_sigterm_ends_a_command_that_ignores_it_after_the_grace_time(tmp_path: Path) -> None:
    supervisor = start(tmp_path, sys.executable, "-c", STUBBORN)
    wait_for(log_says(tmp_path, "up"))
    started = time.monotonic()
    supervisor.send_signal(signal.SIGTERM)
    supervisor.wait(10)
    assert 0.5 <= time.monotonic() - started < 5


def test_a_grandchild_in_a_session_of_its_own_does_not_survive(tmp_path: Path) -> None:
    supervisor = start(tmp_path, sys.executable, "-c", WITH_A_CHILD_IN_ITS_OWN_SESSION)
    wait_for(log_says(tmp_path, "up"))
    family = psutil.Process(supervisor.pid).children(recursive=True)
    assert len(family) == 2
    supervisor.stdin.close()
    supervisor.wait(10)
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_the_runners_sudden_death_ends_the_command(tmp_path: Path) -> None:
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(tmp_path / "log.txt"), STUBBORN], stdout=subprocess.PIPE, text=True
    )
    wait_for(log_says(tmp_path, "up"))
    supervisor = psutil.Process(int(runner.stdout.readline()))
    family = [supervisor, *supervisor.children(recursive=True)]
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    wait_for(lambda: not any(process.is_running() for process in family))


RUNNER = """
import subprocess, sys, time
command = [sys.executable, "-m", "tasks.supervisor", "--log", sys.argv[1], "--grace-s", "0.5", "--"]
process = subprocess.Popen([*command, sys.executable, "-c", sys.argv[2]], stdin=subprocess.PIPE, start_new_session=True)
print(process.pid, flush=True)
time.sleep(60)
"""
