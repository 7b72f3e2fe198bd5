"""Which roles read the states of frozen lower layers. ppo/test_update.py holds that the numbers are those without."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tasks.actor_critic.config import ActorCriticConfig
from tasks.actor_critic.loading import load_models
from tasks.actor_critic.models import POLICY, REFERENCE, REWARD, VALUE, Models
from tasks.episodes import join, scores_of
from tasks.models.modeling import load_reward_model, save_model
from tasks.models.trunk import UpperLayers
from tests.tasks.ppo.tiny import make_model, make_tokenizer, write_reward_adapter

LAST = {"trainable_layers": 1, "lora": {"r": 4}}
FREEZE = {"tuning": "freeze", "trainable_layers": 1}


def load(inputs, **options: Any) -> Models:
    return load_models(ActorCriticConfig.model_validate(options), inputs, torch.device("cpu"), seed=0)


def readers_of_states(models: Models) -> set[str]:
    return {role for role, trunk in models.trunks.by_role.items() if isinstance(trunk, UpperLayers)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"lora": {"r": 4}}, set()),
        ({"tuning": "full"}, set()),
        ({"trainable_layers": 2, "lora": {"r": 4}}, set()),
        (LAST, {POLICY, VALUE, REFERENCE}),
        ({**LAST, "value_model": "head"}, {POLICY, VALUE, REFERENCE}),
        ({**LAST, "value_model": "separate", "value_init": "base"}, {POLICY, VALUE, REFERENCE}),
        ({**LAST, "reference_decay": 0.5}, {POLICY, VALUE, REFERENCE}),
        ({**FREEZE, "value_init": "base"}, {POLICY, VALUE, REFERENCE}),
        (FREEZE, {POLICY, REFERENCE}),  # the value model starts as the reward model, whose lower layers are others
        ({**FREEZE, "reference_decay": 0.5, "value_model": "head"}, {POLICY, VALUE, REFERENCE}),
    ],
)
def test_states_are_read_in_the_roles_that_share_the_lower_layers(world, options, expected) -> None:
    models = load({"policy": world["policy"], "reward_model": world["reward_model"]}, **options)
    assert readers_of_states(models) == expected
    assert (models.trunks.lower is None) == (not expected)


def test_a_reference_of_its_own_is_run_whole(world, tmp_path) -> None:
    save_model(tmp_path, make_model(seed=5), make_tokenizer())
    models = load({"policy": world["policy"], "reference": tmp_path}, **LAST)
    assert readers_of_states(models) == {POLICY, VALUE}


@pytest.mark.parametrize(("layers", "shares"), [(None, False), (1, True)])
def test_a_reward_adapter_takes_part_if_it_stands_in_the_upper_layers_only(world, tmp_path, layers, shares) -> None:
    folder = write_reward_adapter(tmp_path / "adapter", layers)
    models = load({"policy": world["policy"], "reward_model": folder}, **LAST)
    assert (REWARD in readers_of_states(models)) == shares
    responses = torch.tensor([[3, 9, 1], [4, 1, 0]])
    episodes = models.with_states(join([[5, 6], [7, 8, 9]], responses, responses != 0), 100)
    merged = load_reward_model(folder, world["policy"])
    with torch.no_grad():
        assert_close(scores_of(models.reward(), episodes), scores_of(merged, episodes), rtol=1e-4, atol=1e-5)
