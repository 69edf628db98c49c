"""Tables for other programs, written a page at a time: CSV that no spreadsheet takes for a formula, and Parquet.

Numbers are written as numbers. A text is a formula to a spreadsheet when it begins with = + - or @ (or with white space
that hides one); such a cell gets one single quote in front, and so does one that begins with a single quote. So a
reader who wants the very text takes one leading quote away.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

# `exact` is a number that may be a fraction; it is text in Parquet, and is never taken for a formula in CSV.
Kind = Literal["text", "integer", "decimal", "exact", "moment"]

_FORMULAS = frozenset("=+-@'\uff1d\uff0b\uff0d\uff20")
_TYPES: dict[str, pa.DataType] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "decimal": pa.decimal128(38, 9),
    "exact": pa.string(),
    "moment": pa.timestamp("us", tz="UTC"),
}


class Column(NamedTuple):
    """A column of a table: its name, and what its cells are."""

    name: str
    kind: Kind = "text"


Row = Mapping[str, Any]


def harmless(text: str) -> str:
    """Keep a spreadsheet from taking a text for a formula."""
    bare = text.lstrip()
    return "'" + text if text[:1] in "\t\r\n" or bare[:1] in _FORMULAS else text


class CsvTable:
    """Writes a table as CSV: UTF-8, a head line, CRLF, an empty cell for nothing.

    Source: RFC 4180.
    """

    media_type = "text/csv; charset=utf-8"
    suffix = "csv"

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns

    def head(self) -> bytes:
        """Give what stands before all rows."""
        return _csv([[column.name for column in self._columns]])

    def rows(self, rows: Iterable[Row]) -> bytes:
        """Write some rows."""
        return _csv([[_cell(column, row[column.name]) for column in self._columns] for row in rows])

    def end(self) -> bytes:
        """Give what stands behind all rows."""
        return b""


def _csv(lines: Iterable[Sequence[str]]) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\r\n").writerows(lines)
    return out.getvalue().encode()


def _cell(column: Column, value: Any) -> str:
    if value is None:
        return ""
    return harmless(value) if column.kind == "text" else str(value)


class ParquetTable:
    """Writes a table as Parquet, one row group for some rows; amounts are decimal128(38, 9)."""

    media_type = "application/vnd.apache.parquet"
    suffix = "parquet"

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._schema = pa.schema([pa.field(column.name, _TYPES[column.kind]) for column in columns])
        self._out = _Drained()
        self._writer = pq.ParquetWriter(self._out, self._schema, compression="zstd")

    def head(self) -> bytes:
        """Give what stands before all rows."""
        return self._out.drain()

    def rows(self, rows: Iterable[Row]) -> bytes:
        """Write some rows."""
        kept = list(rows)
        arrays = [
            pa.array([_value(column, row[column.name]) for row in kept], _TYPES[column.kind])
            for column in self._columns
        ]
        if kept:
            self._writer.write_table(pa.table(arrays, schema=self._schema))
        return self._out.drain()

    def end(self) -> bytes:
        """Give what stands behind all rows: a file without it is no Parquet, so one that was cut off is noticed."""
        self._writer.close()
        return self._out.drain()


def _value(column: Column, value: Any) -> Any:
    if value is None or column.kind in ("text", "exact", "integer"):
        return value
    return Decimal(value) if column.kind == "decimal" else datetime.fromisoformat(value)


class _Drained(io.RawIOBase):
    """A file that is written to the end and read away in between; it holds what nobody has taken yet."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._written += len(part)
        return len(part)

    def tell(self) -> int:
        return self._written

    def drain(self) -> bytes:
        """Take what was written since."""
        taken, self._parts = b"".join(self._parts), []
        return taken


Table = CsvTable | ParquetTable


def table_of(file_format: Literal["csv", "parquet"], columns: Sequence[Column]) -> Table:
    """Give the writer of a format."""
    return CsvTable(columns) if file_format == "csv" else ParquetTable(columns)
