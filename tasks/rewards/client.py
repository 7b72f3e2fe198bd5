"""Requests to a service over HTTP: sent again after failures that may pass, each logged with what came of it."""

import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from functools import reduce
from typing import Any

import httpx

from tasks.errors import InputError
from tasks.rewards.config import ServiceConfig
from tasks.rewards.request_log import Exchange, RequestLog

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
HIDDEN = "(hidden)"
SHORTEST_SECRET = 6  # characters
SHOWN = 200


def read_authorization(name: str, config: ServiceConfig) -> dict[str, str]:
    """The headers of a request; raises InputError if the variable that should hold one is empty or unfit for one.

    `name` is the option that describes the service.
    """
    if config.auth_variable is None:
        return {}
    value = os.environ.get(config.auth_variable, "").strip()
    if not value:
        raise InputError(
            f"{name}: the environment variable {config.auth_variable} is not set, and it should hold "
            f"the Authorization header for {config.url}. Set it where the stage runs."
        )
    if not (value.isascii() and value.isprintable()):
        raise InputError(
            f"{name}: the environment variable {config.auth_variable} holds characters that no header "
            "may have, such as a line break. Set it to one line of printable ASCII."
        )
    return {"Authorization": value}


def is_success(exchange: Exchange) -> bool:
    """Whether the service answered as it should."""
    return exchange.status is not None and httpx.codes.is_success(exchange.status)


class Client:
    """The service at config.url; `name` is the option that describes it, as messages call it."""

    def __init__(self, name: str, config: ServiceConfig, log: RequestLog) -> None:
        self.name = name
        self.config = config
        self.log = log
        headers = read_authorization(name, config)
        self.http = httpx.Client(timeout=config.timeout_s, headers=headers)
        self.secrets = _secrets_in(headers.get("Authorization", ""))

    def ask_all(self, requests: Sequence[dict[str, Any]]) -> list[Any]:
        """The body of the answer to each request, several under way at once; see `ask`."""
        with ThreadPoolExecutor(self.config.num_parallel) as pool:
            return list(pool.map(self.ask, requests))

    def ask(self, request: dict[str, Any]) -> Any:
        """The body of the answer: JSON, or text that is none.

        Raises InputError for a status that says no, ConnectionError for no answer after all tries.
        """
        exchange = self._try(request)
        if exchange.status is None or _may_pass(exchange):
            raise ConnectionError(
                f"{self.name}: {self.config.url} failed {self.config.max_retries + 1} times, at last "
                f"with {_fault(exchange)}. Start the service or raise max_retries, and run again."
            )
        if not is_success(exchange):
            raise InputError(
                f"{self.name}: {self.config.url} should answer with status 200, got {_fault(exchange)}. "
                "Mend the service, or correct what it is asked with."
            )
        return exchange.answer

    def _try(self, request: dict[str, Any]) -> Exchange:
        """The exchange that ended the matter: an answer, or the last failure."""
        for retry in range(self.config.max_retries):
            exchange, retry_after_s = self._exchange(request)
            if not _may_pass(exchange):
                return exchange
            pause_s = max(_pause_s(retry), retry_after_s)
            print(f"{self.name}: {_fault(exchange)}; asked again in {pause_s:.1f} s", flush=True)
            time.sleep(pause_s)
        return self._exchange(request)[0]

    def _exchange(self, request: dict[str, Any]) -> tuple[Exchange, float]:
        """One request with its answer, logged; and after how many seconds the service wants to be asked again."""
        started = time.monotonic()
        status, answer, error, retry_after_s = None, None, None, 0.0
        try:
            response = self.http.post(self.config.url, json=request)
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
    return exchange.error or f"status {exchange.status}: {exchange.answer!r:.{SHOWN}}"
