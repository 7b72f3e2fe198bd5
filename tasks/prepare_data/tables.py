"""Records written to Parquet a batch at a time, with the lengths of their texts."""

from array import array
from collections.abc import Sequence
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


class TableWriter:
    """Writes records to one Parquet file. Its schema is that of the first batch; a later misfit is an InputError."""

    def __init__(self, path: Path, text_columns: Sequence[str]) -> None:
        self.path = path
        self.num_records = 0
        self._words = {column: array("L") for column in text_columns}
        self._characters = {column: array("L") for column in text_columns}
        self._batch: list[Record] = []
        self._writer: pq.ParquetWriter | None = None

    def write(self, record: Record) -> None:
        """Add one record."""
        for column in self._words:
            text = plain_text(record[column])
            self._words[column].append(len(text.split()))
            self._characters[column].append(len(text))
        self._batch.append(record)
        self.num_records += 1
        if len(self._batch) == BATCH_SIZE:
            self._flush()

    def lengths(self) -> dict[str, dict[str, int]]:
        """Percentiles of each text column's length: `COLUMN_words` and `COLUMN_characters`."""
        measured = {f"{column}_words": counts for column, counts in self._words.items()}
        measured |= {f"{column}_characters": counts for column, counts in self._characters.items()}
        return {name: _percentiles(counts) for name, counts in measured.items()}

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


def plain_text(text: Text) -> str:
    """All that is said in a text, without roles."""
    return text if isinstance(text, str) else "\n".join(message["content"] for message in text)


def _column(values: list[Any]) -> pa.Array:
    column = pa.array(values)
    return column.cast(pa.string()) if pa.types.is_null(column.type) else column


def _percentiles(counts: array) -> dict[str, int]:
    if not counts:
        return {}
    return {name: int(np.percentile(counts, share, method="lower")) for name, share in PERCENTILES.items()}
