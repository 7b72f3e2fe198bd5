"""How sure a figure is: pure functions of numbers.

Letter: N observations, such as one of each prompt.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z_95 = 1.959964


@dataclass(frozen=True)
class Interval:
    """A mean, or a share, with the two ends of its confidence interval."""

    mean: float
    low: float
    high: float


def wilson_interval(num_right: int, num_all: int) -> Interval:
    """A share with its 95 % interval, which stays inside [0, 1] (Wilson 1927, J. Am. Stat. Assoc. 22:209)."""
    share, squared = num_right / num_all, Z_95**2
    centre = (share + squared / (2 * num_all)) / (1 + squared / num_all)
    spread = Z_95 / (1 + squared / num_all)
    spread *= math.sqrt(share * (1 - share) / num_all + squared / (4 * num_all**2))
    return Interval(mean=share, low=max(0.0, centre - spread), high=min(1.0, centre + spread))


def bootstrap_interval(values: ArrayLike, num_bootstrap: int, seed: int, level: float = 0.95) -> Interval:
    """Mean of `values` [N] with its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Each draw takes N prompts with replacement: what is uncertain is which prompts were asked. When all
    values are equal the interval has no width, whatever N is.
    """
    values = np.asarray(values, dtype=np.float64)
    means = values[_draws(len(values), num_bootstrap, seed)].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high))


@lru_cache(maxsize=2)
def _draws(num_values: int, num_bootstrap: int, seed: int) -> NDArray[np.int32]:
    """[num_bootstrap, num_values] the indices of every draw; kept, for all figures of an evaluation share them."""
    generator = np.random.default_rng(seed)
    return np.stack([generator.integers(num_values, size=num_values, dtype=np.int32) for _ in range(num_bootstrap)])
