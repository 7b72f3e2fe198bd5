"""Commands of tasks/ on the store that runs here use."""

import sys
from pathlib import Path

import pytest

from infra import on_store


def test_the_command_gets_its_arguments_and_the_store_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGNMENT_STORE", f"file://{tmp_path}/store")
    monkeypatch.setattr(sys, "argv", ["infra.on_store", "tasks.sweep", "--keep-runs", "3"])
    assert on_store.main() == 0
    told = capsys.readouterr()
    assert told.out.startswith("Nothing to delete")
    assert f"reading file://{tmp_path}/store" in told.err


def test_a_package_is_a_command_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGNMENT_STORE", f"file://{tmp_path}/store")
    monkeypatch.setattr(sys, "argv", ["infra.on_store", "tasks.report", "--no-open"])
    assert on_store.main() == 2
    assert f"file://{tmp_path}/store has no run; it has no runs at all." in capsys.readouterr().err


def test_the_commands_refusal_is_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNMENT_STORE", f"file://{tmp_path}/store")
    monkeypatch.setattr(sys, "argv", ["infra.on_store", "tasks.lineage", "abc"])
    assert on_store.main() == 2
