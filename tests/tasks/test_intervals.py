"""Intervals of means and shares."""

import math

import numpy as np
import pytest

from tasks.intervals import bootstrap_interval, wilson_interval


def test_wilsons_interval_of_81_in_263_is_the_textbooks():
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81/263 gives 0.2553 to 0.3662
    interval = wilson_interval(81, 263)
    assert interval.mean == 81 / 263
    assert (interval.low, interval.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilsons_interval_of_none_in_20_starts_at_zero():
    # Newcombe 1998, table I: 0/20 gives 0.0000 to 0.1611
    interval = wilson_interval(0, 20)
    assert (interval.low, interval.high) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_a_large_sample_has_the_normal_interval():
    wins = np.repeat([1.0, 0.0], [1300, 700])
    half_width = 1.959964 * math.sqrt(0.65 * 0.35 / 2000)

    interval = bootstrap_interval(wins, num_bootstrap=4000, seed=0)

    assert interval.mean == 0.65
    assert interval.low == pytest.approx(0.65 - half_width, abs=0.05 * half_width)
    assert interval.high == pytest.approx(0.65 + half_width, abs=0.05 * half_width)


def test_a_lower_level_gives_the_narrower_normal_interval():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=2000)
    half_width = 0.674490 * values.std() / math.sqrt(2000)

    interval = bootstrap_interval(values, num_bootstrap=4000, seed=0, level=0.5)

    assert interval.high - interval.low == pytest.approx(2 * half_width, rel=0.06)


def test_the_interval_covers_the_truth_about_95_times_in_100():
    generator = np.random.default_rng(7)
    intervals = [bootstrap_interval(generator.random(60) < 0.7, 200, seed) for seed in range(200)]

    covered = sum(interval.low <= 0.7 <= interval.high for interval in intervals)

    assert 0.88 < covered / 200 < 1  # 95 % within 4 standard errors of 200 trials


def test_the_seed_fixes_the_interval():
    values = np.random.default_rng(0).normal(size=30)

    assert bootstrap_interval(values, 200, seed=3) == bootstrap_interval(values, 200, seed=3)
    assert bootstrap_interval(values, 200, seed=3) != bootstrap_interval(values, 200, seed=4)
