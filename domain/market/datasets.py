"""Datasets of sellers: tables of numbers with a binary target, read from CSV bytes.

The fingerprint is over the bytes as uploaded, so nothing is re-encoded to be checked. Rows are counted from 1
without the header in every message; a missing value is an empty cell, `?` or `NA` and becomes NaN inside, and
nothing else does.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from domain.errors import DatasetInvalidError
from domain.log.records import address_text, digest
from domain.market.reproducible import Array

DATASET_BYTES_MAX = 20 * 1024 * 1024
COLUMNS_MAX = 200
ROWS_MAX = 200_000
COLUMN_NAME_CHARS_MAX = 128
VALUE_MAX = 1e100  # sums of squares of 200,000 such values are still finite
MISSING_CELLS = frozenset({"", "?", "NA"})

# Text that float() would read although no CSV of numbers means it: 1_0, nan, inf, digits of other scripts.
_SUSPICIOUS = re.compile(r"[_nN]|[^\x00-\x7f]")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\Z", re.ASCII)


class CsvOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to read a dataset; made of strings only, so that an offer can carry it.

    `target` names the target column; without it the target is the column called `target`, else the last one.
    `positive` is `one` for a target of 0 and 1, or `above_zero` for grades where every grade above 0 is a
    positive.
    `ignored` columns are left out; in `zero_missing` columns 0 stands for a value nobody measured.
    """

    target: str = ""
    positive: Literal["one", "above_zero"] = "one"
    ignored: tuple[str, ...] = ()
    zero_missing: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A table of named numeric columns and a binary target.

    Shapes: values (n, d) float64, NaN where missing; target (n,) float64 of 0 and 1; columns d names.
    """

    columns: tuple[str, ...]
    values: Array
    target: Array

    def __post_init__(self) -> None:
        if self.values.shape != (self.target.shape[0], len(self.columns)):
            raise _invalid("the table has another shape than its columns and target")
        if len(set(self.columns)) != len(self.columns):
            raise _invalid("two columns have the same name")
        if (np.abs(self.values) > VALUE_MAX).any():
            raise _invalid("a value is infinite or too large")
        if not np.isin(self.target, (0.0, 1.0)).all():
            raise _invalid("the target holds something else than 0 and 1")

    @property
    def row_count(self) -> int:
        """Count the rows."""
        return int(self.target.shape[0])

    def take(self, rows: Any) -> Dataset:
        """Keep some rows, by index or by mask."""
        return Dataset(self.columns, self.values[rows], self.target[rows])


def dataset_fingerprint(data: bytes) -> str:
    """Address a dataset by the SHA3-512 of its bytes."""
    return address_text(digest(data))


def parse_csv(data: bytes, options: CsvOptions | None = None) -> Dataset:
    """Read CSV bytes: UTF-8, comma, a header, numbers, a binary target.

    Units:  at most 20 MiB, 200 columns with the target, 200,000 rows.
    Cost:   one pass over the cells; about 0.04 s per MiB.
    Errors: invalid_dataset.
    """
    options = options or CsvOptions()
    text = _text_of(data)
    stream = io.StringIO(text, newline="")
    reader = csv.reader(stream, strict=True)
    try:
        header = _header_of(next(reader, []), options)
        strict = bool(_SUSPICIOUS.search(text, stream.tell()))
        table = _table_of(reader, header, strict)
    except csv.Error as error:
        raise _invalid(f"line {reader.line_num} is not CSV: {error}", line=reader.line_num) from error
    _check_range(table, header)
    return _dataset_of(table, header, options)


def to_csv(dataset: Dataset) -> bytes:
    """Write a dataset as CSV bytes that `parse_csv` reads back exactly, the target last."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*dataset.columns, "target"])
    for row, positive in zip(dataset.values.tolist(), dataset.target.tolist(), strict=True):
        writer.writerow(["" if math.isnan(cell) else repr(cell) for cell in row] + [int(positive)])
    return stream.getvalue().encode()


def split(dataset: Dataset, parts: int, seed: int = 0) -> list[Dataset]:
    """Deal the rows over parts that differ by one row at most, in an order drawn from the seed.

    Rows keep their original order inside a part.
    Errors: invalid_dataset (fewer rows than parts).
    """
    if not 1 <= parts <= dataset.row_count:
        raise _invalid("a dataset is split into 1 to row_count parts", parts=parts, rows=dataset.row_count)
    shuffled = sorted(range(dataset.row_count), key=lambda row: _lot(seed, row))
    return [dataset.take(np.array(sorted(shuffled[part::parts]))) for part in range(parts)]


def _lot(seed: int, row: int) -> bytes:
    return hashlib.sha3_256(f"{seed}/{row}".encode()).digest()


# --------------------------------------------------------------------------- reading


def _invalid(message: str, **facts: Any) -> DatasetInvalidError:
    return DatasetInvalidError(message, **facts)


def _text_of(data: bytes) -> str:
    if len(data) > DATASET_BYTES_MAX:
        raise _invalid("a dataset has at most 20 MiB", got_bytes=len(data), bytes_max=DATASET_BYTES_MAX)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _invalid(f"byte {error.start} is not UTF-8", byte=error.start) from error
    if "\x00" in text:
        raise _invalid("a NUL character is not part of a CSV")
    return text


def _header_of(names: list[str], options: CsvOptions) -> list[str]:
    header = [name.strip() for name in names]
    if not header:
        raise _invalid("the header is missing")
    if len(header) > COLUMNS_MAX:
        raise _invalid("a dataset has at most 200 columns", got=len(header))
    for index, name in enumerate(header):
        if not name or len(name) > COLUMN_NAME_CHARS_MAX or not name.isprintable():
            raise _invalid("a column name has 1 to 128 printable characters", column=index + 1)
        if name in header[:index]:
            raise _invalid(f"column {name!r} appears twice", column=name)
    for name in (*options.ignored, *options.zero_missing, *filter(None, [options.target])):
        if name not in header:
            raise _invalid(f"column {name!r} is named by the options but not in the header", column=name)
    return header


def _table_of(reader: Iterator[list[str]], header: list[str], strict: bool) -> Array:
    cells, row_count = array("d"), 0
    for row in reader:
        if not row:
            continue
        row_count += 1
        if len(row) != len(header):
            message = f"row {row_count} has {len(row)} cells, the header {len(header)}"
            raise _invalid(message, row=row_count, cells=len(row), columns=len(header))
        if row_count > ROWS_MAX:
            raise _invalid("a dataset has at most 200,000 rows", rows_max=ROWS_MAX)
        cells.extend(_numbers(row, row_count, header, strict))
    if not row_count:
        raise _invalid("the dataset has no rows")
    return np.frombuffer(cells, dtype=np.float64).reshape(row_count, len(header)).copy()


def _numbers(row: list[str], row_number: int, header: list[str], strict: bool) -> list[float]:
    if not strict:
        try:
            return list(map(float, row))
        except ValueError:
            pass  # an empty cell, or text: told apart below
    return [_number(cell.strip(), row_number, name) for cell, name in zip(row, header, strict=True)]


def _number(cell: str, row_number: int, name: str) -> float:
    if cell in MISSING_CELLS:
        return math.nan
    if not _NUMBER.match(cell):
        message = f"row {row_number}, column {name!r}: {cell[:32]!r} is not a number"
        raise _invalid(message, row=row_number, column=name, got=cell[:32])
    return float(cell)


def _check_range(table: Array, header: list[str]) -> None:
    beyond = np.argwhere(np.abs(table) > VALUE_MAX)
    if len(beyond):
        row, column = int(beyond[0][0]) + 1, header[int(beyond[0][1])]
        raise _invalid(f"row {row}, column {column!r}: the number is too large", row=row, column=column)


def _dataset_of(table: Array, header: list[str], options: CsvOptions) -> Dataset:
    goal = options.target or ("target" if "target" in header else header[-1])
    kept = [index for index, name in enumerate(header) if name != goal and name not in options.ignored]
    if goal in options.ignored or not kept:
        raise _invalid("a dataset needs a target and at least one other column", target=goal)
    for name in options.zero_missing:
        column = table[:, header.index(name)]
        column[column == 0.0] = math.nan
    target = _target_of(table[:, header.index(goal)], goal, options)
    values = np.ascontiguousarray(table[:, kept]) + 0.0  # -0.0 and 0.0 are one number here
    values.flags.writeable = target.flags.writeable = False
    return Dataset(tuple(header[index] for index in kept), values, target)


def _target_of(column: Array, name: str, options: CsvOptions) -> Array:
    graded = options.positive == "above_zero"
    accepted = column >= 0.0 if graded else (column == 0.0) | (column == 1.0)
    if not accepted.all():
        row = int(np.argmin(accepted)) + 1
        wanted = "a number from 0 on" if graded else "0 or 1"
        message = f"row {row}, column {name!r}: the target must be {wanted}"
        raise _invalid(message, row=row, column=name)
    return (column > 0.0).astype(np.float64)
