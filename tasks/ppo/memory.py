"""What a run will take of the memory, told before the models are loaded."""

from pathlib import Path

from tasks.errors import InputError
from tasks.memory import free_bytes, gib, num_activations, num_cached, num_lora_weights, num_weights, weight_shapes
from tasks.model_files import CONFIG, kind_of, read_json
from tasks.ppo.config import PPOConfig
from tasks.processes import Processes

FLOAT32 = 4
ADAM_BYTES = 3 * FLOAT32  # the gradient and Adam's two moments, beside the parameter itself
CACHE_COPIES = 2  # each new token copies a layer's keys and values


def check_memory(config: PPOConfig, policy: Path, reward: Path | None, longest: int, processes: Processes) -> None:
    """Print what each process will take; raises InputError if that is more than is free."""
    plan = memory_plan(config, policy, reward, longest)
    needed, free = sum(plan.values()), free_bytes(processes.device)
    if processes.device.type == "cpu":
        free //= processes.count_here
    parts = ", ".join(f"{name} {gib(size)}" for name, size in plan.items())
    print(f"memory per process: {parts}; together {gib(needed)} of {gib(free)} free", flush=True)
    if needed > free:
        remedy = {
            "models": "Set models shared, dtype bfloat16, or take a smaller model.",
            "gradients and optimizer": "Set models shared, or lower lora.r.",
            "activations": f"Lower micro_batch_tokens (now {config.micro_batch_tokens}).",
            "KV cache": f"Lower rollout_batch_size (now {config.rollout_batch_size}).",
        }[max(plan, key=lambda name: plan[name])]
        raise InputError(f"PPO needs {gib(needed)} per process and {gib(free)} is free: {parts}. {remedy}")


def memory_plan(config: PPOConfig, policy: Path, reward: Path | None, longest: int) -> dict[str, int]:
    """Bytes per process by use; `longest` is the most tokens of a prompt with its response."""
    shapes, model = weight_shapes(policy), read_json(policy / CONFIG)
    num_policy = num_weights(shapes)
    is_adapter = reward is not None and kind_of(reward) == "reward_adapter"
    num_reward = num_policy if is_adapter else num_weights(weight_shapes(reward)) if reward is not None else 0
    if config.models == "separate":
        frozen, trained = num_policy + num_reward, num_policy + (num_reward or num_policy)
    else:
        num_adapter = num_lora_weights(shapes, config.lora.r, model["vocab_size"])
        frozen, trained = num_policy + (0 if is_adapter else num_reward), 2 * num_adapter
    width = FLOAT32 if config.dtype == "float32" else FLOAT32 // 2
    num_tokens = min(max(config.micro_batch_tokens, longest), config.batch_size * longest)
    num_predicted = num_tokens * config.sampling.response_length // longest
    num_rows = min(config.rollout_batch_size, config.batch_size)
    return {
        "models": frozen * width + trained * FLOAT32,
        "gradients and optimizer": trained * ADAM_BYTES,
        "activations": FLOAT32 * num_activations(model, num_tokens, num_predicted),
        "KV cache": CACHE_COPIES * width * num_cached(model, num_rows * longest),
    }
