import pytest
import torch
from torch.testing import assert_close

from tasks.config import SamplingConfig
from tasks.errors import InputError
from tasks.generation import generate, uniform_numbers
from tasks.modeling import load_reward_model
from tasks.rewards import (
    check_finite,
    function_scores,
    gsm8k_reward_fn,
    load_reward_function,
    score_episodes,
)
from tests.tasks.ppo import tiny


def worked(answer: str, thought: str = "so many") -> str:
    return f"<think>{thought}</think> <answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("response", "truth", "score"),
    [
        (worked("18"), "18", 10),
        (worked(" 18 \n") + "\n", "7 + 11 = 18\n#### 18", 10),
        (worked("1,800"), "#### 1800", 10),
        (worked("$18"), "18", 10),
        (worked("-$18"), "-18", 10),
        (worked("18.0"), "18", 10),
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
def test_gsm8k_rule(response: str, truth: str | None, score: float) -> None:
    assert gsm8k_reward_fn(["q"], [response], [truth], source=["x"]) == [score]


def test_a_function_gets_prompts_responses_and_columns_by_name() -> None:
    seen = {}

    def function(**given: list[str]) -> list[int]:
        seen.update(given)
        return [1, 2]

    assert function_scores(function, ("p", "q"), ("r", "s"), {"answer": ["a", "b"]}) == [1.0, 2.0]
    assert seen == {"prompts": ["p", "q"], "responses": ["r", "s"], "answer": ["a", "b"]}


@pytest.mark.parametrize(("scores", "fault"), [([1.0], "1 scores for 2"), ([1.0, "x"], "response 1"), ([None, 1], "0")])
def test_a_wrong_answer_of_a_function_is_refused(scores: list[object], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        function_scores(lambda **_: scores, ["p", "q"], ["r", "s"], {})  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_is_refused_by_name(value: float) -> None:
    check_finite([0.0, 1.0], "the judge")
    with pytest.raises(InputError, match=r"the judge gave the score .* prompt 1 "):
        check_finite([0.0, value], "the judge")


def test_a_reward_function_is_found_by_its_dotted_path() -> None:
    assert load_reward_function("tasks.rewards:gsm8k_reward_fn") is gsm8k_reward_fn


@pytest.mark.parametrize(
    "path", ["tasks.rewards", "tasks.rewards:", ":x", "no.such:function", "tasks.rewards:nothing", "tasks.rewards:TAGS"]
)
def test_a_path_that_names_no_function_is_refused(path: str) -> None:
    with pytest.raises(InputError, match=path):
        load_reward_function(path)


def test_the_reward_model_scores_the_last_token_of_each_response(tmp_path) -> None:
    model = load_reward_model(tiny.write_reward_model(tmp_path / "reward"))
    prompts = [[3, 4, 5], [6], [7, 8]]
    sampling = SamplingConfig(response_length=9)
    responses = generate(
        tiny.make_model(), prompts, sampling, uniforms=uniform_numbers(3, 9, 1), stop_ids=[1, 5], pad_token_id=0
    )
    expected = [
        model(torch.tensor([prompt + response]))[0, -1]
        for prompt, response in zip(prompts, responses.unpadded(), strict=True)
    ]
    assert_close(score_episodes(model, prompts, responses, micro_batch_tokens=12), torch.stack(expected))


def test_a_reward_model_that_scores_nan_is_refused(tmp_path) -> None:
    model = load_reward_model(tiny.write_reward_model(tmp_path / "reward"))
    model.head.offset.fill_(float("nan"))
    sampling = SamplingConfig(response_length=2)
    responses = generate(tiny.make_model(), [[3]], sampling, uniforms=None, stop_ids=[1], pad_token_id=0)
    with pytest.raises(InputError, match=r"reward model gave the score nan for prompt 0"):
        score_episodes(model, [[3]], responses)
