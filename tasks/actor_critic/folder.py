"""What PPO saves: the policy and its value model in one folder of kind `actor_critic`.

model.safetensors holds `policy.<name>` (the policy's weights, or its adapter's) and `value.<name>` (the value model's
weights or adapter, if it has its own, and `value.head.weight`). adapter_config.json describes the policy's adapter,
value/adapter_config.json the value model's. Weights only: what a resume needs is PPO's own checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.errors import InputError
from tasks.models.adapters import adapter_state, save_adapter_config
from tasks.models.model_files import ACTOR_CRITIC, ADAPTER_CONFIG, WEIGHTS, read_json, require_kind, write_json
from tasks.models.modeling import ScalarHead, make_scalar_head, save_generation_config
from tasks.models.safe_loading import require_safetensors

POLICY = "policy."
VALUE = "value."
HEAD = "head."


@dataclass(frozen=True)
class ActorCritic:
    """The tensors of an `actor_critic` folder, and how it was tuned."""

    tuning: str  # "full", or "lora": policy and value are adapters on a base that is not in the folder
    policy: dict[str, Tensor]  # names as in a `model` or an `adapter` folder
    value: dict[str, Tensor]  # names of a ScalarModel, or of an adapter and "head.weight", or "head.weight" alone
    policy_lora: peft.LoraConfig | None
    value_lora: peft.LoraConfig | None
    details: dict[str, Any]  # actor_critic.json

    def value_adapter(self) -> dict[str, Tensor]:
        """The value model's tensors but its head's."""
        return {name: tensor for name, tensor in self.value.items() if not name.startswith(HEAD)}

    def value_head(self) -> ScalarHead:
        """A copy of the value model's head."""
        offset = self.value.get(f"{HEAD}offset")
        return make_scalar_head(self.value[f"{HEAD}weight"], 0.0 if offset is None else offset.item())


def save_actor_critic(
    folder: Path,
    policy: PreTrainedModel,
    value: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    *,
    adapter: str | None = None,
    value_lora: peft.LoraConfig | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write an `actor_critic` folder; `adapter` names the policy's adapter, None says that `policy` is a full model.

    `value_lora` describes the value model's adapter, if it has one of its own.
    Raises nothing for an incomplete `value`: its tensors are the caller's, under the caller's names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _prefixed(POLICY, _policy_tensors(policy, adapter)) | _prefixed(VALUE, value)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    if adapter is not None:
        save_adapter_config(folder, policy.peft_config[adapter])
    if value_lora is not None:
        save_adapter_config(folder / "value", value_lora)
    policy.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_generation_config(folder, policy, tokenizer)
    write_json(folder / ACTOR_CRITIC, {**(details or {}), "tuning": "full" if adapter is None else "lora"})


def load_actor_critic(folder: Path) -> ActorCritic:
    """What `save_actor_critic` wrote; raises InputError if `folder` holds another kind or no policy."""
    require_kind(folder, "actor_critic")
    require_safetensors(folder, WEIGHTS)
    details = read_json(folder / ACTOR_CRITIC)
    tensors = load_file(folder / WEIGHTS)
    policy, value = _without_prefix(POLICY, tensors), _without_prefix(VALUE, tensors)
    if not policy or len(policy) + len(value) != len(tensors):
        raise InputError(
            f"{folder / WEIGHTS}: expected tensors named policy.* and value.*, found {sorted(tensors)[:5]}."
        )
    return ActorCritic(details["tuning"], policy, value, _lora_in(folder), _lora_in(folder / "value"), details)


def _policy_tensors(policy: PreTrainedModel, adapter: str | None) -> dict[str, Tensor]:
    if adapter is not None:
        return adapter_state(policy, adapter)
    tied = set(policy.all_tied_weights_keys)
    return {name: tensor for name, tensor in policy.state_dict().items() if name not in tied}


def _lora_in(folder: Path) -> peft.LoraConfig | None:
    return peft.LoraConfig.from_pretrained(folder) if (folder / ADAPTER_CONFIG).is_file() else None


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
