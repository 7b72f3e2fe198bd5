"""What a reward model's scores are measured by: pure functions of numbers.

Letters: N pairs or responses, K parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """The pairs whose confidence lies above `low`, up to `high`."""

    low: float
    high: float
    num_pairs: int
    confidence: float  # mean of sigmoid(|margin|)
    accuracy: float  # share that is right


@dataclass(frozen=True)
class LengthPreference:
    """Over the pairs whose responses are not equally long."""

    num_pairs: int
    longer_chosen: float  # share whose chosen response is the longer
    longer_preferred: float  # share whose longer response scores higher; a tie counts half


def reliability_table(margins: ArrayLike, num_bins: int) -> list[Bin]:
    """The bins of equal width over the confidence, 0.5 to 1, that hold any of the margins [N], lowest first.

    A reward model of Bradley and Terry says sigmoid(score - other score) for the probability that the first response is
    preferred; it is sure of its own choice by sigmoid(|margin|), and right where the chosen one scores higher. A tie
    is half right.
    """
    margins = np.asarray(margins, dtype=np.float64)
    confidences = 1 / (1 + np.exp(-np.abs(margins)))
    right = (1 + np.sign(margins)) / 2
    edges = np.linspace(0.5, 1.0, num_bins + 1)
    places = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, num_bins - 1)
    return [
        Bin(
            low=float(edges[place]),
            high=float(edges[place + 1]),
            num_pairs=int((places == place).sum()),
            confidence=float(confidences[places == place].mean()),
            accuracy=float(right[places == place].mean()),
        )
        for place in np.unique(places)
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """ECE: |accuracy - confidence| of the bins, weighted by their pairs (Guo et al. 2017, arXiv:1706.04599, eq. 5)."""
    return sum(one.num_pairs * abs(one.accuracy - one.confidence) for one in bins) / sum(one.num_pairs for one in bins)


def overconfidence(bins: Sequence[Bin]) -> float:
    """Mean confidence minus the share that is right; below 0 the reward model is surer than it says."""
    return sum(one.num_pairs * (one.confidence - one.accuracy) for one in bins) / sum(one.num_pairs for one in bins)


def pearson(first: ArrayLike, second: ArrayLike) -> float:
    """The correlation of two rows of numbers [N]; 0 where either does not vary."""
    rows = [np.asarray(row, dtype=np.float64) for row in (first, second)]
    deviations = [row - row.mean() for row in rows]
    norms = [np.sqrt((row**2).sum()) for row in deviations]
    if not all(norms):
        return 0.0
    return float((deviations[0] * deviations[1]).sum() / (norms[0] * norms[1]))


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """The correlation of the ranks of two rows of numbers [N] (Spearman 1904); 0 where either does not vary."""
    return pearson(ranks(first), ranks(second))


def ranks(values: ArrayLike) -> Floats:
    """The rank of each of the values [N] from 1; equal ones share the mean of their ranks."""
    _, places, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]


def length_preference(margins: ArrayLike, length_differences: ArrayLike) -> LengthPreference:
    """What data and reward model prefer, given each pair's [N] chosen - rejected, in score and in tokens."""
    differences = np.asarray(length_differences, dtype=np.float64)
    unequal = differences != 0
    longer = np.sign(differences[unequal])
    preferred = (1 + np.sign(np.asarray(margins, dtype=np.float64)[unequal]) * longer) / 2
    num_pairs = int(unequal.sum())
    if not num_pairs:
        return LengthPreference(0, 0.0, 0.0)
    return LengthPreference(num_pairs, float((longer > 0).mean()), float(preferred.mean()))


def of_like_length(lengths: ArrayLike, others: ArrayLike, within: float) -> NDArray[np.bool_]:
    """[N] whether two lengths [N] each differ by at most the share `within` of the longer."""
    pair = np.stack([np.asarray(lengths, dtype=np.float64), np.asarray(others, dtype=np.float64)])
    return np.ptp(pair, axis=0) <= within * pair.max(axis=0)


def dispersion(num_right: ArrayLike, num_all: ArrayLike) -> float:
    """How far the shares right / all of K parts lie apart: about 1 where they differ by chance alone.

    Pearson's chi-squared of the hypothesis that all parts have one share, over its K - 1 degrees of freedom. 0 where
    all, or none, are right.
    """
    right, count = np.asarray(num_right, dtype=np.float64), np.asarray(num_all, dtype=np.float64)
    share = right.sum() / count.sum()
    variance = share * (1 - share)
    if not variance:
        return 0.0
    return float((count * (right / count - share) ** 2).sum() / variance / (len(count) - 1))
