"""The evaluation's two pictures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tasks.evaluate.comparison import Comparison
from tasks.evaluate.report import title

BEFORE_COLOUR, AFTER_COLOUR = "#8a8f98", "#d9622b"


def plot_judgements(comparison: Comparison, labels: Mapping[str, str], path: Path) -> None:
    """Histograms of the first judge's numbers for SFT and PPO, on common bins, as a PNG."""
    from matplotlib.figure import Figure

    judge = comparison.judges[0]
    pair = [comparison.sampled[name].judgements[judge] for name in ("sft", "ppo")]
    bins = np.histogram_bin_edges(np.concatenate(pair), bins=30).tolist()
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    panel = figure.add_subplot()
    names = (labels["before"], labels["after"])
    for name, values, colour in zip(names, pair, (BEFORE_COLOUR, AFTER_COLOUR), strict=True):
        panel.hist(values, bins, alpha=0.6, color=colour, label=f"{name}, mean {values.mean():.2f}")
    panel.set_xlabel(title(judge).lower())
    panel.set_ylabel("prompts")
    panel.legend(frameon=False)
    figure.savefig(path, dpi=120)


def plot_differences(comparison: Comparison, labels: Mapping[str, str], path: Path) -> None:
    """The first judge's PPO - SFT for every prompt in order, and both models' response lengths, as a PNG."""
    from matplotlib.figure import Figure

    judge = comparison.judges[0]
    before, after = comparison.sampled["sft"], comparison.sampled["ppo"]
    differences = np.sort(after.judgements[judge] - before.judgements[judge])
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for part, colour in ((differences.clip(max=0), BEFORE_COLOUR), (differences.clip(min=0), AFTER_COLOUR)):
        left.stairs(part, fill=True, color=colour)
    left.axhline(0, color="black", linewidth=0.8)
    left.set_xlabel("prompts, ordered")
    left.set_ylabel(f"{title(judge).lower()}: {labels['after']} - {labels['before']}")
    lengths = [before.lengths.tolist(), after.lengths.tolist()]
    right.hist(lengths, bins=20, color=[BEFORE_COLOUR, AFTER_COLOUR], label=[labels["before"], labels["after"]])
    right.set_xlabel("response length, tokens")
    right.set_ylabel("prompts")
    right.legend(frameon=False)
    figure.savefig(path, dpi=120)
