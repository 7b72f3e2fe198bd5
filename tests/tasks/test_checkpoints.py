"""Checkpoint folders that are whole or not there."""

import os
from pathlib import Path

import pytest
import torch

from tasks import checkpoints
from tasks.checkpoints import (
    checkpoint_folder,
    newest_checkpoint,
    read_state,
    read_tensors,
    remove_old_checkpoints,
    restore_logs,
    save_checkpoint,
)

TENSORS = {
    "parameter.policy.weight": torch.arange(6.0).view(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "step": torch.tensor(3.0),
    "transposed": torch.arange(6.0).view(2, 3).T,
}
STATE = {"iteration": 3, "mean": 0.1 + 0.2, "seconds": {"update": 1.5}, "best": None}
LOGS = ("metrics.jsonl", "samples.jsonl")


def save(output: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(output, step, TENSORS, {"step": step}, LOGS)


def steps_in(output: Path) -> set[str]:
    return {path.name for path in (output / "checkpoints").iterdir()}


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, TENSORS, STATE, LOGS)
    folder = newest_checkpoint(tmp_path)
    assert folder == checkpoint_folder(tmp_path, 3) == tmp_path / "checkpoints/step-3"
    assert read_state(folder) == STATE
    found = read_tensors(folder)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert all(found[name].dtype == tensor.dtype for name, tensor in TENSORS.items())


def test_nothing_is_pickled(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert {path.name for path in (tmp_path / "checkpoints/step-1").iterdir()} == {"state.json", "training.safetensors"}


def test_before_the_first_there_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert newest_checkpoint(tmp_path) is None


def test_the_newest_is_that_of_the_largest_number(tmp_path: Path) -> None:
    save(tmp_path, 10, 9, 100, 20)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints/step-100"


@pytest.mark.parametrize("interrupted", ["save_file", "write_json", "_copy_logs"])
def test_an_interrupted_save_is_never_read_and_the_next_one_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, interrupted, full)
        with pytest.raises(OSError, match="No space"):
            save(tmp_path, 2)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints/step-1"
    (tmp_path / "checkpoints/.step-2.partial/left over").touch()
    save(tmp_path, 2)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints/step-2"
    assert steps_in(tmp_path) == {"step-1", "step-2"}
    assert not (tmp_path / "checkpoints/step-2/left over").exists()


def test_a_folder_gets_its_name_when_all_that_is_in_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    flush, rename = os.fsync, Path.rename

    def note_flush(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        flush(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        events.append(f"rename to {target.name}")
        return rename(path, target)

    (tmp_path / "metrics.jsonl").write_text("1\n")
    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(Path, "rename", note_rename)
    save(tmp_path, 1)
    *before, renamed, after = events
    assert set(before) == {"metrics.jsonl", "state.json", "training.safetensors", ".step-1.partial"}
    assert (renamed, after) == ("rename to step-1", "checkpoints")


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, TENSORS, {"attempt": 1}, LOGS)
    save_checkpoint(tmp_path, 1, {"other": torch.ones(2)}, {"attempt": 2}, LOGS)
    assert read_state(tmp_path / "checkpoints/step-1") == {"attempt": 2}
    assert read_tensors(tmp_path / "checkpoints/step-1").keys() == {"other"}


@pytest.mark.parametrize(
    ("keep", "also", "left"),
    [
        (1, (), {"step-10"}),
        (2, (), {"step-9", "step-10"}),
        (1, [2], {"step-2", "step-10"}),
        (2, [10, 7], {"step-9", "step-10"}),
        (9, (), {"step-1", "step-2", "step-9", "step-10"}),
    ],
)
def test_the_newest_stay_and_those_that_were_named(tmp_path: Path, keep: int, also: list[int], left: set[str]) -> None:
    save(tmp_path, 1, 2, 9, 10)
    remove_old_checkpoints(tmp_path, keep, also)
    assert steps_in(tmp_path) == left


def test_the_logs_go_back_to_where_the_checkpoint_was(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text("1\n")
    save(tmp_path, 1)
    log.write_text("1\n2\n")
    (tmp_path / "samples.jsonl").write_text("later\n")
    (tmp_path / "report.json").write_text("no log")
    restore_logs(tmp_path / "checkpoints/step-1", tmp_path, LOGS)
    assert log.read_text() == "1\n"
    assert not (tmp_path / "samples.jsonl").exists()
    assert (tmp_path / "report.json").exists()


def test_without_a_checkpoint_there_are_no_logs(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("1\n")
    restore_logs(None, tmp_path, LOGS)
    assert list(tmp_path.iterdir()) == []
