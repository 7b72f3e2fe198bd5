"""Sweeps beside runs and other sweeps: each stopped between its steps, while the other does all of its work."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Store, find, store_at
from tasks.retention.keys import Key
from tasks.retention.runs import recorded_run, unrecorded_run
from tasks.retention.sweeper import Sweep, delete, show
from tasks.retention.waste import Rules
from tests.tasks.stores_of_runs import (
    NOTHING_KEPT,
    Stepped,
    is_readable,
    key,
    leave_attempt,
    make,
    names,
    run_of,
    silent,
    use,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_waits")]
LAST_RUN_KEPT = Rules(keep_runs=1, keep_age=NOTHING_KEPT.keep_age, grace=NOTHING_KEPT.grace)
MOST_STEPS = 200


@pytest.fixture
def store(store_uri: str) -> Store:
    return store_at(store_uri)


def steps(store_uri: str) -> range:
    """The steps to stop at: every one, and on a real server, which is slow, every eleventh."""
    return range(0, MOST_STEPS, 1 if store_uri.startswith("file://") else 11)


def prepare(store: Store, folder: Path, of: Key, state: str) -> None:
    if state == "published":
        make(store, folder, of)
        leave_attempt(store, of)
    if state == "interrupted":
        leave_attempt(store, of)


def lost_beside_a_stopped_sweep(
    store_uri: str, folder: Path, waiting: threading.Event, state: str, record: bool
) -> tuple[int, int]:
    """How often the artifact of a run was lost, of how many steps at which the sweep was stopped for the run.

    With a record the run has ended when the sweep goes on, and its record alone protects; else it holds its claim.
    """
    lost = 0
    for step in steps(store_uri):
        store, of = store_at(f"{store_uri}/{step}"), key(1)
        prepare(store, folder, of, state)
        waiting.clear()
        swept, used, results = threading.Event(), threading.Event(), []
        user = threading.Thread(target=_use_meanwhile, args=(store, folder, of, record, results, used, swept))

        def start(user: threading.Thread = user, used: threading.Event = used) -> None:
            user.start()
            while not used.is_set() and not waiting.is_set():
                time.sleep(0.002)

        stepped: Any = Stepped(store, start, step)
        delete(stepped, LAST_RUN_KEPT, silent)
        swept.set()
        if stepped.num_steps <= step:
            return lost, step
        user.join()
        lost += not results[0]
    raise AssertionError(f"more than {MOST_STEPS} steps")


def _use_meanwhile(
    store: Store,
    folder: Path,
    of: Key,
    record: bool,
    results: list[bool],
    used: threading.Event,
    swept: threading.Event,
) -> None:
    """Use the artifact, tell, and when the sweep has ended say whether it is readable."""
    try:
        with recorded_run(store, "p", of.key, {}) if record else unrecorded_run(store) as run:
            artifact = use(run, store, folder / "use", of)
            if not record:
                used.set()
                swept.wait()
                results.append(is_readable(store, artifact, folder))
        if record:
            used.set()
            swept.wait()
            results.append(is_readable(store, artifact, folder))
    except (ValueError, ConnectionError):
        results.insert(0, False)
    finally:
        used.set()


@pytest.mark.parametrize("record", [False, True])
def test_a_run_loses_nothing_wherever_a_sweep_stands(
    store_uri: str, tmp_path: Path, waiting: threading.Event, record: bool
) -> None:
    lost, num_steps = lost_beside_a_stopped_sweep(store_uri, tmp_path, waiting, "published", record)
    assert num_steps >= 12
    assert lost == 0


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("state", ["interrupted", "absent"])
def test_a_run_loses_nothing_of_what_it_publishes_wherever_a_sweep_stands(
    tmp_path: Path, waiting: threading.Event, state: str, record: bool
) -> None:
    lost, num_steps = lost_beside_a_stopped_sweep(f"file://{tmp_path}/store", tmp_path, waiting, state, record)
    assert num_steps >= 12
    assert lost == 0


@pytest.mark.parametrize("break_it", ["does not look again", "does not mark", "looks at files before claims"])
def test_the_same_test_notices_a_sweep_that_is_broken(
    tmp_path: Path, waiting: threading.Event, monkeypatch: pytest.MonkeyPatch, break_it: str
) -> None:
    survey = Sweep.survey
    if break_it == "does not look again":
        monkeypatch.setattr(Sweep, "survey", lambda self, known=None, anew=(): known or survey(self))
    if break_it == "does not mark":
        monkeypatch.setattr(Sweep, "condemn", lambda self, keys: None)
    if break_it == "looks at files before claims":
        monkeypatch.setattr("tasks.retention.survey.living_claims", lambda *given: {})
    lost, _ = lost_beside_a_stopped_sweep(f"file://{tmp_path}/store", tmp_path, waiting, "published", record=False)
    assert lost > 0


@pytest.mark.parametrize("state", ["published", "interrupted", "absent"])
def test_a_run_loses_nothing_if_it_is_stopped_anywhere_for_a_whole_sweep(tmp_path: Path, state: str) -> None:
    store = store_at(f"file://{tmp_path}/store")
    for step in range(MOST_STEPS):
        of = key(step)
        prepare(store, tmp_path, of, state)
        stepped: Any = Stepped(store, lambda: _sweep_whole(store), step)
        with unrecorded_run(stepped) as run:
            artifact = use(run, stepped, tmp_path / "use", of)
            assert is_readable(stepped, artifact, tmp_path)
            delete(store, NOTHING_KEPT, silent)
            assert is_readable(store, artifact, tmp_path), f"after step {step}"
        if stepped.num_steps <= step:
            break
    assert step >= 8


def _sweep_whole(store: Store) -> None:
    delete(store, NOTHING_KEPT, silent)


def test_a_run_that_is_stopped_anywhere_does_not_survive_without_its_claim(tmp_path: Path) -> None:
    store = store_at(f"file://{tmp_path}/store")
    lost = 0
    for step in range(4):
        make(store, tmp_path, key(step))
        stepped: Any = Stepped(store, lambda: _sweep_whole(store), step)
        found = find(stepped, "sft", key(step).key)
        try:
            lost += not (found and is_readable(stepped, found, tmp_path))
        except ValueError:
            lost += 1
    assert lost > 0


def test_a_sweep_that_is_interrupted_anywhere_is_finished_by_the_next(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in steps(store.uri):
        prepare(store, tmp_path, key(1), "published")
        prepare(store, tmp_path, key(2), "interrupted")
        kept = make(store, tmp_path, key(3, "ppo"))
        run_of(store, "p", "kept", [kept])
        stepped: Any = Stepped(store, _interrupt, step)
        if interrupted := _is_interrupted(lambda stepped=stepped: delete(stepped, LAST_RUN_KEPT, silent)):
            with monkeypatch.context() as patch:
                patch.setattr(
                    "tasks.retention.claims.SWEEP_LAPSE_S", 0
                )  # the interrupted one, if it still shows signs of life
                delete(store, LAST_RUN_KEPT, silent)
        assert is_readable(store, kept, tmp_path)
        left = [name for name in names(store) if not name.startswith(("artifacts/ppo/", "runs/"))]
        assert not [name for name in left if not name.startswith("sweeps/")], f"after step {step}"
        store.delete(names(store, "sweeps/"))
        if not interrupted:
            break
    assert step >= 15


def _interrupt() -> None:
    raise KeyboardInterrupt


def _is_interrupted(work: Callable[[], object]) -> bool:
    try:
        work()
    except KeyboardInterrupt:
        return True
    return False


def test_two_sweeps_at_once_take_turns_and_delete_everything(
    store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(store_uri)
    for number in range(5):
        make(store, tmp_path, key(number))
    at_work: list[int] = []
    most: list[int] = []
    remove = Sweep.delete

    def watched(self: Sweep, waste: Any) -> None:
        at_work.append(1)
        most.append(len(at_work))
        time.sleep(0.1)
        remove(self, waste)
        at_work.pop()

    monkeypatch.setattr(Sweep, "delete", watched)
    with ThreadPoolExecutor(2) as pool:
        deleted = list(pool.map(lambda _: delete(store_at(store_uri), NOTHING_KEPT, silent), range(2)))
    assert max(most) == 1
    assert sum(len(waste) for waste in deleted) == 5
    assert names(store) == []


def test_runs_and_sweeps_at_once_never_lose_what_is_claimed(store_uri: str, tmp_path: Path) -> None:
    num_keys, num_runs, wanted = (4, 4, 10) if store_uri.startswith("file://") else (12, 2, 3)
    latest_end = time.monotonic() + 60
    found, made, deleted = [], [], []

    def goes_on() -> bool:
        return min(map(len, (found, made, deleted))) < wanted and time.monotonic() < latest_end

    def run(seed: int) -> None:
        store, choice = store_at(store_uri), random.Random(seed)
        while goes_on():
            of = key(choice.randrange(num_keys))
            with unrecorded_run(store) as run:
                run.claim([of], [])
                (found if find(store, of.stage, of.key) else made).append(of)
                artifact = use(run, store, tmp_path / f"{seed}", of)
                time.sleep(choice.random() / 50)
                assert is_readable(store, artifact, tmp_path / f"{seed}")
            time.sleep(choice.random() / 20)

    def sweep(seed: int) -> None:
        store = store_at(store_uri)
        while goes_on():
            deleted.extend(delete(store, NOTHING_KEPT, silent))

    with ThreadPoolExecutor(num_runs + 2) as pool:
        work = [pool.submit(run, seed) for seed in range(num_runs)] + [pool.submit(sweep, seed) for seed in range(2)]
    for each in work:
        each.result()
    assert min(map(len, (found, made, deleted))) >= wanted


def test_showing_deletes_nothing(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path, key(1))
    before = names(store)
    assert [waste.key for waste in show(store, NOTHING_KEPT)] == [key(1)]
    assert names(store) == before
