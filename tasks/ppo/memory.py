"""What PPO's models and phases take of the memory, told before the models are loaded."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from tasks.actor_critic.loading import value_start
from tasks.memory import ModelFootprint, TunedModel, free_bytes, frozen, memory_plan, require_memory
from tasks.model_files import kind_of
from tasks.ppo.config import PPOConfig
from tasks.processes import Processes
from tasks.rewards.config import OWN_MODEL, ModelReward


def check_memory(config: PPOConfig, inputs: Mapping[str, Path], longest: int, processes: Processes) -> None:
    """Print what each process will take; raises InputError if that is more than is free.

    `longest` is the most tokens of a prompt with its response.
    """
    policy = TunedModel(
        inputs["policy"],
        config.dtype,
        config.tuning,
        config.lora,
        config.trainable_layers,
        config.gradient_checkpointing,
    )
    num_tokens = min(max(config.micro_batch_tokens, longest), config.batch_size * longest)
    response_length, num_rows = config.sampling.response_length, min(config.rollout_batch_size, config.batch_size)
    plan = memory_plan(
        footprints(config, inputs, policy),
        policy.activation_bytes(num_tokens, num_tokens * response_length // longest, processes.device),
        policy.cache_bytes(num_rows * longest, num_rows * (longest - response_length)),
    )
    remedies = {
        "weights": "Set tuning lora or qlora, dtype bfloat16, or take a smaller model.",
        "gradients and optimizer": "Set tuning lora, or lower lora.r or trainable_layers.",
        "activations": f"Lower micro_batch_tokens (now {config.micro_batch_tokens}), or set gradient_checkpointing.",
        "KV cache": f"Lower rollout_batch_size (now {config.rollout_batch_size}).",
    }
    require_memory(plan, free_bytes(processes.device, processes.count_here), remedies)


def footprints(config: PPOConfig, inputs: Mapping[str, Path], policy: TunedModel) -> Iterator[ModelFootprint]:
    """Of policy, value model, reference and reward models, in that order."""
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
    for reward in config.rewards:
        if isinstance(reward, ModelReward):
            yield _reward_footprint(config, inputs, reward.input_name)


def _reward_footprint(config: PPOConfig, inputs: Mapping[str, Path], name: str) -> ModelFootprint:
    if kind_of(inputs[name]) == "reward_model":
        return frozen(inputs[name], config.dtype)
    if config.has_adapters and name == OWN_MODEL:
        return frozen(inputs[name], "float32")  # an adapter on the policy's base
    return frozen(inputs["policy"], config.dtype)  # merged into a base of its own
