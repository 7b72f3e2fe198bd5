"""From an iteration's metrics and what was seen before to alarms: pure functions of numbers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from tasks.guard.config import GuardConfig
from tasks.guard.history import Alarm, History, Record, mean
from tasks.repetition import commonest_phrase, distinct_n, repeated_share

WATCHED = (
    "kl", "entropy", "response_length", "ended", "score", "score_std", "explained_variance",
    "distinct_2", "repeated_share", "phrase_share",
)  # fmt: skip
SMALLEST_SPREAD = 1e-6


def text_metrics(responses: Sequence[Sequence[int]]) -> dict[str, float]:
    """How much a rollout's responses repeat themselves and each other; their tokens are given without the end."""
    return {
        "distinct_2": distinct_n(responses, 2),
        "repeated_share": sum(map(repeated_share, responses)) / len(responses),
        "phrase_share": commonest_phrase(responses)[1],
    }


def record_of(metrics: Mapping[str, float], second_signals: Iterable[str]) -> Record:
    """The metrics that are watched, those of the second signals included."""
    of_signals = [f"score_{name}{ending}" for name in second_signals for ending in ("", "_std")]
    return {name: metrics[name] for name in (*WATCHED, *of_signals)}


def find_alarms(
    metrics: Mapping[str, float], history: History, iteration: int, config: GuardConfig, second_signals: Sequence[str]
) -> list[Alarm]:
    """The thresholds that iteration `iteration` passed, given those before it; nothing where all is well."""
    since = iteration - config.window
    if broken := [Alarm(name, value, math.inf, since) for name, value in metrics.items() if not math.isfinite(value)]:
        return broken
    record = record_of(metrics, second_signals)
    start = history.start or record
    recent = [*history.recent, record][-config.window :]
    means = {name: mean(recent, name) for name in record}
    upper = _upper_limits(config, start, history.recent, record, means)
    lower = _lower_limits(config, start, means)
    alarms = [Alarm(name, value, limit, since) for name, value, limit in upper if limit is not None and value > limit]
    alarms += [Alarm(name, value, limit, since) for name, value, limit in lower if limit is not None and value < limit]
    return alarms + [alarm for name in second_signals for alarm in _divergence(config, start, means, history, name)]


Limit = tuple[str, float, float | None]
"""A threshold's name, what is held against it, and the limit."""


def _upper_limits(
    config: GuardConfig, start: Record, before: Sequence[Record], record: Record, means: Record
) -> list[Limit]:
    usual_kl = max(median([earlier["kl"] for earlier in before] or [0.0]), config.kl_jump_from)
    return [
        ("max_kl", record["kl"], config.max_kl),
        ("max_kl_jump", record["kl"], _times(config.max_kl_jump, usual_kl)),
        ("max_entropy_ratio", means["entropy"], _times(config.max_entropy_ratio, start["entropy"])),
        ("max_length_ratio", means["response_length"], _times(config.max_length_ratio, start["response_length"])),
        ("max_repeated_share", means["repeated_share"], config.max_repeated_share),
        ("max_phrase_share", means["phrase_share"], config.max_phrase_share),
    ]


def _lower_limits(config: GuardConfig, start: Record, means: Record) -> list[Limit]:
    spread = _spread(start, means, "score")
    return [
        ("min_entropy", means["entropy"], config.min_entropy),
        ("min_length_ratio", means["response_length"], _times(config.min_length_ratio, start["response_length"])),
        ("min_distinct_2_ratio", means["distinct_2"], _times(config.min_distinct_2_ratio, start["distinct_2"])),
        ("max_ended_drop", means["ended"], _below(start["ended"], config.max_ended_drop)),
        ("max_score_drop", means["score"], _below(start["score"], _times(config.max_score_drop, spread))),
        ("min_explained_variance", means["explained_variance"], config.min_explained_variance),
    ]


def _divergence(config: GuardConfig, start: Record, means: Record, history: History, name: str) -> list[Alarm]:
    """The alarm of a second signal that fell from its peak while the score rose."""
    if config.max_second_drop is None or name not in history.peaks:
        return []
    peak, signal = history.peaks[name], f"score_{name}"
    drop = (peak.value - means[signal]) / _spread(start, means, signal)
    rise = (means["score"] - peak.score) / _spread(start, means, "score")
    if drop <= config.max_second_drop or rise < config.min_score_rise:
        return []
    return [Alarm(f"max_second_drop of {name}", drop, config.max_second_drop, peak.iteration)]


def _spread(start: Record, means: Record, signal: str) -> float:
    """Standard deviation of a signal over the responses: at the start, or now where that is more."""
    return max(start[f"{signal}_std"], means[f"{signal}_std"], SMALLEST_SPREAD)


def _times(ratio: float | None, base: float) -> float | None:
    return None if ratio is None else ratio * base


def _below(base: float, drop: float | None) -> float | None:
    return None if drop is None else base - drop
