"""One chain on its way through its kills: each at its moment, and the chain run again after it until it is done."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from tests.chaos.kills import POLL_S, ChainResult, Kill, KillPoint, Undisturbed, stage_of, weights_of
from tests.chaos.launches import Flow, FromWorker, RunnerAlone, wait_until_ended
from tests.chaos.marks import GONE_WITHIN_S, Process, below, marked, seconds_until_gone
from tests.chaos.restarts import RestartableS3

LIMIT_S = 1200.0
LIMIT_IN_UNDISTURBED_RUNS = 10
IDLE_LIMIT_S = 30.0
ENDS_WITHIN_S = 90.0
MOST_FAILURES = 3
RETRIED = ("child", "rank", "supervisor")
ENDS_RUN = ("runner", "flow process", "cancel")


def run_disturbed(
    launch: RunnerAlone,
    points: Sequence[KillPoint],
    undisturbed: Undisturbed,
    server: RestartableS3,
    result: ChainResult,
    say: Callable[[str], None],
) -> None:
    """Run the chain to its end through all the kills, and hold what came of it against the undisturbed run."""
    started = time.monotonic()
    limit_s = LIMIT_S + LIMIT_IN_UNDISTURBED_RUNS * sum(undisturbed.seconds.values())
    try:
        disturbance = Disturbance(launch, undisturbed, server, result, started + limit_s)
        launch.start()
        for point in points:
            if not disturbance.wait_for(point):
                break
            if kill := disturbance.kill(point):
                say(
                    f"{kill}, {'alive' if kill.seconds is None else 'gone'} after {kill.seconds or GONE_WITHIN_S:.1f} s"
                )
                disturbance.go_on(kill)
        disturbance.finish()
    except AssertionError as error:
        result.violations.append(f"{error}")
    finally:
        launch.close()
        result.seconds = time.monotonic() - started


class Disturbance:
    """A chain that runs until a deadline at the latest, and what was done to it."""

    def __init__(
        self,
        launch: RunnerAlone,
        undisturbed: Undisturbed,
        server: RestartableS3,
        result: ChainResult,
        deadline: float,
    ) -> None:
        self._launch, self._undisturbed, self._server = launch, undisturbed, server
        self._result, self._deadline = result, deadline
        self._may_fail = False
        self._num_failures = 0

    def wait_for(self, point: KillPoint) -> bool:
        """Return at the point's moment, or as soon as the run is past it; False if the chain is done.

        A run that waits for its retry is not waited for: then the kill hits whatever lives.
        """
        stages = list(self._undisturbed.seconds)
        began: float | None = None
        last_work = time.monotonic()
        while self._goes_on():
            now = time.monotonic()
            processes = marked(self._launch.mark)
            stage = stage_of(self._launch.supervisor(processes))
            last_work = now if stage else last_work
            if stage in stages and point.stage and stages.index(stage) > stages.index(point.stage):
                return True
            here = stage == point.stage if point.stage else self._launch.main_process(processes) is not None
            began = now if here and began is None else began
            after_s = point.moment * (self._undisturbed.seconds[point.stage] if point.stage else 1.0)
            if (began is not None and now - began >= after_s) or now - last_work > IDLE_LIMIT_S:
                return True
            time.sleep(POLL_S)
        return False

    def kill(self, point: KillPoint) -> Kill | None:
        """Send the signal, or cancel; to the runner where the target is not there. None if that is not there either."""
        launch, processes = self._launch, marked(self._launch.mark)
        supervisor = launch.supervisor(processes)
        name, signal = point.target, point.number.name
        ends: Sequence[Process] = ()
        started = time.monotonic()
        if point.target == "s3 server":
            self._server.kill_and_restart(point.number)
            started = time.monotonic()
        elif point.target == "cancel" and isinstance(launch, Flow | FromWorker) and supervisor:
            signal, ends = "API", launch.must_end(processes, "cancel", point.number)
            launch.cancel()
        else:
            name, victim = _victim(launch, point.target, processes)
            if victim is None:
                return None
            ends = launch.must_end(processes, name, point.number)
            with suppress(ProcessLookupError):
                os.kill(victim.pid, point.number)
        gone = seconds_until_gone(ends) is not None
        kill = Kill(launch.name, stage_of(supervisor), name, signal, time.monotonic() - started if gone else None)
        self._result.kills.append(kill)
        if kill.seconds is None:
            left = [" ".join(one.command) for one in ends if one.is_alive()]
            self._result.violations.append(f"{kill}: these live on: {left}")
        return kill

    def go_on(self, kill: Kill) -> None:
        """Start the run again if the kill ended it; one that goes on (its server was away) is left alone."""
        launch = self._launch
        retries = isinstance(launch, Flow | FromWorker) and kill.target in RETRIED
        ends = kill.target in ENDS_RUN or (kill.target == "worker" and kill.signal == "SIGTERM")
        self._may_fail |= ends or kill.target in RETRIED or kill.target == "worker"
        if ends or (kill.target in RETRIED and not retries):
            if wait_until_ended(launch, ENDS_WITHIN_S) is None:
                self._result.violations.append(f"{kill}: the run neither ended nor failed: {launch.tail()}")
                launch.close()
            self._start_again()

    def finish(self) -> None:
        """Let the chain come to its end, and compare what came of it."""
        while self._goes_on():
            time.sleep(POLL_S)
        self._result.violations += _compare(self._launch, self._undisturbed)

    def _goes_on(self) -> bool:
        """Whether the chain is not done; a run that failed is started again, and is a violation without a reason."""
        assert time.monotonic() < self._deadline, f"the chain did not come to its end in time: {self._launch.tail()}"
        status = self._launch.status()
        if status:
            if not self._may_fail:
                self._note_failure()
            self._start_again()
        return status != 0

    def _note_failure(self) -> None:
        after = f"after {self._result.kills[-1]}" if self._result.kills else "before any kill"
        self._result.violations.append(f"{after} the run failed by itself: {self._launch.tail()}")
        self._num_failures += 1
        assert self._num_failures < MOST_FAILURES, "given up"

    def _start_again(self) -> None:
        if self._launch.status() != 0:
            self._may_fail = False
            self._launch.start()


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


def _compare(launch: RunnerAlone, undisturbed: Undisturbed) -> list[str]:
    """What differs from the undisturbed run, what was reported and is not there, and who lives on."""
    violations, weights = [], {}
    for uri in launch.acknowledged():
        try:
            weights = weights_of(uri)
        except (ValueError, OSError) as error:
            violations.append(f"{uri} was acknowledged and cannot be read: {error}")
    if weights != undisturbed.weights:
        violations.append(f"the last weights are {weights}, undisturbed {dict(undisturbed.weights)}")
    left = launch.without_worker(marked(launch.mark))
    if seconds_until_gone(left) is None:
        violations.append(f"alive after the end: {left}")
    return violations
