"""Which transformer reads a rollout in each role: the whole one, or the upper layers alone, from states kept for all.

With `trainable_layers` the layers below are frozen, and where they are the same for policy, value model, reference and
reward adapter, their states are too: computed once a rollout, they serve every role and every epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from tasks.models.adapters import adapter_parameters
from tasks.models.trunk import LowerLayers, UpperLayers, can_be_cut, num_frozen_layers


@dataclass(frozen=True)
class Role:
    """A model as a role sees it."""

    transformer: nn.Module
    adapter: str | None  # that is switched in for it


@dataclass(frozen=True)
class Trunks:
    """What reads a rollout."""

    lower: LowerLayers | None  # whose states are kept; None: every pass runs all layers
    by_role: Mapping[str, nn.Module]  # a whole transformer, or UpperLayers


def cut(roles: Mapping[str, Role], policy: str, *, is_wanted: bool) -> Trunks:
    """The trunks of the roles: cut below the first layer that `policy` trains, for those that share what is below."""
    whole = {name: role.transformer for name, role in roles.items()}
    transformer = roles[policy].transformer
    if not is_wanted or not (num_lower := num_frozen_layers(transformer)):
        return Trunks(None, whole)
    if not can_be_cut(transformer):
        print(f"{type(transformer).__name__}: its lower layers' states cannot be kept; every pass runs all layers.")
        return Trunks(None, whole)
    lower = LowerLayers(transformer, num_lower)
    upper = {
        name: UpperLayers(role.transformer, num_lower)
        for name, role in roles.items()
        if type(role.transformer) is type(transformer)
        and _is_same(LowerLayers(role.transformer, num_lower), role.adapter, lower)
    }
    return Trunks(lower, {**whole, **upper})


def _is_same(layers: LowerLayers, adapter: str | None, others: LowerLayers) -> bool:
    """Whether the adapter has no part in the layers, and their weights are those of the others."""
    if adapter is not None and adapter_parameters(layers, adapter):
        return False
    ours, theirs = _weights_of(layers), _weights_of(others)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _weights_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights by name, adapters left out."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if "lora_" not in name]
    return {name.replace(".base_layer.", "."): parameter for name, parameter in named}
