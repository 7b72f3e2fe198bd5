"""Stands between the runner and a stage's command, so that no process of ours outlives its task.

    python -m tasks.supervisor --log FILE --grace-s 8 [--usage FILE] -- COMMAND ...

Standard input is the lifeline: a pipe that the runner holds open. When it closes, however the runner ended, or
when SIGTERM comes, the command's process group gets SIGTERM, then after the grace time every descendant SIGKILL.
The command has a lifeline of the same sort, which the supervisor holds: see tasks/lifeline.py.
As a sub-reaper the supervisor inherits orphans, so that ranks whose launcher died are found too.
Exit status: the command's; 128 + signal if a signal ended it. The usage file says how much memory the largest process
took.
"""

import argparse
import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tasks.lifeline import LIFELINE, identity

PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.1


class _Stop:
    """Remembers that SIGTERM came."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._request)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _request(self, *_: object) -> None:
        self.requested = True


def main() -> int:
    """Run the command to its end, or end it; returns the exit status."""
    arguments = _parse()
    stop = _Stop()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    lifeline, _held_open = os.pipe()
    with arguments.log.open("ab") as log:
        command = subprocess.Popen(
            arguments.command,
            stdin=lifeline,
            stdout=log,
            stderr=log,
            env=os.environ | {LIFELINE: identity(lifeline)},
            start_new_session=True,
        )
    os.close(lifeline)
    while not _reaped(command) and not stop.requested and not _lifeline_closed(POLL_S):
        pass
    _end_descendants(command, 0.0 if command.returncode is not None else arguments.grace_s)
    if arguments.usage:
        _write_usage(arguments.usage)
    status = command.returncode if command.returncode is not None else -signal.SIGKILL
    return status if status >= 0 else 128 - status


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run a command that ends when its lifeline on stdin closes.")
    parser.add_argument("--log", type=Path, required=True, help="file that the command's output is appended to")
    parser.add_argument("--grace-s", type=float, required=True, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("--usage", type=Path, help="file for the peak memory, JSON")
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def _write_usage(path: Path) -> None:
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # of those below them too
    with contextlib.suppress(OSError):  # a full disk: the command's status counts
        path.write_text(json.dumps({"peak_rss_bytes": peak}))


def _lifeline_closed(timeout_s: float) -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], timeout_s)
    return bool(readable) and os.read(sys.stdin.fileno(), 4096) == b""


def _reaped(command: subprocess.Popen[bytes]) -> bool:
    """Whether the command has ended; collects ended orphans on the way."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == command.pid:
                command.returncode = os.waitstatus_to_exitcode(status)
    return command.returncode is not None


def _end_descendants(command: subprocess.Popen[bytes], grace_s: float) -> None:
    """SIGTERM to the command's group, then SIGKILL to whatever is left of our descendants."""
    if command.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while True:
        _reaped(command)
        descendants = list(_descendants(os.getpid()))
        if not descendants:
            return
        if time.monotonic() >= deadline:
            for pid in descendants:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S / 2)


def _descendants(ancestor: int) -> Iterator[int]:
    for child in _children(ancestor):
        yield child
        yield from _descendants(child)


def _children(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (thread / "children").read_text().split())
    return children


if __name__ == "__main__":
    sys.exit(main())
