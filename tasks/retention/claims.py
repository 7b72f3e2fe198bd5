"""Claims: what a process uses in a store, said before it looks, so that a sweep leaves it alone.

    claims/<run>/<process>            the keys that the process uses; a beacon, see tasks/retention/beacon.py
    sweeps/<sweep>                    a sweep that deletes; a beacon as well
    condemned/<stage>/<key>           holds the id of the sweep that is about to delete from this key

A process writes its claim, then looks for the mark; a sweep writes the mark, then looks for claims. Whichever comes
second sees the other: either the process waits until the sweep is done with the key, or the sweep lets go of it. This
needs no conditional writes, only that what was written is read afterwards. A mark counts only while its sweep lives;
and since a sweep deletes manifests first, a key that one left half deleted is simply not there.
"""

import json
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from types import TracebackType

from tasks.retention.beacon import Beacon
from tasks.retention.keys import Key
from tasks.storage.stores import Store

CLAIMS, SWEEPS, CONDEMNED = "claims", "sweeps", "condemned"
RENEW_S, LAPSE_S = 300.0, 3600.0
SWEEP_RENEW_S, SWEEP_LAPSE_S = 30.0, 900.0
PATIENCE_S = 3600.0
POLL_S = 1.0


class ClaimsLapsed(RuntimeError):
    """The claims were not renewed for so long that a sweep may have deleted what they protect."""


class Claims:
    """What this process uses in `store`, from the start of a `with` block to its end."""

    def __init__(self, store: Store, run: str) -> None:
        self._store = store
        self._keys: set[Key] = set()
        self._num_gaps = 1
        self._lock = threading.Lock()
        self._beacon = Beacon(store, f"{CLAIMS}/{run}/{uuid.uuid4().hex}", RENEW_S, LAPSE_S)

    def __enter__(self) -> "Claims":
        self._beacon.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beacon.__exit__(kind, error, trace)

    def hold(self, keys: Iterable[Key]) -> int:
        """Claim these keys to the end; returns when no sweep is deleting from any of them.

        The number that it returns is what `confirm` wants.
        """
        with self._lock:
            interrupted = self._beacon.is_doubtful or self._beacon.num_gaps != self._num_gaps
            new = set(keys) | self._keys if interrupted else set(keys) - self._keys
            if new:
                self._beacon.write(json.dumps(sorted(map(str, self._keys | new))).encode())
                num_gaps = self._beacon.num_gaps
                for key in sorted(new):
                    self._wait_for_sweep(key)
                self._keys |= new
                self._num_gaps = num_gaps
            return self._num_gaps

    def confirm(self, held: int) -> None:
        """Raise ClaimsLapsed unless what was claimed is safe from sweeps, and was since `hold` returned `held`."""
        if self._beacon.is_doubtful or self._beacon.num_gaps != held:
            raise ClaimsLapsed(
                f"{self._store.uri}/{self._beacon.name} was not renewed for long: the store was away, or this machine "
                "slept. A sweep may have taken files of this attempt; run it again, and what is missing is sent again."
            )

    def _wait_for_sweep(self, key: Key) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while sweep := condemning(self._store, key, self._beacon):
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"The sweep {sweep} has been deleting from {self._store.uri}/artifacts/{key} for "
                    f"{PATIENCE_S / 60:.0f} minutes. End it and run it again: a sweep that was interrupted is "
                    "finished by the next."
                )
            time.sleep(POLL_S)


def mark_name(key: Key) -> str:
    """Where a sweep says that it is about to delete from `key`."""
    return f"{CONDEMNED}/{key}"


def condemning(store: Store, key: Key, clock: Beacon) -> str | None:
    """The living sweep that is about to delete from `key`; `clock` is the caller's own beacon."""
    mark = store.read(mark_name(key))
    return mark.decode() if mark is not None and mark.decode() in living_sweeps(store, clock.time()) else None


def living_sweeps(store: Store, now: datetime) -> set[str]:
    """The id of every sweep that gives signs of life."""
    names = _living(store, SWEEPS, now, timedelta(seconds=SWEEP_LAPSE_S))
    return {name.rpartition("/")[2] for name in names}


def living_claims(store: Store, now: datetime, lapse: timedelta) -> Mapping[str, set[Key]]:
    """The keys that each run claims, by the run's id; a claim not renewed for `lapse` does not count."""
    claims: dict[str, set[Key]] = {}
    for name in _living(store, CLAIMS, now, lapse):
        run = name.split("/")[1]
        held = json.loads(store.read(name) or b"[]")
        claims.setdefault(run, set()).update(Key(*key.split("/")) for key in held)
    return claims


def _living(store: Store, folder: str, now: datetime, lapse: timedelta) -> list[str]:
    return [file.name for file in store.files(f"{folder}/") if now - file.modified < lapse]
