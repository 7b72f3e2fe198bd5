"""By what a stage's processes are found, and how each learns that nobody is left to watch over it. Stdlib only.

The supervisor gives the command a pipe as its standard input, which launchers pass on to their ranks, and holds the
other end: when that closes without a word, the supervisor was killed. What is left then ends itself.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "ALIGNMENT_STAGE_OUTPUT"
LIFELINE = "ALIGNMENT_STAGE_LIFELINE"


def identity(descriptor: int) -> str:
    """Of the open file, on this machine."""
    status = os.fstat(descriptor)
    return f"{status.st_dev}:{status.st_ino}"


def hold_lifeline() -> None:
    """End this process, and whatever else works in the same output, once the supervisor is gone.

    Does nothing where standard input is not the lifeline: by hand, or under a launcher that does not pass it on.
    """
    if LIFELINE in os.environ and os.environ[LIFELINE] == identity(0):
        lifeline = os.dup(0)
        with open(os.devnull) as nothing:  # nobody else shall read the pipe
            os.dup2(nothing.fileno(), 0)
        threading.Thread(target=_end_with, args=(lifeline,), name="lifeline", daemon=True).start()


def end_marked(output: Path) -> None:
    """Kill whatever works in `output`, but for this process."""
    while pids := list(_marked(output)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _end_with(lifeline: int) -> None:
    while os.read(lifeline, 4096):
        pass
    if MARK in os.environ:
        end_marked(Path(os.environ[MARK]))
    os.kill(os.getpid(), signal.SIGKILL)


def _marked(output: Path) -> Iterator[int]:
    """The living processes of the stage with this output, told by the environment that they were started with."""
    mark = f"{MARK}={output}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                yield int(folder.name)
