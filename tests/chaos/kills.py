"""The kill matrix: processes of a running chain are killed at moments drawn by a seed, and it is run again until done.

Then the last stage's weights must be those of an undisturbed run, every artifact that was reported must be there
and whole, and of what a kill should end nothing may live ten seconds later.
"""

import hashlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tasks.artifacts import fetch, import_external, store_at
from tests.chaos.launches import Flow, FromWorker, RunnerAlone, wait_until_ended
from tests.chaos.marks import Process, below, marked, seconds_until_gone
from tests.chaos.restarts import RestartableS3

POLL_S = 0.1
CHAIN_TIMEOUT_S = 600.0
ENDS_WITHIN_S = 45.0
EARLY_SHARE = 0.15
PUBLISH_SHARE = 0.2
EARLY_LIMIT_S = 4.0
TARGETS = ("child", "rank", "runner", "supervisor", "s3 server")
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


@dataclass(frozen=True)
class Undisturbed:
    """What a run that nobody disturbed takes and makes: seconds of each stage, SHA-256 of the last stage's weights."""

    seconds: Mapping[str, float]
    weights: Mapping[str, str]


def run_undisturbed(launch: RunnerAlone) -> Undisturbed:
    """Learn the timeline and the weights that every disturbed run must end in."""
    began: dict[str, float] = {}
    launch.start()
    while launch.status() is None:
        if stage := stage_of(launch.supervisor(marked(launch.mark))):
            began.setdefault(stage, time.monotonic())
        time.sleep(POLL_S)
    assert launch.status() == 0, launch.tail()
    ends = [*list(began.values())[1:], time.monotonic()]
    seconds = {stage: end - start for (stage, start), end in zip(began.items(), ends, strict=True)}
    return Undisturbed(seconds, weights_of(launch.acknowledged()[-1]))


def draw_points(lot: random.Random, undisturbed: Undisturbed, launch: RunnerAlone, num_kills: int) -> list[KillPoint]:
    """Moments over the whole timeline, some of them while a stage is published, some right after a restart."""
    stages = list(undisturbed.seconds)
    targets = [*TARGETS, *(["worker", "cancel"] if isinstance(launch, FromWorker) else [])]
    targets += ["cancel"] if isinstance(launch, Flow) else []
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


def run_disturbed(
    launch: RunnerAlone,
    points: Sequence[KillPoint],
    undisturbed: Undisturbed,
    server: RestartableS3,
    seed: str,
    say: Callable[[str], None],
) -> ChainResult:
    """Run the chain to its end through all the kills, and hold what came of it against the undisturbed run."""
    result = ChainResult(seed, launch.name, launch.num_processes)
    started = time.monotonic()
    try:
        launch.start()
        for point in points:
            if not _wait_for(launch, point, undisturbed):
                continue
            kill = _kill(launch, point, server)
            result.kills.append(kill)
            say(f"{launch.name}: {kill.signal} to {kill.target} in {kill.stage or 'between stages'}")
            if kill.seconds is None:
                result.violations.append(f"{kill}: processes live on")
            _go_on(launch, result)
        _finish(launch, result)
        result.violations += _compare(launch, undisturbed)
    except AssertionError as error:
        result.violations.append(f"{error}")
    finally:
        launch.close()
    result.seconds = time.monotonic() - started
    return result


def stage_of(supervisor: Process | None) -> str:
    """The stage whose log the supervisor writes: WORK/<stage>/<key>/output/log.txt."""
    return Path(supervisor.command[supervisor.command.index("--log") + 1]).parents[2].name if supervisor else ""


def weights_of(uri: str) -> dict[str, str]:
    """SHA-256 of every weights file of an artifact, as fetched into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = fetch(store_at(uri.partition("/artifacts/")[0]), import_external(uri), Path(folder))
        weights = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.rglob("*.safetensors")}
    assert weights or "/prepare_data/" in uri or "/evaluate/" in uri, f"{uri} holds no weights"
    return weights


def _wait_for(launch: RunnerAlone, point: KillPoint, undisturbed: Undisturbed) -> bool:
    """Return at the point's moment, or as soon as the run is past it; False if the run has ended."""
    stages = list(undisturbed.seconds)
    deadline = time.monotonic() + CHAIN_TIMEOUT_S
    if point.stage is None:
        time.sleep(point.moment)
        return launch.status() is None
    began: float | None = None
    while time.monotonic() < deadline and launch.status() is None:
        stage = stage_of(launch.supervisor(marked(launch.mark)))
        if stage and stages.index(stage) > stages.index(point.stage):
            return True
        if stage == point.stage and began is None:
            began = time.monotonic()
        if began is not None and time.monotonic() - began >= point.moment * undisturbed.seconds[point.stage]:
            return True
        time.sleep(POLL_S)
    return False


def _kill(launch: RunnerAlone, point: KillPoint, server: RestartableS3) -> Kill:
    """Send the signal, or cancel; a target that is not there now is replaced by the runner."""
    processes = marked(launch.mark)
    supervisor = launch.supervisor(processes)
    stage = stage_of(supervisor)
    if point.target == "s3 server":
        server.kill_and_restart(point.number)
        return Kill(launch.name, stage, point.target, point.number.name, 0.0)
    if point.target == "cancel" and isinstance(launch, Flow | FromWorker) and supervisor:
        ends = launch.must_end(processes, "cancel")
        launch.cancel()
        return Kill(launch.name, stage, "cancel", "API", seconds_until_gone(ends))
    name, victim = _victim(launch, point.target, processes)
    if victim is None:
        return Kill(launch.name, stage, "nobody", point.number.name, 0.0)
    ends = launch.must_end(processes, name)
    with suppress(ProcessLookupError):
        os.kill(victim.pid, point.number)
    return Kill(launch.name, stage, name, point.number.name, seconds_until_gone(ends))


def _victim(launch: RunnerAlone, target: str, processes: list[Process]) -> tuple[str, Process | None]:
    supervisor = launch.supervisor(processes)
    descendants = below(supervisor, processes) if supervisor else []
    leaves = [one for one in descendants if not below(one, processes)]
    found = {
        "supervisor": [supervisor] if supervisor else [],
        "child": descendants[:1],
        "rank": leaves[-1:],
        "worker": [launch.worker(processes)] if isinstance(launch, FromWorker) else [],
    }.get(target, [])
    if found and found[0] is not None:
        return target, found[0]
    return launch.runner, launch.main_process(processes)


def _go_on(launch: RunnerAlone, result: ChainResult) -> None:
    """After a kill: if the run ends, start it again; one that goes on (its server was away) is left alone."""
    kill = result.kills[-1]
    ends = kill.target in ("child", "rank", "supervisor", "runner", "flow process", "cancel")
    retries = isinstance(launch, Flow | FromWorker) and kill.target in ("child", "rank", "supervisor")
    if ends and not retries and wait_until_ended(launch, ENDS_WITHIN_S) is None:
        result.violations.append(f"{kill}: the run neither ended nor failed")
        launch.close()
    if launch.status() is not None or kill.target == "worker":
        launch.start()


def _finish(launch: RunnerAlone, result: ChainResult) -> None:
    """Let the run come to its end; one that fails although nobody disturbs it is a violation."""
    for _ in range(2):
        if wait_until_ended(launch, CHAIN_TIMEOUT_S) == 0:
            return
        result.violations.append(f"after {result.kills[-1:]} the run failed by itself: {launch.tail()}")
        launch.start()
    assert launch.status() == 0, f"the chain did not come to its end: {launch.tail()}"


def _compare(launch: RunnerAlone, undisturbed: Undisturbed) -> list[str]:
    """What differs from the undisturbed run, and what was reported and is not there."""
    violations, weights = [], {}
    for uri in launch.acknowledged():
        try:
            weights = weights_of(uri)
        except (ValueError, OSError) as error:
            violations.append(f"{uri} was acknowledged and cannot be read: {error}")
    if weights != undisturbed.weights:
        violations.append(f"the last weights are {weights}, undisturbed {dict(undisturbed.weights)}")
    if not isinstance(launch, FromWorker) and (left := marked(launch.mark)):
        violations.append(f"alive after the end: {left}")
    return violations
