"""How time and memory of an iteration grow with batch, response length and vocabulary; and two processes against one.

    python -m tests.benchmarks.growth [--workload tiny] [--fields batch_size response_length vocab_size processes]
        [--modes separate shared] [--rounds 3] [--output .local/ppo-growth.json]

Each field is halved and doubled, the others stay. With `processes`, one process does the workload and two do twice its
batch, each with a thread of its own: were it for nothing but the work, both would take the same time.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from infra.provenance import provenance
from tasks.markdown import table
from tests.benchmarks.trl_environment import trl_python
from tests.benchmarks.variants import ROOT, TRL_DEFAULTS, Setting, Variant, timed, trl, write_inputs
from tests.benchmarks.workloads import MODES, WORKLOADS, Workload

FACTORS = (0.5, 1, 2)
FIELDS = ("batch_size", "response_length", "vocab_size")
TWO_PROCESSES = ("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "infra" / "accelerate" / "cpu_2.yaml"))
HEADER = ("changed", "variant", "CPU s", "wall s", "episodes/s of wall", "tokens/s of wall", "peak MiB")


def main() -> None:
    arguments = _parse()
    workload, variants = WORKLOADS[arguments.workload], [_ours(mode) for mode in arguments.modes]
    trls = [trl(trl_python(arguments.trl_environment), "TRL", TRL_DEFAULTS)] if arguments.trl else []
    found: list[dict[str, Any]] = []
    for change, number in changes(workload, [field for field in arguments.fields if field in FIELDS]):
        found += measured(workload, f"{change}={number}", [*trls, *variants], arguments.rounds)
    if "processes" in arguments.fields:
        twice = f"batch_size={2 * workload.batch_size}"
        found += measured(workload, f"batch_size={workload.batch_size}", variants, arguments.rounds)
        doubled = [_ours(mode, TWO_PROCESSES) for mode in arguments.modes]
        found += measured(workload, twice, doubled, arguments.rounds)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"provenance": provenance(), "runs": found}, indent=1) + "\n")
    print(f"{provenance()}\n\n{table(HEADER, [_row(run) for run in found])}")


def changes(workload: Workload, fields: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Each field with half its number, its number, and twice it."""
    for field in fields:
        for factor in FACTORS:
            yield field, int(getattr(workload, field) * factor)


def measured(workload: Workload, change: str, variants: Sequence[Variant], rounds: int) -> list[dict[str, Any]]:
    """Medians of each variant on the changed workload; the variants take turns."""
    runs: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in variants}
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), workload.name, [change])
        for _ in range(rounds):
            for variant in variants:
                runs[variant.name].append(timed(variant, Setting(), Path(folder), iterations=2))
                print(f"{change}: {variant.name}: {_median(runs[variant.name], 'cpu_s'):.2f} CPU s", flush=True)
    field, _, number = change.partition("=")
    batch_size = int(number) if field == "batch_size" else workload.batch_size
    return [
        {
            "change": change,
            "variant": name,
            "cpu_s": _median(found, "cpu_s"),
            "wall_s": _median(found, "wall_s"),
            "episodes_per_s": batch_size / _median(found, "wall_s"),
            "tokens_per_s": _median(found, "num_tokens") / _median(found, "wall_s"),
            "peak_rss_bytes": median(run["peak_rss_bytes"] for run in found),
        }
        for name, found in runs.items()
    ]


def _ours(mode: str, launcher: Sequence[str] = ()) -> Variant:
    name = f"ours, {mode}" + (", two processes (CPU and memory of the first)" if launcher else "")
    return Variant(name, "our_worker", {"mode": mode}, launcher=launcher)


def _median(runs: Sequence[dict[str, Any]], key: str) -> float:
    return median(lap[key] for run in runs for lap in run["iterations"])


def _row(run: dict[str, Any]) -> list[str]:
    numbers = [f"{run[key]:.2f}" for key in ("cpu_s", "wall_s", "episodes_per_s")]
    return [
        run["change"],
        run["variant"],
        *numbers,
        f"{run['tokens_per_s']:.0f}",
        f"{run['peak_rss_bytes'] / 2**20:.0f}",
    ]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure how an iteration of PPO grows.")
    parser.add_argument("--workload", choices=WORKLOADS, default="tiny")
    parser.add_argument("--fields", nargs="+", choices=(*FIELDS, "processes"), default=[*FIELDS, "processes"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["separate", "shared"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trl", action="store_true", help="TRL with its default settings beside ours")
    parser.add_argument("--output", type=Path, default=Path(".local/ppo-growth.json"))
    parser.add_argument("--trl-environment", type=Path, default=Path(".local/trl-1.12"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
