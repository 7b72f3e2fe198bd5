"""Supervised fine-tuning: prompt and completion in, a language model that continues prompts that way out.

Inputs: data (kind `data`, its sft split), model (kind `model`; none when from_scratch).
Output: kind `model`, or `adapter` with LoRA; report.json, metrics.jsonl, curves.png.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import SFTConfig as TRLConfig
from trl import SFTTrainer

from tasks.data import read_split
from tasks.errors import InputError
from tasks.examples import corpus_texts, encode_pair
from tasks.hf_trainer import (
    LocalTrainer,
    add_dropout,
    last_logged,
    run_training,
    save_curves,
    training_options,
    unwrapped,
)
from tasks.models.adapters import add_lora, save_adapter
from tasks.models.model_files import write_json
from tasks.models.modeling import load_causal_lm, load_tokenizer, quiet_libraries, save_model, torch_dtype
from tasks.program import require, run_program
from tasks.sft.config import SFTConfig
from tasks.sft.scratch import make_model, train_tokenizer
from tasks.templates import ConversationTemplate

IGNORED = -100
ADAPTER = "default"
CURVES = ("train_loss", "eval_loss", "learning_rate", "grad_norm")


@dataclass(frozen=True)
class Rows:
    """Tokenised records, and what did not fit: cut at max_length, or left out because no completion token remained."""

    dataset: Dataset  # columns input_ids, labels, length
    num_cut: int
    num_dropped: int


class CompletionTrainer(LocalTrainer, SFTTrainer):
    """TRL's SFTTrainer with a held-out loss that does not depend on the batches, and quick on a CPU.

    TRL's fused head is made for GPUs: on a CPU it doubles the time and the memory of a small model. There the
    model's own head runs, at the completions' tokens only, without the attention mask that right padding needs not.
    """

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Nats per completion token: the sum over this batch, divided by the tokens of the whole optimizer step."""
        if self.accelerator.device.type != "cpu" or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        losses = completion_losses(model, inputs["input_ids"], inputs["labels"])
        if num_items_in_batch is None:
            return losses.mean()
        # DDP averages the processes' gradients, while num_items_in_batch counts the tokens of all of them.
        scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return losses.sum() / num_items_in_batch * scale

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """{"eval_loss": nats per completion token of the held-out records}, logged and returned."""
        totals = torch.zeros(2, dtype=torch.float64)
        for per_row in self.each_eval_batch(_loss_and_tokens):
            totals += per_row.double().sum(dim=0).cpu()
        loss, num_tokens = totals.tolist()
        return self.log_evaluation({"eval_loss": loss / num_tokens})


def completion_losses(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood in nats of each labelled token, [number of labels], in the order of ids [B, T].

    The language-model head sees the positions before those tokens only: a hook hands them on, so that whatever the
    model does to its logits afterwards is still done.
    """
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    counts = targets != IGNORED
    head = unwrapped(model).get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, hidden: (hidden[0][counts],))
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    return nn.functional.cross_entropy(logits.float(), targets[counts], reduction="none")


def main(config: SFTConfig, inputs: Mapping[str, Path], output: Path) -> None:
    """Train, save and measure; see the module's docstring for the folders."""
    started = time.monotonic()
    quiet_libraries()
    require(inputs, "data")
    records = {split: read_split(inputs["data"], "sft", split) for split in ("train", "test")}
    model, tokenizer = _start(config, inputs, records["train"])
    template = config.conversation_template
    if template is not None:
        template.apply_to(tokenizer)
    train, test = (encode(tokenizer, records[side], config.max_length, template) for side in ("train", "test"))
    trainer = make_trainer(config, output, model, tokenizer, train.dataset, test.dataset)
    ready_s = time.monotonic() - started
    run_training(trainer, output, config.average_from)
    if trainer.is_world_process_zero():
        eval_loss = last_logged(trainer, "eval_loss")
        _save(config, output, trainer.accelerator.unwrap_model(trainer.model), tokenizer)
        save_curves(output, CURVES)
        report = {
            "eval_loss": eval_loss,
            "eval_perplexity": math.exp(eval_loss),
            "num_steps": trainer.state.global_step,
            "num_train_records": len(train.dataset),
            "num_eval_records": len(test.dataset),
            "num_cut_at_max_length": train.num_cut,
            "num_dropped_too_long": train.num_dropped,
            "num_parameters": model.num_parameters(),
            "num_trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "vocab_size": len(tokenizer),
            "seconds_before_training": round(ready_s, 2),
            "seconds": round(time.monotonic() - started, 2),
        }
        write_json(output / "report.json", report)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Mapping[str, Any]],
    max_length: int,
    template: ConversationTemplate | None = None,
) -> Rows:
    """Token rows with labels on completions only, each ending at EOS unless cut at `max_length` tokens.

    A completion's <unk> gets no label either: it stands for any word that the tokenizer does not hold, and a model
    that learned to say it would write holes.
    """
    pairs = [encode_pair(tokenizer, record["prompt"], record["completion"], template) for record in records]
    kept = [(prompt, completion) for prompt, completion in pairs if len(prompt) < max_length]
    if not kept:
        raise InputError(f"No record has a prompt shorter than max_length {max_length} tokens. Raise max_length.")

    def labels(completion: list[int]) -> list[int]:
        return [IGNORED if token == unknown else token for token in completion]

    unknown = None if tokenizer.unk_token_id == tokenizer.eos_token_id else tokenizer.unk_token_id
    rows = {
        "input_ids": [(prompt + completion)[:max_length] for prompt, completion in kept],
        "labels": [([IGNORED] * len(prompt) + labels(completion))[:max_length] for prompt, completion in kept],
        "length": [min(len(prompt) + len(completion), max_length) for prompt, completion in kept],
    }
    num_cut = sum(len(prompt) + len(completion) > max_length for prompt, completion in kept)
    return Rows(Dataset.from_dict(rows), num_cut, len(pairs) - len(kept))


def make_trainer(
    config: SFTConfig,
    output: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    test: Dataset,
) -> CompletionTrainer:
    """A trainer of `model`, with fresh adapters on it if the config says so."""
    arguments = TRLConfig(**training_options(config, output))
    set_seed(config.seed)
    add_dropout(model, config.dropout)
    return CompletionTrainer(
        model=add_lora(model, config.lora, [ADAPTER]) if config.lora else model,
        args=arguments,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
    )


def _start(
    config: SFTConfig, inputs: Mapping[str, Path], records: Sequence[Mapping[str, Any]]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that training starts from."""
    if config.from_scratch is None:
        require(inputs, "model")
        tokenizer = load_tokenizer(inputs["model"])
        return load_causal_lm(inputs["model"], config.weights_dtype), tokenizer
    if "model" in inputs:
        raise InputError(f"Both from_scratch and --input model={inputs['model']} are given. Drop one of them.")
    tokenizer = train_tokenizer(config.from_scratch, [text for record in records for text in corpus_texts(record)])
    return make_model(config.from_scratch, tokenizer, config.seed), tokenizer


def _save(config: SFTConfig, output: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if config.lora:
        save_adapter(output, model, ADAPTER, tokenizer)
    else:
        save_model(output, model.to(torch_dtype(config.dtype)), tokenizer)


def _loss_and_tokens(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """[B, 2]: the summed negative log-likelihood of each row's completion tokens, in nats, and their number."""
    counts = batch["labels"][:, 1:] != IGNORED
    if batch["input_ids"].device.type == "cpu":
        losses = torch.zeros(counts.shape)
        losses[counts] = completion_losses(model, batch["input_ids"], batch["labels"])
    else:
        losses = -model(**batch, use_cache=False, fused_lm_head=True).log_probs
    return torch.stack([losses.sum(dim=1), counts.sum(dim=1)], dim=1)


if __name__ == "__main__":
    run_program(main, SFTConfig)
