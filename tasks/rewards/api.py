"""Scores from a service over HTTP, in LLaMA-Factory's or OpenRLHF's protocol, each request and answer logged.

    llama_factory   {"model": "model", "messages": [text, ...]}                       -> {"scores": [number, ...]}
    openrlhf        {"query": [text, ...], "prompts": [...], "labels": [...]}         -> {"rewards": [number, ...], ...}

A text is prompt and response together with their special tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import InputError
from tasks.rewards.client import SHOWN, Client, is_success, read_authorization
from tasks.rewards.config import ApiReward
from tasks.rewards.request_log import RequestLog, read_exchanges

SCORES_KEY = {"llama_factory": "scores", "openrlhf": "rewards"}


@dataclass(frozen=True)
class Message:
    """A prompt with its response, as a service is told of them."""

    text: str  # both, with special tokens
    prompt: str  # with special tokens
    label: str  # what the record gives as the right answer; "" if nothing


Service = Callable[[Sequence[Message]], list[float]]


def load_service(config: ApiReward, log_folder: Path, rank: int) -> Service:
    """What gives a score per message: the service at config.url, or the log of a former run in its place."""
    if config.replay is not None:
        return ReplayedService(config, Path(config.replay))
    path = log_folder / f"reward_{config.name}{f'.rank{rank}' if rank else ''}.jsonl"
    return HttpService(config, RequestLog(path))


def check_service(config: ApiReward) -> None:
    """Raise InputError if the environment lacks the Authorization header, or the log to replay cannot be read."""
    if config.replay is None:
        read_authorization(_option(config), config)
    else:
        ReplayedService(config, Path(config.replay))


def make_request(config: ApiReward, messages: Sequence[Message]) -> dict[str, Any]:
    """The body of the request for these messages, in the config's protocol."""
    texts = [message.text for message in messages]
    if config.protocol == "llama_factory":
        return {"model": "model", "messages": texts}
    prompts, labels = [message.prompt for message in messages], [message.label for message in messages]
    return {"query": texts, "prompts": prompts, "labels": labels}


def read_scores(config: ApiReward, answer: Any, num_messages: int) -> list[float]:
    """The scores in the body of an answer; raises InputError, saying what is wrong with it, unless one per message."""
    key = SCORES_KEY[config.protocol]
    scores = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(scores, list):
        raise _refused(config, f'a JSON object with a list "{key}"', f"{answer!r:.{SHOWN}}")
    if len(scores) != num_messages:
        raise _refused(config, f'{num_messages} numbers in "{key}", one per message', str(len(scores)))
    for index, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise _refused(config, f'a finite number for message {index} in "{key}"', repr(score))
    return [float(score) for score in scores]


class HttpService:
    """Scores by the service at config.url: batches in parallel, again after failures that may pass."""

    def __init__(self, config: ApiReward, log: RequestLog) -> None:
        self.config = config
        self.client = Client(_option(config), config, log)

    def __call__(self, messages: Sequence[Message]) -> list[float]:
        """The score of each message; raises InputError for a wrong answer, ConnectionError for none after all tries."""
        size = self.config.batch_size
        batches = [messages[start : start + size] for start in range(0, len(messages), size)]
        answers = self.client.ask_all([make_request(self.config, batch) for batch in batches])
        return [
            score
            for batch, answer in zip(batches, answers, strict=True)
            for score in read_scores(self.config, answer, len(batch))
        ]


class ReplayedService:
    """Scores that a service gave in a former run, found by the message, whatever its place."""

    def __init__(self, config: ApiReward, path: Path) -> None:
        self.config = config
        self.path = path
        self.scores: dict[tuple[str, ...], float] = {}
        for exchange in read_exchanges(path):
            if is_success(exchange):
                keys = _keys(config, exchange.request, path)
                self.scores |= zip(keys, read_scores(config, exchange.answer, len(keys)), strict=True)

    def __call__(self, messages: Sequence[Message]) -> list[float]:
        """The score of each message; raises InputError for one that was not asked about then."""
        keys = _keys(self.config, make_request(self.config, messages), self.path)
        for key in keys:
            if key not in self.scores:
                raise InputError(
                    f"rewards.{self.config.name}: none of the {len(self.scores)} messages in the log {self.path} is "
                    f"{key[0]!r:.{SHOWN}}. A log answers only the run that it is of: same config, data and models. "
                    "Leave out replay to ask the service."
                )
        return [self.scores[key] for key in keys]


def _keys(config: ApiReward, request: dict[str, Any], path: Path) -> list[tuple[str, ...]]:
    """What the score of each message in a request depends on: its text and, in openrlhf's protocol, its label."""
    columns = ("messages",) if config.protocol == "llama_factory" else ("query", "labels")
    if not all(isinstance(request.get(column), list) for column in columns):
        raise InputError(
            f"{path} is not a log of the protocol {config.protocol}: a request lacks {' or '.join(columns)}."
        )
    return list(zip(*(request[column] for column in columns), strict=True))


def _option(config: ApiReward) -> str:
    return f"rewards.{config.name}"


def _refused(config: ApiReward, expected: str, got: str) -> InputError:
    return InputError(
        f"rewards.{config.name}: {config.url} should answer with {expected}, got {got}. Mend the service, or set "
        f"protocol (now {config.protocol}) to the one that it speaks."
    )
