"""An iteration that nothing is wrong with."""

from collections.abc import Mapping

HEALTHY: Mapping[str, float] = {
    "kl": 4.0,
    "entropy": 1.0,
    "response_length": 20.0,
    "ended": 0.9,
    "score": 1.0,
    "score_std": 0.5,
    "explained_variance": 0.3,
    "distinct_2": 0.6,
    "repeated_share": 0.1,
    "phrase_share": 0.2,
    "score_rule": 3.0,
    "score_rule_std": 2.0,
}
