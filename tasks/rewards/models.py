"""Scores by a reward model: of the policy's own token rows, or of the same texts in the reward model's tokens.

Shapes: B rows, T tokens of the longest.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tasks.data import Text, micro_batches, pad_right
from tasks.episodes import Episodes, measure_rows, scores_of
from tasks.errors import InputError
from tasks.examples import encode_pair
from tasks.models.model_files import SCALAR_HEAD
from tasks.models.modeling import ScalarModel


def model_scores(reward_model: ScalarModel, episodes: Episodes, micro_batch_tokens: int) -> Tensor:
    """The reward model's score of each episode at the last token of its response, [B] float32."""
    return measure_rows(lambda part: scores_of(reward_model, part), episodes, micro_batch_tokens)


@torch.no_grad()
def row_scores(reward_model: ScalarModel, rows: Sequence[Sequence[int]], micro_batch_tokens: int) -> Tensor:
    """The score of each row of token ids at its last token, [B] float32 on the model's device, in the rows' order."""
    device = reward_model.head.weight.device
    scores = torch.empty(len(rows), device=device)
    for group in micro_batches([len(row) for row in rows], micro_batch_tokens):
        ids, mask = pad_right([rows[index] for index in group], value=0)
        scores[group] = reward_model.score(ids.to(device), mask.to(device))
    return scores


def was_trained_here(folder: Path) -> bool:
    """Whether the reward model in `folder` is one of our reward_model stage: that reads every score at EOS."""
    return (folder / SCALAR_HEAD).is_file()


def encode_answered(tokenizer: PreTrainedTokenizerBase, prompt: Text, response: Text, ends_at_eos: bool) -> list[int]:
    """Token ids of prompt and response as the reward model with this tokenizer was trained to read them.

    A plain prompt is followed by the response and EOS. Messages are followed by an assistant's message, or by those
    that the response is, and go through the reward model's own chat template, whole, as TRL's RewardTrainer builds its
    chosen text; with `ends_at_eos` only up to the last EOS, as our reward_model stage does. A response that was cut off
    looks ended in these tokens.
    """
    completion: Any = response
    if isinstance(response, str) and not isinstance(prompt, str):
        completion = [assistant_message(response)]
    if ends_at_eos:
        prompt_ids, completion_ids = encode_pair(tokenizer, prompt, completion)
        return prompt_ids + completion_ids
    if isinstance(prompt, str):
        assert isinstance(response, str)
        text = prompt + response
        eos = str(tokenizer.eos_token)
        return list(tokenizer(text if text.endswith(eos) else text + eos)["input_ids"])
    conversation = [*prompt, *completion]
    return list(tokenizer.apply_chat_template(conversation, return_dict=True)["input_ids"])


def assistant_message(response: str) -> dict[str, str]:
    """The response as a turn of a conversation."""
    return {"role": "assistant", "content": response}


def check_lengths(rows: Sequence[Sequence[int]], reward_model: ScalarModel, source: str) -> None:
    """Raise InputError, naming the source, if a row has more tokens than the reward model can attend to."""
    backbone: Any = reward_model.backbone
    context = getattr(backbone.config, "max_position_embeddings", None)
    longest = max((len(row) for row in rows), default=0)
    if context is not None and longest > context:
        raise InputError(
            f"{source} reads at most {context} tokens; a prompt with its response has {longest} of its tokens. "
            "Lower max_prompt_length or sampling.response_length."
        )
