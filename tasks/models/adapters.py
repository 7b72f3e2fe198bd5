"""LoRA adapters on a frozen language model: add, switch, read, write, merge.

One frozen base serves several models, each an adapter with a name. PEFT's own switches cost tens of milliseconds
and change which parameters require gradients; `use_adapter` does neither, and `set_trainable` alone decides what is
trained.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import peft
from peft.tuners.lora import LoraLayer
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from tasks.config import LoraConfig
from tasks.errors import InputError
from tasks.models.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, require_kind, write_json
from tasks.models.modeling import load_causal_lm
from tasks.models.safe_loading import require_safetensors
from tasks.models.tuning import decoder_layers, last_layers

_SHOWN = 5


def add_lora(
    model: PreTrainedModel | peft.PeftModel,
    config: LoraConfig,
    names: Sequence[str],
    trainable_layers: int | None = None,
) -> peft.PeftModel:
    """`model` with a fresh adapter for each name; exactly these adapters' tensors require gradients.

    They stand in the last `trainable_layers` decoder layers; None = all. `model` may be a transformer without a head.
    Raises InputError if the config names no module of the model, or there are not so many layers.
    """
    task_type = "CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else "FEATURE_EXTRACTION"
    configs = {name: make_peft_config(config, task_type) for name in names}
    if trainable_layers is not None:
        for peft_config in configs.values():
            _restrict(peft_config, model, trainable_layers)
    return _attach(model, configs)


def add_lora_to_classifier(
    classifier: PreTrainedModel, config: LoraConfig, name: str, trainable_layers: int | None = None
) -> peft.PeftModel:
    """`classifier` with a fresh adapter; exactly the adapter's tensors and the head `score` require gradients."""
    peft_config = make_peft_config(config, "SEQ_CLS", modules_to_save=["score"])
    if trainable_layers is not None:
        _restrict(peft_config, classifier, trainable_layers)
    adapted = _attach(classifier, {name: peft_config})
    for key, parameter in adapted.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or f"score.modules_to_save.{name}." in key)
    return adapted


def make_peft_config(
    config: LoraConfig, task_type: str = "CAUSAL_LM", modules_to_save: list[str] | None = None
) -> peft.LoraConfig:
    """PEFT's form of our config."""
    return peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        target_modules=config.target_modules,
        task_type=task_type,
        modules_to_save=modules_to_save,
    )


def load_adapter(model: PreTrainedModel | peft.PeftModel, folder: Path, name: str) -> peft.PeftModel:
    """`model` with the adapter of `folder` (kind adapter or reward_adapter) under `name`; see `attach_adapter`."""
    require_kind(folder, "adapter", "reward_adapter")
    require_safetensors(folder, ADAPTER_WEIGHTS)
    config = peft.LoraConfig.from_pretrained(folder)
    return attach_adapter(model, config, load_file(folder / ADAPTER_WEIGHTS), name, source=str(folder))


def attach_adapter(
    model: PreTrainedModel | peft.PeftModel,
    config: peft.LoraConfig,
    state: Mapping[str, Tensor],
    name: str,
    source: str = "the adapter",
) -> peft.PeftModel:
    """`model` with an adapter of these tensors, which are frozen; what else requires gradients stays as it was.

    Raises InputError, naming `source`, if the adapter was not made for this model.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adapted = _attach(model, {name: config})
    adapted.requires_grad_(False)
    for parameter in trainable:
        parameter.requires_grad_(True)
    load_adapter_state(adapted, state, name, source)
    return adapted


def lora_layers(model: nn.Module) -> list[LoraLayer]:
    """Every layer that holds adapters, once: gather them before a loop and give them to `use_adapter`."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def use_adapter(layers: Iterable[LoraLayer], name: str | None) -> None:
    """Make the adapter `name` the one that forwards go through, or the bare base for None.

    Only flags change: what requires gradients stays as it is. Never switch between a forward and its backward:
    gradient checkpointing runs the layers again, with the adapter that is active then.
    """
    for layer in layers:
        layer._disable_adapters = name is None
        if name is not None:
            layer._active_adapter = [name]


def set_trainable(model: nn.Module, names: Iterable[str]) -> None:
    """Make exactly the tensors of the named adapters require gradients."""
    model.requires_grad_(False)
    for name in names:
        for parameter in adapter_parameters(model, name).values():
            parameter.requires_grad_(True)


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The tensors of the adapter `name`, by their names in `model`."""
    part = f".{name}."
    return {key: parameter for key, parameter in model.named_parameters() if "lora_" in key and part in f"{key}."}


def adapter_state(model: peft.PeftModel, name: str) -> dict[str, Tensor]:
    """The adapter's tensors under the names of adapter_model.safetensors, on the CPU."""
    state = peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}


def load_adapter_state(
    model: peft.PeftModel, state: Mapping[str, Tensor], name: str, source: str = "the adapter"
) -> None:
    """Copy what `adapter_state` gave into the adapter `name`; raises InputError unless names and shapes all agree.

    Embeddings of the base that PEFT saved beside the adapter are taken in the place of the base's.
    """
    require_fit(model, state, name, source)
    peft.set_peft_model_state_dict(model, dict(state), adapter_name=name)


def require_fit(model: peft.PeftModel, state: Mapping[str, Tensor], name: str, source: str) -> None:
    """Raise InputError, naming `source` and what differs, unless `state` are all tensors of the adapter `name`."""
    embeddings = {key: shape for key, shape in _shapes(model, name, True).items() if key in state}
    expected = _shapes(model, name, False) | embeddings
    found = {key: tuple(tensor.shape) for key, tensor in state.items()}
    if expected != found:
        differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        shown = "\n".join(
            f"  {key}: expected {expected.get(key)}, found {found.get(key)}" for key in differing[:_SHOWN]
        )
        raise InputError(
            f"{source} does not fit this base model: {len(differing)} tensors differ. "
            f"Give the base that it was trained on.\n{shown}"
        )


def place_adapter(
    outline: PreTrainedModel, config: peft.LoraConfig, state: Mapping[str, Tensor], name: str, source: str
) -> peft.PeftModel:
    """`outline`, a model on the meta device, with an adapter of these tensors in float32; the base stays on meta.

    What the adapter brings in the place of the base's own (biases, embeddings) is no longer on meta.
    """
    adapted = _attach(outline, {name: config})
    require_fit(adapted, state, name, source)
    within = adapted.state_dict()
    saved = peft.get_peft_model_state_dict(adapted, state_dict=within, adapter_name=name, save_embedding_layers=True)
    names = {id(tensor): key for key, tensor in within.items()}
    placed = {names[id(saved[key])]: tensor.float() for key, tensor in state.items()}
    adapted.load_state_dict(placed, strict=False, assign=True)
    return adapted.eval()


def save_adapter(folder: Path, model: peft.PeftModel, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write an `adapter` folder; the base is not named in it, since it may lie elsewhere tomorrow."""
    write_adapter(folder, adapter_state(model, name), model.peft_config[name])
    tokenizer.save_pretrained(folder)


def write_adapter(folder: Path, state: Mapping[str, Tensor], config: peft.LoraConfig) -> None:
    """Write adapter_model.safetensors and adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    save_adapter_config(folder, config)


def save_adapter_config(folder: Path, config: peft.LoraConfig) -> None:
    """Write adapter_config.json without what ties it to this machine or to the task it was trained on."""
    changes = {
        "base_model_name_or_path": None,
        "inference_mode": True,
        "modules_to_save": None,
        "task_type": "CAUSAL_LM",
    }
    options = {**config.to_dict(), **changes}
    content = {name: sorted(value) if isinstance(value, set) else value for name, value in sorted(options.items())}
    write_json(folder / ADAPTER_CONFIG, content)


def load_merged(base: Path, adapter: Path) -> PreTrainedModel:
    """A new plain model, float32: the language model in `base` with the adapter in `adapter` added to its weights."""
    return load_adapter(load_causal_lm(base), adapter, "default").merge_and_unload(safe_merge=True)


def _shapes(model: peft.PeftModel, name: str, save_embedding_layers: bool) -> dict[str, tuple[int, ...]]:
    state = peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=save_embedding_layers)
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _restrict(config: peft.LoraConfig, model: nn.Module, trainable_layers: int) -> None:
    """Let `config` target modules of the last decoder layers only."""
    name, layers = decoder_layers(model)
    if config.target_modules == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        config.target_modules = _linear_names(layers)
    if isinstance(config.target_modules, str):
        raise InputError(
            f"lora.target_modules {config.target_modules!r} is a pattern, which trainable_layers cannot narrow down. "
            "List the modules' names, or put the layers into the pattern and leave trainable_layers out."
        )
    config.layers_to_transform = last_layers(model, trainable_layers)
    config.layers_pattern = [name.rpartition(".")[2]]


def _linear_names(layers: nn.ModuleList) -> set[str]:
    """The last part of the name of each linear module, with or without adapters on it."""
    names = [name for name, module in layers.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    return {name.removesuffix(".base_layer").rpartition(".")[2] for name in names if ".lora_" not in name}


def _attach(model: PreTrainedModel | peft.PeftModel, configs: Mapping[str, peft.LoraConfig]) -> peft.PeftModel:
    for name, config in configs.items():
        try:
            if isinstance(model, peft.PeftModel):
                model.add_adapter(name, config)
            else:
                model = peft.get_peft_model(model, config, adapter_name=name)
        except ValueError as error:
            raise InputError(f"target_modules {config.target_modules} do not fit the model: {error}") from error
        if config.use_dora:
            _reset_magnitudes(model, name)
    set_trainable(model, configs)
    return model


def _reset_magnitudes(model: nn.Module, name: str) -> None:
    """Set the fresh DoRA adapter's lengths to those of the weight rows, in float32, in which every forward takes them.

    PEFT rounds them to the precision of the base: in bfloat16 a fresh adapter would already change the model.
    """
    for layer in lora_layers(model):
        if name in layer.lora_magnitude_vector and name in layer.lora_A:
            layer.lora_magnitude_vector[name].update_layer(
                base_layer=layer.get_base_layer(),
                lora_A=layer.lora_A[name].weight,
                lora_B=layer.lora_B[name].weight,
                scaling=layer.scaling[name],
            )
