"""Where artifacts are kept: `file:///folder`, or `s3://bucket/prefix` on any S3 server."""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit

from tasks.errors import InputError
from tasks.storage.content import ChangedContent, Content, FileContent
from tasks.storage.manifest import FileEntry, describe_file

NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
TEMPORARY = ".unfinished."  # before the name of a file that is being written


@dataclass(frozen=True)
class Stored:
    """A file in a store: its name, its size in bytes, and when it was written by the store's clock."""

    name: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class Unfinished:
    """A write that was begun and not completed: the file's name, the store's own id of the write, when it began."""

    name: str
    id: str
    begun: datetime


class UploadVanished(Exception):
    """What was sent of a file is no longer there, because somebody aborted the upload: it is to begin anew."""


class Sink(Protocol):
    """Where the bytes of a range go as they come."""

    def begin(self) -> None:
        """The first byte comes next, or comes again because the store was asked anew."""

    def take(self, piece: bytes) -> None:
        """The next bytes."""


class Upload(Protocol):
    """One file on its way into a store; both operations may raise UploadVanished."""

    def send(self, index: int, start: int, data: Content | FileContent) -> None:
        """Send chunk `index`, whose first byte is `start`; chunks may come in any order and from several threads.

        Raises ChangedContent, and stores nothing, if `data` is not what it says.
        """

    def complete(self) -> None:
        """Make the file appear, whole, after every chunk was sent."""


class Store(Protocol):
    """A flat collection of named files under one URI."""

    uri: str

    def read(self, name: str) -> bytes | None:
        """The whole of a small file, or None where there is none."""

    def read_range(self, name: str, start: int, length: int) -> bytes | None:
        """`length` bytes from `start`, or None where there is no such file."""

    def copy_range(self, name: str, start: int, length: int, sink: Sink) -> bool:
        """As `read_range`, but piece by piece into the sink; False where there is no such file."""

    def create(self, name: str, data: bytes) -> None:
        """Write a small file unless there is one; of several who try at once all but one write nothing."""

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, in place of the one that is there."""

    def replace(self, name: str, data: bytes, before: bytes | None) -> bool:
        """Write a small file in place of `before`, None for no file; False if another is there now.

        Where the server cannot promise that, a writer of the same moment may be overwritten.
        """

    def begin(self, name: str, entry: FileEntry, chunk_bytes: int, resume: bool = True) -> Upload | None:
        """Start to write a file, or with `resume` go on with an interrupted write; None if it is there already."""

    def files(self, prefix: str) -> Iterator[Stored]:
        """Every file whose name begins with `prefix`, in the order of their names."""

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        """Every write that was begun and not completed, of files whose names begin with `prefix`."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove these files; one that is not there is none the less gone."""

    def abort(self, write: Unfinished) -> None:
        """Remove what an unfinished write has left."""


def store_at(uri: str) -> Store:
    """The store at `s3://bucket/prefix` or `file:///folder`, made if it is missing and we may.

    Raises InputError if it cannot be reached, refuses the credentials, or is not a store's address.
    """
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        raise InputError(
            "The store's address holds a user name or password, which would be kept with every artifact. Give "
            "s3://bucket/prefix, and the keys as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    if parts.scheme == "s3" and parts.netloc:
        from tasks.storage.s3 import S3Store

        return S3Store(parts.netloc, parts.path.strip("/"))
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return FileStore(Path(unquote(parts.path)))
    raise InputError(f"The store {uri!r} is not an address. Give s3://bucket/prefix or file:///folder.")


def write_whole(descriptor: int, data: bytes | bytearray | memoryview, start: int) -> None:
    """Put all of `data` at byte `start` of an open file.

    A single write to a disk that is nearly full takes a part and raises nothing.
    """
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, start)
        start, rest = start + written, rest[written:]


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FileStore:
    """A folder with a store's layout, for a machine without an S3 server."""

    def __init__(self, root: Path) -> None:
        self.uri = f"file://{quote(str(root))}".rstrip("/")
        self._root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=root).close()
        except OSError as error:
            raise InputError(
                f"The store {self.uri} cannot be written ({error}). Give a folder that you own."
            ) from error

    def read(self, name: str) -> bytes | None:
        with contextlib.suppress(*NO_FILE):  # whoever looks first may find what is deleted before it is read
            return (self._root / name).read_bytes()
        return None

    def read_range(self, name: str, start: int, length: int) -> bytes | None:
        with contextlib.suppress(*NO_FILE), (self._root / name).open("rb") as file:
            return os.pread(file.fileno(), length, start)
        return None

    def copy_range(self, name: str, start: int, length: int, sink: Sink) -> bool:
        data = self.read_range(name, start, length)
        sink.begin()
        sink.take(data or b"")
        return data is not None

    def create(self, name: str, data: bytes) -> None:
        upload = _FileUpload(self._root / name)
        upload.write(0, data)
        upload.complete(replace=False)

    def write(self, name: str, data: bytes) -> None:
        upload = _FileUpload(self._root / name)
        upload.write(0, data)
        upload.complete()

    def replace(self, name: str, data: bytes, before: bytes | None) -> bool:
        if self.read(name) != before:
            return False
        self.write(name, data)
        return True

    def begin(self, name: str, entry: FileEntry, chunk_bytes: int, resume: bool = True) -> Upload | None:
        path = self._root / name
        there = path.is_file() and path.stat().st_size == entry.size
        return None if there and describe_file(path, chunk_bytes) == entry else _FileUpload(path)

    def files(self, prefix: str) -> Iterator[Stored]:
        for name, path in self._paths(prefix):
            if not _is_temporary(path):
                with contextlib.suppress(FileNotFoundError):
                    about = path.stat()
                    yield Stored(name, about.st_size, datetime.fromtimestamp(about.st_mtime, UTC))

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        for name, path in self._paths(prefix):
            if _is_temporary(path):
                with contextlib.suppress(FileNotFoundError):
                    begun = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                    folder, _, last = name.rpartition("/")
                    file = last.removeprefix(TEMPORARY).rpartition(".")[0]
                    yield Unfinished(f"{folder}/{file}", name, begun)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            path = self._root / name
            path.unlink(missing_ok=True)
            for folder in path.relative_to(self._root).parents:
                if folder.parts:
                    with contextlib.suppress(OSError):  # another file is in it
                        (self._root / folder).rmdir()

    def abort(self, write: Unfinished) -> None:
        self.delete([write.id])

    def _paths(self, prefix: str) -> Iterator[tuple[str, Path]]:
        """Name and path of whatever lies under the prefix."""
        folder = self._root / prefix.rpartition("/")[0]
        found = sorted(Path(parent, file) for parent, _, files in os.walk(folder) for file in files)
        for path in found:
            name = path.relative_to(self._root).as_posix()
            if name.startswith(prefix):
                yield name, path


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(TEMPORARY)


def _temporary_beside(path: Path) -> str:
    """A new empty file in the folder of `path`, which whoever deletes its last file removes meanwhile."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=f"{TEMPORARY}{path.name}.", dir=path.parent)
        except (FileNotFoundError, FileExistsError):
            if path.parent.is_file():
                raise
        else:
            os.close(descriptor)
            return temporary


class _FileUpload:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = _temporary_beside(path)

    def send(self, index: int, start: int, data: Content | FileContent) -> None:
        content = data.in_memory()
        if not content.is_what_it_says:
            raise ChangedContent
        self.write(start, content)

    def write(self, start: int, data: bytes | bytearray) -> None:
        with open(self._temporary, "r+b") as file:
            write_whole(file.fileno(), data, start)
            os.fsync(file.fileno())

    def complete(self, replace: bool = True) -> None:
        if replace:
            os.replace(self._temporary, self._path)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(self._temporary, self._path)
            os.unlink(self._temporary)
        with contextlib.suppress(FileNotFoundError):  # the file is deleted already, and it was the folder's last
            sync_folder(self._path.parent)
