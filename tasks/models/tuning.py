"""How a language model is loaded for training, and which of its parameters are trained.

| tuning | the model is loaded | what is trained |
|---|---|---|
| full   | as it is | every weight |
| freeze | as it is | its last decoder layers |
| lora   | as it is, frozen | adapters: tasks/models/adapters.py |
| qlora  | its linear layers in 4 bits, frozen | adapters |
"""

from importlib.util import find_spec
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import BitsAndBytesConfig, PreTrainedModel

from tasks.config import Tuning
from tasks.errors import InputError
from tasks.models.modeling import load_causal_lm, torch_dtype

BLOCK = 64  # 4-bit weights that share a scale


def load_for_training(folder: Path, dtype: str, tuning: Tuning) -> PreTrainedModel:
    """The language model in `folder`, in evaluation mode; with qlora on the device that bitsandbytes chooses.

    Raises InputError if `folder` holds another kind, or if qlora is asked for and cannot be had here.
    """
    if tuning != "qlora":
        return load_causal_lm(folder, dtype)
    require_bitsandbytes()
    model = load_causal_lm(folder, dtype, four_bits(torch_dtype(dtype)))
    _check_rows(model)
    _stay_differentiable(model)
    return model


def require_bitsandbytes() -> None:
    """Raise InputError, saying what to install, if there is no bitsandbytes."""
    if find_spec("bitsandbytes") is None:
        raise InputError(
            "tuning qlora keeps the base in 4 bits and needs bitsandbytes, which is not installed. "
            "Install it (pip install 'alignment[qlora]'), or set tuning lora."
        )


def four_bits(compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """The quantization of QLoRA: 4-bit NormalFloat, its scales quantized too (Dettmers et al. 2023, section 3)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name in `model` (plain, a backbone, or with adapters) and modules of its decoder layers, first to last.

    Raises InputError if there is no list of modules as long as the model's config says.
    """
    config = next(module for module in model.modules() if isinstance(module, PreTrainedModel)).config
    count = config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise InputError(
        f"{type(model).__name__}: its {count} layers are in no list of modules, so they cannot be chosen or recomputed "
        "one by one. Set tuning full or lora, without trainable_layers and gradient_checkpointing."
    )


def last_layers(model: nn.Module, count: int) -> list[int]:
    """Indices of the last `count` decoder layers, in order; raises InputError if the model has fewer."""
    total = len(decoder_layers(model)[1])
    if not 1 <= count <= total:
        raise InputError(
            f"trainable_layers {count}: the model has {total} layers. Set trainable_layers to 1 up to {total}."
        )
    return list(range(total - count, total))


def trainable_parameters(model: nn.Module, tuning: Tuning, trainable_layers: int | None) -> dict[str, nn.Parameter]:
    """The parameters that full or freeze trains, by name; exactly they require gradients afterwards.

    freeze: those of the last `trainable_layers` decoder layers; embeddings, final norm and head stay.
    """
    assert tuning in ("full", "freeze"), tuning
    parameters = dict(model.named_parameters())
    if tuning == "freeze":
        assert trainable_layers is not None
        name, _ = decoder_layers(model)
        prefixes = tuple(f"{name}.{index}." for index in last_layers(model, trainable_layers))
        parameters = {key: parameter for key, parameter in parameters.items() if key.startswith(prefixes)}
    model.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return parameters


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Keep only each decoder layer's input for the backward pass, which runs the layer again.

    The layers run again with what is set in them then: never switch adapters between a forward and its backward.
    transformers' own checkpointing works in training mode only, where it also takes the KV cache away from generation;
    ours depends on nothing but whether gradients are asked for.
    """
    for layer in decoder_layers(model)[1]:
        # A bound method: a deep copy of the model gets one that is bound to the copied layer.
        layer.forward = MethodType(_recomputed_in_backward, layer)


def is_recomputed(layer: nn.Module) -> bool:
    """Whether the layer runs again in the backward pass."""
    return getattr(layer.forward, "__func__", None) is _recomputed_in_backward


def _recomputed_in_backward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = MethodType(type(layer).forward, layer)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _check_rows(model: nn.Module) -> None:
    """Raise InputError for layers whose rows end within a block: bitsandbytes 0.50 reads them wrongly on a CPU."""
    for name, module in model.named_modules():
        if hasattr(module, "quant_state") and module.weight.device.type == "cpu" and module.in_features % BLOCK:
            raise InputError(
                f"tuning qlora: {name} has {module.in_features} inputs; on a CPU bitsandbytes misreads 4-bit weights "
                f"unless that is a multiple of {BLOCK}. Set tuning lora, or run on a GPU."
            )


def _stay_differentiable(model: nn.Module) -> None:
    """Keep 4-bit layers in the form that has a gradient.

    On CPUs with bfloat16 instructions bitsandbytes packs the weights at the first forward without gradients, for good:
    from then on the layer passes no gradient on and computes in bfloat16 whatever was asked for.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
