"""How much responses repeat themselves and each other: pure functions of token rows; numpy and the standard library.

Letter: N tokens of a response.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Names = NDArray[np.int64]


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


def longest_repeat(response: Sequence[int]) -> int:
    """Tokens of the longest span that stands at two places in the response, which may overlap; 0 where none does.

    Spans of 2^k tokens are named by pairs of the names of their halves (Karp, Miller and Rosenberg 1972). Where a span
    repeats so do its parts: the longest is put together from the largest power down.
    """
    powers = _repeating_powers(np.asarray(response, dtype=np.int64))
    longest, names = 0, np.zeros(len(response) + 1, dtype=np.int64)  # of the empty span at each place
    for power in reversed(range(len(powers))):
        longer = _joined(names, powers[power], longest)
        if _repeats(longer):
            longest, names = longest + 2**power, longer
    return longest


def repeated_share(response: Sequence[int]) -> float:
    """The longest repeated span / the response, in tokens; near 1 where it says one thing for ever."""
    return longest_repeat(response) / len(response) if response else 0.0


def _ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def _repeating_powers(names: Names) -> list[Names]:
    """Names of the spans of 1, 2, 4, ... tokens at each place, as far as any repeats; `names` [N] of the tokens."""
    powers: list[Names] = []
    while _repeats(names):
        powers.append(names)
        names = _joined(names, names, 2 ** (len(powers) - 1))
    return powers


def _joined(first: Names, second: Names, length: int) -> Names:
    """A name for each span of `length` tokens with a span right after it, given the names of either at each place."""
    second = second[length:]
    pairs = first[: len(second)] * (second.max(initial=0) + 1) + second
    return np.unique(pairs, return_inverse=True)[1]


def _repeats(names: Names) -> bool:
    return len(np.unique(names)) < len(names)
