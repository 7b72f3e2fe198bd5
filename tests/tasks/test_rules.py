"""Bounds on figures, and what comes of them."""

import pytest
from pydantic import ValidationError

from tasks.errors import InputError
from tasks.rules import Rule, Verdict, as_markdown, as_text, is_open, judge_rules

REPORT = {"ece": 0.25, "length_bias": -0.3, "not_measured": {"second_*": "there is no second reward model"}}


@pytest.mark.parametrize("bounds", [{}, {"least": 2.0, "most": 1.0}])
def test_a_rule_without_a_bound_and_one_that_can_never_pass_are_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=r"no bound|never pass"):
        Rule(figure="tax", **bounds)


def test_a_figure_on_its_bound_passes_and_one_beyond_either_bound_fails() -> None:
    rules = [Rule(figure="ece", most=0.25), Rule(figure="ece", least=0.25), Rule(figure="length_bias", least=-0.2)]
    assert [one.verdict for one in judge_rules(rules, REPORT)] == ["passed", "passed", "failed"]


def test_what_was_not_measured_says_why_and_what_nobody_knows_is_refused() -> None:
    [found] = judge_rules([Rule(figure="second_agreement", least=0.6)], REPORT)
    assert (found.verdict, found.why, found.measured) == ("not applicable", "there is no second reward model", None)
    with pytest.raises(InputError, match=r"There is no figure 'lenght_bias'\. Did you mean length_bias\?"):
        judge_rules([Rule(figure="lenght_bias", most=1)], REPORT)


def test_what_is_accepted_stands_in_the_table_and_closes_nothing() -> None:
    verdict = Verdict(measures="ece", demand="≤ 0.2", measured=0.25, verdict="accepted", why="the config accepts it")
    assert is_open([verdict])
    assert not is_open([verdict, verdict.model_copy(update={"verdict": "failed"})])
    assert as_text([verdict]) == "  accepted: ece is 0.25, has to be ≤ 0.2 (the config accepts it)"
    assert "| `ece` | ≤ 0.2 | 0.25 | accepted | the config accepts it |" in as_markdown([verdict])
