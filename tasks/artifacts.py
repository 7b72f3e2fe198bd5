"""Artifacts in a store: their keys, and how folders are published, found and fetched.

    artifacts/<stage>/<key>/<attempt>/...      the files, under their own names
    artifacts/<stage>/<key>/manifest.json      written last: without it there is no artifact

An attempt is named for its content, so attempts that differ never mix, and a publish that was
interrupted and runs again sends only what is missing.
"""

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tasks.errors import InputError
from tasks.storage import externals
from tasks.storage.cache import in_use
from tasks.storage.file_names import require_publishable
from tasks.storage.manifest import (
    MANIFEST,
    Artifact,
    Cost,
    DamagedArtifact,
    Manifest,
    artifact_folder,
    content_digest,
    describe_folder,
    fitting_chunk_bytes,
    names_in,
    sha256_of,
)
from tasks.storage.stores import Store, store_at
from tasks.storage.transfer import NUM_READINGS, bring, read_verified, upload

__all__ = [
    "Artifact",
    "Cost",
    "DamagedArtifact",
    "Store",
    "artifact_key",
    "code_version",
    "fetch",
    "fetched",
    "find",
    "import_external",
    "lineage_of",
    "publish",
    "read_files",
    "store_at",
]

NOT_PUBLISHED = ("checkpoints", "error.json")
SHARED_PACKAGES = ("actor_critic", "engines", "guard", "models", "rewards")
CARRIERS = (
    "artifacts",
    "certification",
    "champion",
    "display",
    "gate",
    "launch",
    "lifeline",
    "lineage",
    "release",
    "runner",
    "stage_log",
    "stages",
    "supervisor",
    "sweep",
)
LIBRARIES = (
    "accelerate",
    "datasets",
    "math-verify",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
)
ARTIFACT_URI = re.compile(r"(?P<store>(s3|file)://.+)/artifacts/(?P<stage>\w+)/(?P<key>[0-9a-f]{32})/?")


def artifact_key(stage: str, config: Mapping[str, Any], inputs: Mapping[str, Artifact], code_version: str) -> str:
    """32 hex digits for what `stage` makes of this config, these inputs and this code: equal key, already done."""
    digests = {name: artifact.digest for name, artifact in inputs.items()}
    return sha256_of([stage, dict(config), digests, code_version])[:32]


@cache
def code_version(stage: str) -> str:
    """Hash of what decides the stage's result beside its inputs: the sources it may load, and the libraries' versions.

    Those are its own folder and the shared modules and packages of tasks/, without those that only carry files and
    processes about.
    """
    root = Path(__file__).parent
    modules = [path for path in root.glob("*.py") if path.stem not in CARRIERS]
    packages = [path for name in (*SHARED_PACKAGES, stage) for path in root.joinpath(name).rglob("*.py")]
    sources = {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (*modules, *packages)
    }
    return sha256_of([sources, library_versions()])[:16]


def library_versions() -> dict[str, str]:
    """Installed version of each library that can change a result."""
    return {name: _version(name) for name in LIBRARIES}


def find(store: Store, stage: str, key: str) -> Artifact | None:
    """The artifact that `stage` published under `key`, or None; raises DamagedArtifact for a broken manifest."""
    manifest = _read_manifest(store, stage, key)
    return None if manifest is None else _artifact(store, manifest)


def publish(
    store: Store,
    folder: Path,
    *,
    stage: str,
    key: str,
    kind: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    exclude: Sequence[str] = NOT_PUBLISHED,
    chunk_bytes: int | None = None,
    confirm: Callable[[], None] = lambda: None,
    cost: Cost | None = None,
) -> Artifact:
    """Upload `folder` without the top-level names in `exclude`, then its manifest; returns the artifact under `key`.

    If another attempt published under this key first, that one is the artifact and is returned.
    `chunk_bytes` is the unit that is sent and verified, S3 wants at least 5 MiB; None = what fits the largest file.
    `confirm` is called before the manifest is written, and may raise to prevent it. `cost` is written down in it.
    """
    if there := find(store, stage, key):
        return there
    sizes = {name: (folder / name).stat().st_size for name in names_in(folder, exclude)}
    if not sizes:
        raise InputError(f"The stage {stage} left no files in {folder}: nothing to publish.")
    require_publishable(folder, sizes)
    chunk_bytes = chunk_bytes or fitting_chunk_bytes(max(sizes.values()))
    files = describe_folder(folder, exclude, chunk_bytes)
    manifest = Manifest(
        stage=stage,
        key=key,
        attempt=content_digest(kind, files)[:16],
        kind=kind,
        config=dict(config),
        inputs={name: artifact.digest for name, artifact in inputs.items()},
        files=files,
        chunk_bytes=chunk_bytes,
        code_version=code_version(stage),
        libraries=library_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        cost=cost,
    )
    upload(store, folder, manifest)
    confirm()
    store.create(f"{manifest.folder}/{MANIFEST}", manifest.to_json())
    winner = find(store, stage, key)
    if winner is None:
        raise ConnectionError(f"{store.uri} took the manifest of {stage} {key} but does not give it back.")
    return winner


def import_external(source: str, kind: str | None = None) -> Artifact:
    """The artifact record of something that exists already.

    `source` is an artifact's own URI, s3://bucket/object, hf://org/name[@revision], org/name, or a local
    file or folder. `kind` is what it is to be taken for; without it, it is told from the files.
    """
    if match := ARTIFACT_URI.fullmatch(source):
        artifact = find(store_at(match["store"]), match["stage"], match["key"])
        if artifact is None:
            raise InputError(f"There is no artifact at {source}: it has no {MANIFEST}. Check the address.")
        return artifact
    return externals.describe(source, kind)


@contextmanager
def fetched(store: Store, artifact: Artifact, folder: Path) -> Iterator[Path]:
    """The local folder (for a plain file, the file) that holds `artifact`, every chunk hashed now.

    It is an entry of the cache `folder`, which several processes may share, and is not evicted while the block runs.
    What is damaged there is fetched again. Something local is not copied.
    """
    if ARTIFACT_URI.fullmatch(artifact.uri) is None:
        with externals.fetched(artifact, folder) as path:
            yield path
        return
    store, manifest = _locate(store, artifact)
    with in_use(folder / artifact.digest, manifest.size_bytes, partial(bring, store, manifest)) as target:
        yield target


def fetch(store: Store, artifact: Artifact, folder: Path) -> Path:
    """As `fetched`, for a `folder` from which nobody evicts: nothing holds the entry."""
    with fetched(store, artifact, folder) as path:
        return path


def read_files(store: Store, artifact: Artifact, *patterns: str) -> dict[str, bytes]:
    """Name and content of the published artifact's files that match one of `patterns`, in the patterns' order.

    For small files: each is held in memory, and nothing is written to the cache. Empty for what is in no store.
    """
    if ARTIFACT_URI.fullmatch(artifact.uri) is None:
        return {}
    store, manifest = _locate(store, artifact)
    names = [name for pattern in patterns for name in fnmatch.filter(manifest.files, pattern)]
    return {name: read_verified(store, manifest, name) for name in names}


def lineage_of(store: Store, artifact: Artifact) -> dict[str, Any]:
    """What the artifact is and was made with: address, digest, kind, and for one of a store its manifest's record."""
    known: dict[str, Any] = {"uri": artifact.uri, "digest": artifact.digest, "kind": artifact.kind}
    if ARTIFACT_URI.fullmatch(artifact.uri) is None:
        return known
    _, manifest = _locate(store, artifact)
    record = ("stage", "kind", "config", "inputs", "code_version", "libraries", "created", "cost")
    return known | manifest.model_dump(mode="json", include=set(record))


def _locate(store: Store, artifact: Artifact) -> tuple[Store, Manifest]:
    """The store that holds a published artifact, and its manifest; raises InputError if it is gone or changed."""
    match = ARTIFACT_URI.fullmatch(artifact.uri)
    if match is None:
        raise InputError(f"{artifact.uri} was not published by a stage: it has no {MANIFEST}. Name an artifact.")
    if match["store"] != store.uri:
        store = store_at(match["store"])
    manifest = _read_manifest(store, match["stage"], match["key"])
    if manifest is None:
        raise InputError(f"{artifact.uri} is gone: it has no {MANIFEST}. Run the stage {match['stage']} again.")
    if manifest.digest != artifact.digest:
        raise DamagedArtifact(artifact.uri, MANIFEST, f"its digest is {manifest.digest}, expected {artifact.digest}")
    return store, manifest


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "absent"


def _artifact(store: Store, manifest: Manifest) -> Artifact:
    return Artifact(
        uri=f"{store.uri}/{manifest.folder}",
        kind=manifest.kind,
        digest=manifest.digest,
        made_from=manifest.inputs,
        size_bytes=manifest.size_bytes,
    )


def _read_manifest(store: Store, stage: str, key: str) -> Manifest | None:
    folder = artifact_folder(stage, key)
    for number in range(NUM_READINGS):
        data = store.read(f"{folder}/{MANIFEST}")
        try:
            return None if data is None else Manifest.from_json(data, f"{store.uri}/{folder}")
        except DamagedArtifact:  # the network may have spoilt it
            if number == NUM_READINGS - 1:
                raise
    raise AssertionError
