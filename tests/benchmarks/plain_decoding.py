"""Draw responses from a plain Llama with a KV cache of its own: packed prompts, then one token a row and step.

Shapes: B rows, P longest prompt, R longest response, D hidden size, H heads, K key-value heads, E size of a head,
V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, silu

from tests.benchmarks.plain_llama import Pack, Shape, Weights, attended, rms_norm, rotate

COMPACT_EVERY = 4  # steps between looks at which rows have ended


@dataclass(frozen=True)
class Decoded:
    """What was drawn, one row a prompt."""

    ids: Tensor  # [B, R] long
    lengths: Tensor  # [B] long, up to the end and including it
    logprobs: Tensor  # [B, R] at the temperature
    states: Tensor  # [B, R, D] the last hidden states that predicted the tokens


class Decoder:
    """A batch of rows that are continued token by token; prompts end at the same column of the cache."""

    def __init__(self, weights: Weights, shape: Shape, prompts: Sequence[Sequence[int]], length: int) -> None:
        self.weights, self.shape = weights, shape
        self.prompt_lengths = torch.tensor([len(prompt) for prompt in prompts])
        self.column = int(self.prompt_lengths.max())
        size = (shape.num_layers, 2, len(prompts), shape.num_kv_heads, self.column + length, shape.head_size)
        self.cache = torch.zeros(size)
        self.positions = self.prompt_lengths.clone()  # [B] of the next token
        columns = torch.arange(self.column + length)
        hidden = columns < (self.column - self.prompt_lengths)[:, None]
        self.bias = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)[:, None, None]  # [B, 1, 1, P + R]

    def read_prompts(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Fill the cache; the last hidden states [B, D] at the prompts' ends."""
        shape, weights, lengths = self.shape, self.weights, self.prompt_lengths.tolist()
        ids = torch.tensor([token for prompt in prompts for token in prompt])
        positions = torch.cat([torch.arange(length) for length in lengths])
        pack = Pack(lengths, ids, shape.rotations(positions), self.prompt_lengths.cumsum(0) - 1)
        states = embedding(ids, weights["embed"])
        for layer in range(shape.num_layers):
            qkv = linear(rms_norm(states, weights[f"{layer}.norm1"], shape.eps)[0], weights[f"{layer}.qkv"])
            rows, results = attended(qkv, shape, pack)
            for row, (_, keys, values) in enumerate(rows):
                kept = slice(self.column - lengths[row], self.column)
                for place, part in zip(self.cache[layer, :, row], (keys, values), strict=True):
                    place[:, kept] = part[0, :: shape.num_heads // shape.num_kv_heads]
            heads = torch.cat([out.squeeze(0).transpose(0, 1) for out, _ in results]).flatten(1)
            if layer == shape.num_layers - 1:
                heads, states = heads[pack.wanted], states[pack.wanted]
            states = self._after_attention(states, heads, layer)
        return rms_norm(states, weights["norm"], shape.eps)[0]

    def read(self, tokens: Tensor) -> Tensor:
        """Append tokens [B]; the last hidden states [B, D]."""
        shape, weights = self.shape, self.weights
        rotations = shape.rotations(self.positions)
        states = embedding(tokens, weights["embed"])
        end = self.column + 1
        for layer in range(shape.num_layers):
            qkv = linear(rms_norm(states, weights[f"{layer}.norm1"], shape.eps)[0], weights[f"{layer}.qkv"])
            heads = qkv.unflatten(1, (-1, shape.head_size))
            rotated = rotate(heads[:, : shape.num_rotated], rotations)
            keys, values = self.cache[layer, 0, :, :, :end], self.cache[layer, 1, :, :, :end]
            keys[:, :, -1], values[:, :, -1] = rotated[:, shape.num_heads :], heads[:, shape.num_rotated :]
            queries = rotated[:, : shape.num_heads].unflatten(1, (shape.num_kv_heads, -1)) * shape.head_size**-0.5
            weighed = torch.softmax((queries @ keys.transpose(2, 3)).add_(self.bias[..., :end]), dim=-1)
            states = self._after_attention(states, (weighed @ values).flatten(1), layer)
        self.column, self.positions = end, self.positions + 1
        return rms_norm(states, weights["norm"], shape.eps)[0]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows [b] only."""
        self.cache, self.bias, self.positions = self.cache[:, :, rows], self.bias[rows], self.positions[rows]

    def _after_attention(self, states: Tensor, heads: Tensor, layer: int) -> Tensor:
        weights = self.weights
        states = torch.addmm(states, heads, weights[f"{layer}.o"].t())
        normed, _ = rms_norm(states, weights[f"{layer}.norm2"], self.shape.eps)
        gate, up = linear(normed, weights[f"{layer}.up"]).chunk(2, dim=1)
        return torch.addmm(states, silu(gate).mul_(up), weights[f"{layer}.down"].t())


@torch.no_grad()
def decode(
    weights: Weights,
    shape: Shape,
    prompts: Sequence[Sequence[int]],
    length: int,
    *,
    eos: int,
    temperature: float | None,
) -> Decoded:
    """Responses of at most `length` tokens, drawn at the temperature; None: the likeliest tokens."""
    decoder = Decoder(weights, shape, prompts, length)
    size = (len(prompts), length)
    ids, logprobs, lengths = torch.zeros(size, dtype=torch.long), torch.zeros(size), torch.full(size[:1], length)
    kept_states = torch.zeros(*size, weights["embed"].shape[1])
    live = torch.arange(len(prompts))
    states = decoder.read_prompts(prompts)
    for step in range(length):
        kept_states[live, step] = states
        tokens, logprobs[live, step] = draw(linear(states, weights["head"]), temperature)
        ids[live, step] = tokens
        ended = live[(tokens == eos) & (lengths[live] == length)]
        lengths[ended] = step + 1
        if step == length - 1:
            break
        if step % COMPACT_EVERY == COMPACT_EVERY - 1:
            going_on = (lengths[live] == length).nonzero().squeeze(1)
            if not len(going_on):
                break
            if len(going_on) < len(live):
                decoder.keep(going_on)
                tokens, live = tokens[going_on], live[going_on]
        states = decoder.read(tokens)
    return Decoded(ids, lengths, logprobs, kept_states)


def draw(logits: Tensor, temperature: float | None) -> tuple[Tensor, Tensor]:
    """A token [B] of each row of logits [B, V] by inverse CDF, and its logprob [B].

    Without a temperature the likeliest token, and no logprob.
    """
    if temperature is None:
        return logits.argmax(dim=-1), logits.new_zeros(len(logits))
    probabilities = torch.softmax(logits.div_(temperature), dim=-1)
    sums = probabilities.cumsum(dim=-1)
    tokens = torch.searchsorted(sums, torch.rand(len(sums), 1) * sums[:, -1:], right=True).clamp_(max=sums.shape[1] - 1)
    return tokens.squeeze(1), probabilities.gather(1, tokens).log_().squeeze(1)
