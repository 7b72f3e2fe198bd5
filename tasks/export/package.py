"""Write a model as users load it, then load it as they do and compare it with the model it came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tasks.data import Text, encode_prompt
from tasks.logits import Answers, answers_of, require_agreement
from tasks.model_files import CONFIG, read_json
from tasks.modeling import save_generation_config, torch_dtype
from tasks.safe_loading import no_custom_code

# A model of plain text continues what it is given: the messages' texts one after the other, nothing added.
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
LOADS_WITH = "AutoModelForCausalLM.from_pretrained, AutoTokenizer.from_pretrained"


@dataclass(frozen=True)
class Trial:
    """What came of loading the finished export and using it."""

    loads_with: str
    loaded_class: str
    transformers_version: str
    prompt: str
    answer: str
    max_logit_difference: float
    max_logit: float  # largest absolute logit of the source: what the difference is to be seen against
    num_greedy_texts: int
    num_greedy_texts_equal: int


def own_dtype(folder: Path) -> str:
    """The precision that the weights in a `model` folder say they have; float32 where they say nothing."""
    config = read_json(folder / CONFIG)
    return config.get("dtype") or config.get("torch_dtype") or "float32"


def write_package(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Mapping[str, Any],
    max_shard_size: str,
) -> None:
    """Fill `folder` with weights, tokenizer, chat template and a generation_config.json that samples as evaluated."""
    if tokenizer.chat_template is None:
        starts_with_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{ bos_token }}" if starts_with_bos else "") + PLAIN_TEMPLATE
    model.generation_config = GenerationConfig.from_dict(
        model.generation_config.to_dict() | _generation_options(sampling)
    )
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    save_generation_config(folder, model, tokenizer)


def encode_samples(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Text], answers: Sequence[str]
) -> list[list[int]]:
    """Token ids of each question with its answer."""
    return [
        encode_prompt(tokenizer, question) + tokenizer(answer, add_special_tokens=False)["input_ids"]
        for question, answer in zip(questions, answers, strict=True)
    ]


def try_package(
    folder: Path, question: Text, prompts: Sequence[Sequence[int]], source: Answers, tolerance: float
) -> Trial:
    """Load `folder` as a user does, answer `question` (seed 0), and ask `prompts`, which the `source` answered too.

    Raises ModelsDiffer where the two are further apart than `tolerance`, a share of the largest logit; 0: equal bits.
    """
    with no_custom_code(folder) as options:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True, **options)
    ids = torch.tensor([encode_prompt(tokenizer, question)])
    torch.manual_seed(0)
    output = model.generate(ids, attention_mask=torch.ones_like(ids))
    found = require_agreement(source, answers_of(model, prompts, source), tolerance, "The export says something else")
    return Trial(
        loads_with=LOADS_WITH,
        loaded_class=type(model).__name__,
        transformers_version=transformers.__version__,
        prompt=question if isinstance(question, str) else question[0]["content"],
        answer=tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True),
        max_logit_difference=found.largest,
        max_logit=found.scale,
        num_greedy_texts=found.num_greedy,
        num_greedy_texts_equal=found.num_greedy_equal,
    )


def cast(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """The model itself, its weights now in `dtype`."""
    return model.to(torch_dtype(dtype))


def _generation_options(sampling: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "do_sample": True,
        "temperature": sampling["temperature"],
        "top_k": sampling["top_k"],
        "top_p": sampling["top_p"],
        "max_new_tokens": sampling["response_length"],
        "min_new_tokens": sampling["min_new_tokens"] or None,
    }
