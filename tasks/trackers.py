"""What a training tells while it runs; experiment trackers by name, through accelerate."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from tasks.config import Config
from tasks.errors import InputError
from tasks.processes import Processes
from tasks.tracking import MetricsLog


def check_trackers(names: Sequence[str]) -> None:
    """Raise InputError for a tracker that accelerate does not know, or whose package is not installed.

    accelerate itself leaves the latter out and says nothing.
    """
    installed = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise InputError(f"trackers: {name!r} is none of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}.")
        if name not in installed:
            raise InputError(f"trackers: the package of {name} is not installed. Install it, or leave it out.")


class Reporter:
    """Tells a training's metrics to metrics.jsonl, to the trackers and, a few of them, to the terminal.

    Made on every process of the run; the main process tells.
    """

    def __init__(
        self, processes: Processes, config: Config, output: Path, *, first: int, last: int, shown: Sequence[str]
    ) -> None:
        self.accelerator, self.last, self.shown = processes.accelerator, last, shown
        self.log = MetricsLog(output, first) if processes.is_main else None
        if self.accelerator.log_with:
            self.accelerator.init_trackers("alignment", config=_plain(config.model_dump(mode="json")))

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell the metrics of a step."""
        self.accelerator.log(dict(metrics), step=step)
        if self.log is not None:
            self.log.write(step, self.last, metrics)
            line = "  ".join(f"{name} {metrics[name]:.3g}" for name in self.shown if name in metrics)
            print(f"iteration {step}/{self.last}  {line}", flush=True)


def _plain(options: Mapping[str, Any]) -> dict[str, bool | str | float | int]:
    """Options as trackers take them: what is no plain value is written as JSON."""
    return {
        name: value if isinstance(value, bool | str | float | int) else json.dumps(value)
        for name, value in options.items()
    }
