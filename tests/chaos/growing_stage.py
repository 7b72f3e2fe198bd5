"""A stage whose checkpoints need more and more space: it counts on from the last whole one."""

from collections.abc import Mapping
from pathlib import Path

import torch

from tasks.checkpoints import newest_checkpoint, read_state, save_checkpoint
from tasks.config import Config
from tasks.program import run_program

CHECKPOINT_BYTES = 2**20


class GrowingConfig(Config):
    num_steps: int = 12


def main(config: GrowingConfig, inputs: Mapping[str, Path], output: Path) -> None:
    checkpoint = newest_checkpoint(output)
    course = read_state(checkpoint)["course"] if checkpoint else []
    print(f"going on after {course}", flush=True)
    for step in range(len(course) + 1, config.num_steps + 1):
        course.append(step)
        save_checkpoint(output, step, {"ballast": torch.zeros(CHECKPOINT_BYTES // 4)}, {"course": course}, logs=())
    (output / "course").write_text("".join(f"{step}\n" for step in course))


if __name__ == "__main__":
    run_program(main, GrowingConfig)
