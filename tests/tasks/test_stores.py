"""Stores: a disk that does not take everything at once, and addresses that are refused."""

import os
from pathlib import Path

import pytest

from tasks.artifacts import fetch, publish
from tasks.errors import InputError
from tasks.stores import store_at


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
