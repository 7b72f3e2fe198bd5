"""A training whose machine dies, and which goes on on another that has nothing but the store."""

import os
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from infra import local_s3
from tasks.artifacts import Store, store_at
from tasks.storage.manifest import MANIFEST
from tests.chaos.chain import write_pipelines
from tests.chaos.kills import weights_of
from tests.chaos.launches import ACKNOWLEDGED
from tests.chaos.machines import Connected, Machine, connected

STAGE = "sft"
GOES_ON = f"{STAGE} goes on from the checkpoint of step"
TIMEOUT_S = 900.0
POLL_S = 0.05


def train_on_two(variables: Mapping[str, str], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """One machine trains until a checkpoint is in the store and dies, the other goes on: figures and violations."""
    store = f"s3://chaos/moved-{os.getpid()}"
    with ExitStack() as stack:
        first, second = (connected(stack, variables, number) for number in (1, 2))
        whole = _Training(first, f"{store}/undisturbed", folder / "undisturbed")
        whole.wait()
        begun = _Training(first, f"{store}/moved", folder / "first")
        stored = begun.wait_for_checkpoint(store_at(f"{store}/moved"))
        _kill_everything_on(first.machine)
        moved = _Training(second, f"{store}/moved", folder / "second")
        moved.wait()
    violations = [f"{one.name} failed: {one.said()[-2000:]}" for one in (whole, moved) if one.process.returncode != 0]
    if begun.process.poll() != -signal.SIGKILL or not stored:
        violations.append(f"the first machine did not die in its training, after a checkpoint: {begun.said()[-2000:]}")
    if GOES_ON not in moved.said():
        violations.append(f"the second machine began anew: {moved.said()[-2000:]}")
    if not violations and weights_of(moved.made()) != weights_of(whole.made()):
        violations.append("the moved training made other weights than the undisturbed one")
    return {"checkpoints_when_it_died": stored}, violations


class _Training:
    """The chain up to SFT on one machine, with a work folder of its own."""

    def __init__(self, where: Connected, store: str, folder: Path) -> None:
        folder.mkdir()
        self.name = folder.name
        self._log = folder / "log.txt"
        settings = {local_s3.STORE_VARIABLE: store, "ALIGNMENT_WORK_DIR": str(folder / "work"), "OMP_NUM_THREADS": "1"}
        words = ("tests.chaos.chain", "--file", str(write_pipelines(folder / "pipelines.yaml")), "--until", STAGE)
        with self._log.open("wb") as log:
            self.process = where.machine.start({**where.environment, **settings}, *words, output=log)

    def wait(self) -> None:
        """Return when it has ended; raises TimeoutExpired if it does not."""
        self.process.wait(TIMEOUT_S)

    def wait_for_checkpoint(self, store: Store) -> int:
        """How many whole checkpoints are in the store once there is one, or the training has ended."""
        found = 0
        while not found and self.process.poll() is None:
            time.sleep(POLL_S)
            found = sum(file.name.endswith(MANIFEST) for file in store.files(f"checkpoints/{STAGE}/"))
        return found

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def made(self) -> str:
        """The address of what it published last."""
        return str(ACKNOWLEDGED.findall(self.said())[-1])


def _kill_everything_on(machine: Machine) -> None:
    """SIGKILL to every process there, until none is left: the machine lost its power."""
    while pids := machine.pids():
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)
