"""Things that exist already, outside our stores: local files and folders, S3 objects, the Hugging Face hub."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from tasks.errors import InputError
from tasks.manifest import CHUNK_BYTES, Artifact, content_digest, describe_file, describe_folder, sha256_of, spans
from tasks.safe_loading import refuse_pickled_weights
from tasks.transfer import cache_lock

if TYPE_CHECKING:
    from tasks.s3 import S3Store

HUB_NAME = re.compile(r"(hf://)?(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
SMALL_FILES = ["config.json", "adapter_config.json", "scalar_head.json", "README.md"]
MODEL_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


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


def fetch(artifact: Artifact, folder: Path) -> Path:
    """The local file or folder that holds what `describe` described; `folder` is the cache."""
    scheme = urlsplit(artifact.uri).scheme
    if scheme == "hf":
        return _fetch_hub(artifact)
    if scheme == "s3":
        return _fetch_object(artifact, folder)
    path = Path(unquote(urlsplit(artifact.uri).path))
    if not path.exists():
        raise InputError(f"{path} is gone since it was looked up. Put it back or name another.")
    return path


def kind_of(folder: Path) -> str:
    """What a folder is, by the files in it: a kind of artifact, or `file` for plain data files."""
    has = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if "actor_critic.json" in has:
        return "actor_critic"
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
    head = _bucket_of(source).head(_name_of(source))
    if not head:
        raise InputError(f"There is no object {source}. Check the address; a folder's objects are given one by one.")
    size = int(head["ContentLength"])
    return Artifact(uri=source, kind=kind, digest=sha256_of([kind, head["ETag"], size]), size_bytes=size)


def _fetch_object(artifact: Artifact, folder: Path) -> Path:
    """A copy of the S3 object in the cache; refused if the object changed since it was looked up."""
    name = _name_of(artifact.uri)
    target = folder / artifact.digest / Path(name).name
    with cache_lock(folder / artifact.digest):
        if target.is_file() and target.stat().st_size == artifact.size_bytes:
            return target
        if _describe_object(artifact.uri, artifact.kind).digest != artifact.digest:
            raise InputError(f"{artifact.uri} changed since it was looked up. Start the run again.")
        target.parent.mkdir(parents=True, exist_ok=True)
        bucket = _bucket_of(artifact.uri)
        partial = target.with_name(target.name + ".partial")
        with partial.open("wb") as file:
            for start, length in spans(artifact.size_bytes, CHUNK_BYTES):
                file.write(bucket.read_range(name, start, length) or b"")
            file.flush()
            os.fsync(file.fileno())
        if partial.stat().st_size != artifact.size_bytes:
            raise InputError(f"{artifact.uri} changed while it was copied. Start the run again.")
        partial.rename(target)
    return target


def _bucket_of(uri: str) -> "S3Store":
    from tasks.s3 import S3Store

    return S3Store(urlsplit(uri).netloc, make=False)


def _name_of(uri: str) -> str:
    return uri.split("/", 3)[3] if uri.count("/") > 2 else ""


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
