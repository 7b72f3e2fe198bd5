"""A stage for the runner's tests: works, trains in steps, refuses, fails, is killed, or waits to be ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tasks.config import Config, Device
from tasks.errors import InputError
from tasks.program import run_program
from tasks.tracking import MetricsLog


class StubConfig(Config):
    behaviour: str = "work"
    text: str = "done"
    size: int = 8
    fits: int = 8
    seconds: float = 0.0

    def with_less_memory(self, device: Device) -> Self | None:
        return self.model_copy(update={"size": self.size // 2}) if self.size > 1 else None


def main(config: StubConfig, inputs: Mapping[str, Path], output: Path) -> None:
    if config.behaviour == "refuse":
        raise InputError("expected sugar, got salt")
    if config.behaviour == "refuse in vain":
        (output / "error.json").touch()
        sys.exit(2)
    if config.behaviour == "fail":
        sys.exit("it broke")
    if config.behaviour == "be killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.size > config.fits:
        raise MemoryError
    if config.behaviour == "train":
        train(output)
    metrics = MetricsLog(output)
    for step in range(1, 4):
        metrics.write(step, 3, {"loss": 1 / step})
    if config.behaviour == "be stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    while config.behaviour in ("wait", "be stubborn"):
        time.sleep(0.1)
    time.sleep(config.seconds)
    (output / "checkpoints").mkdir(exist_ok=True)
    (output / "checkpoints" / "big").write_text("not for the store")
    content = "".join((folder / "text").read_text() for folder in inputs.values())
    (output / "text").write_text(content + config.text)
    (output / "report.json").write_text("{}")


def train(output: Path) -> None:
    """Five steps, each with a checkpoint; before the last it waits for a file, on another machine it does not."""
    done = [int(path.name.removeprefix("step-")) for path in (output / "checkpoints").glob("step-*")]
    (output / "started.json").write_text(str(max(done, default=0)))
    for step in range(max(done, default=0) + 1, 6):
        folder = output / "checkpoints" / f".step-{step}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(f'{{"step": {step}}}')
        folder.rename(folder.with_name(f"step-{step}"))
        while step == 4 and not done:
            time.sleep(0.1)


if __name__ == "__main__":
    run_program(main, StubConfig)
