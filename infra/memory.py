"""The memory that this process and all it started take together."""

import contextlib
import threading
from types import TracebackType

import psutil


class PeakMemory:
    """Largest sum of resident memory of the process tree while the block runs, in bytes, looked at twice a second.

    A page that several processes share counts once for each of them: the figure is an upper bound.
    """

    def __init__(self, interval_s: float = 0.5) -> None:
        self.peak_bytes = 0
        self._interval_s = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        root = psutil.Process()
        while not self._done.is_set():
            self.peak_bytes = max(self.peak_bytes, _tree_bytes(root))
            self._done.wait(self._interval_s)


def _tree_bytes(root: psutil.Process) -> int:
    total = 0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total
