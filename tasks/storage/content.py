"""Bytes on their way into a store, with the SHA-256 that they are said to have: in memory, or in a file."""

import contextlib
import hashlib
import os
from io import FileIO

from tasks.storage.manifest import PIECE_BYTES


class ChangedContent(Exception):
    """What was to be stored is not what it was said to be."""


class Content(bytearray):
    """Bytes on their way into a store, and the SHA-256 that they are said to have."""

    sha256: str

    @classmethod
    def of(cls, data: bytes) -> "Content":
        """These bytes with their own hash."""
        content = cls(data)
        content.sha256 = hashlib.sha256(data).hexdigest()
        return content

    @property
    def is_what_it_says(self) -> bool:
        """Whether the bytes have the hash."""
        return hashlib.sha256(self).hexdigest() == self.sha256

    def in_memory(self) -> "Content":
        """These bytes."""
        return self


class FileContent:
    """A span of an open file on its way into a store, read while it is sent, and the SHA-256 it is said to have."""

    def __init__(self, file: FileIO, start: int, length: int, sha256: str) -> None:
        self.sha256 = sha256
        self._descriptor = file.fileno()
        self._start = start
        self._length = length
        self._position = 0
        self._piece = memoryview(bytearray(min(length, PIECE_BYTES)))

    def __len__(self) -> int:
        return self._length

    def read(self, size: int = -1) -> memoryview:
        """The next piece, until the next call; of our size, for HTTP's would be small.

        Zeros stand for what cannot be read: a server that checks content refuses the whole.
        """
        piece = self._piece[: self._length - self._position]
        num_read = 0
        with contextlib.suppress(OSError):
            num_read = os.preadv(self._descriptor, [piece], self._start + self._position)
        if not num_read:
            piece[:] = bytes(len(piece))
        self._position += num_read or len(piece)
        return piece[: num_read or len(piece)]

    def seek(self, position: int) -> None:
        """Let the piece from `position` be the next."""
        self._position = position

    @property
    def is_what_it_says(self) -> bool:
        """Whether the bytes have the hash now."""
        return self.in_memory().is_what_it_says

    def in_memory(self) -> Content:
        """The bytes as they are now, and zeros in place of those that are no longer there."""
        content, size = Content(self._length), 0
        content.sha256 = self.sha256
        while read := os.preadv(self._descriptor, [memoryview(content)[size:]], self._start + size):
            size += read
        return content
