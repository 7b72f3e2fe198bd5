"""Runs: what a run of a pipeline, or of one stage by hand, uses of a store, and the record that it leaves.

    runs/<pipeline>/<run>.json        written when the run starts, when a stage is done, and when the run ends

The record is written before the run's claims are given up, so that whoever looks at claims first and at records then
finds everything that the run uses in one or the other.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field, ValidationError

from tasks.beacon import wait_until_listed
from tasks.claims import Claims
from tasks.config import Config
from tasks.keys import Key, keys_in
from tasks.manifest import Artifact
from tasks.stores import Store

RUNS = "runs"
BY_HAND = "by-hand"


class RunRecord(Config):
    """What a run is known by afterwards."""

    pipeline: str
    run: str
    started: str
    ended: str | None = None
    state: Literal["running", "completed", "failed"] = "running"
    overrides: dict[str, Any] = Field(default_factory=dict)
    artifacts: dict[str, str] = Field(default_factory=dict)
    """Address and digest of all that the run made or used."""

    @property
    def name(self) -> str:
        """Where in the store the record lies."""
        return f"{RUNS}/{quote(self.pipeline, safe='')}/{quote(self.run, safe='')}.json"


class Run:
    """A run under way: its claims, and the record that it keeps; without a record for a stage run by hand."""

    def __init__(self, store: Store, claims: Claims, record: RunRecord | None = None) -> None:
        self._store, self._claims, self._record = store, claims, record
        self.artifacts: dict[str, str] = {}

    def claim(self, keys: Iterable[Key], inputs: Iterable[Artifact]) -> int:
        """Protect these keys and inputs from sweeps to the run's end; the number is for `confirm`."""
        ours = [artifact.uri for artifact in inputs if artifact.uri.startswith(f"{self._store.uri}/artifacts/")]
        return self._claims.hold({*keys, *keys_in(" ".join(ours))})

    def confirm(self, held: int) -> None:
        """Raise ClaimsLapsed unless everything that was claimed when `claim` returned `held` was safe until now."""
        self._claims.confirm(held)

    def note(self, artifacts: Iterable[Artifact]) -> None:
        """Write into the record that the run made or used these."""
        self.artifacts |= {artifact.uri: artifact.digest for artifact in artifacts}
        self.write({})

    def write(self, changed: Mapping[str, Any]) -> None:
        """Bring the record up to date; what another attempt at the same run wrote of artifacts stays in it."""
        if self._record is None:
            return
        before = read_record(self._store.read(self._record.name))
        known = before.artifacts if before else {}
        artifacts = {"artifacts": {**known, **self.artifacts}}
        self._record = self._record.model_copy(update={**changed, **artifacts})
        content = self._record.model_dump_json(indent=1).encode()
        self._store.write(self._record.name, content)
        if before is None:
            wait_until_listed(self._store, self._record.name, content)


@contextmanager
def unrecorded_run(store: Store) -> Iterator[Run]:
    """A stage that is run by hand: it claims what it uses, and is forgotten when it ends."""
    with Claims(store, BY_HAND) as claims:
        yield Run(store, claims)


@contextmanager
def recorded_run(store: Store, pipeline: str, run: str | None, overrides: Mapping[str, Any]) -> Iterator[Run]:
    """A run of a pipeline; another attempt at a `run` that has a record goes on with that record."""
    record = RunRecord(pipeline=pipeline, run=run or uuid.uuid4().hex, started=_now(), overrides=dict(overrides))
    before = read_record(store.read(record.name))
    started = {"started": before.started} if before else {}
    with Claims(store, record.run) as claims:
        under_way = Run(store, claims, record)
        under_way.write(started)
        try:
            yield under_way
        except BaseException:
            under_way.write({"state": "failed", "ended": _now()})
            raise
        under_way.write({"state": "completed", "ended": _now()})


def read_record(data: bytes | None) -> RunRecord | None:
    """The record in `data`; None where there is none, or it cannot be read."""
    try:
        return None if data is None else RunRecord.model_validate_json(data)
    except ValidationError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
