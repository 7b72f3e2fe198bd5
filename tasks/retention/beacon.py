"""A sign of life: an object in a store that is rewritten for as long as its writer lives.

Whoever looks judges its age by the store's own clock. A listing may trail behind the objects themselves, so a writer
goes on only when its beacon is listed: of two that wait for that and then list the other's folder, at least one sees
the other.
"""

import logging
import threading
import time
from datetime import datetime
from types import TracebackType

from tasks.storage.stores import Store, Stored

LISTED_WITHIN_S = 60.0
POLL_S = 0.2

logger = logging.getLogger(__name__)


class Beacon:
    """The object `name`, kept alive in a `with` block by a thread, and removed at its end."""

    def __init__(self, store: Store, name: str, every_s: float, lasts_s: float) -> None:
        """Rewritten every `every_s`; others take it for dead after `lasts_s`."""
        self.name = name
        self._store, self._every_s, self._lasts_s = store, every_s, lasts_s
        self._content = b"{}"
        self._written_s = float("-inf")
        self.num_gaps = 0
        """How often it was renewed so late that somebody may have taken the writer for dead; 1 after the start."""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name=f"beacon {name}", daemon=True)

    def __enter__(self) -> "Beacon":
        self._renew()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._store.delete([self.name])

    def write(self, content: bytes) -> None:
        """Replace the content; others see it when this returns."""
        with self._lock:
            self._content = content
        self._renew()

    @property
    def is_doubtful(self) -> bool:
        """Whether so long passed since the last renewal that soon somebody may take the writer for dead.

        A third of what it lasts: the rest is for requests that are under way. Time in which the machine slept counts.
        """
        return _now_s() - self._written_s > self._lasts_s / 3

    def time(self) -> datetime:
        """What the store's clock says: the time of a renewal made now."""
        self._renew()
        return wait_until_listed(self._store, self.name, self._content).modified

    def _renew(self) -> None:
        with self._lock:
            began_s = _now_s()
            self._store.write(self.name, self._content)
            if self.is_doubtful:
                wait_until_listed(self._store, self.name, self._content)
                self.num_gaps += 1
            self._written_s = began_s

    def _keep_alive(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                self._renew()
            except Exception as error:  # whatever it was, the next may pass; is_doubtful tells when that is too late
                logger.warning("%s/%s could not be renewed: %s", self._store.uri, self.name, error)


def wait_until_listed(store: Store, name: str, content: bytes) -> Stored:
    """What a listing says of the object that was just written; written again until it does."""
    deadline = time.monotonic() + LISTED_WITHIN_S
    while True:
        for stored in store.files(name):
            if stored.name == name:
                return stored
        if time.monotonic() > deadline:
            raise ConnectionError(f"{store.uri} took {name} but does not list it.")
        time.sleep(POLL_S)
        store.write(name, content)


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
