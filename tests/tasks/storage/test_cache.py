"""What was fetched and is kept: checked at each use, mended, evicted, and never while somebody uses it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Artifact, Store, fetch, fetched, store_at
from tasks.errors import InputError
from tasks.storage.cache import limit_bytes, make_room, size_of
from tests.tasks.publishing import CHUNK, contents, flip, published

HOLDER = """
import sys
from pathlib import Path
from tasks.storage.cache import in_use
with in_use(Path(sys.argv[1]), 0, lambda target: None):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_at(f"file://{tmp_path}/store")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def asked(store: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Last name and start of every piece of a file that the store was asked for."""
    asked: list[tuple[str, int]] = []
    read_range = store.read_range

    def record(name: str, start: int, length: int) -> bytes | None:
        asked.append((name.rpartition("/")[2], start))
        return read_range(name, start, length)

    monkeypatch.setattr(store, "read_range", record)
    return asked


def change(path: Path, how: Callable[[bytes], bytes]) -> None:
    """Change a file and none of its times."""
    about = path.stat()
    path.write_bytes(how(path.read_bytes()))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_a_flipped_bit_is_named_and_only_its_chunk_fetched_again(
    store: Store, output: Path, cache: Path, asked: list[tuple[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    artifact = published(store, output)
    cached = fetch(store, artifact, cache) / "model.safetensors"
    good = cached.read_bytes()
    change(cached, flip(2 * CHUNK + 9))
    asked.clear()
    assert (fetch(store, artifact, cache) / "model.safetensors").read_bytes() == good
    assert asked == [("model.safetensors", 2 * CHUNK)]
    [message] = [record.getMessage() for record in caplog.records]
    assert f"{cached} is damaged: chunk 2 (bytes {2 * CHUNK} to {3 * CHUNK}) does not match its SHA-256" in message


def test_what_cannot_be_mended_is_not_used(store: Store, output: Path, cache: Path, tmp_path: Path) -> None:
    artifact = published(store, output)
    for path in ((tmp_path / "store").rglob("config.json"), [fetch(store, artifact, cache) / "config.json"]):
        for file in path:
            change(file, flip(3))
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        fetch(store, artifact, cache)


def test_a_file_that_is_too_short_is_named_and_completed(
    store: Store, output: Path, cache: Path, asked: list[tuple[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    artifact = published(store, output)
    cached = fetch(store, artifact, cache) / "model.safetensors"
    change(cached, lambda data: data[: 2 * CHUNK])
    asked.clear()
    fetch(store, artifact, cache)
    assert cached.read_bytes() == (output / "model.safetensors").read_bytes()
    assert sorted(asked) == [("model.safetensors", 2 * CHUNK), ("model.safetensors", 3 * CHUNK)]
    assert [str(cached) in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("suffix", ["", ".partial"])
def test_what_others_put_into_an_entry_is_removed(suffix: str, store: Store, output: Path, cache: Path) -> None:
    artifact = published(store, output)
    folder = fetch(store, artifact, cache)
    whole = contents(folder)
    (folder / "deep" / "more.json").write_text("{}")
    folder.rename(f"{folder}{suffix}")
    assert contents(fetch(store, artifact, cache)) == whole


def test_an_interrupted_download_goes_on(
    store: Any, output: Path, cache: Path, asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = published(store, output)
    whole_read = store.read_range

    def cut(name: str, start: int, length: int) -> bytes | None:
        if start == 2 * CHUNK:
            raise KeyboardInterrupt
        return whole_read(name, start, length)

    with monkeypatch.context() as patch:
        patch.setattr(store, "read_range", cut)
        patch.setattr("tasks.storage.transfer.NUM_THREADS", 1)
        with pytest.raises(KeyboardInterrupt):
            fetch(store, artifact, cache)
    assert not (cache / artifact.digest).exists()
    before = set(asked)
    asked.clear()
    fetch(store, artifact, cache)
    assert ("model.safetensors", 0) in before
    assert set(asked) & before <= {("empty", 0)}
    assert contents(cache / artifact.digest)["model.safetensors"] == (output / "model.safetensors").read_bytes()


def test_several_fetches_at_once_share_one_download(
    store: Store, output: Path, cache: Path, asked: list[tuple[str, int]]
) -> None:
    artifact = published(store, output)
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: fetch(store, artifact, cache), range(4)))
    assert len(set(folders)) == 1
    assert len([name for name, _ in asked if name == "model.safetensors"]) == 4


@pytest.fixture
def entries(store: Store, cache: Path, tmp_path: Path) -> list[Artifact]:
    """Three artifacts of a MiB, fetched in this order and an hour apart."""
    found = []
    for number in range(3):
        folder = tmp_path / f"output-{number}"
        folder.mkdir()
        (folder / "data").write_bytes(os.urandom(2**20))
        found.append(published(store, folder, str(number) * 32))
        fetch(store, found[-1], cache)
        os.utime(lock_of(cache, found[-1]), (1000 + number * 3600,) * 2)
    return found


def lock_of(cache: Path, artifact: Artifact) -> Path:
    return cache / f"{artifact.digest}.lock"


def kept(cache: Path, entries: list[Artifact]) -> list[int]:
    return [number for number, artifact in enumerate(entries) if (cache / artifact.digest).exists()]


def test_the_least_recently_used_goes_first(
    store: Store, cache: Path, entries: list[Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(store, entries[0], cache)
    monkeypatch.setenv("ALIGNMENT_CACHE_GIB", str(3 / 1024))
    make_room(cache, 0)
    assert kept(cache, entries) == [0, 1, 2]
    make_room(cache, 1)
    assert kept(cache, entries) == [0, 2]
    make_room(cache, 2**21)
    assert kept(cache, entries) == [0]


def test_a_fetch_makes_room_for_itself(
    store: Store, output: Path, cache: Path, entries: list[Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNMENT_CACHE_GIB", str(16.5 / 1024))
    artifact = published(store, output)
    fetch(store, artifact, cache)
    assert kept(cache, [*entries, artifact]) == [2, 3]
    assert size_of(cache / artifact.digest) >= artifact.size_bytes
    monkeypatch.setenv("ALIGNMENT_CACHE_GIB", "0")
    assert contents(fetch(store, artifact, cache))["config.json"] == (output / "config.json").read_bytes()


def test_what_is_in_use_here_is_not_evicted(
    store: Store, cache: Path, entries: list[Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNMENT_CACHE_GIB", "0")
    with fetched(store, entries[0], cache), fetched(store, entries[0], cache) as path:
        make_room(cache, 0)
        assert kept(cache, entries) == [0]
        assert path.is_dir()
    make_room(cache, 0)
    assert kept(cache, entries) == []


@pytest.fixture
def holder(cache: Path, entries: list[Artifact]) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that uses the first entry."""
    command = [sys.executable, "-c", HOLDER, str(cache / entries[0].digest)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_what_another_process_uses_is_not_evicted_until_it_is_killed(
    cache: Path, entries: list[Artifact], holder: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNMENT_CACHE_GIB", "0")
    make_room(cache, 0)
    assert kept(cache, entries) == [0]
    holder.kill()
    holder.wait()
    make_room(cache, 0)
    assert kept(cache, entries) == []


def test_what_another_process_uses_is_mended_where_it_stands(
    store: Store, cache: Path, entries: list[Artifact], holder: "subprocess.Popen[bytes]"
) -> None:
    path = cache / entries[0].digest / "data"
    good = path.read_bytes()
    change(path, flip(5))
    with path.open("rb") as open_before:
        fetch(store, entries[0], cache)
        assert open_before.read() == good
    assert holder.poll() is None


def test_the_limit_is_half_of_what_the_disk_could_give(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNMENT_CACHE_GIB", raising=False)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 60}))
    assert limit_bytes(cache, 40) == 50
    monkeypatch.setenv("ALIGNMENT_CACHE_GIB", "1.5")
    assert limit_bytes(cache, 40) == 1.5 * 2**30


@pytest.mark.parametrize("given", ["much", "-1", "nan"])
def test_a_limit_that_is_none_is_named(given: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNMENT_CACHE_GIB", given)
    with pytest.raises(InputError, match=f"ALIGNMENT_CACHE_GIB is '{given}'. Give the cache's size in GiB"):
        limit_bytes(cache, 0)
