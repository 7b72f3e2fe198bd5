"""Reward-model training: pairs of a chosen and a rejected response in, a model that scores a response out.

The score is read at the response's last token, EOS included. Its zero is the mean score of SFT demonstrations.

Inputs: data (kind `data`, its preferences split; its sft split for centring), model (kind `model`, after SFT).
Output: kind `reward_model`, or `reward_adapter` with LoRA; report.json, metrics.jsonl, curves.png.
"""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from tasks.data import read_split
from tasks.errors import InputError
from tasks.examples import encode_pair
from tasks.hf_trainer import LocalTrainer, add_dropout, run_training, save_curves, training_options
from tasks.models.adapters import adapter_state, add_lora_to_classifier, write_adapter
from tasks.models.model_files import require_kind, write_json
from tasks.models.modeling import (
    load_classifier,
    load_reward_model,
    load_tokenizer,
    make_scalar_head,
    quiet_libraries,
    save_offset,
    save_scalar_head,
    torch_dtype,
)
from tasks.pair_figures import pair_figures
from tasks.parts import half_of
from tasks.program import require, run_program
from tasks.reward_model.config import RewardModelConfig
from tasks.reward_model.measure import score_rows
from tasks.templates import ConversationTemplate, Text

ADAPTER = "default"
HEAD_WEIGHT = "base_model.model.score.weight"
CURVES = ("train_loss", "eval_loss", "eval_pair_accuracy", "accuracy", "learning_rate", "grad_norm")
CENTRED_WITHIN = 1e-3


@dataclass(frozen=True)
class Pairs:
    """Tokenised pairs, and how many were left out because a side is longer than max_length."""

    dataset: Dataset  # columns chosen_ids, rejected_ids, length
    num_dropped: int


class PairTrainer(LocalTrainer, RewardTrainer):
    """TRL's RewardTrainer with held-out figures over all pairs, whatever the batches."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss, accuracy and mean margin of the held-out pairs, logged and returned."""
        margins = torch.cat(list(self.each_eval_batch(_margins))).float()
        figures = {
            "eval_loss": nn.functional.softplus(-margins).mean().item(),
            "eval_pair_accuracy": (margins > 0).float().mean().item(),
            "eval_margin": margins.mean().item(),
        }
        return self.log_evaluation(figures)


def main(config: RewardModelConfig, inputs: Mapping[str, Path], output: Path) -> None:
    """Train, save, centre and measure; see the module's docstring for the folders."""
    started = time.monotonic()
    quiet_libraries()
    require(inputs, "data", "model")
    require_kind(inputs["model"], "model")
    tokenizer = load_tokenizer(inputs["model"])
    template = config.conversation_template
    if template is not None:
        template.apply_to(tokenizer)
    train, test = (
        encode(tokenizer, read_pairs(config, inputs["data"], side), config.max_length, template)
        for side in ("train", "test")
    )
    demonstrations = read_demonstrations(config, inputs["data"], tokenizer)
    trainer = make_trainer(config, inputs["model"], output, tokenizer, train.dataset, test.dataset)
    run_training(trainer, output, config.average_from)
    if trainer.is_world_process_zero():
        _save(config, output, trainer.accelerator.unwrap_model(trainer.model), tokenizer)
        save_curves(output, CURVES)
        base = inputs["model"] if config.lora else None
        report = centre_and_measure(output, base, test.dataset, demonstrations, trainer.accelerator.device)
        counts = {
            "num_steps": trainer.state.global_step,
            "num_train_pairs": len(train.dataset),
            "num_dropped_too_long": train.num_dropped + test.num_dropped,
            "seconds": round(time.monotonic() - started, 2),
        }
        write_json(output / "report.json", {**report, **counts})


def read_pairs(config: RewardModelConfig, data: Path, side: str) -> list[dict[str, Any]]:
    """The records of one side; for training only those of the config's half."""
    records = read_split(data, "preferences", side)
    if config.half is None or side != "train":
        return records
    kept = [record for record in records if half_of(record["prompt"]) == config.half]
    if not kept:
        raise InputError(
            f"{data}: none of the {len(records)} training pairs has a prompt of the {config.half} half. "
            "Give more pairs with different prompts, or no half."
        )
    return kept


def encode(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Mapping[str, Any]],
    max_length: int,
    template: ConversationTemplate | None = None,
) -> Pairs:
    """Token rows of prompt + chosen and prompt + rejected, each ending at EOS; pairs over `max_length` are left out."""
    sides = {
        side: [_joined(tokenizer, record["prompt"], record[side], template) for record in records]
        for side in ("chosen", "rejected")
    }
    lengths = [max(len(chosen), len(rejected)) for chosen, rejected in zip(*sides.values(), strict=True)]
    kept = [index for index, length in enumerate(lengths) if length <= max_length]
    if not kept:
        raise InputError(f"No pair fits into max_length {max_length} tokens. Raise max_length.")
    columns = {f"{side}_ids": [rows[index] for index in kept] for side, rows in sides.items()}
    dataset = Dataset.from_dict({**columns, "length": [lengths[index] for index in kept]})
    return Pairs(dataset, len(records) - len(kept))


def read_demonstrations(config: RewardModelConfig, data: Path, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token rows of up to num_demonstrations SFT records, drawn by the seed; none if that is 0."""
    if config.num_demonstrations == 0:
        return []
    records = read_split(data, "sft", "train")
    drawn = random.Random(config.seed).sample(records, min(config.num_demonstrations, len(records)))
    rows = [
        _joined(tokenizer, record["prompt"], record["completion"], config.conversation_template) for record in drawn
    ]
    return [row[: config.max_length] for row in rows]


def make_trainer(
    config: RewardModelConfig,
    model: Path,
    output: Path,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    test: Dataset,
) -> PairTrainer:
    """A trainer of the language model in the folder `model` with a fresh head, all of it or adapters and head only."""
    set_seed(config.seed)
    classifier = load_classifier(model, config.weights_dtype)
    add_dropout(classifier, config.dropout)
    blank_tokens(classifier, config.token_dropout, tokenizer.eos_token_id)
    pad_token_id = padding_for_pooling(tokenizer)
    adapted = config.lora and add_lora_to_classifier(classifier, config.lora, ADAPTER, config.trainable_layers)
    trainer = PairTrainer(
        model=adapted or classifier,
        args=RewardConfig(
            center_rewards_coefficient=config.center_rewards_coefficient or None, **training_options(config, output)
        ),
        data_collator=DataCollatorForPreference(pad_token_id=pad_token_id),
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
    )
    classifier.config.pad_token_id = pad_token_id
    return trainer


def blank_tokens(model: PreTrainedModel, share: float, kept_id: int) -> None:
    """Zero the embeddings of a share of the tokens other than `kept_id` while `model` is in training."""

    def blank(module: nn.Module, inputs: tuple[Tensor, ...], embeddings: Tensor) -> Tensor:
        [ids] = inputs  # [B, T]
        blanked = (torch.rand(ids.shape, device=ids.device) < share) & (ids != kept_id)
        return embeddings.masked_fill(blanked[..., None], 0) if module.training else embeddings

    if share:
        model.get_input_embeddings().register_forward_hook(blank)


def padding_for_pooling(tokenizer: PreTrainedTokenizerBase) -> int:
    """A padding id other than EOS.

    Hugging Face's classifiers score the last token that is not padding. Every row ends with EOS, so where the
    tokenizer pads with EOS they would score the token before; with any other id for padding they find the EOS.
    """
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        return tokenizer.pad_token_id
    return 0 if tokenizer.eos_token_id != 0 else 1


def centre_and_measure(
    folder: Path, base: Path | None, pairs: Dataset, demonstrations: Sequence[Sequence[int]], device: torch.device
) -> dict[str, float]:
    """Figures of the reward model in `folder` as its users load it, after its offset was set to centre it there."""
    if demonstrations:
        raw = score_rows(load_reward_model(folder, base).to(device), demonstrations)
        save_offset(folder, raw.mean().item())
    model = load_reward_model(folder, base).to(device)
    chosen, rejected = (score_rows(model, pairs[column][:]) for column in ("chosen_ids", "rejected_ids"))
    figures = pair_figures(chosen, rejected)
    report = {
        "pair_accuracy": figures.accuracy,
        "pair_accuracy_low": figures.low,
        "pair_accuracy_high": figures.high,
        "mean_margin": figures.mean_margin,
        "score_std": torch.cat([chosen, rejected]).std().item(),
        "offset": model.head.offset.item(),
        "num_pairs": len(chosen),
        "num_demonstrations": len(demonstrations),
    }
    if not demonstrations:
        return report
    centred = score_rows(model, demonstrations)
    return {
        **report,
        "demonstration_score_mean": _checked_mean(centred),
        "demonstration_score_std": centred.std().item(),
    }


def _checked_mean(centred: Tensor) -> float:
    mean = centred.mean().item()
    assert abs(mean) <= CENTRED_WITHIN * max(1.0, centred.abs().max().item()), f"demonstrations score {mean}, not 0"
    return mean


def _joined(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, completion: Text, template: ConversationTemplate | None
) -> list[int]:
    prompt_ids, completion_ids = encode_pair(tokenizer, prompt, completion, template)
    return prompt_ids + completion_ids


def _margins(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Score of chosen minus score of rejected, [B]: the batch holds all chosen rows, then all rejected ones."""
    scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    chosen, rejected = scores.squeeze(-1).chunk(2)
    return chosen - rejected


def _save(config: RewardModelConfig, output: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if config.lora:
        state = adapter_state(model, ADAPTER)
        save_scalar_head(output, make_scalar_head(state.pop(HEAD_WEIGHT)))
        write_adapter(output, state, model.peft_config[ADAPTER])
    else:
        model.config.pad_token_id = tokenizer.pad_token_id
        model.to(torch_dtype(config.dtype)).save_pretrained(output)
        save_offset(output, 0.0)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    run_program(main, RewardModelConfig)
