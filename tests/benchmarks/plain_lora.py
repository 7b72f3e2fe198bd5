"""LoRA on the fused weights of a plain Llama, merged: a forward costs what it costs without adapters.

Only the backward knows that the weight has two parts. Merging takes one small product per weight and optimizer step.

Shapes: N tokens, D inputs, O outputs of a weight, r rank, S projections that are fused in it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import linear

from tests.benchmarks.plain_llama import Shape, Weights


@dataclass(frozen=True)
class Factors:
    """Of one weight."""

    down: Tensor  # [S r, D]
    ups: tuple[Tensor, ...]  # S of [O_s, r]


@dataclass(frozen=True)
class Adapter:
    """Factors by the names of the weights, and what their product is multiplied by."""

    factors: Mapping[str, Factors]
    scale: float

    def parameters(self) -> list[Tensor]:
        """All factors."""
        return [tensor for factors in self.factors.values() for tensor in (factors.down, *factors.ups)]

    @torch.no_grad()
    def merged(self, weights: Weights) -> dict[str, Tensor]:
        """The weights with the adapter added; those without one are the same tensors."""
        return {**weights, **{name: self._merged(weights[name], name) for name in self.factors}}

    def apply(self, merged: Weights, x: Tensor, name: str) -> Tensor:
        """x [N, D] times the merged weight, differentiable in x and the factors."""
        if name not in self.factors:
            return linear(x, merged[name])
        factors = self.factors[name]
        return LoraLinear.apply(x, merged[name], self.scale, factors.down, *factors.ups)

    def _merged(self, weight: Tensor, name: str) -> Tensor:
        factors, result = self.factors[name], weight.clone()
        downs = factors.down.chunk(len(factors.ups))
        for place, up, down in zip(result.split([len(up) for up in factors.ups]), factors.ups, downs, strict=True):
            place.addmm_(up, down, alpha=self.scale)
        return result


def make_adapter(weights: Weights, shape: Shape, layers: Iterable[int], rank: int, *, zero: bool) -> Adapter:
    """Factors on all linear weights of the layers: random, with `zero` those that make the adapter do nothing."""
    kv_size = shape.num_kv_heads * shape.head_size
    factors = {}
    for name in [f"{layer}.{part}" for layer in layers for part in ("qkv", "o", "up", "down")]:
        num_outputs, num_inputs = weights[name].shape
        sizes = [num_outputs]
        if name.endswith("qkv"):
            sizes = [num_outputs - 2 * kv_size, kv_size, kv_size]
        elif name.endswith("up"):
            sizes = [num_outputs // 2] * 2
        down = torch.randn(len(sizes) * rank, num_inputs) * num_inputs**-0.5
        ups = tuple(torch.zeros(size, rank) if zero else torch.randn(size, rank) * 0.02 for size in sizes)
        factors[name] = Factors(down.requires_grad_(), tuple(up.requires_grad_() for up in ups))
    return Adapter(factors, scale=2.0)


class LoraLinear(Function):
    """x [N, D] -> x (W + scale up down)^T [N, O], given the merged weight [O, D] and the factors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, merged: Tensor, scale: float, down: Tensor, *ups: Tensor) -> Tensor:
        ctx.save_for_backward(x, merged, down, *ups)
        ctx.scale = scale
        return linear(x, merged)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, merged, down, *ups = ctx.saved_tensors
        parts = gradient.split([len(up) for up in ups], dim=1)
        inner = linear(x, down).mul_(ctx.scale).chunk(len(ups), dim=1)  # [N, r] each
        for_ups = [part.t() @ reduced for part, reduced in zip(parts, inner, strict=True)]
        outer = torch.cat([part @ up for part, up in zip(parts, ups, strict=True)], dim=1)  # [N, S r]
        for_down = (outer.t() @ x).mul_(ctx.scale)
        for_x = gradient @ merged if ctx.needs_input_grad[0] else None
        return for_x, None, None, for_down, *for_ups
