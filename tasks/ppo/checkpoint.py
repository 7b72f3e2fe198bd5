"""Everything a resume needs, written as a whole or not at all.

Randomness is a function of the seed and the counters, so beside parameters and Adam's moments only counters are kept:
a resumed run continues with the bits of an undisturbed one. Safetensors and JSON; nothing is unpickled.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from tasks.errors import InputError
from tasks.model_files import read_json, write_json
from tasks.ppo.config import PPOConfig

FOLDER = "checkpoints"
TENSORS = "training.safetensors"
STATE = "state.json"
LOGS = ("metrics.jsonl", "samples.jsonl")
FREE_TO_CHANGE = {"checkpoint_every", "keep_checkpoints"}


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    iteration: int  # iterations finished
    num_processes: int
    seconds: dict[str, float]  # of all iterations, by phase
    num_tokens: int  # sampled in all iterations

    def after_iteration(self, seconds: Mapping[str, float], num_tokens: int) -> "Progress":
        """One iteration further, whose phases took so long and whose responses had so many tokens."""
        total = {phase: self.seconds.get(phase, 0.0) + seconds.get(phase, 0.0) for phase in {**self.seconds, **seconds}}
        return replace(self, iteration=self.iteration + 1, seconds=total, num_tokens=self.num_tokens + num_tokens)

    def after_phase(self, phase: str, duration_s: float) -> "Progress":
        """As far as before, with a phase that took so long."""
        return replace(self, seconds={**self.seconds, phase: self.seconds.get(phase, 0.0) + duration_s})


def save_checkpoint(output: Path, progress: Progress, tensors: Mapping[str, Tensor], config: PPOConfig) -> None:
    """Write OUTPUT/checkpoints/step-N with copies of the logs; then remove all but the newest keep_checkpoints.

    Written under another name, flushed to the disk, then renamed: a folder that is called step-N is whole.
    """
    final = output / FOLDER / f"step-{progress.iteration}"
    partial = final.with_name(f".{final.name}.partial")
    for folder in (partial, final):
        shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial / TENSORS)
    write_json(partial / STATE, {"config": config.model_dump(mode="json"), "progress": asdict(progress)})
    for name in LOGS:
        if (output / name).is_file():
            shutil.copyfile(output / name, partial / name)
    for path in (*partial.iterdir(), partial):
        _flush(path)
    partial.rename(final)
    _flush(final.parent)
    for old in _complete(output)[: -config.keep_checkpoints]:
        shutil.rmtree(old)


def newest_checkpoint(output: Path) -> Path | None:
    """The complete checkpoint in OUTPUT that is furthest on, if there is one."""
    return next(reversed(_complete(output)), None)


def load_checkpoint(folder: Path, config: PPOConfig) -> tuple[Progress, dict[str, Tensor]]:
    """What `save_checkpoint` wrote; raises InputError, naming the options, if it is of another config."""
    state = read_json(folder / STATE)
    before, now = state["config"], config.model_dump(mode="json")
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    changed = [f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in keys if key not in FREE_TO_CHANGE]
    if changed:
        raise InputError(
            f"{folder} was written with another config ({'; '.join(changed)}). "
            "Give the old options to resume it, or another --output to start anew."
        )
    return Progress(**state["progress"]), load_file(folder / TENSORS)


def restore_logs(folder: Path | None, output: Path) -> None:
    """Make OUTPUT's logs those of the checkpoint, or none: the run may have gone on, or come from another machine."""
    for name in LOGS:
        (output / name).unlink(missing_ok=True)
        if folder is not None and (folder / name).is_file():
            shutil.copyfile(folder / name, output / name)


def _complete(output: Path) -> list[Path]:
    return sorted((output / FOLDER).glob("step-*"), key=lambda folder: int(folder.name.removeprefix("step-")))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
