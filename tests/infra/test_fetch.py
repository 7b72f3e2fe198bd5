"""Bringing an artifact into a folder."""

from pathlib import Path

import pytest

from infra.fetch import bring
from tasks.artifacts import publish, store_at
from tasks.errors import InputError


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ALIGNMENT_STORE", f"file://{tmp_path}/store")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "model.safetensors").write_bytes(b"weights")
    store = store_at(f"file://{tmp_path}/store")
    made = publish(store, tmp_path / "output", stage="export", key="0" * 32, kind="export", config={}, inputs={})
    return made.uri


def test_the_folder_holds_the_artifacts_files_and_nothing_is_left_beside_it(uri: str, tmp_path: Path) -> None:
    bring(uri, tmp_path / "here" / "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "here" / "model").iterdir()} == {
        "model.safetensors": b"weights"
    }
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["model"]


def test_a_folder_that_exists_is_not_touched(uri: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match="exists already"):
        bring(uri, tmp_path / "model")


def test_a_damaged_artifact_leaves_no_folder(uri: str, tmp_path: Path) -> None:
    [weights] = (tmp_path / "store").rglob("model.safetensors")
    weights.write_bytes(b"weighty")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        bring(uri, tmp_path / "model")
    assert not (tmp_path / "model").exists()
