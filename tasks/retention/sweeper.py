"""Deleting what nobody needs, in a store that others are using.

Why nothing that is needed goes: a sweep marks a key as condemned, and only then looks, anew, who claims it and what
the roots (kept runs, champions, whatever was published lately) need; see claims.py. A run that comes later sees
the mark and waits; one that came earlier is seen, and the sweep lets go of the key. Only one sweep deletes at a time,
by the same rule: two that see each other step back, and try again. A sweep that cannot renew its sign of life stops
long before others take it for dead, so that one that was suspended never deletes what was published since. Manifests
go first: what is half deleted is not there.
"""

import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from tasks.errors import InputError
from tasks.retention.beacon import Beacon
from tasks.retention.catalogue import NUM_READERS
from tasks.retention.claims import (
    CLAIMS,
    CONDEMNED,
    LAPSE_S,
    POLL_S,
    SWEEP_LAPSE_S,
    SWEEP_RENEW_S,
    SWEEPS,
    living_sweeps,
    mark_name,
)
from tasks.retention.keys import Key
from tasks.retention.survey import Survey, survey
from tasks.retention.waste import Rules, Waste, waste_in
from tasks.storage.manifest import MANIFEST
from tasks.storage.stores import Store, Unfinished

CLOCK = "clock"
BATCH_KEYS = 100
OTHER_SWEEP_PATIENCE_S = 600.0

Tell = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Sweep:
    """A sweep under way, the only one of its store that deletes."""

    store: Store
    rules: Rules
    beacon: Beacon

    def survey(self, known: Survey | None = None, anew: Sequence[Key] = ()) -> Survey:
        """The store as it is now; see `survey`."""
        return survey(self.store, self.beacon.time(), _lapse(self.rules), known, anew)

    def condemn(self, keys: Sequence[Key]) -> None:
        """Mark the keys, so that whoever claims one from now on waits."""
        self._still_alive()
        sweep = self.beacon.name.rpartition("/")[2].encode()
        with ThreadPoolExecutor(NUM_READERS) as pool:
            list(pool.map(lambda key: self.store.write(mark_name(key), sweep), keys))

    def delete(self, waste: Sequence[Waste]) -> None:
        """Delete all of it, manifests first."""
        names = [file.name for each in waste for file in each.files]
        manifests = {name for name in names if name.endswith(f"/{MANIFEST}") and name.count("/") == 3}
        self._delete(sorted(manifests))
        self._delete([name for name in names if name not in manifests])
        self._abort([write for each in waste for write in each.unfinished])

    def release(self, keys: Iterable[Key]) -> None:
        """Remove the marks."""
        self._delete([mark_name(key) for key in keys])

    def remove_leftovers(self) -> None:
        """Remove what ended processes left: claims that have lapsed, and the signs of life of sweeps."""
        now = self.beacon.time()
        lapses = {CLAIMS: _lapse(self.rules), CLOCK: _lapse(self.rules), SWEEPS: timedelta(seconds=SWEEP_LAPSE_S)}
        self._delete(
            [
                file.name
                for folder, lapse in lapses.items()
                for file in self.store.files(f"{folder}/")
                if now - file.modified >= lapse
            ]
        )

    def _delete(self, names: Sequence[str]) -> None:
        self._each(lambda name: self.store.delete([name]), names)

    def _abort(self, writes: Sequence[Unfinished]) -> None:
        self._each(self.store.abort, writes)

    def _each(self, remove: Callable[[T], None], things: Sequence[T]) -> None:
        """Remove all of them in parallel; before each single request it is made sure that we are not taken for dead."""

        def remove_one(thing: T) -> None:
            self._still_alive()
            remove(thing)

        with ThreadPoolExecutor(NUM_READERS) as pool:
            list(pool.map(remove_one, things))

    def _still_alive(self) -> None:
        if self.beacon.is_doubtful or self.beacon.num_gaps > 1:
            raise ConnectionError(
                f"This sweep of {self.store.uri} could not renew its sign of life: the store was away, or this machine "
                "slept. It has stopped, for others may take it for dead. Run it again: it goes on where it stopped."
            )


def show(store: Store, rules: Rules) -> list[Waste]:
    """What a sweep would delete."""
    with Beacon(store, f"{CLOCK}/{uuid.uuid4().hex}", SWEEP_RENEW_S, SWEEP_LAPSE_S) as clock:
        return waste_in(survey(store, clock.time(), _lapse(rules)), rules)


def delete(store: Store, rules: Rules, tell: Tell) -> list[Waste]:
    """Delete what nobody needs; returns what was deleted. What an interrupted sweep left is finished."""
    deleted: list[Waste] = []
    with sole_sweep(store, rules, tell) as sweep:
        first = sweep.survey()
        marked = {mark for file in store.files(f"{CONDEMNED}/") if (mark := _marked(file.name))}
        keys = sorted(marked | {waste.key for waste in waste_in(first, rules)})
        for start in range(0, len(keys), BATCH_KEYS):
            batch = keys[start : start + BATCH_KEYS]
            waste = _sweep_batch(sweep, batch, first)
            deleted += waste
            tell(f"{start + len(batch)} of {len(keys)} keys: {sum(len(each.files) for each in deleted)} files deleted")
        sweep.remove_leftovers()
    return deleted


def _sweep_batch(sweep: Sweep, keys: Sequence[Key], known: Survey) -> list[Waste]:
    """Delete what is still waste once the keys are condemned."""
    sweep.condemn(keys)
    waste = [each for each in waste_in(sweep.survey(known, keys), sweep.rules) if each.key in keys]
    sweep.release(set(keys) - {each.key for each in waste})
    sweep.delete(waste)
    sweep.release({each.key for each in waste})
    return waste


@contextmanager
def sole_sweep(store: Store, rules: Rules, tell: Tell) -> Iterator[Sweep]:
    """The right to delete, for one sweep of the store at a time; waits for another one, which it knows by its sign."""
    deadline = time.monotonic() + OTHER_SWEEP_PATIENCE_S
    while True:
        sweep = uuid.uuid4().hex
        with Beacon(store, f"{SWEEPS}/{sweep}", SWEEP_RENEW_S, SWEEP_LAPSE_S) as beacon:
            others = living_sweeps(store, beacon.time()) - {sweep}
            if not others:
                yield Sweep(store, rules, beacon)
                return
        if time.monotonic() > deadline:
            raise InputError(
                f"{store.uri} is being swept already (by {', '.join(sorted(others))}). Run it again when that has "
                f"ended; one that was killed counts as ended after {SWEEP_LAPSE_S / 60:.0f} minutes."
            )
        tell("another sweep of this store is at work, or was killed a moment ago; waiting for it")
        time.sleep(POLL_S * random.uniform(1, 5))


def _lapse(rules: Rules) -> timedelta:
    return max(rules.grace, timedelta(seconds=LAPSE_S))


def _marked(name: str) -> Key | None:
    _, *rest = name.split("/")
    return Key(*rest) if len(rest) == 2 else None
