"""What comes from a store: written while it comes where nobody reads it yet, else only once it is known to be right."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Store, fetch, store_at
from tests.tasks.publishing import CHUNK, contents, flip, published

SECOND = ("model.safetensors", CHUNK)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_at(f"file://{tmp_path}/store")


def spoil_once(store: Any, how: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the store's first answer to who asks for the model's second chunk be changed so."""
    read_range, spoilt = store.read_range, []

    def spoil(name: str, start: int, length: int) -> bytes:
        data = read_range(name, start, length)
        if (name.rpartition("/")[2], start) != SECOND or spoilt:
            return bytes(data)
        spoilt.append(start)
        return how(data)

    monkeypatch.setattr(store, "read_range", spoil)


@pytest.mark.parametrize("how", [flip(7), lambda data: data[:-1], lambda data: b"", lambda data: data + b"more"])
def test_a_chunk_that_came_wrong_is_fetched_again(
    how: Callable[[bytes], bytes], store: Store, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = published(store, output)
    whole = contents(fetch(store, artifact, tmp_path / "first"))
    spoil_once(store, how, monkeypatch)
    assert contents(fetch(store, artifact, tmp_path / "cache")) == whole


def test_more_than_was_asked_for_is_not_written_over_the_next_chunk(
    store: Store, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = published(store, output)
    folder = fetch(store, artifact, tmp_path / "cache")
    whole = contents(folder)
    path = folder.rename(f"{folder}.partial") / "model.safetensors"
    path.write_bytes(flip(CHUNK)(path.read_bytes()))
    spoil_once(store, lambda data: data + b"more", monkeypatch)
    assert contents(fetch(store, artifact, tmp_path / "cache")) == whole


def test_a_file_that_others_may_read_gets_nothing_wrong(
    store: Any, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = published(store, output)
    path = fetch(store, artifact, tmp_path / "cache") / "model.safetensors"
    damaged = flip(CHUNK)(path.read_bytes())
    path.write_bytes(damaged)
    spoil_once(store, flip(9), monkeypatch)
    read_range, seen = store.read_range, []

    def look(name: str, start: int, length: int) -> bytes:
        seen.append(path.read_bytes())
        return bytes(read_range(name, start, length))

    monkeypatch.setattr(store, "read_range", look)
    fetch(store, artifact, tmp_path / "cache")
    assert seen == [damaged, damaged]
    assert path.read_bytes() == (output / "model.safetensors").read_bytes()


def test_all_is_on_the_disk_before_it_has_its_name(
    store: Store, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = published(store, output)
    target, synced = tmp_path / "cache" / artifact.digest, []

    def note(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((path.relative_to(f"{target}.partial").as_posix(), path.read_bytes(), target.exists()))

    monkeypatch.setattr("os.fdatasync", note)
    for name, data in contents(fetch(store, artifact, tmp_path / "cache")).items():
        assert (name, data, False) in synced
    assert not any(named for _, _, named in synced)
