"""Show, and with --delete delete, what no finished run needs of a store.

    python -m tasks.sweep --store s3://bucket/prefix [--keep-runs 5] [--keep-days 30] [--grace-hours 24] [--delete]

Safe at any time, beside running pipelines and other sweeps; tasks/retention/ says why (sweeper.py) and what (waste.py).
"""

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from tasks.errors import InputError
from tasks.retention.claims import SWEEP_LAPSE_S
from tasks.retention.sweeper import delete, show
from tasks.retention.waste import Rules, Waste
from tasks.storage.stores import store_at

DEADLINE_VARIABLE, LONGEST_REQUEST_S = "ALIGNMENT_S3_DEADLINE_S", SWEEP_LAPSE_S / 3
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, also if there is nothing to delete; 2 if the store or an option was refused."""
    arguments = _parse(argv)
    rules = Rules(arguments.keep_runs, timedelta(days=arguments.keep_days), timedelta(hours=arguments.grace_hours))
    try:
        if not arguments.store:
            raise InputError("Which store? Give --store s3://bucket/prefix or file:///folder, or set ALIGNMENT_STORE.")
        with _impatient():
            store = store_at(arguments.store)
        _tell(f"reading {store.uri}")
        waste = delete(store, rules, _tell) if arguments.delete else show(store, rules)
    except (InputError, ConnectionError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    print(describe(waste, arguments.delete))
    return 0


def describe(waste: Sequence[Waste], deleted: bool) -> str:
    """Every key with what is deleted of it and why, and the sums."""
    by_reason = defaultdict(list)
    for each in waste:
        by_reason[each.reason].append(each)
    lines = []
    for reason, found in by_reason.items():
        lines.append(f"{reason}: {len(found)} keys, {_size(found)}")
        lines += [f"  {each.key}  {_amount(each)}" for each in found]
    done = "deleted" if deleted else "could be deleted; --delete does it"
    return "\n".join(
        [*lines, f"{_size(waste)} {done}" if waste else "Nothing to delete: all of it is needed, or young."]
    )


def readable(size_bytes: float) -> str:
    """A size as people read it."""
    for unit in UNITS[:-1]:
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} {UNITS[-1]}"


def _amount(waste: Waste) -> str:
    if waste.unfinished:
        return f"{len(waste.unfinished)} uploads"
    return f"{len(waste.files)} files, {readable(waste.size_bytes)}"


def _size(waste: Sequence[Waste]) -> str:
    return readable(sum(each.size_bytes for each in waste))


@contextmanager
def _impatient() -> Iterator[None]:
    """Stores opened inside give a request up well before others take the sweep that waits for it for dead."""
    before = os.environ.get(DEADLINE_VARIABLE)
    os.environ[DEADLINE_VARIABLE] = str(min(float(before or LONGEST_REQUEST_S), LONGEST_REQUEST_S))
    try:
        yield
    finally:
        os.environ.pop(DEADLINE_VARIABLE)
        if before is not None:
            os.environ[DEADLINE_VARIABLE] = before


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Show or delete what no finished run needs of a store.")
    parser.add_argument("--store", default=os.environ.get("ALIGNMENT_STORE"), help="default: $ALIGNMENT_STORE")
    parser.add_argument("--keep-runs", type=_count, default=5, help="newest completed runs of each pipeline to keep")
    parser.add_argument("--keep-days", type=_amount_of_time, default=30.0, help="runs and artifacts younger are kept")
    parser.add_argument("--grace-hours", type=_amount_of_time, default=24.0, help="whatever is younger is kept")
    parser.add_argument("--delete", action="store_true", help="delete it; without this it is only shown")
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return value


def _amount_of_time(text: str) -> float:
    if not 0 <= (value := float(text)) < 100_000:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return value


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
