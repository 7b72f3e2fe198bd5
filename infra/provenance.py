"""How a number was measured: what stands beside it in docs/results."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from tasks.artifacts import library_versions

ROOT = Path(__file__).resolve().parent.parent
CPU_INFO = Path("/proc/cpuinfo")


def provenance() -> str:
    """Commit, machine and versions, in a sentence."""
    changed = " with changes that are not committed" if _git("status", "--porcelain", "flows", "tasks", "infra") else ""
    machine = f"{_processor()} with {os.cpu_count()} cores, {_gpus()}"
    libraries = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    commit = f"Commit {_git('rev-parse', '--short', 'HEAD')}{changed}"
    return f"{commit}, {machine}, Python {platform.python_version()}, {libraries}."


def _git(*arguments: str) -> str:
    return _output_of("git", *arguments)


def _gpus() -> str:
    """Their names, or that there is none."""
    if shutil.which("nvidia-smi") is None:
        return "no GPU"
    return _output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").replace("\n", " and ")


def _output_of(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    """As Linux names it, else the architecture alone."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
