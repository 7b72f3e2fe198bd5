"""What PPO's models and phases take of the memory, told before the models are loaded."""

from collections.abc import Mapping
from pathlib import Path

from tasks.actor_critic.memory import footprints, policy_of
from tasks.memory import free_bytes, memory_plan, require_memory
from tasks.ppo.config import PPOConfig
from tasks.processes import Processes


def check_memory(
    config: PPOConfig, inputs: Mapping[str, Path], longest: int, token_budget: int, processes: Processes
) -> None:
    """Print what each process will take; raises InputError if that is more than is free.

    `longest` is the most tokens of a prompt with its response, `token_budget` of one forward.
    """
    policy = policy_of(config, inputs)
    num_tokens = min(max(token_budget, longest), config.batch_size * longest)
    response_length, num_rows = config.sampling.response_length, min(config.rollout_batch_size, config.batch_size)
    num_rows = num_rows if config.rollout_engine == "hf" else 0  # a server has a cache of its own
    activations = policy.activation_bytes(num_tokens, num_tokens * response_length // longest, processes.device)
    plan = memory_plan(
        footprints(config, inputs, config.rewards),
        activations + policy.state_bytes(config.batch_size * longest),
        policy.cache_bytes(num_rows * longest, num_rows * (longest - response_length)),
    )
    remedies = {
        "weights": "Set tuning lora or qlora, dtype bfloat16, or take a smaller model.",
        "gradients and optimizer": "Set tuning lora, or lower lora.r or trainable_layers.",
        "activations": f"Lower micro_batch_tokens (now {token_budget}), or set gradient_checkpointing.",
        "KV cache": f"Lower rollout_batch_size (now {config.rollout_batch_size}).",
    }
    require_memory(plan, free_bytes(processes.device, processes.count_here), remedies)
