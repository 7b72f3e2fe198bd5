"""Time iterations of our PPO, holding the models in one of three ways.

- separate: policy and value model are trained whole; the reward model is a whole model too. TRL's only way.
- shared: LoRA on one frozen base for policy and reward model, the value model a head on the policy's hidden states.
- cached: as shared, with adapters in the last quarter of the layers only; the states below are computed once.

python -m tests.benchmarks.our_worker --inputs DIR --mode shared --iterations 4 --output timings.json
    [--micro-batch-tokens 8192]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tasks import tracking
from tasks.models.modeling import quiet_libraries
from tasks.ppo.config import PPOConfig
from tasks.ppo.setup import set_up
from tasks.ppo.train import iterate, make_optimizer, resume
from tests.benchmarks.stopwatch import Stopwatch
from tests.benchmarks.workloads import LEARNING_RATE, LORA_RANK, MODES, TEMPERATURE, Workload, read_workload


def main() -> None:
    parser = argparse.ArgumentParser(description="Time our PPO.")
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--iterations", type=int, default=3, help="after one to warm up")
    parser.add_argument("--precision", default="highest", help="of torch.set_float32_matmul_precision")
    parser.add_argument("--micro-batch-tokens", type=int, help="default: what our PPO chooses for the device")
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_float32_matmul_precision(arguments.precision)
    with tempfile.TemporaryDirectory() as folder:
        stopwatch = time_iterations(arguments, Path(folder))
    if os.environ.get("RANK", "0") == "0":  # under accelerate launch the first process speaks for all
        stopwatch.write(arguments.output, vars(arguments))


def time_iterations(arguments: argparse.Namespace, output: Path) -> Stopwatch:
    """What each iteration took; phases in CPU seconds."""
    workload = read_workload(arguments.inputs)
    config = make_config(workload, arguments)
    run, prompts = set_up(config, input_folders(arguments.inputs, arguments.mode), output)
    optimizer = make_optimizer(run)
    progress = resume(run, optimizer, output)
    tracking._now = time.process_time
    stopwatch = Stopwatch()
    for _ in range(arguments.iterations + 1):
        metrics, progress = iterate(run, optimizer, prompts, progress)
        for phase in ("rollout", "score", "measure", "update"):
            stopwatch.phases[phase] = metrics[f"{phase}_s"]
        stopwatch.count(round(metrics["response_length"] * workload.batch_size), workload.batch_size)
        stopwatch.lap()
    return stopwatch


def make_config(workload: Workload, arguments: argparse.Namespace) -> PPOConfig:
    """The workload in our words."""
    options: dict[str, Any] = {
        "total_episodes": workload.batch_size * 1000,
        "batch_size": workload.batch_size,
        "num_ppo_epochs": workload.num_ppo_epochs,
        "num_mini_batches": workload.num_mini_batches,
        "sampling": {"response_length": workload.response_length, "temperature": TEMPERATURE},
        "learning_rate": LEARNING_RATE,
        "value_learning_rate": LEARNING_RATE,
        "micro_batch_tokens": arguments.micro_batch_tokens,
        "rewards": [{"type": "model"}],
        "tuning": "full",
    }
    if arguments.mode != "separate":
        options |= {"tuning": "lora", "value_model": "head", "lora": {"r": LORA_RANK}}
    if arguments.mode == "cached":
        options["trainable_layers"] = workload.trainable_layers
    return PPOConfig.model_validate(options)


def input_folders(folder: Path, mode: str) -> Mapping[str, Path]:
    """What the mode reads: whole models, or a base with a LoRA reward model."""
    inputs = {"policy": folder / "policy", "data": folder / "data"}
    if mode == "separate":
        return inputs | {"start_value": folder / "value", "reward_model": folder / "reward_model"}
    return inputs | {"reward_model": folder / ("reward_adapter_upper" if mode == "cached" else "reward_adapter")}


if __name__ == "__main__":
    main()
