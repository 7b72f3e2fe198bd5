"""The chains of the kill matrix: side by side in lanes until there were enough kills, each result kept as it ends."""

import json
import random
import shutil
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.services import free_port, prefect_server
from tests.chaos.disturbance import run_disturbed
from tests.chaos.kills import ChainResult, Undisturbed, draw_points, run_undisturbed
from tests.chaos.launches import Flow, FromWorker, RunnerAlone
from tests.chaos.restarts import RestartableS3

MIXED = (RunnerAlone, Flow, RunnerAlone, FromWorker, RunnerAlone)
TWO_PROCESSES_EVERY = 3


@dataclass(frozen=True)
class Matrix:
    """How many kills, in chains of how many each, started how; each chain's result goes to `kept` (None: nowhere)."""

    seed: int
    num_kills: int
    kills_per_chain: int
    num_lanes: int
    launches: Sequence[type[RunnerAlone]]
    until: str | None
    kept: Path | None
    say: Callable[[str], None]

    @property
    def most_chains(self) -> int:
        """Some kills come too late: a chain's last ones may find it done."""
        return 2 * -(-self.num_kills // self.kills_per_chain) + self.num_lanes

    def plan(self, chain: int) -> ChainResult:
        """The chain with this number, before it is run."""
        launch = self.launches[chain % len(self.launches)]
        num_processes = 2 if chain % TWO_PROCESSES_EVERY == TWO_PROCESSES_EVERY - 1 else 1
        return ChainResult(f"{self.seed}-{chain}", launch.name, num_processes)


class Lanes:
    """Hands out the numbers of chains to run, and gathers what came of them; safe for several threads."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._lock = threading.Lock()
        self._next, self._num_running = 0, 0
        self._known = {_identity(one): one for one in _read(matrix.kept)}
        self.chains: list[ChainResult] = []

    def take(self) -> int | None:
        """The next chain; None once those that ran or run have all the kills. One that was kept is not run again."""
        with self._lock:
            while self._next < self._matrix.most_chains and self._num_expected < self._matrix.num_kills:
                chain, self._next = self._next, self._next + 1
                known = self._known.get(_identity(self._matrix.plan(chain)))
                if known is None:
                    self._num_running += 1
                    return chain
                self.chains.append(known)
                self._matrix.say(f"chain {known.seed} was done before: {len(known.kills)} kills")
            return None

    def give(self, result: ChainResult) -> None:
        """Keep the result of a chain that was taken."""
        with self._lock:
            self._num_running -= 1
            self.chains.append(result)
            if self._matrix.kept is not None:
                with self._matrix.kept.open("a") as file:
                    file.write(json.dumps(result.as_json()) + "\n")
            self._matrix.say(
                f"chain {result.seed} ({result.launch}) took {result.seconds:.0f} s: {len(result.kills)} kills, "
                f"{self._num_done} of {self._matrix.num_kills} so far; violations: {result.violations}"
            )

    @property
    def _num_done(self) -> int:
        return sum(len(one.kills) for one in self.chains)

    @property
    def _num_expected(self) -> int:
        return self._num_done + self._num_running * self._matrix.kills_per_chain


def run_matrix(
    matrix: Matrix, folder: Path, server: RestartableS3
) -> tuple[Mapping[int, Undisturbed], list[ChainResult]]:
    """What an undisturbed run is like with each number of processes, and what became of every chain."""
    normal = _Normal(matrix, folder)
    lanes = Lanes(matrix)

    def run_lane(_: int) -> None:
        while (chain := lanes.take()) is not None:
            lanes.give(_run_chain(matrix, chain, normal, folder / f"chain-{chain}", server))

    with ThreadPoolExecutor(matrix.num_lanes) as pool:
        list(pool.map(run_lane, range(matrix.num_lanes)))
    return normal.known, lanes.chains


def figures_of(undisturbed: Mapping[int, Undisturbed], chains: Sequence[ChainResult]) -> dict[str, Any]:
    """What the page shows of the kills."""
    hits = Counter((kill.target, kill.signal) for one in chains for kill in one.kills)
    stages = Counter(kill.stage or "between stages" for one in chains for kill in one.kills)
    return {
        "kills": sum(hits.values()),
        "launches": dict(Counter(kill.launch for one in chains for kill in one.kills)),
        "targets": [[*hit, count] for hit, count in sorted(hits.items())],
        "stages": dict(stages),
        "slowest_end_s": max((kill.seconds or 0.0 for one in chains for kill in one.kills), default=0.0),
        "undisturbed_s": {number: sum(one.seconds.values()) for number, one in undisturbed.items()},
        "chains": [one.as_json() for one in chains],
    }


class _Normal:
    """The undisturbed run with each number of processes, run when the first chain asks for it."""

    def __init__(self, matrix: Matrix, folder: Path) -> None:
        self._matrix, self._folder = matrix, folder
        self._lock = threading.Lock()
        self.known: dict[int, Undisturbed] = {}

    def of(self, num_processes: int) -> Undisturbed:
        with self._lock:
            if num_processes not in self.known:
                name = f"undisturbed-{num_processes}"
                launch = RunnerAlone(self._folder / name, f"s3://chaos/{name}", num_processes, self._matrix.until)
                self.known[num_processes] = run_undisturbed(launch)
                self._matrix.say(f"undisturbed, {num_processes} processes: {self.known[num_processes]}")
            return self.known[num_processes]


def _run_chain(matrix: Matrix, chain: int, normal: _Normal, folder: Path, server: RestartableS3) -> ChainResult:
    """Whatever goes wrong here is a violation of this chain; the others go on."""
    result = matrix.plan(chain)
    kind = matrix.launches[chain % len(matrix.launches)]
    try:
        undisturbed = normal.of(result.num_processes)
        with _prefect(folder, kind.wants_prefect) as variables:
            launch = kind(folder / "run", f"s3://chaos/chain-{chain}", result.num_processes, matrix.until, variables)
            points = draw_points(random.Random(result.seed), undisturbed, launch, matrix.kills_per_chain)
            name = f"chain {result.seed} ({result.launch})"
            run_disturbed(launch, points, undisturbed, server, result, lambda text: matrix.say(f"{name}: {text}"))
    except Exception:
        result.violations.append(f"this test itself failed: {traceback.format_exc(limit=-4)}")
    shutil.rmtree(folder, ignore_errors=True)
    return result


@contextmanager
def _prefect(folder: Path, wanted: bool) -> Iterator[dict[str, str]]:
    """The variables that lead to a Prefect server of the chain's own, where one is wanted."""
    if not wanted:
        yield {}
        return
    home = folder / "prefect"
    with prefect_server(folder, free_port(0), home) as server:
        server.wait_until_ready()
        yield {"PREFECT_HOME": str(home), "PREFECT_API_URL": server.api_url}


def _identity(result: ChainResult) -> tuple[str, str, int]:
    return result.seed, result.launch, result.num_processes


def _read(kept: Path | None) -> list[ChainResult]:
    lines = kept.read_text().splitlines() if kept is not None and kept.exists() else []
    return [ChainResult.from_json(json.loads(line)) for line in lines]
