"""A stage's checkpoints in a store, from which an attempt on another machine goes on.

    checkpoints/<stage>/<key>/step-N/<attempt>/...      files, under their names in the stage's output
    checkpoints/<stage>/<key>/step-N/manifest.json      written last: without it there is no checkpoint

What counts as a whole checkpoint on the disk: OUTPUT/checkpoints/step-N, which gets its name when it is whole, and a
Hugging Face trainer's checkpoint-N with its trainer_state.json, which is written last.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from pydantic import Field

from tasks.storage.manifest import (
    MANIFEST,
    DamagedArtifact,
    Manifest,
    content_digest,
    describe_folder,
    fitting_chunk_bytes,
)
from tasks.storage.stores import Store
from tasks.storage.transfer import bring, upload

FOLDER = "checkpoints"
KIND = "checkpoint"
STEP_NAME = re.compile(r"(step|checkpoint)-(?P<step>\d+)")
TRAINER_STATE = "trainer_state.json"
METRICS = "metrics.jsonl"
STATE = "state.json"
NO_CODE = {".safetensors", ".json", ".jsonl", ".jinja", ".txt", ".model", ".md"}

logger = logging.getLogger(__name__)


class CheckpointManifest(Manifest):
    """One checkpoint in a store, and the earlier ones that a stage which goes on from it reads too."""

    step: int = Field(ge=0)
    needs: list[int] = Field(default_factory=list)

    @property
    def folder(self) -> str:
        return f"{stored_folder(self.stage, self.key)}/step-{self.step}"


@dataclass(frozen=True)
class Trail:
    """The checkpoints of one stage with one key: where in the store, and in which output folder."""

    store: Store
    stage: str
    key: str
    code_version: str
    output: Path


def stored_folder(stage: str, key: str) -> str:
    """Where in a store the checkpoints of `stage` under `key` lie."""
    return f"{FOLDER}/{stage}/{key}"


def local_checkpoints(output: Path) -> dict[int, Path]:
    """The folder of each whole checkpoint in OUTPUT, by step."""
    found = {}
    for folder in (output / FOLDER).glob("*-*"):
        name = STEP_NAME.fullmatch(folder.name)
        if name and (name[1] == "step" or _is_json(folder / TRAINER_STATE)):
            found[int(name["step"])] = folder
    return found


def needs_of(folder: Path) -> list[int]:
    """The steps of the earlier checkpoints without which this one is of no use; PPO's use_best has one."""
    return list(json.loads((folder / STATE).read_text()).get("needs", [])) if (folder / STATE).is_file() else []


def snapshot(output: Path, checkpoint: Path, target: Path) -> None:
    """Make the folder `target` of hard links to the checkpoint's files, which then outlive their removal in OUTPUT.

    Raises FileNotFoundError if the checkpoint is removed in between.
    """
    shutil.rmtree(target, ignore_errors=True)
    step = checkpoint.name.rpartition("-")[2]
    averages = (output / FOLDER).glob(f"averages-{step}.safetensors")
    paths = [path for path in checkpoint.rglob("*") if path.is_file() and _is_safe(path.name)]
    for path in (*paths, *averages):
        place = target / path.relative_to(output)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, place)
    if _is_trainers(checkpoint) and (output / METRICS).is_file():
        shutil.copyfile(output / METRICS, target / METRICS)


def publish_checkpoint(trail: Trail, folder: Path, step: int, needs: Collection[int]) -> None:
    """Upload a snapshot, then its manifest, in place of what is there of this step."""
    chunk_bytes = fitting_chunk_bytes(max(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
    files = describe_folder(folder, chunk_bytes=chunk_bytes)
    manifest = CheckpointManifest(
        stage=trail.stage,
        key=trail.key,
        attempt=content_digest(KIND, files)[:16],
        kind=KIND,
        config={},
        inputs={},
        files=files,
        chunk_bytes=chunk_bytes,
        code_version=trail.code_version,
        libraries={},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        step=step,
        needs=sorted(needs),
    )
    upload(trail.store, folder, manifest)
    trail.store.write(f"{manifest.folder}/{MANIFEST}", manifest.to_json())


def stored_steps(trail: Trail) -> list[int]:
    """The steps of the checkpoints in the store, newest first."""
    pattern = re.compile(rf"{stored_folder(trail.stage, trail.key)}/step-(\d+)/{MANIFEST}")
    found = (pattern.fullmatch(file.name) for file in trail.store.files(f"{stored_folder(trail.stage, trail.key)}/"))
    return sorted((int(name[1]) for name in found if name), reverse=True)


def fetch_newest(trail: Trail, scratch: Path) -> set[int]:
    """Put the store's newest whole checkpoint, with what it needs, into OUTPUT, unless what is there is as new.

    One that is damaged or gone is passed over for the next older; returns the steps of those.
    """
    here = max(local_checkpoints(trail.output), default=-1)
    damaged: set[int] = set()
    for step in stored_steps(trail):
        if step <= here:
            break
        try:
            for needed in [*_read_manifest(trail, step).needs, step]:
                _fetch(trail, needed, scratch / f"step-{needed}")
        except DamagedArtifact as error:
            logger.warning("%s: the stored checkpoint of step %d is passed over: %s", trail.stage, step, error)
            damaged.add(step)
            continue
        logger.info("%s goes on from the checkpoint of step %d in %s", trail.stage, step, trail.store.uri)
        break
    return damaged


def remove_checkpoints(trail: Trail, before: int | None = None, keep: Collection[int] = ()) -> None:
    """Remove the stored checkpoints, or those before a step, but not those of the steps in `keep`; manifests first."""
    prefix = f"{stored_folder(trail.stage, trail.key)}/"

    def goes(name: str) -> bool:
        step = int(name.removeprefix(f"{prefix}step-").partition("/")[0])
        return step not in keep and (before is None or step < before)

    names = [file.name for file in trail.store.files(f"{prefix}step-") if goes(file.name)]
    trail.store.delete(name for name in names if name.endswith(f"/{MANIFEST}"))
    trail.store.delete(name for name in names if not name.endswith(f"/{MANIFEST}"))
    for write in list(trail.store.unfinished(f"{prefix}step-")):
        if goes(write.name):
            trail.store.abort(write)


def _fetch(trail: Trail, step: int, scratch: Path) -> None:
    """Bring one checkpoint into OUTPUT; its folder, which makes it whole, comes last."""
    if step in local_checkpoints(trail.output):
        return
    manifest = _read_manifest(trail, step)
    bring(trail.store, manifest, scratch)
    for path in sorted((*scratch.glob(f"{FOLDER}/*"), *scratch.glob(METRICS)), key=Path.is_dir):
        target = trail.output / path.relative_to(scratch)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        path.replace(target)
    shutil.rmtree(scratch)


def _read_manifest(trail: Trail, step: int) -> CheckpointManifest:
    uri = f"{trail.store.uri}/{stored_folder(trail.stage, trail.key)}/step-{step}"
    data = trail.store.read(f"{stored_folder(trail.stage, trail.key)}/step-{step}/{MANIFEST}")
    if data is None:
        raise DamagedArtifact(uri, MANIFEST, "it is missing")
    manifest = CheckpointManifest.from_json(data, uri)
    for name in manifest.files:
        if not _is_safe(PurePosixPath(name).name) or PurePosixPath(name).parts[0] not in (FOLDER, METRICS):
            raise DamagedArtifact(uri, name, "no checkpoint of ours has such a file, which might hold code")
    return manifest


def _is_safe(name: str) -> bool:
    """Whether a checkpoint's file of this name is published and fetched: nothing that is unpickled into code."""
    return PurePosixPath(name).suffix in NO_CODE


def _is_trainers(checkpoint: Path) -> bool:
    return checkpoint.name.startswith("checkpoint-")


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return True
