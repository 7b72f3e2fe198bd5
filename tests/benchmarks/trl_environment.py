"""An environment of its own for TRL 1.12.0, the last that has PPO: made once, then found again."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TORCH = "torch==2.13.0"  # first and alone: a resolver that may choose takes a build with gigabytes for GPUs
PACKAGES = ("trl==1.12.0", "transformers==5.23.*", "accelerate==1.15.*", "peft==0.21.*", "datasets==5.2.*")
COMPLETE = "complete"  # this file is written last


def trl_python(folder: Path) -> Path:
    """The Python of the environment in `folder`, which is made if it is not there."""
    python = folder / "bin" / "python"
    if not (folder / COMPLETE).is_file():
        print(f"making an environment for TRL in {folder}", flush=True)
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        for packages in ([TORCH], PACKAGES):
            _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
        (folder / COMPLETE).touch()
    return python


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True)
