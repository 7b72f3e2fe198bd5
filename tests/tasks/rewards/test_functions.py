from typing import Any

import numpy as np
import pytest

from tasks.errors import InputError
from tasks.rewards.functions import check_call, function_scores, load_reward_function
from tasks.rewards.rules import gsm8k_reward_fn

HERE = "tests.tasks.rewards.test_functions"


def graded(prompts: list[str], responses: list[str], answer: list[str], level: int = 1) -> list[float]:
    return [float(level) for _ in responses]


def of_all(**given: Any) -> list[float]:
    return [0.0]


class Judge:
    @staticmethod
    def polite(prompts: list[str], responses: list[str], **_: Any) -> list[float]:
        return [1.0]


def test_a_function_gets_prompts_responses_columns_and_arguments_by_name() -> None:
    seen = {}

    def function(**given: Any) -> list[int]:
        seen.update(given)
        return [1, 2]

    columns = {"answer": ["a", "b"], "level": ["c", "d"]}
    assert function_scores(function, ("p", "q"), ("r", "s"), columns, {"level": 3}) == [1.0, 2.0]
    assert seen == {"prompts": ["p", "q"], "responses": ["r", "s"], "answer": ["a", "b"], "level": 3}


def test_numbers_of_numpy_and_truth_values_are_numbers() -> None:
    scores = [np.float32(0.5), np.int64(2), True]
    assert function_scores(lambda **_: scores, ["p"] * 3, ["r"] * 3, {}) == [0.5, 2.0, 1.0]  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(("scores", "fault"), [([1.0], "1 scores for 2"), ([1.0, "x"], "response 1"), ([None, 1], "0")])
def test_a_wrong_answer_of_a_function_is_refused(scores: list[object], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        function_scores(lambda **_: scores, ["p", "q"], ["r", "s"], {})  # type: ignore[arg-type,return-value]


def test_a_reward_function_is_found_by_its_dotted_path() -> None:
    assert load_reward_function("tasks.rewards.rules:gsm8k_reward_fn") is gsm8k_reward_fn
    assert load_reward_function(f"{HERE}:Judge.polite") is Judge.polite


@pytest.mark.parametrize(
    "path",
    [
        "tasks.rewards.rules",
        "tasks.rewards.rules:",
        ":x",
        "no.such:function",
        "tasks.rewards.rules:nothing",
        "tasks.rewards.rules:RIGHT_ANSWER",
    ],
)
def test_a_path_that_names_no_function_is_refused(path: str) -> None:
    with pytest.raises(InputError, match=path):
        load_reward_function(path)


def test_a_function_that_lacks_a_column_or_is_given_too_much_is_refused_before_it_is_called() -> None:
    check_call(f"{HERE}:graded", ["answer"], {"level": 2})
    check_call(f"{HERE}:of_all", ["anything"], {})
    with pytest.raises(InputError, match=r"graded cannot be called: missing a required argument: 'answer'.*\(level\)"):
        check_call(f"{HERE}:graded", ["level"], {})
    with pytest.raises(InputError, match=r"unexpected keyword argument 'id'.*\(answer, id\).*\*\*others"):
        check_call(f"{HERE}:graded", ["answer", "id"], {})
    with pytest.raises(InputError, match="unexpected keyword argument 'depth'"):
        check_call(f"{HERE}:graded", ["answer"], {"depth": 2})


def test_a_column_that_ppo_itself_gives_is_refused() -> None:
    with pytest.raises(InputError, match=r"have a column 'responses'.*Rename it in prepare_data"):
        check_call(f"{HERE}:of_all", ["responses"], {})
