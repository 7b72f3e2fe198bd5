"""Whether two language models say the same: their logits on the same token rows.

Shapes: V vocabulary, T tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

LENGTH = 24


@dataclass(frozen=True)
class Difference:
    """How far two models' logits are apart on the same rows."""

    largest: float  # of any logit, absolute
    scale: float  # largest logit of the first model, absolute
    num_rows: int

    @property
    def relative(self) -> float:
        """The largest difference as a share of the largest logit."""
        return self.largest / self.scale if self.scale else self.largest


def random_rows(vocab_size: int, num_rows: int, seed: int) -> list[list[int]]:
    """Rows of LENGTH token ids drawn from the vocabulary: the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (num_rows, LENGTH), generator=generator).tolist()


@torch.no_grad()
def logits_of(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """The logits [T, V] of each row, one forward a row: no padding, so that equal models give equal bits."""
    return [model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float() for row in rows]


def difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> Difference:
    """The largest difference between two models' logits [T, V] of the same rows."""
    largest = max((one - other).abs().max().item() for one, other in zip(first, second, strict=True))
    return Difference(largest, max(one.abs().max().item() for one in first), len(first))
