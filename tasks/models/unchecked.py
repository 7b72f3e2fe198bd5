"""A model comes into its folder only when it is complete and proved; what failed leaves none behind."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.models.model_files import ADAPTER_CONFIG, CONFIG

UNCHECKED = "unchecked"
MARKERS = (CONFIG, ADAPTER_CONFIG)  # without one of them a folder is no model
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


@contextmanager
def unchecked(output: Path) -> Iterator[Path]:
    """An empty folder in `output` to fill: moved up into `output` at the end of the block, deleted if that raises.

    Weights that an earlier model left in `output` go when the new one is complete, and not before.
    """
    aside = output / UNCHECKED
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        _replace(aside, output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _replace(aside: Path, output: Path) -> None:
    for pattern in (*MARKERS, *WEIGHTS):
        for old in output.glob(pattern):
            old.unlink()
    for path in sorted(aside.iterdir(), key=lambda path: path.name in MARKERS):
        if path.is_dir():
            shutil.rmtree(output / path.name, ignore_errors=True)
        path.replace(output / path.name)
