"""A command under the runner's eyes: what it sees of ours, and that nothing of it is left."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tasks import launch as launching
from tasks.errors import InputError
from tasks.launch import OutOfMemory, StageFailed, Watch, end_marked, environment, launch

NOT_WATCHED = Watch(on_metrics=lambda record: None, cancelled=lambda: False)
SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
WITH_A_GRANDCHILD_IN_ITS_OWN_SESSION = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {SLEEPER!r}], start_new_session=True)
time.sleep(60)
"""


def family(output: Path) -> list[psutil.Process]:
    """Whoever names the folder on its command line or was started with it in the environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and str(output) in (*process.environ().values(), *process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def test_the_stage_sees_neither_prefects_settings_nor_the_network_of_hubs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    seen = environment(tmp_path)
    assert "PREFECT_API_KEY" not in seen
    assert seen["HF_HUB_OFFLINE"] == "1"
    assert seen["PATH"] == os.environ["PATH"]


def test_nothing_survives_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITH_A_GRANDCHILD_IN_ITS_OWN_SESSION]
    ended: list[Exception] = []

    def run() -> None:
        try:
            launch("stub", command, tmp_path, NOT_WATCHED)
        except StageFailed as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: len(family(tmp_path)) == 3)
    [supervisor] = [process for process in family(tmp_path) if "tasks.supervisor" in process.cmdline()]
    supervisor.kill()
    thread.join(10)
    assert "was killed" in str(ended[0])
    assert not family(tmp_path)


def test_a_new_attempt_ends_what_an_earlier_one_left_in_its_folder(tmp_path: Path) -> None:
    orphan = psutil.Popen([sys.executable, "-c", SLEEPER], env=environment(tmp_path))
    other = psutil.Popen([sys.executable, "-c", SLEEPER], env=environment(tmp_path / "other"))
    try:
        end_marked(tmp_path)
        assert orphan.wait(5) == -signal.SIGKILL
        assert other.is_running()
    finally:
        other.kill()
        other.wait()


def killed_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *counts: int) -> Exception:
    """What a killed command ends in, given the kernel's count of kills for want of memory before and after."""
    answers = iter(counts)
    monkeypatch.setattr(launching, "_killed_for_memory", lambda: next(answers))
    with pytest.raises((InputError, StageFailed)) as failure:
        launch("stub", [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], tmp_path, NOT_WATCHED)
    return failure.value


def test_a_process_that_the_kernel_killed_for_memory_is_told_from_one_that_somebody_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for_memory = killed_with(tmp_path, monkeypatch, 3, 4)
    assert isinstance(for_memory, OutOfMemory)
    assert for_memory.device == "cpu"
    by_somebody = killed_with(tmp_path, monkeypatch, 3, 3)
    assert isinstance(by_somebody, StageFailed)
    assert "ended with status 137. It was killed." in str(by_somebody)


def test_the_kernels_count_is_read_from_its_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 100\noom_kill 7\nswap_ra 0\n")
    monkeypatch.setattr(launching, "VMSTAT", tmp_path / "vmstat")
    assert launching._killed_for_memory() == 7
    monkeypatch.setattr(launching, "VMSTAT", tmp_path / "not there")
    assert launching._killed_for_memory() == 0
