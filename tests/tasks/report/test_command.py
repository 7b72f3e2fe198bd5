"""`python -m tasks.report`: from any store to a file, and to the browser."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.artifacts import Store, store_at
from tasks.report.__main__ import main
from tasks.report.publishing import publish_page
from tasks.retention.runs import RunRecord
from tasks.retention.survey import survey
from tests.tasks.report.made_run import make_run


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The addresses that the browser was asked for."""
    addresses: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: addresses.append(address) or True)
    monkeypatch.chdir(tmp_path)
    return addresses


def write(store: Store, **fields: object) -> RunRecord:
    record = RunRecord.model_validate({"pipeline": "demo", "started": "2026-03-02T00:00:00+00:00", **fields})
    store.write(record.name, record.model_dump_json().encode())
    return record


def test_the_page_that_a_run_left_is_brought_and_opened(
    store_uri: str, tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_at(store_uri)
    record = make_run(store, tmp_path)
    page = publish_page(store, record.name)
    assert page.uri == f"{store_uri}/runs/nightly/3f2a-17.html"
    assert page.verdict.startswith("Exported. The model went out and is the champion of nightly.")
    assert main(["--store", store_uri]) == 0
    path = tmp_path / ".local" / "report" / "3f2a-17.html"
    assert capsys.readouterr().out == f"{path}\n"
    assert opened == [path.as_uri()]
    assert path.read_bytes() == store.read("runs/nightly/3f2a-17.html")


def test_a_page_is_no_record_and_keeps_nothing_from_a_sweep(tmp_path: Path) -> None:
    store = store_at(f"file://{tmp_path}/store")
    publish_page(store, make_run(store, tmp_path).name)
    seen = survey(store, datetime.now(UTC), timedelta(days=1))
    assert [run.record.run for run in seen.runs] == ["3f2a-17"]
    assert seen.pinned == set()


def test_a_run_that_was_killed_gets_its_page_from_its_record(tmp_path: Path, opened: list[str]) -> None:
    store = store_at(f"file://{tmp_path}/store")
    write(store, run="killed", started="2026-03-03T00:00:00+00:00")
    write(store, run="ended", state="failed", ended="2026-03-02T01:00:00+00:00", error="of no memory")
    for arguments, word in (([], "Failed"), (["kil"], "Not ended")):
        output = tmp_path / f"{word}.html"
        assert main([*arguments, "--store", store.uri, "--output", str(output), "--no-open"]) == 0
        assert f"<h1>{word}</h1>" in output.read_text()
    assert opened == []


def test_the_last_runs_of_the_last_pipeline_are_compared(tmp_path: Path, opened: list[str]) -> None:
    store = store_at(f"file://{tmp_path}/store")
    for number in (1, 2, 3):
        write(store, run=f"run-{number}", started=f"2026-03-0{number}T00:00:00+00:00", state="failed")
    write(store, run="other", pipeline="nightly", started="2026-03-01T00:00:00+00:00")
    assert main(["--compare", "2", "--store", store.uri]) == 0
    text = (tmp_path / ".local" / "report" / "demo-runs.html").read_text()
    assert [run for run in ("run-1", "run-2", "run-3", "other") if f"<code>{run}</code>" in text] == ["run-2", "run-3"]
    assert main(["--compare", "2", "--pipeline", "nightly", "--store", store.uri]) == 0
    assert "<code>other</code>" in (tmp_path / ".local" / "report" / "nightly-runs.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["x"], "0 runs begin with 'x', expected one. The last runs are run-1, run-2."),
        (["run"], "2 runs begin with 'run'"),
        (["--pipeline", "nothing"], "no run of the pipeline nothing; it has demo"),
        (["--compare", "0"], "--compare 0: expected at least 1"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    arguments: list[str], why: str, tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_at(f"file://{tmp_path}/store")
    for number in (1, 2):
        write(store, run=f"run-{number}", started=f"2026-03-0{number}T00:00:00+00:00")
    assert main([*arguments, "--store", store.uri]) == 2
    assert why in capsys.readouterr().err
    assert opened == []


def test_without_a_store_nothing_is_shown(
    monkeypatch: pytest.MonkeyPatch, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ALIGNMENT_STORE", raising=False)
    assert main([]) == 2
    assert "Give --store" in capsys.readouterr().err
