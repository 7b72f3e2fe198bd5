"""Prompts read and tokenised once, and taken in an order that is a function of a seed.

Letter: K data sets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, isfinite
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tasks.data import encode_prompt, prompt_text, read_split
from tasks.errors import InputError
from tasks.generation import seeded_generator
from tasks.templates import ConversationTemplate, Text

NAMELESS = "prompts"  # the data set of records without a column `source`, which prepare_data did not write


@dataclass(frozen=True)
class Prompt:
    """One record of the prompts data."""

    ids: list[int]
    prompt: Text  # as the record has it
    columns: dict[str, Any]  # the record's other columns
    source: str  # name of its data set

    @property
    def text(self) -> str:
        """As a person, or a reward function, reads it."""
        return prompt_text(self.prompt)


def longest_prompt(context: int | None, response_length: int, max_prompt_length: int | None) -> int | None:
    """The most tokens that a prompt may have, where a response follows it in the model's context; None: no limit."""
    if context is not None and response_length >= context:
        raise InputError(
            f"sampling.response_length {response_length} leaves no room for a prompt in the model's context of "
            f"{context} tokens. Lower it."
        )
    limits = [max_prompt_length, None if context is None else context - response_length]
    return min((limit for limit in limits if limit is not None), default=None)


def read_prompts(
    data: Path,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    longest: int | None,
    template: ConversationTemplate | None = None,
) -> list[Prompt]:
    """The prompts of a split that have at most `longest` tokens (None: all); how many were longer is printed.

    Raises InputError if none is left, and for one that is empty or answered already.
    """
    prompts: list[Prompt] = []
    for number, record in enumerate(read_split(data, "prompts", split)):
        prompt = _encoded(record, tokenizer, template)
        if fault := _fault(prompt, tokenizer):
            raise InputError(
                f"{data}: record {number} of prompts_{split} {fault}: {prompt.text[-80:]!r}. A prompt must leave the "
                "response open; map the question alone in prepare_data, which leaves such records out."
            )
        prompts.append(prompt)
    kept = [prompt for prompt in prompts if longest is None or len(prompt.ids) <= longest]
    if not kept:
        shortest = min((len(prompt.ids) for prompt in prompts), default=0)
        raise InputError(
            f"{data}: none of the {len(prompts)} records of prompts_{split} has at most {longest} tokens, the model's "
            f"context less sampling.response_length; the shortest has {shortest}. Lower sampling.response_length."
        )
    print(f"prompts_{split}: {len(kept)} prompts; left out as longer than {longest} tokens: {len(prompts) - len(kept)}")
    return kept


def check_proportions(prompts: Sequence[Prompt], proportions: Mapping[str, float] | None) -> None:
    """Raise InputError unless each data set among the prompts has a share, and no other has."""
    if not proportions:
        return
    present = sorted({prompt.source for prompt in prompts})
    unknown, missing = sorted(proportions.keys() - set(present)), sorted(set(present) - proportions.keys())
    if unknown:
        raise InputError(
            f"The proportions name {', '.join(unknown)}, but the data sets of the prompts are {', '.join(present)}. "
            "Correct the name; one whose prompts are all too long is not there either."
        )
    if missing:
        raise InputError(f"The proportions leave {', '.join(missing)} without a share. Give each one; 0 leaves it out.")
    if not all(isfinite(share) and share >= 0 for share in proportions.values()) or not any(proportions.values()):
        raise InputError(f"The proportions are {dict(proportions)}, expected numbers from 0 up, at least one above 0.")


def batch_of(
    prompts: Sequence[Prompt],
    iteration: int,
    batch_size: int,
    seed: int,
    proportions: Mapping[str, float] | None = None,
) -> list[Prompt]:
    """The prompts of an iteration, a function of the arguments alone: a resumed run gets the same ones.

    They are taken in turn from an endless sequence: all prompts in one order, then all in another, and so on. With
    `proportions`, the share of each data set by name, each has such a sequence and `mixture` says whose turn it is.
    """
    places = range(iteration * batch_size, (iteration + 1) * batch_size)
    if not proportions:
        return _taken(prompts, places, "prompts", seed)
    check_proportions(prompts, proportions)
    turns = mixture(proportions, places)
    taken = {}
    for name in proportions:
        data_set = [prompt for prompt in prompts if prompt.source == name]
        own_turns = [turn for whose, turn in turns if whose == name]
        taken[name] = iter(_taken(data_set, own_turns, "prompts", name, seed))
    return [next(taken[name]) for name, _ in turns]


def mixture(proportions: Mapping[str, float], places: range) -> list[tuple[str, int]]:
    """For each of the places in an endless mixture: whose turn it is, and for which time, from 0.

    Webster's method of apportionment (Sainte-Lague's, in Europe): turn j of a data set with the share p of 1 is due at
    (j + 1/2) / p, and whatever is due first comes first. After n places each has had p n turns, give or take
    1/2 + p K / 2, however long the run.
    """
    shares = _shares(proportions)
    before, after = _num_turns(shares, places.start), _num_turns(shares, places.stop)
    due = [(_due(shares[name], turn), name, turn) for name in shares for turn in range(before[name], after[name])]
    return [(name, turn) for _, name, turn in sorted(due)]


def _shares(proportions: Mapping[str, float]) -> dict[str, Fraction]:
    """The shares above 0, exact, in sum 1."""
    given = {name: Fraction(str(share)) for name, share in proportions.items() if share}
    return {name: share / sum(given.values()) for name, share in given.items()}


def _num_turns(shares: Mapping[str, Fraction], num_places: int) -> dict[str, int]:
    """How many of the first `num_places` turns each data set has: all that are due by then, then by few one by one."""
    turns = {name: floor(share * num_places + Fraction(1, 2)) for name, share in shares.items()}
    while sum(turns.values()) > num_places:
        turns[max((_due(shares[name], turns[name] - 1), name) for name in shares if turns[name])[1]] -= 1
    while sum(turns.values()) < num_places:
        turns[min((_due(shares[name], turns[name]), name) for name in shares)[1]] += 1
    return turns


def _due(share: Fraction, turn: int) -> Fraction:
    return (turn + Fraction(1, 2)) / share


def _taken(prompts: Sequence[Prompt], places: Sequence[int], *key: int | str) -> list[Prompt]:
    """The prompts at these places of their endless sequence, whose orders are functions of `key` and the epoch."""
    orders = {epoch: _order(len(prompts), *key, epoch) for epoch in {place // len(prompts) for place in places}}
    return [prompts[orders[place // len(prompts)][place % len(prompts)]] for place in places]


def _order(num_prompts: int, *key: int | str) -> list[int]:
    return torch.randperm(num_prompts, generator=seeded_generator(*key)).tolist()


def _encoded(
    record: dict[str, Any], tokenizer: PreTrainedTokenizerBase, template: ConversationTemplate | None
) -> Prompt:
    columns = {name: value for name, value in record.items() if name not in ("prompt", "source")}
    ids = encode_prompt(tokenizer, record["prompt"], template)
    return Prompt(ids, record["prompt"], columns, record.get("source", NAMELESS))


def _fault(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What is wrong with a prompt that cannot be answered."""
    if not prompt.ids:
        return "has no tokens"
    if isinstance(prompt.prompt, list) and [message["role"] for message in prompt.prompt][-1:] == ["assistant"]:
        return "ends with an assistant message, which is the answer that PPO writes"
    if prompt.ids[-1] == tokenizer.eos_token_id:
        return f"ends in {tokenizer.eos_token}, which ends a response"
    return None
