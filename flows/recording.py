"""The run as the store knows it: what protects it from sweeps, and the record that it leaves."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefect.runtime import deployment, flow_run

from tasks.runner import Workplace
from tasks.runs import BY_HAND, recorded_run

PIPELINE_VARIABLE = "ALIGNMENT_PIPELINE"


@contextmanager
def recorded(place: Workplace, overrides: Mapping[str, Any]) -> Iterator[Workplace]:
    """The workplace with a run that claims what its stages use, and keeps a record of it."""
    with recorded_run(place.store, pipeline_name(), flow_run.id, overrides) as run:
        yield dataclasses.replace(place, run=run)


def pipeline_name() -> str:
    """The deployment's name, or that of the entry that is run here."""
    return deployment.name or os.environ.get(PIPELINE_VARIABLE) or BY_HAND
