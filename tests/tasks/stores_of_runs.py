"""Stores with small artifacts in them, for sweeps and lineage: published, used, aged, and stopped between two steps."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tasks.artifacts import Artifact, Store, fetch, find, publish
from tasks.retention.keys import Key
from tasks.retention.runs import Run, recorded_run
from tasks.retention.waste import Rules

NOTHING_KEPT = Rules(keep_runs=0, keep_age=timedelta(0), grace=timedelta(0))


def key(number: int, stage: str = "sft") -> Key:
    return Key(stage, f"{number:032x}")


def make(store: Store, folder: Path, of: Key, inputs: Mapping[str, Artifact] | None = None, **options: Any) -> Artifact:
    """The artifact that the stage makes under this key: two files that tell it."""
    output = folder / f"{of.stage}-{of.key}"
    output.mkdir(parents=True, exist_ok=True)
    for name in ("one", "two"):
        (output / name).write_text(f"{name} of {of}")
    given = {"kind": "model", "config": {}, **options}
    return publish(store, output, stage=of.stage, key=of.key, inputs=inputs or {}, **given)


def is_readable(store: Store, artifact: Artifact, folder: Path) -> bool:
    """Whether all of the artifact is in the store as it was published."""
    of = artifact.uri.split("/artifacts/")[1]
    fetched = fetch(store, artifact, folder / f"cache-{time.monotonic_ns()}-{threading.get_ident()}")
    return {path.name: path.read_text() for path in fetched.iterdir()} == {n: f"{n} of {of}" for n in ("one", "two")}


def use(run: Run, store: Store, folder: Path, of: Key) -> Artifact:
    """What a stage does: claim, then find, or else publish, then note."""
    held = run.claim([of], [])
    artifact = find(store, of.stage, of.key) or make(store, folder, of, confirm=lambda: run.confirm(held))
    run.note([artifact])
    return artifact


def run_of(store: Store, pipeline: str, run: str, artifacts: Iterable[Artifact]) -> None:
    """A run that completed, and used these."""
    with recorded_run(store, pipeline, run, {}) as under_way:
        under_way.note(artifacts)


def leave_attempt(store: Store, of: Key, attempt: str = "f" * 16) -> list[str]:
    """Files of an attempt whose manifest was never written."""
    names = [f"artifacts/{of}/{attempt}/{name}" for name in ("one", "two")]
    for name in names:
        store.create(name, b"of an attempt that ended early")
    return names


def age(store: Store, prefix: str, days: float) -> None:
    """Make what lies under the prefix of a folder's store older."""
    root = Path(unquote(store.uri.removeprefix("file://")))
    for file in [*store.files(prefix), *store.unfinished(prefix)]:
        path = root / getattr(file, "id", file.name)
        then = path.stat().st_mtime - 86400 * days
        os.utime(path, (then, then))


def names(store: Store, prefix: str = "") -> list[str]:
    return [file.name for file in store.files(prefix)]


class Stepped:
    """A store that calls `on_step` before the step of the given number; a step is a request."""

    def __init__(self, store: Any, on_step: Callable[[], None], at: int) -> None:
        self.num_steps = 0
        self._store, self._on_step, self._at = store, on_step, at
        self._lock = threading.Lock()

    @property
    def uri(self) -> str:
        return str(self._store.uri)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def step(*arguments: Any) -> Any:
            with self._lock:
                self.num_steps += 1
                now = self.num_steps - 1 == self._at
            if now:
                self._on_step()
            return method(*arguments)

        return step if callable(method) else method


def silent(message: str) -> None:
    """Nobody is told."""
