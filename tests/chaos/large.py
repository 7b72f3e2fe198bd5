"""One object of more than 5 GiB, published and fetched: the bytes and the memory."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from tasks.runner import PROJECT

OBJECT_BYTES = 5 * 2**30 + 12_345
MEMORY_BYTES = 300 * 2**20
NUM_BLOCKS, BLOCK_BYTES = 64, 2**20
KEY = "5" * 32


def move_large(folder: Path, uri: str, size_bytes: int = OBJECT_BYTES) -> tuple[dict[str, Any], list[str]]:
    """What publishing and fetching took, and what is wrong with the bytes or the memory."""
    source = folder / "source"
    source.mkdir()
    _write_sparse(source / "model.bin", size_bytes)
    published = _move("publish", uri, source)
    fetched = _move("fetch", uri, folder / "cache")
    violations = [
        f"{name} took {taken['peak_bytes'] / 2**20:.0f} MiB of memory, at most {MEMORY_BYTES / 2**20:.0f} are allowed"
        for name, taken in (("publish", published), ("fetch", fetched))
        if taken["peak_bytes"] >= MEMORY_BYTES
    ]
    if _sha256(source / "model.bin") != _sha256(Path(fetched["place"]) / "model.bin"):
        violations.append("other bytes were delivered than published")
    return {"size_bytes": size_bytes, "publish": published, "fetch": fetched}, violations


def _write_sparse(path: Path, size_bytes: int) -> None:
    """Zeros with random blocks all over, which take no space but theirs."""
    lot = random.Random(0)
    with path.open("wb") as file:
        os.truncate(path, size_bytes)
        for _ in range(NUM_BLOCKS):
            file.seek(lot.randrange(max(size_bytes - BLOCK_BYTES, 1)))
            file.write(lot.randbytes(min(BLOCK_BYTES, size_bytes)))


def _move(action: str, uri: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.chaos.mover", action, uri, str(folder), KEY]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    taken: dict[str, Any] = json.loads(done.stdout)
    return taken


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
