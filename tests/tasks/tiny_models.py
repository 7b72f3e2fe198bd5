"""A language model and a tokenizer small enough for a test, built in code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tasks.models.modeling import save_model

WORDS = ("a", "b", "c", "d", "e", "good", "bad", "film")
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
HIDDEN = 16


def make_tokenizer(pad: str = "<pad>") -> PreTrainedTokenizerFast:
    """Ids: <pad> 0, <eos> 1, <unk> 2, then each word of WORDS without and with a space before it."""
    names = ["<pad>", "<eos>", "<unk>", *(space + word for word in WORDS for space in ("", " "))]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^\s]+"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, eos_token="<eos>", unk_token="<unk>")


def make_model(seed: int = 0, **options: Any) -> LlamaForCausalLM:
    """Two layers, random weights large enough that a change of input shows in every output."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 3 + 2 * len(WORDS), "pad_token_id": PAD_ID, "eos_token_id": EOS_ID, "bos_token_id": None}
    config = LlamaConfig(**{**sizes, **tokens, "max_position_embeddings": 64, "initializer_range": 0.3, **options})
    return LlamaForCausalLM(config).eval()


def write_model(folder: Path, seed: int = 0, **options: Any) -> Path:
    """A `model` folder."""
    save_model(folder, make_model(seed, **options), make_tokenizer())
    return folder


def write_split(folder: Path, name: str, split: str, records: Sequence[Mapping[str, Any]]) -> None:
    """One table of a `data` folder."""
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(record) for record in records]), folder / f"{name}_{split}.parquet")
