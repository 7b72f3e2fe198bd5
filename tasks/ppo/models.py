"""The four models of PPO - policy, reference, value, reward - on one frozen base, or each by itself.

Shapes: none; what goes in and out is in tasks/episodes.py.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.actor_critic import save_actor_critic
from tasks.adapters import adapter_parameters, adapter_state, add_lora, load_adapter, lora_layers, use_adapter
from tasks.errors import InputError
from tasks.model_files import kind_of
from tasks.modeling import ScalarHead, ScalarModel, backbone, load_causal_lm, load_reward_model, load_scalar_head
from tasks.ppo.config import PPOConfig

POLICY, VALUE, REWARD = "policy", "value", "reward"


@dataclass(frozen=True)
class Models:
    """Ask for a model, run its forward and its backward, then ask for the next.

    On a shared base, asking for one switches its adapter in, and what was asked for before must not be run any more.
    All are in evaluation mode: with dropout the ratio of two policies would compare two random networks.
    """

    language_model: PreTrainedModel
    reference_model: PreTrainedModel
    value_model: ScalarModel
    reward_model: ScalarModel | None
    adapters: peft.PeftModel | None  # the shared base with its adapters; None where the models are separate
    layers: Sequence[LoraLayer]  # of the shared base
    trainable: Mapping[str, Mapping[str, nn.Parameter]]  # of the policy and of the value model, by name

    def policy(self) -> PreTrainedModel:
        """The language model that is trained."""
        use_adapter(self.layers, POLICY)
        return self.language_model

    def reference(self) -> PreTrainedModel:
        """The language model that the policy is kept near: frozen."""
        use_adapter(self.layers, None)
        return self.reference_model

    def value(self) -> ScalarModel:
        """The model of what is still to come at each token; trained."""
        use_adapter(self.layers, VALUE)
        return self.value_model

    def reward(self) -> ScalarModel:
        """The model of the preferences: frozen."""
        assert self.reward_model is not None
        use_adapter(self.layers, REWARD)
        return self.reward_model

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase, details: Mapping[str, Any]) -> None:
        """Write policy and value model as an `actor_critic`."""
        if self.adapters is None:
            save_actor_critic(folder, self.language_model, self.value_model.state_dict(), tokenizer, details=details)
        else:
            head = {f"head.{name}": tensor for name, tensor in self.value_model.head.state_dict().items()}
            value = adapter_state(self.adapters, VALUE) | head
            save_actor_critic(folder, self.adapters, value, tokenizer, adapter=POLICY, details=details)


def load_models(config: PPOConfig, policy: Path, reward: Path | None, device: torch.device) -> Models:
    """The models of `config.models`, on the device; `reward` is a full reward model, an adapter, or None."""
    torch.manual_seed(config.seed)  # fresh adapters are random
    load = _load_shared if config.models == "shared" else _load_separate
    models = load(config, policy, reward, device)
    _check_trainable(models)
    _check_head(models.language_model)
    return models


def _load_shared(config: PPOConfig, policy: Path, reward: Path | None, device: torch.device) -> Models:
    """A frozen base with adapters; the value's starts as the reward's, and a full reward model stands beside it."""
    base = load_causal_lm(policy, config.dtype)
    reward_model = None
    if reward is not None and kind_of(reward) == "reward_adapter":
        adapted = add_lora(base, config.lora, [POLICY])
        for name in (VALUE, REWARD):
            adapted = load_adapter(adapted, reward, name)
        value_head = load_scalar_head(reward)
        reward_model = ScalarModel(backbone(adapted), load_scalar_head(reward).requires_grad_(False)).to(device)
    else:
        adapted = add_lora(base, config.lora, [POLICY, VALUE])
        value_head = _zero_head(base)
        reward_model = None if reward is None else load_reward_model(reward, dtype=config.dtype).to(device)
    language_model = adapted.to(device).eval().get_base_model()
    value_model = ScalarModel(backbone(adapted), value_head).to(device).eval()
    value_parameters: dict[str, nn.Parameter] = adapter_parameters(adapted, VALUE)
    value_parameters |= dict(value_head.named_parameters(prefix="head"))
    for parameter in value_parameters.values():
        parameter.requires_grad_(True)
    return Models(
        language_model=language_model,
        reference_model=language_model,
        value_model=value_model,
        reward_model=reward_model,
        adapters=adapted,
        layers=lora_layers(adapted),
        trainable={POLICY: adapter_parameters(adapted, POLICY), VALUE: value_parameters},
    )


def _load_separate(config: PPOConfig, policy: Path, reward: Path | None, device: torch.device) -> Models:
    """Four models; the value model starts as the reward model, or as the policy with a head of zeros."""
    language_model = load_causal_lm(policy, config.dtype).to(device).eval()
    if reward is None:
        reward_model = None
        value_model = ScalarModel(backbone(copy.deepcopy(language_model)), _zero_head(language_model)).to(device)
    else:
        reward_model = load_reward_model(reward, policy, config.dtype).to(device)
        value_model = copy.deepcopy(reward_model)
    return Models(
        language_model=language_model,
        reference_model=copy.deepcopy(language_model).requires_grad_(False),
        value_model=value_model,
        reward_model=reward_model,
        adapters=None,
        layers=(),
        trainable={
            POLICY: dict(language_model.requires_grad_(True).named_parameters()),
            VALUE: dict(value_model.requires_grad_(True).eval().named_parameters()),
        },
    )


def _zero_head(model: PreTrainedModel) -> ScalarHead:
    """A head that says 0 until it has learned."""
    head = ScalarHead(model.config.get_text_config().hidden_size)
    nn.init.zeros_(head.weight)
    return head


def _check_trainable(models: Models) -> None:
    """Exactly what the optimizer gets requires gradients: an adapter library may have changed it behind our back."""
    expected = {id(parameter) for part in models.trainable.values() for parameter in part.values()}
    modules = (models.language_model, models.reference_model, models.value_model, models.reward_model)
    parameters = [parameter for module in modules if module is not None for parameter in module.parameters()]
    assert {id(parameter) for parameter in parameters if parameter.requires_grad} == expected
    assert all(models.trainable.values())
    assert all(parameter.dtype == torch.float32 for part in models.trainable.values() for parameter in part.values())


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
