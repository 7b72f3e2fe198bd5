"""Learn the task with our PPO, in one of its modes.

python -m tests.benchmarks.our_learner --task DIR --mode full --learning-rate 1e-4 --seed 0 --output course.json
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tasks.models.modeling import quiet_libraries
from tasks.ppo.config import PPOConfig
from tasks.ppo.setup import set_up
from tasks.ppo.train import iterate, make_optimizer, resume
from tests.benchmarks.held_out import RESPONSE_LENGTH, Course

BATCH_SIZE, TOTAL_EPISODES = 32, 1280
LORA = {"tuning": "lora", "lora": {"r": 16, "alpha": 32}}
MODES: dict[str, dict[str, Any]] = {
    "full": {"tuning": "full"},
    "lora": LORA,
    "lora, value head": {**LORA, "value_model": "head"},
    "lora, upper 2 of 4 layers": {**LORA, "trainable_layers": 2},
    "lora, upper 2 of 4 layers, 1,920 episodes": {**LORA, "trainable_layers": 2, "total_episodes": 1920},
    "lora, upper 1 of 4 layers": {**LORA, "trainable_layers": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn the task with our PPO.")
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    quiet_libraries()
    inputs = {name: arguments.task / name for name in ("data", "policy", "reward_model")}
    with tempfile.TemporaryDirectory() as folder:
        run, prompts = set_up(make_config(arguments), inputs, Path(folder))
        optimizer = make_optimizer(run)
        progress = resume(run, optimizer, Path(folder))
        course = Course(arguments.task, run.models.policy, run.models.reference, BATCH_SIZE)
        for _ in range(run.config.num_iterations):
            _, progress = iterate(run, optimizer, prompts, progress)
            course.iteration_ended()
    course.write(arguments.output, vars(arguments))


def make_config(arguments: argparse.Namespace) -> PPOConfig:
    """The demo's options; one learning rate for policy and value model, as TRL has it."""
    options = {
        "total_episodes": TOTAL_EPISODES,
        "batch_size": BATCH_SIZE,
        "kl_coef": 0.1,
        "missing_eos_penalty": 1.0,
        "learning_rate": arguments.learning_rate,
        "value_learning_rate": arguments.learning_rate,
        "sampling": {"response_length": RESPONSE_LENGTH},
        "seed": arguments.seed,
    }
    return PPOConfig.model_validate(options | MODES[arguments.mode])


if __name__ == "__main__":
    main()
