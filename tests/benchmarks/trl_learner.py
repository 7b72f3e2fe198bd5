"""Learn the task with TRL 1.12.0's PPOTrainer; run by the Python of TRL's environment.

python -m tests.benchmarks.trl_learner --task DIR --learning-rate 1e-4 --seed 0 --output course.json
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

from tests.benchmarks.held_out import RESPONSE_LENGTH, Course

BATCH_SIZE, TOTAL_EPISODES = 32, 1280
MICRO_BATCH = 8


class EndOfIteration(TrainerCallback):
    """Tells the course that an iteration is over."""

    def __init__(self, course: Course) -> None:
        self.course = course

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.course.iteration_ended()


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn the task with TRL's PPOTrainer.")
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.set_seed(arguments.seed)
    trainer = make_trainer(arguments)
    course = Course(arguments.task, lambda: trainer.model.policy, lambda: trainer.ref_model, BATCH_SIZE)
    trainer.add_callback(EndOfIteration(course))
    trainer.train()
    course.write(arguments.output, {**vars(arguments), "mode": "TRL 1.12.0"})


def make_trainer(arguments: argparse.Namespace) -> PPOTrainer:
    """TRL's trainer with the demo's options and its own defaults for the rest."""
    task = arguments.task
    tokenizer = AutoTokenizer.from_pretrained(task / "policy", padding_side="left")
    texts = {split: json.loads((task / f"prompts_{split}.json").read_text()) for split in ("train", "test")}
    datasets = {split: Dataset.from_dict({"input_ids": tokenizer(rows)["input_ids"]}) for split, rows in texts.items()}
    policy, reference = (AutoModelForCausalLM.from_pretrained(task / "policy") for _ in range(2))
    reward_model, value_model = (
        AutoModelForSequenceClassification.from_pretrained(task / "reward_model", num_labels=1) for _ in range(2)
    )
    options = PPOConfig(
        output_dir=str(Path(tempfile.gettempdir()) / "trl-learner"),  # stays empty
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=BATCH_SIZE // MICRO_BATCH,
        total_episodes=TOTAL_EPISODES,
        response_length=RESPONSE_LENGTH,
        temperature=1.0,
        kl_coef=0.1,
        missing_eos_penalty=1.0,
        learning_rate=arguments.learning_rate,
        stop_token="eos",
        seed=arguments.seed,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1000,
        num_sample_generations=0,
    )
    return PPOTrainer(
        options,
        tokenizer,
        policy,
        reference,
        reward_model,
        datasets["train"],
        value_model,
        eval_dataset=datasets["test"],
    )


if __name__ == "__main__":
    main()
