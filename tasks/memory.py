"""How much memory there is, and how much a transformer takes, told from its files without loading it."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")
KEPT_HIDDEN, KEPT_INTERMEDIATE = 12, 5  # tensors of either size that an ordinary layer keeps for its backward

Shapes = Mapping[str, tuple[int, ...]]


def free_bytes(device: torch.device) -> int:
    """Bytes that this process may still take: of the GPU, or of main memory within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = psutil.virtual_memory().available
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        return min(available, int(text) - int(used.read_text()))
    return available


def gib(num_bytes: float) -> str:
    """A size as a person reads it."""
    return f"{num_bytes / 2**30:.2f} GiB"


def weight_shapes(folder: Path) -> Shapes:
    """The shape of each tensor in the safetensors files of `folder`, by name, from the files' headers."""
    return dict(item for path in sorted(folder.glob("*.safetensors")) for item in _header(path))


def num_weights(shapes: Shapes) -> int:
    """Numbers in all tensors."""
    return sum(math.prod(shape) for shape in shapes.values())


def num_lora_weights(shapes: Shapes, rank: int, vocabulary_size: int) -> int:
    """Numbers of an adapter on every matrix but embeddings and head: the most that any target modules give."""
    return sum(rank * sum(shape) for shape in shapes.values() if len(shape) == 2 and vocabulary_size not in shape)


def num_activations(model: Mapping[str, Any], num_tokens: int, num_predicted: int) -> int:
    """Numbers that a forward over `num_tokens` keeps for its backward, with logits at `num_predicted` of them.

    `model` is its config.json. Counted for an ordinary transformer without gradient checkpointing: an estimate.
    """
    hidden = _first(model, "hidden_size", "n_embd")
    intermediate = _first(model, "intermediate_size", "n_inner", default=4 * hidden)
    per_layer = KEPT_HIDDEN * hidden + KEPT_INTERMEDIATE * intermediate
    logits_and_gradient = 3 * _first(model, "vocab_size")
    return num_tokens * _first(model, "num_hidden_layers", "n_layer") * per_layer + num_predicted * logits_and_gradient


def num_cached(model: Mapping[str, Any], num_tokens: int) -> int:
    """Numbers of the keys and values of `num_tokens` in all layers."""
    hidden, num_heads = _first(model, "hidden_size", "n_embd"), _first(model, "num_attention_heads", "n_head")
    head = _first(model, "head_dim", default=hidden // num_heads)
    num_key_value_heads = _first(model, "num_key_value_heads", default=num_heads)
    return num_tokens * 2 * _first(model, "num_hidden_layers", "n_layer") * num_key_value_heads * head


def _header(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, tuple(entry["shape"])


def _first(model: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """The first of these numbers that config.json gives; architectures name them differently."""
    for name in names:
        if model.get(name) is not None:
            return int(model[name])
    assert default is not None, names
    return default
