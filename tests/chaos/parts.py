"""The parts of the proof, each as one function of the sizes that its short or long form has."""

import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from infra.services import prefect_server
from tests.chaos import concurrency, disk, kills, large, machines, transfers
from tests.chaos.launches import LAUNCHES, RunnerAlone
from tests.chaos.restarts import RestartableS3
from tests.chaos.servers import SERVERS, account, variables_set

KILLS_PER_CHAIN = 12
WITH_PREFECT_EVERY = 5
TWO_PROCESSES_EVERY = 3


@dataclass(frozen=True)
class Sizes:
    """How much is done; `num_lanes` chains at a time, up to the stage `until` (None: all)."""

    seed: int
    num_kills: int
    num_faulted: int
    num_lanes: int
    until: str | None
    folder: Path
    say: Callable[[str], None]


@dataclass
class Result:
    """What a part did, and what was not as it must be; `skipped` says why it was not done."""

    part: str
    seconds: float = 0.0
    skipped: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run_part(name: str, sizes: Sizes) -> Result:
    """Do one part in a folder of its own, which is removed."""
    result = Result(name)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=sizes.folder, prefix=f"{name}-") as folder:
        PARTS[name](sizes, Path(folder), result)
    result.seconds = time.monotonic() - started
    return result


def kill_chains(sizes: Sizes, folder: Path, result: Result) -> None:
    """Chains in parallel lanes, each through its share of the kills, on one S3 server that is killed too."""
    num_chains = -(-sizes.num_kills // KILLS_PER_CHAIN)
    with RestartableS3(folder / "s3") as server, account(server.environment), _prefect(folder, sizes.until is None):
        undisturbed = {
            number: kills.run_undisturbed(
                RunnerAlone(folder / f"undisturbed-{number}", f"s3://chaos/undisturbed-{number}", number, sizes.until)
            )
            for number in {_plan(chain, sizes)[1] for chain in range(num_chains)}
        }
        sizes.say(f"undisturbed: {undisturbed}")
        one_with_prefect = threading.Lock()

        def run_chain(chain: int) -> kills.ChainResult:
            kind, num_processes = _plan(chain, sizes)
            seed = f"{sizes.seed}-{chain}"
            with one_with_prefect if kind is not RunnerAlone else threading.Lock():
                launch = kind(folder / f"chain-{chain}", f"s3://chaos/chain-{chain}", num_processes, sizes.until)
                normal = undisturbed[num_processes]
                num_kills = min(KILLS_PER_CHAIN, sizes.num_kills - chain * KILLS_PER_CHAIN)
                points = kills.draw_points(random.Random(seed), normal, launch, num_kills)
                return kills.run_disturbed(launch, points, normal, server, seed, sizes.say)

        with ThreadPoolExecutor(sizes.num_lanes) as pool:
            chains = list(pool.map(run_chain, range(num_chains)))
    result.violations = [f"chain {one.seed}: {violation}" for one in chains for violation in one.violations]
    hits = Counter((kill.target, kill.signal) for one in chains for kill in one.kills)
    stages = Counter(kill.stage or "between stages" for one in chains for kill in one.kills)
    result.figures = {
        "kills": sum(hits.values()),
        "targets": [[*hit, count] for hit, count in sorted(hits.items())],
        "stages": dict(stages),
        "slowest_end_s": max((kill.seconds or 0.0 for one in chains for kill in one.kills), default=0.0),
        "undisturbed_s": {number: sum(one.seconds.values()) for number, one in undisturbed.items()},
        "chains": [one.as_json() for one in chains],
    }


def meet_each_fault(sizes: Sizes, folder: Path, result: Result) -> None:
    """Every kind of fault once for every request of a publish and a fetch, on each server."""
    for name, variables in _servers(folder):
        late = transfers.refuse_expired_credentials(variables, folder / name / "expired")
        stuck = transfers.survive_each_fault(variables, folder / name / "once", sizes.say)
        result.violations += [f"{name}, {one}" for one in (*late, *stuck)]


def spoil_requests(sizes: Sizes, folder: Path, result: Result) -> None:
    """Transfers with faults drawn by the seed, on each server, in the clear and over TLS."""
    result.figures["transfers"] = []
    for name, variables in _servers(folder):
        for tls in (False, True):
            share = -(-sizes.num_faulted // (2 * len(SERVERS)))
            tally = transfers.run_transfers(name, variables, folder / name, sizes.seed, share, tls, sizes.say)
            result.figures["transfers"].append(tally.as_json())
            result.violations += tally.violations


def fill_disks(sizes: Sizes, folder: Path, result: Result) -> None:
    result.skipped = disk.why_not()
    if result.skipped is None:
        for name, check in disk.CHECKS.items():
            (folder / name).mkdir()
            result.violations += [f"{name}: {violation}" for violation in check(folder / name)]


def change_machines(sizes: Sizes, folder: Path, result: Result) -> None:
    result.skipped = machines.why_not()
    if result.skipped is None:
        with RestartableS3(folder / "s3") as server:
            sent, result.violations = machines.publish_from_two(server.environment, folder)
            result.figures = {"parts_sent": sent, "parts": machines.NUM_PARTS}


def run_at_once(sizes: Sizes, folder: Path, result: Result) -> None:
    with RestartableS3(folder / "s3") as server, account(server.environment):
        uris, result.violations = concurrency.run_at_once(folder / "runs", "s3://chaos/at-once", sizes.until)
        result.figures = {"runs": concurrency.NUM_RUNS, "artifacts": len(uris)}


def move_large_object(sizes: Sizes, folder: Path, result: Result) -> None:
    with RestartableS3(folder / "s3") as server, account(server.environment):
        result.figures, result.violations = large.move_large(folder, "s3://chaos/large")


PARTS: Mapping[str, Callable[[Sizes, Path, Result], None]] = {
    "kills": kill_chains,
    "each-fault": meet_each_fault,
    "faults": spoil_requests,
    "disk": fill_disks,
    "machines": change_machines,
    "concurrency": run_at_once,
    "large": move_large_object,
}


def _servers(folder: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Each S3 server in turn, running, with its clients' environment."""
    for name, start in SERVERS.items():
        (folder / name).mkdir()
        with start(folder / name) as variables:
            yield name, variables


def _plan(chain: int, sizes: Sizes) -> tuple[type[RunnerAlone], int]:
    """How a chain is started, and with how many processes it trains; with Prefect only where all stages run."""
    num_processes = 2 if chain % TWO_PROCESSES_EVERY == TWO_PROCESSES_EVERY - 1 else 1
    if sizes.until is not None or chain % WITH_PREFECT_EVERY < WITH_PREFECT_EVERY - 2:
        return RunnerAlone, num_processes
    kinds = [kind for kind in LAUNCHES.values() if kind is not RunnerAlone]
    return kinds[chain % WITH_PREFECT_EVERY % len(kinds)], num_processes


@contextmanager
def _prefect(folder: Path, wanted: bool) -> Iterator[None]:
    """A Prefect server of our own for the length of the `with`, where one is needed."""
    if not wanted:
        yield
        return
    with variables_set({"PREFECT_HOME": str(folder / "prefect")}), prefect_server(folder) as server:
        server.wait_until_ready()
        with variables_set({"PREFECT_API_URL": server.api_url}):
            yield
