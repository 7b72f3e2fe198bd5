"""A model's weights copied file to file: in shards of a chosen size and precision, one shard in memory."""

from pathlib import Path

import torch

from tasks.errors import InputError
from tasks.models.model_files import CONFIG, read_json
from tasks.models.shards import Stored, main_dtype, weights_in, write_shards

STEM = "model"


def read_weights(folder: Path) -> dict[str, Stored]:
    """Every tensor of the `model` folder; raises InputError where there are none, or quantised ones."""
    quantization = read_json(folder / CONFIG).get("quantization_config")
    if quantization:
        raise InputError(
            f"{folder}: its weights are quantised ({quantization.get('quant_method')}). Export the model that it was "
            "quantised from; `quantized` makes such a form of it."
        )
    stored = weights_in(folder, STEM)
    if not stored:
        raise InputError(f"{folder}: expected {STEM}.safetensors, or its shards with an index; there is neither.")
    return stored


def own_dtype(folder: Path) -> str:
    """The precision that a `model` folder is loaded in: what its config says, else what most of its weights have."""
    config = read_json(folder / CONFIG)
    named = config.get("dtype") or config.get("torch_dtype")
    return named or str(main_dtype(read_weights(folder))).removeprefix("torch.")


def copy_weights(folder: Path, stored: dict[str, Stored], dtype: torch.dtype | None, max_shard_size: str) -> None:
    """Write the tensors into `folder`, those of floating point as `dtype`; None = each as it is, to the bit."""
    outlines = {name: tensor.outline() for name, tensor in stored.items()}
    if dtype is not None:
        outlines = {
            name: outline.to(dtype) if outline.is_floating_point() else outline for name, outline in outlines.items()
        }
    write_shards(folder, outlines, lambda name: stored[name].read().to(outlines[name].dtype), max_shard_size, STEM)
