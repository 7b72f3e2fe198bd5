"""What a reward model is worth on pairs of a chosen and a rejected response: pure functions of scores.

Letter: N pairs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tasks.intervals import wilson_interval


@dataclass(frozen=True)
class PairFigures:
    """How a reward model tells the chosen from the rejected response."""

    accuracy: float  # share of pairs whose chosen response scores higher; a tie counts as wrong
    low: float  # Wilson's 95 % interval of the accuracy
    high: float
    mean_margin: float  # score of chosen minus score of rejected


def pair_figures(chosen: ArrayLike, rejected: ArrayLike) -> PairFigures:
    """Figures of the scores [N] of the chosen and the rejected responses."""
    margins = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    accuracy = wilson_interval(int((margins > 0).sum()), len(margins))
    return PairFigures(accuracy.mean, accuracy.low, accuracy.high, float(margins.mean()))
