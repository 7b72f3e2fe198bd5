"""What becomes of a run whose reward model has a certificate."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tasks import certification
from tasks.artifacts import Artifact, publish, store_at
from tasks.retention.runs import read_record, recorded_run
from tasks.runner import Workplace

PASSED = {"measures": "pair_accuracy", "demand": "≥ 0.6", "measured": 0.9, "verdict": "passed", "why": ""}
FAILED = {
    "measures": "length_bias", "demand": "≥ -0.2 and ≤ 0.2", "measured": 0.314159, "verdict": "failed", "why": "",
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.setattr(certification, "create_table_artifact", lambda **_: None)
    return Workplace(store_at(f"file://{tmp_path}/store"), tmp_path, tmp_path)


def certificate(place: Workplace, *verdicts: dict[str, Any]) -> Artifact:
    folder = place.folder / "output"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"verdicts": verdicts}))
    return publish(place.store, folder, stage="certify", key="0" * 32, kind="certificate", config={}, inputs={})


def test_a_failed_threshold_ends_the_run_with_its_name_its_value_and_how_to_override_it(place: Workplace) -> None:
    made = certificate(place, PASSED, FAILED)
    state = certification._certificate.fn(made, place)
    assert (state.type, state.name) == ("FAILED", "FailedByCertificate")
    with pytest.raises(certification.FailedByCertificate) as caught:
        raise state.data
    assert str(caught.value) == state.message == caught.value.state().message
    assert state.message.splitlines() == [
        "1 of 2 thresholds of the reward model's certificate failed; PPO was not started.",
        "  failed: length_bias is 0.3142, has to be ≥ -0.2 and ≤ 0.2",
        "To go on all the same set certify.accept: [length_bias], which the lineage keeps, or move the bounds, which "
        f"have the same names under certify. The certificate: {made.uri}",
    ]


def test_the_runs_record_holds_the_verdicts(place: Workplace) -> None:
    made = certificate(place, PASSED, FAILED)
    with recorded_run(place.store, "p", "1", {}) as run:
        certification._certificate.fn(made, dataclasses.replace(place, run=run))
    record = read_record(place.store.read("runs/p/1.json"))
    assert record is not None
    assert [verdict.model_dump() for verdict in record.certificate] == [PASSED, FAILED]


def test_what_is_accepted_does_not_stop_the_run(place: Workplace) -> None:
    made = certificate(place, PASSED, FAILED | {"verdict": "accepted"})
    state = certification._certificate.fn(made, place)
    assert (state.type, state.name) == ("COMPLETED", "Passed")
    assert "accepted: length_bias is 0.3142" in state.message
