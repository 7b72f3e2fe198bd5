"""The parts of the proof, each as one function of the sizes that its short or long form has."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import concurrency, disk, large, machines, moved_training, transfers
from tests.chaos.launches import RunnerAlone
from tests.chaos.matrix import MIXED, Matrix, figures_of, run_matrix
from tests.chaos.restarts import RestartableS3
from tests.chaos.servers import SERVERS, account


@dataclass(frozen=True)
class Sizes:
    """How much is done; chains started as `launches` in turn, `num_lanes` at a time, up to `until` (None: all)."""

    seed: int
    num_kills: int
    num_faulted: int
    folder: Path
    say: Callable[[str], None]
    num_lanes: int = 2
    kills_per_chain: int = 12
    launches: Sequence[type[RunnerAlone]] = MIXED
    until: str | None = None
    kept: Path | None = None


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
    matrix = Matrix(
        sizes.seed, sizes.num_kills, sizes.kills_per_chain, sizes.num_lanes, sizes.launches, sizes.until,
        sizes.kept, sizes.say,
    )  # fmt: skip
    with RestartableS3(folder / "s3") as server, account(server.environment):
        undisturbed, chains = run_matrix(matrix, folder, server)
    result.violations = [f"chain {one.seed}: {violation}" for one in chains for violation in one.violations]
    result.figures = figures_of(undisturbed, chains)


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


def move_training(sizes: Sizes, folder: Path, result: Result) -> None:
    """A training that one machine begins and another ends."""
    result.skipped = machines.why_not()
    if result.skipped is None:
        with RestartableS3(folder / "s3") as server, account(server.environment):
            result.figures, result.violations = moved_training.train_on_two(server.environment, folder)


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
    "moved-training": move_training,
    "concurrency": run_at_once,
    "large": move_large_object,
}


def _servers(folder: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Each S3 server in turn, running, with its clients' environment."""
    for name, start in SERVERS.items():
        (folder / name).mkdir()
        with start(folder / name) as variables:
            yield name, variables
