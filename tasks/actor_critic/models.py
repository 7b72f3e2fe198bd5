"""Policy, reference, value model and a reward adapter: on one base, or each by itself.

Shapes: none; what goes in and out is in tasks/episodes.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.actor_critic.folder import save_actor_critic
from tasks.actor_critic.trunks import Role, Trunks
from tasks.episodes import Episodes, with_states
from tasks.models.adapters import adapter_state, use_adapter
from tasks.models.modeling import ScalarModel, backbone

POLICY, VALUE, REWARD, REFERENCE = "policy", "value", "reward", "reference"


@dataclass(frozen=True)
class Models:
    """Ask for a model, run its forward and its backward, then ask for the next.

    On a shared base, asking for one switches its adapter in, and what was asked for before must not be run any more.
    All are in evaluation mode: with dropout the ratio of two policies would compare two random networks.
    """

    language_model: PreTrainedModel
    reference_model: PreTrainedModel
    value_model: ScalarModel
    reward_model: ScalarModel | None  # an adapter on the policy's base; other reward models are in tasks/rewards
    policy_adapters: peft.PeftModel | None  # the policy's base with its adapters; None where weights are trained
    value_adapters: peft.PeftModel | None  # what holds the adapter VALUE: the same base, or one of its own
    layers: Sequence[LoraLayer]  # of the policy's base
    reference_adapter: str | None  # on the policy's base, where the reference is no model of its own
    value_is_on_trunk: bool  # policy and value model share their whole transformer: one forward serves both
    trainable: Mapping[str, Mapping[str, nn.Parameter]]  # of the policy and of the value model, by name
    averages: Mapping[str, Tensor]  # float32, of the policy's parameters, by name; empty where the reference stays
    averaged: Mapping[str, nn.Parameter]  # the reference's parameters that take them over
    trunks: Trunks | None = None  # what reads a rollout in each role; None: not yet known

    def policy(self) -> PreTrainedModel:
        """The language model that is trained."""
        use_adapter(self.layers, POLICY)
        return self.language_model

    def reference(self) -> PreTrainedModel:
        """The language model that the policy is kept near."""
        use_adapter(self.layers, self.reference_adapter)
        return self.reference_model

    def value(self) -> ScalarModel:
        """The model of what is still to come at each token; trained."""
        use_adapter(self.layers, POLICY if self.value_is_on_trunk else VALUE)
        return self.value_model

    def reward(self) -> ScalarModel:
        """The reward adapter on the policy's base, as it reads episodes of `with_states`; frozen."""
        assert self.reward_model is not None
        return ScalarModel(self.trunk(REWARD), self.reward_model.head)

    def trunk(self, role: str) -> nn.Module:
        """What makes last hidden states of a rollout's episodes in this role: a transformer or its UpperLayers."""
        assert self.trunks is not None
        use_adapter(self.layers, self.roles()[role].adapter)
        return self.trunks.by_role[role]

    def with_states(self, episodes: Episodes, token_budget: int) -> Episodes:
        """The episodes as `trunk` reads them: with the states of the lower layers, where these are the same for all."""
        assert self.trunks is not None
        use_adapter(self.layers, None)
        return episodes if self.trunks.lower is None else with_states(self.trunks.lower, episodes, token_budget)

    def groups(self, roles: Sequence[str]) -> list[list[str]]:
        """The roles, those together that one forward serves."""
        if not self.value_is_on_trunk:
            return [[role] for role in roles]
        shared = [role for role in roles if role in (POLICY, VALUE)]
        return [shared, *([role] for role in roles if role not in shared)]

    def roles(self) -> dict[str, Role]:
        """The transformer and the adapter of policy, value model, reference and, if there is one, reward adapter."""
        value_adapter = POLICY if self.value_is_on_trunk else VALUE
        roles = {
            POLICY: Role(backbone(self.language_model), POLICY),
            VALUE: Role(self.value_model.backbone, value_adapter),
            REFERENCE: Role(backbone(self.reference_model), self.reference_adapter),
        }
        return roles if self.reward_model is None else roles | {REWARD: Role(self.reward_model.backbone, REWARD)}

    @torch.no_grad()
    def move_reference(self, decay: float) -> None:
        """The reference follows the policy: average <- decay average + (1 - decay) policy, where there are averages.

        Of adapters each factor is averaged by itself.
        """
        for name, average in self.averages.items():
            average.lerp_(self.trainable[POLICY][name].float(), 1 - decay)
            self.averaged[name].copy_(average)

    @torch.no_grad()
    def load_averages(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the averages of a former process."""
        for name, average in self.averages.items():
            average.copy_(tensors[name])
            self.averaged[name].copy_(average)

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase, details: Mapping[str, object]) -> None:
        """Write policy and value model as an `actor_critic`."""
        value = {f"head.{name}": tensor for name, tensor in self.value_model.head.state_dict().items()}
        if self.value_adapters is not None:
            value |= adapter_state(self.value_adapters, VALUE)
        elif not self.value_is_on_trunk:
            value = self.value_model.state_dict()
        policy = self.language_model if self.policy_adapters is None else self.policy_adapters
        save_actor_critic(
            folder,
            policy,
            value,
            tokenizer,
            adapter=None if self.policy_adapters is None else POLICY,
            value_lora=None if self.value_adapters is None else self.value_adapters.peft_config[VALUE],
            details=details,
        )
