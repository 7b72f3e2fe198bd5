"""Two ranks under accelerate's launcher, which are told to end, or lose one of them, or those who watch over them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tasks.launch import PROJECT
from tasks.sft.config import SFTConfig
from tasks.storage.stored_checkpoints import local_checkpoints
from tests.tasks.reward_model.test_train import PAIRS
from tests.tasks.test_launch import family, wait_for
from tests.tasks.test_lifeline import RUNNER
from tests.tasks.tiny_models import write_model, write_split

pytestmark = pytest.mark.slow

LAST_PROCESS_S = 10.0
ENDLESS = SFTConfig(learning_rate=1e-3, max_steps=10**6, save_steps=10**6, eval_steps=10**6, max_length=32)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A training that would go on for hours, in two ranks."""
    model = write_model(tmp_path / "model")
    for split in ("train", "test"):
        records = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
        write_split(tmp_path / "data", "sft", split, records)
    (tmp_path / "config.json").write_text(ENDLESS.model_dump_json())
    two_ranks = str(PROJECT / "infra/accelerate/cpu_2.yaml")
    program = ["-m", "accelerate.commands.launch", "--config_file", two_ranks, "-m", "tasks.sft.train"]
    given = ["--config", f"{tmp_path}/config.json", "--input", f"data={tmp_path}/data", "--input", f"model={model}"]
    return [sys.executable, *program, *given, "--output", f"{tmp_path}/output"]


@contextmanager
def training(command: Sequence[str], output: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The runner of a training that has done some steps."""
    output.mkdir()
    with subprocess.Popen([sys.executable, "-c", RUNNER, str(output), *command], stderr=subprocess.PIPE) as runner:
        try:
            wait_for((output / "metrics.jsonl").exists, timeout_s=120)
            yield runner
        finally:
            runner.kill()


def supervisor_of(output: Path) -> psutil.Process:
    return next(process for process in family(output) if "tasks.supervisor" in process.cmdline())


def ranks_of(output: Path) -> list[psutil.Process]:
    found = [process for process in family(output) if "RANK" in process.environ()]
    assert len(found) == 2
    return found


def test_sigterm_ends_both_ranks_with_a_checkpoint(command: list[str], tmp_path: Path) -> None:
    output = tmp_path / "output"
    with training(command, output) as runner:
        supervisor_of(output).send_signal(signal.SIGTERM)
        wait_for(lambda: not family(output), LAST_PROCESS_S)
        assert runner.wait() != 0
    assert local_checkpoints(output)


def test_the_sudden_death_of_one_rank_ends_the_stage_and_the_other(command: list[str], tmp_path: Path) -> None:
    output = tmp_path / "output"
    with training(command, output) as runner:
        ranks_of(output)[1].kill()
        wait_for(lambda: not family(output), LAST_PROCESS_S)
        assert runner.wait() != 0
        assert runner.stderr is not None
        assert "StageFailed" in runner.stderr.read().decode()


def test_both_ranks_end_when_runner_and_supervisor_are_killed_at_once(command: list[str], tmp_path: Path) -> None:
    output = tmp_path / "output"
    with training(command, output) as runner:
        assert ranks_of(output)
        os.kill(runner.pid, signal.SIGSTOP)  # so that it cannot notice
        supervisor_of(output).kill()
        runner.kill()
        runner.wait()
        wait_for(lambda: not family(output), LAST_PROCESS_S)
