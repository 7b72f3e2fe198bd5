"""What the tests of artifacts publish, and how."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.artifacts import Artifact, Store, publish

CHUNK = 5 * 2**20
KEY = "0123456789abcdef" * 2


def published(store: Store, folder: Path, key: str = KEY, **changed: Any) -> Artifact:
    options = {"stage": "sft", "kind": "model", "config": {"lr": 1e-5}, "inputs": {}, "chunk_bytes": CHUNK}
    return publish(store, folder, key=key, **options | changed)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(position: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
