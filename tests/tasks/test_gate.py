"""Rules on an evaluation's figures, and their verdicts."""

from typing import Any

import pytest

from tasks.errors import InputError
from tasks.gate import GateConfig, check_figures, judge
from tasks.rules import Rule, as_markdown, as_text, is_open

OFF = dict.fromkeys(("champion_win_rate", "champion_win_rate_low", "tax", "length_change", "metric_drop"))
GOOD = {
    "champion_win_rate": 0.5,
    "champion_win_rate_low": 0.45,
    "tax": 0.05,
    "response_length_before": 10.0,
    "response_length_after": 12.0,
    "rule_difference": -0.05,
    "judge": "score",
}


def verdicts(changes: dict[str, Any] | None = None, **options: Any) -> dict[str, str]:
    found = judge(GateConfig(**options), ["rule"], GOOD | (changes or {}))
    return {one.measures: one.verdict for one in found}


def test_figures_at_their_bounds_pass_every_preset() -> None:
    assert verdicts() == {
        "champion_win_rate": "passed",
        "champion_win_rate_low": "passed",
        "tax": "passed",
        "response_length_after / response_length_before": "passed",
        "rule_difference": "passed",
    }


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"champion_win_rate": 0.499}, "champion_win_rate"),
        ({"champion_win_rate_low": 0.449}, "champion_win_rate_low"),
        ({"tax": 0.051}, "tax"),
        ({"response_length_after": 12.1}, "response_length_after / response_length_before"),
        ({"response_length_after": 7.9}, "response_length_after / response_length_before"),
        ({"rule_difference": -0.051}, "rule_difference"),
        ({"tax": float("nan")}, "tax"),
        ({"response_length_before": 0.0}, "response_length_after / response_length_before"),
    ],
)
def test_a_figure_beyond_its_bound_fails_its_own_rule_alone(change: dict[str, float], failing: str) -> None:
    found = verdicts(change)
    assert {name for name, verdict in found.items() if verdict == "failed"} == {failing}


@pytest.mark.parametrize(
    ("option", "value", "change"),
    [
        ("champion_win_rate", 0.6, {"champion_win_rate": 0.55}),
        ("champion_win_rate_low", 0.5, {"champion_win_rate_low": 0.48}),
        ("tax", 0.01, {"tax": 0.02}),
        ("length_change", 0.1, {"response_length_after": 11.5}),
        ("metric_drop", 0.0, {"rule_difference": -0.01}),
    ],
)
def test_every_preset_can_be_made_stricter_or_switched_off(option: str, value: float, change: dict[str, float]) -> None:
    assert "failed" not in verdicts(change).values()
    assert "failed" in verdicts(change, **{option: value}).values()
    assert len(verdicts(change, **{option: None})) == len(verdicts()) - 1


def test_a_figure_that_was_not_measured_makes_its_rule_not_applicable_and_says_why() -> None:
    report = {key: value for key, value in GOOD.items() if not key.startswith("champion_")}
    report["not_measured"] = {"champion_*": "there is no champion yet"}
    found = judge(GateConfig(), [], report)
    assert [(one.verdict, one.why) for one in found[:2]] == [("not applicable", "there is no champion yet")] * 2
    assert is_open(found)
    assert "| `champion_win_rate` | ≥ 0.5 | not measured | not applicable | there is no champion yet |" in as_markdown(
        found
    )


def test_a_figure_that_nobody_knows_is_refused_with_the_nearest_name() -> None:
    config = GateConfig(**OFF, rules=[Rule(figure="respnse_length_after", most=3)])
    with pytest.raises(InputError, match=r"no figure 'respnse_length_after'.*response_length_after"):
        judge(config, [], GOOD)
    with pytest.raises(ValueError, match=r"no figure 'respnse_length_after'.*response_length_after"):
        check_figures(config, [], GOOD)


def test_a_figure_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="The figure judge is 'score', and a rule needs a number"):
        judge(GateConfig(**OFF, rules=[Rule(figure="judge", most=3)]), [], GOOD)


def test_a_rule_of_ones_own_may_name_another_figure() -> None:
    rule = {"figure": "tax", "relative_to": "champion_win_rate", "most": 0.09, "least": 0.0}
    [found] = judge(GateConfig(**OFF, rules=[rule]), [], GOOD)
    assert (found.measured, found.verdict, found.demand) == (0.1, "failed", "≥ 0 and ≤ 0.09")
    assert as_text([found]) == "  failed: tax / champion_win_rate is 0.1, has to be ≥ 0 and ≤ 0.09"
    assert not is_open([found])
