"""What our uses of TRL's trainers share: their arguments, metrics.jsonl, resuming, and silence."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tasks.modeling import backbone
from tasks.tracking import MetricsLog, plot_curves, read_metrics
from tasks.trainer_config import TrainerConfig
from tasks.trainer_state import PickleFreeTrainer
from tasks.weight_averaging import WeightAveraging

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


class LocalTrainer(PickleFreeTrainer):
    """Mixed in before a TRL trainer: nothing leaves the machine, no cards, and an evaluation that we define."""

    control: TrainerControl

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

    `average_from` is the share of the steps after which the weights are averaged; None = the last weights stay.
    """
    checkpoint = last_checkpoint(output)
    if checkpoint is not None:
        print(f"resuming from {checkpoint}", flush=True)
    step = checkpoint_step(checkpoint) if checkpoint else 0
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(MetricsCallback(output, resume_step=step))
    if average_from is not None:
        trainer.add_callback(WeightAveraging(average_from, output / CHECKPOINTS, resume_step=step))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if average_from is not None:
        trainer.evaluate()


def last_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint in OUTPUT/checkpoints: its trainer_state.json is what the trainer writes last."""
    whole = [path.parent for path in (output / CHECKPOINTS).glob(f"checkpoint-*/{_TRAINER_STATE}")]
    return max(whole, key=checkpoint_step, default=None)


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
