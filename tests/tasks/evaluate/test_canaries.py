from tasks.evaluate.canaries import canary_figures, canary_rows, diff


def test_words_that_left_are_struck_out_and_words_that_came_are_bold() -> None:
    assert diff("the old cat sat", "the new cat sat down") == "the ~~old~~ **new** cat sat **down**"
    assert diff("same *words*", "same *words*") == "same \\*words\\*"
    assert diff("", "all | new") == "**all \\| new**"
    assert diff("gone\nentirely", "") == "~~gone<br>entirely~~"


def test_the_shares_count_the_canaries_that_changed() -> None:
    answers = {"sft": ["a", "b", "c", "d"], "champion": ["a", "x", "c", "d"], "ppo": ["a", "x", "y", "z"]}
    rows = canary_rows(["p", [{"role": "user", "content": "q"}], "r", "s"], answers)
    assert rows[1] == {"prompt": "q", "before": "b", "champion": "x", "after": "x"}
    assert canary_figures(rows) == {"num_canaries": 4, "canary_changed": 0.75, "champion_canary_changed": 0.5}


def test_without_a_champion_or_canaries_there_is_nothing_to_say_of_them() -> None:
    assert canary_figures(canary_rows(["p"], {"sft": ["a"], "ppo": ["a"]})) == {
        "num_canaries": 1,
        "canary_changed": 0.0,
    }
    assert canary_figures([]) == {}
