"""The processes of a run under test, found by a variable that they inherit, whoever their parent is now."""

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MARK = "CHAOS_MARK"
GONE_WITHIN_S = 10.0
POLL_S = 0.05


@dataclass(frozen=True)
class Process:
    """A live process, told from a later one with the same number by when it started."""

    pid: int
    parent: int
    started: int
    command: tuple[str, ...]

    def says(self, word: str) -> bool:
        """Whether one of the words of its command line is `word`."""
        return word in self.command

    def is_alive(self) -> bool:
        now = _read(self.pid)
        return now is not None and now.started == self.started


def marked(mark: str) -> list[Process]:
    """Every live process that inherited CHAOS_MARK=`mark`."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(_read(int(folder.name)))
    return [process for process in found if process is not None]


def below(ancestor: Process, processes: Iterable[Process]) -> list[Process]:
    """Those of `processes` that descend from `ancestor`."""
    processes = list(processes)
    children = [process for process in processes if process.parent == ancestor.pid]
    return [found for child in children for found in (child, *below(child, processes))]


def seconds_until_gone(processes: Iterable[Process], limit_s: float = GONE_WITHIN_S) -> float | None:
    """How long it took until the last of them had ended; None if one is alive after `limit_s`."""
    started = time.monotonic()
    while any(process.is_alive() for process in processes):
        if time.monotonic() - started > limit_s:
            return None
        time.sleep(POLL_S)
    return time.monotonic() - started


def _read(pid: int) -> Process | None:
    """The process as /proc shows it; None for one that has ended, collected by its parent or not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    except OSError:
        return None
    state, parent, started = fields[0], int(fields[1]), int(fields[19])
    return None if state in "ZX" else Process(pid, parent, started, tuple(command))
