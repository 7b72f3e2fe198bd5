"""Where scores come from: a reward model, or a Python function named by its dotted path.

Shapes: B episodes.
"""

import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from tasks.episodes import Episodes, join, measure_rows, scores_of
from tasks.errors import InputError
from tasks.generation import Responses
from tasks.modeling import ScalarModel

RewardFunction = Callable[..., Sequence[float]]

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_INTEGER = re.compile(r"([+-]?)\$?([+-]?)(\d{1,3}(?:,\d{3})+|\d+)(?:\.0*)?")


def score_episodes(
    reward_model: ScalarModel,
    prompts: Sequence[Sequence[int]],
    responses: Responses,
    *,
    micro_batch_tokens: int = 8192,
) -> Tensor:
    """The reward model's score of each episode, [B] float32; raises InputError if one is not finite."""
    scores = model_scores(reward_model, join(prompts, responses.ids, responses.mask), micro_batch_tokens)
    check_finite(scores.tolist(), "the reward model")
    return scores


def model_scores(reward_model: ScalarModel, episodes: Episodes, micro_batch_tokens: int) -> Tensor:
    """The reward model's score of each episode at the last token of its response, [B] float32."""
    return measure_rows(lambda part: scores_of(reward_model, part), episodes, micro_batch_tokens)


def load_reward_function(path: str) -> RewardFunction:
    """The callable that `package.module:function` names; raises InputError if there is none."""
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise InputError(f"reward_function {path!r}: expected `package.module:function`.")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"reward_function {path!r}: {error}. The module must be importable where PPO runs.") from error
    if not callable(function):
        raise InputError(f"reward_function {path!r} is a {type(function).__name__}, expected a function.")
    return function


def function_scores(
    function: RewardFunction, prompts: Sequence[str], responses: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> list[float]:
    """The function's score of each episode; raises InputError unless it gives one number for each."""
    scores = list(function(prompts=list(prompts), responses=list(responses), **columns))
    name = f"the reward function {function.__module__}:{function.__qualname__}"
    if len(scores) != len(responses):
        raise InputError(f"{name} gave {len(scores)} scores for {len(responses)} responses. Give one for each.")
    for index, score in enumerate(scores):
        if not isinstance(score, int | float):
            raise InputError(f"{name} gave {score!r} for response {index}, expected a number.")
    return [float(score) for score in scores]


def check_finite(scores: Sequence[float], source: str) -> None:
    """Raise InputError, naming the source and the first such prompt, if a score is NaN or infinite."""
    for index, score in enumerate(scores):
        if not math.isfinite(score):
            raise InputError(f"{source} gave the score {score} for prompt {index} of the batch; it must be finite.")


def gsm8k_reward_fn(prompts: Sequence[str], responses: Sequence[str], answer: Sequence[Any], **_: Any) -> list[float]:
    """Scores of worked answers to questions whose answer is an integer: 0, 1 or 10.

    0 without a ground truth, with a wrong format or without an integer between the answer tags; 1 for the format; 9
    more if the integer is right. The format is TAGS, each once and in order, and only white space after the last
    (the rule of ColossalChat). Read as integers: 18, 1,800, $18 and 18.0. The ground truth is what follows the last
    `####` of the record's `answer`, or all of it.
    """
    return [_gsm8k_score(response, truth) for response, truth in zip(responses, answer, strict=True)]


def _gsm8k_score(response: str, truth: Any) -> float:
    expected = _integer(str(truth).rpartition("####")[2])
    found = _integer(_tagged_answer(response))
    if expected is None or found is None:
        return 0.0
    return 10.0 if found == expected else 1.0


def _tagged_answer(response: str) -> str:
    """What stands between the answer tags; nothing if the format is wrong."""
    places = [response.find(tag) for tag in TAGS]
    in_order = places == sorted(places) and all(response.count(tag) == 1 for tag in TAGS)
    if not in_order or response[places[3] + len(TAGS[3]) :].strip():
        return ""
    return response[places[2] + len(TAGS[2]) : places[3]]


def _integer(text: str) -> int | None:
    match = _INTEGER.fullmatch(text.strip())
    if match is None:
        return None
    sign = -1 if "-" in match[1] + match[2] else 1
    return sign * int(match[3].replace(",", ""))
