"""Checkpoints of a training loop: folders OUTPUT/checkpoints/step-N that are whole or not there.

Safetensors and JSON; nothing is unpickled.
"""

import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tasks.models.model_files import read_json, write_json

FOLDER = "checkpoints"
TENSORS = "training.safetensors"
STATE = "state.json"


def save_checkpoint(
    output: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], logs: Iterable[str]
) -> None:
    """Write OUTPUT/checkpoints/step-N with the tensors, the state and copies of OUTPUT's log files.

    Written under another name, flushed to the disk, then renamed: a folder that is called step-N is whole.
    """
    final = checkpoint_folder(output, step)
    partial = final.with_name(f".{final.name}.partial")
    for folder in (partial, final):
        shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial / TENSORS)
    write_json(partial / STATE, dict(state))
    _copy_logs(output, partial, logs)
    for path in (*partial.iterdir(), partial):
        _flush(path)
    partial.rename(final)
    _flush(final.parent)


def remove_old_checkpoints(output: Path, keep: int, also: Collection[int] = ()) -> None:
    """Remove all but the newest `keep` checkpoints and those of the steps in `also`."""
    for step in _steps(output)[:-keep]:
        if step not in also:
            shutil.rmtree(checkpoint_folder(output, step))


def checkpoint_folder(output: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return output / FOLDER / f"step-{step}"


def newest_checkpoint(output: Path) -> Path | None:
    """The complete checkpoint in OUTPUT that is furthest on, if there is one."""
    steps = _steps(output)
    return checkpoint_folder(output, steps[-1]) if steps else None


def read_state(folder: Path) -> dict[str, Any]:
    """The state that was given to `save_checkpoint`."""
    return read_json(folder / STATE)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors that were given to `save_checkpoint`, on the CPU."""
    return load_file(folder / TENSORS)


def restore_logs(folder: Path | None, output: Path, logs: Collection[str]) -> None:
    """Make OUTPUT's logs those of the checkpoint, or none: the run may have gone on, or come from another machine."""
    for name in logs:
        (output / name).unlink(missing_ok=True)
    if folder is not None:
        _copy_logs(folder, output, logs)


def _copy_logs(source: Path, target: Path, logs: Iterable[str]) -> None:
    for name in logs:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _steps(output: Path) -> list[int]:
    return sorted(int(folder.name.removeprefix("step-")) for folder in (output / FOLDER).glob("step-*"))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
