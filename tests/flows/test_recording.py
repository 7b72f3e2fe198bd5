"""The flow's run as the store knows it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flows import recording
from flows.recording import pipeline_name, recorded
from tasks.artifacts import Store, store_at
from tasks.errors import InputError
from tasks.retention.runs import RunRecord, read_record
from tasks.runner import StageCancelled, Workplace


def test_a_pipeline_is_named_for_its_deployment_else_for_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pipeline_name() == "by-hand"
    monkeypatch.setenv("ALIGNMENT_PIPELINE", "demo")
    assert pipeline_name() == "demo"
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__NAME", "nightly")
    monkeypatch.setattr("prefect.runtime.deployment.FIELDS", {"name": lambda: "x"})
    assert pipeline_name() == "nightly"


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[RunRecord]:
    """The records as they were when their pages were asked for, in a run named run-1 of the pipeline demo."""
    monkeypatch.setenv("ALIGNMENT_PIPELINE", "demo")
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", "run-1")
    monkeypatch.setattr("prefect.runtime.flow_run.FIELDS", {"id": lambda: "x"})
    records: list[RunRecord] = []

    def report(store: Store, name: str, return_state: bool) -> None:
        assert return_state  # what goes wrong with a page is no failure of the run
        record = read_record(store.read(name))
        assert record is not None
        records.append(record)

    monkeypatch.setattr(recording, "report", report)
    return records


def test_the_flows_run_leaves_a_record_under_its_own_id_and_then_a_page(
    tmp_path: Path, reported: list[RunRecord]
) -> None:
    store = store_at(f"file://{tmp_path}/store")
    with recorded(Workplace(store, tmp_path, tmp_path), {"seed": 3}, {"ppo": {"kl_coef": 0.1}}) as place:
        assert place.run is not None
        assert place.run.page_uri == f"{store.uri}/runs/demo/run-1.html"
    record = read_record(store.read("runs/demo/run-1.json"))
    assert record is not None
    assert (record.state, record.overrides) == ("completed", {"seed": 3})
    assert record.options == {"ppo": {"kl_coef": 0.1}}
    assert reported == [record]


@pytest.mark.parametrize(
    ("error", "num_pages"), [(InputError("no"), 1), (StageCancelled("end"), 0), (ConnectionError("away"), 0)]
)
def test_a_run_that_fails_has_a_page_unless_it_is_in_haste_or_the_store_is_away(
    error: Exception, num_pages: int, tmp_path: Path, reported: list[RunRecord]
) -> None:
    def fail() -> None:
        with recorded(Workplace(store_at(f"file://{tmp_path}/store"), tmp_path, tmp_path), {}, {}):
            raise error

    with pytest.raises(type(error)):
        fail()
    assert [(record.state, record.error) for record in reported] == [("failed", "no")] * num_pages


def test_a_run_that_could_not_begin_has_no_page(
    tmp_path: Path, reported: list[RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Callable[[], None]:
        raise InputError("not now")

    monkeypatch.setattr(recording, "recorded_run", refuse)
    with (
        pytest.raises(InputError, match="not now"),
        recorded(Workplace(store_at(f"file://{tmp_path}/store"), tmp_path, tmp_path), {}, {}),
    ):
        pass
    assert reported == []
