"""How much memory there is, and how much a run will take, told from the models' files before they are loaded."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from tasks.config import LoraConfig, Tuning
from tasks.errors import InputError
from tasks.models.model_files import CONFIG, read_json

CGROUP = Path("/sys/fs/cgroup")
BITS = {"float32": 32.0, "bfloat16": 16.0, "float16": 16.0}
FOUR_BITS = 4 + 8 / 64 + 32 / (64 * 256)  # QLoRA: blocks of 64 share an 8-bit scale, 256 of these a float32
GRADIENT_AND_MOMENTS = 12  # bytes of a trained number: its gradient and Adam's two moments, float32
MASTER_COPY = 4  # bytes of a trained number that is narrower than float32: its float32 copy
LOGIT_COPIES = 3  # float32 logits, their log-softmax and gradient
# By what is trained and the bits of the base's weights: what an ordinary layer keeps of a token for its backward, in
# bytes for each hidden and for each intermediate number, counted on Llama with saved_tensors_hooks.
KEPT_BYTES = {
    ("weights", 32): (42, 16),
    ("weights", 16): (26, 8),
    ("lora", 32): (32, 16),
    ("lora", 16): (40, 10),  # each adapter's input once more in float32
    ("dora", 32): (72, 32),
    ("dora", 16): (70, 22),
}
# On a CPU the heap grows beyond what is in use, since activations are freed in another order than they were taken: by
# so much in PPO with glibc, on 6 Llama layers of width 256 and micro-batches of 2048 and 8192 tokens.
HEAP_GROWTH = {
    ("weights", 32): 1.4,
    ("weights", 16): 1.4,
    ("lora", 32): 3.0,
    ("lora", 16): 1.7,
    ("dora", 32): 1.7,
    ("dora", 16): 1.7,  # not measured
}

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModelFootprint:
    """What one model, or one adapter, takes for the whole run."""

    num_weights: int
    num_trained: int = 0  # of these, by an optimizer
    weight_bits: float = 32.0

    @property
    def weight_bytes(self) -> int:
        """Of the weights that the forward uses."""
        return math.ceil(self.num_weights * self.weight_bits / 8)

    @property
    def training_bytes(self) -> int:
        """Of gradients, moments and, for weights narrower than float32, the float32 copy that is stepped."""
        return self.num_trained * (GRADIENT_AND_MOMENTS + (MASTER_COPY if self.weight_bits < 32 else 0))


@dataclass(frozen=True)
class TunedModel:
    """A model as it will be loaded and trained, measured by its files."""

    folder: Path
    dtype: str
    tuning: Tuning
    lora: LoraConfig
    trainable_layers: int | None = None
    gradient_checkpointing: bool = False

    def base(self) -> ModelFootprint:
        """The model without adapters."""
        shapes = weight_shapes(self.folder)
        if self.tuning == "qlora":
            return _in_four_bits(shapes, self._config, BITS[self.dtype])
        num_trained = 0 if self._has_adapters else num_weights(self._narrowed(shapes))
        return ModelFootprint(num_weights(shapes), num_trained, BITS[self.dtype])

    def adapter(self, trained: bool = True) -> ModelFootprint:
        """One adapter, float32."""
        shapes = self._narrowed(weight_shapes(self.folder))
        count = num_lora_weights(shapes, self.lora, self._config["vocab_size"])
        return ModelFootprint(count, count if trained else 0)

    def activation_bytes(self, num_tokens: int, num_predicted: int, device: torch.device) -> int:
        """Of a forward and backward over `num_tokens`, with logits at `num_predicted` of them: an estimate."""
        config = self._config
        num_layers = min(_num_layers(config), self.trainable_layers or _num_layers(config))
        kept, passing = self._layer_bytes * num_layers, self._layer_bytes
        if self.gradient_checkpointing:  # inputs are kept, and one layer at a time is run again
            kept = num_layers * _hidden(config) * int(BITS[self.dtype]) // 8
            passing += self._layer_bytes
        logits = LOGIT_COPIES * 4 * _first(config, "vocab_size")
        total = num_tokens * kept + max(num_predicted * logits, num_tokens * passing)
        return int(total * (HEAP_GROWTH[self._sort] if device.type == "cpu" else 1))

    def state_bytes(self, num_tokens: int) -> int:
        """Of the states of the frozen lower layers at `num_tokens`, kept from rollout to update (models/trunk.py)."""
        if self.trainable_layers is None or self.trainable_layers >= _num_layers(self._config):
            return 0
        return num_tokens * _hidden(self._config) * int(BITS[self.dtype]) // 8

    def cache_bytes(self, num_tokens: int, num_prompt_tokens: int) -> int:
        """Of the keys and values of `num_tokens`, and the prompts' way through a layer."""
        keys_and_values = num_cached(self._config, num_tokens) * int(BITS[self.dtype]) // 8
        return keys_and_values + num_prompt_tokens * self._layer_bytes

    @property
    def _layer_bytes(self) -> int:
        """Kept of a token by one layer for its backward."""
        per_hidden, per_intermediate = KEPT_BYTES[self._sort]
        hidden = _hidden(self._config)
        intermediate = _first(self._config, "intermediate_size", "n_inner", default=4 * hidden)
        return per_hidden * hidden + per_intermediate * intermediate

    @property
    def _sort(self) -> tuple[str, int]:
        """What is trained, and the bits of the weights that activations go through; 4-bit ones are widened for that."""
        trained = "weights" if not self._has_adapters else "dora" if self.lora.use_dora else "lora"
        return trained, int(BITS[self.dtype])

    @property
    def _config(self) -> dict[str, Any]:
        return read_json(self.folder / CONFIG)

    @property
    def _has_adapters(self) -> bool:
        return self.tuning in ("lora", "qlora")

    def _narrowed(self, shapes: Shapes) -> Shapes:
        """Those of `shapes` that belong to the trainable layers, or all."""
        if self.trainable_layers is None:
            return shapes
        first = max(_num_layers(self._config) - self.trainable_layers, 0)
        return {name: shape for name, shape in shapes.items() if _layer_of(name) >= first}


def frozen(folder: Path, dtype: str) -> ModelFootprint:
    """The model in `folder`, only run."""
    return ModelFootprint(num_weights(weight_shapes(folder)), 0, BITS[dtype])


def memory_plan(models: Iterable[ModelFootprint], activations: int, cache: int) -> dict[str, int]:
    """Bytes by use."""
    models = list(models)
    return {
        "weights": sum(model.weight_bytes for model in models),
        "gradients and optimizer": sum(model.training_bytes for model in models),
        "activations": activations,
        "KV cache": cache,
    }


def require_memory(plan: Mapping[str, int], free: int, remedies: Mapping[str, str]) -> None:
    """Print the plan; raises InputError with the arithmetic, and the remedy of the largest part, beyond `free` bytes.

    Activations and KV cache count once, the larger of the two: a rollout is over when the update begins.
    """
    needed = plan["weights"] + plan["gradients and optimizer"] + max(plan["activations"], plan["KV cache"])
    parts = (
        "weights {weights} + gradients and optimizer {gradients and optimizer} + the larger of activations "
        "{activations} and KV cache {KV cache}"
    ).format_map({name: gib(size) for name, size in plan.items()})
    print(f"memory per process: {parts} = {gib(needed)}; {gib(free)} free", flush=True)
    if needed > free:
        largest = max(plan, key=lambda name: plan[name])
        raise InputError(f"Each process needs {parts} = {gib(needed)}, and {gib(free)} is free. {remedies[largest]}")


def free_bytes(device: torch.device, num_processes: int = 1) -> int:
    """Bytes that a process may still take: of its GPU, or its share of main memory within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = psutil.virtual_memory().available
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        available = min(available, int(text) - int(used.read_text()))
    return available // num_processes


def gib(num_bytes: float) -> str:
    """A size as a person reads it."""
    return f"{num_bytes / 2**30:.2f} GiB"


def weight_shapes(folder: Path) -> Shapes:
    """The shape of each tensor in the safetensors files of `folder`, by name, from the files' headers."""
    return dict(item for path in sorted(folder.glob("*.safetensors")) for item in _header(path))


def num_weights(shapes: Shapes) -> int:
    """Numbers in all tensors."""
    return sum(math.prod(shape) for shape in shapes.values())


def num_lora_weights(shapes: Shapes, lora: LoraConfig, vocabulary_size: int) -> int:
    """Numbers of an adapter on the target modules, or on every matrix but embeddings and head where a pattern is given.

    DoRA's lengths of rows are counted by the longer side: what is a row depends on the architecture.
    """
    targets = lora.target_modules if isinstance(lora.target_modules, list) else [""]
    matrices = [
        shape
        for name, shape in _matrices(shapes, vocabulary_size).items()
        if any(name.removesuffix(".weight").endswith(target) for target in targets)
    ]
    return sum(lora.r * sum(shape) + (max(shape) if lora.use_dora else 0) for shape in matrices)


def num_cached(config: Mapping[str, Any], num_tokens: int) -> int:
    """Numbers of the keys and values of `num_tokens` in all layers; `config` is the model's config.json."""
    num_heads = _first(config, "num_attention_heads", "n_head")
    head = _first(config, "head_dim", default=_hidden(config) // num_heads)
    num_key_value_heads = _first(config, "num_key_value_heads", default=num_heads)
    return num_tokens * 2 * _num_layers(config) * num_key_value_heads * head


def _in_four_bits(shapes: Shapes, config: Mapping[str, Any], other_bits: float) -> ModelFootprint:
    """Every matrix but embeddings and head in 4 bits, the rest as it is; the bits of a weight are the mean."""
    count, num_narrow = num_weights(shapes), num_weights(_matrices(shapes, config["vocab_size"]))
    return ModelFootprint(count, 0, (num_narrow * FOUR_BITS + (count - num_narrow) * other_bits) / count)


def _matrices(shapes: Shapes, vocabulary_size: int) -> Shapes:
    return {name: shape for name, shape in shapes.items() if len(shape) == 2 and vocabulary_size not in shape}


def _layer_of(name: str) -> int:
    """The first number in a tensor's name is its layer; -1: it is in none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), -1)


def _hidden(config: Mapping[str, Any]) -> int:
    return _first(config, "hidden_size", "n_embd")


def _num_layers(config: Mapping[str, Any]) -> int:
    return _first(config, "num_hidden_layers", "n_layer")


def _header(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, tuple(entry["shape"])


def _first(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """The first of these numbers that config.json gives; architectures name them differently."""
    for name in names:
        if config.get(name) is not None:
            return int(config[name])
    assert default is not None, names
    return default
