"""What our uses of TRL's trainers share: their arguments, metrics.jsonl, resuming, and silence."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices

from tasks.generation import seeded_generator
from tasks.models.modeling import backbone
from tasks.models.weight_averaging import WeightAveraging
from tasks.program import STOPPED, sigterm_noted
from tasks.tracking import MetricsLog, plot_curves, read_metrics
from tasks.trainer_config import TrainerConfig
from tasks.trainer_state import PickleFreeTrainer

CHECKPOINTS = "checkpoints"
CURVES = "curves.png"
LOG_STEPS = 10
LOG_SECONDS = 5.0
EVAL_BATCH_FACTOR = 4
_TRAINER_STATE = "trainer_state.json"
_NAMES = {"grad_norm": "grad_norm", "learning_rate": "learning_rate", "loss": "train_loss"}


def training_options(config: TrainerConfig, output: Path) -> dict[str, Any]:
    """Arguments for TRL's configs: `config` in Hugging Face's words, nothing sent anywhere, checkpoints in OUTPUT."""
    return {
        "output_dir": str(output / CHECKPOINTS),
        "seed": config.seed,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_schedule,
        "warmup_steps": config.warmup_ratio,
        "num_train_epochs": config.num_epochs,
        "max_steps": config.max_steps or -1,
        "per_device_train_batch_size": config.per_device_batch_size,
        "per_device_eval_batch_size": EVAL_BATCH_FACTOR * config.per_device_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "bf16": config.dtype == "bfloat16",
        "activation_checkpointing": config.gradient_checkpointing,
        "optim": "adamw_torch_fused",
        "eval_strategy": "steps",
        "eval_steps": config.eval_steps,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": 1,
        "logging_steps": LOG_STEPS,
        "max_length": None,
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
        "train_sampling_strategy": "group_by_length",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
    }


class EpochSampler(LengthGroupedSampler):
    """Records of like lengths together, in an order that is a function of the seed and the epoch alone."""

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int, epoch: Callable[[], int]) -> None:
        super().__init__(batch_size, lengths=list(lengths))
        self.seed, self.epoch = seed, epoch

    def __iter__(self) -> Iterator[int]:
        generator = seeded_generator("records", self.seed, self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class LocalTrainer(PickleFreeTrainer):
    """Mixed in before a TRL trainer: nothing leaves the machine, no cards, and an evaluation that we define."""

    control: TrainerControl

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        """Of each epoch an order that is its own: the trainer's would be another after a resume."""
        lengths = (self.train_dataset if train_dataset is None else train_dataset)["length"]
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return EpochSampler(size, lengths, self.args.seed, lambda: int(self.state.epoch or 0))

    def _init_training_state(self, max_steps: int, steps_per_epoch: int, num_epochs: int, *rest: Any) -> Any:
        """The epochs and batches that are done: all epochs after the last step, where the trainer would do another."""
        done = super()._init_training_state(max_steps, steps_per_epoch, num_epochs, *rest)
        return (num_epochs, 0) if self.state.global_step >= max_steps else done

    def each_eval_batch(self, measure: Callable[[nn.Module, Any], Tensor]) -> Iterator[Tensor]:
        """measure(model, batch) [rows, ...] for each batch of held-out records, gathered from all processes."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        for batch in self.get_eval_dataloader():
            with torch.no_grad(), self.compute_loss_context_manager():
                measured = measure(model, self._prepare_inputs(batch))
            yield self.accelerator.gather_for_metrics(measured)
        model.train(was_training)

    def log_evaluation(self, metrics: dict[str, float]) -> dict[str, float]:
        """`metrics`, after they were logged under their own names."""
        self.model.eval()
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card is written beside a checkpoint."""

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""


class MetricsCallback(TrainerCallback):
    """Writes what the trainer logs to OUTPUT/metrics.jsonl, every few steps and at least every few seconds."""

    def __init__(self, output: Path, resume_step: int) -> None:
        self.output = output
        self.resume_step = resume_step
        self.log: MetricsLog | None = None
        self.logged_at = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.log = MetricsLog(self.output, self.resume_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if time.monotonic() - self.logged_at >= LOG_SECONDS or state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.logged_at = time.monotonic()
        metrics = {} if logs is None or "train_runtime" in logs else _chosen_metrics(logs)
        if self.log is None or not metrics:
            return
        self.log.write(state.global_step, state.max_steps, metrics)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(f"step {state.global_step}/{state.max_steps}  {shown}", flush=True)


class StopOnSigterm(TrainerCallback):
    """Ends the training after the step in which SIGTERM came to any process, with a checkpoint."""

    def __init__(self, sigterm: threading.Event) -> None:
        self.sigterm = sigterm
        self.has_stopped = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        asked = torch.tensor(float(self.sigterm.is_set()), device=args.device)
        if args.world_size > 1:
            distributed.all_reduce(asked)
        if asked:
            self.has_stopped = control.should_save = control.should_training_stop = True


def add_dropout(model: PreTrainedModel, share: float) -> None:
    """Drop a share of the embeddings [B, T, D] and of the last hidden states [B, T, D] while `model` is in training.

    Hooks: today's architectures have dropout in their attention only, and TRL switches that of reward models off.
    """

    def drop(module: nn.Module, _: Any, hidden: Tensor) -> Tensor:
        return nn.functional.dropout(hidden, share, module.training)

    def drop_last(module: nn.Module, inputs: Any, output: Any) -> Any:
        output.last_hidden_state = drop(module, inputs, output.last_hidden_state)
        return output

    if share:
        model.get_input_embeddings().register_forward_hook(drop)
        backbone(model).register_forward_hook(drop_last)


def run_training(trainer: Any, output: Path, average_from: float | None = None) -> None:
    """Train to the end, from OUTPUT's last whole checkpoint if there is one; metrics go to OUTPUT/metrics.jsonl.

    On SIGTERM the step under way comes to its end and is kept in a checkpoint, and the process exits.

    `average_from` is the share of the steps after which the weights are averaged; None = the last weights stay.
    """
    checkpoint = last_checkpoint(output)
    if checkpoint is not None:
        print(f"resuming from {checkpoint}", flush=True)
    step = checkpoint_step(checkpoint) if checkpoint else 0
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(MetricsCallback(output, resume_step=step))
    with sigterm_noted() as sigterm:
        stop = StopOnSigterm(sigterm)
        trainer.add_callback(stop)  # before the averages, which are written with a checkpoint that it asks for
        if average_from is not None:
            trainer.add_callback(WeightAveraging(average_from, output / CHECKPOINTS, resume_step=step))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.has_stopped:
        trainer.accelerator.end_training()
        sys.exit(STOPPED)
    if average_from is not None:
        trainer.evaluate()


def last_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint in OUTPUT/checkpoints: its trainer_state.json is what the trainer writes last."""
    whole = [path.parent for path in (output / CHECKPOINTS).glob(f"checkpoint-*/{_TRAINER_STATE}") if _is_json(path)]
    return max(whole, key=checkpoint_step, default=None)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def checkpoint_step(checkpoint: Path) -> int:
    """The optimizer steps done at `checkpoint`."""
    return int(checkpoint.name.rpartition("-")[2])


def last_logged(trainer: Any, name: str) -> float:
    """The newest value of a metric, also where a resumed run had nothing left to do."""
    return next(float(record[name]) for record in reversed(trainer.state.log_history) if name in record)


def unwrapped(model: Any) -> Any:
    """The model inside a wrapper for several processes."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def save_curves(output: Path, names: Sequence[str]) -> None:
    """Draw the named metrics of OUTPUT/metrics.jsonl."""
    plot_curves(read_metrics(output), names, output / CURVES)


def _chosen_metrics(logs: Mapping[str, Any]) -> dict[str, float]:
    """The numbers worth keeping: no run times, no counts, `loss` under the name train_loss."""
    named = {_NAMES.get(name, name): value for name, value in logs.items() if isinstance(value, int | float)}
    dropped = ("epoch", "num_tokens", "total_flos", "runtime", "per_second", "min_reward", "max_reward")
    return {name: float(value) for name, value in named.items() if not name.endswith(dropped)}
