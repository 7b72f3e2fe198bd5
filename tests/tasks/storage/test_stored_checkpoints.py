"""Checkpoints in a store: whole or not there, the newest that is sound, and nothing that could be code."""

import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.storage.stored_checkpoints import (
    Trail,
    fetch_newest,
    local_checkpoints,
    needs_of,
    publish_checkpoint,
    remove_checkpoints,
    snapshot,
    stored_steps,
)
from tasks.storage.stores import FileStore, store_at


@pytest.fixture
def trail(store_uri: str, tmp_path: Path) -> Trail:
    return Trail(store_at(store_uri), "ppo", "0" * 32, "version", tmp_path / "output")


def write(output: Path, step: int, name: str = "step", **state: object) -> Path:
    folder = output / "checkpoints" / f"{name}-{step}"
    folder.mkdir(parents=True)
    (folder / "training.safetensors").write_bytes(bytes([step % 256]) * 1000)
    (folder / "state.json").write_text(json.dumps({"step": step, **state}))
    if name == "checkpoint":
        (folder / "trainer_state.json").write_text("{}")
    return folder


def publish(trail: Trail, folder: Path, step: int) -> None:
    staged = trail.output.parent / "staged"
    snapshot(trail.output, folder, staged)
    publish_checkpoint(trail, staged, step, needs_of(folder))


def on_another_machine(trail: Trail, tmp_path: Path) -> Trail:
    return Trail(trail.store, trail.stage, trail.key, trail.code_version, tmp_path / "elsewhere" / "output")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(trail: Trail, step: int, find: Callable[[str], bool]) -> None:
    """Change one byte of a stored file of the step."""
    [name] = [file.name for file in trail.store.files(f"checkpoints/ppo/{trail.key}/step-{step}/") if find(file.name)]
    data = bytearray(trail.store.read(name) or b"")
    data[len(data) // 2] ^= 1
    trail.store.write(name, bytes(data))


def test_the_newest_is_brought_to_an_empty_machine_as_it_was(trail: Trail, tmp_path: Path) -> None:
    for step in (2, 10, 9):
        publish(trail, write(trail.output, step), step)
    assert stored_steps(trail) == [10, 9, 2]
    elsewhere = on_another_machine(trail, tmp_path)
    assert fetch_newest(elsewhere, tmp_path / "scratch") == set()
    assert contents(elsewhere.output) == {
        name: data for name, data in contents(trail.output).items() if name.startswith("checkpoints/step-10/")
    }
    assert not list((tmp_path / "scratch").iterdir())


def test_what_the_newest_needs_comes_with_it(trail: Trail, tmp_path: Path) -> None:
    for step, needs in ((1, []), (2, []), (3, [1])):
        publish(trail, write(trail.output, step, needs=needs), step)
    elsewhere = on_another_machine(trail, tmp_path)
    fetch_newest(elsewhere, tmp_path / "scratch")
    assert set(local_checkpoints(elsewhere.output)) == {1, 3}


@pytest.mark.parametrize("local", [5, 6])
def test_a_local_one_that_is_as_new_stays(trail: Trail, tmp_path: Path, local: int) -> None:
    publish(trail, write(trail.output, 5), 5)
    elsewhere = on_another_machine(trail, tmp_path)
    (write(elsewhere.output, local) / "training.safetensors").write_text("of this machine")
    fetch_newest(elsewhere, tmp_path / "scratch")
    assert set(local_checkpoints(elsewhere.output)) == {local}
    assert (local_checkpoints(elsewhere.output)[local] / "training.safetensors").read_text() == "of this machine"


@pytest.mark.parametrize("kind", ["training.safetensors", "state.json", "manifest.json"])
def test_a_damaged_one_is_passed_over_for_the_next_older(
    trail: Trail, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.INFO)
    for step in (1, 2, 3):
        publish(trail, write(trail.output, step, needs=[2] if step == 3 else []), step)
    damage(trail, 2, lambda name: name.endswith(kind))
    elsewhere = on_another_machine(trail, tmp_path)
    assert fetch_newest(elsewhere, tmp_path / "scratch") == {2, 3}
    assert set(local_checkpoints(elsewhere.output)) == {1}
    said = [record.getMessage() for record in caplog.records if "checkpoint" in record.getMessage()]
    assert said[0].startswith("ppo: the stored checkpoint of step 3 is passed over: ")
    assert said[-1] == f"ppo goes on from the checkpoint of step 1 in {trail.store.uri}"


def test_one_whose_files_vanished_is_passed_over(trail: Trail, tmp_path: Path) -> None:
    for step in (1, 2):
        publish(trail, write(trail.output, step), step)
    trail.store.delete(
        [f.name for f in trail.store.files(f"checkpoints/ppo/{trail.key}/step-2/") if f.name.endswith("safetensors")]
    )
    elsewhere = on_another_machine(trail, tmp_path)
    assert fetch_newest(elsewhere, tmp_path / "scratch") == {2}
    assert set(local_checkpoints(elsewhere.output)) == {1}


def test_without_a_manifest_there_is_none(trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(trail.store), "write", die)
    with pytest.raises(KeyboardInterrupt):
        publish(trail, write(trail.output, 1), 1)
    assert list(trail.store.files("checkpoints/"))
    assert stored_steps(trail) == []


def test_a_manifest_that_is_of_another_stage_key_or_step_is_not_believed(trail: Trail, tmp_path: Path) -> None:
    publish(trail, write(trail.output, 1), 1)
    folder = f"checkpoints/ppo/{trail.key}"
    trail.store.write(f"{folder}/step-7/manifest.json", trail.store.read(f"{folder}/step-1/manifest.json") or b"")
    assert fetch_newest(on_another_machine(trail, tmp_path), tmp_path / "scratch") == {7}


def test_only_those_before_a_step_go_and_not_those_that_are_kept(trail: Trail) -> None:
    for step in (1, 2, 3, 4):
        publish(trail, write(trail.output, step), step)
    remove_checkpoints(trail, before=3, keep=[1])
    assert stored_steps(trail) == [4, 3, 1]
    remove_checkpoints(trail)
    assert not list(trail.store.files("checkpoints/"))


def test_a_trainers_checkpoint_goes_with_its_averages_and_metrics_and_without_pickles_that_run_code(
    tmp_path: Path,
) -> None:
    output = tmp_path / "output"
    folder = write(output, 20, name="checkpoint")
    harmless = ["model.safetensors", "optimizer.safetensors", "rng_state_1.safetensors", "tokenizer.json"]
    dangerous = ["training_args.bin", "pytorch_model.bin", "optimizer.pt", "rng_state.pth", "custom.pkl", "code.py"]
    for name in (*harmless, *dangerous):
        (folder / name).write_text(name)
    (output / "checkpoints" / "averages-20.safetensors").write_text("averages")
    (output / "checkpoints" / "averages-10.safetensors").write_text("older")
    (output / "metrics.jsonl").write_text('{"step": 20}\n')
    trail = Trail(FileStore(tmp_path / "store"), "sft", "0" * 32, "version", output)
    publish(trail, folder, 20)
    elsewhere = on_another_machine(trail, tmp_path)
    fetch_newest(elsewhere, tmp_path / "scratch")
    fetched = set(contents(elsewhere.output))
    assert fetched == {
        "metrics.jsonl",
        "checkpoints/averages-20.safetensors",
        *(
            f"checkpoints/checkpoint-20/{name}"
            for name in (*harmless, "state.json", "trainer_state.json", "training.safetensors")
        ),
    }


@pytest.mark.parametrize(
    "name", ["checkpoints/step-1/weights.bin", "checkpoints/step-1/training_args.bin", "config.json"]
)
def test_a_stored_checkpoint_with_a_file_that_might_be_code_is_not_fetched(tmp_path: Path, name: str) -> None:
    trail = Trail(FileStore(tmp_path / "store"), "ppo", "0" * 32, "version", tmp_path / "output")
    planted = tmp_path / "planted" / name
    planted.parent.mkdir(parents=True)
    planted.write_bytes(pickle.dumps(print))
    publish_checkpoint(trail, tmp_path / "planted", 1, [])
    assert fetch_newest(trail, tmp_path / "scratch") == {1}
    assert not trail.output.exists()


def test_a_checkpoint_that_is_not_whole_is_not_seen(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 10, name="checkpoint")
    (write(tmp_path, 11, name="checkpoint") / "trainer_state.json").write_text('{"half')
    (write(tmp_path, 12, name="checkpoint") / "trainer_state.json").unlink()
    (tmp_path / "checkpoints" / ".step-13.partial").mkdir()
    assert set(local_checkpoints(tmp_path)) == {1, 10}


def test_a_snapshot_outlives_the_checkpoint(tmp_path: Path) -> None:
    folder = write(tmp_path / "output", 1)
    before = contents(tmp_path / "output")
    snapshot(tmp_path / "output", folder, tmp_path / "snapshot")
    for path in folder.iterdir():
        path.unlink()
    assert contents(tmp_path / "snapshot") == before
