"""Numbers of a training run: one JSON line a step, and the curves drawn from them."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

METRICS_FILE = "metrics.jsonl"


class Clock:
    """Seconds spent in each named phase, the work on the device included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = _now()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + _now() - start

    def take(self) -> dict[str, float]:
        """The seconds since the last take, by phase."""
        taken, self.seconds = self.seconds, {}
        return taken


class MetricsLog:
    """Appends one line a step to `folder/metrics.jsonl`; a resumed run first drops the lines after its checkpoint."""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        self.path = folder / METRICS_FILE
        kept = [record for record in read_metrics(folder) if record["step"] <= resume_step] if resume_step else []
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text("".join(json.dumps(record) + "\n" for record in kept))
        unfinished.replace(self.path)

    def write(self, step: int, total_steps: int, metrics: Mapping[str, float]) -> None:
        """Append `metrics` of `step` (1-based) of `total_steps`; a reader sees whole lines only."""
        record = {"step": step, "total_steps": total_steps, "time": time.time(), **metrics}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The records of `folder/metrics.jsonl`, oldest first; an unfinished last line is left out."""
    path = folder / METRICS_FILE
    return parse_metrics(path.read_text()) if path.exists() else []


def parse_metrics(text: str) -> list[dict[str, float]]:
    """The records of such a file's text."""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def plot_curves(records: Sequence[Mapping[str, float]], names: Sequence[str], path: Path) -> None:
    """Draw each named metric over the step into one PNG at `path`, a panel each; what never occurs is left out."""
    from matplotlib.figure import Figure

    present = [name for name in names if any(name in record for record in records)]
    columns = min(3, max(1, len(present)))
    rows = -(-len(present) // columns) or 1
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    for position, name in enumerate(present):
        panel = figure.add_subplot(rows, columns, position + 1)
        points = [(record["step"], record[name]) for record in records if name in record]
        panel.plot(*zip(*points, strict=True), marker="o" if len(points) < 25 else "", markersize=3, linewidth=1.4)
        panel.set_title(name.replace("_", " "), fontsize=10)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25)
    figure.savefig(path, dpi=120)


def _now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
