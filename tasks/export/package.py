"""A model as users load it: weights, tokenizer, chat template, generation config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tasks.export.trial import Exam, Trial, try_form
from tasks.export.weights import copy_weights, own_dtype, read_weights
from tasks.models.modeling import save_description, torch_dtype, write_generation_config
from tasks.models.safe_loading import no_custom_code

# A model of plain text continues what it is given: the messages' texts one after the other, nothing added.
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
LOADS_WITH = "AutoModelForCausalLM.from_pretrained, AutoTokenizer.from_pretrained"


def write_package(
    folder: Path,
    source: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sampling: Mapping[str, Any],
    dtype: str,
    max_shard_size: str,
) -> None:
    """Fill `folder` with the model of `source` in `dtype`, its tokenizer and what it samples as.

    Every tensor stays as it is where `dtype` is the source's own. Without `sampling` the generation config stays too.
    """
    give_template(tokenizer)
    changed = dtype != own_dtype(source)
    copy_weights(folder, read_weights(source), torch_dtype(dtype) if changed else None, max_shard_size)
    save_description(folder, source, torch_dtype(dtype), tokenizer)
    if sampling:
        given = GenerationConfig.from_pretrained(folder, local_files_only=True).to_dict()
        write_generation_config(folder, GenerationConfig.from_dict(given | _generation_options(sampling)), tokenizer)


def give_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer without a chat template the one that writes the messages' texts alone."""
    if tokenizer.chat_template is None:
        starts_with_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{ bos_token }}" if starts_with_bos else "") + PLAIN_TEMPLATE


def load_package(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer, loaded from their folder as a user does."""
    with no_custom_code(folder) as options:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True, **options)
    return model, tokenizer


def try_package(folder: Path, exam: Exam, tolerance: float) -> Trial:
    """What came of loading `folder` and asking it; raises ModelsDiffer where it is no longer the source."""
    return try_form(*load_package(folder), exam, tolerance, LOADS_WITH)


def _generation_options(sampling: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "do_sample": True,
        "temperature": sampling["temperature"],
        "top_k": sampling["top_k"],
        "top_p": sampling["top_p"],
        "max_new_tokens": sampling["response_length"],
        "min_new_tokens": sampling["min_new_tokens"] or None,
    }
