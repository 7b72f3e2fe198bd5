"""A flow of one stage that does as it is told, for the tests of what interrupts a run."""

import os
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State

from tasks.artifacts import Artifact, store_at
from tasks.runner import Stage, Workplace
from tasks.stages import _run, _stage_task
from tests.stub_stage import StubConfig

STUB = Stage("stub", "tests.stub_stage", needs={})


@_stage_task("patient")
def patient(config: StubConfig, place: Workplace) -> State[Artifact]:
    return _run(STUB, config, "text", place, {})


@_stage_task("hasty", timeout_s=3)
def hasty(config: StubConfig, place: Workplace) -> State[Artifact]:
    return _run(STUB, config, "text", place, {})


@flow(name="stub")
def chain(config: StubConfig, in_haste: bool = False) -> str:
    folder = Path(os.environ["STUB_FOLDER"])
    place = Workplace(store_at(f"file://{folder}/store"), folder / "work", folder)
    return (hasty if in_haste else patient)(config, place).uri
