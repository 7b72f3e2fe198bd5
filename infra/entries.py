"""The entries of pipelines.yaml, checked before anything is deployed or run.

The file is Prefect's own deployment format. `prefect deploy` skips a malformed entry and drops a mistyped key without
a word; here both are refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from flows.pipeline import Pipeline
from tasks.config import Config
from tasks.errors import InputError
from tasks.program import explain

OURS = "alignment"
BLOCK = "prefect.blocks."


class WorkPool(Config):
    """Which workers run the entry, and with what settings."""

    name: str
    work_queue_name: str | None = None
    job_variables: dict[str, Any] = Field(default_factory=dict)

    @field_validator("job_variables")
    @classmethod
    def _names_no_block(cls, variables: dict[str, Any]) -> dict[str, Any]:
        if BLOCK in json.dumps(variables):
            raise ValueError(
                f"must not name a block ({BLOCK}...): `prefect deploy` would write its value into the deployment, "
                "for everybody to read. Name it in the work pool's template (docs/operations.md, Secrets)."
            )
        return variables


class Schedule(Config):
    """When the entry runs by itself; the slug names the schedule over changes of the file."""

    slug: str
    cron: str | None = None
    interval: float | None = Field(None, gt=0, description="Seconds.")
    rrule: str | None = None
    timezone: str = "UTC"
    anchor_date: str | None = None
    day_or: bool = True
    active: bool = True
    max_scheduled_runs: int | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_rule(self) -> "Schedule":
        given = [name for name in ("cron", "interval", "rrule") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a schedule has exactly one of cron, interval, rrule; given: {given or 'none'}")
        return self


class ConcurrencyLimit(Config):
    """How many runs of the entry may be under way, and what becomes of one more."""

    limit: int = Field(ge=1)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"
    grace_period_seconds: int | None = None


class FlowParameters(Config):
    """What the flow `alignment` takes."""

    pipeline: Pipeline
    model: str | None = None
    seed: int | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)

    def resolved(self) -> Pipeline:
        """The pipeline as the run will see it."""
        return self.pipeline.overridden(self.overrides, self.seed, self.model)


class Entry(Config):
    """One deployment of the flow."""

    name: str
    description: str | None = None
    version: str | None = None
    tags: list[str]
    entrypoint: str
    work_pool: WorkPool
    parameters: FlowParameters
    schedules: list[Schedule] = Field(default_factory=list)
    concurrency_limit: ConcurrencyLimit | None = None
    paused: bool | None = None
    enforce_parameter_schema: Literal[True] = True

    @field_validator("tags")
    @classmethod
    def _is_marked_as_ours(cls, tags: list[str]) -> list[str]:
        if OURS not in tags:
            raise ValueError(f"must contain '{OURS}': what left the file is found by it and removed")
        return tags


class PipelinesFile(Config):
    """The whole file. Keys that begin with x- hold anchors and are not looked at."""

    name: str
    prefect_version: str | None = Field(None, alias="prefect-version")
    pull: list[dict[str, Any]] = Field(default_factory=list)
    deployments: list[Entry]

    @field_validator("deployments")
    @classmethod
    def _names_differ(cls, entries: list[Entry]) -> list[Entry]:
        names = [entry.name for entry in entries]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"each entry needs a name of its own; twice: {', '.join(sorted(twice))}")
        return entries


def read_entries(path: Path) -> dict[str, Entry]:
    """The entries of the file by name; raises InputError naming each wrong field."""
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path.absolute()} does not exist. Name a pipelines file.") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} must be a mapping with the key 'deployments'; see pipelines.yaml of the project.")
    try:
        file = PipelinesFile.model_validate({k: v for k, v in content.items() if not str(k).startswith("x-")})
    except ValidationError as error:
        raise InputError(f"{path} is refused:\n{explain(error)}") from error
    for entry in file.deployments:
        try:
            entry.parameters.resolved()
        except InputError as error:
            raise InputError(f"{path}, entry {entry.name}: {error}") from error
    return {entry.name: entry for entry in file.deployments}
