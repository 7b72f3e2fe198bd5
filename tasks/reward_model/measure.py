"""What a saved reward model is worth: pair accuracy, margins, and the mean score of demonstrations.

Shapes: N rows or pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tasks.modeling import ScalarModel
from tasks.rewards.models import row_scores

TOKENS_AT_ONCE = 8192
Z_95 = 1.959964


@dataclass(frozen=True)
class PairFigures:
    """How a reward model tells the chosen from the rejected response."""

    accuracy: float  # share of pairs whose chosen response scores higher; a tie counts as wrong
    low: float  # Wilson's 95 % interval of the accuracy
    high: float
    mean_margin: float  # score of chosen minus score of rejected


def pair_figures(chosen: Tensor, rejected: Tensor) -> PairFigures:
    """Figures of the scores [N] of the chosen and the rejected responses."""
    num_right = int((chosen > rejected).sum())
    low, high = wilson_interval(num_right, len(chosen))
    return PairFigures(num_right / len(chosen), low, high, (chosen - rejected).mean().item())


def wilson_interval(num_right: int, num_all: int) -> tuple[float, float]:
    """The 95 % interval of a share, which stays inside [0, 1] (Wilson 1927, J. Am. Stat. Assoc. 22:209)."""
    share, squared = num_right / num_all, Z_95**2
    centre = (share + squared / (2 * num_all)) / (1 + squared / num_all)
    spread = Z_95 / (1 + squared / num_all)
    spread *= math.sqrt(share * (1 - share) / num_all + squared / (4 * num_all**2))
    return max(0.0, centre - spread), min(1.0, centre + spread)


def score_rows(model: ScalarModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """The score of each row of token ids at its last token: [N] float32 on the CPU, in the order of `rows`."""
    return row_scores(model, rows, TOKENS_AT_ONCE).cpu()
