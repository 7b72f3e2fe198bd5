"""The kill matrix: processes of a running chain are killed at moments drawn by a seed, and it is run again until done.

Then the last stage's weights must be those of an undisturbed run, every artifact that was reported must be there
and whole, and of what a kill should end nothing may live ten seconds later.
"""

import hashlib
import random
import signal
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tasks.artifacts import fetch, import_external, store_at
from tests.chaos.launches import RunnerAlone
from tests.chaos.marks import Process, marked

POLL_S = 0.1
UNDISTURBED_LIMIT_S = 1800.0
EARLY_SHARE = 0.15
PUBLISH_SHARE = 0.2
EARLY_LIMIT_S = 4.0
TARGETS = ("child", "rank", "runner", "supervisor", "s3 server")
WITHOUT_WEIGHTS = ("prepare_data", "certify", "evaluate")
SIGNALS = (signal.SIGKILL, signal.SIGTERM)


@dataclass(frozen=True)
class KillPoint:
    """When to kill what: a share of the stage's undisturbed time after it began, or seconds after the start."""

    stage: str | None
    moment: float
    target: str
    number: signal.Signals


@dataclass(frozen=True)
class Kill:
    """A kill that was done: where it hit, how long what had to end took to end (None: it did not)."""

    launch: str
    stage: str
    target: str
    signal: str
    seconds: float | None

    def __str__(self) -> str:
        return f"{self.signal} to {self.target} in {self.stage or 'between stages'}"


@dataclass
class ChainResult:
    """What became of one chain."""

    seed: str
    launch: str
    num_processes: int
    seconds: float = 0.0
    kills: list[Kill] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ChainResult":
        return cls(**{**record, "kills": [Kill(**kill) for kill in record["kills"]]})


@dataclass(frozen=True)
class Undisturbed:
    """What a run that nobody disturbed takes and makes: seconds of each stage, SHA-256 of the last stage's weights."""

    seconds: Mapping[str, float]
    weights: Mapping[str, str]


def run_undisturbed(launch: RunnerAlone) -> Undisturbed:
    """Learn the timeline and the weights that every disturbed run must end in."""
    began: dict[str, float] = {}
    deadline = time.monotonic() + UNDISTURBED_LIMIT_S
    try:
        launch.start()
        while launch.status() is None and time.monotonic() < deadline:
            if stage := stage_of(launch.supervisor(marked(launch.mark))):
                began.setdefault(stage, time.monotonic())
            time.sleep(POLL_S)
        assert launch.status() == 0, launch.tail()
    finally:
        launch.close()
    ends = [*list(began.values())[1:], time.monotonic()]
    seconds = {stage: end - start for (stage, start), end in zip(began.items(), ends, strict=True)}
    return Undisturbed(seconds, weights_of(launch.acknowledged()[-1]))


def draw_points(lot: random.Random, undisturbed: Undisturbed, launch: RunnerAlone, num_kills: int) -> list[KillPoint]:
    """Moments over the whole timeline, some of them while a stage is published, some right after a restart."""
    stages = list(undisturbed.seconds)
    targets = [*TARGETS, *launch.further_targets]
    points = []
    for _ in range(num_kills):
        stage = lot.choices(stages, weights=[undisturbed.seconds[name] + 2.0 for name in stages])[0]
        moment = lot.uniform(0.85, 1.0) if lot.random() < PUBLISH_SHARE else lot.random()
        points.append(KillPoint(stage, moment, lot.choice(targets), lot.choice(SIGNALS)))
    points.sort(key=lambda point: (stages.index(str(point.stage)), point.moment))
    for index in range(1, num_kills):
        if lot.random() < EARLY_SHARE:
            early = points[index]
            points[index] = KillPoint(None, lot.uniform(0.0, EARLY_LIMIT_S), early.target, early.number)
    return points


def stage_of(supervisor: Process | None) -> str:
    """The stage whose log the supervisor writes: WORK/<stage>/<key>/output/log.txt."""
    return Path(supervisor.command[supervisor.command.index("--log") + 1]).parents[2].name if supervisor else ""


def weights_of(uri: str) -> dict[str, str]:
    """SHA-256 of every weights file of an artifact, as fetched into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = fetch(store_at(uri.partition("/artifacts/")[0]), import_external(uri), Path(folder))
        weights = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.rglob("*.safetensors")}
    assert weights or any(f"/{stage}/" in uri for stage in WITHOUT_WEIGHTS), f"{uri} holds no weights"
    return weights
