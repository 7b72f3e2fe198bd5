"""What is read of a model's folder: safetensors and JSON. No pickle is loaded, and no code that lies in it is run.

Both would let whoever made the files run anything on this machine.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.errors import InputError
from tasks.models.model_files import CONFIG, read_json

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"})
INDEX = "*.safetensors.index.json"
_TO_CONVERT = "Convert the weights where you trust them (save_pretrained writes safetensors), or name another model."


def refuse_pickled_weights(folder: Path) -> None:
    """Raise InputError if the model's or adapter's folder offers weights that only a pickle holds."""
    if not any(folder.glob("*.safetensors")) and (found := _pickles(folder)):
        raise InputError(
            f"{folder} has no *.safetensors file but {', '.join(found)}, which may be pickles: they can run any code "
            f"and are never loaded. {_TO_CONVERT}"
        )


def require_safetensors(folder: Path, name: str = "*.safetensors") -> None:
    """Raise InputError unless the folder holds the file `name`, and its index, if any, names such files alone."""
    refuse_pickled_weights(folder)
    if not any(folder.glob(name)):
        raise InputError(f"{folder} has no {name}, and no other weights are loaded. {_TO_CONVERT}")
    for index in folder.glob(INDEX):
        for shard in _shards(index):
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise InputError(
                    f"{index} names {shard!r} where a *.safetensors file beside it is due; nothing else is loaded. "
                    "Fetch or make the model again."
                )


def refuse_pickled_state(checkpoint: Path) -> None:
    """Raise InputError if a trainer's checkpoint holds a pickle: ours are safetensors and JSON."""
    if found := _pickles(checkpoint, "**/*"):
        raise InputError(
            f"The checkpoint {checkpoint} holds {', '.join(found)}, which may be pickles: they can run any code and "
            "are never loaded. Delete the checkpoint; the stage goes on from an earlier one, or starts anew."
        )


@contextmanager
def no_custom_code(folder: Path) -> Iterator[dict[str, Any]]:
    """Loader options under which code that comes with a model never runs; InputError if the model cannot do without."""
    if _needs_custom_code(folder / CONFIG):
        raise InputError(_custom_code(folder))
    try:
        yield {"local_files_only": True, "trust_remote_code": False}
    except ValueError as error:
        if "custom code" not in str(error):  # what transformers calls it, of a tokenizer too
            raise
        raise InputError(_custom_code(folder)) from error


def _needs_custom_code(config: Path) -> bool:
    """Whether the architecture is not one of the installed transformers; what it has itself it also prefers."""
    from transformers import CONFIG_MAPPING

    options = read_json(config) if config.is_file() else {}
    return bool(options.get("auto_map")) and options.get("model_type") not in CONFIG_MAPPING


def _custom_code(folder: Path) -> str:
    return (
        f"{folder} needs code of its own (auto_map in its config), which is never run: it could do anything. "
        "Name a model or tokenizer whose architecture the installed transformers has itself."
    )


def _pickles(folder: Path, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in folder.glob(pattern) if path.suffix.lower() in PICKLE_SUFFIXES)


def _shards(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index} is no index of shards ({error}). Fetch or make the model again.") from error
