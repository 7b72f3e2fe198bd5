"""Every artifact in a store: the manifests, read in parallel."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tasks.retention.keys import Key, key_of
from tasks.storage.manifest import MANIFEST, DamagedArtifact, Manifest, artifact_folder
from tasks.storage.stores import Store

NUM_READERS = 16


@dataclass(frozen=True)
class Catalogue:
    """Manifests by key; what is wrong with those that cannot be read."""

    manifests: Mapping[Key, Manifest]
    damaged: Mapping[Key, DamagedArtifact]

    def by_digest(self) -> dict[str, list[Key]]:
        """The keys under which each content was published, the oldest first."""
        keys: dict[str, list[Key]] = {}
        for key, manifest in sorted(self.manifests.items(), key=lambda item: (item[1].created, item[0])):
            keys.setdefault(manifest.digest, []).append(key)
        return keys


def catalogue(store: Store) -> Catalogue:
    """Every artifact in the store."""
    return read_manifests(store, published_keys(file.name for file in store.files("artifacts/")))


def published_keys(names: Iterable[str]) -> list[Key]:
    """Whose manifests are among the stored files of these names."""
    keys = ((key_of(name), name) for name in names)
    return [key for key, name in keys if key and name == f"{artifact_folder(key.stage, key.key)}/{MANIFEST}"]


def read_manifests(store: Store, keys: Iterable[Key]) -> Catalogue:
    """The manifests that there are under these keys."""
    manifests: dict[Key, Manifest] = {}
    damaged: dict[Key, DamagedArtifact] = {}

    def read(key: Key) -> None:
        try:
            manifest = _read_manifest(store, key)
        except DamagedArtifact as error:
            damaged[key] = error
        else:
            if manifest is not None:
                manifests[key] = manifest

    with ThreadPoolExecutor(NUM_READERS) as pool:
        list(pool.map(read, keys))
    return Catalogue(manifests, damaged)


def _read_manifest(store: Store, key: Key) -> Manifest | None:
    """The manifest under `key`; a damaged one is asked for once more, for the network may have spoilt it."""
    folder = artifact_folder(key.stage, key.key)
    for last in (False, True):
        data = store.read(f"{folder}/{MANIFEST}")
        try:
            return None if data is None else Manifest.from_json(data, f"{store.uri}/{folder}")
        except DamagedArtifact:
            if last:
                raise
    return None
