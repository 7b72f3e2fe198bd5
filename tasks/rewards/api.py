"""Scores from a service over HTTP, in LLaMA-Factory's or OpenRLHF's protocol, each request and answer logged.

    llama_factory   {"model": "model", "messages": [text, ...]}                       -> {"scores": [number, ...]}
    openrlhf        {"query": [text, ...], "prompts": [...], "labels": [...]}         -> {"rewards": [number, ...], ...}

A text is prompt and response together with their special tokens.
"""

import math
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import reduce
from pathlib import Path
from typing import Any

import httpx

from tasks.errors import InputError
from tasks.rewards.config import ApiReward
from tasks.rewards.request_log import Exchange, RequestLog, read_exchanges

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
SCORES_KEY = {"llama_factory": "scores", "openrlhf": "rewards"}
HIDDEN = "(hidden)"
SHORTEST_SECRET = 6  # characters
_SHOWN = 200


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
    return HttpService(config, RequestLog(log_folder, config.name, rank))


def check_service(config: ApiReward) -> None:
    """Raise InputError if the environment lacks the Authorization header, or the log to replay cannot be read."""
    if config.replay is None:
        read_authorization(config)
    else:
        ReplayedService(config, Path(config.replay))


def read_authorization(config: ApiReward) -> dict[str, str]:
    """The headers of a request; raises InputError if the variable that should hold one is empty or unfit for one."""
    if config.auth_variable is None:
        return {}
    value = os.environ.get(config.auth_variable, "").strip()
    if not value:
        raise InputError(
            f"rewards.{config.name}: the environment variable {config.auth_variable} is not set, and it should hold "
            f"the Authorization header for {config.url}. Set it where PPO runs."
        )
    if not (value.isascii() and value.isprintable()):
        raise InputError(
            f"rewards.{config.name}: the environment variable {config.auth_variable} holds characters that no header "
            "may have, such as a line break. Set it to one line of printable ASCII."
        )
    return {"Authorization": value}


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
        raise _refused(config, f'a JSON object with a list "{key}"', f"{answer!r:.{_SHOWN}}")
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
        self.log = log
        headers = read_authorization(config)
        self.client = httpx.Client(timeout=config.timeout_s, headers=headers)
        self.secrets = _secrets_in(headers.get("Authorization", ""))

    def __call__(self, messages: Sequence[Message]) -> list[float]:
        """The score of each message; raises InputError for a wrong answer, ConnectionError for none after all tries."""
        size = self.config.batch_size
        batches = [messages[start : start + size] for start in range(0, len(messages), size)]
        with ThreadPoolExecutor(self.config.num_parallel) as pool:
            return [score for scores in pool.map(self._scores_of_batch, batches) for score in scores]

    def _scores_of_batch(self, messages: Sequence[Message]) -> list[float]:
        exchange = self._ask(make_request(self.config, messages))
        if exchange.status is None or _may_pass(exchange):
            raise ConnectionError(
                f"rewards.{self.config.name}: {self.config.url} failed {self.config.max_retries + 1} times, at last "
                f"with {_fault(exchange)}. Start the service or raise max_retries; the run goes on from its checkpoint."
            )
        if not httpx.codes.is_success(exchange.status):
            raise _refused(self.config, "status 200", _fault(exchange))
        return read_scores(self.config, exchange.answer, len(messages))

    def _ask(self, request: dict[str, Any]) -> Exchange:
        """The exchange that ended the matter: an answer, or the last failure."""
        for retry in range(self.config.max_retries):
            exchange, retry_after_s = self._exchange(request)
            if not _may_pass(exchange):
                return exchange
            pause_s = max(_pause_s(retry), retry_after_s)
            print(f"rewards.{self.config.name}: {_fault(exchange)}; asked again in {pause_s:.1f} s", flush=True)
            time.sleep(pause_s)
        return self._exchange(request)[0]

    def _exchange(self, request: dict[str, Any]) -> tuple[Exchange, float]:
        """One request with its answer, logged; and after how many seconds the service wants to be asked again."""
        started = time.monotonic()
        status, answer, error, retry_after_s = None, None, None, 0.0
        try:
            response = self.client.post(self.config.url, json=request)
            status, answer = response.status_code, _body(response)
            retry_after_s = _retry_after_s(response.headers.get("Retry-After", ""))
        except httpx.RequestError as failure:
            error = f"{type(failure).__name__}: {failure}"
        seconds = round(time.monotonic() - started, 3)
        exchange = Exchange(request, status, self._without_secrets(answer), self._without_secrets(error), seconds)
        self.log.append(exchange)
        return exchange, retry_after_s

    def _without_secrets(self, value: Any) -> Any:
        """What came back, without our Authorization header, which a service may repeat when it refuses it."""
        if isinstance(value, str):
            return reduce(lambda text, secret: text.replace(secret, HIDDEN), self.secrets, value)
        if isinstance(value, dict):
            return {self._without_secrets(name): self._without_secrets(inner) for name, inner in value.items()}
        return [self._without_secrets(inner) for inner in value] if isinstance(value, list) else value


class ReplayedService:
    """Scores that a service gave in a former run, found by the message, whatever its place."""

    def __init__(self, config: ApiReward, path: Path) -> None:
        self.config = config
        self.path = path
        self.scores: dict[tuple[str, ...], float] = {}
        for exchange in read_exchanges(path):
            if exchange.status is not None and httpx.codes.is_success(exchange.status):
                keys = _keys(config, exchange.request, path)
                self.scores |= zip(keys, read_scores(config, exchange.answer, len(keys)), strict=True)

    def __call__(self, messages: Sequence[Message]) -> list[float]:
        """The score of each message; raises InputError for one that was not asked about then."""
        keys = _keys(self.config, make_request(self.config, messages), self.path)
        for key in keys:
            if key not in self.scores:
                raise InputError(
                    f"rewards.{self.config.name}: none of the {len(self.scores)} messages in the log {self.path} is "
                    f"{key[0]!r:.{_SHOWN}}. A log answers only the run that it is of: same config, data and models. "
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


def _secrets_in(header: str) -> list[str]:
    """The header, and its part after "Bearer" or the like unless that is too short to be told from other text."""
    token = header.rpartition(" ")[2]
    return [secret for secret in (header, token) if len(secret) >= SHORTEST_SECRET]


def _may_pass(exchange: Exchange) -> bool:
    """Whether a failure may pass by itself."""
    status = exchange.status
    return status is None or status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR


def _pause_s(retry: int) -> float:
    """Twice as long each time, and at random up to half of it shorter, so that processes do not ask in step."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**retry) * random.SystemRandom().uniform(0.5, 1.0)


def _retry_after_s(header: str) -> float:
    """The seconds that a Retry-After header asks for, given in seconds or as a date; 0 if it says nothing."""
    if header.strip().isdecimal():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return max(0.0, moment.timestamp() - time.time())


def _body(response: httpx.Response) -> Any:
    """The answer as JSON, or as text if it is none."""
    try:
        return response.json()
    except ValueError:
        return response.text


def _fault(exchange: Exchange) -> str:
    return exchange.error or f"status {exchange.status}: {exchange.answer!r:.{_SHOWN}}"


def _refused(config: ApiReward, expected: str, got: str) -> InputError:
    return InputError(
        f"rewards.{config.name}: {config.url} should answer with {expected}, got {got}. Mend the service, or set "
        f"protocol (now {config.protocol}) to the one that it speaks."
    )
