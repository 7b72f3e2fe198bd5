"""Spare the feed-forward block of a transformer's last layer at positions that nobody reads.

A head reads the last hidden states only at the positions before response tokens, and what the last feed-forward block
writes elsewhere reaches nothing. It is two thirds of its layer's work.

Shapes: B rows, T tokens, D hidden size, N positions that are read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tasks.models.tuning import decoder_layers, is_recomputed


@contextmanager
def read_only_at(transformer: nn.Module, row: Tensor, position: Tensor) -> Iterator[None]:
    """While it lasts, last hidden states [B, T, D] of `transformer` count at these rows and positions [N] alone.

    There they are what they always are. Nothing is spared where a layer is run again in the backward pass, or has no
    plain feed-forward block.
    """
    block = _last_feed_forward(transformer)
    if block is None:
        yield
        return
    shape: list[int] = []

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        [states] = inputs
        shape[:] = states.shape
        return (states[row, position][None],)

    def spread(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.new_zeros(shape).index_put((row, position), output[0])

    hooks = [block.register_forward_pre_hook(select), block.register_forward_hook(spread)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _last_feed_forward(transformer: nn.Module) -> nn.Module | None:
    """The last layer's block `mlp` if it treats every position by itself, as any but a mixture of experts does."""
    layer: Any = decoder_layers(transformer)[1][-1]
    block = getattr(layer, "mlp", None)
    is_plain = block is not None and type(block).__name__.endswith("MLP")
    return block if is_plain and not is_recomputed(layer) else None
