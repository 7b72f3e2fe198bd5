"""Publishes a stage's checkpoints while it trains: a thread that nothing waits for."""

import contextvars
import logging
import os
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from tasks.storage.content import Content, FileContent
from tasks.storage.manifest import FileEntry
from tasks.storage.stored_checkpoints import (
    Trail,
    local_checkpoints,
    needs_of,
    publish_checkpoint,
    remove_checkpoints,
    snapshot,
    stored_steps,
)
from tasks.storage.stores import Sink, Store, Stored, Unfinished, Upload

POLL_S = 1.0
PAUSE_AFTER_FAILURE_S = 30.0
LAST_ONE_S = 12.0
NICENESS = 15

logger = logging.getLogger(__name__)


class CheckpointPublisher:
    """Inside its `with` block each newest checkpoint goes to the store; one that is overtaken meanwhile is left out.

    After an error in the block the last checkpoint is published, if that takes no longer than LAST_ONE_S; after
    success it is not needed. `distrusted` are the steps whose stored checkpoint is damaged.
    """

    def __init__(self, trail: Trail, scratch: Path, distrusted: Collection[int] = ()) -> None:
        self._abandoned = threading.Event()
        self._closing = threading.Event()
        self._trail = replace(trail, store=_Abandonable(trail.store, self._abandoned))
        self._scratch = scratch
        self._distrusted = set(distrusted)
        self._stored: set[int] | None = None
        context = contextvars.copy_context()  # by which log lines find the run that they belong to
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="checkpoints", daemon=True)

    def __enter__(self) -> "CheckpointPublisher":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._abandoned.set()
        self._closing.set()
        self._thread.join(LAST_ONE_S)
        self._abandoned.set()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)  # on Linux of this thread and its own
        pause_s = POLL_S
        while True:
            closing = self._closing.wait(pause_s)
            pause_s = POLL_S if self._try_publish() else PAUSE_AFTER_FAILURE_S
            if closing:
                return

    def _try_publish(self) -> bool:
        """Whether nothing went wrong."""
        try:
            self._publish_newest()
        except _Dropped:
            return True
        except Exception as error:  # whatever the store says, the training goes on
            logger.warning("%s: a checkpoint was not published (%s)", self._trail.stage, error)
            return False
        return True

    def _publish_newest(self) -> None:
        here = local_checkpoints(self._trail.output)
        if not here:
            return
        if self._stored is None:
            self._stored = set(stored_steps(self._trail)) - self._distrusted
        newest = max(here)
        if newest in self._stored:
            return
        needs = needs_of(here[newest])
        for step in [*(step for step in needs if step not in self._stored), newest]:
            self._publish(step, here[step], needs if step == newest else [])
            self._stored.add(step)
        kept = {*needs, *local_checkpoints(self._trail.output)}
        remove_checkpoints(self._trail, before=newest, keep=kept)
        self._stored = {step for step in self._stored if step >= newest or step in kept}

    def _publish(self, step: int, folder: Path, needs: Collection[int]) -> None:
        started = time.monotonic()
        staged = self._scratch / f"step-{step}"
        try:
            snapshot(self._trail.output, folder, staged)
        except FileNotFoundError as error:
            raise _Dropped("The stage removed it in the meantime: there is a newer one.") from error
        publish_checkpoint(self._trail, staged, step, needs)
        shutil.rmtree(staged)
        seconds = time.monotonic() - started
        logger.info("%s: the checkpoint of step %d is in the store (%.1f s)", self._trail.stage, step, seconds)


class _Dropped(RuntimeError):
    """The checkpoint is not wanted any more."""


class _Abandonable:
    """A store that refuses every further request once it is abandoned."""

    def __init__(self, store: Store, abandoned: threading.Event) -> None:
        self.uri = store.uri
        self._store = store
        self._abandoned = abandoned

    def read(self, name: str) -> bytes | None:
        return self._asked().read(name)

    def read_range(self, name: str, start: int, length: int) -> bytes | None:
        return self._asked().read_range(name, start, length)

    def copy_range(self, name: str, start: int, length: int, sink: Sink) -> bool:
        return self._asked().copy_range(name, start, length, sink)

    def create(self, name: str, data: bytes) -> None:
        self._asked().create(name, data)

    def write(self, name: str, data: bytes) -> None:
        self._asked().write(name, data)

    def replace(self, name: str, data: bytes, before: bytes | None) -> bool:
        return self._asked().replace(name, data, before)

    def begin(self, name: str, entry: FileEntry, chunk_bytes: int, resume: bool = True) -> Upload | None:
        upload = self._asked().begin(name, entry, chunk_bytes, resume)
        return None if upload is None else _AbandonableUpload(upload, self)

    def files(self, prefix: str) -> Iterator[Stored]:
        return self._asked().files(prefix)

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        return self._asked().unfinished(prefix)

    def delete(self, names: Iterable[str]) -> None:
        self._asked().delete(names)

    def abort(self, write: Unfinished) -> None:
        self._asked().abort(write)

    def check(self) -> None:
        """Raise if the store is abandoned."""
        if self._abandoned.is_set():
            raise _Dropped("The stage is over.")

    def _asked(self) -> Store:
        self.check()
        return self._store


class _AbandonableUpload:
    def __init__(self, upload: Upload, store: _Abandonable) -> None:
        self._upload = upload
        self._store = store

    def send(self, index: int, start: int, data: Content | FileContent) -> None:
        self._store.check()
        self._upload.send(index, start, data)

    def complete(self) -> None:
        self._store.check()
        self._upload.complete()
