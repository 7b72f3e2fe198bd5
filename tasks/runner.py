"""Runs one stage as a process: fetch its inputs, launch the command, watch it, publish its output. Knows no Prefect.

What a stage does is exactly its logged command line; after a failure the same line, by hand, does the same.
"""

import contextlib
import errno
import fcntl
import fnmatch
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tasks.artifacts import Artifact, Store, artifact_key, code_version, fetch, find, lineage_of, publish
from tasks.config import Config
from tasks.errors import InputError

PROJECT = Path(__file__).resolve().parent.parent
LINEAGE_FILE = "lineage.json"
NOT_PUBLISHED = ("checkpoints", "error.json")
POLL_S = 0.2
CANCEL_CHECK_S = 5.0
GRACE_S = 8.0
LOG_TAIL_LINES = 30
OUT_OF_MEMORY_STATUS = 128 + 9

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A program and its inputs: name -> the kinds of artifact that may stand there; `*` in a name is any text.

    One that wants lineage gets a further input `lineage`, a folder with lineage.json: what each other input is.
    """

    name: str
    module: str
    needs: Mapping[str, Sequence[str]]
    may_have: Mapping[str, Sequence[str]] = field(default_factory=dict)
    accelerate: bool = False
    wants_lineage: bool = False


@dataclass(frozen=True)
class Workplace:
    """Where a stage runs: the store, a scratch folder, and accelerate's config file."""

    store: Store
    folder: Path
    accelerate_config: Path


@dataclass(frozen=True)
class Watch:
    """What the caller wants to hear, and to say: each new metrics record; whether to stop."""

    on_metrics: Callable[[Mapping[str, float]], None]
    cancelled: Callable[[], bool]


@dataclass(frozen=True)
class Outcome:
    """A stage's artifact, and whether it was in the store already."""

    artifact: Artifact
    already_done: bool


class StageFailed(RuntimeError):
    """A stage's process ended in error; carries the command and the last lines of its log."""


class StageCancelled(RuntimeError):
    """The caller asked for the end of the stage."""


def run_stage(
    stage: Stage, config: Config, inputs: Mapping[str, Artifact], makes: str, place: Workplace, watch: Watch
) -> Outcome:
    """The stage's artifact of kind `makes`: found in the store, or else computed and published.

    Raises InputError for a missing input, one of the wrong kind, and whatever the stage refuses; StageFailed if its
    process fails; StageCancelled if `watch.cancelled` says so. An interrupted stage leaves its checkpoints in the
    scratch folder, where the next attempt finds them.
    """
    check_inputs(stage, inputs)
    options = config.model_dump(mode="json")
    key = artifact_key(stage.name, options, inputs, code_version(stage.name))
    folder = place.folder / stage.name / key
    with _only_one(folder):
        if found := find(place.store, stage.name, key):
            return Outcome(found, already_done=True)
        with _full_disk_refused(folder):
            command = _prepare(stage, config, inputs, place, folder)
        _launch(stage, command, folder, watch)
        artifact = publish(
            place.store,
            folder / "output",
            stage=stage.name,
            key=key,
            kind=makes,
            config=options,
            inputs=inputs,
            exclude=NOT_PUBLISHED,
        )
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


def _prepare(stage: Stage, config: Config, inputs: Mapping[str, Artifact], place: Workplace, folder: Path) -> list[str]:
    """Inputs fetched and config written; returns the stage's command line."""
    output, config_file = folder / "output", folder / "config.json"
    output.mkdir(parents=True, exist_ok=True)
    config_file.write_text(config.model_dump_json(indent=2))
    fetched = {name: fetch(place.store, artifact, place.folder / "cache") for name, artifact in inputs.items()}
    if stage.wants_lineage:
        fetched["lineage"] = folder / "lineage"
        fetched["lineage"].mkdir(exist_ok=True)
        lineage = {name: lineage_of(place.store, artifact) for name, artifact in inputs.items()}
        (fetched["lineage"] / LINEAGE_FILE).write_text(json.dumps(lineage, indent=2))
    launcher = [sys.executable, "-m"]
    if stage.accelerate:
        launcher += ["accelerate.commands.launch", "--config_file", str(place.accelerate_config), "-m"]
    named = [word for name, path in fetched.items() for word in ("--input", f"{name}={path}")]
    return [*launcher, stage.module, "--config", str(config_file), *named, "--output", str(output)]


def _launch(stage: Stage, command: Sequence[str], folder: Path, watch: Watch) -> None:
    """Run the command under the supervisor until it ends; raise if it did not end well."""
    log = folder / "output" / "log.txt"
    logger.info("%s: %s", stage.name, shlex.join(command))
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "tasks.supervisor", "--log", str(log), "--grace-s", str(GRACE_S), "--", *command],
        stdin=subprocess.PIPE,
        cwd=PROJECT,
        env=_environment(),
        start_new_session=True,
    )
    try:
        status = _watch(supervisor, folder / "output" / "metrics.jsonl", watch)
    finally:
        assert supervisor.stdin is not None
        supervisor.stdin.close()
        supervisor.wait()
    if status != 0:
        raise _failure(stage, command, folder / "output", status)


def _environment() -> dict[str, str]:
    """The stage's environment: ours without Prefect's, importing from this project, telling nobody."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return kept | {
        "PYTHONPATH": str(PROJECT),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _watch(supervisor: "subprocess.Popen[bytes]", metrics: Path, watch: Watch) -> int:
    """Forward new metrics until the process ends; returns its exit status."""
    position, next_check = 0, time.monotonic() + CANCEL_CHECK_S
    while True:
        status = supervisor.poll()
        position = _forward(metrics, position, watch.on_metrics)
        if status is not None:
            return status
        if time.monotonic() >= next_check:
            if watch.cancelled():
                raise StageCancelled("The run was cancelled; the stage's processes were ended.")
            next_check = time.monotonic() + CANCEL_CHECK_S
        with contextlib.suppress(subprocess.TimeoutExpired):
            supervisor.wait(POLL_S)


def _forward(path: Path, position: int, on_metrics: Callable[[Mapping[str, float]], None]) -> int:
    """Hand over the whole lines after byte `position`; returns where they end."""
    if not path.exists():
        return position
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) < position:
            position = 0
        file.seek(position)
        lines = file.read().split(b"\n")[:-1]
    for line in lines:
        on_metrics(json.loads(line))
    return position + sum(len(line) + 1 for line in lines)


def _message_of(refusal: Path) -> str:
    try:
        return str(json.loads(refusal.read_text())["message"])
    except json.JSONDecodeError:
        return f"It could not write why: the disk under {refusal.parent} is full. Free space there and run again."


def _failure(stage: Stage, command: Sequence[str], output: Path, status: int) -> Exception:
    refusal = output / "error.json"
    if refusal.exists():
        return InputError(f"{stage.name}: {_message_of(refusal)}")
    log = output / "log.txt"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
    hint = " It was killed: most often for want of memory." if status == OUT_OF_MEMORY_STATUS else ""
    return StageFailed(
        f"{stage.name} ended with status {status}.{hint}\n--- last lines of {log}\n{tail}\n"
        f"--- to run it again by hand\n{shlex.join(command)}"
    )
