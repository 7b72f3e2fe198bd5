"""What of a store is kept, and what is not: a folder's, whose files can be made older."""

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Store, store_at
from tasks.errors import InputError
from tasks.retention.claims import Claims
from tasks.retention.keys import Key
from tasks.retention.runs import recorded_run
from tasks.retention.sweeper import delete, show
from tasks.retention.waste import Rules
from tasks.storage.manifest import CHUNK_BYTES, DamagedArtifact, describe_file
from tests.tasks.stores_of_runs import age, is_readable, key, leave_attempt, make, names, run_of

RULES = Rules(keep_runs=2, keep_age=timedelta(days=30), grace=timedelta(hours=24))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_at(f"file://{tmp_path}/store")


def wasted(store: Store) -> dict[Key, str]:
    return {waste.key: waste.reason for waste in show(store, RULES)}


def change(store: Store, record: str, **fields: Any) -> None:
    store.write(record, json.dumps(json.loads(store.read(record) or b"") | fields).encode())


def old_run(store: Store, folder: Path, number: int, pipeline: str = "p") -> Key:
    """A run that ended some 100 days ago, the higher its number the later, and the artifact that it made."""
    of = key(number, pipeline)
    run_of(store, pipeline, str(number), [make(store, folder, of)])
    name = f"runs/{pipeline}/{number}.json"
    change(store, name, started=f"2020-01-01T00:00:{number:02}")
    age(store, name, days=100 - number)
    age(store, f"artifacts/{of}", days=100 - number)
    return of


def test_the_newest_completed_runs_of_each_pipeline_are_kept(store: Store, tmp_path: Path) -> None:
    old = [old_run(store, tmp_path, number) for number in (2, 4, 1, 3)]
    other = old_run(store, tmp_path, 0, pipeline="other")
    assert wasted(store) == dict.fromkeys(sorted([old[0], old[2]]), "no kept run, champion or kept artifact needs it")
    assert other not in wasted(store)


def test_runs_that_failed_do_not_push_out_those_that_completed(store: Store, tmp_path: Path) -> None:
    good = old_run(store, tmp_path, 1)
    for number in (2, 3, 4):
        old_run(store, tmp_path, number)
        name = f"runs/p/{number}.json"
        change(store, name, state="failed")
        age(store, name, days=90)
    assert set(wasted(store)) == {key(2, "p"), key(3, "p"), key(4, "p")}
    assert good not in wasted(store)


def test_a_young_run_is_kept_with_the_old_artifacts_that_it_used(store: Store, tmp_path: Path) -> None:
    old = [old_run(store, tmp_path, number) for number in (1, 2, 3)]
    assert set(wasted(store)) == {old[0]}
    age(store, "runs/p/1.json", days=-70)
    assert wasted(store) == {}


def test_a_run_that_never_ended_is_kept_while_its_claims_are_renewed(store: Store, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        old_run(store, tmp_path, number)
    name = "runs/p/1.json"
    change(store, name, state="running", ended=None)
    age(store, name, days=90)
    assert key(1, "p") in wasted(store)
    with Claims(store, "1"):
        assert key(1, "p") not in wasted(store)


def test_what_a_kept_artifact_was_made_of_is_kept_to_the_last_ancestor(store: Store, tmp_path: Path) -> None:
    data = make(store, tmp_path, key(1, "data"))
    sft = make(store, tmp_path, key(2, "sft"), {"data": data})
    ppo = make(store, tmp_path, key(3, "ppo"), {"policy": sft})
    make(store, tmp_path, key(4, "sft"), {"data": data})
    age(store, "artifacts/", days=90)
    run_of(store, "p", "1", [ppo])
    assert set(wasted(store)) == {key(4, "sft")}


@pytest.mark.parametrize("content", ['{{"uri": "{uri}"}}', '{{"all": [{{"digest": "{digest}"}}]}}', "{escaped}"])
def test_a_champion_is_kept_with_its_ancestors(store: Store, tmp_path: Path, content: str) -> None:
    data = make(store, tmp_path, key(1, "data"))
    export = make(store, tmp_path, key(2, "export"), {"data": data})
    make(store, tmp_path, key(3, "export"))
    age(store, "artifacts/", days=90)
    escaped = export.uri.replace("/", "\\/")
    text = content.format(uri=export.uri, digest=export.digest, escaped=escaped)
    store.write("champions/demo.json", text.encode())
    assert set(wasted(store)) == {key(3, "export")}


def test_a_champion_that_names_nothing_stops_the_sweep(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path, key(1))
    age(store, "artifacts/", days=90)
    store.write("champions/demo.json", b'{"uri": "')
    with pytest.raises(InputError, match=r"champions/demo\.json names no artifact.*nothing was deleted"):
        delete(store, RULES, lambda message: None)


def test_a_record_that_cannot_be_read_keeps_what_it_names(store: Store, tmp_path: Path) -> None:
    uri = make(store, tmp_path, key(1)).uri
    age(store, "artifacts/", days=90)
    store.write("runs/p/1.json", f'{{"artifacts": {{"{uri}": '.encode())
    assert wasted(store) == {}


def test_a_manifest_that_cannot_be_read_stops_the_sweep(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path, key(1))
    make(store, tmp_path, key(2))
    age(store, "artifacts/", days=90)
    store.write(f"artifacts/{key(1)}/manifest.json", b"{}")
    with pytest.raises(DamagedArtifact, match=f"{key(1)}/manifest.json is damaged"):
        delete(store, RULES, lambda message: None)
    assert f"artifacts/{key(2)}/manifest.json" in names(store)


def test_what_no_run_names_is_kept_while_it_is_young(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path, key(1))
    age(store, "artifacts/", days=29)
    assert wasted(store) == {}
    age(store, "artifacts/", days=2)
    assert set(wasted(store)) == {key(1)}


def test_an_interrupted_attempt_goes_after_the_grace_period(store: Store) -> None:
    leave_attempt(store, key(1))
    age(store, "artifacts/", days=0.9)
    assert wasted(store) == {}
    age(store, "artifacts/", days=0.2)
    assert wasted(store) == {key(1): "an attempt that was interrupted: it has no manifest"}


def test_an_attempt_that_goes_on_is_not_taken_for_its_first_files(store: Store) -> None:
    age(store, leave_attempt(store, key(1))[0], days=3)
    assert wasted(store) == {}


def test_of_a_kept_artifact_only_the_losing_attempts_files_go(store: Store, tmp_path: Path) -> None:
    artifact = make(store, tmp_path, key(1))
    losing = leave_attempt(store, key(1))
    run_of(store, "p", "1", [artifact])
    age(store, "artifacts/", days=90)
    [waste] = delete(store, RULES, lambda message: None)
    assert (waste.reason, [file.name for file in waste.files]) == ("an attempt that lost to another", losing)
    assert is_readable(store, artifact, tmp_path)


def test_checkpoints_and_logs_go_when_their_stage_is_done_or_after_long(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path, key(1))
    for number in (1, 2):
        store.create(f"checkpoints/{key(number)}/step-4/state.json", b"{}")
        store.create(f"logs/{key(number)}/first.txt", b"it broke")
    age(store, "checkpoints/", days=2)
    age(store, "logs/", days=2)
    assert [(waste.key, waste.reason) for waste in show(store, RULES)] == [
        (key(1), "checkpoints of a stage that is done"),
        (key(1), "logs of failures of a stage that is done"),
    ]
    age(store, f"checkpoints/{key(2)}", days=29)
    assert [waste.reason for waste in show(store, RULES)][2:] == ["checkpoints of a stage that is not going on"]


def test_uploads_that_were_never_completed_are_aborted(store: Store, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(100))
    name = f"artifacts/{key(1)}/{'f' * 16}/big"
    assert store.begin(name, describe_file(tmp_path / "big"), CHUNK_BYTES)
    assert wasted(store) == {}
    age(store, "artifacts/", days=2)
    assert wasted(store) == {key(1): "uploads that were never completed"}
    delete(store, RULES, lambda message: None)
    assert list(store.unfinished("")) == []


def test_what_a_living_run_claims_is_kept_whatever_its_age(store: Store, tmp_path: Path) -> None:
    parent = make(store, tmp_path, key(1))
    make(store, tmp_path, key(2), {"parent": parent})
    leave_attempt(store, key(3))
    age(store, "artifacts/", days=90)
    assert set(wasted(store)) == {key(1), key(2), key(3)}
    with recorded_run(store, "p", "1", {}) as run:
        run.claim([key(2), key(3)], [])
        assert wasted(store) == {}
    assert set(wasted(store)) == {key(1), key(2), key(3)}
