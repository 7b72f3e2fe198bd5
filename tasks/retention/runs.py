"""Runs: what a run of a pipeline, or of one stage by hand, uses of a store, and the record that it leaves.

    runs/<pipeline>/<run>.json        written when the run starts, when a stage is done, and when the run ends
    runs/<pipeline>/<run>.html        the run's page, written after its end; see tasks/report/

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

from tasks.config import Config
from tasks.retention.beacon import wait_until_listed
from tasks.retention.claims import Claims
from tasks.retention.keys import Key, keys_in
from tasks.rules import FAILED, Verdict
from tasks.storage.manifest import Artifact
from tasks.storage.stores import Store

RUNS = "runs"
BY_HAND = "by-hand"
LONGEST_ERROR = 4000  # characters


Outcome = Literal["running", "exported", "refused", "uncertified", "failed"]


class StageRun(Config):
    """A stage of a run that came to its end, or was found done."""

    stage: str
    uri: str
    already_done: bool = False


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
    stages: list[StageRun] = Field(default_factory=list)
    """Those that are done, in their order."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The whole pipeline, overrides included."""
    error: str = ""
    """Why the run failed."""
    certificate: list[Verdict] = Field(default_factory=list)
    """Of the reward model's certificate."""
    verdicts: list[Verdict] = Field(default_factory=list)
    """Of the gate."""
    figures: dict[str, float] = Field(default_factory=dict)
    """Numbers of the evaluation."""
    champion: str | None = None
    """Address of the run's export, once it is the champion."""

    @property
    def name(self) -> str:
        """Where in the store the record lies."""
        return f"{self._stem}.json"

    @property
    def page_name(self) -> str:
        """Where in the store the run's page lies."""
        return f"{self._stem}.html"

    @property
    def outcome(self) -> Outcome:
        """What came of the run, as far as it is known; a run that was killed seems to be running.

        Refused is what the gate did not let out, uncertified what its reward model's certificate stopped before PPO.
        """
        if self.state == "running":
            return "running"
        if self.state == "completed":
            return "exported"
        if any(verdict.verdict == FAILED for verdict in self.certificate):
            return "uncertified"
        return "refused" if any(verdict.verdict == FAILED for verdict in self.verdicts) else "failed"

    @property
    def _stem(self) -> str:
        return f"{RUNS}/{quote(self.pipeline, safe='')}/{quote(self.run, safe='')}"


class Run:
    """A run under way: its claims, and the record that it keeps; without a record for a stage run by hand."""

    def __init__(self, store: Store, claims: Claims, record: RunRecord | None = None) -> None:
        self._store, self._claims, self._record = store, claims, record
        self.artifacts: dict[str, str] = {}
        self.stages: dict[str, StageRun] = {}  # by address

    @property
    def record_name(self) -> str | None:
        """Where in the store the record lies; None for a stage run by hand."""
        return None if self._record is None else self._record.name

    @property
    def page_uri(self) -> str | None:
        """Where the run's page will lie; None for a stage run by hand."""
        return None if self._record is None else f"{self._store.uri}/{self._record.page_name}"

    def claim(self, keys: Iterable[Key], inputs: Iterable[Artifact]) -> int:
        """Protect these keys and inputs from sweeps to the run's end; the number is for `confirm`."""
        ours = [artifact.uri for artifact in inputs if artifact.uri.startswith(f"{self._store.uri}/artifacts/")]
        return self._claims.hold({*keys, *keys_in(" ".join(ours))})

    def confirm(self, held: int) -> None:
        """Raise ClaimsLapsed unless everything that was claimed when `claim` returned `held` was safe until now."""
        self._claims.confirm(held)

    def note(self, artifacts: Iterable[Artifact], stage: StageRun | None = None) -> None:
        """Write into the record that the run made or used these, and that the stage is done."""
        self.artifacts |= {artifact.uri: artifact.digest for artifact in artifacts}
        if stage is not None:
            self.stages.setdefault(stage.uri, stage)
        self.write({})

    def write(self, changed: Mapping[str, Any]) -> None:
        """Bring the record up to date; what another attempt at the same run wrote of artifacts stays in it."""
        if self._record is None:
            return
        before = read_record(self._store.read(self._record.name))
        known = before.artifacts if before else {}
        earlier = {stage.uri: stage for stage in (before.stages if before else [])}
        stages = earlier | {uri: stage for uri, stage in self.stages.items() if uri not in earlier}
        noted = {"artifacts": {**known, **self.artifacts}, "stages": list(stages.values())}
        self._record = self._record.model_copy(update={**changed, **noted})
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
def recorded_run(
    store: Store,
    pipeline: str,
    run: str | None,
    overrides: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
) -> Iterator[Run]:
    """A run of a pipeline; another attempt at a `run` that has a record goes on with that record."""
    told = {"overrides": dict(overrides), "options": dict(options or {})}
    record = RunRecord(pipeline=pipeline, run=run or uuid.uuid4().hex, started=_now(), **told)
    before = read_record(store.read(record.name))
    started = {"started": before.started} if before else {}
    with Claims(store, record.run) as claims:
        under_way = Run(store, claims, record)
        under_way.write(started)
        try:
            yield under_way
        except BaseException as error:
            why = str(error)[:LONGEST_ERROR] or type(error).__name__
            under_way.write({"state": "failed", "ended": _now(), "error": why})
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
