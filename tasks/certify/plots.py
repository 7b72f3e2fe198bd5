"""The certificate's picture: reliability, score over length, and where the scores lie."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.certify.figures import Scored
from tasks.certify.measures import Bin
from tasks.certify.names import GROUPS
from tasks.certify.report import TITLES

COLOURS = {"chosen": "#2b7a4b", "rejected": "#b23a48", "demonstrations": "#8a8f98", "sft": "#3465a4"}
NUM_HISTOGRAM_BINS = 30
MOST_POINTS = 1000


def plot_certificate(groups: Mapping[str, Scored], bins: Sequence[Bin], path: Path) -> None:
    """Three panels as a PNG at `path`; the first is empty where there are no pairs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.2, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    shown = {group: groups[group] for group in GROUPS if group in groups}
    _draw_reliability(left, bins)
    _draw_lengths(middle, shown)
    _draw_scores(right, shown)
    figure.savefig(path, dpi=120)


def _draw_reliability(panel: Any, bins: Sequence[Bin]) -> None:
    panel.set_title("reliability on held-out pairs")
    panel.plot([0.5, 1], [0.5, 1], color="black", linewidth=0.8)
    for one in bins:
        panel.bar(one.low, one.accuracy, one.high - one.low, align="edge", color="#c9d6e6", edgecolor="white")
    panel.plot([one.confidence for one in bins], [one.accuracy for one in bins], "o-", color=COLOURS["sft"])
    for one in bins:
        place = (one.confidence, one.accuracy)
        panel.annotate(str(one.num_pairs), place, (0, 6), textcoords="offset points", ha="center")
    panel.set_xlim(0.5, 1)
    panel.set_ylim(0, 1.08)
    panel.set_xlabel("sigmoid(|margin|)")
    panel.set_ylabel("share that is right")


def _draw_lengths(panel: Any, groups: Mapping[str, Scored]) -> None:
    panel.set_title("score over length")
    for group, scored in groups.items():
        lengths, scores = scored.lengths[:MOST_POINTS], scored.scores[:MOST_POINTS]
        panel.scatter(lengths, scores, s=6, alpha=0.5, color=COLOURS[group], label=TITLES[group])
    panel.set_xlabel("response, tokens")
    panel.set_ylabel("score")


def _draw_scores(panel: Any, groups: Mapping[str, Scored]) -> None:
    panel.set_title("scores")
    edges = np.histogram_bin_edges(np.concatenate([scored.scores for scored in groups.values()]), NUM_HISTOGRAM_BINS)
    for group, scored in groups.items():
        weights = np.full(len(scored.scores), 1 / len(scored.scores))
        panel.hist(
            scored.scores, edges, weights=weights, histtype="step", linewidth=1.6, color=COLOURS[group],
            label=TITLES[group],
        )  # fmt: skip
    panel.set_xlabel("score")
    panel.set_ylabel("share")
    panel.set_ylim(top=1.4 * panel.get_ylim()[1])
    panel.legend(frameon=False, fontsize=8, loc="upper left")
