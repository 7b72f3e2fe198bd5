"""Figures of scores, against values worked by hand or published."""

import math

import pytest

from tasks.certify.measures import (
    Bin,
    calibration_error,
    dispersion,
    length_preference,
    of_like_length,
    overconfidence,
    pearson,
    ranks,
    reliability_table,
    spearman,
)

SURE_OF_3_IN_4 = math.log(3)  # sigmoid: 0.75
SURE_OF_17_IN_20 = math.log(17 / 3)  # sigmoid: 0.85
MARGINS = [SURE_OF_3_IN_4, SURE_OF_3_IN_4, SURE_OF_3_IN_4, -SURE_OF_3_IN_4, SURE_OF_17_IN_20, -SURE_OF_17_IN_20]


def test_a_bin_holds_the_pairs_of_like_confidence_and_how_many_are_right():
    table = reliability_table(MARGINS, num_bins=5)
    assert [(round(one.low, 9), round(one.high, 9), one.num_pairs) for one in table] == [(0.7, 0.8, 4), (0.8, 0.9, 2)]
    assert [one.confidence for one in table] == pytest.approx([0.75, 0.85])
    assert [one.accuracy for one in table] == [0.75, 0.5]


def test_the_calibration_error_is_the_gap_of_each_bin_weighted_by_its_pairs():
    table = reliability_table(MARGINS, num_bins=5)
    assert calibration_error(table) == pytest.approx(4 / 6 * 0 + 2 / 6 * 0.35)
    assert overconfidence(table) == pytest.approx(2 / 6 * 0.35)
    below = [Bin(0.5, 0.6, 3, confidence=0.55, accuracy=1.0)]
    assert (calibration_error(below), overconfidence(below)) == pytest.approx((0.45, -0.45))


def test_more_bins_tell_confidences_apart():
    assert len(reliability_table(MARGINS, num_bins=1)) == 1
    assert calibration_error(reliability_table(MARGINS, num_bins=1)) == pytest.approx((0.75 * 4 + 0.85 * 2 - 4) / 6)


def test_a_tie_is_half_right_and_sure_of_nothing():
    [tie] = reliability_table([0.0, 0.0], num_bins=10)
    assert (tie.low, tie.num_pairs, tie.confidence, tie.accuracy) == (0.5, 2, 0.5, 0.5)


def test_a_margin_that_is_certain_falls_into_the_last_bin():
    [last] = reliability_table([1000.0], num_bins=10)
    assert (last.high, last.confidence, last.accuracy) == (1.0, 1.0, 1.0)


def test_pearsons_correlation_of_anscombes_first_set_is_the_published_one():
    # Anscombe 1973, The American Statistician 27:17
    x = [10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5]
    y = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68]
    assert pearson(x, y) == pytest.approx(0.81642, abs=5e-6)


def test_spearmans_correlation_without_ties_is_that_of_the_rank_differences():
    # 1 - 6 * 194 / (10 * 99): the squared differences of the ranks below sum to 194
    intelligence = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110]
    hours = [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert spearman(intelligence, hours) == pytest.approx(-29 / 165)


def test_equal_values_share_the_mean_of_their_ranks():
    assert ranks([10, 30, 20, 20]).tolist() == [1.0, 4.0, 2.5, 2.5]
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_what_does_not_vary_correlates_with_nothing():
    assert pearson([1, 1, 1], [1, 2, 3]) == 0
    assert spearman([1, 2, 3], [5, 5, 5]) == 0


def test_what_data_and_reward_model_prefer_is_told_over_pairs_of_unequal_length():
    # chosen longer and preferred; chosen longer, rejected preferred; rejected longer, chosen preferred; a tie; equal
    preference = length_preference([1.0, -1.0, 2.0, 0.0, 5.0], [3, 2, -1, 4, 0])
    assert preference.num_pairs == 4
    assert preference.longer_chosen == 3 / 4
    assert preference.longer_preferred == (1 + 0 + 0 + 0.5) / 4


def test_lengths_are_alike_within_a_share_of_the_longer():
    assert of_like_length([10, 9, 10, 5], [9, 10, 8, 5], 0.1).tolist() == [True, True, False, True]
    assert of_like_length([10], [8], 0.2).tolist() == [True]
    assert of_like_length([10, 7], [9, 7], 0.0).tolist() == [False, True]


def test_dispersion_is_pearsons_chi_squared_over_its_degrees_of_freedom():
    # [[30, 20], [20, 30]]: every cell is 5 from the 25 expected, 4 * 25 / 25 = 4, one degree of freedom
    assert dispersion([30, 20], [50, 50]) == pytest.approx(4.0)
    assert dispersion([8, 6, 7], [10, 10, 10]) == pytest.approx(10 * (0.1**2 + 0.1**2) / 0.21 / 2)
    assert dispersion([10, 10], [10, 10]) == 0
