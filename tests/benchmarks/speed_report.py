"""Tables from what ppo_speed.py measured.

python -m tests.benchmarks.speed_report docs/results/ppo-speed.json > docs/results/ppo-speed.md
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tasks.markdown import table
from tests.benchmarks.operations import operations
from tests.benchmarks.workloads import WORKLOADS

BASELINE = "TRL, best settings"
COLUMNS = (
    "variant",
    "CPU s",
    "wall s",
    "episodes/s",
    "tokens/s",
    "rollout s",
    "measure s",
    "update s",
    "peak MiB",
    "TRL's best / this",
    "floor / this",
    "of the matrix rate",
)
Runs = Sequence[Mapping[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the Markdown of a measurement.")
    parser.add_argument("measured", type=Path)
    print(as_markdown(json.loads(parser.parse_args().measured.read_text())))


def as_markdown(measured: Mapping[str, Any]) -> str:
    """The page: how it was measured, and a table for each workload and setting."""
    parts = ["# Speed of PPO", f"`{measured['command']}`", measured["provenance"], _NOTE]
    for result in measured["results"]:
        parts += [f"## {title(result)}", table(COLUMNS, rows(result))]
        if result["sweep"]:
            parts.append(f"TRL's settings tried, CPU seconds an iteration: {_sweep(result['sweep'])}.")
        else:
            parts.append("TRL's settings were not tried here: its defaults stand for its best.")
    return "\n\n".join(parts)


def title(result: Mapping[str, Any]) -> str:
    """What was measured, in a line."""
    setting, length = result["setting"], _over(result["runs"][BASELINE], lambda lap: lap["response_length"])
    threads = "1 thread" if setting["num_threads"] == 1 else f"{setting['num_threads']} threads"
    precision = "float32" if setting["precision"] == "highest" else f"matmul precision {setting['precision']}"
    return f"{result['workload']}: {threads}, {precision}, responses of {length:.1f} tokens in the mean"


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """A row of COLUMNS for each variant."""
    return [_row(name, result) for name in result["runs"]]


def seconds(result: Mapping[str, Any], name: str) -> float:
    """What a variant is judged by, per iteration: CPU seconds with one thread, else wall."""
    key = "cpu_s" if result["setting"]["num_threads"] == 1 else "wall_s"
    return _over(result["runs"][name], lambda lap: lap[key])


def _row(name: str, result: Mapping[str, Any]) -> list[str]:
    runs, judged = result["runs"][name], seconds(result, name)
    num_tokens = _over(runs, lambda lap: lap["num_tokens"])
    phases = [_phase(runs, phase) for phase in (("rollout",), ("score", "measure"), ("update",))]
    floor = name.replace("ours", "floor")
    return [
        name,
        f"{_over(runs, lambda lap: lap['cpu_s']):.2f}",
        f"{_over(runs, lambda lap: lap['wall_s']):.2f}",
        f"{result['batch_size'] / judged:.2f}",
        f"{num_tokens / judged:.0f}",
        *(f"{phase:.2f}" for phase in phases),
        f"{median(run['peak_rss_bytes'] for run in runs) / 2**20:.0f}",
        f"{seconds(result, BASELINE) / judged:.2f}" if BASELINE in result["runs"] else "",
        f"{seconds(result, floor) / judged:.2f}" if name.startswith("ours") and floor in result["runs"] else "",
        f"{_share_of_rate(result, name, judged):.2f}" if ", " in name and "TRL" not in name else "",
    ]


def _share_of_rate(result: Mapping[str, Any], name: str, judged: float) -> float:
    """The formulas' operations a second, as a share of what the machine does in large matrix products."""
    mode = name.rpartition(", ")[2]
    length = _over(result["runs"][name], lambda lap: lap["response_length"])
    counted = operations(WORKLOADS[result["workload"]], mode, length)
    return sum(counted.values()) / judged / result["matrix_rate"]


def _phase(runs: Runs, names: Sequence[str]) -> float:
    return _over(runs, lambda lap: sum(lap["phases"].get(name, 0.0) for name in names))


def _over(runs: Runs, of: Callable[[Mapping[str, Any]], float]) -> float:
    """The median over all iterations of all runs."""
    return median(of(lap) for run in runs for lap in run["iterations"])


def _sweep(sweep: Mapping[str, float]) -> str:
    return "; ".join(f"{settings} {cpu_s:.2f}" for settings, cpu_s in sweep.items())


_NOTE = (
    "Every run is a process of its own; the variants take turns. Numbers are medians over all iterations of all rounds "
    "but each process's first. With one thread everything is judged by CPU seconds, with more by wall. Phases are CPU "
    "seconds; measure includes the scores. Responses are forced to their lengths by the models' weights, the same for "
    "all. TRL's gradient_checkpointing, on by default, is off: its PPO never switches it on. Of the matrix rate: the "
    "operations that docs/ppo.md counts, per second, against products of 1024 x 1024 matrices with as many threads."
)


if __name__ == "__main__":
    main()
