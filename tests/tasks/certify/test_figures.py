"""Which figures a certificate has, and why others are missing."""

from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
import pytest

from tasks.certify.config import CertifyConfig
from tasks.certify.figures import Measured, Scored, figures_of
from tasks.certify.names import MEANINGS

NUM_PAIRS = 60


def scored(scores, lengths=None, second=None):
    scores = np.asarray(scores, dtype=np.float64)
    lengths = np.full(len(scores), 10.0) if lengths is None else np.asarray(lengths, dtype=np.float64)
    return Scored(lengths, scores, None if second is None else np.asarray(second, dtype=np.float64))


def make_measured(num_pairs=NUM_PAIRS, num_right=45, second_right=None):
    """Pairs with margins of +-1, the first `num_right` right; by the second reward model the last `second_right`."""
    margins = np.where(np.arange(num_pairs) < num_right, 1.0, -1.0)
    second = None if second_right is None else np.where(np.arange(num_pairs) >= num_pairs - second_right, 1.0, -1.0)
    zeros = np.zeros(num_pairs)
    groups = {
        "chosen": scored(margins, second=second),
        "rejected": scored(zeros, second=None if second is None else zeros),
        "train_chosen": scored([1.0, 1.0]),
        "train_rejected": scored([0.0, 2.0]),
        "demonstrations": scored([0.0, 1.0, 2.0]),
        "sft": scored([0.0, 4.0], second=None if second is None else [1.0, 2.0]),
    }
    return Measured(groups, splits=np.arange(num_pairs) % 5, ended=[True, False])


def found(measured, num_bins=10, within=0.1):
    return figures_of(measured, num_bins, within)


def test_accuracies_come_with_wilsons_interval_and_the_gap_to_the_training_pairs():
    figures = found(make_measured()).by_name
    assert (figures["pair_accuracy"], figures["num_pairs"], figures["mean_margin"]) == (0.75, 60, 0.5)
    # Wilson by hand: z^2 = 3.8415; (0.75 + 3.8415 / 120 -+ 1.95996 sqrt(0.1875 / 60 + 3.8415 / 14400)) / 1.064025
    assert (figures["pair_accuracy_low"], figures["pair_accuracy_high"]) == pytest.approx((0.62767, 0.84221), abs=5e-5)
    assert (figures["train_pair_accuracy"], figures["generalisation_gap"]) == (0.5, -0.25)


def test_the_answers_spread_and_shift_are_measured_in_the_deviations_of_the_pairs_responses():
    figures = found(make_measured(num_right=30)).by_name
    deviation = np.sqrt(0.5)  # 30 scores of 1, 30 of -1, 60 of 0
    assert figures["score_spread"] == pytest.approx(2 / deviation)
    assert figures["score_shift"] == pytest.approx(2 / deviation)
    assert (figures["score_mean_sft"], figures["score_std_sft"], figures["score_q75_sft"]) == (2.0, 2.0, 3.0)
    assert (figures["score_median_demonstrations"], figures["sft_ended_share"]) == (1.0, 0.5)
    assert "score_mean_train_chosen" not in figures


def test_a_reward_model_of_one_score_has_no_spread():
    measured = make_measured(num_right=60)
    flat = {name: replace(one, scores=np.zeros_like(one.scores)) for name, one in measured.groups.items()}
    assert found(replace(measured, groups=flat)).by_name["score_spread"] == 0


def test_pairs_of_like_length_are_measured_by_themselves():
    measured = make_measured(num_pairs=120, num_right=60)
    lengths = np.where(np.arange(120) % 2 == 0, 10.0, 20.0)
    groups = {**measured.groups, "chosen": replace(measured.groups["chosen"], lengths=lengths)}
    figures = found(replace(measured, groups=groups)).by_name
    assert (figures["num_length_matched"], figures["length_matched_accuracy"]) == (60, 0.5)
    assert (figures["longer_chosen"], figures["longer_preferred"], figures["length_bias"]) == (1.0, 0.5, -0.5)
    assert found(replace(measured, groups=groups), within=0.5).by_name["num_length_matched"] == 120


def test_the_parts_of_the_pairs_are_compared():
    figures = found(make_measured(num_right=60))
    assert figures.split_accuracies == [1.0] * 5
    measured = replace(make_measured(num_right=30), splits=np.repeat([0, 1], 30))
    apart = found(measured)
    assert apart.split_accuracies == [1.0, 0.0]
    assert apart.by_name["split_dispersion"] == pytest.approx(60.0)  # chi-squared of a perfect 2 x 2 table is its N
    assert (apart.by_name["split_accuracy_least"], apart.by_name["split_accuracy_most"]) == (0.0, 1.0)


def test_two_reward_models_agree_on_the_pairs_that_both_order_alike():
    figures = found(make_measured(num_right=45, second_right=30)).by_name  # right by both: 15, wrong by both: 0
    assert figures["second_pair_accuracy"] == 0.5
    assert figures["second_agreement"] == 15 / 60


def test_too_few_pairs_leave_their_figures_out_and_say_so():
    figures = found(make_measured(num_pairs=12, num_right=9))
    assert figures.by_name["pair_accuracy"] == 0.75
    assert not {"ece", "length_correlation", "split_dispersion", "length_bias"} & figures.by_name.keys()
    assert figures.missing["ece"] == "it takes 50 held-out pairs"
    assert figures.missing["second_agreement"] == "there is no second reward model"
    assert "pair_accuracy" not in figures.missing


def test_without_pairs_every_threshold_on_them_says_why_it_is_missing():
    measured = make_measured()
    alone = Measured({"sft": measured.groups["sft"]}, splits=np.array([]), ended=measured.ended)
    figures = found(alone)
    assert figures.missing["pair_accuracy"] == "the data have no held-out pairs"
    thresholds = {rule.figure for rule in CertifyConfig().rules()} - {"tokenizer_match", "template_match"}
    assert thresholds == figures.missing.keys()


def test_every_figure_has_a_meaning():
    figures = found(make_measured(num_pairs=120, second_right=60)).by_name
    assert len(figures) > 40
    for name in figures:
        assert name in MEANINGS or any(fnmatchcase(name, pattern) for pattern in MEANINGS), name
