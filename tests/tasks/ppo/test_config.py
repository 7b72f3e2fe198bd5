import pytest
from pydantic import ValidationError

from tasks.ppo.config import PPOConfig


def test_the_number_of_iterations_is_rounded_up_and_gives_the_steps_of_each() -> None:
    config = PPOConfig(total_episodes=65, batch_size=32, num_mini_batches=4, num_ppo_epochs=3)
    assert config.num_iterations == 3
    assert config.steps_per_iteration == 3 * 4


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, "adapter"),
        ({"tuning": "qlora"}, "adapter"),
        ({"tuning": "full"}, "separate"),
        ({"tuning": "freeze", "trainable_layers": 2}, "separate"),
        ({"value_model": "head"}, "head"),
        ({"tuning": "full", "value_model": "head"}, "head"),
    ],
)
def test_the_value_model_takes_the_form_that_the_tuning_suggests(options, kind) -> None:
    assert PPOConfig.model_validate(options).value_kind == kind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 96, "num_mini_batches": 7}, "batch_size 96 is not divisible by num_mini_batches 7"),
        ({"tuning": "freeze"}, "freeze needs the number of layers to train"),
        ({"tuning": "full", "trainable_layers": 1}, "full trains all"),
        ({"tuning": "full", "value_model": "adapter"}, "value_model adapter needs tuning lora or qlora, not full"),
        ({"tuning": "qlora", "value_model": "separate"}, "value_model separate is not offered with qlora"),
        ({"start_value": "x", "value_init": "base"}, "Both start_value and value_init"),
        ({"reference_model": "x", "reference_decay": 0.9}, "reference_decay averages the policy"),
        ({"missing_eos_penalty": 1, "missing_eos_score": -1}, "Both missing_eos_penalty"),
        ({"kl_in": "loss"}, "kl_in loss needs kl_estimator k2 or k3"),
        ({"cliprange_high": 0.1}, "cliprange_high 0.1 is below cliprange 0.2"),
        ({"value_pretraining_iterations": 2, "total_episodes": 128, "batch_size": 64}, "leaves none of the 2 iter"),
        ({"dual_clip": 1.0}, "dual_clip"),
        ({"ptx_coef": 1.0}, "ptx_coef"),
        ({"rewards": []}, "rewards"),
        ({"rewards": [{"type": "model"}, {"type": "model"}]}, "two rewards are named model"),
        ({"lora": {"dropout": 0.1}}, "lora.dropout 0.1"),
        ({"sampling": {"min_new_tokens": 9, "response_length": 8}}, "sampling.min_new_tokens 9"),
        ({"kl_coeff": 0.1}, "kl_coeff"),
        ({"cliprange": 0}, "cliprange"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message) -> None:
    with pytest.raises(ValidationError, match=message):
        PPOConfig.model_validate(options)


def test_what_must_be_fetched_is_listed_by_input() -> None:
    rewards = [
        {"type": "model"},
        {"type": "model", "model": "org/helpful@v2", "name": "helpful"},
        {"type": "model", "model": "second_reward_model", "weight": 0},
    ]
    config = PPOConfig.model_validate({"rewards": rewards, "start_policy": "/a", "reference_model": "org/b"})
    assert config.sources() == {"start_policy": "/a", "reference": "org/b", "reward_helpful": "org/helpful@v2"}
    assert config.uses_reward_model
    assert not PPOConfig.model_validate({"rewards": rewards[1:]}).uses_reward_model


def test_every_option_is_described_and_titled_by_its_name() -> None:
    properties = PPOConfig.model_json_schema()["properties"]
    assert len(properties) > 60
    assert [name for name, field in properties.items() if not field.get("description")] == []
    assert [name for name, field in properties.items() if field["title"] != name] == []


def test_less_memory_means_half_the_tokens_and_half_the_responses_at_once() -> None:
    config = PPOConfig(micro_batch_tokens=300, rollout_batch_size=3, kl_coef=0.125)
    less = config.with_less_memory("cpu")
    assert less is not None
    assert (less.micro_batch_tokens, less.rollout_batch_size, less.kl_coef) == (150, 1, 0.125)
    assert PPOConfig(micro_batch_tokens=1, rollout_batch_size=1).with_less_memory("cpu") is None


def test_less_memory_than_the_default_is_half_of_it() -> None:
    halves = [PPOConfig().with_less_memory(device) for device in ("cpu", "cuda")]
    assert [half and half.micro_batch_tokens for half in halves] == [256, 4096]
