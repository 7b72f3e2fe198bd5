from typing import Any

import pytest
import torch

from tasks.actor_critic.config import ActorCriticConfig
from tasks.actor_critic.loading import load_models
from tasks.actor_critic.memory import footprints
from tasks.models.modeling import load_reward_model
from tasks.rewards.config import FunctionReward, ModelReward
from tests.tasks.ppo.tiny import VOCABULARY_SIZE

HIDDEN = 32
CASES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "lora": ("reward_adapter", {}),
    "lora-head": (None, {"value_model": "head"}),
    "lora-separate": ("reward_model", {"value_model": "separate", "dtype": "bfloat16"}),
    "lora-last": ("reward_model", {"trainable_layers": 1}),
    "lora-averaged": ("reward_adapter", {"reference_decay": 0.5}),
    "dora": (None, {"lora": {"r": 4, "use_dora": True}}),
    "full": ("reward_model", {"tuning": "full"}),
    "full-bfloat16": ("reward_adapter", {"tuning": "full", "dtype": "bfloat16"}),
    "full-head": (None, {"tuning": "full", "value_model": "head"}),
    "full-averaged": (None, {"tuning": "full", "reference_decay": 0.5}),
    "freeze": ("reward_model", {"tuning": "freeze", "trainable_layers": 1}),
    "freeze-other-reference": (None, {"tuning": "freeze", "trainable_layers": 1, "reference_model": "x"}),
}


@pytest.mark.parametrize(("reward", "options"), CASES.values(), ids=CASES)
def test_the_footprints_are_those_of_the_models_as_loaded(world, reward, options) -> None:
    config = ActorCriticConfig.model_validate({"lora": {"r": 4}} | options)
    inputs = {"policy": world["policy"]} | ({"reward_model": world[reward]} if reward else {})
    inputs |= {"reference": world["policy"]} if config.reference_model else {}
    rewards = [ModelReward() if reward else FunctionReward(function="gsm8k_reward_fn")]
    planned = list(footprints(config, inputs, rewards))

    models = load_models(config, inputs, torch.device("cpu"), seed=0)
    modules = [models.language_model, models.reference_model, models.value_model, models.reward_model]
    if reward is not None and models.reward_model is None:
        modules.append(load_reward_model(world[reward], world["policy"], config.dtype))
    held = {id(tensor): tensor for module in modules if module is not None for tensor in module.parameters()}
    num_bytes = sum(tensor.nbytes for tensor in [*held.values(), *models.averages.values()])
    trained = [parameter for part in models.trainable.values() for parameter in part.values()]
    training_bytes = sum(tensor.numel() * (12 if tensor.dtype == torch.float32 else 16) for tensor in trained)

    # Scalar heads are not counted; the language-model heads of value and reward models are, and are not kept.
    weight_surplus = sum(footprint.weight_bytes for footprint in planned) - num_bytes
    training_surplus = sum(footprint.training_bytes for footprint in planned) - training_bytes
    assert -2 * 4 * HIDDEN <= weight_surplus <= 2 * 4 * HIDDEN * VOCABULARY_SIZE
    assert -12 * HIDDEN <= training_surplus <= 16 * HIDDEN * VOCABULARY_SIZE
