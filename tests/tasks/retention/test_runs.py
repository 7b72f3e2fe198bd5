"""Runs' records, and the claims of stages."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Store, store_at
from tasks.errors import InputError
from tasks.retention.runs import Run, RunRecord, StageRun, recorded_run
from tasks.rules import Verdict
from tasks.runner import StageFailed, Workplace
from tests.stub_stage import StubConfig
from tests.tasks.stores_of_runs import key as key_of
from tests.tasks.stores_of_runs import make, names
from tests.tasks.test_runner import run

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_at(f"file://{tmp_path}/store")


def record(store: Store, name: str = "runs/p/1.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(store.read(name) or b"")
    return content


def test_a_record_is_there_from_the_start_and_says_how_the_run_ended(store: Store, tmp_path: Path) -> None:
    artifact = make(store, tmp_path, key_of(1))
    with recorded_run(store, "p", "1", {"ppo.kl_coef": 0.1}) as under_way:
        assert (record(store)["state"], record(store)["ended"]) == ("running", None)
        under_way.note([artifact])
        assert record(store)["artifacts"] == {artifact.uri: artifact.digest}
    ended = record(store)
    assert (ended["pipeline"], ended["run"], ended["state"]) == ("p", "1", "completed")
    assert ended["overrides"] == {"ppo.kl_coef": 0.1}
    assert ended["started"] <= ended["ended"]


def test_a_run_that_fails_says_so_and_gives_its_claims_up(store: Store) -> None:
    def fail() -> None:
        with recorded_run(store, "p", "1", {}) as under_way:
            under_way.claim([key_of(1)], [])
            assert json.loads(store.read(names(store, "claims/1/")[0]) or b"") == [str(key_of(1))]
            raise InputError("no")

    with pytest.raises(InputError):
        fail()
    assert (record(store)["state"], record(store)["error"]) == ("failed", "no")
    assert names(store, "claims/") == []


def test_another_attempt_at_a_run_goes_on_with_its_record(store: Store, tmp_path: Path) -> None:
    one, two = (make(store, tmp_path, key_of(number)) for number in (1, 2))

    def interrupted() -> None:
        with recorded_run(store, "p", "1", {}) as under_way:
            under_way.note([one])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    store.write("runs/p/1.json", json.dumps(record(store) | {"started": "2020-01-01"}).encode())
    with recorded_run(store, "p", "1", {}) as under_way:
        under_way.note([two])
    assert record(store)["started"] == "2020-01-01"
    assert record(store)["state"] == "completed"
    assert set(record(store)["artifacts"]) == {one.uri, two.uri}


def test_a_record_names_the_stages_in_their_order_and_who_computed_them_first(store: Store, tmp_path: Path) -> None:
    one, two = (make(store, tmp_path, key_of(number)) for number in (1, 2))

    def attempt(*done: StageRun) -> None:
        with recorded_run(store, "p", "1", {}) as under_way:
            for stage in done:
                under_way.note([one, two], stage)

    first, again = (StageRun(stage="sft", uri=one.uri, already_done=done) for done in (False, True))
    attempt(first)
    attempt(again, StageRun(stage="ppo", uri=two.uri))
    stages = [(each["stage"], each["uri"], each["already_done"]) for each in record(store)["stages"]]
    assert stages == [("sft", one.uri, False), ("ppo", two.uri, False)]


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        ({}, "running"),
        ({"state": "completed"}, "exported"),
        ({"state": "failed"}, "failed"),
        ({"state": "failed", "verdicts": [Verdict(measures="a", demand="", measured=0, verdict="passed")]}, "failed"),
        ({"state": "failed", "verdicts": [Verdict(measures="a", demand="", measured=0, verdict="failed")]}, "refused"),
        (
            {"state": "failed", "certificate": [Verdict(measures="a", demand="", measured=0, verdict="failed")]},
            "uncertified",
        ),
    ],
)
def test_a_record_tells_what_came_of_the_run(changed: dict[str, Any], outcome: str) -> None:
    assert RunRecord(pipeline="p", run="1", started="now", **changed).outcome == outcome


def test_the_page_lies_beside_the_record() -> None:
    record = RunRecord(pipeline="my/pipeline", run="1", started="now")
    assert (record.name, record.page_name) == ("runs/my%2Fpipeline/1.json", "runs/my%2Fpipeline/1.html")


def test_a_pipelines_name_may_hold_anything(store: Store) -> None:
    with recorded_run(store, "my/ä pipeline", "1", {}):
        [name] = names(store, "runs/")
        assert name.count("/") == 2


def test_a_stage_notes_what_it_used_and_made_and_claims_it_to_the_runs_end(store: Store, tmp_path: Path) -> None:
    place = Workplace(store, tmp_path / "work", tmp_path / "accelerate.yaml")
    first = run(place, StubConfig(text="one"))
    assert names(store, "claims/") == []
    with recorded_run(store, "p", "1", {}) as under_way:
        in_run = replace(place, run=under_way)
        second = run(in_run, StubConfig(text="two"), {"before": first.artifact})
        assert run(in_run, StubConfig(text="two"), {"before": first.artifact}).already_done
        claimed = json.loads(store.read(names(store, "claims/1/")[0]) or b"")
        uris = {first.artifact.uri, second.artifact.uri}
        assert {f"{store.uri}/artifacts/{each}" for each in claimed} == uris
    assert set(record(store)["artifacts"]) == uris
    assert record(store)["stages"] == [{"stage": "stub", "uri": second.artifact.uri, "already_done": False}]


def test_a_stage_by_hand_claims_before_it_looks_and_forgets_afterwards(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed: list[str] = []

    def look(looked_at: Store, *_: object) -> None:
        claimed.extend(json.loads(store.read(names(looked_at, "claims/by-hand/")[0]) or b""))

    monkeypatch.setattr("tasks.runner.find", look)
    place = Workplace(store, tmp_path / "work", tmp_path / "accelerate.yaml")
    with pytest.raises(StageFailed):
        run(place, StubConfig(behaviour="fail"))
    assert [each.split("/")[0] for each in claimed] == ["stub"]
    assert [name for name in names(store) if not name.startswith("logs/")] == []


def test_what_lies_in_another_store_is_not_claimed(store: Store, tmp_path: Path) -> None:
    elsewhere = make(store_at(f"file://{tmp_path}/elsewhere"), tmp_path, key_of(1))
    with recorded_run(store, "p", "1", {}) as under_way:
        under_way.claim([], [elsewhere])
        assert store.read(names(store, "claims/1/")[0]) == b"{}"


def test_what_was_swept_is_not_published_over(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    confirmed: list[int] = []
    monkeypatch.setattr(Run, "confirm", lambda self, held: confirmed.append(held))
    run(Workplace(store, tmp_path / "work", tmp_path / "accelerate.yaml"), StubConfig())
    assert confirmed == [1]
