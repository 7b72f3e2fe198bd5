"""A lock in a store, for servers that promise no conditional write.

    locks/<what is locked>/<ticket>      who wants it, or has it

Whoever wants the lock writes a ticket of its own, and has the lock as soon as a listing shows that ticket and no other.
Of two owners at least one sees the other's ticket, for each writes its own before it lists. Where a listing may lag
behind what was written, as in Swift, a ticket counts once its own owner has seen it there.
"""

import contextlib
import json
import os
import random
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.storage.stores import Store, Stored

EXPIRY_S = 600.0  # more than a write may take that waits out an outage
PATIENCE_S = 1200.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0


@dataclass(frozen=True)
class Lease:
    """The lock, as long as it is surely ours."""

    name: str
    taken_at: float  # time.monotonic()
    expiry_s: float

    def require(self) -> None:
        """Raise ConnectionError if half of the time is over after which others may take the lock."""
        if time.monotonic() - self.taken_at > self.expiry_s / 2:
            raise ConnectionError(f"The lock on {self.name} was held too long: the store is slow. Run again.")


@contextlib.contextmanager
def locked(
    store: Store, name: str, owner: str, expiry_s: float = EXPIRY_S, patience_s: float = PATIENCE_S
) -> Iterator[Lease]:
    """Inside, no other owner has the lock on `name`; raises ConnectionError after `patience_s` in vain.

    The ticket of an owner that died is removed after `expiry_s`, by the store's clock.
    """
    deadline = time.monotonic() + patience_s
    pause_s = FIRST_PAUSE_S
    while (lease := _try(store, name, owner, expiry_s, deadline)) is None:
        if time.monotonic() > deadline:
            raise ConnectionError(f"{store.uri}/{name} stays locked: {_holders(store, name)}. Run again later.")
        time.sleep(random.SystemRandom().uniform(0.2, 1.0) * pause_s)
        pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
    ticket, held = lease
    try:
        yield held
    finally:
        store.delete([ticket])


def _try(store: Store, name: str, owner: str, expiry_s: float, deadline: float) -> tuple[str, Lease] | None:
    """Ticket and lease; None if another was first, and our ticket is withdrawn."""
    ticket = f"{_prefix(name)}{uuid.uuid4().hex}"
    written_at = time.monotonic()
    store.write(ticket, json.dumps({"owner": owner, "host": socket.gethostname(), "pid": os.getpid()}).encode())
    while time.monotonic() < deadline:
        tickets = sorted(store.files(_prefix(name)), key=lambda stored: (stored.modified, stored.name))
        mine = next((stored for stored in tickets if stored.name == ticket), None)
        if mine is None:
            time.sleep(FIRST_PAUSE_S)
            continue
        others = [stored for stored in tickets if stored is not mine]
        if expired := [one for one in others if _age_s(one, mine, written_at) > expiry_s]:
            store.delete(one.name for one in expired)
        elif not others:
            return ticket, Lease(name, written_at, expiry_s)
        elif tickets[0] is not mine:
            break
        else:
            time.sleep(FIRST_PAUSE_S)
    store.delete([ticket])
    return None


def _age_s(other: Stored, mine: Stored, written_at: float) -> float:
    """How old another ticket is by the store's clock, which is known from the time of our own."""
    return (mine.modified - other.modified).total_seconds() + time.monotonic() - written_at


def _holders(store: Store, name: str) -> str:
    contents = [store.read(stored.name) for stored in store.files(_prefix(name))]
    return ", ".join(content.decode() for content in contents if content) or "by an owner that has just gone"


def _prefix(name: str) -> str:
    return f"locks/{name}/"
