"""What stands before Swift's servers: a cache, a gate for conditional writes, and a mark on requests between them."""

import json
import secrets
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any
from weakref import WeakValueDictionary

MARK = "X-Inside"

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class MemoryCache:
    """What Swift needs of memcached, in this process: it saves asking for the account and the bucket each time."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[float, str]] = {}

    def get(self, key: str, **_: Any) -> Any:
        """The value under `key`, or None if there is none or it has expired."""
        expires, value = self._values.get(key, (0.0, "null"))
        return json.loads(value) if expires > monotonic() else None

    def set(self, key: str, value: Any, time: float = 0, **_: Any) -> None:
        """Keep `value` for `time` seconds."""
        self._values[key] = (monotonic() + time, json.dumps(value))

    def delete(self, key: str, **_: Any) -> None:
        """Forget `key`."""
        self._values.pop(key, None)


def memory_cache(global_config: dict[str, str], **_: str) -> Callable[[App], App]:
    """A filter that gives Swift a MemoryCache."""
    cache = MemoryCache()

    def wrap(app: App) -> App:
        def serve_request(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            environment["swift.cache"] = cache
            return app(environment, start_response)

        return serve_request

    return wrap


def one_creator(global_config: dict[str, str], **_: str) -> Callable[[App], App]:
    """A filter that lets conditional writes of one path in one by one: Swift alone lets several racers win."""
    from eventlet.semaphore import Semaphore

    def wrap(app: App) -> App:
        gates: WeakValueDictionary[str, Any] = WeakValueDictionary()

        def serve_request(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            if "HTTP_IF_NONE_MATCH" not in environment or environment["REQUEST_METHOD"] != "PUT":
                return app(environment, start_response)
            gate = gates.setdefault(environment["PATH_INFO"], Semaphore())
            with gate:
                return list(app(environment, start_response))

        return serve_request

    return wrap


def marked_only(app: App, mark: str) -> App:
    """Swift's backends ask for no keys: without the mark another user of this machine could read and write all."""

    def serve_request(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        given = environment.get(f"HTTP_{MARK.upper().replace('-', '_')}", "")
        if secrets.compare_digest(given.encode(), mark.encode()):
            return app(environment, start_response)
        start_response("403 Forbidden", [("Content-Length", "0")])
        return []

    return serve_request
