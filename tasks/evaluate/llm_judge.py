"""A language model behind an OpenAI-compatible API as a judge of two answers.

Letter: n prompts that it is asked about.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import InputError
from tasks.evaluate.comparison import Floats
from tasks.evaluate.config import LlmJudge
from tasks.rewards.client import SHOWN, Client, is_success, read_authorization
from tasks.rewards.request_log import RequestLog, read_exchanges

OUTCOMES = {"A": 0.0, "B": 1.0, "C": 0.5}  # of the answer shown second
VERDICT = re.compile(r"\[\[([ABC])\]\]")

Ask = Callable[[Sequence[dict[str, Any]]], list[Any]]  # requests -> the answers' bodies


@dataclass(frozen=True)
class Verdicts:
    """The judge's verdicts on pairs of answers, in both orders: 1 where PPO's wins, 0 where the rival's, 1/2 a tie."""

    shown_second: Floats  # [n], PPO's answer shown after the rival's
    shown_first: Floats  # [n], PPO's answer shown before the rival's
    num_unread: int  # replies without a verdict

    @property
    def outcomes(self) -> Floats:
        """The mean of both orders, [n]."""
        return (self.shown_first + self.shown_second) / 2

    def figures(self) -> dict[str, float]:
        """How far the judge can be trusted; the names' ends."""
        return {
            # First wins less second wins: 1 - 2 x outcome where PPO is shown second, 2 x outcome - 1 where first.
            "position_bias": float((self.shown_first - self.shown_second).mean()),
            "agreement": float((self.shown_first == self.shown_second).mean()),
            "tie_share": float((self.outcomes == 0.5).mean()),
            "unread_share": self.num_unread / (2 * len(self.outcomes)),
        }


def check_llm_judge(config: LlmJudge) -> None:
    """Raise InputError if the environment lacks the Authorization header, or the log to replay cannot be read."""
    if config.replay is None:
        read_authorization(_option(config), config)
    else:
        _replayed(config, Path(config.replay))


def load_llm_judge(config: LlmJudge, output: Path) -> Ask:
    """What answers requests: the service, logged to judge_NAME.jsonl in `output`, or a former run's log."""
    if config.replay is not None:
        return _replayed(config, Path(config.replay))
    return Client(_option(config), config, RequestLog(output / f"judge_{config.name}.jsonl")).ask_all


def compare(
    config: LlmJudge, ask: Ask, prompts: Sequence[str], rivals: Sequence[str], answers: Sequence[str]
) -> Verdicts:
    """The verdicts on each prompt's two answers; equal ones are a tie without being asked about.

    Raises InputError for replies that are none, and if more than config.max_unread_share hold no verdict.
    """
    prompts, rivals, answers = (column[: config.num_prompts] for column in (prompts, rivals, answers))
    asked = [index for index, pair in enumerate(zip(rivals, answers, strict=True)) if pair[0] != pair[1]]
    requests = [
        make_request(config, prompts[index], *pair)
        for index in asked
        for pair in ((rivals[index], answers[index]), (answers[index], rivals[index]))
    ]
    read = [read_verdict(config, body) for body in ask(requests)]
    num_unread = read.count(None)
    if num_unread > config.max_unread_share * max(1, len(read)):
        raise InputError(
            f"{_option(config)}: {num_unread} of {len(read)} replies hold none of [[A]], [[B]], [[C]]. Raise "
            "max_tokens in its options, or ask for the verdict in its instructions."
        )
    outcomes = np.array([0.5 if verdict is None else OUTCOMES[verdict] for verdict in read])
    second, first = np.full(len(prompts), 0.5), np.full(len(prompts), 0.5)
    second[asked], first[asked] = outcomes[0::2], 1 - outcomes[1::2]
    return Verdicts(shown_second=second, shown_first=first, num_unread=num_unread)


def make_request(config: LlmJudge, prompt: str, first: str, second: str) -> dict[str, Any]:
    """The body of the request to compare two answers to a prompt."""
    question = f"[Prompt]\n{prompt}\n\n[Answer A]\n{first.strip()}\n\n[Answer B]\n{second.strip()}"
    messages = [{"role": "system", "content": config.instructions}, {"role": "user", "content": question}]
    return {"model": config.model, "messages": messages, **config.options}


def read_verdict(config: LlmJudge, body: Any) -> str | None:
    """A, B or C from the body of an answer, None where the reply holds none; raises InputError for no reply at all."""
    try:
        text = body["choices"][0]["message"]["content"] or ""
        found = VERDICT.findall(text)
    except (LookupError, TypeError) as error:
        raise InputError(
            f"{_option(config)}: {config.url} should answer with choices[0].message.content, as OpenAI's "
            f"chat/completions does, got {body!r:.{SHOWN}}. Correct the address or the model."
        ) from error
    return found[-1] if found else None


def _replayed(config: LlmJudge, path: Path) -> Ask:
    """The answers that a former run got, found by the request."""
    answers = {_key(exchange.request): exchange.answer for exchange in read_exchanges(path) if is_success(exchange)}

    def ask(requests: Sequence[dict[str, Any]]) -> list[Any]:
        for request in requests:
            if _key(request) not in answers:
                raise InputError(
                    f"{_option(config)}: the log {path} holds {len(answers)} answers, but none to "
                    f"{request['messages'][-1]['content']!r:.{SHOWN}}. A log answers only the run that it is of: same "
                    "config, data and models. Leave out replay to ask the service."
                )
        return [answers[_key(request)] for request in requests]

    return ask


def _key(request: dict[str, Any]) -> str:
    return json.dumps(request, sort_keys=True)


def _option(config: LlmJudge) -> str:
    return f"llm_judge.{config.name}"
