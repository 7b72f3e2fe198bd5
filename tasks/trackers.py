"""Experiment trackers by name, through accelerate."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from tasks.config import Config
from tasks.errors import InputError


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


def start_trackers(accelerator: Accelerator, run_name: str, config: Config) -> None:
    """Open a run on each tracker that the accelerator was made with, and tell it the options."""
    if accelerator.log_with:
        accelerator.init_trackers(run_name, config=_plain(config.model_dump(mode="json")))


def _plain(options: Mapping[str, Any]) -> dict[str, bool | str | float | int]:
    """Options as trackers take them: what is no plain value is written as JSON."""
    return {
        name: value if isinstance(value, bool | str | float | int) else json.dumps(value)
        for name, value in options.items()
    }
