"""Uploads in parts that are interrupted, aborted by others, or answered by nobody."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ConnectionClosedError

from tasks.artifacts import fetch
from tasks.storage.manifest import CHUNK_BYTES, MAX_CHUNK_BYTES, MAX_CHUNKS, fitting_chunk_bytes
from tasks.storage.s3 import S3Store
from tasks.storage.stores import store_at
from tests.tasks.publishing import contents, published

Interference = Callable[[Any, str, str], None]


@pytest.fixture
def interfere(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Lets something happen, once, before (or after) the second time that a store asks for an operation."""

    def arrange(operation: str, happens: Interference, after: bool = False, at: int = 2) -> list[str]:
        ask, asked = S3Store._ask, []

        def interfered(self: S3Store, client: Any, asked_for: str, name: str, arguments: Any) -> Any:
            asked.append(asked_for)
            due = asked_for == operation and asked.count(operation) == at
            if due and not after:
                happens(self, name, arguments.get("UploadId"))
            answer = ask(self, client, asked_for, name, arguments)
            if due and after:
                happens(self, name, arguments.get("UploadId"))
            return answer

        monkeypatch.setattr(S3Store, "_ask", interfered)
        return asked

    return arrange


def abort_all(store: Any, name: str, id: str) -> None:
    for write in list(store.unfinished(name)):
        store.abort(write)


def lose_the_answer(store: Any, name: str, id: str) -> None:
    raise ConnectionClosedError(endpoint_url=store.endpoint)


def republished(s3_uri: str, output: Path, cache: Path) -> bytes:
    """What is fetched of the file in parts after all was published."""
    store = store_at(s3_uri)
    store.abilities()  # type: ignore[attr-defined]
    artifact = published(store, output)
    assert list(store.unfinished("artifacts/")) == []
    return contents(fetch(store, artifact, cache))["model.safetensors"]


@pytest.mark.parametrize("operation", ["upload_part", "complete_multipart_upload"])
def test_an_upload_that_somebody_aborts_begins_anew(
    operation: str, s3_uri: str, output: Path, tmp_path: Path, interfere: Callable[..., list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    store_at(s3_uri).abilities()  # type: ignore[attr-defined]
    asked = interfere(operation, abort_all, at=2 if operation == "upload_part" else 1)
    assert republished(s3_uri, output, tmp_path / "cache") == (output / "model.safetensors").read_bytes()
    assert asked.count("create_multipart_upload") == 2
    assert "it is sent anew" in caplog.text


def test_a_completion_whose_answer_is_lost_is_taken_for_done(
    s3_uri: str, output: Path, tmp_path: Path, interfere: Callable[..., list[str]]
) -> None:
    store_at(s3_uri).abilities()  # type: ignore[attr-defined]
    asked = interfere("complete_multipart_upload", lose_the_answer, after=True, at=1)
    assert republished(s3_uri, output, tmp_path / "cache") == (output / "model.safetensors").read_bytes()
    assert asked.count("create_multipart_upload") == 1


def test_a_manifest_whose_answer_is_lost_is_ones_own(
    s3_uri: str, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Any = store_at(s3_uri)
    store.abilities()
    ask, cut = S3Store._ask, []

    def lose(self: S3Store, client: Any, operation: str, name: str, arguments: Any) -> Any:
        answer = ask(self, client, operation, name, arguments)
        if name.endswith("manifest.json") and not cut:
            cut.append(name)
            raise ConnectionClosedError(endpoint_url=self.endpoint)
        return answer

    monkeypatch.setattr(S3Store, "_ask", lose)
    artifact = published(store, output)
    assert len(cut) == 1
    assert contents(fetch(store, artifact, tmp_path / "cache"))["empty"] == b""


def test_what_is_aborted_again_and_again_is_named(s3_uri: str, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = store_at(s3_uri)
    store.abilities()
    ask = S3Store._ask

    def abort_first(self: S3Store, client: Any, operation: str, name: str, arguments: Any) -> Any:
        if operation == "complete_multipart_upload":
            abort_all(self, name, "")
        return ask(self, client, operation, name, arguments)

    monkeypatch.setattr(S3Store, "_ask", abort_first)
    with pytest.raises(ConnectionError, match=r"somebody aborts the uploads of model\.safetensors.*lifecycle"):
        published(store, output)


@pytest.mark.parametrize(
    ("name", "data"), [("config.json", b"x" * 100), ("config.json", b"{"), ("model.safetensors", b"x" * 100)]
)
def test_a_content_that_changes_is_refused_by_the_server(
    name: str, data: bytes, s3_uri: str, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Any = store_at(s3_uri)
    assert store.abilities().checks_content

    def describe(*arguments: Any) -> Any:
        from tasks.storage.manifest import describe_folder

        files = describe_folder(*arguments)
        (output / name).write_bytes(data)
        return files

    monkeypatch.setattr("tasks.artifacts.describe_folder", describe)
    with pytest.raises(RuntimeError, match=rf"{re.escape(name)} changed while"):
        published(store, output)
    assert not [file for file in store.files("artifacts/") if file.name.endswith(name)]


@pytest.mark.parametrize(
    ("largest", "chunk_mib"),
    [(0, 16), (5 * 2**30, 16), (16 * 2**20 * 10_000, 16), (16 * 2**20 * 10_000 + 1, 32), (64 * 2**20 * 10_000, 64)],
)
def test_chunks_grow_so_that_no_file_has_more_than_s3_takes(largest: int, chunk_mib: int) -> None:
    assert fitting_chunk_bytes(largest) == chunk_mib * 2**20
    assert (CHUNK_BYTES, MAX_CHUNK_BYTES, MAX_CHUNKS) == (16 * 2**20, 64 * 2**20, 10_000)


def test_a_file_beyond_that_is_refused() -> None:
    with pytest.raises(ValueError, match=r"625 GiB is larger than 10000 chunks of 64 MiB.*max_shard_size"):
        fitting_chunk_bytes(64 * 2**20 * 10_000 + 1)
