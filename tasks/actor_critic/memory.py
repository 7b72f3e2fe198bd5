"""What policy, value model, reference and reward models take of the memory, told from their files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tasks.actor_critic.config import ActorCriticConfig
from tasks.actor_critic.loading import value_start
from tasks.memory import ModelFootprint, TunedModel, frozen
from tasks.models.model_files import kind_of
from tasks.rewards.config import OWN_MODEL, ModelReward, RewardConfig


def policy_of(config: ActorCriticConfig, inputs: Mapping[str, Path]) -> TunedModel:
    """The policy as it is tuned."""
    return TunedModel(
        inputs["policy"],
        config.dtype,
        config.tuning,
        config.lora,
        config.trainable_layers,
        config.gradient_checkpointing,
    )


def footprints(
    config: ActorCriticConfig, inputs: Mapping[str, Path], rewards: Sequence[RewardConfig]
) -> Iterator[ModelFootprint]:
    """Of policy, value model, reference and reward models, in that order."""
    policy = policy_of(config, inputs)
    base = policy.base()
    trained = policy.adapter() if config.has_adapters else base
    yield base
    if config.has_adapters:
        yield trained
    if config.value_kind == "adapter":
        yield trained
    if config.value_kind == "separate":
        start = value_start(config, inputs)
        yield base if start is None or kind_of(start) != "reward_model" else replace(policy, folder=start).base()
        if config.has_adapters:
            yield trained
    if "reference" in inputs:
        yield frozen(inputs["reference"], config.dtype)
    elif not config.has_adapters:
        num_copied = base.num_weights if "start_policy" in inputs else base.num_trained
        yield replace(base, num_weights=num_copied, num_trained=0)
    if config.reference_decay < 1:
        yield ModelFootprint(trained.num_trained)  # the average, in float32
        if config.has_adapters:
            yield policy.adapter(trained=False)  # the reference's own
    for reward in rewards:
        if isinstance(reward, ModelReward):
            yield _reward_footprint(config, inputs, reward.input_name)


def _reward_footprint(config: ActorCriticConfig, inputs: Mapping[str, Path], name: str) -> ModelFootprint:
    if kind_of(inputs[name]) == "reward_model":
        return frozen(inputs[name], config.dtype)
    if config.has_adapters and name == OWN_MODEL:
        return frozen(inputs[name], "float32")  # an adapter on the policy's base
    return frozen(inputs["policy"], config.dtype)  # merged into a base of its own
