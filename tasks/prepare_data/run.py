"""Records from anywhere in one form: cleaned, without duplicates, split into train and test, as Parquet.

python -m tasks.prepare_data.run --config config.json --input sft=FILE --input preferences=FILE --output DIR
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tasks.errors import InputError
from tasks.prepare_data.config import Kind, PrepareDataConfig, SourceConfig
from tasks.prepare_data.records import TEXT_COLUMNS, BadRecord, Record, canonical, check_columns, normalise, rename
from tasks.prepare_data.sources import read_source
from tasks.prepare_data.split import SIDES, Side, fingerprint, side_of
from tasks.prepare_data.tables import TableWriter
from tasks.prepare_data.tally import Tally
from tasks.program import run_program

PEEKED_RECORDS = 100
CACHE_FOLDER = "checkpoints/datasets_cache"


def main(config: PrepareDataConfig, inputs: Mapping[str, Path], output: Path) -> None:
    """Fill `output` with a `data` artifact: KIND_train.parquet and KIND_test.parquet of every kind, and report.json."""
    for name, path in config.sources().items():
        if name not in inputs:
            raise InputError(f"--input {name}=PATH is missing: give the local file or folder of {path}.")
    preparation = Preparation(config, inputs, output)
    try:
        report = preparation.run()
    finally:
        shutil.rmtree(preparation.cache, ignore_errors=True)
    (output / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False))
    for name, value in report.items():
        if name.endswith("_records"):
            print(f"{name}: {value}")


class Preparation:
    """One run of the stage: what it was given, and which prompts it has met so far."""

    def __init__(self, config: PrepareDataConfig, inputs: Mapping[str, Path], output: Path) -> None:
        self.config = config
        self.inputs = inputs
        self.output = output
        self.cache = output / CACHE_FOLDER
        self._prompts: dict[tuple[Kind, Side], set[bytes]] = {}

    def run(self) -> dict[str, Any]:
        """Write the tables of every source; returns the report."""
        report: dict[str, Any] = {}
        for kind, source in self.config.given().items():
            report |= self._prepare(kind, source)
            report[f"{kind}_test_prompts_also_in_train"] = self._num_leaked(kind)
        return report

    def _prepare(self, kind: Kind, source: SourceConfig) -> dict[str, Any]:
        """Write the tables of one source, and those of the prompts where this source's prompts serve as such."""
        tally = Tally()
        lends_prompts = kind == self.config.prompts_lender
        written: tuple[Kind, ...] = (kind, "prompts") if lends_prompts else (kind,)
        tables = {(name, side): self._table(name, side) for name in written for side in SIDES}
        with ExitStack() as stack:
            for table in tables.values():
                stack.enter_context(table)
            for side, record in self._records(kind, source, tally):
                tables[kind, side].write(record)
                if self._is_new_prompt(kind, side, record) and lends_prompts:
                    tables["prompts", side].write({"prompt": record["prompt"]})
        tally.check(kind, self.config.max_bad_share)
        for (name, side), table in tables.items():
            if table.num_records == 0:
                raise self._empty_table(name, side, source, tally)
        return tally.report(kind) | _describe(tables)

    def _records(self, kind: Kind, source: SourceConfig, tally: Tally) -> Iterator[tuple[Side, Record]]:
        """The good records of a source, each with the side it belongs to."""
        if source.test_path is None:
            for record in self._good_records(kind, kind, source, tally):
                yield side_of(canonical(record["prompt"]), self.config.test_share, self.config.split_salt), record
            return
        for record in self._good_records(kind, kind, source, tally):
            yield "train", record
        for record in self._good_records(kind, f"{kind}_test", source, tally):
            yield "test", record

    def _good_records(self, kind: Kind, name: str, source: SourceConfig, tally: Tally) -> Iterator[Record]:
        """The records of the input `name` in their one form, without unusable ones and repetitions."""
        seen: set[bytes] = set()
        for raw in _checked(kind, source, read_source(source, self.inputs.get(name), self.cache)):
            tally.num_read += 1
            try:
                record = normalise(kind, rename(raw, source.columns), source.separator)
                tally.check_form(record)
            except BadRecord as error:
                tally.reject(str(error), raw)
                continue
            key = fingerprint(json.dumps(record, sort_keys=True, default=str))
            if key in seen:
                tally.num_duplicates += 1
                continue
            seen.add(key)
            yield record

    def _is_new_prompt(self, kind: Kind, side: Side, record: Record) -> bool:
        prompts = self._prompts.setdefault((kind, side), set())
        size_before = len(prompts)
        prompts.add(fingerprint(canonical(record["prompt"])))
        return len(prompts) > size_before

    def _num_leaked(self, kind: Kind) -> int:
        """Number of distinct test prompts of `kind` that also stand in its training part."""
        return len(self._prompts[kind, "train"] & self._prompts[kind, "test"])

    def _table(self, kind: Kind, side: Side) -> TableWriter:
        return TableWriter(self.output / f"{kind}_{side}.parquet", TEXT_COLUMNS[kind])

    def _empty_table(self, kind: Kind, side: Side, source: SourceConfig, tally: Tally) -> InputError:
        return InputError(
            f"{kind}: no record is left for the {side} part of {source.path} ({tally.num_read} read, "
            f"{tally.num_duplicates} duplicates, {tally.rejected.total()} unusable; test_share "
            f"{self.config.test_share:g}). Give more records, another test_share, or a test_path of its own."
        )


def _checked(kind: Kind, source: SourceConfig, records: Iterator[Record]) -> Iterable[Record]:
    """At most `max_records` of the records, after a look at their columns."""
    peeked = list(islice(records, PEEKED_RECORDS))
    if peeked:
        check_columns(kind, source, {name for record in peeked for name in record})
    return islice(chain(peeked, records), source.max_records)


def _describe(tables: Mapping[tuple[Kind, Side], TableWriter]) -> dict[str, Any]:
    """Number of records and lengths of texts of every table."""
    report: dict[str, Any] = {}
    for (kind, side), table in tables.items():
        report[f"{kind}_{side}_records"] = table.num_records
        report |= {f"{kind}_{side}_{name}": lengths for name, lengths in table.lengths().items()}
    return report


if __name__ == "__main__":
    run_program(main, PrepareDataConfig)
