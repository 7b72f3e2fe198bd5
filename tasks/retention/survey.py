"""All that a sweep must know of a store, read in the one order that misses nothing: claims before records before files.

A run writes its record before it gives up its claims, and its manifests before both; so what is not seen as claimed is
seen as recorded or published.
"""

from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from tasks.errors import InputError
from tasks.retention.catalogue import NUM_READERS, Catalogue, published_keys, read_manifests
from tasks.retention.claims import living_claims
from tasks.retention.keys import KEYED, Key, digests_in, key_of, keys_in
from tasks.retention.runs import RUNS, RunRecord, read_record
from tasks.storage.stores import Store, Stored, Unfinished

CHAMPIONS = "champions"

T = TypeVar("T", Stored, Unfinished)


@dataclass(frozen=True)
class KnownRun:
    """A run's record, and when it was last written by the store's clock."""

    record: RunRecord
    modified: datetime

    @property
    def keys(self) -> set[Key]:
        """The key of every artifact that the run made or used."""
        return keys_in(" ".join(self.record.artifacts))


@dataclass(frozen=True)
class Survey:
    """A store as it was at `now`, by its own clock."""

    now: datetime
    claims: Mapping[str, set[Key]]  # by run
    runs: list[KnownRun]
    pinned: set[Key]  # by champions, and by records that cannot be read as such
    pinned_digests: set[str]
    files: Mapping[Key, list[Stored]]
    unfinished: Mapping[Key, list[Unfinished]]
    catalogue: Catalogue

    @property
    def keys(self) -> list[Key]:
        """Every key under which something lies."""
        return sorted({*self.files, *self.unfinished})

    @property
    def claimed(self) -> set[Key]:
        """Every key that a living run claims."""
        return {key for held in self.claims.values() for key in held}


def survey(
    store: Store, now: datetime, lapse: timedelta, known: Survey | None = None, anew: Collection[Key] = ()
) -> Survey:
    """The store as it is; claims not renewed for `lapse` do not count.

    Manifests never change, so those in `known` are not read again, but for the keys in `anew`. For these, and for those
    that a root names, the listing is not trusted: it may trail behind.
    """
    claims = living_claims(store, now, lapse)
    runs, pinned, digests = _roots(store)
    files = _by_key(file for top in KEYED for file in store.files(f"{top}/"))
    unfinished = _by_key(write for top in KEYED for write in store.unfinished(f"{top}/"))
    published = set(published_keys(file.name for found in files.values() for file in found))
    old = known.catalogue.manifests if known else {}
    kept = {key: manifest for key, manifest in old.items() if key in published and key not in anew}
    named = {key for run in runs for key in run.keys}
    read = read_manifests(store, {*published, *anew, *pinned, *named} - set(kept))
    catalogue = Catalogue({**kept, **read.manifests}, read.damaged)
    return Survey(now, claims, runs, pinned, digests, files, unfinished, catalogue)


def read_runs(store: Store) -> list[KnownRun]:
    """The runs on record, the oldest first."""
    records = ((file, read_record(data)) for file, data in _contents(store, f"{RUNS}/", ".json"))
    runs = [KnownRun(record, file.modified) for file, record in records if record]
    return sorted(runs, key=lambda run: run.record.started)


def _roots(store: Store) -> tuple[list[KnownRun], set[Key], set[str]]:
    """The runs on record; keys and digests that champions name, or records that cannot be read."""
    runs: list[KnownRun] = []
    pinned: set[Key] = set()
    digests: set[str] = set()
    for file, data in _contents(store, f"{RUNS}/", ".json"):
        if record := read_record(data):
            runs.append(KnownRun(record, file.modified))
        else:
            pinned |= keys_in(data.decode(errors="replace"))
    for file, data in _contents(store, f"{CHAMPIONS}/"):
        text = data.decode(errors="replace")
        if not keys_in(text) | digests_in(text):
            raise InputError(
                f"{store.uri}/{file.name} names no artifact, neither by its address nor by its digest, so nobody knows "
                "what it needs. Correct or delete that file; nothing was deleted."
            )
        pinned |= keys_in(text)
        digests |= digests_in(text)
    return runs, pinned, digests


def _contents(store: Store, prefix: str, ending: str = "") -> list[tuple[Stored, bytes]]:
    """The files under `prefix` with their content; those that go meanwhile are left out."""
    files = [file for file in store.files(prefix) if file.name.endswith(ending)]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        contents = pool.map(lambda file: store.read(file.name), files)
        return [(file, data) for file, data in zip(files, contents, strict=True) if data is not None]


def _by_key(stored: Iterable[T]) -> dict[Key, list[T]]:
    """What lies under each key."""
    found: dict[Key, list[T]] = {}
    for each in stored:
        if key := key_of(each.name):
            found.setdefault(key, []).append(each)
    return found
