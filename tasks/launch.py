"""A stage's command as a process: started under the supervisor, watched, and ended with all that it started."""

import contextlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.errors import InputError
from tasks.lifeline import MARK, end_marked

PROJECT = Path(__file__).resolve().parent.parent
POLL_S = 0.2
CANCEL_CHECK_S = 2.0
GRACE_S = 7.0  # with a check for cancelling before it: the last process is gone after 10 s
LOG_TAIL_LINES = 30
KILLED_STATUS = 128 + signal.SIGKILL
VMSTAT = Path("/proc/vmstat")
USAGE_FILE = "usage.json"  # beside the output

logger = logging.getLogger(__name__)


def _says_nothing(address: str, tail: str) -> None:
    """Nobody wants to know where the log is."""


@dataclass(frozen=True)
class Watch:
    """What the caller wants to hear, and to say: each new metrics record; whether to stop; a failed attempt's log.

    Of the log it hears the address and the last lines.
    """

    on_metrics: Callable[[Mapping[str, float]], None]
    cancelled: Callable[[], bool]
    on_log: Callable[[str, str], None] = _says_nothing


class StageFailed(RuntimeError):
    """A stage's process ended in error; carries the command and the last lines of its log."""


class StageCancelled(RuntimeError):
    """The caller asked for the end of the stage."""


class OutOfMemory(InputError):
    """The stage asked for more memory than there is; `device` says of which sort."""

    def __init__(self, message: str, device: Literal["cpu", "cuda"]) -> None:
        super().__init__(message)
        self.device: Literal["cpu", "cuda"] = device


def launch(stage: str, command: Sequence[str], output: Path, watch: Watch) -> None:
    """Run the command under the supervisor until it ends.

    Raises InputError for what it refuses, OutOfMemory, StageFailed for any other failure, StageCancelled if
    `watch.cancelled` says so. However this ends, no process of the command is left.
    """
    end_marked(output)
    log, usage, grace = output / "log.txt", output.with_name(USAGE_FILE), str(GRACE_S)
    usage.unlink(missing_ok=True)
    num_killed = _killed_for_memory()
    logger.info("%s: %s", stage, shlex.join(command))
    files = ["--log", str(log), "--usage", str(usage)]
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "tasks.supervisor", *files, "--grace-s", grace, "--", *command],
        stdin=subprocess.PIPE,
        cwd=PROJECT,
        env=environment(output),
        start_new_session=True,
    )
    try:
        status = _watch(supervisor, output / "metrics.jsonl", watch)
    finally:
        assert supervisor.stdin is not None
        supervisor.stdin.close()
        if supervisor.wait() < 0:
            end_marked(output)
    if status != 0:
        raise _failure(stage, command, output, status, was_killed_for_memory=_killed_for_memory() > num_killed)


def peak_memory(output: Path) -> int | None:
    """Resident memory, in bytes, of the largest process of the last launch into `output`; None where nobody knows."""
    try:
        return int(json.loads(output.with_name(USAGE_FILE).read_text())["peak_rss_bytes"])
    except (OSError, ValueError, KeyError):
        return None


def environment(output: Path) -> dict[str, str]:
    """The stage's environment: ours without Prefect's, importing from this project, telling nobody."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return kept | {
        MARK: str(output),
        "PYTHONPATH": str(PROJECT),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }


def tail_of(log: Path) -> str:
    """The last lines of a log; empty where there is none."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]) if log.is_file() else ""


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


def _killed_for_memory() -> int:
    """How many processes of this machine the kernel has killed for want of memory; 0 where it does not say."""
    with contextlib.suppress(OSError):
        for name, count in (line.split() for line in VMSTAT.read_text().splitlines()):
            if name == "oom_kill":
                return int(count)
    return 0


def _failure(stage: str, command: Sequence[str], output: Path, status: int, was_killed_for_memory: bool) -> Exception:
    refusal = output / "error.json"
    if refusal.exists():
        return _refusal(stage, refusal)
    tail = tail_of(output / "log.txt")
    was_killed = status in (KILLED_STATUS, -signal.SIGKILL) or "SIGKILL" in tail
    if was_killed and was_killed_for_memory:
        return OutOfMemory(
            f"{stage}: The memory does not suffice: the kernel killed a process of the stage. "
            "Lower the stage's batch size or token budget, or run it where there is more.",
            device="cpu",
        )
    hint = " It was killed." if was_killed else ""
    return StageFailed(
        f"{stage} ended with status {status}.{hint}\n--- last lines of {output / 'log.txt'}\n{tail}\n"
        f"--- to run it again by hand\n{shlex.join(command)}"
    )


def _refusal(stage: str, path: Path) -> InputError:
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError:
        disk = f"the disk under {path.parent} is full. Free space there and run again."
        return InputError(f"{stage}: It could not write why: {disk}")
    message = f"{stage}: {content['message']}"
    device = content.get("out_of_memory")
    return OutOfMemory(message, device) if device else InputError(message)
