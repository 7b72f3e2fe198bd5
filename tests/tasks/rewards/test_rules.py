import pytest

from tasks.errors import InputError
from tasks.rewards.rules import gsm8k_reward_fn, math_competition_reward_fn

HASHED = {
    "think_start": {"text": "#T", "num_occur": 1},
    "think_end": {"text": "T#", "num_occur": 1},
    "answer_start": {"text": "#A", "num_occur": 2},
    "answer_end": {"text": "A#", "num_occur": 2},
}


def worked(answer: str, thought: str = "so many") -> str:
    return f"<think>{thought}</think> <answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("response", "truth", "score"),
    [
        (worked("18"), "18", 10),
        (worked(" 18 \n") + "\n", "7 + 11 = 18\n#### 18", 10),
        (worked("18"), "#### 17 #### 18", 10),
        (worked("1,800"), "#### 1800", 10),
        (worked("1800"), "#### 1,800", 10),
        (worked("$18"), "18", 10),
        (worked("-$18"), "-18", 10),
        (worked("$-18"), "-18", 10),
        (worked("18.0"), "18", 10),
        (worked("18"), 18, 10),
        (worked("18"), "#### 1,8", 0),  # no number, so no ground truth
        (worked("17"), "18", 1),
        (worked("-18"), "18", 1),
        (worked("18.5"), "18", 0),
        (worked("eighteen"), "18", 0),
        (worked(""), "18", 0),
        (worked("18"), None, 0),
        (worked("18"), "", 0),
        (worked("18") + " and more", "18", 0),
        ("18", "18", 0),
        ("<think>a</think> <answer>18", "18", 0),
        ("<answer>18</answer> <think>a</think>", "18", 0),
        ("<think>a <answer>18</answer></think>", "18", 0),
        (worked("18") + worked("18"), "18", 0),
        (worked("18", thought="<think>"), "18", 0),
    ],
)
def test_gsm8k_rule(response: str, truth: str | int | None, score: float) -> None:
    assert gsm8k_reward_fn(["q"], [response], [truth], source=["x"]) == [score]


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("#Ta T# #A 3 A# #A 18 A#", 10),  # the last pair holds the answer
        ("#Ta T# #A 18 A# #A 3 A#", 1),
        ("#Ta T# #A 18 A#", 0),
        ("#Ta T# #A #A 18 A# A#", 0),  # nothing stands between the last end and a start before it
        ("#A 18 A# #Ta T# #A 18 A#", 0),
        (worked("18"), 0),
    ],
)
def test_tags_are_written_and_counted_as_the_options_say(response: str, score: float) -> None:
    assert gsm8k_reward_fn(["q"], [response], ["18"], response_format_tags=HASHED) == [score]


def test_a_tag_that_is_not_given_is_the_usual_one() -> None:
    tags = {"think_start": {"text": "<reason>", "num_occur": 1}}
    response = "<reason>a</think> <answer>18</answer>"
    assert gsm8k_reward_fn(["q"], [response], ["18"], response_format_tags=tags) == [10]


@pytest.mark.parametrize(
    ("response", "truth", "score"),
    [
        (worked(r"\frac{1}{2}"), r"\dfrac12", 10),
        (worked(r"\boxed{0.5}"), r"\frac{1}{2}", 10),
        (worked("x + 1"), "x+1", 10),
        (worked("x + 2"), "x+1", 1),
        (worked(""), "x+1", 1),
        (worked("x+1") + ".", "x+1", 0),
        ("x+1", "x+1", 0),
        (worked("x+1"), None, 0),
        (worked("x+1"), " ", 0),
    ],
)
def test_math_rule(response: str, truth: str | None, score: float) -> None:
    assert math_competition_reward_fn(["q"], [response], answer=[truth]) == [score]


def test_without_an_answer_the_last_box_of_the_solution_is_the_ground_truth() -> None:
    solution = r"First \boxed{1}, so in all $\boxed{\frac{3}{4}}$."
    responses = [worked("0.75"), worked("1"), worked("0.75"), worked("2")]
    solutions, answers = [solution, solution, "no box", solution], [None, " ", None, "2"]
    assert math_competition_reward_fn([], responses, solution=solutions, answer=answers) == [10, 1, 0, 10]
    assert math_competition_reward_fn([], responses[:2], solution=solutions[:2]) == [10, 1]


def test_the_math_rule_names_the_columns_that_it_lacks() -> None:
    with pytest.raises(InputError, match="no column `answer` or `solution`"):
        math_competition_reward_fn(["q"], [worked("1")])
