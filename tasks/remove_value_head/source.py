"""What PPO saved, ours or another library's: which of its tensors are the policy's, and which the value head's.

| layout | where the weights are | where the value head is |
|---|---|---|
| ours | model.safetensors, `policy.*` | there, `value.*` |
| TRL 0.x | model.safetensors or its shards | there, `v_head.*` |
| their wrapper's own state | the same, below `pretrained_model.` | there, `v_head.*` |
| LLaMA-Factory | model.safetensors | value_head.safetensors or value_head.bin beside it |
| TRL 0.x with PEFT | adapter_model.safetensors | pytorch_model.bin beside it |
| LLaMA-Factory with LoRA | adapter_model.safetensors | value_head.safetensors or value_head.bin beside it |

A value head in a file of its own is never opened: it is left behind.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.actor_critic.folder import POLICY, VALUE
from tasks.errors import InputError
from tasks.models.model_files import ACTOR_CRITIC, ADAPTER_CONFIG, CONFIG, WEIGHTS, read_json
from tasks.models.modeling import TOKENIZER_FILES
from tasks.models.safe_loading import refuse_pickled_weights
from tasks.models.shards import INDEX, SAFETENSORS, Stored, listed, weights_in

WRAPPED = "pretrained_model."
VALUE_HEAD = "v_head."
VALUE_HEAD_FILES = ("value_head.safetensors", "value_head.bin")
BIN_BESIDE_ADAPTER = "pytorch_model.bin"


@dataclass(frozen=True)
class Source:
    """A checkpoint with a policy and a value head."""

    folder: Path
    tuning: str  # "full", or "lora": the policy is an adapter on a base that is not in the folder
    policy: Mapping[str, Stored]  # by their names in a `model` or an `adapter` folder
    value: tuple[str, ...]  # names of the tensors that are left behind
    value_files: tuple[str, ...]  # files beside that are left behind unopened
    config_folder: Path  # has config.json or adapter_config.json
    tokenizer_folder: Path

    @property
    def is_ours(self) -> bool:
        """Whether a PPO of this project saved it."""
        return (self.folder / ACTOR_CRITIC).is_file()


def read_source(folder: Path, base: Path | None) -> Source:
    """What is in `folder`; config and tokenizer are those of `base` where it has none.

    Raises InputError if there is no value head, or no policy, or only pickled weights.
    """
    if (folder / ACTOR_CRITIC).is_file():
        tuning = read_json(folder / ACTOR_CRITIC)["tuning"]
        policy, value = _ours(folder)
        value_files: tuple[str, ...] = ()
    else:
        tuning = "lora" if (folder / ADAPTER_CONFIG).is_file() else "full"
        policy, value = _foreign(folder, "adapter_model" if tuning == "lora" else "model")
        value_files = _value_files(folder, tuning)
        _require_a_value_head(folder, value, value_files)
    marker = CONFIG if tuning == "full" else ADAPTER_CONFIG
    return Source(
        folder=folder,
        tuning=tuning,
        policy=policy,
        value=tuple(sorted(value)),
        value_files=value_files,
        config_folder=_having(folder, base, (marker,)),
        tokenizer_folder=_having(folder, base, TOKENIZER_FILES),
    )


def _ours(folder: Path) -> tuple[dict[str, Stored], set[str]]:
    stored = weights_in(folder, "model")
    policy = {key.removeprefix(POLICY): tensor for key, tensor in stored.items() if key.startswith(POLICY)}
    value = {key for key in stored if key.startswith(VALUE)}
    if not policy or len(policy) + len(value) != len(stored):
        raise InputError(f"{folder / WEIGHTS}: expected tensors named policy.* and value.*, found {listed(stored)}.")
    return policy, value


def _foreign(folder: Path, stem: str) -> tuple[dict[str, Stored], set[str]]:
    stored = weights_in(folder, stem)
    if not stored:
        _refuse_absent(folder, stem)
    value = {key for key in stored if key.removeprefix(WRAPPED).startswith(VALUE_HEAD)}
    policy = {key.removeprefix(WRAPPED): tensor for key, tensor in stored.items() if key not in value}
    if not policy:
        raise InputError(f"{folder}: {stem}.* holds a value head alone ({listed(value)}) and no policy.")
    return policy, value


def _refuse_absent(folder: Path, stem: str) -> None:
    refuse_pickled_weights(folder)
    names = listed(path.name for path in folder.iterdir()) or "nothing"
    raise InputError(
        f"{folder}: expected what PPO saved: actor_critic.json, or {stem}{SAFETENSORS}, or its shards with "
        f"{stem}{SAFETENSORS}{INDEX}; found {names}."
    )


def _value_files(folder: Path, tuning: str) -> tuple[str, ...]:
    names = (*VALUE_HEAD_FILES, *((BIN_BESIDE_ADAPTER,) if tuning == "lora" else ()))
    return tuple(name for name in names if (folder / name).is_file())


def _require_a_value_head(folder: Path, value: set[str], value_files: tuple[str, ...]) -> None:
    if not value and not value_files:
        raise InputError(
            f"{folder}: expected a policy with a value head (kind `actor_critic`, or {VALUE_HEAD}* among its weights, "
            f"or {' or '.join(VALUE_HEAD_FILES)} beside them), found none. There is nothing to remove: use it as it is."
        )


def _having(folder: Path, base: Path | None, names: tuple[str, ...]) -> Path:
    """`folder`, or `base`, whichever has one of the files `names` first."""
    for place in (folder, *([base] if base is not None else [])):
        if any((place / name).is_file() for name in names):
            return place
    raise InputError(
        f"{folder}: {' or '.join(names)} is missing. Copy it from the base model, or give --input model=DIR."
    )
