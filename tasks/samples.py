"""Prompts with a model's answers, for a person to read: appended to a file, printed, and as Markdown."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tasks.markdown import escape, table


@dataclass(frozen=True)
class Sample:
    """One answer."""

    step: int  # of the training, when it was given
    prompt: str
    response: str
    score: float


def append_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Add a JSON line for each sample."""
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples)


def read_samples(path: Path) -> list[Sample]:
    """What `append_samples` wrote; nothing where there is no file."""
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []  # splitlines() would split inside answers too
    return [Sample(**json.loads(line)) for line in lines]


def print_samples(samples: Sequence[Sample], title: str) -> None:
    """Print a table, a row for each sample."""
    grid = Table("prompt", "response", "score", title=title, show_lines=True)
    for sample in samples:
        grid.add_row(sample.prompt, sample.response, f"{sample.score:.2f}")
    Console(width=120, markup=False, emoji=False, highlight=False).print(grid)


def as_markdown(samples: Sequence[Sample]) -> str:
    """A table of the first and the last step's answers to the same prompts."""
    steps = sorted({sample.step for sample in samples})
    if not steps:
        return "No samples were asked for.\n"
    first, last = ([sample for sample in samples if sample.step == step] for step in (steps[0], steps[-1]))
    rows = []
    for before, after in zip(first, last, strict=True):
        answers = [f"{escape(sample.response)} *({sample.score:+.2f})*" for sample in (before, after)]
        rows.append([escape(before.prompt), *answers])
    return table(["prompt", f"step {steps[0]}", f"step {steps[-1]}"], rows) + "\n"
