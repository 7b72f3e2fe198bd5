"""Stores: addresses that are refused, a disk that does not take everything at once, several who write and delete."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.artifacts import fetch, publish
from tasks.errors import InputError
from tasks.storage.stores import store_at


def test_a_write_that_takes_only_a_part_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_write = os.pwrite
    monkeypatch.setattr("os.pwrite", lambda descriptor, data, start: whole_write(descriptor, data[:1000], start))
    (tmp_path / "source").mkdir()
    data = os.urandom(2500)
    (tmp_path / "source" / "model.bin").write_bytes(data)
    store = store_at(f"file://{tmp_path}/store")
    artifact = publish(store, tmp_path / "source", stage="sft", key="0" * 32, kind="model", config={}, inputs={})
    assert (fetch(store, artifact, tmp_path / "cache") / "model.bin").read_bytes() == data


def test_an_address_that_holds_keys_is_refused_without_showing_them() -> None:
    with pytest.raises(InputError, match="holds a user name or password") as refusal:
        store_at("s3://planted-key:planted-secret@bucket/prefix")
    assert "planted" not in str(refusal.value)


def test_several_may_write_list_read_and_delete_the_last_file_of_a_folder(tmp_path: Path) -> None:
    store = store_at(f"file://{tmp_path}/store")
    ends = time.monotonic() + 1.0

    def work(number: int) -> int:
        rounds = 0
        while time.monotonic() < ends:
            name = f"deep/er/{number % 2}"
            store.write(name, b"some")
            assert store.read(name) in (b"some", None)
            assert store.read_range(name, 1, 2) in (b"om", None)
            assert {file.size for file in store.files("deep/")} <= {4}
            store.delete([name])
            rounds += 1
        return rounds

    with ThreadPoolExecutor(4) as pool:
        assert min(pool.map(work, range(4))) >= 5
