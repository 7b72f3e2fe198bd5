"""From folders to policy, value model and reference: what is shared, what is copied, and where each starts."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import peft
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.actor_critic.config import ActorCriticConfig
from tasks.actor_critic.folder import load_actor_critic
from tasks.actor_critic.models import POLICY, REFERENCE, REWARD, VALUE, Models
from tasks.actor_critic.trunks import cut
from tasks.errors import InputError
from tasks.models.adapters import adapter_parameters, add_lora, attach_adapter, load_adapter, lora_layers
from tasks.models.merged_lora import merge_in_forward
from tasks.models.model_files import hidden_size, kind_of, require_kind
from tasks.models.modeling import (
    ScalarHead,
    ScalarModel,
    backbone,
    load_causal_lm,
    load_reward_model,
    load_scalar_head,
    load_tokenizer,
    reads_same_tokens,
)
from tasks.models.tuning import enable_gradient_checkpointing, load_for_training, trainable_parameters

Inputs = Mapping[str, Path]


def load_models(config: ActorCriticConfig, inputs: Inputs, device: torch.device, seed: int) -> Models:
    """The models that the config asks for, on the device; `inputs` are the program's folders.

    They are `policy` (kind `model`) and, where given, `start_policy`, `start_value`, `reward_model`, `reference`.
    """
    torch.manual_seed(seed)  # fresh adapters are random
    language_model = load_for_training(inputs["policy"], config.dtype, config.tuning).to(device)
    _check_head(language_model)
    load = _load_adapters if config.has_adapters else _load_weights
    models = load(config, inputs, language_model)
    for module in (models.language_model, models.reference_model, models.value_model, models.reward_model):
        if module is not None:
            module.to(device).eval()
    for module in (models.language_model, models.value_model):
        merge_in_forward(lora_layers(module))
    if config.gradient_checkpointing:
        for transformer in {backbone(models.language_model), models.value_model.backbone}:
            enable_gradient_checkpointing(transformer)
    _check_trainable(models)
    return replace(models, trunks=cut(models.roles(), POLICY, is_wanted=config.trainable_layers is not None))


def check_models(config: ActorCriticConfig, inputs: Inputs, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError, before anything is loaded, for a start or a reference that is not of the kind it should be."""
    value_start(config, inputs)
    if "start_policy" in inputs:
        require_kind(inputs["start_policy"], "actor_critic", "adapter" if config.has_adapters else "model")
    if "reference" in inputs:
        require_kind(inputs["reference"], "model")
        if not reads_same_tokens(load_tokenizer(inputs["reference"]), tokenizer):
            raise InputError(
                f"{inputs['reference']}: the reference model has another tokenizer than the policy, so there is no KL "
                "between them. Give a model of the same tokens."
            )


_REWARD_MODELS = ("reward_model", "reward_adapter")
_START_KINDS = {  # of folders that a value model of each form can start from
    "adapter": ("reward_adapter", "actor_critic"),
    "head": (*_REWARD_MODELS, "actor_critic"),
    "separate": (*_REWARD_MODELS, "actor_critic"),
}


def value_start(config: ActorCriticConfig, inputs: Inputs) -> Path | None:
    """The folder that the value model starts from; None: the policy's start with a head of zeros.

    Raises InputError if what is asked for cannot be.
    """
    kinds = _START_KINDS[config.value_kind]
    if "start_value" in inputs:
        return _checked_start(inputs["start_value"], inputs["policy"], kinds)
    reward_model = inputs.get("reward_model")
    if config.value_init == "reward_model":
        if reward_model is None:
            raise InputError("value_init is reward_model, but there is no reward model. Set value_init to base.")
        return _checked_start(reward_model, inputs["policy"], kinds)
    if reward_model is None or config.value_init == "base" or config.value_kind == "head":
        return None
    fits = kind_of(reward_model) in kinds and _share_tokens(reward_model, inputs["policy"])
    return reward_model if fits else None


def _checked_start(start: Path, policy: Path, kinds: Sequence[str]) -> Path:
    """`start` itself, if it is of these kinds and reads the policy's tokens."""
    require_kind(start, *kinds)
    if not _share_tokens(start, policy):
        raise InputError(
            f"{start} has another tokenizer than the policy, so the value model cannot start from it: it would misread "
            "the policy's tokens. Set value_init to base."
        )
    return start


def _share_tokens(first: Path, second: Path) -> bool:
    return reads_same_tokens(load_tokenizer(first), load_tokenizer(second))


def _load_adapters(config: ActorCriticConfig, inputs: Inputs, base: PreTrainedModel) -> Models:
    """A frozen base with an adapter for the policy and, as the config says, for value, reward and reference."""
    adapted = _attach(base, POLICY, config, inputs.get("start_policy"))
    head, value_adapters = _load_head(config, inputs), None
    if config.value_kind == "adapter":
        adapted = value_adapters = _attach(adapted, VALUE, config, value_start(config, inputs))
    value_backbone = backbone(adapted)
    if config.value_kind == "separate":
        value_adapters = _attach(_load_scalar_model(config, inputs).backbone, VALUE, config, None)
        value_backbone = backbone(value_adapters)
    if config.reference_decay < 1:
        adapted = _attach(adapted, REFERENCE, config, inputs.get("start_policy"))
    reward_model = None
    if "reward_model" in inputs and kind_of(inputs["reward_model"]) == "reward_adapter":
        adapted = load_adapter(adapted, inputs["reward_model"], REWARD)
        reward_model = ScalarModel(backbone(adapted), load_scalar_head(inputs["reward_model"])).requires_grad_(False)
    value_model = ScalarModel(value_backbone, head)
    policy_parameters = adapter_parameters(adapted, POLICY)
    value_parameters = {} if value_adapters is None else adapter_parameters(value_adapters, VALUE)
    trainable = {POLICY: policy_parameters, VALUE: value_parameters | dict(head.named_parameters(prefix="head"))}
    _train_only(trainable, adapted, value_model)
    averaged: dict[str, nn.Parameter] = {}
    if config.reference_decay < 1:
        averaged = dict(zip(policy_parameters, adapter_parameters(adapted, REFERENCE).values(), strict=True))
    return Models(
        language_model=adapted.get_base_model(),
        reference_model=_other_reference(config, inputs) or adapted.get_base_model(),
        value_model=value_model,
        reward_model=reward_model,
        policy_adapters=adapted,
        value_adapters=value_adapters,
        layers=lora_layers(adapted),
        reference_adapter=REFERENCE if averaged else None,
        value_is_on_trunk=config.value_kind == "head",
        trainable=trainable,
        averages=_copies(averaged, policy_parameters),
        averaged=averaged,
    )


def _load_weights(config: ActorCriticConfig, inputs: Inputs, language_model: PreTrainedModel) -> Models:
    """Models whose own weights are trained, all or those of the last layers."""
    policy = trainable_parameters(language_model, config.tuning, config.trainable_layers)
    reference = _other_reference(config, inputs) or _frozen_copy(language_model, "start_policy" not in inputs)
    if "start_policy" in inputs:
        _load_weights_of(inputs["start_policy"], language_model)
    if config.value_kind == "head":
        value_model = ScalarModel(backbone(language_model), _load_head(config, inputs))
        value: dict[str, nn.Parameter] = {}
    else:
        value_model = _load_scalar_model(config, inputs)
        inner = trainable_parameters(value_model.backbone, config.tuning, config.trainable_layers)
        value = {f"backbone.{name}": parameter for name, parameter in inner.items()}
    trainable = {POLICY: policy, VALUE: value | dict(value_model.head.named_parameters(prefix="head"))}
    _train_only(trainable, language_model, value_model)
    averaged = {name: reference.get_parameter(name) for name in (policy if config.reference_decay < 1 else ())}
    return Models(
        language_model=language_model,
        reference_model=reference,
        value_model=value_model,
        reward_model=None,
        policy_adapters=None,
        value_adapters=None,
        layers=(),
        reference_adapter=None,
        value_is_on_trunk=config.value_kind == "head",
        trainable=trainable,
        averages=_copies(averaged, policy),
        averaged=averaged,
    )


def _attach(model: nn.Module, name: str, config: ActorCriticConfig, start: Path | None) -> peft.PeftModel:
    """`model` with the adapter `name`: that of the folder `start`, or a fresh one."""
    if start is None:
        return add_lora(model, config.lora, [name], config.trainable_layers)
    if kind_of(start) != "actor_critic":
        return load_adapter(model, start, name)
    saved = load_actor_critic(start)
    tensors, lora = (saved.value_adapter(), saved.value_lora) if name == VALUE else (saved.policy, saved.policy_lora)
    if lora is None:
        raise InputError(f"{start} holds no adapter of the {name}: it was tuned in another way. Give another folder.")
    return attach_adapter(model, lora, tensors, name, source=str(start))


def _load_head(config: ActorCriticConfig, inputs: Inputs) -> ScalarHead:
    """The value model's head: of what it starts from, or one that says 0 until it has learned."""
    start = value_start(config, inputs)
    if start is None:
        head = ScalarHead(hidden_size(inputs["policy"]))
        nn.init.zeros_(head.weight)
        return head
    kind = kind_of(start)
    if kind == "actor_critic":
        return load_actor_critic(start).value_head()
    return load_scalar_head(start) if kind == "reward_adapter" else load_reward_model(start).head


def _load_scalar_model(config: ActorCriticConfig, inputs: Inputs) -> ScalarModel:
    """A value model of its own: of what it starts from, or the policy's start with a head of zeros."""
    start = value_start(config, inputs)
    if start is not None and kind_of(start) != "actor_critic":
        return load_reward_model(start, inputs["policy"], config.dtype)
    model = ScalarModel(backbone(load_causal_lm(inputs["policy"], config.dtype)), _load_head(config, inputs))
    if start is not None:
        _load_state(model, load_actor_critic(start).value, start)
    return model


def _frozen_copy(model: PreTrainedModel, shares_frozen: bool) -> PreTrainedModel:
    """A copy that stays; what is not trained in `model` either is shared with it if that will never change."""
    kept = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, kept if shares_frozen else {}).requires_grad_(False)


def _other_reference(config: ActorCriticConfig, inputs: Inputs) -> PreTrainedModel | None:
    if "reference" not in inputs:
        return None
    return load_causal_lm(inputs["reference"], config.dtype).requires_grad_(False)


def _load_weights_of(start: Path, model: PreTrainedModel) -> None:
    """Copy the policy in the folder `start` into the model."""
    is_saved = kind_of(start) == "actor_critic"
    state = load_actor_critic(start).policy if is_saved else load_causal_lm(start).state_dict()
    tied = {name: model.state_dict()[name] for name in model.all_tied_weights_keys}
    _load_state(model, {**tied, **state}, start)


def _load_state(model: nn.Module, state: Mapping[str, torch.Tensor], source: Path) -> None:
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise InputError(f"{source} does not fit the policy's model: {error}") from error


def _copies(averaged: Mapping[str, nn.Parameter], policy: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Float32 copies of the policy's parameters, and the reference's set to them."""
    with torch.no_grad():
        for name, parameter in averaged.items():
            parameter.copy_(policy[name])
    return {name: policy[name].detach().float().clone() for name in averaged}


def _train_only(trainable: Mapping[str, Mapping[str, nn.Parameter]], *modules: nn.Module) -> None:
    for module in modules:
        module.requires_grad_(False)
    for part in trainable.values():
        for parameter in part.values():
            parameter.requires_grad_(True)


def _check_trainable(models: Models) -> None:
    """Exactly what the optimizer gets requires gradients: an adapter library may have changed it behind our back."""
    expected = {id(parameter) for part in models.trainable.values() for parameter in part.values()}
    modules = (models.language_model, models.reference_model, models.value_model, models.reward_model)
    parameters = [parameter for module in modules if module is not None for parameter in module.parameters()]
    assert {id(parameter) for parameter in parameters if parameter.requires_grad} == expected
    assert all(models.trainable.values())


@torch.no_grad()
def _check_head(model: PreTrainedModel) -> None:
    """Raise InputError if the model's logits are not simply its head on the transformer's last hidden states."""
    ids = torch.arange(1, 9, device=model.device)[None] % model.config.vocab_size
    ours = model.get_output_embeddings()(backbone(model)(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(ours, model(input_ids=ids, use_cache=False).logits, rtol=1e-3, atol=1e-3):
        raise InputError(
            f"{type(model).__name__} changes its logits after the head (soft-capping or scaling), which PPO does not "
            "reproduce. Use a model whose logits are its lm_head's output."
        )
