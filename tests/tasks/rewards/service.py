"""A reward service on this machine that answers as a test tells it to."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.local_http import running

Reply = tuple[int, Any, Mapping[str, str]]  # status, JSON or bytes, headers


@dataclass
class Service:
    """What it was asked, in the order in which the requests came, and how many were under way at once."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], Reply]) -> Iterator[Service]:
    """A running service; `answer` gets a request and how many came before it."""
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with service.lock:
                number = len(service.requests)
                service.requests.append(request)
                service.headers.append({name.lower(): value for name, value in self.headers.items()})
                service.under_way += 1
                service.most_under_way = max(service.most_under_way, service.under_way)
            status, content, headers = answer(request, number)
            with service.lock:
                service.under_way -= 1
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except ConnectionError:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with running(Handler) as url:
        service.url = f"{url}/score"
        yield service


def lengths(request: dict[str, Any], _: int) -> Reply:
    """The length of each text, in the protocol that the request speaks."""
    if "messages" in request:
        return 200, {"scores": [len(text) for text in request["messages"]]}, {}
    numbers = [len(text) for text in request["query"]]
    return 200, {"rewards": numbers, "scores": [0.5 for _ in numbers], "extra_logs": {"mean": 1}}, {}
