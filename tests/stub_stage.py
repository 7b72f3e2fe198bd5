"""A stage for the runner's tests: writes metrics and a file, or refuses, fails, or waits to be ended."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tasks.config import Config
from tasks.errors import InputError
from tasks.program import run_program
from tasks.tracking import MetricsLog


class StubConfig(Config):
    behaviour: str = "work"
    text: str = "done"


def main(config: StubConfig, inputs: Mapping[str, Path], output: Path) -> None:
    if config.behaviour == "refuse":
        raise InputError("expected sugar, got salt")
    if config.behaviour == "refuse in vain":
        (output / "error.json").touch()
        sys.exit(2)
    if config.behaviour == "fail":
        sys.exit("it broke")
    metrics = MetricsLog(output)
    for step in range(1, 4):
        metrics.write(step, 3, {"loss": 1 / step})
    while config.behaviour == "wait":
        time.sleep(0.1)
    (output / "checkpoints").mkdir()
    (output / "checkpoints" / "big").write_text("not for the store")
    content = "".join((folder / "text").read_text() for folder in inputs.values())
    (output / "text").write_text(content + config.text)
    (output / "report.json").write_text("{}")


if __name__ == "__main__":
    run_program(main, StubConfig)
