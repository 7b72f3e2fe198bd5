"""Time iterations of TRL 1.12.0's PPOTrainer; run by the Python of TRL's environment.

    python -m tests.benchmarks.trl_worker --inputs DIR --iterations 4 --output timings.json
        [--micro-batch 8] [--rollout-batch 64] [--gradient-checkpointing]

The trainer runs as it is; its dataloader gives the prompts in their order, and functions that it calls are wrapped to
look at the clock. `gradient_checkpointing` is TRL's default, but PPOTrainer.train never switches it on: here the option
does so by hand, as one who wanted it would.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from tests.benchmarks.stopwatch import Stopwatch
from tests.benchmarks.workloads import LEARNING_RATE, TEMPERATURE, Workload, read_prompts, read_workload


def main() -> None:
    parser = argparse.ArgumentParser(description="Time TRL's PPOTrainer.")
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=3, help="after one to warm up")
    parser.add_argument("--precision", default="highest", help="of torch.set_float32_matmul_precision")
    parser.add_argument("--micro-batch", type=int, default=8, help="per_device_train_batch_size")
    parser.add_argument("--rollout-batch", type=int, default=64, help="local_rollout_forward_batch_size")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_float32_matmul_precision(arguments.precision)
    trainer, stopwatch = make_trainer(arguments), Stopwatch()
    trainer.add_callback(EndOfIteration(stopwatch))
    with watched(stopwatch, trainer.processing_class.pad_token_id):
        trainer.train()
    stopwatch.write(arguments.output, vars(arguments))


def make_trainer(arguments: argparse.Namespace) -> PPOTrainer:
    """TRL's trainer with its own defaults but for what the workload and the arguments say."""
    workload, folder = read_workload(arguments.inputs), arguments.inputs
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    # One batch more than is trained on: on the last, every micro-batch would take an optimizer step.
    prompts = read_prompts(folder) * (arguments.iterations + 3)
    dataset = Dataset.from_dict({"input_ids": prompts})
    parts: dict[str, Any] = {
        name: AutoModelForCausalLM.from_pretrained(folder / "policy") for name in ("policy", "ref")
    }
    for name in ("reward_model", "value"):
        parts[name] = AutoModelForSequenceClassification.from_pretrained(folder / name, num_labels=1)
    if arguments.gradient_checkpointing:
        for name in ("policy", "value"):
            parts[name].gradient_checkpointing_enable()
    trainer = PPOTrainer(
        make_config(workload, arguments),
        tokenizer,
        parts["policy"],
        parts["ref"],
        parts["reward_model"],
        dataset,
        parts["value"],
        eval_dataset=dataset,
    )
    collate = DataCollatorWithPadding(tokenizer)
    in_order = DataLoader(dataset, batch_size=workload.batch_size, collate_fn=collate, drop_last=True)
    trainer.dataloader = trainer.accelerator.prepare(in_order)
    return trainer


def make_config(workload: Workload, arguments: argparse.Namespace) -> PPOConfig:
    """TRL's options."""
    return PPOConfig(
        output_dir=str(Path(tempfile.gettempdir()) / "trl-benchmark"),  # stays empty
        per_device_train_batch_size=arguments.micro_batch,
        gradient_accumulation_steps=workload.batch_size // arguments.micro_batch,
        local_rollout_forward_batch_size=arguments.rollout_batch,
        num_mini_batches=workload.num_mini_batches,
        num_ppo_epochs=workload.num_ppo_epochs,
        total_episodes=workload.batch_size * (arguments.iterations + 1),
        response_length=workload.response_length,
        temperature=TEMPERATURE,
        learning_rate=LEARNING_RATE,
        stop_token="eos",
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1000,
        num_sample_generations=0,
    )


class EndOfIteration(TrainerCallback):
    """Tells the stopwatch when an iteration is over."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.stopwatch.phase("update")
        self.stopwatch.lap()


@contextmanager
def watched(stopwatch: Stopwatch, pad: int) -> Iterator[None]:
    """While in the context, the stopwatch is told of the trainer's phases and tokens."""

    def after_truncation(responses: Tensor) -> None:
        stopwatch.count(int((responses != pad).sum()), len(responses))

    with (
        looked_at(ppo_trainer, "batch_generation", lambda _: stopwatch.phase("rollout")),
        looked_at(ppo_trainer, "truncate_response", after_truncation),
        looked_at(ppo_trainer, "masked_whiten", lambda _: stopwatch.phase("measure")),
    ):
        yield


def looked_at(owner: Any, name: str, look: Callable[[Any], None]) -> Any:
    """A patch under which `look` gets what `owner.name` returns."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        look(result)
        return result

    return patch.object(owner, name, wrapped)


if __name__ == "__main__":
    main()
