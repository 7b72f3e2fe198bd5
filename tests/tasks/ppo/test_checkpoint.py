"""How far a run has come, written and read again; the folders themselves are in tests/tasks/test_checkpoints.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.checkpoints import newest_checkpoint
from tasks.errors import InputError
from tasks.ppo.checkpoint import FREE_TO_CHANGE, LOGS, Progress, load_progress, save_progress
from tasks.ppo.config import PPOConfig
from tasks.ppo.objective import Moments

TENSORS = {"parameter.policy.weight": torch.arange(6.0).view(2, 3), "step.policy.weight": torch.tensor(3.0)}
PROGRESS = Progress(
    num_processes=2,
    kl_coef=0.1 + 0.2,
    iteration=3,
    moments=Moments(192, 1 / 3, 2**0.5 * 1e-7),
    best_iteration=2,
    best_value=1.1,
    num_tokens=100,
    seconds={"update": 1.5, "evaluate": 0.1},
)


def save(output: Path, progress: Progress = PROGRESS, **options: Any) -> Path:
    """The folder of a checkpoint."""
    save_progress(output, progress, TENSORS, PPOConfig(**options))
    return output / f"checkpoints/step-{progress.iteration}"


def test_what_was_saved_is_loaded_to_the_last_bit(tmp_path: Path) -> None:
    folder = save(tmp_path)
    assert newest_checkpoint(tmp_path) == folder
    progress, tensors = load_progress(folder, PPOConfig())
    assert progress == PROGRESS
    assert isinstance(progress.moments, Moments)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_a_run_at_its_start_is_loaded_too(tmp_path: Path) -> None:
    start = Progress(num_processes=1, kl_coef=0.05)
    assert load_progress(save(tmp_path, start), PPOConfig())[0] == start


def test_moments_go_on_as_if_the_run_had_not_been_interrupted(tmp_path: Path) -> None:
    first, second = torch.randn(2, 50)
    undisturbed = Moments().after(first)
    found, _ = load_progress(save(tmp_path, replace(PROGRESS, moments=undisturbed)), PPOConfig())
    assert found.moments.after(second) == undisturbed.after(second)


def test_the_newest_stay_and_the_best(tmp_path: Path) -> None:
    for iteration in (2, 5, 8, 9, 10):
        save(tmp_path, replace(PROGRESS, iteration=iteration), keep_checkpoints=2)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-2", "step-9", "step-10"}
    save(tmp_path, replace(PROGRESS, iteration=11, best_iteration=11), keep_checkpoints=1)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-11"}


def test_without_a_best_the_newest_stay(tmp_path: Path) -> None:
    for iteration in (1, 2, 3):
        save(tmp_path, replace(PROGRESS, iteration=iteration, best_iteration=None), keep_checkpoints=1)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-3"}


def test_the_logs_are_kept_with_it(tmp_path: Path) -> None:
    for name in LOGS:
        (tmp_path / name).write_text(name)
    folder = save(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"state.json", "training.safetensors", *LOGS}
    assert LOGS == ("metrics.jsonl", "samples.jsonl")


def test_a_checkpoint_of_another_config_is_refused_naming_all_that_differs_and_nothing_else(tmp_path: Path) -> None:
    folder = save(tmp_path, kl_coef=0.1)
    with pytest.raises(InputError, match=r"kl_coef: 0\.1 -> 0\.2; lora: .*'r': 16.* -> .*'r': 8") as error:
        load_progress(folder, PPOConfig(kl_coef=0.2, lora={"r": 8}, checkpoint_every=3))
    message = str(error.value)
    assert str(folder) in message
    assert "another --output to start anew" in message
    assert "checkpoint_every" not in message
    assert "seed" not in message


@pytest.mark.parametrize(
    ("name", "value"), [("checkpoint_every", 3), ("keep_checkpoints", 9), ("trackers", ["tensorboard"])]
)
def test_what_does_not_touch_the_training_may_change(tmp_path: Path, name: str, value: object) -> None:
    assert name in FREE_TO_CHANGE
    assert load_progress(save(tmp_path), PPOConfig(**{name: value}))[0] == PROGRESS


def test_seconds_add_up_by_phase() -> None:
    after = PROGRESS.after_phases({"update": 1.0, "score": 0.5})
    assert after == replace(PROGRESS, seconds={"update": 2.5, "evaluate": 0.1, "score": 0.5})
    assert PROGRESS.seconds == {"update": 1.5, "evaluate": 0.1}


@pytest.mark.parametrize(
    ("best", "value", "expected"),
    [
        ((None, None), -5.0, (3, -5.0)),
        ((2, 1.1), 1.2, (3, 1.2)),
        ((2, 1.1), 1.1, (2, 1.1)),  # the earlier of equals
        ((2, 1.1), 1.0, (2, 1.1)),
        ((2, 0.0), -1.0, (2, 0.0)),
        ((2, 1.1), float("nan"), (2, 1.1)),
        ((None, None), float("nan"), (None, None)),
    ],
)
def test_the_best_is_the_first_evaluation_with_the_largest_value(
    best: tuple[int | None, float | None], value: float, expected: tuple[int | None, float | None]
) -> None:
    before = replace(PROGRESS, best_iteration=best[0], best_value=best[1])
    after = before.after_evaluation(value)
    assert after == replace(before, best_iteration=expected[0], best_value=expected[1])
