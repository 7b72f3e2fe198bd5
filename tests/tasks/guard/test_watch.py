import math
from dataclasses import replace
from typing import Any

import pytest

from tasks.guard.config import GuardConfig
from tasks.guard.history import Alarm, History, Peak
from tasks.guard.watch import find_alarms, text_metrics
from tests.tasks.guard.records import HEALTHY

SIGNALS = ["rule"]
SEEN = History(start=HEALTHY, recent=(HEALTHY,) * 5)


def alarms_after(
    metrics: dict[str, float], history: History = SEEN, iteration: int = 30, **options: Any
) -> list[Alarm]:
    config = GuardConfig(**{"window": 1} | options)
    return find_alarms({**HEALTHY, **metrics}, history, iteration, config, SIGNALS)


# What is wrong, which threshold says so, its limit in the metric's own unit (worked by hand), a number just inside,
# and a setting that lets it pass. The start is HEALTHY.
THRESHOLDS = [
    ({"kl": 201.0}, "max_kl", 200.0, {"kl": 200.0}, 202.0),
    ({"kl": 50.1}, "max_kl_jump", 50.0, {"kl": 50.0}, 5.1),  # 5 x 10, as the median is below 10
    ({"entropy": 0.009}, "min_entropy", 0.01, {"entropy": 0.01}, 0.008),
    ({"entropy": 5.1}, "max_entropy_ratio", 5.0, {"entropy": 5.0}, 5.2),
    ({"response_length": 81.0}, "max_length_ratio", 80.0, {"response_length": 80.0}, 4.1),
    ({"response_length": 3.9}, "min_length_ratio", 4.0, {"response_length": 4.1}, 0.19),
    ({"distinct_2": 0.05}, "min_distinct_2_ratio", 0.06, {"distinct_2": 0.061}, 0.08),
    ({"repeated_share": 0.61}, "max_repeated_share", 0.6, {"repeated_share": 0.6}, 0.62),
    ({"ended": 0.39}, "max_ended_drop", 0.4, {"ended": 0.41}, 0.52),
    ({"score": -0.1}, "max_score_drop", 0.0, {"score": 0.1}, 2.3),  # 2 x 0.5 below 1
]


def test_a_healthy_iteration_gives_no_alarm() -> None:
    assert alarms_after({}) == []


@pytest.mark.parametrize(("wrong", "name", "limit", "inside", "turned"), THRESHOLDS)
def test_each_threshold_tells_what_passed_it_and_by_how_much(wrong, name, limit, inside, turned) -> None:
    others = {"max_kl_jump": None} if name == "max_kl" else {}
    (value,) = wrong.values()
    assert alarms_after(wrong, **others) == [Alarm(name, value, pytest.approx(limit), since=29)]
    assert alarms_after(inside, **others) == []
    assert alarms_after(wrong, **others, **{name: turned}) == []
    assert alarms_after(wrong, **others, **{name: None}) == []


@pytest.mark.parametrize(
    ("wrong", "name", "limit"),
    [({"phrase_share": 0.81}, "max_phrase_share", 0.8), ({"explained_variance": -1.1}, "min_explained_variance", -1.0)],
)
def test_what_is_not_watched_by_default_is_watched_where_a_limit_is_given(wrong, name, limit) -> None:
    (value,) = wrong.values()
    assert alarms_after(wrong) == []
    assert alarms_after(wrong, **{name: limit}) == [Alarm(name, value, limit, since=29)]
    assert alarms_after({}, **{name: limit}) == []


def test_every_threshold_of_the_config_is_tested_here() -> None:
    tested = {name for _, name, *_ in THRESHOLDS}
    elsewhere = {
        "window", "kl_jump_from", "max_phrase_share", "min_explained_variance", "second_signal", "max_second_drop",
        "min_score_rise", "max_rewinds", "learning_rate_factor", "kl_coef_factor",
    }  # fmt: skip
    assert tested | elsewhere == set(GuardConfig.model_fields)


def test_the_kl_is_held_against_the_median_before_it_and_that_counts_at_least_as_told() -> None:
    history = replace(SEEN, recent=tuple({**HEALTHY, "kl": kl} for kl in (11.0, 12.0, 90.0, 13.0, 12.5)))
    assert alarms_after({"kl": 62.4}, history) == []  # 5 x 12.5
    assert alarms_after({"kl": 62.6}, history) == [Alarm("max_kl_jump", 62.6, 62.5, since=29)]
    assert alarms_after({"kl": 40.0}, kl_jump_from=10.0) == []
    assert alarms_after({"kl": 40.0}, kl_jump_from=2.0) == [Alarm("max_kl_jump", 40.0, 20.0, since=29)]


def test_before_the_first_iteration_there_is_only_the_limit_in_nats() -> None:
    assert alarms_after({"kl": 49.0}, History(), iteration=1) == []
    assert [alarm.name for alarm in alarms_after({"kl": 300.0}, History(), iteration=1)] == ["max_kl", "max_kl_jump"]


def test_responses_and_scores_are_averaged_over_the_window() -> None:
    shorter = tuple({**HEALTHY, "response_length": length} for length in (20.0, 90.0, 100.0))
    history = replace(SEEN, recent=shorter)
    assert alarms_after({"response_length": 51.0}, history, window=3) == [
        Alarm("max_length_ratio", pytest.approx(241 / 3), 80.0, since=27)
    ]
    assert alarms_after({"response_length": 51.0}, history, window=4) == []  # 261 / 4
    assert alarms_after({"response_length": 51.0}, history, window=1) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_an_alarm_by_itself(value) -> None:
    (alarm,) = alarms_after({"value_grad_norm": value, "kl": 1000.0}, window=4)
    assert (alarm.name, alarm.since) == ("value_grad_norm", 26)
    assert alarm.value == value or math.isnan(value)


PEAK = replace(SEEN, peaks={"rule": Peak(iteration=12, value=4.0, score=1.5)})


def test_a_second_signal_that_fell_from_its_peak_while_the_score_rose_is_an_alarm_since_the_peak() -> None:
    parted = {"score": 1.8, "score_rule": 2.9}  # up by 0.6 of 0.5, down by 1.1 of 2
    (alarm,) = alarms_after(parted, PEAK)
    assert (alarm.name, alarm.limit, alarm.since) == ("max_second_drop of rule", 0.5, 12)
    assert alarm.value == pytest.approx(0.55)
    assert alarms_after(parted, PEAK, max_second_drop=0.56) == []
    assert alarms_after(parted, PEAK, max_second_drop=None) == []
    assert alarms_after(parted, PEAK, min_score_rise=0.61) == []
    assert len(alarms_after(parted, PEAK, min_score_rise=0.59)) == 1


@pytest.mark.parametrize("together", [{"score": 3.0, "score_rule": 4.0}, {"score": 1.4, "score_rule": 1.0}])
def test_signals_that_go_together_are_none(together) -> None:
    assert alarms_after(together, PEAK, max_score_drop=None) == []


def test_a_spread_that_grew_counts_as_it_is_now() -> None:
    parted = {"score": 1.8, "score_rule": 2.9}
    assert alarms_after(parted | {"score_rule_std": 2.3}, PEAK) == []  # 1.1 / 2.3 < 0.5
    assert alarms_after(parted | {"score_std": 0.61}, PEAK) == []  # 0.3 / 0.61 < 0.5
    assert len(alarms_after(parted | {"score_rule_std": 0.1, "score_std": 0.1}, PEAK)) == 1


def test_how_responses_repeat_is_measured_over_a_rollout() -> None:
    responses = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [7, 7, 7, 7, 7], [8]]
    measured = text_metrics(responses)
    assert measured["distinct_2"] == pytest.approx(6 / 12)  # 12 23 34 45 46 77
    assert measured["repeated_share"] == pytest.approx((0 + 0 + 4 / 5 + 0) / 4)
    assert measured["phrase_share"] == pytest.approx(2 / 4)
