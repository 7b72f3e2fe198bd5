"""Records written to Parquet a batch at a time, with the lengths of their texts; tables of several sources joined."""

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import InputError
from tasks.prepare_data.records import Record, Text

BATCH_SIZE = 1000
PERCENTILES = {"p5": 5, "p50": 50, "p95": 95, "max": 100}


class Lengths:
    """How long the texts of some columns are, one number a record."""

    def __init__(self, columns: Iterable[str]) -> None:
        self._counts = {f"{column}_{unit}": array("L") for unit in ("words", "characters") for column in columns}
        self._columns = list(columns)

    def add(self, record: Record) -> None:
        """Measure one record's texts."""
        for column in self._columns:
            text = plain_text(record[column])
            self._counts[f"{column}_words"].append(len(text.split()))
            self._counts[f"{column}_characters"].append(len(text))

    def extend(self, other: "Lengths") -> None:
        """Take over what another measured of the same columns."""
        for name, counts in other._counts.items():
            self._counts[name].extend(counts)

    def percentiles(self) -> dict[str, dict[str, int]]:
        """Percentiles of each column's length: `COLUMN_words` and `COLUMN_characters`."""
        return {name: _percentiles(counts) for name, counts in self._counts.items()}


class TableWriter:
    """Writes records to one Parquet file. Its schema is that of the first batch; a later misfit is an InputError."""

    def __init__(self, path: Path, text_columns: Sequence[str]) -> None:
        self.path = path
        self.num_records = 0
        self.lengths = Lengths(text_columns)
        self._batch: list[Record] = []
        self._writer: pq.ParquetWriter | None = None

    def write(self, record: Record) -> None:
        """Add one record."""
        self.lengths.add(record)
        self._batch.append(record)
        self.num_records += 1
        if len(self._batch) == BATCH_SIZE:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self._batch:
                self._flush()
        finally:
            if self._writer is not None:
                self._writer.close()

    def _flush(self) -> None:
        table = self._table()
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, table.schema)
        self._writer.write_table(table)
        self._batch = []

    def _table(self) -> pa.Table:
        try:
            if self._writer is not None:
                return pa.Table.from_pylist(self._batch, schema=self._writer.schema)
            names = dict.fromkeys(name for record in self._batch for name in record)
            return pa.table({name: _column([record.get(name) for record in self._batch]) for name in names})
        except pa.ArrowException as error:
            raise InputError(
                f"{self.path.name}: a column holds values of different types ({error}). "
                "Give each column one type, or leave the column out."
            ) from error


def join_tables(parts: Sequence[Path], path: Path) -> None:
    """Make one file of several, in their order; a column that a part does not have is empty there.

    Raises InputError where a column has types that do not go together. A single part is only moved.
    """
    if len(parts) == 1:
        parts[0].rename(path)
        return
    try:
        schema = pa.unify_schemas([pq.read_schema(part) for part in parts], promote_options="permissive")
        with pq.ParquetWriter(path, schema) as writer:
            for part in parts:
                for batch in pq.ParquetFile(part).iter_batches(BATCH_SIZE):
                    writer.write_table(_fitted(pa.Table.from_batches([batch]), schema))
    except pa.ArrowException as error:
        raise InputError(
            f"{path.name}: a column has different types in its sources ({error}). "
            "Map it to a name of its own in one source's columns, or leave it out there."
        ) from error


def plain_text(text: Text) -> str:
    """All that is said in a text, without roles."""
    return text if isinstance(text, str) else "\n".join(message["content"] for message in text)


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    present = set(table.column_names)
    columns = [table[field.name] if field.name in present else pa.nulls(table.num_rows, field.type) for field in schema]
    return pa.table(columns, schema=schema)


def _column(values: list[Any]) -> pa.Array:
    column = pa.array(values)
    return column.cast(pa.string()) if pa.types.is_null(column.type) else column


def _percentiles(counts: array) -> dict[str, int]:
    if not counts:
        return {}
    return {name: int(np.percentile(counts, share, method="lower")) for name, share in PERCENTILES.items()}
