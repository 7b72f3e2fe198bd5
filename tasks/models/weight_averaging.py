"""The mean of a training's weights over its later steps, which overfits less than its last weights.

Izmailov et al. 2018 (arXiv:1803.05407, algorithm 1), averaged at every step and with the schedule as it is. Models
without batch normalisation need no pass over the data afterwards.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_swa_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tasks.errors import InputError

COUNT = "num_averaged"


class WeightAveraging(TrainerCallback):
    """Averages the trained weights from a share of the steps on, and puts the mean in their place at the end.

    With each checkpoint it writes FOLDER/averages-STEP.safetensors, before the trainer completes the checkpoint.
    """

    def __init__(self, start: float, folder: Path, resume_step: int) -> None:
        self.start, self.folder, self.resume_step = start, folder, resume_step
        self.num_averaged = 0
        self.averages: dict[str, Tensor] = {}
        self.average = get_swa_multi_avg_fn()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self.averages = {name: parameter.detach().clone() for name, parameter in _trained(model).items()}
        if self.resume_step:
            path = self._path(self.resume_step)
            if not path.is_file():
                raise InputError(
                    f"{path} is missing: the checkpoint of step {self.resume_step} was written without average_from. "
                    "Give the old options to resume it, or another --output to start anew."
                )
            saved = load_file(path)
            self.num_averaged = int(saved.pop(COUNT))
            for name, tensor in saved.items():
                self.averages[name].copy_(tensor)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if state.global_step > self.start * state.max_steps:
            weights = [parameter.detach() for parameter in _trained(model).values()]
            if self.num_averaged:
                self.average(list(self.averages.values()), weights, self.num_averaged)
            else:
                torch._foreach_copy_(list(self.averages.values()), weights)
            self.num_averaged += 1
        if control.should_save and state.is_world_process_zero:
            self._save(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        with torch.no_grad():
            for name, parameter in _trained(model).items():
                parameter.copy_(self.averages[name])

    def _save(self, step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.averages.items()}
        partial = self.folder / "averages.partial"
        save_file({**tensors, COUNT: torch.tensor(self.num_averaged)}, partial)
        partial.replace(self._path(step))
        others = {path for path in self.folder.glob("averages-*") if path != self._path(step)}
        for path in sorted(others, key=lambda path: path.stat().st_mtime)[:-1]:  # of the checkpoint before, one stays
            path.unlink()

    def _path(self, step: int) -> Path:
        return self.folder / f"averages-{step}.safetensors"


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
