"""Records and token rows: read a prepared data set, tokenise prompts, pad, group into micro-batches.

Shapes: B rows, T tokens of the longest row.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from tasks.errors import InputError
from tasks.templates import ConversationTemplate, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_split(folder: Path, name: str, split: str) -> list[dict[str, Any]]:
    """The records of `folder/NAME_SPLIT.parquet`; NAME is sft, preferences, prompts or ptx, SPLIT train or test."""
    import pyarrow.parquet

    path = folder / f"{name}_{split}.parquet"
    if not path.is_file():
        present = ", ".join(sorted(file.name for file in folder.glob("*.parquet"))) or "no Parquet file"
        raise InputError(
            f"{path} does not exist; the data folder holds {present}. "
            f"Give prepare_data a source for `{name}`, or name the artifact that has it."
        )
    return list(pyarrow.parquet.read_table(path).to_pylist())


def is_plain(prompt: Text, template: ConversationTemplate | None) -> bool:
    """Whether a prompt is tokenised as it stands: text where there is no template, or the empty one before a text."""
    return isinstance(prompt, str) and (template is None or not prompt)


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase", prompt: Text, template: ConversationTemplate | None = None
) -> list[int]:
    """The prompt's token ids, the same context that TRL's SFTTrainer trained the completion on.

    A plain prompt is tokenised as it stands; messages go through the chat template with its generation prompt, and
    with a `template` both do, after its system message.
    An end-of-text token that the tokenizer appends is left out: in training the completion stood in its place.
    """
    if isinstance(prompt, str) and is_plain(prompt, template):
        ids = list(tokenizer(prompt)["input_ids"])
        appended = bool(ids) and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(str(tokenizer.eos_token))
        return ids[:-1] if appended else ids
    return encode_messages(tokenizer, prompt, template, add_generation_prompt=True)


def encode_messages(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Text,
    template: ConversationTemplate | None,
    *,
    add_generation_prompt: bool,
) -> list[int]:
    """Token ids of a conversation as the template, else the tokenizer's chat template, writes it."""
    template = template or ConversationTemplate()
    if template.chat_template is None and tokenizer.chat_template is None:
        raise InputError(
            "The data are conversations, but the tokenizer has no chat template. Give a conversation_template with "
            "one, start from an instruct model, or map plain prompt and completion columns in prepare_data."
        )
    try:
        encoded = tokenizer.apply_chat_template(
            template.conversation(messages),
            chat_template=template.chat_template,
            add_generation_prompt=add_generation_prompt,
            return_dict=True,
        )
    except TemplateError as error:
        raise InputError(
            f"The chat template cannot write this conversation: {error}. Mend the template, or leave such records out "
            f"in prepare_data: {messages!r:.200}"
        ) from error
    return list(encoded["input_ids"])


def prompt_text(prompt: Text) -> str:
    """The prompt as a person reads it: plain text or a lone message as it stands, else `role: content` lines."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def decode_response(
    tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int] | Tensor, template: ConversationTemplate | None = None
) -> str:
    """The response's text without special tokens, its leading white space kept: prompt + response is the whole text.

    What the template writes after an answer is left out.
    """
    text = str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return text.removesuffix(template.end_of_assistant or "") if template is not None else text


def pad_right(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Rows filled up with `value` at their end: ids [B, T] long, mask [B, T] bool, True on the rows' own tokens."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    mask = torch.arange(_longest(rows)) < lengths[:, None]
    return _fill(rows, mask, value), mask


def pad_left(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Rows filled up with `value` at their start: ids [B, T] long, mask [B, T] bool, True on the rows' own tokens."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    mask = torch.arange(_longest(rows)) >= _longest(rows) - lengths[:, None]
    return _fill(rows, mask, value), mask


def micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices of rows grouped by similar length, longest first, so that rows x longest row <= `token_budget`.

    Every index stands in exactly one group; a row longer than the budget makes a group of its own.
    The longest come first so that a batch too large for the memory fails at once, not in the middle.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}, expected at least 1.")
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    groups: list[list[int]] = []
    while order:
        num_rows = max(1, token_budget // max(1, lengths[order[0]]))
        groups.append(order[:num_rows])
        order = order[num_rows:]
    return groups


def _fill(rows: Sequence[Sequence[int]], mask: Tensor, value: int) -> Tensor:
    ids = torch.full(mask.shape, value, dtype=torch.long)
    ids[mask] = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    return ids


def _longest(rows: Sequence[Sequence[int]]) -> int:
    return max((len(row) for row in rows), default=0)
