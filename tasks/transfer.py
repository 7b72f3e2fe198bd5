"""Moving an artifact's files between a folder and a store: in parallel, chunk by chunk, every chunk verified."""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tasks.errors import InputError
from tasks.file_names import refuse_links
from tasks.manifest import NUM_THREADS, DamagedArtifact, Manifest, spans
from tasks.stores import Store, Upload, write_whole


@dataclass(frozen=True)
class Chunk:
    """Where a piece of a file lies, and what it must hash to."""

    name: str
    index: int
    start: int
    length: int
    sha256: str

    def matches(self, data: bytes) -> bool:
        """Whether `data` is this chunk."""
        return hashlib.sha256(data).hexdigest() == self.sha256

    def read(self, folder: Path) -> bytes:
        """What stands at this chunk's place in the file under `folder`."""
        with (folder / self.name).open("rb") as file:
            return os.pread(file.fileno(), self.length, self.start)


def upload(store: Store, folder: Path, manifest: Manifest) -> None:
    """Send the manifest's files from `folder`; what an interrupted upload left in the store is not sent again."""

    def begin(name: str) -> Upload | None:
        return store.begin(f"{manifest.files_folder}/{name}", manifest.files[name])

    def send(chunk: Chunk) -> None:
        data = chunk.read(folder)
        if not chunk.matches(data):
            raise RuntimeError(f"{folder / chunk.name} changed while it was being published.")
        pending[chunk.name].send(chunk.index, chunk.start, data)

    with ThreadPoolExecutor(NUM_THREADS) as pool, _disk_of(store.uri):
        begun = zip(manifest.files, pool.map(begin, manifest.files), strict=True)
        pending = {name: upload for name, upload in begun if upload is not None}
        list(pool.map(send, _chunks(manifest, pending)))
        list(pool.map(lambda upload: upload.complete(), pending.values()))


def download(store: Store, manifest: Manifest, target: Path) -> None:
    """Make the folder `target` of the manifest's files; it appears whole or not at all.

    Chunks that an interrupted download or a damaged `target` already holds are not fetched again.
    """
    partial = target.with_name(target.name + ".partial")
    if target.exists():
        shutil.rmtree(partial, ignore_errors=True)
        target.rename(partial)
    refuse_links(partial)

    def receive(chunk: Chunk) -> None:
        if not chunk.matches(chunk.read(partial)):
            data = _read_chunk(store, manifest, chunk)
            with (partial / chunk.name).open("r+b") as file:
                write_whole(file.fileno(), data, chunk.start)

    with ThreadPoolExecutor(NUM_THREADS) as pool, _disk_of(str(target)):
        _lay_out(manifest, partial)
        list(pool.map(receive, _chunks(manifest, manifest.files)))
        _seal(manifest, partial)
        partial.rename(target)


def read_verified(store: Store, manifest: Manifest, name: str) -> bytes:
    """The content of one small file, verified."""
    return b"".join(_read_chunk(store, manifest, chunk) for chunk in _chunks(manifest, [name]))


def is_intact(folder: Path, manifest: Manifest) -> bool:
    """Whether `folder` holds the manifest's files as they were verified; hashed anew only if a time or size changed."""
    paths = {name: folder / name for name in manifest.files}
    if not all(path.is_file() and path.stat().st_size == manifest.files[name].size for name, path in paths.items()):
        return False
    touched = [name for name, path in paths.items() if path.stat().st_mtime != _stamp(manifest)]
    return all(chunk.matches(chunk.read(folder)) for chunk in _chunks(manifest, touched))


@contextmanager
def cache_lock(target: Path) -> Iterator[None]:
    """Only one process or thread at a time works on the cache entry `target`; freed even if its holder is killed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(target.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _disk_of(place: str) -> Iterator[None]:
    """Say where space is missing when a disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"The disk is full at {place}. Free space there and run again.") from error


def _chunks(manifest: Manifest, names: Iterable[str]) -> list[Chunk]:
    return [
        Chunk(name, index, start, length, sha256)
        for name in names
        for index, ((start, length), sha256) in enumerate(
            zip(spans(manifest.files[name].size, manifest.chunk_bytes), manifest.files[name].chunks, strict=True)
        )
    ]


def _read_chunk(store: Store, manifest: Manifest, chunk: Chunk) -> bytes:
    """One chunk from the store; a wrong one is asked for once more, for the network may have spoilt it."""
    name = f"{manifest.files_folder}/{chunk.name}"
    for _ in range(2):
        data = store.read_range(name, chunk.start, chunk.length)
        if data is not None and chunk.matches(data):
            return data
    place = f"chunk {chunk.index} (bytes {chunk.start} to {chunk.start + chunk.length})"
    what = "it is missing" if data is None else f"{place} does not match its SHA-256"
    raise DamagedArtifact(f"{store.uri}/{manifest.folder}", f"{manifest.attempt}/{chunk.name}", what)


def _lay_out(manifest: Manifest, folder: Path) -> None:
    """Give every file its place and size under `folder`, keeping the bytes that are there."""
    for name, entry in manifest.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, entry.size)


def _seal(manifest: Manifest, folder: Path) -> None:
    """Bring the verified files to the disk and stamp them, so that later changes show."""
    for name in manifest.files:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
        os.utime(folder / name, (_stamp(manifest), _stamp(manifest)))


def _stamp(manifest: Manifest) -> float:
    return datetime.fromisoformat(manifest.created).timestamp()
