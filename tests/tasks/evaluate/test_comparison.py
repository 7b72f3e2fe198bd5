import numpy as np
import pytest

from tasks.evaluate.comparison import Answers, Bootstrap, Comparison, figures, samples

BEFORE = Answers(
    texts=["a b a b", "c"],
    tokens=[[1, 2, 1, 2], [3]],
    ended=[False, True],
    judgements={"rule": np.array([1.0, 2.0]), "score": np.array([0.5, 1.0])},
)
AFTER = Answers(
    texts=["d d d d d d", "c e"],
    tokens=[[4, 4, 4, 4, 4, 4], [3, 5]],
    ended=[True, True],
    judgements={"rule": np.array([0.0, 2.0]), "score": np.array([2.0, 1.5])},
)
COMPARISON = Comparison(
    prompts=["p", "q"],
    sampled={"sft": BEFORE, "ppo": AFTER, "champion": AFTER},
    greedy={"sft": BEFORE, "ppo": BEFORE},
    kl={"sft": np.zeros(2), "ppo": np.array([3.0, 1.0])},
)


@pytest.fixture(scope="module")
def result():
    return figures(COMPARISON, Bootstrap(100, seed=0), decode=lambda tokens: "-".join(map(str, tokens)))


def test_the_reward_models_score_judges_first(result):
    assert COMPARISON.judges == ["score", "rule"]
    assert result["judge"] == "score"
    assert (result["win_rate"], result["score_win_rate"], result["rule_win_rate"]) == (1.0, 1.0, 0.25)


def test_means_and_differences_by_hand(result):
    assert (result["score_before"], result["score_after"], result["score_difference"]) == (0.75, 1.75, 1.0)
    assert (result["rule_before"], result["rule_after"], result["rule_difference"]) == (1.5, 1.0, -0.5)
    assert result["kl"] == 2.0
    assert 1.0 <= result["kl_low"] <= 2.0 <= result["kl_high"] <= 3.0


def test_figures_of_the_texts_by_hand(result):
    assert (result["response_length_before"], result["response_length_after"]) == (2.5, 4.0)
    assert (result["ended_share_before"], result["ended_share_after"]) == (0.5, 1.0)
    assert (result["distinct_1_before"], result["distinct_1_after"]) == (3 / 5, 3 / 8)
    assert (result["distinct_2_before"], result["distinct_2_after"]) == (2 / 3, 2 / 6)
    assert (result["repetition_before"], result["repetition_after"]) == (0, pytest.approx((2 / 3 + 0) / 2))
    assert (result["commonest_phrase_after"], result["commonest_phrase_share_after"]) == ("4-4-4-4", 0.5)


def test_a_sample_holds_both_answers_and_every_judgement():
    assert samples(COMPARISON)[1] == {
        "prompt": "q",
        "before": "c",
        "after": "c e",
        "champion": "c e",
        "score_before": 1.0,
        "rule_before": 2.0,
        "score_after": 1.5,
        "rule_after": 2.0,
        "score_champion": 1.5,
        "rule_champion": 2.0,
        "kl": 1.0,
        "response_length_before": 1,
        "response_length_after": 2,
        "response_length_champion": 2,
    }


def test_the_champion_is_compared_with_both_sides(result):
    assert (result["champion_win_rate"], result["champion_score_difference"]) == (0.5, 0.0)
    assert (result["win_rate_champion"], result["score_champion"]) == (result["win_rate"], result["score_after"])


def test_greedy_answers_have_figures_of_their_own(result):
    assert (result["greedy_win_rate"], result["greedy_score_after"]) == (0.5, result["score_before"])
    assert "greedy_champion_win_rate" not in result


def test_a_win_rate_has_its_sign_test(result):
    assert (result["win_rate_p_value"], result["rule_win_rate_p_value"]) == (0.5, 1.0)
