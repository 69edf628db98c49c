"""Tables for other programs: no cell is a formula, numbers stay numbers, and every text can be had back."""

from __future__ import annotations

import csv
import io
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.tables import Column, CsvTable, ParquetTable, harmless

COLUMNS = (
    Column("name"),
    Column("count", "integer"),
    Column("amount", "decimal"),
    Column("share", "exact"),
    Column("at", "moment"),
)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.none() | texts,
            "count": st.none() | st.integers(-(2**62), 2**62),
            "amount": st.none() | st.decimals(-(10**15), 10**15, places=9).map(lambda number: f"{number:f}"),
            "share": st.sampled_from([None, "1/3", "-2/7", "0.5"]),
            "at": st.sampled_from([None, "2026-03-29T01:30:00.000001Z"]),
        }
    ),
    max_size=6,
)


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "\u00a0=1", "\uff1d1", "'=1", "\tx"],
)
def test_what_a_spreadsheet_takes_for_a_formula_gets_a_quote(text: str) -> None:
    assert harmless(text) == "'" + text


@given(texts)
def test_no_text_begins_like_a_formula_and_every_text_can_be_had_back(text: str) -> None:
    shown = harmless(text)
    assert shown.lstrip()[:1] not in tuple("=+-@")
    assert (shown[1:] if shown.startswith("'") else shown) == text


@given(rows, rows)
def test_a_csv_file_reads_back_as_it_was(first, second) -> None:
    table = CsvTable(COLUMNS)
    data = table.head() + table.rows(first) + table.rows(second) + table.end()
    read = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert read[0] == [column.name for column in COLUMNS]
    assert len(read) == 1 + len(first) + len(second)
    for cells, row in zip(read[1:], [*first, *second], strict=True):
        assert cells[0] == ("" if row["name"] is None else harmless(row["name"]))
        assert cells[2] == ("" if row["amount"] is None else row["amount"])


@given(rows, rows)
def test_a_parquet_file_reads_back_exactly(first, second) -> None:
    table = ParquetTable(COLUMNS)
    data = table.head() + table.rows(first) + table.rows(second) + table.end()
    read = pq.read_table(pa.BufferReader(data))
    assert read.schema.field("amount").type == pa.decimal128(38, 9)
    for name in ("name", "count", "share"):
        assert read.column(name).to_pylist() == [row[name] for row in [*first, *second]]
    expected = [None if row["amount"] is None else Decimal(row["amount"]) for row in [*first, *second]]
    assert read.column("amount").to_pylist() == expected


def test_a_parquet_file_that_was_cut_off_is_none() -> None:
    table = ParquetTable(COLUMNS)
    data = table.head() + table.rows([dict.fromkeys((c.name for c in COLUMNS), None)])
    with pytest.raises(pa.ArrowInvalid):
        pq.read_table(pa.BufferReader(data))
