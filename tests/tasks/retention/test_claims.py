"""Claims and marks whose owner was killed, slept, or never ends."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import find, store_at
from tasks.retention.claims import ClaimsLapsed, mark_name
from tasks.retention.runs import unrecorded_run
from tasks.retention.sweeper import Sweep, delete
from tasks.retention.waste import Rules
from tests.tasks.stores_of_runs import NOTHING_KEPT, age, is_readable, key, leave_attempt, make, names, silent, use

pytestmark = pytest.mark.usefixtures("quick_waits")


def test_a_run_goes_on_beside_the_marks_of_a_sweep_that_was_killed(tmp_path: Path, waiting: threading.Event) -> None:
    store = store_at(f"file://{tmp_path}/store")
    make(store, tmp_path, key(1))
    store.write("sweeps/killed", b"{}")
    store.write(mark_name(key(1)), b"killed")
    with ThreadPoolExecutor(1) as pool, unrecorded_run(store) as run:
        artifact = pool.submit(use, run, store, tmp_path / "use", key(1))
        assert waiting.wait(5)
        assert not artifact.done()
        age(store, "sweeps/killed", days=1)
        assert is_readable(store, artifact.result(5), tmp_path)
    delete(store, NOTHING_KEPT, silent)
    assert names(store) == []


def test_a_sweep_that_never_ends_is_named_to_the_run_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.retention.claims.PATIENCE_S", 0.05)
    store = store_at(f"file://{tmp_path}/store")
    store.write("sweeps/endless", b"{}")
    store.write(mark_name(key(1)), b"endless")
    with unrecorded_run(store) as run, pytest.raises(ConnectionError, match=r"sweep endless .*finished by the next"):
        run.claim([key(1)], [])


def test_a_sweep_that_slept_deletes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_at(f"file://{tmp_path}/store")
    make(store, tmp_path, key(1))
    condemn = Sweep.condemn

    def sleep_then(self: Sweep, keys: Any) -> None:
        condemn(self, keys)
        monkeypatch.setattr("tasks.retention.beacon._now_s", lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + 301)

    monkeypatch.setattr(Sweep, "condemn", sleep_then)
    with pytest.raises(ConnectionError, match="could not renew its sign of life"):
        delete(store, NOTHING_KEPT, silent)
    assert find(store, "sft", key(1).key)


def test_a_sweep_that_sleeps_between_two_requests_stops_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = store_at(f"file://{tmp_path}/store")
    left = [name for number in range(40) for name in leave_attempt(store, key(number))]
    remove, num_removed = store.delete, 0

    def remove_then_sleep(names: Any) -> None:
        nonlocal num_removed
        remove(names)
        num_removed += 1
        monkeypatch.setattr("tasks.retention.beacon._now_s", lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + 301)

    monkeypatch.setattr(store, "delete", remove_then_sleep)
    with pytest.raises(ConnectionError, match="could not renew its sign of life"):
        delete(store, NOTHING_KEPT, silent)
    assert 0 < num_removed < len(left) / 2


def test_a_run_that_slept_does_not_publish_what_may_have_been_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(f"file://{tmp_path}/store")
    with unrecorded_run(store) as run:
        held = run.claim([key(1)], [])
        monkeypatch.setattr("tasks.retention.beacon._now_s", lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + 1300)
        with pytest.raises(ClaimsLapsed):
            make(store, tmp_path, key(1), confirm=lambda: run.confirm(held))
        run.claim([key(2)], [])
        with pytest.raises(ClaimsLapsed):
            make(store, tmp_path, key(1), confirm=lambda: run.confirm(held))
        assert find(store, "sft", key(1).key) is None
        assert is_readable(store, use(run, store, tmp_path, key(1)), tmp_path)


def test_a_claim_protects_until_it_lapses(tmp_path: Path) -> None:
    store = store_at(f"file://{tmp_path}/store")
    make(store, tmp_path, key(1))
    store.write("claims/killed/0", f'["{key(1)}"]'.encode())
    day = Rules(keep_runs=0, keep_age=NOTHING_KEPT.keep_age)
    age(store, "artifacts/", days=3)
    age(store, "claims/", days=0.9)
    assert delete(store, day, silent) == []
    age(store, "claims/", days=0.2)
    assert [waste.key for waste in delete(store, day, silent)] == [key(1)]
    assert names(store) == []
