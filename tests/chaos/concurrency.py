"""Eight runs of the same pipeline at once, in eight processes over two work folders."""

from collections.abc import Sequence
from pathlib import Path

from tests.chaos.launches import RunnerAlone, wait_until_ended

NUM_RUNS = 8
NUM_WORK_FOLDERS = 2
TIMEOUT_S = 900.0


def run_at_once(folder: Path, store: str, until: str | None) -> tuple[Sequence[str], list[str]]:
    """The artifacts that the runs reported, and what is wrong: a run that failed, or two artifacts of one stage."""
    launches = [RunnerAlone(folder / str(number), store, 1, until) for number in range(NUM_RUNS)]
    try:
        for number, launch in enumerate(launches):
            launch.environment["ALIGNMENT_WORK_DIR"] = str(folder / f"work-{number % NUM_WORK_FOLDERS}")
            launch.start()
        violations = [
            f"run {number} ended with {status}: {launch.tail()}"
            for number, launch in enumerate(launches)
            if (status := wait_until_ended(launch, TIMEOUT_S)) != 0
        ]
        reported = [launch.acknowledged() for launch in launches]
    finally:
        for launch in launches:
            launch.close()
    if any(uris != reported[0] for uris in reported):
        violations.append(f"the runs reported different artifacts: {reported}")
    return reported[0], violations
