"""Verifiable rewards: the format of a response, and whether its answer is right. 0, 1 or 10, as in ColossalChat.

A response thinks between two tags and answers between two others:

    <think> 16 - 7 = 9, at 2 dollars each </think> <answer> 18 </answer>

| score | gsm8k_reward_fn                               | math_competition_reward_fn        |
|-------|-----------------------------------------------|-----------------------------------|
| 0     | no ground truth, wrong format, or no integer  | no ground truth, or wrong format  |
| 1     | right format                                  | right format                      |
| 10    | and the integer is equal                      | and the answers are equal         |

The format is right if each tag stands there as often as it should, their first places are in order, and nothing but
white space follows the last tag. The answer is what stands between the last pair of answer tags.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from tasks.config import Config
from tasks.errors import InputError
from tasks.rewards.mathematics import equal_answers, last_boxed

WRONG_FORMAT, RIGHT_FORMAT, RIGHT_ANSWER = 0.0, 1.0, 10.0
_INTEGER = re.compile(r"([+-]?)\$?([+-]?)(\d{1,3}(?:,\d{3})+|\d+)(?:\.0*)?", re.ASCII)


class FormatTag(Config):
    """A tag of the response format."""

    text: str = Field(min_length=1)
    """As it is written."""
    num_occur: int = Field(1, ge=1)
    """How often it must occur."""


class FormatTags(Config):
    """The tags of a response, in their order; ColossalChat's response_format_tags."""

    think_start: FormatTag = FormatTag(text="<think>")
    """Before the thoughts."""
    think_end: FormatTag = FormatTag(text="</think>")
    """After the thoughts."""
    answer_start: FormatTag = FormatTag(text="<answer>")
    """Before the answer."""
    answer_end: FormatTag = FormatTag(text="</answer>")
    """After the answer, and the end of the response."""


def gsm8k_reward_fn(
    prompts: Sequence[str],
    responses: Sequence[str],
    answer: Sequence[Any],
    response_format_tags: Mapping[str, Any] | None = None,
    **_: Any,
) -> list[float]:
    """0, 1 or 10 for each response to a question whose answer is an integer; see the module's table.

    The ground truth is what follows the last `####` of the record's `answer`, or all of it. Read as integers are 18,
    1,800, $18 and 18.0; ColossalChat gives 0 for all but the first.
    """
    tags = FormatTags.model_validate(response_format_tags or {})
    return [_gsm8k_score(response, truth, tags) for response, truth in zip(responses, answer, strict=True)]


def math_competition_reward_fn(
    prompts: Sequence[str],
    responses: Sequence[str],
    answer: Sequence[Any] | None = None,
    solution: Sequence[Any] | None = None,
    response_format_tags: Mapping[str, Any] | None = None,
    **_: Any,
) -> list[float]:
    r"""0, 1 or 10 for each response to a question whose answer is a formula; see the module's table.

    The ground truth is the record's `answer`, or without one the last \boxed{} of its `solution`. Answers are equal if
    they are so after normalising, or as exact numbers, or symbolically where math-verify is installed (the extra
    `math`); see tasks/rewards/mathematics.py.
    """
    if answer is None and solution is None:
        raise InputError("math_competition_reward_fn: the prompts' records have no column `answer` or `solution`.")
    tags = FormatTags.model_validate(response_format_tags or {})
    nothing = [None] * len(responses)
    rows = zip(responses, answer or nothing, solution or nothing, strict=True)
    return [_math_score(response, _math_truth(*truth), tags) for response, *truth in rows]


def tagged_answer(response: str, tags: FormatTags) -> str | None:
    """What stands between the last answer tags, or None if the format is wrong."""
    expected = [tags.think_start, tags.think_end, tags.answer_start, tags.answer_end]
    places = [response.find(tag.text) for tag in expected]
    complete = all(response.count(tag.text) == tag.num_occur for tag in expected)
    before, end, after = response.rpartition(tags.answer_end.text)
    _, start, found = before.rpartition(tags.answer_start.text)
    if not (complete and places == sorted(places) and start and end) or after.strip():
        return None
    return found


def _gsm8k_score(response: str, truth: Any, tags: FormatTags) -> float:
    expected = _integer(str(truth).rpartition("####")[2])
    found = _integer(tagged_answer(response, tags) or "")
    if expected is None or found is None:
        return WRONG_FORMAT
    return RIGHT_ANSWER if found == expected else RIGHT_FORMAT


def _math_score(response: str, truth: str, tags: FormatTags) -> float:
    found = tagged_answer(response, tags)
    if not truth or found is None:
        return WRONG_FORMAT
    return RIGHT_ANSWER if equal_answers(found, truth) else RIGHT_FORMAT


def _math_truth(answer: Any, solution: Any) -> str:
    """The ground truth as text; empty if there is none."""
    if answer is not None and str(answer).strip():
        return str(answer).strip()
    return (last_boxed(str(solution)) or "").strip()


def _integer(text: str) -> int | None:
    match = _INTEGER.fullmatch(text.strip())
    if match is None:
        return None
    sign = -1 if "-" in match[1] + match[2] else 1
    return sign * int(match[3].replace(",", ""))
