"""A world small enough for tests: a tokenizer of numbered words, a model of two layers, data, reward models."""

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from tasks.config import LoraConfig
from tasks.models.adapters import add_lora, save_adapter
from tasks.models.modeling import ScalarHead, save_model, save_offset, save_scalar_head

VOCABULARY_SIZE = 24
EOS = 1
FAVOURITE = "w5"
CALLS: list[int] = []


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{index}": index for index in range(3, VOCABULARY_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def model_config(**changes: Any) -> LlamaConfig:
    options = {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": 0,
        "initializer_range": 0.15,
    }
    return LlamaConfig(**{**options, **changes})


def make_model(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(model_config(**changes)).eval()


def write_policy(folder: Path) -> Path:
    save_model(folder, make_model(), make_tokenizer())
    return folder


def write_reward_model(folder: Path) -> Path:
    torch.manual_seed(1)
    classifier = LlamaForSequenceClassification(model_config(num_labels=1))
    classifier.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    save_offset(folder, 0.25)
    return folder


def write_reward_adapter(folder: Path, trainable_layers: int | None = None) -> Path:
    """An adapter of the policy's model whose matrices are both not zero, as after training."""
    torch.manual_seed(2)
    adapted = add_lora(make_model(), LoraConfig(r=4), ["reward"], trainable_layers)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    save_adapter(folder, adapted, "reward", make_tokenizer())
    head = ScalarHead(32)
    save_scalar_head(folder, head)
    return folder


def write_data(folder: Path, num_prompts: int = 40, num_test: int = 12) -> Path:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(3)
    for split, count in (("train", num_prompts), ("test", num_test)):
        prompts = [_words(generator) for _ in range(count)]
        numbered = {"answer": [str(index) for index in range(count)], "source": ["even", "odd"] * (count // 2)}
        Dataset.from_dict({"prompt": prompts, **numbered}).to_parquet(folder / f"prompts_{split}.parquet")
        completions = [f" {_words(generator)}" for _ in range(count)]
        Dataset.from_dict({"prompt": prompts, "completion": completions}).to_parquet(folder / f"sft_{split}.parquet")
    return folder


def _words(generator: torch.Generator) -> str:
    """One to six words."""
    length = int(torch.randint(1, 7, (), generator=generator))
    words = torch.randint(3, VOCABULARY_SIZE, (length,), generator=generator).tolist()
    return " ".join(f"w{word}" for word in words)


def write_config(path: Path, **options: Any) -> Path:
    path.write_text(json.dumps(options))
    return path


def count_favourite(prompts: list[str], responses: list[str], **_: Any) -> list[float]:
    """The reward function of the tests: how often the favourite word stands in the response."""
    return [float(response.split().count(FAVOURITE)) for response in responses]


def not_a_number_in_one_process(prompts: list[str], responses: list[str], **_: Any) -> list[float]:
    """Counts the favourite word; when it is asked for the fifth time, in the second process, it fails."""
    CALLS.append(len(prompts))
    if len(CALLS) == 5 and os.environ.get("RANK") == "1":
        return [math.nan] * len(prompts)
    return count_favourite(prompts, responses)


def count_different(prompts: list[str], responses: list[str], **_: Any) -> list[float]:
    """What is really wanted of the responses in the tests of the guard: many different words."""
    return [float(len(set(response.split()))) for response in responses]
