"""A transformer cut in two: lower layers that nothing changes, and the upper ones, which go on from their states.

What the lower layers make of a text is the same for every model that shares them and for every epoch, so it is computed
once. (trlX's "hydra" shares the lower layers' weights between policy and reference; here their states are shared too.)

Shapes: B rows, T tokens, D hidden size.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tasks.models.tuning import decoder_layers

TOLERANCE = 1e-3


class UpperLayers(nn.Module):
    """The layers of a transformer from `first` on and its final norm: [B, T, D] -> last hidden states [B, T, D].

    They are the transformer's own: what is trained or switched there is so here.
    """

    def __init__(self, transformer: nn.Module, first: int) -> None:
        super().__init__()
        self.part = _part(transformer, slice(first, None))

    def forward(self, states: Tensor) -> Tensor:
        return self.part(inputs_embeds=states, use_cache=False).last_hidden_state


class LowerLayers(nn.Module):
    """The embeddings and the layers of a transformer before `end`: ids [B, T] -> their states [B, T, D]."""

    def __init__(self, transformer: nn.Module, end: int) -> None:
        super().__init__()
        self.part = _part(transformer, slice(end))
        norm = _final_norm(transformer)
        assert norm is not None, "ask can_be_cut first"
        self.part._modules[norm] = nn.Identity()

    def forward(self, ids: Tensor) -> Tensor:
        return self.part(input_ids=ids, use_cache=False).last_hidden_state


def num_frozen_layers(transformer: nn.Module) -> int:
    """How many layers stand below the first one with a parameter that requires gradients; 0 if the embeddings do."""
    name, layers = decoder_layers(transformer)
    for key, parameter in transformer.named_parameters():
        if parameter.requires_grad and not key.startswith((f"{name}.", f"{_final_norm(transformer)}.")):
            return 0
    trained = [any(parameter.requires_grad for parameter in layer.parameters()) for layer in layers]
    return trained.index(True) if True in trained else len(layers)


@torch.no_grad()
def can_be_cut(transformer: Any) -> bool:
    """Whether lower and upper layers one after the other give what the whole gives.

    Not so where something is added to the embeddings after the lookup, such as learned positions, or where layers and
    final norm are no direct parts of the transformer.
    """
    name, layers = decoder_layers(transformer)
    if "." in name or _final_norm(transformer) is None:
        return False
    ids = torch.arange(1, 9, device=next(transformer.parameters()).device)[None] % transformer.config.vocab_size
    whole = transformer(input_ids=ids, use_cache=False).last_hidden_state
    middle = len(layers) // 2
    parts = UpperLayers(transformer, middle)(LowerLayers(transformer, middle)(ids))
    return torch.allclose(parts, whole, rtol=TOLERANCE, atol=TOLERANCE)


def _part(transformer: nn.Module, layers: slice) -> nn.Module:
    """A view of `transformer` with these of its decoder layers only."""
    name, modules = decoder_layers(transformer)
    kept = modules[layers]
    part: Any = copy.copy(transformer)
    part._modules = {**transformer._modules, name: kept}
    part.config = copy.copy(part.config)
    part.config.num_hidden_layers = len(kept)
    if getattr(part.config, "layer_types", None):
        part.config.layer_types = part.config.layer_types[layers]
    return part


def _final_norm(transformer: nn.Module) -> str | None:
    """Name of the module between the last layer and the head; None if it is not the only norm beside the layers."""
    names = [name for name, module in transformer.named_children() if "norm" in type(module).__name__.lower()]
    return names[0] if len(names) == 1 else None
