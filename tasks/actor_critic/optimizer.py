"""AdamW for policy and value model, whose gradients lie in one flat float32 buffer.

The parameters' gradients are views into the buffer: all processes' are summed by one collective, and a norm is one
operation instead of one per parameter. A bfloat16 parameter has a float32 copy that is stepped in its place, and its
gradients are added up in float32.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tasks.actor_critic.config import ActorCriticConfig
from tasks.processes import Processes

PARTS = ("policy", "value")
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def lr_factor(step: int, num_steps: int, warmup_ratio: float, schedule: str) -> float:
    """What a peak learning rate is multiplied by at step 0, 1, ... of num_steps: up to 1, then along the schedule."""
    num_warmup_steps = round(warmup_ratio * num_steps)
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    progress = (step - num_warmup_steps) / (num_steps - num_warmup_steps)
    if schedule == "linear":
        return 1 - progress
    return 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1.0


class Optimizer:
    """Sums the processes' gradients, clips policy's and value's each by its norm, and steps both."""

    def __init__(
        self,
        trainable: Mapping[str, Mapping[str, nn.Parameter]],
        config: ActorCriticConfig,
        processes: Processes,
        *,
        num_steps: int,
        first_policy_step: int = 0,
    ) -> None:
        self.config, self.processes = config, processes
        self.num_steps, self.first_policy_step = num_steps, first_policy_step
        self.rate_scale = 1.0  # both learning rates are multiplied by it, along their schedules
        self.held = {f"{part}.{name}": parameter for part in PARTS for name, parameter in trainable[part].items()}
        self.stepped = {name: _in_float32(parameter) for name, parameter in self.held.items()}
        sizes = [sum(parameter.numel() for parameter in trainable[part].values()) for part in PARTS]
        self.gradient = torch.zeros(sum(sizes), device=processes.device)
        self.parts = self.gradient.split(sizes)
        views = self.gradient.split([parameter.numel() for parameter in self.stepped.values()])
        for (name, parameter), view in zip(self.stepped.items(), views, strict=True):
            parameter.grad = view.view_as(parameter)
            if parameter is not self.held[name]:
                self.held[name].register_post_accumulate_grad_hook(_move_gradient_to(parameter))
        self.adamw = {part: self._make_adamw(part) for part in PARTS}

    @torch.no_grad()
    def step(self, number: int, parts: Sequence[str] = PARTS) -> Tensor:
        """Take optimizer step `number` (from 0) of the parts, and clear all gradients; their norms [2] unclipped."""
        self.processes.sum_in_place(self.gradient)
        norms = torch.stack([part.norm() for part in self.parts])
        for part, norm in zip(self.parts, norms, strict=True):
            part.mul_((self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        rates = dict(zip(PARTS, self.learning_rates(number), strict=True))
        for part in parts:
            self.adamw[part].param_groups[0]["lr"] = rates[part]
            self.adamw[part].step()
        self._copy_to_held()
        self.clear()
        return norms

    def clear(self) -> None:
        """Forget the gradients."""
        self.gradient.zero_()

    def learning_rates(self, number: int) -> tuple[float, float]:
        """Of policy and value model at optimizer step `number`; the policy's schedule waits for its first step."""
        config, first = self.config, self.first_policy_step
        value_warmup = config.warmup_ratio if config.value_warmup_ratio is None else config.value_warmup_ratio
        value_schedule = config.value_lr_schedule or config.lr_schedule
        policy = lr_factor(max(0, number - first), self.num_steps - first, config.warmup_ratio, config.lr_schedule)
        value = lr_factor(number, self.num_steps, value_warmup, value_schedule)
        scale = self.rate_scale
        return scale * config.learning_rate * policy, scale * config.value_learning_rate * value

    def state(self) -> dict[str, Tensor]:
        """All that a resume needs: float32 parameters and Adam's moments, by name; views, not copies."""
        tensors = {f"parameter.{name}": parameter.detach() for name, parameter in self.stepped.items()}
        for name, parameter in self.stepped.items():
            moments = self.adamw[_part_of(name)].state.get(parameter, {})
            tensors |= {f"{moment}.{name}": tensor for moment, tensor in moments.items()}
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, parameter in self.stepped.items():
            parameter.copy_(tensors[f"parameter.{name}"])
            found = {moment: tensors[f"{moment}.{name}"] for moment in MOMENTS if f"{moment}.{name}" in tensors}
            state = self.adamw[_part_of(name)].state
            state.pop(parameter, None)  # what was not stepped yet has none
            if found:
                state[parameter] = {moment: tensor.to(parameter.device) for moment, tensor in found.items()}
        self._copy_to_held()

    def _make_adamw(self, part: str) -> torch.optim.AdamW:
        config = self.config
        return torch.optim.AdamW(
            [parameter for name, parameter in self.stepped.items() if _part_of(name) == part],
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )

    @torch.no_grad()
    def _copy_to_held(self) -> None:
        for name, parameter in self.held.items():
            if parameter is not self.stepped[name]:
                parameter.copy_(self.stepped[name])


def _part_of(name: str) -> str:
    return name.partition(".")[0]


def _in_float32(parameter: nn.Parameter) -> nn.Parameter:
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())


def _move_gradient_to(stepped: nn.Parameter) -> Callable[[Tensor], None]:
    """A hook that adds a parameter's new gradient to the one of its float32 copy."""

    def move(parameter: Tensor) -> None:
        assert stepped.grad is not None
        assert parameter.grad is not None
        stepped.grad.add_(parameter.grad)
        parameter.grad = None

    return move
