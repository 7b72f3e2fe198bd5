"""What is left of a stage when those who watch over it are killed all at once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.lifeline import LIFELINE, MARK
from tests.tasks.test_launch import family, wait_for

RUNNER = """
import sys
from pathlib import Path
from tasks.launch import Watch, launch
launch("stub", sys.argv[2:], Path(sys.argv[1]), Watch(lambda record: None, lambda: False))
"""


def stub_command(tmp_path: Path, behaviour: str) -> list[str]:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"behaviour": behaviour}))
    return [sys.executable, "-m", "tests.stub_stage", "--config", str(config), "--output", str(tmp_path / "output")]


@pytest.mark.slow
def test_a_stage_ends_when_runner_and_supervisor_are_killed_at_once(tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    command = [sys.executable, "-c", RUNNER, str(output), *stub_command(tmp_path, "be stubborn")]
    with subprocess.Popen(command) as runner:
        wait_for(lambda: len(family(output)) == 4, timeout_s=30)  # runner, supervisor, stage, and the stage's child
        [supervisor] = [process for process in family(output) if "tasks.supervisor" in process.cmdline()]
        os.kill(runner.pid, signal.SIGSTOP)  # so that it cannot notice
        supervisor.kill()
        runner.kill()
    wait_for(lambda: not family(output), timeout_s=10)


def test_a_stage_that_is_given_another_standard_input_goes_on(tmp_path: Path) -> None:
    environment = os.environ | {LIFELINE: "1:1", MARK: str(tmp_path / "output")}
    done = subprocess.run(stub_command(tmp_path, "work"), stdin=subprocess.DEVNULL, env=environment, timeout=60)
    assert done.returncode == 0
