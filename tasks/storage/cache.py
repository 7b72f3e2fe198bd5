"""What was fetched, kept for the next stage that needs it: one entry per digest, shared by all processes here.

    <digest>/ or <digest>.partial/   the entry, whole or on its way
    <digest>.lock                    held by the one who makes, checks or evicts it; its time is that of the last use
    <digest>.used                    held, shared, by everybody who uses it

The kernel frees both locks however their holder ends.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tasks.errors import InputError
from tasks.storage.transfer import PARTIAL

LIMIT_VARIABLE = "ALIGNMENT_CACHE_GIB"
SHARE_OF_FREE_DISK = 0.5
LOCK, USED = ".lock", ".used"

logger = logging.getLogger(__name__)


@contextmanager
def in_use(target: Path, size_bytes: int, make: Callable[[Path], None]) -> Iterator[Path]:
    """The cache's entry `target` after `make` has made, checked or mended it; it stays while the block runs.

    Entries that nobody uses are evicted, the least recently used first, where its `size_bytes` would go beyond the
    limit.
    """
    with ExitStack() as use:
        with ExitStack() as work:
            _hold(_beside(target, LOCK), fcntl.LOCK_EX, work)
            _hold(_beside(target, USED), fcntl.LOCK_SH, use)
            os.utime(_beside(target, LOCK))
            if not target.exists():
                make_room(target.parent, size_bytes)
            make(target)
        yield target


def make_room(folder: Path, size_bytes: int) -> None:
    """Evict the least recently used entries of the cache until `size_bytes` more are within its limit.

    What is in use stays, and so may keep it above.
    """
    sizes = {entry: size_of(entry) for entry in _by_last_use(folder)}
    excess = sum(sizes.values()) + size_bytes - limit_bytes(folder, sum(sizes.values()))
    for entry, size in sizes.items():
        if excess <= 0:
            return
        if size and _evict(entry):
            logger.info("%s was evicted from the cache, %.2f GiB.", entry, size / 2**30)
            excess -= size


def limit_bytes(folder: Path, size_bytes: int) -> float:
    """How large the cache may grow that has `size_bytes` now.

    Without the variable, half of the disk that it has or could have: the rest is for what the stages write.
    """
    given = os.environ.get(LIMIT_VARIABLE)
    if not given:
        return SHARE_OF_FREE_DISK * (shutil.disk_usage(folder).free + size_bytes)
    try:
        limit = float(given) * 2**30
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise InputError(f"{LIMIT_VARIABLE} is {given!r}. Give the cache's size in GiB, such as 100.")
    return limit


def size_of(entry: Path) -> int:
    """Bytes that an entry, whole or partial, takes on the disk."""
    paths = [path for place in (entry, _beside(entry, PARTIAL)) for path in place.rglob("*")]
    return sum(_allocated(path) for path in paths)


def _by_last_use(folder: Path) -> list[Path]:
    """The entries, the one that was not used for the longest time first."""
    locks = sorted(folder.glob(f"*{LOCK}"), key=lambda lock: lock.stat().st_mtime)
    return [lock.with_name(lock.name.removesuffix(LOCK)) for lock in locks]


def _evict(entry: Path) -> bool:
    """Remove an entry, unless somebody works on it or uses it; one half removed is partial, which is mended."""
    partial = _beside(entry, PARTIAL)
    with ExitStack() as locks:
        try:
            _hold(_beside(entry, LOCK), fcntl.LOCK_EX | fcntl.LOCK_NB, locks)
            _hold(_beside(entry, USED), fcntl.LOCK_EX | fcntl.LOCK_NB, locks)
        except BlockingIOError:
            return False
        if entry.exists():
            shutil.rmtree(partial, ignore_errors=True)
            entry.rename(partial)
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _hold(path: Path, how: int, holder: ExitStack) -> None:
    """Lock the file until the holder closes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = holder.enter_context(path.open("a"))
    fcntl.flock(file, how)


def _beside(entry: Path, suffix: str) -> Path:
    return entry.with_name(entry.name + suffix)


def _allocated(path: Path) -> int:
    """0 for a file that another process has just removed."""
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0
