"""What a service was asked and what it answered: a JSON object per line, one file per process."""

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.errors import InputError


@dataclass(frozen=True)
class Exchange:
    """A request and what came of it."""

    request: dict[str, Any]
    status: int | None  # of HTTP; None: no answer came
    answer: Any  # the JSON that came, or text that is none
    error: str | None  # why no answer came
    seconds: float


class RequestLog:
    """Appends to the file `path`; each process needs one of its own, named `path` with .rankN before the ending."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()

    def append(self, exchange: Exchange) -> None:
        """Write one line; from any thread."""
        line = json.dumps(asdict(exchange), ensure_ascii=False) + "\n"
        with self.lock, self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line)


def read_exchanges(path: Path) -> Iterator[Exchange]:
    """What the log at `path` and those of the other processes beside it hold; raises InputError for a wrong line."""
    if not path.is_file():
        raise InputError(f"replay {path} is not a file. Give the log of requests that a former run wrote.")
    for part in (path, *sorted(path.parent.glob(f"{path.stem}.rank*.jsonl"))):
        with part.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                yield _exchange(line, f"{part}, line {number}")


def _exchange(line: str, place: str) -> Exchange:
    try:
        return Exchange(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise InputError(f"{place} is no request with its answer ({error}). Remove the line.") from error
