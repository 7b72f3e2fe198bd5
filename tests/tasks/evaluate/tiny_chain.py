"""A chain's artifacts in miniature: prompts, an SFT model, a PPO model and a reward model, all built in code."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

WORDS = ("good", "bad", "film", "plot", "dull", "warm", "very", "not")
PROMPTS = [{"prompt": f"{word} {WORDS[-n]}", "answer": str(n)} for n, word in enumerate(WORDS, start=1)]

SFT_RECORDS = [{"prompt": f"{word} film", "completion": f"{word} plot not dull"} for word in WORDS]


def make_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({t: n for n, t in enumerate(("<pad>", "<eos>", *words))}, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_config(words: Sequence[str] = WORDS, **options: Any) -> LlamaConfig:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"vocab_size": len(words) + 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return LlamaConfig(**sizes, **tokens, max_position_embeddings=32, initializer_range=0.3, **options)


def write_model(folder: Path, seed: int, words: Sequence[str] = WORDS, favourite: str = "", by: float = 2.0) -> Path:
    """A language model with random weights; the logit of the token `favourite` is raised by about `by` x |state|."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(make_config(words))
    tokenizer = make_tokenizer(words)
    if favourite:
        with torch.no_grad():
            state = model.model(torch.arange(2, len(words) + 2)[None]).last_hidden_state.mean(dim=(0, 1))
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(favourite)] += by * state / state.norm()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_reward_model(folder: Path, offset: float = 0.25, seed: int = 5) -> Path:
    torch.manual_seed(seed)
    LlamaForSequenceClassification(make_config(num_labels=1)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "scalar_head.json").write_text(json.dumps({"offset": offset}))
    return folder


def write_prompts(folder: Path, records: Sequence[dict[str, Any]] = PROMPTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    schema = None if records else pa.schema([("prompt", pa.string())])
    pq.write_table(pa.Table.from_pylist(list(records), schema), folder / "prompts_test.parquet")
    return folder


def write_chain(folder: Path) -> dict[str, Path]:
    """The inputs of `evaluate`: PPO is SFT with a liking for the word "good"."""
    return {
        "data": write_prompts(folder / "data"),
        "sft": write_model(folder / "sft", seed=0),
        "ppo": write_model(folder / "ppo", seed=0, favourite="good"),
        "reward_model": write_reward_model(folder / "reward_model"),
    }


def write_more(folder: Path) -> dict[str, Path]:
    """What an evaluation may have beside: a champion that likes "warm", a base, a second reward model, SFT records."""
    data = write_prompts(folder / "data")
    pq.write_table(pa.Table.from_pylist(list(SFT_RECORDS)), data / "sft_test.parquet")
    return {
        "data": data,
        "champion": write_model(folder / "champion", seed=0, favourite="warm"),
        "base": write_model(folder / "base", seed=1),
        "second_reward_model": write_reward_model(folder / "second_reward_model", seed=6),
    }


def count_good(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """A metric: how often the response says good."""
    return [float(response.split().count("good")) for response in responses]


def read_answer(prompts: Sequence[str], responses: Sequence[str], answer: Sequence[str]) -> list[float]:
    """A metric that tells only which record it was called for."""
    return [float(number) for number in answer]
