"""Figures of a reward model on pairs."""

import pytest

from tasks.pair_figures import pair_figures


def test_pair_accuracy_counts_higher_chosen_scores_and_ties_as_wrong():
    figures = pair_figures([2.0, 1.0, 3.0, 0.0], [1.0, 1.0, 5.0, -4.0])
    assert figures.accuracy == 0.5
    assert figures.mean_margin == pytest.approx((1 + 0 - 2 + 4) / 4)
