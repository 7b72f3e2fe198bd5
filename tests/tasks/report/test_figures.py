"""What the figures of an evaluation come to."""

from tasks.report.figures import comparison, first_judge, sides_in, win_rates

REPORT = {
    "win_rate": 0.75,
    "win_rate_low": 0.7,
    **{
        f"{name}{end}": 0.5
        for name in ("champion_win_rate", "greedy_champion_win_rate")
        for end in ("", "_low", "_high")
    },
    **{
        f"{pair}{judge}_win_rate{end}": value
        for pair in ("champion_", "", "greedy_")
        for judge in ("second_score", "my_rule")
        for end, value in (("", 0.6), ("_low", 0.5), ("_high", 0.7))
    },
    "unsure_win_rate": 0.9,
    "judges": ["second_score"],
    "second_score_before": 1.0,
    "second_score_after": 2.0,
    "kl": 3.0,
    "response_length_before": 10.0,
    "response_length_after": 12.5,
}


def test_every_win_rate_with_an_interval_is_found_once_and_those_over_sft_come_first() -> None:
    found = win_rates(REPORT)
    assert [(one.rival, one.judge, one.greedy) for one in found] == [
        ("SFT", "second reward model", False),
        ("SFT", "my_rule", False),
        ("SFT", "second reward model", True),
        ("SFT", "my_rule", True),
        ("Champion", "second reward model", False),
        ("Champion", "my_rule", False),
    ]
    assert {(one.value, one.low, one.high) for one in found} == {(0.6, 0.5, 0.7)}


def test_the_first_judge_is_the_one_whose_win_rate_comes_first() -> None:
    assert first_judge({"win_rate": 1.0, "champion_win_rate": 1.0, "rule_win_rate": 1.0, "b_win_rate": 1.0}) == "rule"
    assert first_judge({"win_rate": 1.0, "kl": 2.0}) is None


def test_each_model_has_a_column_and_only_ppo_a_kl() -> None:
    assert sides_in(REPORT) == ["before", "after"]
    assert comparison(REPORT) == [
        ("Mean by second reward model", ["1.000", "2.000"]),
        ("KL to SFT, nats per response", ["", "3.00"]),
        ("Response length, tokens", ["10.0", "12.5"]),
    ]
