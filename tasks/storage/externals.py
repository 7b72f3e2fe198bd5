"""Things that exist already, outside our stores: local files and folders, S3 objects, the Hugging Face hub."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from tasks.errors import InputError
from tasks.models.safe_loading import refuse_pickled_weights
from tasks.storage.cache import in_use
from tasks.storage.manifest import (
    CHUNK_BYTES,
    Artifact,
    content_digest,
    describe_file,
    describe_folder,
    sha256_of,
    spans,
)
from tasks.storage.stores import sync_folder
from tasks.storage.transfer import PARTIAL

if TYPE_CHECKING:
    from tasks.storage.s3 import S3Store

HUB_NAME = re.compile(r"(hf://)?(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
SMALL_FILES = ["config.json", "adapter_config.json", "scalar_head.json", "README.md"]
MODEL_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
RECORD = ".sha256.json"  # after the name of a copy: what it was when it came

logger = logging.getLogger(__name__)


def describe(source: str, kind: str | None = None) -> Artifact:
    """The record of what `source` names: a local path, s3://bucket/object, hf://org/name[@revision] or org/name.

    `kind` overrides what is told from the files; with kind "file" a hub name is a data set's.
    Raises InputError, with the absolute path that was tried, if there is no such thing.
    """
    if source.startswith("s3://"):
        return _describe_object(source, kind or "file")
    path = Path(unquote(urlsplit(source).path) if source.startswith("file://") else source).expanduser().absolute()
    if path.exists():
        return _describe_path(path, kind)
    if (match := HUB_NAME.fullmatch(source)) and not source.endswith(DATA_SUFFIXES):
        return _describe_hub(match["name"], match["revision"], kind, path)
    raise InputError(f"{source}: there is no {path}. Give an existing file or folder, an s3:// object or a hub name.")


@contextmanager
def fetched(artifact: Artifact, folder: Path) -> Iterator[Path]:
    """The local file or folder that holds what `describe` described; what is copied is kept in the cache `folder`."""
    scheme = urlsplit(artifact.uri).scheme
    if scheme == "s3":
        with in_use(folder / artifact.digest, artifact.size_bytes, partial(_copy_object, artifact)) as copy:
            yield copy / _place_of(artifact.uri)[2]
    elif scheme == "hf":
        yield _fetch_hub(artifact)
    else:
        path = Path(unquote(urlsplit(artifact.uri).path))
        if not path.exists():
            raise InputError(f"{path} is gone since it was looked up. Put it back or name another.")
        yield path


def kind_of(folder: Path) -> str:
    """What a folder is, by the files in it: a kind of artifact, or `file` for plain data files."""
    has = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if "actor_critic.json" in has:
        return "actor_critic_adapter" if "adapter_config.json" in has else "actor_critic"
    if "adapter_config.json" in has:
        return "reward_adapter" if "scalar_head.json" in has else "adapter"
    if "config.json" in has:
        return "reward_model" if "scalar_head.json" in has or _scores(folder / "config.json") else "model"
    if any(name.endswith("_train.parquet") for name in has):
        return "data"
    return "evaluation" if "evaluation.json" in has else "file"


def _scores(config: Path) -> bool:
    """Whether a model's config.json says that it classifies sequences, as reward models do."""
    try:
        architectures = json.loads(config.read_text()).get("architectures") or []
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{config} is no model's configuration ({error}). Give a folder made by save_pretrained."
        ) from error
    return any(name.endswith("ForSequenceClassification") for name in architectures)


def _describe_path(path: Path, kind: str | None) -> Artifact:
    if path.is_dir():
        kind = kind or kind_of(path)
        if kind not in ("file", "data", "evaluation"):
            refuse_pickled_weights(path)
        files = describe_folder(path)
    else:
        kind = kind or "file"
        files = {path.name: describe_file(path)}
    if not files:
        raise InputError(f"The folder {path} is empty. Give one with a model's or data files.")
    size_bytes = sum(entry.size for entry in files.values())
    return Artifact(
        uri=f"file://{quote(str(path))}", kind=kind, digest=content_digest(kind, files), size_bytes=size_bytes
    )


def _describe_object(source: str, kind: str) -> Artifact:
    folder, name = _folder_of(source)
    head = folder.head(name) if name else {}
    digest = _digest_of(kind, head)
    if digest is None:
        raise InputError(f"There is no object {source}. Check the address; a folder's objects are given one by one.")
    return Artifact(uri=source, kind=kind, digest=digest, size_bytes=int(head["ContentLength"]))


def _copy_object(artifact: Artifact, target: Path) -> None:
    """Make the cache's entry `target` of the S3 object; refused if the object changed since it was looked up.

    S3 tells no SHA-256 of an object: the copy's own is kept beside it, and a copy that no longer has it is replaced.
    """
    copy = target / _place_of(artifact.uri)[2]
    record = copy.with_name(copy.name + RECORD)
    if copy.is_file() and record.is_file():
        if record.read_text() == describe_file(copy).model_dump_json():
            return
        logger.warning("%s is damaged: it does not match its SHA-256; it is fetched again.", copy)
    target.mkdir(parents=True, exist_ok=True)
    arriving = copy.with_name(copy.name + PARTIAL)
    _download_object(artifact, arriving)
    record.write_text(describe_file(arriving).model_dump_json())
    arriving.rename(copy)
    sync_folder(target)


def _download_object(artifact: Artifact, path: Path) -> None:
    folder, name = _folder_of(artifact.uri)
    before = folder.head(name)
    with path.open("wb") as file:
        for start, length in spans(artifact.size_bytes, CHUNK_BYTES):
            file.write(folder.read_range(name, start, length) or b"")
        file.flush()
        os.fsync(file.fileno())
    if {_digest_of(artifact.kind, head) for head in (before, folder.head(name))} != {artifact.digest}:
        raise InputError(f"{artifact.uri} changed since it was looked up. Start the run again.")
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    told = before["ETag"].strip('"')
    if path.stat().st_size != artifact.size_bytes or (_is_md5(before) and told != md5):
        raise ConnectionError(f"{artifact.uri} did not arrive as it is stored: MD5 {md5}, expected {told}.")


def _digest_of(kind: str, head: Mapping[str, Any]) -> str | None:
    """The digest of an S3 object as the server describes it; None for one that is gone."""
    return sha256_of([kind, head["ETag"], int(head["ContentLength"])]) if head else None


def _is_md5(head: Mapping[str, Any]) -> bool:
    """Whether an object's ETag is the MD5 of its content: it was sent in one piece and is not encrypted by a KMS."""
    return "-" not in head["ETag"] and head.get("ServerSideEncryption", "AES256") == "AES256"


def _folder_of(uri: str) -> "tuple[S3Store, str]":
    """The part of the bucket in which an S3 object lies, and its name there."""
    from tasks.storage.s3 import S3Store

    bucket, folder, name = _place_of(uri)
    return S3Store(bucket, folder, make=False), name


def _place_of(uri: str) -> tuple[str, str, str]:
    """Bucket, folder and last name of an S3 object's address."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    folder, _, name = key.rpartition("/")
    return bucket, folder, name


def _describe_hub(name: str, revision: str | None, kind: str | None, tried: Path) -> Artifact:
    is_data = kind == "file"
    repository = f"datasets/{name}" if is_data else name
    try:
        snapshot = _snapshot(repository, revision, SMALL_FILES)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name}: there is no {tried}, and the hub gives no such {'data set' if is_data else 'model'} "
            f"({_first_line(error)}). Correct the path or the name; for a private repository set HF_TOKEN."
        ) from error
    uri = f"hf://{repository}@{snapshot.name}"
    kind = kind or kind_of(snapshot)
    return Artifact(uri=uri, kind=kind, digest=sha256_of([kind, uri]))


def _fetch_hub(artifact: Artifact) -> Path:
    """The hub's own cache of the commit: weights as safetensors and what goes with them, or a data set's files."""
    repository, _, commit = artifact.uri.removeprefix("hf://").rpartition("@")
    wanted = [f"*{suffix}" for suffix in DATA_SUFFIXES] if artifact.kind == "file" else MODEL_FILES
    try:
        snapshot = _snapshot(repository, commit, wanted)
    except OSError as error:
        raise InputError(
            f"{artifact.uri} cannot be fetched ({_first_line(error)}). Check the network or HF_TOKEN."
        ) from error
    if artifact.kind != "file" and not any(snapshot.glob("*.safetensors")):
        raise InputError(
            f"{artifact.uri} has no *.safetensors file, and no other weights are loaded. Name another model."
        )
    return snapshot


def _snapshot(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder, named for its commit, with those files of a hub repository; without a network, what is cached."""
    from huggingface_hub import snapshot_download

    name = repository.removeprefix("datasets/")
    repo_type = "model" if name == repository else "dataset"
    return Path(snapshot_download(name, revision=revision, repo_type=repo_type, allow_patterns=list(patterns)))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
