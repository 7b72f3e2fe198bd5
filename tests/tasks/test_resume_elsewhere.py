"""A real training that is interrupted, and goes on on a machine that has nothing but the store."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Artifact, import_external, read_files, store_at
from tasks.config import Config
from tasks.ppo.config import PPOConfig
from tasks.reward_model.config import RewardModelConfig
from tasks.runner import PROJECT, Outcome, Stage, Watch, Workplace, run_stage
from tasks.sft.config import SFTConfig
from tasks.stages import PPO, SFT, TRAIN_REWARD_MODEL
from tests.tasks.reward_model.test_train import PAIRS
from tests.tasks.tiny_models import write_model, write_split

pytestmark = pytest.mark.slow

TRAINER: dict[str, Any] = {
    "learning_rate": 1e-3,
    "max_steps": 150,
    "save_steps": 15,
    "per_device_batch_size": 4,
    "max_length": 32,
    "eval_steps": 150,
    "average_from": 0.1,
    "dropout": 0.1,
}
PPO_OPTIONS: dict[str, Any] = {
    "total_episodes": 192,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "value_learning_rate": 1e-2,
    "sampling": {"response_length": 6},
    "lora": {"r": 4},
    "evaluate_every": 2,
    "num_eval_prompts": 8,
    "checkpoint_every": 4,
    "keep_checkpoints": 1,
    "use_best": True,
    "rewards": [{"type": "function", "function": "tests.tasks.ppo.tiny:count_favourite"}],
}
Inputs = Mapping[str, Artifact]


@pytest.fixture(scope="module")
def given(world: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inputs]:
    """The inputs of each stage."""
    folder = tmp_path_factory.mktemp("given")
    model = write_model(folder / "model")
    for split in ("train", "test"):
        write_split(folder / "data", "preferences", split, PAIRS)
        records = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
        write_split(folder / "data", "sft", split, records)
    ours = {"data": import_external(str(folder / "data")), "model": import_external(str(model))}
    ppo = {name: import_external(str(world[name])) for name in ("data", "policy")}
    return {"sft": ours, "reward_model": ours, "ppo": ppo}


@pytest.mark.parametrize(
    ("stage", "config", "makes", "interrupt_at"),
    [
        (SFT, SFTConfig(**TRAINER), "model", 50),
        (TRAIN_REWARD_MODEL, RewardModelConfig(**TRAINER, num_demonstrations=4), "reward_model", 50),
        (PPO, PPOConfig.model_validate(PPO_OPTIONS), "actor_critic_adapter", 8),
    ],
    ids=lambda value: value.name if isinstance(value, Stage) else None,
)
def test_a_training_that_goes_on_on_an_empty_machine_ends_with_the_bits_of_an_undisturbed_one(
    given: dict[str, Inputs], tmp_path: Path, stage: Stage, config: Config, makes: str, interrupt_at: int
) -> None:
    accelerate = PROJECT / "infra/accelerate/cpu.yaml"
    here = Workplace(store_at(f"file://{tmp_path}/store"), tmp_path / "here", accelerate)
    elsewhere = replace(here, folder=tmp_path / "elsewhere")
    undisturbed = Workplace(store_at(f"file://{tmp_path}/other-store"), tmp_path / "undisturbed", accelerate)

    def run(place: Workplace, on_metrics: Callable[[Mapping[str, float]], None] = lambda record: None) -> Outcome:
        return run_stage(stage, config, given[stage.name], makes, place, Watch(on_metrics, lambda: False))

    with pytest.raises(KeyboardInterrupt):
        run(here, interrupted_at(interrupt_at))
    assert [file.name for file in here.store.files("checkpoints/") if file.name.endswith("/manifest.json")]
    resumed, whole = run(elsewhere), run(undisturbed)
    assert b"resuming" in read_files(here.store, resumed.artifact, "log.txt")["log.txt"]
    assert weights(here, resumed) == weights(undisturbed, whole)
    assert steps(here, resumed) == steps(undisturbed, whole)
    assert not list(here.store.files("checkpoints/"))


def interrupted_at(step: int) -> Callable[[Mapping[str, float]], None]:
    """A listener to metrics that is Ctrl-C as soon as the training has come to `step`."""

    def listen(record: Mapping[str, float]) -> None:
        if record["step"] >= step:
            raise KeyboardInterrupt

    return listen


def weights(place: Workplace, outcome: Outcome) -> dict[str, bytes]:
    found = read_files(place.store, outcome.artifact, "*.safetensors")
    assert found
    return found


def steps(place: Workplace, outcome: Outcome) -> set[int]:
    lines = read_files(place.store, outcome.artifact, "metrics.jsonl")["metrics.jsonl"].splitlines()
    return {json.loads(line)["step"] // 50 for line in lines}
