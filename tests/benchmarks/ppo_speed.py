"""How fast an iteration of PPO is: TRL 1.12.0, ours in each mode, and the floor in plain torch, side by side.

    python -m tests.benchmarks.ppo_speed [--workloads tiny small] [--rounds 5] [--iterations 3] [--threads 1 2]
        [--precisions highest medium] [--modes separate shared cached] [--output docs/results/ppo-speed.json]

Makes TRL's environment if it is not there, tries TRL's settings once a workload, then lets all variants take turns.
What was measured is written after each round, so that an interrupted run is not lost; speed_report.py makes a page of
it.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infra.provenance import provenance
from tests.benchmarks import speed_report
from tests.benchmarks.operations import matrix_rate
from tests.benchmarks.trl_environment import trl_python
from tests.benchmarks.variants import (
    TRL_DEFAULTS,
    Setting,
    Variant,
    floors_and_ours,
    timed,
    trl,
    write_inputs,
)
from tests.benchmarks.workloads import MODES, WORKLOADS, Workload

MICRO_BATCHES, ROLLOUT_BATCHES = (4, 8, 16, 32), (8, 16, 64)


def main() -> None:
    arguments = _parse()
    python = trl_python(arguments.trl_environment)
    measured: dict[str, Any] = {"command": _command(), "provenance": provenance(), "results": []}
    for name in arguments.workloads:
        with tempfile.TemporaryDirectory() as folder:
            inputs = Path(folder)
            write_inputs(inputs, name)
            sweep = try_settings(python, WORKLOADS[name], inputs) if arguments.sweep else {}
            best = json.loads(min(sweep, key=sweep.__getitem__)) if sweep else TRL_DEFAULTS
            variants = [trl(python, speed_report.BASELINE, best), *floors_and_ours(arguments.modes)]
            if best != TRL_DEFAULTS:
                variants.insert(0, trl(python, "TRL, defaults", TRL_DEFAULTS))
            for setting in settings(arguments):
                result = {"workload": name, "batch_size": WORKLOADS[name].batch_size, "setting": asdict(setting)}
                result |= {"sweep": sweep, "best": best, "runs": {variant.name: [] for variant in variants}}
                result["matrix_rate"] = matrix_rate(setting.num_threads, setting.precision)
                measured["results"].append(result)
                for number in range(arguments.rounds):
                    take_turns(variants, setting, inputs, arguments.iterations, result["runs"], number)
                    _write(arguments.output, measured)
    print(speed_report.as_markdown(measured))


def try_settings(python: Path, workload: Workload, inputs: Path) -> dict[str, float]:
    """CPU seconds an iteration of TRL's settings, as JSON: micro-batches, then chunks of generation with the best."""
    setting, found = Setting(), dict[str, float]()

    def attempt(options: dict[str, int]) -> None:
        if (name := json.dumps(options)) not in found:
            run = timed(trl(python, f"TRL {name}", options), setting, inputs, iterations=1)
            found[name] = min(lap["cpu_s"] for lap in run["iterations"])
            print(f"{workload.name}: TRL {name}: {found[name]:.2f} CPU s", flush=True)

    for rows in MICRO_BATCHES:
        if rows <= workload.batch_size // workload.num_mini_batches:
            attempt({**TRL_DEFAULTS, "micro-batch": rows})
    best = json.loads(min(found, key=found.__getitem__))
    for rows in ROLLOUT_BATCHES:
        attempt({**best, "rollout-batch": rows})
    return found


def take_turns(
    variants: Sequence[Variant],
    setting: Setting,
    inputs: Path,
    iterations: int,
    runs: dict[str, list[dict[str, Any]]],
    number: int,
) -> None:
    """Run each variant once and add what it took to its runs; every other round in the opposite order."""
    for variant in variants if number % 2 == 0 else reversed(variants):
        run = timed(variant, setting, inputs, iterations)
        runs[variant.name].append(run)
        cpu, wall = (min(lap[key] for lap in run["iterations"]) for key in ("cpu_s", "wall_s"))
        print(f"round {number}, {setting}: {variant.name}: {cpu:.2f} CPU s, {wall:.2f} wall", flush=True)


def settings(arguments: argparse.Namespace) -> Iterable[Setting]:
    """All that were asked for."""
    return [Setting(threads, precision) for precision in arguments.precisions for threads in arguments.threads]


def _command() -> str:
    return " ".join(["python -m tests.benchmarks.ppo_speed", *sys.argv[1:]])


def _write(path: Path, measured: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(measured, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time PPO against TRL's and against the floor.")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["tiny", "small"])
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=3, help="of each run, after one to warm up")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--precisions", nargs="+", choices=("highest", "high", "medium"), default=["highest"])
    parser.add_argument("--no-sweep", dest="sweep", action="store_false", help="take TRL's defaults for its best")
    parser.add_argument("--output", type=Path, default=Path(".local/ppo-speed.json"))
    parser.add_argument("--trl-environment", type=Path, default=Path(".local/trl-1.12"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
