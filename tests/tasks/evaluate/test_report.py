import pytest

from tasks.evaluate.report import Page, markdown, verdict
from tasks.markdown import escape

FIGURES = {
    "num_prompts": 200,
    "score_before": 0.1,
    "score_after": 1.35,
    "score_difference": 1.25,
    "score_difference_low": 1.0,
    "score_difference_high": 1.5,
    "score_win_rate": 0.875,
    "score_win_rate_low": 0.83,
    "score_win_rate_high": 0.92,
    "score_win_rate_p_value": 0.00123,
    "score_win_rate_length_controlled": 0.81,
    "kl": 4.321,
    "kl_low": 4.0,
    "kl_high": 4.6,
    **{f"response_length_{side}": 12.34 for side in ("before", "after")},
    **{f"ended_share_{side}": 0.955 for side in ("before", "after")},
    **{f"distinct_{n}_{side}": 0.4567 for side in ("before", "after") for n in (1, 2)},
    **{f"repetition_{side}": 0.015 for side in ("before", "after")},
    **{f"commonest_phrase_{side}": " of the | film" for side in ("before", "after")},
    **{f"commonest_phrase_share_{side}": 0.2 for side in ("before", "after")},
}
RULE = {
    "rule_before": 0.0,
    "rule_after": 0.0,
    "rule_difference": 0.0,
    "rule_difference_low": 0.0,
    "rule_difference_high": 0.0,
}
SAMPLE = {"prompt": "a|b", "before": "one\ntwo", "after": "<b>*x*", "score_before": 0.5, "score_after": -1.25}


def win_rate(judge, rate, low, high):
    return {f"{judge}_win_rate": rate, f"{judge}_win_rate_low": low, f"{judge}_win_rate_high": high}


def test_the_verdict_comes_first_and_says_who_wins_how_often_and_how_surely():
    page = markdown(Page(FIGURES, ["score"], [SAMPLE]))

    assert page.split("\n")[2] == (
        "**PPO beats SFT by the reward model's score: PPO wins 87.5% of 200 prompts (95 % interval 83.0% to 92.0%).**"
    )


@pytest.mark.parametrize(
    ("low", "high", "finding"),
    [
        (0.51, 0.6, "PPO beats SFT"),
        (0.5, 0.6, "No clear difference"),
        (0.4, 0.5, "No clear difference"),
        (0.4, 0.49, "PPO loses to SFT"),
    ],
)
def test_only_an_interval_on_one_side_of_a_half_is_a_difference(low, high, finding):
    assert verdict(FIGURES | win_rate("score", 0.5, low, high), ["score"])[0].startswith(f"**{finding}")


def test_judges_that_contradict_each_other_are_pointed_out():
    loses, unclear = win_rate("rule", 0.1, 0.05, 0.2), win_rate("rule", 0.5, 0.4, 0.6)

    contradicting = verdict(FIGURES | RULE | loses, ["score", "rule"])

    assert contradicting[1].startswith("PPO loses to SFT by `rule`")
    assert any("judges disagree" in sentence for sentence in contradicting)
    assert not any("disagree" in sentence for sentence in verdict(FIGURES | RULE | unclear, ["score", "rule"]))


def test_a_phrase_in_half_of_the_responses_is_called_collapse_if_ppo_made_it():
    collapsed = FIGURES | {"commonest_phrase_share_after": 0.5}

    assert verdict(collapsed, ["score"])[-1] == (
        "50% of PPO's responses contain “of the \\| film”: it may have collapsed to a phrase."
    )
    assert len(verdict(collapsed | {"commonest_phrase_share_before": 0.5}, ["score"])) == len(
        verdict(FIGURES, ["score"])
    )


def test_the_figures_table_has_a_row_for_each_figure():
    page = markdown(Page(FIGURES, ["score"], [SAMPLE]))

    assert "| Score | 0.100 | 1.350 | +1.250 (+1.000 to +1.500) |" in page
    assert "| SFT | Score, sampled | 87.5% (83.0% to 92.0%) | p = 0.0012 | 81.0% |" in page
    assert "| KL to SFT, nats |  |  | 4.321 (4.000 to 4.600) |" in page
    assert "| Ended by themselves | 95.5% | 95.5% |  |" in page
    assert "| Distinct-2 | 0.457 | 0.457 |  |" in page


def test_a_sample_stands_in_one_row_with_its_scores_and_no_markup_of_its_own():
    page = markdown(Page(FIGURES, ["score"], [SAMPLE]))

    assert page.endswith("| a\\|b | one<br>two <br>*score 0.50* | &lt;b&gt;\\*x\\* <br>*score -1.25* |\n")


def test_escaped_text_breaks_no_table():
    assert "\n" not in escape("a\nb|c")
    assert escape("a_b `c` [d](e)") == "a\\_b \\`c\\` \\[d\\](e)"
