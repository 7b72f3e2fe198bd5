"""What PPO saves: the policy and its value model in one folder of kind `actor_critic`.

model.safetensors holds `policy.<name>` (the policy's weights, or its adapter's) and `value.<name>` (the value model's
weights or adapter, and `value.head.weight`). Weights only: what a resume needs is PPO's own checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.errors import InputError
from tasks.model_files import ACTOR_CRITIC, WEIGHTS, read_json, require_kind, write_json
from tasks.modeling import save_generation_config

POLICY = "policy."
VALUE = "value."


@dataclass(frozen=True)
class ActorCritic:
    """The tensors of an `actor_critic` folder, and how it was tuned."""

    tuning: str  # "full", or "lora": policy and value are adapters on a base that is not in the folder
    policy: dict[str, Tensor]  # names as in a `model` or an `adapter` folder
    value: dict[str, Tensor]  # names of a ScalarModel, or of an adapter and "head.weight"
    details: dict[str, Any]  # actor_critic.json


def save_actor_critic(
    folder: Path,
    policy: PreTrainedModel,
    value: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    *,
    adapter: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write an `actor_critic` folder; `adapter` names the policy's adapter, None says that `policy` is a full model.

    Raises nothing for an incomplete `value`: its tensors are the caller's, under the caller's names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _prefixed(POLICY, _policy_tensors(policy, adapter)) | _prefixed(VALUE, value)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    if adapter is not None:
        from tasks.adapters import save_adapter_config

        save_adapter_config(folder, policy.peft_config[adapter])
    policy.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_generation_config(folder, policy, tokenizer)
    write_json(folder / ACTOR_CRITIC, {**(details or {}), "tuning": "full" if adapter is None else "lora"})


def load_actor_critic(folder: Path) -> ActorCritic:
    """What `save_actor_critic` wrote; raises InputError if `folder` holds another kind or no policy."""
    require_kind(folder, "actor_critic")
    details = read_json(folder / ACTOR_CRITIC)
    tensors = load_file(folder / WEIGHTS)
    policy, value = _without_prefix(POLICY, tensors), _without_prefix(VALUE, tensors)
    if not policy or len(policy) + len(value) != len(tensors):
        raise InputError(
            f"{folder / WEIGHTS}: expected tensors named policy.* and value.*, found {sorted(tensors)[:5]}."
        )
    return ActorCritic(details["tuning"], policy, value, details)


def _policy_tensors(policy: PreTrainedModel, adapter: str | None) -> dict[str, Tensor]:
    if adapter is not None:
        from tasks.adapters import adapter_state

        return adapter_state(policy, adapter)
    tied = set(policy.all_tied_weights_keys)
    return {name: tensor for name, tensor in policy.state_dict().items() if name not in tied}


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
