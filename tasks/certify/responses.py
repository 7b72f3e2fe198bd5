"""What the reward model is asked about: held-out and training pairs, demonstrations, and answers of the SFT model."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tasks.certify.config import CertifyConfig
from tasks.data import Text, decode_response, prompt_text, read_split
from tasks.examples import encode_pair
from tasks.generation import generate, uniform_numbers
from tasks.models.modeling import load_causal_lm, stop_token_ids
from tasks.prompts import Prompt
from tasks.templates import ConversationTemplate, with_stops


@dataclass(frozen=True)
class Response:
    """A response to a prompt: as the records have them, and in the policy's tokens."""

    prompt: Text
    response: Text
    prompt_ids: list[int]
    response_ids: list[int]  # with the end token where it ended
    ended: bool

    @property
    def num_tokens(self) -> int:
        """Of the response, its end left out."""
        return len(self.response_ids) - self.ended


@dataclass(frozen=True)
class Sample:
    """One of the SFT model's answers as a person reads it."""

    prompt: str
    response: str
    score: float


def read_pairs(
    config: CertifyConfig, data: Path, split: str, tokenizer: PreTrainedTokenizerBase, most: int
) -> list[tuple[Response, Response]]:
    """Chosen and rejected response of at most `most` pairs of a split, drawn by the seed; none where it has none."""
    template = config.conversation_template
    return [
        (
            encoded(tokenizer, record["prompt"], record["chosen"], template),
            encoded(tokenizer, record["prompt"], record["rejected"], template),
        )
        for record in _drawn(data, "preferences", split, most, config.seed)
    ]


def read_demonstrations(config: CertifyConfig, data: Path, tokenizer: PreTrainedTokenizerBase) -> list[Response]:
    """Up to num_demonstrations held-out SFT records, chosen by the seed; none where there are none."""
    records = _drawn(data, "sft", "test", config.num_demonstrations, config.seed)
    template = config.conversation_template
    return [encoded(tokenizer, record["prompt"], record["completion"], template) for record in records]


def encoded(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, response: Text, template: ConversationTemplate | None
) -> Response:
    """The response of a record, which always ends."""
    prompt_ids, response_ids = encode_pair(tokenizer, prompt, response, template)
    return Response(prompt, response, prompt_ids, response_ids, ended=True)


def answer_prompts(
    config: CertifyConfig, model: Path, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase
) -> list[Response]:
    """A sampled response of the language model in the folder `model` to each prompt, as PPO would draw it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lm = load_causal_lm(model, config.dtype).to(device)
    sampling, template_ids = with_stops(config.conversation_template, config.sampling, tokenizer)
    responses = generate(
        lm,
        [prompt.ids for prompt in prompts],
        sampling,
        uniforms=uniform_numbers(len(prompts), sampling.response_length, "certify", config.seed),
        stop_ids=sorted({*template_ids, *stop_token_ids(lm, tokenizer)}),
        tokenizer=tokenizer,
        pad_token_id=tokenizer.pad_token_id,
        rows_at_once=config.batch_size,
    )
    rows = zip(prompts, responses.unpadded(), responses.ended.tolist(), strict=True)
    return [
        Response(prompt.prompt, decode_response(tokenizer, ids, config.conversation_template), prompt.ids, ids, ended)
        for prompt, ids, ended in rows
    ]


def choose_prompts(config: CertifyConfig, prompts: Sequence[Prompt]) -> list[Prompt]:
    """At most num_prompts of them, in random order by the seed."""
    return random.Random(config.seed).sample(prompts, min(config.num_prompts, len(prompts)))


def extreme_samples(responses: Sequence[Response], scores: Sequence[float], num_each: int) -> list[Sample]:
    """The responses with the highest and those with the lowest scores, the best first."""
    order = sorted(range(len(responses)), key=lambda index: -scores[index])
    shown = order if len(order) <= 2 * num_each else [*order[:num_each], *order[-num_each:]]
    return [
        Sample(prompt_text(responses[index].prompt), prompt_text(responses[index].response), scores[index])
        for index in shown
    ]


def _drawn(data: Path, name: str, split: str, count: int, seed: int) -> Sequence[Mapping[str, Any]]:
    if not count or not (data / f"{name}_{split}.parquet").is_file():
        return []
    records = read_split(data, name, split)
    return random.Random(seed).sample(records, min(count, len(records)))
