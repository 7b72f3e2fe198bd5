"""What is timed side by side, each as a process of its own: TRL, the floor, and our trainer in each mode."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.workloads import MODES

ROOT = Path(__file__).resolve().parents[2]
TRL_DEFAULTS = {"micro-batch": 8, "rollout-batch": 64}
TIMEOUT_S = 7200


@dataclass(frozen=True)
class Variant:
    """One way of doing the work of a workload."""

    name: str
    program: str  # trl_worker, floor or our_worker
    options: Mapping[str, object]
    python: Path = Path(sys.executable)
    launcher: Sequence[str] = ()  # a module with its options that starts the program, in place of the interpreter


@dataclass(frozen=True)
class Setting:
    """What holds for all that are compared."""

    num_threads: int = 1
    precision: str = "highest"  # of torch.set_float32_matmul_precision


class WorkerFailed(RuntimeError):
    """A worker ended with an error, which is in the message."""


def trl(python: Path, name: str, options: Mapping[str, object]) -> Variant:
    """TRL's trainer with these options."""
    return Variant(name, "trl_worker", options, python)


def floors_and_ours(modes: Sequence[str] = MODES) -> list[Variant]:
    """The floor and our trainer in each mode."""
    return [
        Variant(f"{name}, {mode}", program, {"mode": mode})
        for mode in modes
        for name, program in (("floor", "floor"), ("ours", "our_worker"))
    ]


def timed(variant: Variant, setting: Setting, inputs: Path, iterations: int) -> dict[str, Any]:
    """What the variant's process wrote: settings, peak memory, and each iteration's seconds and tokens.

    Raises WorkerFailed. However this ends, the process has ended too.
    """
    with tempfile.TemporaryDirectory() as folder:
        output, log = Path(folder) / "timings.json", Path(folder) / "log"
        options = {**variant.options, "inputs": inputs, "iterations": iterations, "output": output}
        command = [str(variant.python), *variant.launcher, "-m", f"tests.benchmarks.{variant.program}"]
        command += ["--precision", setting.precision]
        command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        with log.open("w") as file:
            status = run_to_end(command, setting, file)
        if status or not output.is_file():
            raise WorkerFailed(f"{variant.name} ended with {status}:\n{log.read_text()[-3000:]}")
        return json.loads(output.read_text())


def write_inputs(folder: Path, workload: str, changes: Sequence[str] = ()) -> None:
    """Write models and prompts of a workload, with changes FIELD=NUMBER; in a process of its own.

    Raises WorkerFailed.
    """
    command = [sys.executable, "-m", "tests.benchmarks.inputs", str(folder), "--workload", workload, "--set", *changes]
    if status := run_to_end(command, Setting(), subprocess.DEVNULL):
        raise WorkerFailed(f"{' '.join(command)} ended with {status}.")


def run_to_end(command: Sequence[str], setting: Setting, log: Any) -> int:
    """The status of the command, which has ended even if we were interrupted."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(setting.num_threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait shall not count as work
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        return process.wait(TIMEOUT_S)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
