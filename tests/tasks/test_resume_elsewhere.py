"""A training that is interrupted, and goes on on a machine that has nothing but the store."""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.config import Config
from tasks.ppo import train as ppo
from tasks.ppo.config import PPOConfig
from tasks.reward_model import train as reward_model
from tasks.reward_model.config import RewardModelConfig
from tasks.sft import train as sft
from tasks.sft.config import SFTConfig
from tasks.storage.checkpoint_publisher import CheckpointPublisher
from tasks.storage.stored_checkpoints import Trail, fetch_newest, local_checkpoints, stored_steps
from tasks.storage.stores import FileStore
from tasks.tracking import read_metrics
from tests.tasks.reward_model.test_train import PAIRS
from tests.tasks.tiny_models import write_model, write_split

TRAINER: dict[str, Any] = {
    "learning_rate": 1e-3,
    "max_steps": 10,  # 4 make an epoch
    "save_steps": 3,
    "per_device_batch_size": 4,
    "max_length": 32,
    "eval_steps": 10,
    "average_from": 0.1,
    "dropout": 0.1,
}
REWARD_MODEL = RewardModelConfig(**TRAINER, num_demonstrations=4)
PPO_OPTIONS: dict[str, Any] = {
    "total_episodes": 48,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "value_learning_rate": 1e-2,
    "sampling": {"response_length": 6},
    "lora": {"r": 4},
    "evaluate_every": 1,
    "num_eval_prompts": 4,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "use_best": True,
    "rewards": [{"type": "function", "function": "tests.tasks.ppo.tiny:count_favourite"}],
}
Program = Callable[[Any, Mapping[str, Path], Path], None]


@pytest.fixture(scope="module")
def given(world: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """The inputs of each stage."""
    folder = tmp_path_factory.mktemp("given")
    for split in ("train", "test"):
        write_split(folder / "data", "preferences", split, PAIRS)
        records = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
        write_split(folder / "data", "sft", split, records)
    ours = {"data": folder / "data", "model": write_model(folder / "model")}
    return {"sft": ours, "reward_model": ours, "ppo": {name: world[name] for name in ("data", "policy")}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "program", "config", "step", "interrupt_after", "last_stored"),
    [
        ("sft", sft.main, SFTConfig(**TRAINER), (sft.CompletionTrainer, "training_step"), 7, 6),
        ("reward_model", reward_model.main, REWARD_MODEL, (reward_model.PairTrainer, "training_step"), 7, 6),
        ("ppo", ppo.main, PPOConfig.model_validate(PPO_OPTIONS), (ppo, "iterate"), 4, 4),
    ],
    ids=["sft", "reward_model", "ppo"],
)
def test_a_training_that_goes_on_on_an_empty_machine_ends_with_the_bits_of_an_undisturbed_one(
    given: dict[str, dict[str, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    program: Program,
    config: Config,
    step: tuple[Any, str],
    interrupt_after: int,
    last_stored: int,
) -> None:
    here = Trail(FileStore(tmp_path / "store"), stage, "0" * 32, "version", tmp_path / "here")
    elsewhere = replace(here, output=tmp_path / "elsewhere")
    steps = Steps(monkeypatch, *step)
    num_steps = steps.of(lambda: train(program, config, given[stage], tmp_path / "whole"))
    with contextlib.suppress(KeyboardInterrupt), CheckpointPublisher(here, tmp_path / "publishing"):
        steps.of(lambda: train(program, config, given[stage], here.output), interrupt_after)
    assert max(stored_steps(here)) == last_stored
    fetch_newest(elsewhere, tmp_path / "scratch")
    assert last_stored in local_checkpoints(elsewhere.output)
    assert steps.of(lambda: train(program, config, given[stage], elsewhere.output)) == num_steps - last_stored
    assert weights(elsewhere.output) == weights(tmp_path / "whole")
    assert logged(elsewhere.output) == logged(tmp_path / "whole")


class Steps:
    """Counts the calls of the function that is one step of a training, and is Ctrl-C after so many."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self._num_done, self._most = 0, math.inf
        original = getattr(owner, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            if self._num_done == self._most:
                raise KeyboardInterrupt
            self._num_done += 1
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    def of(self, training: Callable[[], None], most: float = math.inf) -> int:
        """How many steps the training does."""
        self._num_done, self._most = 0, most
        training()
        return self._num_done


def train(program: Program, config: Config, inputs: Mapping[str, Path], output: Path) -> None:
    output.mkdir(exist_ok=True)
    program(config, inputs, output)


def weights(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert found
    return found


def logged(folder: Path) -> list[float]:
    """The steps that metrics.jsonl tells of."""
    return [record["step"] for record in read_metrics(folder)]
