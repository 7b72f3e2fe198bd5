"""Moving an artifact's files between a folder and a store: in parallel, chunk by chunk, every chunk verified."""

import errno
import hashlib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tasks.errors import InputError
from tasks.storage.content import ChangedContent, FileContent
from tasks.storage.file_names import refuse_links
from tasks.storage.manifest import NUM_HASHERS, NUM_THREADS, DamagedArtifact, FileEntry, Manifest, sha256_of_span, spans
from tasks.storage.stores import Store, Upload, UploadVanished, sync_folder, write_whole

IN_FLIGHT_BYTES = 96 * 2**20
NUM_BEGINNINGS = 5
NUM_READINGS = 5
NUM_SYNCERS = 4
PARTIAL = ".partial"  # after the name of a folder that is being downloaded

logger = logging.getLogger(__name__)


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

    def is_in(self, folder: Path) -> bool:
        """Whether this chunk stands at its place in the file under `folder`."""
        return sha256_of_span(folder / self.name, self.start, self.length) == self.sha256

    def write(self, folder: Path, data: bytes) -> None:
        """Put `data` at this chunk's place."""
        with (folder / self.name).open("r+b", buffering=0) as file:
            write_whole(file.fileno(), data, self.start)

    def sync(self, folder: Path) -> None:
        """Bring what stands at this chunk's place to the disk."""
        with (folder / self.name).open("r+b", buffering=0) as file:
            os.fdatasync(file.fileno())

    def __str__(self) -> str:
        return f"chunk {self.index} (bytes {self.start} to {self.start + self.length})"


class _Arrival:
    """A chunk that is hashed and written to its place in an open file while it comes."""

    def __init__(self, chunk: Chunk, descriptor: int) -> None:
        self._chunk = chunk
        self._descriptor = descriptor
        self.begin()

    def begin(self) -> None:
        self._hash, self._size = hashlib.sha256(), 0

    def take(self, piece: bytes) -> None:
        mine = memoryview(piece)[: max(0, self._chunk.length - self._size)]
        write_whole(self._descriptor, mine, self._chunk.start + self._size)
        self._hash.update(piece)
        self._size += len(piece)

    @property
    def is_the_chunk(self) -> bool:
        return self._hash.hexdigest() == self._chunk.sha256


def upload(store: Store, folder: Path, manifest: Manifest) -> None:
    """Send the manifest's files from `folder`; what an interrupted upload left in the store is not sent again."""
    names: Collection[str] = manifest.files
    with _disk_of(store.uri):
        for number in range(NUM_BEGINNINGS):
            names = _upload(store, folder, manifest, names, resume=number == 0)
            if not names:
                return
    raise ConnectionError(
        f"{store.uri}/{manifest.files_folder}: somebody aborts the uploads of {', '.join(names)} while they run. "
        "Check the bucket's lifecycle rules and who else deletes there, and run again."
    )


def _upload(store: Store, folder: Path, manifest: Manifest, names: Collection[str], resume: bool) -> set[str]:
    """Send these files; the result names those whose uploads vanished on the way."""
    vanished: set[str] = set()

    def begin(name: str) -> Upload | None:
        return store.begin(f"{manifest.files_folder}/{name}", manifest.files[name], manifest.chunk_bytes, resume)

    def send(chunk: Chunk) -> None:
        if chunk.name in vanished:
            return
        try:
            with (folder / chunk.name).open("rb", buffering=0) as file:
                data = FileContent(file, chunk.start, chunk.length, chunk.sha256)
                pending[chunk.name].send(chunk.index, chunk.start, data)
        except ChangedContent as error:
            raise RuntimeError(f"{folder / chunk.name} changed while it was being published.") from error
        except UploadVanished as reason:
            logger.warning("%s; it is sent anew.", reason)
            vanished.add(chunk.name)

    def complete(name: str) -> None:
        try:
            pending[name].complete()
        except UploadVanished as reason:
            logger.warning("%s; it is sent anew.", reason)
            vanished.add(name)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        begun = zip(names, pool.map(begin, names), strict=True)
        pending = {name: upload for name, upload in begun if upload is not None}
    with ThreadPoolExecutor(_num_in_flight(manifest)) as pool:
        list(pool.map(send, _chunks(manifest, pending)))
        list(pool.map(complete, pending.keys() - vanished))
    return vanished


def bring(store: Store, manifest: Manifest, target: Path) -> None:
    """Make the folder `target` hold exactly the manifest's files, every chunk hashed; what is there is not fetched.

    A new folder appears whole or not at all, and an interrupted download goes on. What is wrong in one that is there
    is named in the log and mended where it stands, for others may read it.
    """
    with _disk_of(str(target)):
        if target.exists():
            _mend(store, manifest, target)
        else:
            _download(store, manifest, target)


def read_verified(store: Store, manifest: Manifest, name: str) -> bytes:
    """The content of one small file, verified."""
    return b"".join(_read_chunk(store, manifest, chunk) for chunk in _chunks(manifest, [name]))


def _download(store: Store, manifest: Manifest, target: Path) -> None:
    arriving = target.with_name(target.name + PARTIAL)
    _remove_strangers(manifest, arriving)
    begun = {name for name in manifest.files if (arriving / name).exists()}
    _lay_out(manifest.files, arriving)
    fresh = _chunks(manifest, manifest.files.keys() - begun)
    missing = [*_missing(_chunks(manifest, begun), arriving), *fresh]
    _receive(manifest, arriving, missing, partial(_copy, store, manifest))
    for folder in (arriving, *(path for path in arriving.rglob("*") if path.is_dir())):
        sync_folder(folder)
    arriving.rename(target)
    sync_folder(target.parent)


def _mend(store: Store, manifest: Manifest, target: Path) -> None:
    _remove_strangers(manifest, target)
    cut = {name: entry for name, entry in manifest.files.items() if _size_of(target / name) != entry.size}
    for name in cut:
        logger.warning("%s is damaged: it has not its size; what is wrong in it is fetched again.", target / name)
    _lay_out(cut, target)
    wrong = _missing(_chunks(manifest, manifest.files), target)
    for chunk in wrong:
        if chunk.name not in cut:
            path = target / chunk.name
            logger.warning("%s is damaged: %s does not match its SHA-256; it is fetched again.", path, chunk)
    _receive(manifest, target, wrong, partial(_replace, store, manifest))


def _remove_strangers(manifest: Manifest, folder: Path) -> None:
    """Delete the files under `folder` that the manifest does not name; raises InputError for a link."""
    refuse_links(folder)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.relative_to(folder).as_posix() not in manifest.files:
            logger.warning("%s does not belong to the artifact; it is removed.", path)
            path.unlink()


def _receive(manifest: Manifest, folder: Path, chunks: Sequence[Chunk], fetch: Callable[[Chunk, Path], None]) -> None:
    """Have these chunks fetched to their places in the files under `folder`, and on the disk.

    The network does not wait for the disk: whoever has fetched a chunk leaves it to others to bring it there.
    """
    with ThreadPoolExecutor(NUM_SYNCERS) as disk, ThreadPoolExecutor(_num_in_flight(manifest)) as network:
        fetched = zip(chunks, network.map(lambda chunk: fetch(chunk, folder), chunks), strict=True)
        for synced in [disk.submit(chunk.sync, folder) for chunk, _ in fetched]:
            synced.result()


def _copy(store: Store, manifest: Manifest, chunk: Chunk, folder: Path) -> None:
    """Fetch a chunk straight to its place in a file that nobody reads before all of it is right."""
    with (folder / chunk.name).open("r+b", buffering=0) as file:
        arrival = _Arrival(chunk, file.fileno())
        for _ in range(NUM_READINGS):
            there = store.copy_range(f"{manifest.files_folder}/{chunk.name}", chunk.start, chunk.length, arrival)
            if there and arrival.is_the_chunk:
                return
    raise _damaged(store, manifest, chunk, there)


def _replace(store: Store, manifest: Manifest, chunk: Chunk, folder: Path) -> None:
    """Put a chunk, once it is known to be right, to its place in a file that others may read."""
    chunk.write(folder, _read_chunk(store, manifest, chunk))


def _missing(chunks: Sequence[Chunk], folder: Path) -> list[Chunk]:
    """Those of the chunks that do not stand in the files under `folder`."""
    with ThreadPoolExecutor(NUM_HASHERS) as pool:
        there = pool.map(lambda chunk: chunk.is_in(folder), chunks)
        return [chunk for chunk, is_there in zip(chunks, there, strict=True) if not is_there]


def _num_in_flight(manifest: Manifest) -> int:
    """How many chunks may be in memory at once."""
    return max(1, min(NUM_THREADS, IN_FLIGHT_BYTES // manifest.chunk_bytes))


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
    """One chunk from the store; a wrong one is asked for again, for the network may have spoilt it."""
    name = f"{manifest.files_folder}/{chunk.name}"
    for _ in range(NUM_READINGS):
        data = store.read_range(name, chunk.start, chunk.length)
        if data is not None and chunk.matches(data):
            return data
    raise _damaged(store, manifest, chunk, there=data is not None)


def _damaged(store: Store, manifest: Manifest, chunk: Chunk, there: bool) -> DamagedArtifact:
    what = f"{chunk} does not match its SHA-256" if there else "it is missing"
    return DamagedArtifact(f"{store.uri}/{manifest.folder}", f"{manifest.attempt}/{chunk.name}", what)


def _lay_out(files: Mapping[str, FileEntry], folder: Path) -> None:
    """Give every file its place and size under `folder`, keeping the bytes that are there."""
    for name, entry in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, entry.size)


def _size_of(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
