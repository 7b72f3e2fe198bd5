"""The flow's run as the store knows it."""

from pathlib import Path

import pytest

from flows.recording import pipeline_name, recorded
from tasks.artifacts import store_at
from tasks.runner import Workplace
from tasks.runs import read_record


def test_a_pipeline_is_named_for_its_deployment_else_for_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pipeline_name() == "by-hand"
    monkeypatch.setenv("ALIGNMENT_PIPELINE", "demo")
    assert pipeline_name() == "demo"
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__NAME", "nightly")
    monkeypatch.setattr("prefect.runtime.deployment.FIELDS", {"name": lambda: "x"})
    assert pipeline_name() == "nightly"


def test_the_flows_run_leaves_a_record_under_its_own_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNMENT_PIPELINE", "demo")
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", "run-1")
    monkeypatch.setattr("prefect.runtime.flow_run.FIELDS", {"id": lambda: "x"})
    store = store_at(f"file://{tmp_path}/store")
    with recorded(Workplace(store, tmp_path, tmp_path), {"seed": 3}) as place:
        assert place.run is not None
    record = read_record(store.read("runs/demo/run-1.json"))
    assert record is not None
    assert (record.state, record.overrides) == ("completed", {"seed": 3})
