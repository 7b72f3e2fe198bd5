from pathlib import Path

import pytest
import torch

from tasks.errors import InputError
from tasks.ppo import checkpoint
from tasks.ppo.checkpoint import Progress, load_checkpoint, newest_checkpoint, restore_logs, save_checkpoint
from tasks.ppo.config import PPOConfig

TENSORS = {"parameter.policy.weight": torch.arange(6.0).view(2, 3), "step.policy.weight": torch.tensor(3.0)}


def progress(iteration: int) -> Progress:
    return Progress(iteration, num_processes=2, seconds={"update": 1.5}, num_tokens=100)


def test_what_was_saved_is_loaded(tmp_path) -> None:
    assert newest_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, progress(3), TENSORS, PPOConfig())
    folder = newest_checkpoint(tmp_path)
    assert folder == tmp_path / "checkpoints/step-3"
    found, tensors = load_checkpoint(folder, PPOConfig(checkpoint_every=3, keep_checkpoints=9))
    assert found == progress(3)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_the_newest_are_kept_and_the_newest_is_by_number(tmp_path) -> None:
    for iteration in (2, 9, 10):
        save_checkpoint(tmp_path, progress(iteration), TENSORS, PPOConfig(keep_checkpoints=2))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-9", "step-10"}
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints/step-10"


def test_an_interrupted_save_leaves_the_last_checkpoint(tmp_path, monkeypatch) -> None:
    save_checkpoint(tmp_path, progress(1), TENSORS, PPOConfig())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, progress(2), TENSORS, PPOConfig())
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints/step-1"
    save_checkpoint(tmp_path, progress(2), TENSORS, PPOConfig())
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints/step-2"


def test_a_checkpoint_of_another_config_is_refused_naming_what_differs(tmp_path) -> None:
    save_checkpoint(tmp_path, progress(1), TENSORS, PPOConfig(kl_coef=0.1))
    with pytest.raises(InputError, match=r"kl_coef: 0.1 -> 0.2; lora: .*'r': 16.* -> .*'r': 8") as error:
        load_checkpoint(tmp_path / "checkpoints/step-1", PPOConfig(kl_coef=0.2, lora={"r": 8}, checkpoint_every=3))
    assert "checkpoint_every" not in str(error.value)


def test_the_logs_go_back_to_where_the_checkpoint_was(tmp_path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text("1\n")
    save_checkpoint(tmp_path, progress(1), TENSORS, PPOConfig())
    log.write_text("1\n2\n")
    (tmp_path / "samples.jsonl").write_text("later\n")
    restore_logs(tmp_path / "checkpoints/step-1", tmp_path)
    assert log.read_text() == "1\n"
    assert not (tmp_path / "samples.jsonl").exists()
    restore_logs(None, tmp_path)
    assert not log.exists()


def test_seconds_and_tokens_add_up() -> None:
    after = progress(3).after_iteration({"update": 1.0, "score": 0.5}, num_tokens=7).after_phase("evaluate", 2.0)
    assert after == Progress(4, num_processes=2, seconds={"update": 2.5, "score": 0.5, "evaluate": 2.0}, num_tokens=107)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, progress(1), TENSORS, PPOConfig())
    names = {path.name for path in (tmp_path / "checkpoints/step-1").iterdir()}
    assert names == {"state.json", "training.safetensors"}
