"""Datasets: CSV bytes in, a table of numbers out, or a refusal that names the cell."""

from __future__ import annotations

import contextlib
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.demo_data import breast_cancer_csv
from domain.errors import DatasetInvalidError
from domain.market import datasets
from domain.market.datasets import CsvOptions, Dataset, dataset_fingerprint, parse_csv, split, to_csv

GRADED = CsvOptions(target="num", positive="above_zero")


def refused(data: bytes, options: CsvOptions | None = None) -> DatasetInvalidError:
    with pytest.raises(DatasetInvalidError) as caught:
        parse_csv(data, options)
    return caught.value


class TestReading:
    def test_the_column_called_target_is_the_target_wherever_it_stands(self) -> None:
        dataset = parse_csv(b"a,target,b\n1,0,2.5\n-3e2,1,.5\n")
        assert dataset.columns == ("a", "b")
        assert dataset.values.tolist() == [[1.0, 2.5], [-300.0, 0.5]]
        assert dataset.target.tolist() == [0.0, 1.0]

    def test_without_such_a_column_the_last_is_the_target(self) -> None:
        assert parse_csv(b"a,b\n5,1\n").target.tolist() == [1.0]

    def test_an_option_names_the_target(self) -> None:
        assert parse_csv(b"sick,b\n1,7\n", CsvOptions(target="sick")).columns == ("b",)

    def test_every_grade_above_zero_is_a_positive_if_the_option_says_so(self) -> None:
        assert parse_csv(b"a,num\n1,0\n1,3\n1,1\n", GRADED).target.tolist() == [0.0, 1.0, 1.0]

    def test_empty_cells_question_marks_and_na_are_missing(self) -> None:
        values = parse_csv(b"a,b,c,target\n,?,NA,1\n 1 , 2,3 ,0\n").values
        assert np.isnan(values[0]).all()
        assert values[1].tolist() == [1.0, 2.0, 3.0]

    def test_zero_is_a_value_unless_the_option_calls_it_missing(self) -> None:
        data = b"chol,b,target\n0,0,1\n"
        assert parse_csv(data).values.tolist() == [[0.0, 0.0]]
        marked = parse_csv(data, CsvOptions(zero_missing=("chol",))).values[0]
        assert np.isnan(marked[0])
        assert marked[1] == 0.0

    def test_ignored_columns_are_left_out(self) -> None:
        assert parse_csv(b"id,a,target\n9,1,1\n", CsvOptions(ignored=("id",))).columns == ("a",)

    def test_a_byte_order_mark_quotes_crlf_and_blank_lines_are_understood(self) -> None:
        dataset = parse_csv(b'\xef\xbb\xbf"a, cm",target\r\n"1",0\r\n\r\n2,1\r\n')
        assert dataset.columns == ("a, cm",)
        assert dataset.row_count == 2

    def test_a_site_may_hold_one_class_only(self) -> None:
        assert parse_csv(b"a,target\n1,1\n2,1\n").target.sum() == 2

    def test_the_tables_cannot_be_written_to(self) -> None:
        with pytest.raises(ValueError, match="read-only"):
            parse_csv(b"a,target\n1,1\n").values[0, 0] = 2.0


class TestRefusals:
    @pytest.mark.parametrize(
        "cell",
        ["x", "nan", "NaN", "inf", "-Infinity", "1_000", "1,5", "0x1F", "١", "1e", "--1", "1e999", "2e100"],
    )
    def test_a_cell_that_is_no_number_is_named_by_row_and_column(self, cell: str) -> None:
        error = refused(f'a,b_nN,target\n1,2,0\n3,"{cell}",1\n'.encode())
        assert error.code == "invalid_dataset"
        assert (error.facts["row"], error.facts["column"]) == (2, "b_nN")

    @pytest.mark.parametrize("cell", ["2", "-1", "0.5", "", "yes"])
    def test_a_target_other_than_zero_and_one_is_named(self, cell: str) -> None:
        error = refused(f"a,target\n1,0\n2,1\n3,{cell}\n".encode())
        assert (error.facts["row"], error.facts["column"]) == (3, "target")

    @pytest.mark.parametrize("cell", ["-1", ""])
    def test_a_grade_below_zero_or_missing_is_refused(self, cell: str) -> None:
        assert refused(f"a,num\n1,{cell}\n".encode(), GRADED).facts["row"] == 1

    @pytest.mark.parametrize(
        ("data", "word"),
        [
            (b"", "header"),
            (b"\n", "header"),
            (b"a,target\n", "no rows"),
            (b"target\n1\n", "at least one other"),
            (b"a,a,target\n1,2,1\n", "twice"),
            (b"a,,target\n1,2,1\n", "printable"),
            (b"a,target\n1,0\n1\n", "row 2 has 1 cells"),
            (b"a,target\n1,0,7\n", "row 1 has 3 cells"),
            (b'a,target\n"1,0\n', "not CSV"),
            (b"a,target\n\xff,0\n", "UTF-8"),
            (b"a,target\n\x00,0\n", "NUL"),
        ],
    )
    def test_a_malformed_file_is_refused_with_its_reason(self, data: bytes, word: str) -> None:
        assert word in refused(data).message

    def test_options_must_name_columns_of_the_header(self) -> None:
        for options in (CsvOptions(target="z"), CsvOptions(ignored=("z",)), CsvOptions(zero_missing=("z",))):
            assert refused(b"a,target\n1,1\n", options).facts["column"] == "z"

    def test_the_target_cannot_be_ignored(self) -> None:
        refused(b"a,target\n1,1\n", CsvOptions(ignored=("target",)))

    def test_bytes_columns_and_rows_are_bounded(self) -> None:
        assert "bytes_max" in refused(b"a" * (datasets.DATASET_BYTES_MAX + 1)).facts
        wide = ",".join(f"c{index}" for index in range(datasets.COLUMNS_MAX + 1))
        assert refused(f"{wide}\n".encode()).facts["got"] == datasets.COLUMNS_MAX + 1
        assert "rows_max" in refused(b"a,target\n" + b"1,1\n" * (datasets.ROWS_MAX + 1)).facts

    @given(st.binary(max_size=200))
    def test_any_bytes_give_a_dataset_or_the_one_refusal(self, noise: bytes) -> None:
        for data in (noise, b"a,target\n" + noise):
            with contextlib.suppress(DatasetInvalidError):
                assert np.isin(parse_csv(data).target, (0.0, 1.0)).all()


class TestFingerprint:
    def test_it_is_the_sha3_512_of_the_bytes(self) -> None:
        data = b"a,target\n1,1\n"
        assert dataset_fingerprint(data) == "sha3-512:" + hashlib.sha3_512(data).hexdigest()
        assert dataset_fingerprint(data + b"\n") != dataset_fingerprint(data)


cells = st.one_of(st.just(float("nan")), st.floats(-1e100, 1e100))


class TestWriting:
    @given(st.lists(st.tuples(cells, cells, st.booleans()), min_size=1, max_size=20))
    def test_what_is_written_reads_back_exactly(self, rows: list[tuple[float, float, bool]]) -> None:
        values = np.array([[first, second] for first, second, _ in rows]) + 0.0
        dataset = Dataset(("x y", "ü,"), values, np.array([float(row[2]) for row in rows]))
        read = parse_csv(to_csv(dataset))
        assert read.columns == dataset.columns
        assert read.values.tobytes() == np.where(np.isnan(values), np.nan, values).tobytes()
        assert read.target.tolist() == dataset.target.tolist()


class TestSplitting:
    @given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
    def test_parts_cover_every_row_once_and_differ_by_one_row_at_most(
        self, rows: int, parts: int, seed: int
    ) -> None:
        dataset = Dataset(("a",), np.arange(float(rows))[:, None], np.zeros(rows))
        if parts > rows:
            with pytest.raises(DatasetInvalidError):
                split(dataset, parts, seed)
            return
        pieces = split(dataset, parts, seed)
        assert sorted(cell for piece in pieces for cell in piece.values[:, 0].tolist()) == list(range(rows))
        assert max(p.row_count for p in pieces) - min(p.row_count for p in pieces) <= 1

    def test_the_seed_alone_decides(self) -> None:
        dataset = Dataset(("a",), np.arange(30.0)[:, None], np.zeros(30))
        first, again, other = (split(dataset, 3, seed)[0].values.tolist() for seed in (1, 1, 2))
        assert first == again
        assert first != other


class TestDemoData:
    @pytest.mark.parametrize("parts", [1, 3, 50])
    def test_the_providers_together_hold_the_whole_set(self, parts: int) -> None:
        pieces = [parse_csv(data) for data in breast_cancer_csv(parts)]
        assert len(pieces) == parts
        assert sum(piece.row_count for piece in pieces) == 569
        assert {piece.columns for piece in pieces} == {pieces[0].columns}
        assert len(pieces[0].columns) == 30
        assert sum(piece.target.sum() for piece in pieces) == 357

    def test_the_bytes_are_the_same_each_time_and_the_providers_differ(self) -> None:
        assert breast_cancer_csv(3) == breast_cancer_csv(3)
        shares = [parse_csv(data).target.mean() for data in breast_cancer_csv(3)]
        assert max(shares) - min(shares) > 0.1

    def test_no_providers_is_refused(self) -> None:
        with pytest.raises(ValueError, match="providers"):
            breast_cancer_csv(0)
