"""Python functions as sources of scores: find one by its dotted path, see that it can be called, call it."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from tasks.callables import load_callable
from tasks.errors import InputError
from tasks.rewards.config import RESERVED_ARGUMENTS

RewardFunction = Callable[..., Sequence[float]]


def load_reward_function(path: str) -> RewardFunction:
    """The callable that `package.module:function` names; raises InputError if there is none."""
    return load_callable(path, "reward function")


def check_call(path: str, columns: Iterable[str], arguments: Mapping[str, Any]) -> None:
    """Raise InputError unless the function at `path` takes the records' columns and the arguments, and needs no more.

    A column with the name of an argument is hidden by it; one named prompts or responses is refused.
    """
    names = list(columns)
    if taken := [name for name in RESERVED_ARGUMENTS if name in names]:
        raise InputError(
            f"The prompts have a column {taken[0]!r}, which is what a reward function gets from PPO itself. "
            "Rename it in prepare_data."
        )
    given = dict.fromkeys([*RESERVED_ARGUMENTS, *names, *arguments])
    try:
        inspect.signature(load_reward_function(path)).bind(**given)
    except TypeError as error:
        raise InputError(
            f"The reward function {path} cannot be called: {error}. It gets prompts, responses, the columns of the "
            f"prompts' records ({', '.join(names) or 'none'}) and its arguments ({', '.join(arguments) or 'none'}), by "
            "name. Map the column it wants in prepare_data, or let it take **others."
        ) from error


def function_scores(
    function: RewardFunction,
    prompts: Sequence[str],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    arguments: Mapping[str, Any] | None = None,
) -> list[float]:
    """The function's score of each response; raises InputError unless it gives one number for each.

    It is called with prompts, responses, the columns and the arguments by name, and may change none of them for others.
    """
    given = {**columns, **(arguments or {}), "prompts": list(prompts), "responses": list(responses)}
    scores = list(function(**given))
    name = f"the reward function {function.__module__}:{function.__qualname__}"
    if len(scores) != len(responses):
        raise InputError(f"{name} gave {len(scores)} scores for {len(responses)} responses. Give one for each.")
    for index, score in enumerate(scores):
        if not isinstance(score, Real):
            raise InputError(f"{name} gave {score!r} for response {index}, expected a number.")
    return [float(score) for score in scores]
