"""A KV cache with room from the start: a new token is written into it, where DynamicCache copies all tokens before.

Shapes: B rows, H key-value heads, T tokens so far, D numbers per head.
"""

from functools import partial
from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


def reserved_cache(num_tokens: int) -> Cache:
    """An empty cache with room for so many tokens of each row."""
    return Cache(layer_class_to_replicate=partial(ReservedLayer, num_tokens))


class ReservedLayer(DynamicLayer):
    """The keys and values [B, H, T, D] of one layer: views of the written part of two buffers."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers, like the first keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.buffers = [self._buffer_like(states) for states in (key_states, value_states)]
        self._show(0)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The keys and values of all tokens, these [B, H, new, D] included."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows only."""
        self.buffers = [buffer[indices] for buffer in self.buffers]
        self._show(self.keys.shape[2])

    def _buffer_like(self, states: Tensor) -> Tensor:
        rows, heads, _, width = states.shape
        return states.new_empty(rows, heads, self.num_tokens, width)

    def _show(self, num_tokens: int) -> None:
        self.keys, self.values = (buffer[:, :, :num_tokens] for buffer in self.buffers)
