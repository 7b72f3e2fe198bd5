"""All figures of a certificate, from what was scored. Letter: N responses or pairs of a kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.certify.measures import (
    Bin,
    Floats,
    calibration_error,
    dispersion,
    length_preference,
    of_like_length,
    overconfidence,
    pearson,
    reliability_table,
    spearman,
)
from tasks.certify.names import QUANTILES
from tasks.intervals import Interval, wilson_interval
from tasks.pair_figures import pair_figures

FEWEST = 50  # pairs or answers that a figure without an interval takes
FEWEST_OF_A_SPLIT = 10
PAIR_GROUPS = ("chosen", "rejected")


@dataclass(frozen=True)
class Scored:
    """Responses of one kind."""

    lengths: Floats  # [N] tokens
    scores: Floats  # [N]
    second_scores: Floats | None = None  # [N] by the second reward model


@dataclass(frozen=True)
class Measured:
    """What was scored, by kind: chosen and rejected, train_chosen and train_rejected, demonstrations, sft."""

    groups: Mapping[str, Scored]  # those that hold any
    splits: NDArray[np.int64]  # [N] the part of each held-out pair
    ended: Sequence[bool]  # of sft

    @property
    def has_pairs(self) -> bool:
        """Whether there are held-out pairs."""
        return "chosen" in self.groups

    @property
    def margins(self) -> Floats:
        """Of the held-out pairs, [N]."""
        return self.groups["chosen"].scores - self.groups["rejected"].scores

    def of_pairs(self, name: str) -> Floats:
        """Scores or lengths of all responses of the held-out pairs, [2 N]."""
        return np.concatenate([getattr(self.groups[group], name) for group in PAIR_GROUPS])


@dataclass(frozen=True)
class Figures:
    """What was found: figures by name, the reliability table, the accuracy of each part of the pairs."""

    by_name: Mapping[str, float | int]
    reliability: Sequence[Bin] = ()
    split_accuracies: Sequence[float] = ()
    missing: Mapping[str, str] = field(default_factory=dict)  # name of a figure, or a pattern: why there is none


def figures_of(measured: Measured, num_bins: int, matched_within: float) -> Figures:
    """Every figure that the material suffices for, and why there are no others."""
    found: dict[str, float | int] = {}
    bins: list[Bin] = []
    splits: list[tuple[int, int]] = []
    if measured.has_pairs:
        found |= _accuracy_figures(measured)
        bins = reliability_table(measured.margins, num_bins)
        splits = _split_counts(measured)
        if len(measured.margins) >= FEWEST:
            found |= {"ece": calibration_error(bins), "overconfidence": overconfidence(bins)}
            found |= {
                "length_correlation": spearman(measured.of_pairs("scores"), measured.of_pairs("lengths")),
                "length_pearson": pearson(measured.of_pairs("scores"), measured.of_pairs("lengths")),
            }
        found |= _length_figures(measured, matched_within) | _split_figures(splits) | _second_figures(measured)
    found |= _answer_figures(measured)
    for group, scored in measured.groups.items():
        if not group.startswith("train_"):
            found |= _distribution(group, scored.scores)
    return Figures(found, bins, [right / count for right, count in splits], _missing(measured, found))


def _accuracy_figures(measured: Measured) -> dict[str, float | int]:
    found: dict[str, float | int] = {"num_pairs": len(measured.margins)}
    held_out = pair_figures(measured.groups["chosen"].scores, measured.groups["rejected"].scores)
    found |= _with_ends("pair_accuracy", Interval(held_out.accuracy, held_out.low, held_out.high))
    found["mean_margin"] = held_out.mean_margin
    if "train_chosen" in measured.groups:
        train = pair_figures(measured.groups["train_chosen"].scores, measured.groups["train_rejected"].scores)
        found |= {"num_train_pairs": len(measured.groups["train_chosen"].scores), "train_pair_accuracy": train.accuracy}
        found["generalisation_gap"] = train.accuracy - held_out.accuracy
    return found


def _length_figures(measured: Measured, matched_within: float) -> dict[str, float | int]:
    chosen, rejected = (measured.groups[group].lengths for group in PAIR_GROUPS)
    found: dict[str, float | int] = {}
    preference = length_preference(measured.margins, chosen - rejected)
    if preference.num_pairs >= FEWEST:
        found |= {"longer_chosen": preference.longer_chosen, "longer_preferred": preference.longer_preferred}
        found["length_bias"] = preference.longer_preferred - preference.longer_chosen
    matched = measured.margins[of_like_length(chosen, rejected, matched_within)]
    found["num_length_matched"] = len(matched)
    if len(matched) >= FEWEST:
        found |= _with_ends("length_matched_accuracy", wilson_interval(int((matched > 0).sum()), len(matched)))
    return found


def _split_counts(measured: Measured) -> list[tuple[int, int]]:
    """Of each part of the held-out pairs how many are right, and how many there are."""
    right = measured.margins > 0
    parts = [right[measured.splits == part] for part in np.unique(measured.splits)]
    return [(int(part.sum()), len(part)) for part in parts]


def _split_figures(counts: Sequence[tuple[int, int]]) -> dict[str, float | int]:
    if len(counts) < 2 or min(count for _, count in counts) < FEWEST_OF_A_SPLIT:
        return {}
    shares = [right / count for right, count in counts]
    return {
        "split_accuracy_least": min(shares),
        "split_accuracy_most": max(shares),
        "split_dispersion": dispersion(*zip(*counts, strict=True)),
    }


def _second_figures(measured: Measured) -> dict[str, float | int]:
    chosen, rejected = (measured.groups[group].second_scores for group in PAIR_GROUPS)
    if chosen is None or rejected is None:
        return {}
    held_out = pair_figures(chosen, rejected)
    found = _with_ends("second_pair_accuracy", Interval(held_out.accuracy, held_out.low, held_out.high))
    if len(chosen) >= FEWEST:
        agree = np.sign(chosen - rejected) == np.sign(measured.margins)
        found |= _with_ends("second_agreement", wilson_interval(int(agree.sum()), len(agree)))
    return found


def _answer_figures(measured: Measured) -> dict[str, float | int]:
    """What is said of the SFT model's answers."""
    sft = measured.groups["sft"]
    found: dict[str, float | int] = {
        "num_prompts": len(sft.scores),
        "sft_ended_share": float(np.mean(measured.ended)),
    }
    if "demonstrations" in measured.groups:
        found["num_demonstrations"] = len(measured.groups["demonstrations"].scores)
    if len(sft.scores) >= FEWEST:
        found["sft_length_correlation"] = spearman(sft.scores, sft.lengths)
        if sft.second_scores is not None:
            found["second_score_correlation"] = spearman(sft.scores, sft.second_scores)
    if measured.has_pairs:
        scores = measured.of_pairs("scores")
        deviation = float(scores.std())
        found["score_spread"] = float(sft.scores.std()) / deviation if deviation else 0.0
        found["score_shift"] = float(sft.scores.mean() - scores.mean()) / deviation if deviation else 0.0
    return found


def _distribution(group: str, scores: Floats) -> dict[str, float]:
    quantiles = {f"score_{name}_{group}": float(np.quantile(scores, share)) for name, share in QUANTILES.items()}
    return {f"score_mean_{group}": float(scores.mean()), f"score_std_{group}": float(scores.std())} | quantiles


def _with_ends(name: str, interval: Interval) -> dict[str, float | int]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _missing(measured: Measured, found: Mapping[str, Any]) -> dict[str, str]:
    """Why there are no figures of certain names."""
    no_pairs = "" if measured.has_pairs else "the data have no held-out pairs"
    no_second = "" if measured.groups["sft"].second_scores is not None else "there is no second reward model"
    few = f"it takes {FEWEST}"
    reasons = {
        "pair_accuracy": no_pairs,
        "pair_accuracy_low": no_pairs,
        "ece": no_pairs or f"{few} held-out pairs",
        "length_correlation": no_pairs or f"{few} held-out pairs",
        "length_bias": no_pairs or f"{few} held-out pairs whose responses are not equally long",
        "length_matched_accuracy": no_pairs or f"{few} held-out pairs of like length",
        "split_dispersion": no_pairs or f"it takes {FEWEST_OF_A_SPLIT} held-out pairs in every part",
        "second_agreement": no_second or no_pairs or f"{few} held-out pairs",
        "score_spread": no_pairs,
        "score_shift": no_pairs,
    }
    return {name: reason for name, reason in reasons.items() if name not in found}
