"""What two sets of answers are compared by: pure functions of numbers and tokens.

Letters: N prompts with one response each per model, B episodes of a batch, R response tokens.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """A mean with the two ends of its confidence interval."""

    mean: float
    low: float
    high: float


def outcomes(before: ArrayLike, after: ArrayLike) -> NDArray[np.float64]:
    """[N] 1 where `after` [N] is the higher, 0 where `before` [N] is, 1/2 for a tie; their mean is the win rate."""
    return (1 + np.sign(np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64))) / 2


def bootstrap_interval(values: ArrayLike, num_bootstrap: int, seed: int, level: float = 0.95) -> Interval:
    """Mean of `values` [N] with its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Each draw takes N prompts with replacement: what is uncertain is which prompts were asked. When all
    values are equal the interval has no width, whatever N is.
    """
    values = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(num_bootstrap)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high))


def kl_per_response(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """[B] estimate of KL(policy || reference) over whole responses, in nats: the log ratio summed over the tokens.

    Unbiased when the responses were sampled from the policy (the k1 estimator); single responses may be negative.
    logprobs, ref_logprobs: [B, R] of the sampled tokens; mask: [B, R], True up to and including the end token.
    """
    return ((logprobs - ref_logprobs) * mask).sum(dim=1)


def distinct_n(responses: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams / all n-grams over all responses (Li et al. 2016, arXiv:1510.03055); 0 where there are none.

    It falls as there is more text, so compare it only at the same number of prompts and similar lengths.
    """
    ngrams = [ngram for response in responses for ngram in _ngrams(response, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def repetition(response: Sequence[int], n: int = 4) -> float:
    """Share of a response's n-grams that occurred in it before (seq-rep-n, Welleck et al. 2019, arXiv:1908.04319)."""
    ngrams = _ngrams(response, n)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def commonest_phrase(responses: Sequence[Sequence[int]], n: int = 4) -> tuple[tuple[int, ...], float]:
    """The n-gram that stands in the most responses, and the share of responses it stands in; ((), 0) without any.

    A policy that answers every prompt with the same phrase shows here before it shows anywhere else.
    """
    counts = Counter(ngram for response in responses for ngram in dict.fromkeys(_ngrams(response, n)))
    if not counts:
        return (), 0.0
    phrase, count = counts.most_common(1)[0]
    return phrase, count / len(responses)


def _ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))
