"""Where artifacts are kept: `file:///folder`, or `s3://bucket/prefix` on any S3 server."""

import os
import tempfile
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit

from tasks.errors import InputError
from tasks.manifest import FileEntry


class Upload(Protocol):
    """One file on its way into a store."""

    def send(self, index: int, start: int, data: bytes) -> None:
        """Send chunk `index`, whose first byte is `start`; chunks may come in any order and from several threads."""

    def complete(self) -> None:
        """Make the file appear, whole, after every chunk was sent."""


class Store(Protocol):
    """A flat collection of named files under one URI."""

    uri: str

    def read(self, name: str) -> bytes | None:
        """The whole of a small file, or None where there is none."""

    def read_range(self, name: str, start: int, length: int) -> bytes | None:
        """`length` bytes from `start`, or None where there is no such file."""

    def create(self, name: str, data: bytes) -> None:
        """Write a small file unless there is one; where the server cannot promise that, the last writer wins."""

    def begin(self, name: str, entry: FileEntry) -> Upload | None:
        """Start to write a file, or go on with an interrupted write; None if it is there already."""


def store_at(uri: str) -> Store:
    """The store at `s3://bucket/prefix` or `file:///folder`, made if it is missing and we may.

    Raises InputError if it cannot be reached, refuses the credentials, or is not a store's address.
    """
    parts = urlsplit(uri)
    if parts.scheme == "s3" and parts.netloc:
        from tasks.s3 import S3Store

        return S3Store(parts.netloc, parts.path.strip("/"))
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return FileStore(Path(unquote(parts.path)))
    raise InputError(f"The store {uri!r} is not an address. Give s3://bucket/prefix or file:///folder.")


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
        path = self._root / name
        return path.read_bytes() if path.is_file() else None

    def read_range(self, name: str, start: int, length: int) -> bytes | None:
        path = self._root / name
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return os.pread(file.fileno(), length, start)

    def create(self, name: str, data: bytes) -> None:
        upload = _FileUpload(self._root / name)
        upload.send(0, 0, data)
        upload.complete(replace=False)

    def begin(self, name: str, entry: FileEntry) -> Upload | None:
        return _FileUpload(self._root / name)


class _FileUpload:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        descriptor, self._temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(descriptor)

    def send(self, index: int, start: int, data: bytes) -> None:
        with open(self._temporary, "r+b") as file:
            os.pwrite(file.fileno(), data, start)
            os.fsync(file.fileno())

    def complete(self, replace: bool = True) -> None:
        try:
            os.link(self._temporary, self._path)
        except FileExistsError:
            if replace:
                os.replace(self._temporary, self._path)
                return
        os.unlink(self._temporary)
