"""A lock made of tickets: one holder at a time, and none that outlives its time."""

import threading
import time
from pathlib import Path

import pytest

from tasks.storage.store_lock import locked
from tasks.storage.stores import FileStore, store_at


def test_one_holder_at_a_time(store_uri: str) -> None:
    inside: list[str] = []
    seen: list[int] = []

    def take(name: str) -> None:
        with locked(store_at(store_uri), "thing", name):
            inside.append(name)
            time.sleep(0.02)
            seen.append(len(inside))
            inside.remove(name)

    threads = [threading.Thread(target=take, args=(str(number),)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 5
    assert list(store_at(store_uri).files("locks/")) == []


def test_the_lock_is_given_back_when_its_holder_fails(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    with pytest.raises(ZeroDivisionError), locked(store, "thing", "one"):
        1 / 0  # noqa: B018
    with locked(store, "thing", "other"):
        pass


def test_a_dead_owners_ticket_goes_after_its_time(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.write("locks/thing/dead", b"{}")
    started = time.monotonic()
    with locked(store, "thing", "heir", expiry_s=0.5):
        assert 0.4 < time.monotonic() - started < 10.0
    assert list(store.files("locks/")) == []


def test_whoever_waits_in_vain_is_told_who_has_the_lock(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    with (
        locked(store, "thing", "the first"),
        pytest.raises(ConnectionError, match=r'stays locked: .*"owner": "the first"'),
        locked(FileStore(tmp_path), "thing", "the second", patience_s=0.2),
    ):
        pass


def test_a_holder_that_took_too_long_is_stopped_before_it_writes(tmp_path: Path) -> None:
    with locked(FileStore(tmp_path), "thing", "slow", expiry_s=1.0) as lease:
        lease.require()
        time.sleep(0.6)
        with pytest.raises(ConnectionError, match="held too long"):
            lease.require()
