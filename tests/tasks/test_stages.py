"""What the Prefect tasks hand to their stages."""

from pathlib import Path
from typing import Any

import pytest

from tasks import stages
from tasks.artifacts import Artifact, store_at
from tasks.ppo.config import PPOConfig
from tasks.reward_model.config import RewardModelConfig
from tasks.runner import Stage, Workplace, check_inputs

REWARDS: list[dict[str, Any]] = [{"type": "model"}, {"type": "model", "model": "second_reward_model", "weight": 0}]


def artifact(name: str, kind: str) -> Artifact:
    return Artifact(uri=f"file:///store/{name}", kind=kind, digest=f"digest of {name}")


DATA, MODEL = artifact("data", "data"), artifact("model", "model")
SCORING = {
    "reward_model": artifact("first", "reward_model"),
    "second_reward_model": artifact("second", "reward_adapter"),
    "certificate": artifact("certificate", "certificate"),
}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the last stage was run with."""
    kept: dict[str, Any] = {}

    def run(stage: Stage, config: Any, makes: str, place: Workplace, inputs: Any, shown_as: str | None = None) -> None:
        check_inputs(stage, {name: one for name, one in inputs.items() if one is not None})
        kept.update(stage=stage, inputs=inputs, shown_as=shown_as)

    monkeypatch.setattr(stages, "_run", run)
    return kept


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(store_at(f"file://{tmp_path}/store"), tmp_path, tmp_path)


def test_ppo_is_given_the_certificate_and_the_second_reward_model_only_where_a_reward_names_it(
    given: dict[str, Any], place: Workplace
) -> None:
    stages.ppo.__wrapped__(PPOConfig(), DATA, MODEL, SCORING, place)
    assert given["inputs"].keys() == {"data", "policy", "reward_model", "certificate"}
    config = PPOConfig.model_validate({"rewards": REWARDS})
    stages.ppo.__wrapped__(config, DATA, MODEL, SCORING, place)
    assert given["inputs"] == {"data": DATA, "policy": MODEL, **SCORING}


def test_the_second_reward_model_is_of_the_same_stage_and_shown_by_its_own_name(
    given: dict[str, Any], place: Workplace
) -> None:
    stages.second_reward_model.__wrapped__(RewardModelConfig(), DATA, MODEL, place)
    assert given["stage"] is stages.TRAIN_REWARD_MODEL
    assert given["shown_as"] == "second_reward_model"
