"""What the gate and the move of the champion's pointer leave in the run's record."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tasks import release
from tasks.artifacts import Artifact, publish, store_at
from tasks.gate import GateConfig
from tasks.retention.runs import RunRecord, read_record, recorded_run
from tasks.runner import Workplace

GATE = GateConfig(champion_win_rate=None, champion_win_rate_low=None, length_change=None, tax=0.05)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    for name in ("create_table_artifact", "create_markdown_artifact"):
        monkeypatch.setattr(release, name, lambda *_, **__: None)
    return Workplace(store_at(f"file://{tmp_path}/store"), tmp_path, tmp_path)


def evaluation(place: Workplace, **figures: Any) -> Artifact:
    folder = place.folder / "output"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(figures))
    return publish(place.store, folder, stage="evaluate", key="0" * 32, kind="evaluation", config={}, inputs={})


def record(place: Workplace) -> RunRecord:
    found = read_record(place.store.read("runs/p/1.json"))
    assert found is not None
    return found


def test_the_record_holds_the_verdicts_and_the_numbers_that_they_are_of(place: Workplace) -> None:
    measured = evaluation(place, tax=0.25, judge="score", kl=float("nan"))
    with recorded_run(place.store, "p", "1", {}) as run:
        state = release._gate.fn(GATE, [], measured, None, dataclasses.replace(place, run=run))
    assert state.name == "FailedByGate"
    [verdict] = record(place).verdicts
    assert (verdict.measures, verdict.measured, verdict.verdict) == ("tax", 0.25, "failed")
    assert record(place).figures == {"tax": 0.25}
    assert record(place).champion is None


def test_the_record_names_the_export_once_it_is_the_champion(place: Workplace) -> None:
    measured = evaluation(place, tax=0.25)
    export, model = (Artifact(uri=f"file:///{name}", kind=name, digest=name) for name in ("export", "model"))
    with recorded_run(place.store, "p", "1", {}) as run:
        release._crown.fn("p", export, model, None, measured, dataclasses.replace(place, run=run))
    assert record(place).champion == "file:///export"
    overtaken = Artifact(uri="file:///late", kind="export", digest="late")
    with recorded_run(place.store, "p", "2", {}) as run:
        late = dataclasses.replace(place, run=run)
        assert release._crown.fn("p", overtaken, overtaken, None, measured, late).data is False
    second = read_record(place.store.read("runs/p/2.json"))
    assert second is not None
    assert second.champion is None
