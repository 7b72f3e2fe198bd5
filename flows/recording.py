"""The run as the store knows it: what protects it from sweeps, the record that it leaves, and its page."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, State

from tasks.markdown import escape
from tasks.report.publishing import publish_page
from tasks.retention.runs import BY_HAND, recorded_run
from tasks.runner import StageCancelled, Workplace
from tasks.storage.stores import Store

PIPELINE_VARIABLE = "ALIGNMENT_PIPELINE"
REPORTED = "Reported"


@contextmanager
def recorded(place: Workplace, overrides: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[Workplace]:
    """The workplace with a run that claims what its stages use, keeps a record, and has a page after its end.

    What goes wrong with the page leaves the run as it is. A run that is cancelled, or fails because the store is away,
    gets none; `python -m tasks.report` makes it from the record.
    """
    name: str | None = None
    try:
        with recorded_run(place.store, pipeline_name(), flow_run.id, overrides, options) as run:
            name = run.record_name
            yield dataclasses.replace(place, run=run)
    except Exception as error:
        if name is not None and not isinstance(error, StageCancelled | ConnectionError):
            report(place.store, name, return_state=True)
        raise
    assert name is not None
    report(place.store, name, return_state=True)


@task(name="report", cache_policy=NO_CACHE)
def report(store: Store, record_name: str) -> State[Any]:
    """Keep the page of the run in the store, beside its record, and say in the UI where it is."""
    page = publish_page(store, record_name)
    text = f"{escape(page.verdict)}\n\nThe whole page: `{page.uri}`. `make report` brings the last one to a browser."
    create_markdown_artifact(text, key="alignment-report", description=f"`{page.uri}`")
    return Completed(name=REPORTED, message=page.uri)


def pipeline_name() -> str:
    """The deployment's name, or that of the entry that is run here."""
    return deployment.name or os.environ.get(PIPELINE_VARIABLE) or BY_HAND
