"""A disk that is full while something is published, fetched or kept: said clearly, nothing half-written used after."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.artifacts import Artifact, Store, fetch, find, publish, store_at
from tasks.errors import InputError
from tasks.runner import Stage, Watch, Workplace, run_stage
from tasks.storage.cache import LIMIT_VARIABLE
from tests.chaos.growing_stage import GrowingConfig
from tests.chaos.servers import variables_set
from tests.chaos.transfers import STAGE, contents

SMALL_BYTES, ENOUGH_BYTES = 8 * 2**20, 64 * 2**20
FILE_BYTES = 3 * 2**20
CACHE_LIMIT_BYTES = 2 * FILE_BYTES + 2**20
NUM_FILES = 4
KEY = "0" * 32
GROWING = Stage("growing", "tests.chaos.growing_stage", needs={})


def why_not() -> str | None:
    """Why no small disk can be mounted here; None if one can."""
    return None if os.geteuid() == 0 else "mounting a small tmpfs needs root"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of SMALL_BYTES at `folder`."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def make_space(folder: Path) -> None:
    """Let the file system at `folder` grow to ENOUGH_BYTES."""
    subprocess.run(["mount", "-o", f"remount,size={ENOUGH_BYTES}", str(folder)], check=True)


def fill_while_publishing(folder: Path) -> list[str]:
    """Violations seen when the disk under a file:// store is full."""
    source = _make_source(folder / "source")
    with small_disk(folder / "disk") as disk:
        store = store_at(f"file://{disk}/store")

        def send() -> object:
            return publish(store, source, stage=STAGE, key=KEY, kind="model", config={}, inputs={})

        violations = _refusal_of(send)
        if find(store, STAGE, KEY) is not None:
            violations.append("an artifact is there after a publish that failed")
        make_space(disk)
        send()
        artifact = find(store, STAGE, KEY)
        assert artifact is not None
        if contents(fetch(store, artifact, folder / "cache")) != contents(source):
            violations.append("after space was made, other bytes were published")
        return violations


def fill_while_fetching(folder: Path) -> list[str]:
    """Violations seen when the disk under the cache is full."""
    source = _make_source(folder / "source")
    store = store_at(f"file://{folder}/store")
    artifact = publish(store, source, stage=STAGE, key=KEY, kind="model", config={}, inputs={})
    with small_disk(folder / "disk") as disk:
        violations = _refusal_of(lambda: fetch(store, artifact, disk / "cache"))
        if (disk / "cache" / artifact.digest).exists():
            violations.append("the cache holds an entry after a fetch that failed")
        make_space(disk)
        if contents(fetch(store, artifact, disk / "cache")) != contents(source):
            violations.append("after space was made, other bytes were delivered")
        return violations


def fill_while_training(folder: Path) -> list[str]:
    """Violations seen when the disk under the work folder is full while checkpoints are written."""
    store = store_at(f"file://{folder}/store")
    with small_disk(folder / "disk") as disk:
        place = Workplace(store, disk / "work", folder / "none.yaml")

        def train() -> str:
            artifact = run_stage(GROWING, GrowingConfig(), {}, "model", place, WATCH).artifact
            return (fetch(store, artifact, folder / "cache") / "course").read_text()

        violations = _refusal_of(train)
        make_space(disk)
        steps = [int(line.split()[0]) for line in train().splitlines()]
        if steps != list(range(1, GrowingConfig().num_steps + 1)):
            violations.append(f"after space was made, the course went on wrongly: {steps}")
        return violations


def fill_cache(folder: Path) -> list[str]:
    """Violations seen when the cache reaches its limit, and when the disk under it is full before that."""
    store = store_at(f"file://{folder}/store")
    sources = [_make_source(folder / f"source-{number}", num_files=1) for number in range(3)]
    artifacts = [
        publish(store, source, stage=STAGE, key=f"{number:032x}", kind="model", config={}, inputs={})
        for number, source in enumerate(sources)
    ]
    with small_disk(folder / "disk") as disk:

        def wrong(*numbers: int) -> list[str]:
            return [
                f"artifact {number}: {fault}"
                for number in numbers
                if (fault := _fault_of(store, artifacts[number], disk / "cache", sources[number]))
            ]

        def kept() -> list[bool]:
            return [(disk / "cache" / artifact.digest).exists() for artifact in artifacts]

        with variables_set({LIMIT_VARIABLE: str(CACHE_LIMIT_BYTES / 2**30)}):
            violations = wrong(0, 1, 0, 2)
            if kept() != [True, False, True]:
                violations.append(f"not the least recently used was evicted: {kept()}")
        with variables_set({LIMIT_VARIABLE: "1"}):
            violations += _refusal_of(lambda: fetch(store, artifacts[1], disk / "cache"))
            if kept() != [True, False, True]:
                violations.append(f"after a fetch that failed the cache holds {kept()}")
            violations += wrong(0, 2)
        with variables_set({LIMIT_VARIABLE: str(CACHE_LIMIT_BYTES / 2**30)}):
            return violations + wrong(1, 0, 2, 1)


def _fault_of(store: Store, artifact: Artifact, cache: Path, source: Path) -> str | None:
    """What is wrong with fetching what was published from `source`; None for nothing."""
    try:
        return None if contents(fetch(store, artifact, cache)) == contents(source) else "other bytes were delivered"
    except InputError as error:
        return str(error)


WATCH = Watch(lambda record: None, lambda: False)
CHECKS: dict[str, Callable[[Path], list[str]]] = {
    "publish": fill_while_publishing,
    "fetch": fill_while_fetching,
    "cache": fill_cache,
    "checkpoint": fill_while_training,
}


def _refusal_of(work: Callable[[], object]) -> list[str]:
    """What is wrong with how the work was refused on a full disk."""
    try:
        work()
    except InputError as error:
        return [] if "full" in str(error) else [f"the refusal does not speak of a full disk: {error}"]
    except Exception as error:
        return [f"expected an InputError that speaks of a full disk, got {type(error).__name__}: {error}"]
    return ["a full disk was not noticed"]


def _make_source(folder: Path, num_files: int = NUM_FILES) -> Path:
    folder.mkdir()
    for number in range(num_files):
        (folder / f"{number}.bin").write_bytes(os.urandom(FILE_BYTES))
    return folder
