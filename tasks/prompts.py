"""Prompts read and tokenised once, and taken in an order that is a function of a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tasks.data import encode_prompt, prompt_text, read_split
from tasks.errors import InputError
from tasks.generation import seeded_generator


@dataclass(frozen=True)
class Prompt:
    """One record of the prompts data."""

    ids: list[int]
    text: str  # as a person, or a reward function, reads it
    columns: dict[str, Any]  # the record's other columns


def read_prompts(data: Path, split: str, tokenizer: PreTrainedTokenizerBase, longest: int | None) -> list[Prompt]:
    """The prompts of a split that have at most `longest` tokens (None: all); how many were longer is printed.

    Raises InputError if none is left, and for one that is empty or ends in EOS: its answer is over already.
    """
    prompts = [_prompt(record, tokenizer) for record in read_split(data, "prompts", split)]
    for number, prompt in enumerate(prompts):
        if not prompt.ids or prompt.ids[-1] == tokenizer.eos_token_id:
            fault = f"ends in {tokenizer.eos_token}, which ends a response" if prompt.ids else "has no tokens"
            raise InputError(
                f"{data}: record {number} of prompts_{split} {fault}: {prompt.text[-80:]!r}. A prompt must leave the "
                "response open; mend the record in prepare_data."
            )
    kept = [prompt for prompt in prompts if longest is None or len(prompt.ids) <= longest]
    if not kept:
        shortest = min((len(prompt.ids) for prompt in prompts), default=0)
        raise InputError(
            f"{data}: none of the {len(prompts)} records of prompts_{split} has at most {longest} tokens, the model's "
            f"context less sampling.response_length; the shortest has {shortest}. Lower sampling.response_length."
        )
    print(f"prompts_{split}: {len(kept)} prompts; left out as longer than {longest} tokens: {len(prompts) - len(kept)}")
    return kept


def batch_of(prompts: Sequence[Prompt], iteration: int, batch_size: int, seed: int) -> list[Prompt]:
    """The prompts of an iteration: all of them in one order, then all of them in another, and so on."""
    places = range(iteration * batch_size, (iteration + 1) * batch_size)
    orders = {epoch: _order(len(prompts), epoch, seed) for epoch in {place // len(prompts) for place in places}}
    return [prompts[orders[place // len(prompts)][place % len(prompts)]] for place in places]


def _prompt(record: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Prompt:
    columns = {name: value for name, value in record.items() if name != "prompt"}
    return Prompt(encode_prompt(tokenizer, record["prompt"]), prompt_text(record["prompt"]), columns)


def _order(num_prompts: int, epoch: int, seed: int) -> list[int]:
    return torch.randperm(num_prompts, generator=seeded_generator("prompts", seed, epoch)).tolist()
