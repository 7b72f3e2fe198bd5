"""Runs one stage as a process: fetch its inputs, launch the command, watch it, publish its output. Knows no Prefect.

What a stage does is exactly its logged command line; after a failure the same line, by hand, does the same.
"""

import contextlib
import errno
import fcntl
import fnmatch
import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tasks.artifacts import Artifact, Cost, Store, artifact_key, code_version, fetched, find, lineage_of, publish
from tasks.config import Config
from tasks.errors import InputError
from tasks.launch import PROJECT, OutOfMemory, StageCancelled, StageFailed, Watch, launch, peak_memory, tail_of
from tasks.lineage import tree_of_inputs
from tasks.retention.keys import Key
from tasks.retention.runs import Run, StageRun, unrecorded_run
from tasks.stage_log import publish_log
from tasks.storage.checkpoint_publisher import CheckpointPublisher
from tasks.storage.stored_checkpoints import Trail, fetch_newest, remove_checkpoints

__all__ = [
    "PROJECT",
    "Outcome",
    "Stage",
    "StageCancelled",
    "StageFailed",
    "Watch",
    "Workplace",
    "check_inputs",
    "run_stage",
]

LINEAGE_FILE, TREE_FILE = "lineage.json", "tree.txt"
NOT_PUBLISHED = ("checkpoints", "error.json")
MOST_REDUCTIONS = 4
REDUCED = "reduced_for_memory"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A program and its inputs: name -> the kinds of artifact that may stand there; `*` in a name is any text.

    One that wants lineage gets a further input `lineage`, a folder with lineage.json: what each other input is, and
    tree.txt: what they were made of.
    """

    name: str
    module: str
    needs: Mapping[str, Sequence[str]]
    may_have: Mapping[str, Sequence[str]] = field(default_factory=dict)
    accelerate: bool = False
    wants_lineage: bool = False


@dataclass(frozen=True)
class Workplace:
    """Where a stage runs: the store, a scratch folder, accelerate's config file, and the run that it is part of."""

    store: Store
    folder: Path
    accelerate_config: Path
    run: Run | None = None


@dataclass(frozen=True)
class Outcome:
    """A stage's artifact, and whether it was in the store already."""

    artifact: Artifact
    already_done: bool


def run_stage(
    stage: Stage, config: Config, inputs: Mapping[str, Artifact], makes: str, place: Workplace, watch: Watch
) -> Outcome:
    """The stage's artifact of kind `makes`: found in the store, or else computed and published.

    Raises InputError for a missing input, one of the wrong kind, and whatever the stage refuses; StageFailed if its
    process fails; StageCancelled if `watch.cancelled` says so. An interrupted stage leaves its checkpoints in the
    scratch folder and in the store, where the next attempt finds them, on this machine or another.
    """
    check_inputs(stage, inputs)
    options = config.model_dump(mode="json")
    version = code_version(stage.name)
    key = artifact_key(stage.name, options, inputs, version)
    folder = place.folder / stage.name / key
    output = folder / "output"
    trail = Trail(place.store, stage.name, key, version, output)
    with _only_one(folder), _run_of(place) as run, contextlib.ExitStack() as in_use:
        held = run.claim([Key(stage.name, key)], inputs.values())
        if found := find(place.store, stage.name, key):
            run.note([found, *inputs.values()], StageRun(stage=stage.name, uri=found.uri, already_done=True))
            return Outcome(found, already_done=True)
        started = time.monotonic()
        with _full_disk_refused(folder):
            output.mkdir(parents=True, exist_ok=True)
            paths = _fetch_inputs(stage, inputs, place, folder, in_use)
            damaged = fetch_newest(trail, folder / "fetched")
        with _log_kept(trail, watch), CheckpointPublisher(trail, folder / "publishing", damaged):
            _run_within_memory(stage, config, paths, place, folder, watch)
        cost = Cost(seconds=round(time.monotonic() - started, 3), peak_rss_bytes=peak_memory(output))
        artifact = publish(
            place.store,
            output,
            stage=stage.name,
            key=key,
            kind=makes,
            config=options,
            inputs=inputs,
            exclude=NOT_PUBLISHED,
            confirm=lambda: run.confirm(held),
            cost=cost,
        )
        remove_checkpoints(trail)
        run.note([artifact, *inputs.values()], StageRun(stage=stage.name, uri=artifact.uri))
    shutil.rmtree(folder)
    return Outcome(artifact, already_done=False)


def check_inputs(stage: Stage, inputs: Mapping[str, Artifact]) -> None:
    """Raise InputError if an input is missing, not known, or of a kind that cannot stand there."""
    kinds = {**stage.needs, **stage.may_have}
    for name in stage.needs:
        if name not in inputs:
            raise InputError(
                f"{stage.name} needs the input '{name}', of kind {' or '.join(kinds[name])}; there is none."
            )
    for name, artifact in inputs.items():
        known = next((known for known in kinds if fnmatch.fnmatchcase(name, known)), None)
        if known is None:
            raise InputError(f"{stage.name} has no input '{name}'; it takes {', '.join(kinds)}.")
        if artifact.kind not in kinds[known]:
            raise InputError(
                f"{stage.name}: input '{name}' must be of kind {' or '.join(kinds[known])}, "
                f"but {artifact.uri} is of kind {artifact.kind}. Name an artifact of the right kind."
            )


@contextlib.contextmanager
def _run_of(place: Workplace) -> Iterator[Run]:
    """The run that the stage is part of, or one of its own."""
    if place.run is not None:
        yield place.run
        return
    with unrecorded_run(place.store) as run:
        yield run


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """One process on this machine at a time in `folder`; the kernel frees the lock however its holder ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _full_disk_refused(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise InputError(f"The disk under {folder} is full. Free space there and run again.") from error


@contextlib.contextmanager
def _log_kept(trail: Trail, watch: Watch) -> Iterator[None]:
    """Publish the stage's log if the block does not succeed, and say where it is."""
    log = trail.output / "log.txt"

    def keep() -> str:
        address = publish_log(trail.store, trail.stage, trail.key, log) or str(log)
        logger.info("%s: the whole log is at %s", trail.stage, address)
        watch.on_log(address, tail_of(log))
        return address

    try:
        yield
    except (StageFailed, StageCancelled) as error:
        raise type(error)(f"{error}\n--- the whole log\n{keep()}") from error
    except BaseException:  # refused, or this process is told to end
        keep()
        raise


def _fetch_inputs(
    stage: Stage, inputs: Mapping[str, Artifact], place: Workplace, folder: Path, in_use: contextlib.ExitStack
) -> dict[str, Path]:
    """Where each input lies on this machine; what is in the cache is held there until `in_use` closes."""
    cache = place.folder / "cache"
    paths = {name: in_use.enter_context(fetched(place.store, artifact, cache)) for name, artifact in inputs.items()}
    if stage.wants_lineage:
        paths["lineage"] = folder / "lineage"
        paths["lineage"].mkdir(exist_ok=True)
        lineage = {name: lineage_of(place.store, artifact) for name, artifact in inputs.items()}
        (paths["lineage"] / LINEAGE_FILE).write_text(json.dumps(lineage, indent=2))
        (paths["lineage"] / TREE_FILE).write_text(tree_of_inputs(place.store, inputs))
    return paths


def _run_within_memory(
    stage: Stage, config: Config, inputs: Mapping[str, Path], place: Workplace, folder: Path, watch: Watch
) -> None:
    """Run the stage; where memory runs out, again with smaller micro-batches, which do the same mathematics.

    What was reduced stands in OUTPUT/report.json, and is kept for the next attempt in this folder.
    """
    note, reduced = folder / f"{REDUCED}.json", config
    if note.is_file():
        reduced = type(config).model_validate_json(note.read_text())
    for num_left in reversed(range(MOST_REDUCTIONS + 1)):
        (folder / "config.json").write_text(reduced.model_dump_json(indent=2))
        try:
            launch(stage.name, _command(stage, inputs, place, folder), folder / "output", watch)
        except OutOfMemory as error:
            smaller = reduced.with_less_memory(error.device)
            if smaller is None or not num_left:
                raise
            logger.warning("%s: again with %s. %s", stage.name, _changes(reduced, smaller), error)
            note.write_text(smaller.model_dump_json())
            reduced = smaller
        else:
            break
    if reduced != config:
        _record(folder / "output" / "report.json", _changes(config, reduced))


def _changes(before: Config, after: Config) -> str:
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return ", ".join(f"{name} {old[name]} -> {new[name]}" for name in old if old[name] != new[name])


def _record(report: Path, changes: str) -> None:
    content = json.loads(report.read_text()) if report.is_file() else {}
    report.write_text(json.dumps({**content, REDUCED: changes}, indent=2) + "\n")


def _command(stage: Stage, inputs: Mapping[str, Path], place: Workplace, folder: Path) -> list[str]:
    launcher = [sys.executable, "-m"]
    if stage.accelerate:
        launcher += ["accelerate.commands.launch", "--config_file", str(place.accelerate_config), "-m"]
    named = [word for name, path in inputs.items() for word in ("--input", f"{name}={path}")]
    config, output = str(folder / "config.json"), str(folder / "output")
    return [*launcher, stage.module, "--config", config, *named, "--output", output]
