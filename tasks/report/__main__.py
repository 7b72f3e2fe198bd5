"""The page of a run, or of the last runs of a pipeline, as a file that a browser shows.

    python -m tasks.report --store s3://bucket/prefix                  # the last run that ended
    python -m tasks.report 3f2a --store s3://bucket/prefix             # the beginning of a run's id
    python -m tasks.report --compare 20 --pipeline nightly --store ...

A run that was killed before its page was written gets one now, from its record.
"""

import argparse
import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from tasks.errors import InputError
from tasks.report.publishing import make_page
from tasks.report.runs_page import runs_page
from tasks.retention.runs import RunRecord
from tasks.retention.survey import read_runs
from tasks.storage.stores import Store, store_at

FOLDER = Path(".local") / "report"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 if there is no such run or the store was refused."""
    arguments = _parse(argv)
    try:
        if not arguments.store:
            raise InputError("No store is named. Give --store s3://bucket/prefix, or set $ALIGNMENT_STORE.")
        store = store_at(arguments.store)
        records = _records(store, arguments.pipeline)
        if arguments.compare is None:
            name, page = _one(store, records, arguments.run)
        else:
            name, page = _several(store, records, arguments.compare)
    except (InputError, ConnectionError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    path = (arguments.output or FOLDER / name).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    print(path)
    if not arguments.no_open:
        webbrowser.open(path.as_uri())
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Show the page of a run, or compare the last runs of a pipeline.")
    parser.add_argument("run", nargs="?", help="the beginning of the run's id; default: the last run that ended")
    parser.add_argument("--compare", type=int, metavar="N", help="compare the last N runs of the pipeline")
    parser.add_argument("--pipeline", help="the pipeline's name; default: that of the last run")
    parser.add_argument("--store", default=os.environ.get("ALIGNMENT_STORE"), help="default: $ALIGNMENT_STORE")
    parser.add_argument("--output", type=Path, help=f"file to write; default: in {FOLDER}")
    parser.add_argument("--no-open", action="store_true", help="only write the file and print its path")
    return parser.parse_args(argv)


def _records(store: Store, pipeline: str | None) -> list[RunRecord]:
    """The pipeline's runs, or all, the oldest first; raises InputError where there are none."""
    known = [run.record for run in read_runs(store)]
    records = [record for record in known if pipeline in (None, record.pipeline)]
    if not records:
        there = ", ".join(sorted({record.pipeline for record in known})) or "no runs at all"
        wanted = "run" if pipeline is None else f"run of the pipeline {pipeline}"
        raise InputError(f"{store.uri} has no {wanted}; it has {there}. Name another store or pipeline.")
    return records


def _one(store: Store, records: Sequence[RunRecord], run: str | None) -> tuple[str, str]:
    """A file's name and the page of the run that is meant."""
    if run is None:
        record = next((record for record in reversed(records) if record.ended), records[-1])
    else:
        found = [record for record in records if record.run.startswith(run)]
        if len(found) != 1:
            last = ", ".join(record.run for record in records[-5:])
            raise InputError(f"{len(found)} runs begin with '{run}', expected one. The last runs are {last}.")
        [record] = found
    kept = store.read(record.page_name) if record.ended else None
    return Path(record.page_name).name, kept.decode() if kept else make_page(store, record)


def _several(store: Store, records: Sequence[RunRecord], number: int) -> tuple[str, str]:
    """A file's name and the page that compares the last runs of one pipeline."""
    if number < 1:
        raise InputError(f"--compare {number}: expected at least 1 run.")
    pipeline = records[-1].pipeline
    chosen = [record for record in records if record.pipeline == pipeline][-number:]
    return f"{Path(chosen[-1].name).parent.name}-runs.html", runs_page(pipeline, chosen, store.uri)


if __name__ == "__main__":
    sys.exit(main())
