"""Prompt and completion as token rows, the same for supervised fine-tuning, reward models and scoring."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tasks.data import encode_messages, encode_prompt, is_plain
from tasks.errors import InputError
from tasks.templates import ConversationTemplate, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_pair(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Text,
    completion: Text,
    template: ConversationTemplate | None = None,
) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, as generation sees it, and of the completion, which ends at EOS.

    A completion without EOS gets one; what a chat template puts after its last EOS (a line break, say) is left out,
    since generation ends there too. With a `template` plain texts become messages, but for a text without a prompt.
    """
    prompt_ids = encode_prompt(tokenizer, prompt, template)
    if is_plain(prompt, template) and isinstance(completion, str):
        completion_ids = _plain_completion(tokenizer, str(prompt), prompt_ids, completion)
    else:
        completion_ids = _chat_completion(tokenizer, prompt, prompt_ids, completion, template)
    return prompt_ids, _end_at_eos(completion_ids, tokenizer.eos_token_id)


def _plain_completion(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, prompt_ids: list[int], completion: str
) -> list[int]:
    """The rest of the text's tokens after the prompt's; where a token would span both, the completion's own tokens.

    Taken from the whole text first, because some tokenizers write a lone text differently from a continued one.
    """
    whole = list(tokenizer(prompt + completion)["input_ids"])
    if whole[: len(prompt_ids)] == prompt_ids:
        return whole[len(prompt_ids) :]
    return list(tokenizer(completion, add_special_tokens=False)["input_ids"])


def _chat_completion(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Text,
    prompt_ids: list[int],
    completion: Text,
    template: ConversationTemplate | None,
) -> list[int]:
    question = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    answer = [{"role": "assistant", "content": completion.lstrip()}] if isinstance(completion, str) else completion
    whole = encode_messages(tokenizer, question + answer, template, add_generation_prompt=False)
    if whole[: len(prompt_ids)] != prompt_ids:
        raise InputError(
            "The chat template writes the prompt differently when an answer follows: the model would be trained on "
            "another context than it generates from. Give the tokenizer a template whose generation prompt is a "
            f"prefix of the answered conversation. Prompt alone: {tokenizer.decode(prompt_ids)[-80:]!r}; "
            f"with its answer: {tokenizer.decode(whole[: len(prompt_ids)])[-80:]!r}."
        )
    return whole[len(prompt_ids) :]


def _end_at_eos(ids: list[int], eos_token_id: int) -> list[int]:
    if eos_token_id not in ids:
        return [*ids, eos_token_id]
    after_last = len(ids) - ids[::-1].index(eos_token_id)
    return ids[:after_last]


def corpus_texts(record: Mapping[str, Any]) -> list[str]:
    """Every text in a record's columns, messages taken apart: what a tokenizer is trained on."""
    texts: list[str] = []
    for value in record.values():
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, list):
            texts.extend(message["content"] for message in value)
    return texts
