"""An adapter added to its base layer by layer: PEFT's own layers merge, each given its weights for that moment only.

The base is an outline on the meta device with PEFT's layers in it. A layer's weights are read in float32 when their
turn comes, merged, compared with the layer's own output before, and rounded to the precision that they have on disk.
In memory: the adapter, one shard of the result, and one layer's weights a few times over in float32.

Shapes: N inputs of the check, I input features.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import peft
import torch
from peft.tuners.lora import Embedding, Linear, LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor
from transformers import PreTrainedModel

from tasks.errors import InputError
from tasks.models.adapters import place_adapter
from tasks.models.logits import ModelsDiffer
from tasks.models.modeling import causal_lm_class, read_config
from tasks.models.shards import Stored

NAME = "default"
NUM_INPUTS = 16
UNSUPPORTED = ("trainable_token_indices", "target_parameters", "ensure_weight_tying")


class LayerwiseMerge:
    """The merged model's tensors, each computed when it is asked for."""

    def __init__(self, adapted: peft.PeftModel, base: Mapping[str, Stored], tolerance: float) -> None:
        self.model: PreTrainedModel = adapted.get_base_model()
        self.base = base
        self.tolerance = tolerance
        self.untied = _untied(self.model)
        self.largest = 0.0  # difference of a layer's output before and after, as a share of its largest
        self.num_merged = 0
        self._done: dict[str, Tensor] = {}  # of merged layers, what was not yet asked for

    def outlines(self) -> dict[str, Tensor]:
        """An empty tensor for each of the merged model's, by name, in the order of the base's files."""
        return {name: self._stored(name).outline() for name in dict.fromkeys([*self.base, *self.untied])}

    def tensor(self, name: str) -> Tensor:
        """The merged tensor, in the precision that it has in the base."""
        path, _, parameter = name.rpartition(".")
        module, stored = self.model.get_submodule(path), self._stored(name)
        if isinstance(module, LoraLayer):
            if name not in self._done:
                self._done |= self._merge(path, module)
            return self._done.pop(name).to(stored.dtype)
        if isinstance(module, ModulesToSaveWrapper):
            module = module.modules_to_save[NAME]
        own = module.state_dict()[parameter]
        return stored.read() if own.is_meta else own.to(stored.dtype)

    def _stored(self, name: str) -> Stored:
        return self.base[name] if name in self.base else self.base[self.untied[name]]

    @torch.no_grad()
    def _merge(self, path: str, layer: LoraLayer) -> dict[str, Tensor]:
        """Every tensor of the layer, merged, in float32."""
        base = layer.get_base_layer()
        absent = [key for key, tensor in base.state_dict().items() if tensor.is_meta]
        read = {key: self._stored(f"{path}.{key}").read().float() for key in absent}
        base.load_state_dict(read, strict=False, assign=True)
        inputs = _inputs(path, layer)
        before = layer(inputs)
        layer.merge(safe_merge=True, adapter_names=[NAME])
        self._check(path, before, base(inputs))
        merged = {f"{path}.{key}": tensor for key, tensor in base.state_dict().items()}
        base.to("meta")
        self.num_merged += 1
        return merged

    def _check(self, path: str, before: Tensor, after: Tensor) -> None:
        relative = ((after - before).abs().max() / before.abs().max().clamp_min(torch.finfo().tiny)).item()
        if not relative <= self.tolerance:
            raise ModelsDiffer(
                f"{path}: merged in float32 the layer differs from base and adapter by {relative:.3g} of its largest "
                f"output; allowed {self.tolerance:.3g}. Nothing was kept."
            )
        self.largest = max(self.largest, relative)


def outline(base: Path) -> PreTrainedModel:
    """The model of `base` without its weights, which are on the meta device."""
    config = read_config(base)
    with torch.device("meta"):
        return causal_lm_class(config, base)._from_config(config, dtype=torch.float32)


def why_not_layerwise(config: peft.LoraConfig, model: PreTrainedModel, stored: Iterable[str]) -> str | None:
    """Why an adapter cannot be merged into the outline `model` layer by layer; None: it can."""
    used = [option for option in UNSUPPORTED if getattr(config, option, None)]
    if used:
        return f"the adapter has {' and '.join(used)}"
    names, found = set(model.state_dict()), set(stored)
    if not names - set(model.all_tied_weights_keys) <= found <= names:
        return "the base's files name its tensors otherwise than its layers"
    return None


def merge_layerwise(
    model: PreTrainedModel,
    base: Mapping[str, Stored],
    config: peft.LoraConfig,
    state: Mapping[str, Tensor],
    tolerance: float,
    source: str,
) -> LayerwiseMerge:
    """The outline `model`, whose tensors are in `base`, with the adapter `state`, of `source`, added to it.

    `tolerance`: see MergeLoraConfig. Raises InputError if the adapter is of another base.
    """
    return LayerwiseMerge(place_adapter(model, config, state, NAME, source), base, tolerance)


def _untied(model: PreTrainedModel) -> dict[str, str]:
    """Weights that were one with another and are no longer, because the adapter changes one of the two only."""
    return {
        name: other
        for name, other in model.all_tied_weights_keys.items()
        if _is_changed(model, name) or _is_changed(model, other)
    }


def _is_changed(model: PreTrainedModel, name: str) -> bool:
    module = model.get_submodule(name.rpartition(".")[0])
    return isinstance(module, LoraLayer | AuxiliaryTrainingWrapper)


def _inputs(path: str, layer: LoraLayer) -> Tensor:
    """What the layer is tried on: [N, I] numbers, or [N] token ids."""
    generator = torch.Generator().manual_seed(0)
    if type(layer) is Embedding:
        return torch.randint(layer.get_base_layer().num_embeddings, (NUM_INPUTS,), generator=generator)
    if type(layer) is Linear:
        return torch.randn(NUM_INPUTS, layer.in_features, generator=generator)
    raise InputError(
        f"{path}: PEFT has a {type(layer).__name__} there; adapters of linear layers and embeddings are merged. "
        "Merge this one with PEFT's merge_and_unload."
    )
