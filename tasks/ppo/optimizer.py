"""One AdamW for policy and value model, whose gradients lie in one flat buffer.

The parameters' gradients are views into the buffer: all processes' are summed by one collective, and a norm is one
operation instead of one per parameter.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tasks.ppo.config import PPOConfig
from tasks.processes import Processes

PARTS = ("policy", "value")
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def lr_factor(step: int, config: PPOConfig) -> float:
    """What the peak learning rates are multiplied by at optimizer step 0, 1, ...: up to 1, then along the schedule."""
    num_warmup_steps = round(config.warmup_ratio * config.num_steps)
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    progress = (step - num_warmup_steps) / (config.num_steps - num_warmup_steps)
    if config.lr_schedule == "linear":
        return 1 - progress
    return 0.5 * (1 + math.cos(math.pi * progress)) if config.lr_schedule == "cosine" else 1.0


class Optimizer:
    """Sums the processes' gradients, clips policy's and value's each by its norm, and steps both."""

    def __init__(
        self, trainable: Mapping[str, Mapping[str, nn.Parameter]], config: PPOConfig, processes: Processes
    ) -> None:
        self.config, self.processes = config, processes
        self.named = {f"{part}.{name}": parameter for part in PARTS for name, parameter in trainable[part].items()}
        sizes = [sum(parameter.numel() for parameter in trainable[part].values()) for part in PARTS]
        self.gradient = torch.zeros(sum(sizes), device=processes.device)
        self.parts = self.gradient.split(sizes)
        views = self.gradient.split([parameter.numel() for parameter in self.named.values()])
        for parameter, view in zip(self.named.values(), views, strict=True):
            parameter.grad = view.view_as(parameter)
        groups = [{"params": list(trainable[part].values())} for part in PARTS]
        self.adamw = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)

    def step(self, number: int) -> Tensor:
        """Take optimizer step `number` (from 0) and clear the gradients; the norms [2] before clipping."""
        self.processes.sum_in_place(self.gradient)
        norms = torch.stack([part.norm() for part in self.parts])
        for part, norm in zip(self.parts, norms, strict=True):
            part.mul_((self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        for group, rate in zip(self.adamw.param_groups, self.learning_rates(number), strict=True):
            group["lr"] = rate
        self.adamw.step()
        self.gradient.zero_()
        return norms

    def learning_rates(self, number: int) -> tuple[float, float]:
        """Of policy and value model at optimizer step `number`."""
        factor = lr_factor(number, self.config)
        return self.config.learning_rate * factor, self.config.value_learning_rate * factor

    def state(self) -> dict[str, Tensor]:
        """All that a resume needs: parameters and Adam's moments, by name; views, not copies."""
        tensors = {f"parameter.{name}": parameter.detach() for name, parameter in self.named.items()}
        for name, parameter in self.named.items():
            tensors |= {f"{moment}.{name}": self.adamw.state[parameter][moment] for moment in MOMENTS}
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, parameter in self.named.items():
            parameter.copy_(tensors[f"parameter.{name}"])
            moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
            self.adamw.state[parameter] = moments
