"""The records of one kind, from all its sources into its two tables."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tasks.errors import InputError
from tasks.parts import canonical
from tasks.prepare_data.config import SOURCE_COLUMN, Kind, PrepareDataConfig, SourceConfig
from tasks.prepare_data.records import (
    TEXT_COLUMNS,
    BadRecord,
    Record,
    Text,
    check_columns,
    is_answered,
    normalise,
    rename,
)
from tasks.prepare_data.sources import read_source
from tasks.prepare_data.split import SIDES, Side, fingerprint, side_of
from tasks.prepare_data.tables import Lengths, TableWriter, join_tables
from tasks.prepare_data.tally import Tally

PEEKED_RECORDS = 100
CACHE_FOLDER = "checkpoints/prepare_data"
NAMES_ITS_SOURCE = ("prompts", "ptx")

Table = tuple[Kind, Side]


@dataclass(frozen=True)
class Part:
    """What came of one source: the counts of its records, and the files they stand in until all sources are read."""

    source: SourceConfig
    tally: Tally
    tables: Mapping[Table, TableWriter]


class Preparation:
    """The work on one kind: what it was given, and which records and prompts have come so far."""

    def __init__(self, kind: Kind, config: PrepareDataConfig, inputs: Mapping[str, Path], output: Path) -> None:
        self.kind = kind
        self.config = config
        self.inputs = inputs
        self.output = output
        self.cache = output / CACHE_FOLDER
        written: tuple[Kind, ...] = (kind, "prompts") if self._lends_prompts else (kind,)
        self.tables: list[Table] = [(name, side) for name in written for side in SIDES]
        self._seen: dict[bool, set[bytes]] = {False: set(), True: set()}
        self._prompts: dict[Side, set[bytes]] = {side: set() for side in SIDES}

    def run(self) -> dict[str, Any]:
        """Write the kind's tables, and those of the prompts where its prompts serve as such; returns the report."""
        self.cache.mkdir(parents=True, exist_ok=True)
        parts: list[Part] = []
        for source in self.config.given()[self.kind]:
            parts.append(self._read(source, parts[-1].tally.conversational if parts else None))
        self._check_enough(parts)
        for kind, side in self.tables:
            files = [part.tables[kind, side].path for part in parts if part.tables[kind, side].num_records]
            if files:
                join_tables(files, self.output / f"{kind}_{side}.parquet")
        return {
            **self._report(parts),
            f"{self.kind}_sources": {part.source.data_set: self._report([part]) for part in parts},
            f"{self.kind}_test_prompts_also_in_train": len(self._prompts["train"] & self._prompts["test"]),
        }

    @property
    def _lends_prompts(self) -> bool:
        return self.kind == self.config.prompts_lender

    def _read(self, source: SourceConfig, conversational: bool | None) -> Part:
        """Write one source's records, which are to be conversations, or plain, as those of the sources before it."""
        tally = Tally(conversational=conversational)
        tables = {table: self._writer(source, *table) for table in self.tables}
        with ExitStack() as stack:
            for writer in tables.values():
                stack.enter_context(writer)
            for side, record in self._records(source, tally):
                self._write(source, tally, tables, side, record)
        tally.check(self.kind, source, self.config.max_bad_share)
        return Part(source, tally, tables)

    def _write(
        self, source: SourceConfig, tally: Tally, tables: Mapping[Table, TableWriter], side: Side, record: Record
    ) -> None:
        name = {SOURCE_COLUMN: source.data_set}
        tables[self.kind, side].write(record | name if self.kind in NAMES_ITS_SOURCE else record)
        if not self._is_new_prompt(side, record) or not self._lends_prompts:
            return
        if is_answered(record["prompt"]):
            tally.num_answered += 1
        else:
            tables["prompts", side].write({"prompt": record["prompt"], **name})

    def _records(self, source: SourceConfig, tally: Tally) -> Iterator[tuple[Side, Record]]:
        """The good records of a source, each with the side it belongs to."""
        if source.test_path is None:
            for record in self._good_records(source, tally):
                yield side_of(canonical(_identity(record)), self.config.test_share, self.config.split_salt), record
            return
        for record in self._good_records(source, tally):
            yield "train", record
        for record in self._good_records(source, tally, test=True):
            yield "test", record

    def _good_records(self, source: SourceConfig, tally: Tally, *, test: bool = False) -> Iterator[Record]:
        """The records of a source, or of its test_path, in their one form, without unusable ones and repetitions."""
        path = self.inputs.get(self.config.input_name(self.kind, source, test=test))
        for raw in _checked(self.kind, source, read_source(source, path, self.cache)):
            tally.num_read += 1
            try:
                record = normalise(self.kind, rename(raw, source.columns), source.separator)
                tally.check_form(record)
            except BadRecord as error:
                tally.reject(str(error), raw)
                continue
            key = fingerprint(json.dumps(record, sort_keys=True, default=str))
            if key in self._seen[test]:
                tally.num_duplicates += 1
                continue
            self._seen[test].add(key)
            yield record

    def _is_new_prompt(self, side: Side, record: Record) -> bool:
        size_before = len(self._prompts[side])
        self._prompts[side].add(fingerprint(canonical(_identity(record))))
        return len(self._prompts[side]) > size_before

    def _writer(self, source: SourceConfig, kind: Kind, side: Side) -> TableWriter:
        return TableWriter(self.cache / f"{kind}_{side}.{source.data_set}.parquet", TEXT_COLUMNS[kind])

    def _check_enough(self, parts: Sequence[Part]) -> None:
        """Raise InputError where a source has no record to train on, or a table none at all; held-out ptx may lack."""
        for kind, side in self.tables:
            each_alone = (kind, side) == (self.kind, "train")
            for group in [[part] for part in parts] if each_alone else [parts]:
                found = any(part.tables[kind, side].num_records for part in group)
                if not found and (kind, side) != ("ptx", "test"):
                    raise self._empty_table(kind, side, group)

    def _empty_table(self, kind: Kind, side: Side, parts: Sequence[Part]) -> InputError:
        tally = Tally.joined([part.tally for part in parts])
        return InputError(
            f"{kind}: no record is left for the {side} part of {', '.join(part.source.path for part in parts)} "
            f"({tally.num_read} read, {tally.num_duplicates} duplicates, {tally.rejected.total()} unusable; test_share "
            f"{self.config.test_share:g}). Give more records, another test_share, or a test_path of its own."
        )

    def _report(self, parts: Sequence[Part]) -> dict[str, Any]:
        """Counts of the parts' records together, and number and lengths of what stands in every table."""
        report = Tally.joined([part.tally for part in parts]).report(self.kind)
        for kind, side in self.tables:
            writers = [part.tables[kind, side] for part in parts]
            lengths = Lengths(TEXT_COLUMNS[kind])
            for writer in writers:
                lengths.extend(writer.lengths)
            report[f"{kind}_{side}_records"] = sum(writer.num_records for writer in writers)
            report |= {f"{kind}_{side}_{name}": counts for name, counts in lengths.percentiles().items()}
        return report


def _identity(record: Record) -> Text:
    """What decides the record's side: its prompt, or the text of a record that has none."""
    text: Text = record["prompt"] or record["completion"]
    return text


def _checked(kind: Kind, source: SourceConfig, records: Iterator[Record]) -> Iterable[Record]:
    """At most `max_records` of the records, after a look at their columns."""
    peeked = list(islice(records, PEEKED_RECORDS))
    if peeked:
        check_columns(kind, source, {name for record in peeked for name in record})
    return islice(chain(peeked, records), source.max_records)
