"""What Hugging Face's trainer keeps beside the weights, as safetensors; its own way is pickles.

optimizer.safetensors, scheduler.safetensors, rng_state.safetensors (rng_state_N on several processes): tensors, and in
the file's metadata, as JSON, the structure that they stand in with all plain values.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import Trainer

from tasks.errors import InputError
from tasks.models.safe_loading import refuse_pickled_state

OPTIMIZER = "optimizer.safetensors"
SCHEDULER = "scheduler.safetensors"
RNG = "rng_state"
_TENSOR, _ITEMS, _STRUCTURE = "tensor", "items", "structure"


class PickleFreeTrainer(Trainer):
    """Mixed in before a trainer: its checkpoints hold no pickle, and none is resumed from one that does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise InputError(
                "Checkpoints of FSDP and DeepSpeed hold pickles, which are never loaded. Name an accelerate_config "
                "without them, such as infra/accelerate/multi_gpu.yaml."
            )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            save_state(Path(output_dir) / OPTIMIZER, self.optimizer.state_dict())
            save_state(Path(output_dir) / SCHEDULER, self.lr_scheduler.state_dict())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        refuse_pickled_state(Path(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.optimizer.load_state_dict(load_state(Path(checkpoint) / OPTIMIZER))
            self.lr_scheduler.load_state_dict(load_state(Path(checkpoint) / SCHEDULER))

    def _save_scaler(self, output_dir: str) -> None:
        """There is no gradient scaler without float16, which no option of ours asks for."""

    def _load_scaler(self, checkpoint: str | None) -> None:
        """None was saved."""

    def _save_rng_state(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        state = {"python": random.getstate(), "cpu": torch.random.get_rng_state()}
        state["numpy"] = [value.tolist() if isinstance(value, np.ndarray) else value for value in np.random.get_state()]
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.random.get_rng_state_all()
        save_state(self._rng_file(output_dir), state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if not self._rng_file(checkpoint).is_file():
            print(
                f"{self._rng_file(checkpoint)} is missing: the checkpoint is of another number of processes. "
                "Random numbers start anew."
            )
            return
        state = load_state(self._rng_file(checkpoint))
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        np.random.set_state(tuple(state["numpy"]))
        torch.random.set_rng_state(state["cpu"])
        if torch.cuda.is_available() and "cuda" in state:
            torch.cuda.random.set_rng_state_all(state["cuda"])

    def _rng_file(self, checkpoint: str) -> Path:
        rank = f"_{self.args.process_index}" if self.args.world_size > 1 else ""
        return Path(checkpoint) / f"{RNG}{rank}.safetensors"


def save_state(path: Path, state: Any) -> None:
    """Write dicts, lists, plain values and tensors, however nested."""
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_without_tensors(state, tensors))
    save_file(tensors, path, metadata={_STRUCTURE: structure})


def load_state(path: Path) -> Any:
    """What `save_state` wrote, tuples as lists and tensors on the CPU; raises InputError if there is no such file."""
    if not path.is_file():
        raise InputError(
            f"{path} is missing: the checkpoint is not whole, or not of this version. Delete {path.parent}; the stage "
            "goes on from an earlier one, or starts anew."
        )
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _with_tensors(json.loads(file.metadata()[_STRUCTURE]), tensors)


def _without_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON can hold it; its tensors are put into `tensors` and stand there as {"tensor": name}."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {_ITEMS: [[key, _without_tensors(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        return [_without_tensors(inner, tensors) for inner in value]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_with_tensors(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    return {key: _with_tensors(inner, tensors) for key, inner in value[_ITEMS]}
