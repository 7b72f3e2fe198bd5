"""How soon PPO learns: TRL 1.12.0 and ours in each mode, on the same task from the same SFT and reward model.

    python -m tests.benchmarks.time_to_reward [--seeds 5] [--modes full lora] [--lanes 1] [--output time-to-reward.json]

Each trainer and mode gets the same tuning: for each of a few learning rates around the usual one of its kind, runs with
seeds of their own; the rate whose last score less kl_coef x KL is highest in the mean is taken. With it the modes take
turns, a training each for every seed, so that a machine that grows slower does so for all. Runs that were written
before are not run again.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from infra.provenance import provenance
from tests.benchmarks import learning_report
from tests.benchmarks.learning_task import write_task
from tests.benchmarks.our_learner import MODES
from tests.benchmarks.trl_environment import trl_python
from tests.benchmarks.variants import Setting, run_to_end

TRL = "TRL 1.12.0"
KL_COEF = 0.1
TUNING_SEEDS = (100, 101)
RATES = {"full": (1e-4, 3e-4, 5e-4, 1e-3), "lora": (1e-3, 2e-3, 4e-3)}  # by what is trained


class Run(NamedTuple):
    """One training."""

    mode: str
    rate: float
    seed: int


def main() -> None:
    arguments = _parse()
    write_task(arguments.work / "task")
    modes = {mode: tune(arguments, mode) for mode in (TRL, *arguments.modes)}
    turns = [Run(mode, modes[mode]["learning_rate"], seed) for seed in range(arguments.seeds) for mode in modes]
    for run, points in courses_of(arguments, turns).items():
        modes[run.mode]["courses"].append(points)
    measured = {"command": _command(), "provenance": provenance(), "kl_coef": KL_COEF, "modes": modes}
    arguments.output.write_text(json.dumps(measured, indent=1) + "\n")
    learning_report.plot(measured, arguments.output.with_suffix(".png"))
    print(learning_report.as_markdown(measured, arguments.output.with_suffix(".png").name))


def tune(arguments: argparse.Namespace, mode: str) -> dict[str, Any]:
    """What each learning rate came to in the mean of the tuning seeds, and the best of them."""
    rates = RATES["full" if mode in (TRL, "full") else "lora"]
    courses = courses_of(arguments, [Run(mode, rate, seed) for rate, seed in product(rates, TUNING_SEEDS)])
    tried = {rate: mean(value(points) for run, points in courses.items() if run.rate == rate) for rate in rates}
    best = max(tried, key=tried.__getitem__)
    return {"tried": {str(rate): reached for rate, reached in tried.items()}, "learning_rate": best, "courses": []}


def courses_of(arguments: argparse.Namespace, runs: Sequence[Run]) -> dict[Run, list[dict[str, float]]]:
    """The points of each training, so many at a time as there are lanes."""
    with ThreadPoolExecutor(arguments.lanes) as pool:
        return dict(zip(runs, pool.map(lambda run: course(arguments, run), runs), strict=True))


def course(arguments: argparse.Namespace, run: Run) -> list[dict[str, float]]:
    """The points of one training."""
    mode, rate, seed = run
    name = "-".join("".join(c if c.isalnum() else " " for c in mode).split())
    path = arguments.work / f"{name}-{rate:g}-{seed}.json"
    if not path.is_file():
        python = trl_python(arguments.trl_environment) if mode == TRL else Path(sys.executable)
        module = "trl_learner" if mode == TRL else "our_learner"
        options = {"task": arguments.work / "task", "learning-rate": rate, "seed": seed, "output": path}
        options |= {} if mode == TRL else {"mode": mode}
        command = [str(python), "-m", f"tests.benchmarks.{module}"]
        command += [part for option, given in options.items() for part in (f"--{option}", str(given))]
        with path.with_suffix(".log").open("w") as log:
            if status := run_to_end(command, Setting(), log):
                raise SystemExit(f"{' '.join(command)} ended with {status}; its output is in {log.name}.")
        last = json.loads(path.read_text())["points"][-1]
        print(f"{mode}, rate {rate:g}, seed {seed}: " + ", ".join(f"{key} {last[key]:.3g}" for key in last), flush=True)
    return json.loads(path.read_text())["points"]


def value(points: Sequence[Mapping[str, float]]) -> float:
    """What the tuning goes by: what PPO itself maximises, over the last three points."""
    return mean(point["score"] - KL_COEF * point["kl"] for point in points[-3:])


def _command() -> str:
    return "python -m tests.benchmarks.time_to_reward " + shlex.join(sys.argv[1:])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time how soon PPO learns, against TRL's.")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--lanes", type=int, default=1, help="trainings at a time, each with one thread")
    parser.add_argument("--output", type=Path, default=Path(".local/time-to-reward.json"))
    parser.add_argument("--work", type=Path, default=Path(".local/time-to-reward"))
    parser.add_argument("--trl-environment", type=Path, default=Path(".local/trl-1.12"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
