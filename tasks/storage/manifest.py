"""What an artifact is: the small record that flows pass, and the manifest that describes its files."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from tasks.config import Config
from tasks.errors import InputError
from tasks.storage.file_names import fault_of_names

CHUNK_BYTES = 16 * 2**20
MAX_CHUNK_BYTES = 64 * 2**20
MAX_CHUNKS = 10_000  # S3 takes no more parts
NUM_THREADS = 8
NUM_HASHERS = min(NUM_THREADS, os.cpu_count() or 1)
PIECE_BYTES = 2**18  # what is hashed, sent or written at once: it stays in a core's cache
MANIFEST = "manifest.json"


class DamagedArtifact(InputError):
    """What is stored is not what was published: the artifact's address, the file in it, what is wrong with it."""

    def __init__(self, uri: str, name: str, what: str) -> None:
        super().__init__(
            f"{uri}/{name} is damaged: {what}. Delete everything under {uri}/ and run the stage that makes it again."
        )


class Artifact(Config):
    """A published folder, or something outside that was there already: where it lies and what it is."""

    uri: str = Field(description="s3://, file:// or hf:// address")
    kind: str = Field(description="model, adapter, reward_model, reward_adapter, actor_critic, data, evaluation, ...")
    digest: str = Field(description="SHA-256 of kind and files: equal content, equal digest")
    made_from: dict[str, str] = Field(default_factory=dict, description="name of each input: its digest")
    size_bytes: int = Field(0, ge=0, description="all files together")


class FileEntry(Config):
    """One file: its size, its SHA-256 and that of every chunk.

    Of several chunks its own is over theirs, as S3's composite checksums are: so the content is hashed once. A manifest
    with that of the whole content in its place is read no differently.
    """

    size: int
    sha256: str
    chunks: list[str]


class Cost(Config):
    """What the attempt that made an artifact took; one that went on from a checkpoint counts from there."""

    seconds: float = Field(ge=0, description="from the fetching of the inputs to the end of the stage's process")
    peak_rss_bytes: int | None = Field(None, ge=0, description="resident memory of its largest process")


class Manifest(Config):
    """Everything about one published artifact; its presence in the store is what makes the artifact exist."""

    format: Literal[1] = 1
    stage: str
    key: str
    attempt: str = Field(pattern=r"^[\w-]+$")
    kind: str
    config: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, FileEntry]
    chunk_bytes: int = Field(gt=0)
    code_version: str
    libraries: dict[str, str]
    created: str
    cost: Cost | None = None

    @property
    def size_bytes(self) -> int:
        """Size of all files together."""
        return sum(entry.size for entry in self.files.values())

    @property
    def folder(self) -> str:
        """Where in the store this manifest lies."""
        return artifact_folder(self.stage, self.key)

    @property
    def files_folder(self) -> str:
        """Where in the store the files lie."""
        return f"{self.folder}/{self.attempt}"

    @property
    def digest(self) -> str:
        """The artifact's digest: kind and content, nothing of where or when."""
        return content_digest(self.kind, self.files)

    def to_json(self) -> bytes:
        """The manifest as stored: readable JSON that carries the SHA-256 of the rest of itself."""
        fields = self.model_dump(mode="json")
        return json.dumps({**fields, "checksum": sha256_of(fields)}, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, uri: str) -> Self:
        """What `to_json` wrote for the artifact at `uri`; raises DamagedArtifact if it changed or a name is unsafe."""
        try:
            fields = json.loads(data)
            intact = fields.pop("checksum") == sha256_of(fields)
            manifest = cls.model_validate(fields)
        except (ValueError, AttributeError, KeyError) as error:
            raise DamagedArtifact(uri, MANIFEST, f"it is no manifest of this version ({error})") from error
        if not intact:
            raise DamagedArtifact(uri, MANIFEST, "it does not match its own checksum")
        if fault := fault_of_names(manifest.files):
            raise DamagedArtifact(uri, MANIFEST, fault)
        if not uri.endswith(f"/{manifest.folder}"):
            raise DamagedArtifact(uri, MANIFEST, f"it is the one of {manifest.folder}")
        return manifest


def artifact_folder(stage: str, key: str) -> str:
    """Where in a store the artifact that `stage` made under `key` lies."""
    return f"artifacts/{stage}/{key}"


def sha256_of(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def content_digest(kind: str, files: dict[str, FileEntry]) -> str:
    """SHA-256 over the kind and every file's name, size and hash."""
    return sha256_of([kind, sorted((name, entry.size, entry.sha256) for name, entry in files.items())])


def names_in(folder: Path, exclude: Sequence[str] = ()) -> list[str]:
    """The relative names of all files of `folder` but the top-level ones in `exclude`, sorted."""
    return sorted(
        path.relative_to(folder).as_posix()
        for top in folder.iterdir()
        if top.name not in exclude
        for path in ([top] if top.is_file() else top.rglob("*"))
        if path.is_file()
    )


def describe_folder(folder: Path, exclude: Sequence[str] = (), chunk_bytes: int = CHUNK_BYTES) -> dict[str, FileEntry]:
    """Every file of `folder` by its relative name, hashed; the top-level names in `exclude` are left out."""
    with ThreadPoolExecutor(NUM_HASHERS) as pool:
        begun = {name: _describe(folder / name, chunk_bytes, pool) for name in names_in(folder, exclude)}
        return {name: entry() for name, entry in begun.items()}


def describe_file(path: Path, chunk_bytes: int = CHUNK_BYTES) -> FileEntry:
    """Size, SHA-256 and chunk hashes of one file."""
    with ThreadPoolExecutor(NUM_HASHERS) as pool:
        return _describe(path, chunk_bytes, pool)()


def sha256_of_span(path: Path, start: int, length: int) -> str:
    """SHA-256 of `length` bytes of a file from `start`, or of those that there are."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(min(length, PIECE_BYTES)))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while length and (size := file.readinto(buffer[:length])):
            digest.update(buffer[:size])
            length -= size
    return digest.hexdigest()


def fitting_chunk_bytes(largest: int) -> int:
    """The chunk size, in bytes, with which a file of `largest` bytes has no more chunks than S3 takes parts.

    Raises InputError for a file whose chunks would take more memory than the transfer of a stage may.
    """
    chunk_bytes = CHUNK_BYTES
    while chunk_bytes * MAX_CHUNKS < largest:
        chunk_bytes *= 2
    if chunk_bytes > MAX_CHUNK_BYTES:
        raise InputError(
            f"A file of {largest / 2**30:.0f} GiB is larger than {MAX_CHUNKS} chunks of {MAX_CHUNK_BYTES // 2**20} "
            "MiB, the most that a store takes. Save it in several files (max_shard_size of save_pretrained)."
        )
    return chunk_bytes


def spans(size: int, chunk_bytes: int) -> list[tuple[int, int]]:
    """(start, length) of every chunk of a file of `size` bytes; an empty file is one empty chunk."""
    return [(start, min(chunk_bytes, size - start)) for start in range(0, max(size, 1), chunk_bytes)]


def _describe(path: Path, chunk_bytes: int, pool: Executor) -> Callable[[], FileEntry]:
    """Has the file hashed in the pool's threads; the result gives the entry when they are ready."""
    size = path.stat().st_size
    begun = [pool.submit(sha256_of_span, path, *span) for span in spans(size, chunk_bytes)]

    def entry() -> FileEntry:
        chunks = [chunk.result() for chunk in begun]
        return FileEntry(size=size, sha256=_sha256_over(chunks), chunks=chunks)

    return entry


def _sha256_over(chunks: Sequence[str]) -> str:
    """A file's SHA-256 from those of its chunks: of several, the one over their bytes in turn."""
    return chunks[0] if len(chunks) == 1 else hashlib.sha256(bytes.fromhex("".join(chunks))).hexdigest()
