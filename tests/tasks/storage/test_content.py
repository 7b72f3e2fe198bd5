"""A span of a file on its way into a store: what is sent, and what is noticed where the file is no longer the same."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.storage.content import FileContent
from tasks.storage.manifest import PIECE_BYTES

START, LENGTH = 1000, 2 * PIECE_BYTES + 5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(START + LENGTH + 1000))
    return path


@pytest.fixture
def content(path: Path) -> Iterator[FileContent]:
    sha256 = hashlib.sha256(path.read_bytes()[START : START + LENGTH]).hexdigest()
    with path.open("rb", buffering=0) as file:
        yield FileContent(file, START, LENGTH, sha256)


def sent(content: FileContent) -> list[bytes]:
    """The pieces from the first on, as HTTP asks for them."""
    content.seek(0)
    return [bytes(piece) for piece in iter(lambda: content.read(16384), b"")]


def test_the_span_is_sent_in_pieces_and_again_from_its_first(path: Path, content: FileContent) -> None:
    span = path.read_bytes()[START : START + LENGTH]
    for _ in range(2):
        assert [len(piece) for piece in sent(content)] == [PIECE_BYTES, PIECE_BYTES, 5]
        assert b"".join(sent(content)) == span == content.in_memory()
    assert len(content) == LENGTH
    assert content.is_what_it_says


def test_another_byte_in_the_span_is_noticed_and_none_beside_it(path: Path, content: FileContent) -> None:
    for position, noticed in ((START - 1, False), (START + LENGTH, False), (START, True)):
        with path.open("r+b") as file:
            file.seek(position)
            byte = file.read(1)
            file.seek(position)
            file.write(bytes([byte[0] ^ 1]))
        assert content.is_what_it_says is not noticed


def test_zeros_stand_for_what_is_no_longer_there(path: Path, content: FileContent) -> None:
    left = path.read_bytes()[START : START + 100]
    os.truncate(path, START + 100)
    assert b"".join(sent(content)) == left + bytes(LENGTH - 100) == content.in_memory()
    assert not content.is_what_it_says


def test_an_empty_span_ends_at_once(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        assert sent(FileContent(file, 0, 0, hashlib.sha256(b"").hexdigest())) == []
