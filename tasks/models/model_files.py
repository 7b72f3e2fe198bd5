"""Which kind of model a folder holds, told from its files alone; no torch.

| kind            | files |
|-----------------|-------|
| `model`         | a Hugging Face causal language model: config.json, safetensors, tokenizer, generation_config.json |
| `adapter`       | adapter_config.json, adapter_model.safetensors, tokenizer; its base is another folder |
| `reward_model`  | a Hugging Face sequence classifier with one label, tokenizer, scalar_head.json |
| `reward_adapter`| as `adapter`, with scalar_head.safetensors and scalar_head.json |
| `actor_critic`  | what PPO saved: actor_critic.json, model.safetensors (`policy.*`, `value.*`), configs, tokenizer |
"""

import json
from pathlib import Path
from typing import Any

from tasks.errors import InputError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SCALAR_HEAD = "scalar_head.json"
SCALAR_HEAD_WEIGHTS = "scalar_head.safetensors"
ACTOR_CRITIC = "actor_critic.json"
UNKNOWN = "unknown"

_CAUSAL_LM_ENDINGS = ("ForCausalLM", "LMHeadModel")
_REWARD_MODEL_ENDING = "ForSequenceClassification"
_MEANING = {
    "model": "a causal language model",
    "adapter": "a LoRA adapter of a language model",
    "reward_model": "a reward model",
    "reward_adapter": "a LoRA reward model",
    "actor_critic": "a policy with its value model, as PPO saves them",
}


def kind_of(folder: Path) -> str:
    """The kind of artifact in `folder`, or "unknown"."""
    if (folder / ACTOR_CRITIC).is_file():
        return "actor_critic"
    if (folder / ADAPTER_CONFIG).is_file():
        return "reward_adapter" if (folder / SCALAR_HEAD_WEIGHTS).is_file() else "adapter"
    architecture = _architecture(folder)
    if architecture.endswith(_REWARD_MODEL_ENDING):
        return "reward_model"
    return "model" if architecture.endswith(_CAUSAL_LM_ENDINGS) else UNKNOWN


def require_kind(folder: Path, *kinds: str) -> str:
    """The kind of `folder`; raises InputError, naming what was expected and what is there, unless among `kinds`."""
    kind = kind_of(folder)
    if kind not in kinds:
        expected = " or ".join(f"{_MEANING[name]} (kind `{name}`)" for name in kinds)
        raise InputError(f"{folder}: expected {expected}, found {_describe(folder, kind)}. Give another folder.")
    return kind


def context_length(folder: Path) -> int | None:
    """The most tokens that the model in `folder` can attend to, prompt and response together; None: no limit."""
    config = read_json(folder / CONFIG)
    return config.get("max_position_embeddings") or config.get("n_positions")


def hidden_size(folder: Path) -> int:
    """How many numbers the model in `folder` keeps of each token from layer to layer."""
    config = read_json(folder / CONFIG)
    return config.get("hidden_size") or config["n_embd"]


def read_json(path: Path) -> dict[str, Any]:
    """The object in the JSON file `path`; raises InputError if it is not there or not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist. The folder is incomplete: fetch or make it again.") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}). The file is damaged: fetch or make it again.") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to the file `path`, indented, its folder made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _architecture(folder: Path) -> str:
    if not (folder / CONFIG).is_file():
        return ""
    return (read_json(folder / CONFIG).get("architectures") or [""])[0]


def _describe(folder: Path, kind: str) -> str:
    if kind != UNKNOWN:
        return f"{_MEANING[kind]} (kind `{kind}`)"
    if _architecture(folder):
        return f"the architecture {_architecture(folder)}"
    if not folder.is_dir():
        return "no folder"
    names = sorted(path.name for path in folder.iterdir())
    return f"no model but {', '.join(names[:6]) or 'nothing'}{' ...' if len(names) > 6 else ''}"
