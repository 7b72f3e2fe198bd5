"""A Llama in plain torch, packed: no padding, no modules, few passes over memory. What the floor is made of.

Tokens of all rows stand one after the other. Linear layers run on all of them, attention row by row. Projections that
read the same input are one matrix. The rotation of queries and keys is a complex product: the rows of their weights are
paired for it, which changes no dot product.

Shapes: N tokens of all rows, M of them wanted, B rows, D hidden size, H heads, K key-value heads, E size of a head,
V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import embedding, linear, silu
from transformers import LlamaConfig

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    eps: float
    theta: float

    @classmethod
    def of(cls, config: LlamaConfig) -> "Shape":
        """Of a model with this configuration."""
        return cls(
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.hidden_size // config.num_attention_heads,
            config.rms_norm_eps,
            config.rope_parameters["rope_theta"],
        )

    @property
    def num_rotated(self) -> int:
        """Heads of queries and keys."""
        return self.num_heads + self.num_kv_heads

    def rotations(self, positions: Tensor) -> Tensor:
        """The unit complex numbers that turn queries and keys at positions [N], [N, 1, E / 2]."""
        powers = torch.arange(0, self.head_size, 2, dtype=torch.float) / self.head_size
        angles = positions[:, None].float() / self.theta**powers
        return torch.polar(torch.ones_like(angles), angles)[:, None]


@dataclass(frozen=True)
class Pack:
    """Rows of tokens, one after the other."""

    lengths: Sequence[int]  # of the rows
    ids: Tensor  # [N] long
    rotations: Tensor  # [N, 1, E / 2] complex
    wanted: Tensor  # [M] long, where the last state is asked for


def fuse(state: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """The weights of a transformers Llama's state dict, by our names: `0.qkv`, `0.up`, `embed`, `norm`, `head`, ..."""
    state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    weights = {"embed": state["embed_tokens.weight"], "norm": state["norm.weight"]}
    weights["head"] = state["lm_head.weight"] if "lm_head.weight" in state else state["score.weight"]
    for layer in range(shape.num_layers):
        ours, theirs = f"{layer}.", f"layers.{layer}."
        parts = [state[f"{theirs}self_attn.{name}_proj.weight"] for name in "qkv"]
        weights[f"{ours}qkv"] = torch.cat([*(paired(part, shape.head_size) for part in parts[:2]), parts[2]])
        weights[f"{ours}o"] = state[f"{theirs}self_attn.o_proj.weight"]
        weights[f"{ours}up"] = torch.cat([state[f"{theirs}mlp.{name}_proj.weight"] for name in ("gate", "up")])
        weights[f"{ours}down"] = state[f"{theirs}mlp.down_proj.weight"]
        weights[f"{ours}norm1"] = state[f"{theirs}input_layernorm.weight"]
        weights[f"{ours}norm2"] = state[f"{theirs}post_attention_layernorm.weight"]
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def paired(weight: Tensor, head_size: int) -> Tensor:
    """Rows of a query or key weight [H E, D], those that are rotated together side by side in each head."""
    return weight.unflatten(0, (-1, 2, head_size // 2)).transpose(1, 2).flatten(0, 2)


def trunk(
    weights: Weights,
    shape: Shape,
    pack: Pack,
    layers: range | None = None,
    states: Tensor | None = None,
    apply: Callable[[Tensor, str], Tensor] | None = None,
) -> Tensor:
    """The last hidden states [M, D] where they are wanted; the last layer's MLP runs only there.

    With `layers` only those, given the states [N, D] that go into the first; what comes out of any but the last layer
    is [N, D]. `apply` stands in for the linear layers: given an input and a weight's name.
    """
    apply = apply or (lambda x, name: linear(x, weights[name]))
    states = embedding(pack.ids, weights["embed"]) if states is None else states
    for layer in layers or range(shape.num_layers):
        normed = RMSNorm.apply(states, weights[f"{layer}.norm1"], shape.eps)
        heads = Attention.apply(apply(normed, f"{layer}.qkv"), shape, pack)
        if layer == shape.num_layers - 1:
            heads, states = heads[pack.wanted], states[pack.wanted]
        states = states + apply(heads, f"{layer}.o")
        normed = RMSNorm.apply(states, weights[f"{layer}.norm2"], shape.eps)
        states = states + apply(SwiGLU.apply(apply(normed, f"{layer}.up")), f"{layer}.down")
    return states if layer < shape.num_layers - 1 else RMSNorm.apply(states, weights["norm"], shape.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [N, D] over its root mean square, times the weight; and one over the root [N, 1]."""
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * scale).mul_(weight), scale


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """x [N, H, E], its pairs turned by [N, 1, E / 2]."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotations).flatten(-2)


class RMSNorm(Function):
    """x [N, D], weight [D] -> [N, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, scale = rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        for_weight = (gradient * x).mul_(scale).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, for_weight, None
        gradient = gradient * weight
        along = torch.linalg.vecdot(gradient, x)[:, None].mul_(scale.pow(3)).div_(x.shape[-1])
        return gradient.mul_(scale).addcmul_(x, along, value=-1), for_weight, None


class SwiGLU(Function):
    """Gate and up projection [N, 2 I] -> silu(gate) * up [N, I]."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=1)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, dim=1)
        result = torch.empty_like(both)
        for_gate, for_up = result.chunk(2, dim=1)
        torch.mul(gradient, silu(gate), out=for_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=for_gate)
        return result


class Attention(Function):
    """Queries, keys and values [N, (H + 2 K) E], not yet rotated -> [N, H E]: causal, row by row."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, shape: Shape, pack: Pack) -> Tensor:
        rows, results = attended(qkv, shape, pack)
        ctx.shape, ctx.pack, ctx.rows, ctx.results = shape, pack, rows, results
        return torch.cat([out.squeeze(0).transpose(0, 1) for out, _ in results]).flatten(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        shape, pack = ctx.shape, ctx.pack
        gradient = gradient.unflatten(1, (-1, shape.head_size))
        result = gradient.new_empty(len(gradient), shape.num_rotated + shape.num_kv_heads, shape.head_size)
        parts = gradient.transpose(0, 1)[None].split(pack.lengths, dim=2), result.split(pack.lengths)
        for row, (out, norms), part, place in zip(ctx.rows, ctx.results, *parts, strict=True):
            found = _attend_backward(part, *row, out, norms, 0.0, True)
            torch.cat([_grouped(grad, shape, index) for index, grad in enumerate(found)], dim=1, out=place)
        turned = result[:, : shape.num_rotated]
        turned.copy_(rotate(turned, pack.rotations.conj()))
        return result.flatten(1), None, None


def attended(
    qkv: Tensor, shape: Shape, pack: Pack
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Of each row: rotated queries and keys, and values, [1, H, T, E] each; heads [1, H, T, E] and their norms."""
    heads = qkv.unflatten(1, (-1, shape.head_size))
    rows = _rows(rotate(heads[:, : shape.num_rotated], pack.rotations), heads, shape, pack)
    return rows, [_attend(*row, 0.0, True) for row in rows]


def _rows(rotated: Tensor, heads: Tensor, shape: Shape, pack: Pack) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys and values of each row, [1, H, T, E] each."""
    parts = rotated[:, : shape.num_heads], rotated[:, shape.num_heads :], heads[:, shape.num_rotated :]
    repeats = shape.num_heads // shape.num_kv_heads
    if repeats > 1:
        parts = parts[0], *(part.repeat_interleave(repeats, dim=1) for part in parts[1:])
    split = [part.transpose(0, 1)[None].split(list(pack.lengths), dim=2) for part in parts]
    return list(zip(*split, strict=True))


def _grouped(gradient: Tensor, shape: Shape, index: int) -> Tensor:
    """A row's gradient [1, H, T, E] as [T, H, E], or [T, K, E] for keys and values."""
    gradient = gradient.squeeze(0).transpose(0, 1)
    if index and shape.num_heads > shape.num_kv_heads:
        gradient = gradient.unflatten(1, (shape.num_kv_heads, -1)).sum(dim=2)
    return gradient


class TokenLogprobs(Function):
    """log softmax of logits [M, V] at the tokens [M]; the logits' memory is used up."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor) -> Tensor:
        logprobs = torch.log_softmax(logits, dim=-1)
        ctx.save_for_backward(logprobs, tokens)
        return logprobs.gather(1, tokens[:, None]).squeeze(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logprobs, tokens = ctx.saved_tensors
        result = logprobs.exp_().mul_(-gradient[:, None])
        return result.scatter_add_(1, tokens[:, None], gradient[:, None]), None
