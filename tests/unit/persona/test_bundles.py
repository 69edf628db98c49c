"""Memory bundles: what is written is what is read, and what is not what the manifest says is refused."""

from __future__ import annotations

import io
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.errors import MemoryBundleInvalidError
from domain.persona.bundles import (
    BUNDLE_BYTES_MAX,
    COLUMNS,
    GROUP_BYTES_MAX,
    ROWS_PER_GROUP_MAX,
    TEXT_CHARS_MAX,
    RowGroup,
    check_groups,
)
from domain.persona.manifest import MemoryRef
from ops.bundles import bundle_table, bundle_texts, check_bundle, inspect_bundle, read_bundle, write_bundle
from tests.unit.persona.capsule_maker import memory_bundle

DIMENSION = 4


def memory(items: int, dimension: int = DIMENSION, metric: str = "cosine") -> MemoryRef:
    """Describe a bundle as a manifest does."""
    return MemoryRef.model_validate(
        {
            "snapshot_id": "s",
            "bundle": "memory.parquet",
            "embedding_model": "e",
            "item_count": items,
            "dimension": dimension,
            "metric": metric,
        }
    )


def table(items: int = 3, **columns: Any) -> Any:
    """Make the table of a good bundle, with some columns replaced, added, or left out (None)."""
    made = bundle_table([f"m{n}" for n in range(items)], [f"text {n}" for n in range(items)], vectors(items))
    for name, values in columns.items():
        if name in made.column_names:
            made = made.drop_columns([name])
        if values is not None:
            made = made.append_column(name, values)
    return made


def vectors(items: int) -> Any:
    """Make embeddings that are easy to recognise."""
    return (np.arange(items * DIMENSION, dtype=np.float32) + 1).reshape(items, DIMENSION)


def written(made: Any, **options: Any) -> bytes:
    """Write a table as anybody's tool does."""
    out = io.BytesIO()
    pq.write_table(made, out, **options)
    return out.getvalue()


def why(data: Any, described: MemoryRef) -> str:
    """Give the reason a bundle is refused for."""
    with pytest.raises(MemoryBundleInvalidError) as refusal:
        check_bundle(data, described)
    reason: str = refusal.value.facts["why"]
    return reason


class TestGoodBundles:
    """What is written is what is read."""

    @given(rows=st.lists(st.tuples(st.text(max_size=30), st.integers(1, 9)), max_size=40))
    @settings(deadline=None, max_examples=40)
    def test_a_bundle_gives_back_its_rows(self, rows: list[tuple[str, int]]) -> None:
        ids = [f"m{n}" for n in range(len(rows))]
        texts = [text for text, _ in rows]
        embeddings = np.array([[n, 1.5, -n, 0] for _, n in rows], dtype=np.float32).reshape(-1, 4)
        data = write_bundle(bundle_table(ids, texts, embeddings))
        batches = list(read_bundle(data, memory(len(rows))))
        assert [one for batch in batches for one in batch.ids] == ids
        assert list(bundle_texts(data, memory(len(rows)))) == texts
        assert [row for batch in batches for row in batch.embeddings.tolist()] == embeddings.tolist()
        assert check_bundle(data, memory(len(rows))).item_count == len(rows)

    def test_the_same_table_is_the_same_bytes(self) -> None:
        assert memory_bundle(50, 8) == memory_bundle(50, 8)

    def test_a_check_tells_what_a_bundle_holds(self) -> None:
        facts = check_bundle(memory_bundle(50, 8), memory(50, 8))
        assert (facts.item_count, facts.dimension) == (50, 8)
        assert facts.columns == ["id", "text", "embedding", "turn", "sitting", "created_at"]
        assert facts.text_chars == sum(map(len, bundle_texts(memory_bundle(50, 8), memory(50, 8))))

    def test_every_column_that_may_be_there_may_be_there(self) -> None:
        more = {
            "turn": [0, None, 2],
            "sitting": ["a", None, "b"],
            "created_at": ["2030-01-31T12:00:00Z", None, "2030-01-31T12:00:00.5Z"],
            "tags": [["x", "y"], [], None],
        }
        data = write_bundle(bundle_table(["a", "b", "c"], ["x", "", "z"], vectors(3), more))
        assert set(check_bundle(data, memory(3)).columns) == set(COLUMNS)
        assert next(read_bundle(data, memory(3))).more == more

    @pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "lz4", "gzip"])
    @pytest.mark.parametrize("dictionary", [True, False])
    @pytest.mark.parametrize("schema", [True, False], ids=["arrow's types", "plain types"])
    def test_a_bundle_of_another_tool_is_read(self, codec: str, dictionary: bool, schema: bool) -> None:
        data = written(table(3), compression=codec, use_dictionary=dictionary, store_schema=schema)
        assert check_bundle(data, memory(3)).item_count == 3

    def test_larger_kinds_of_text_and_list_are_read(self) -> None:
        embedding = pa.array(vectors(3).tolist(), pa.large_list(pa.float32()))
        made = table(3, text=pa.array(["a", "b", "c"], pa.large_string()), embedding=embedding)
        assert list(bundle_texts(written(made), memory(3))) == ["a", "b", "c"]

    def test_a_bundle_is_read_from_memory_a_path_and_a_file(self, tmp_path: Path) -> None:
        data = memory_bundle(20, 8)
        path = tmp_path / "memory.parquet"
        path.write_bytes(data)
        with path.open("rb") as buffered, path.open("rb", buffering=0) as raw:
            found = [
                check_bundle(one, memory(20, 8)) for one in (data, memoryview(data), path, buffered, raw)
            ]
        assert all(one == found[0] for one in found)

    def test_the_smallest_number_is_no_zero(self) -> None:
        tiny = [[0.0, 0.0, 0.0, 1e-45], [-0.0, -1e-38, 0.0, 0.0], [0.0, 2e-38, -0.0, 0.0]]
        assert check_bundle(written(table(3, embedding=lists(tiny))), memory(3)).item_count == 3

    def test_zeros_have_no_cosine_but_a_distance(self) -> None:
        data = written(table(2, embedding=pa.array([[0.0] * 4, [1.0] * 4], pa.list_(pa.float32(), 4))))
        assert check_bundle(data, memory(2, metric="euclidean")).item_count == 2
        assert "all zeros" in why(data, memory(2))


def strings(*values: Any) -> Any:
    """Make a column of texts."""
    return pa.array(values, pa.string())


def lists(values: list[Any], kind: Any = None) -> Any:
    """Make a column of lists."""
    return pa.array(values, kind or pa.list_(pa.float32()))


REFUSED: list[tuple[str, Callable[[], Any], str]] = [
    ("no id", lambda: table(id=None), "the column id is missing"),
    ("no text", lambda: table(text=None), "the column text is missing"),
    ("no embedding", lambda: table(embedding=None), "the column embedding is missing"),
    ("a strange column", lambda: table(code=strings("a", "b", "c")), "there is no such column: code"),
    ("numbers as ids", lambda: table(id=pa.array([1, 2, 3])), "the column id holds whole, not text"),
    ("bytes as text", lambda: table(text=pa.array([b"a", b"b", b"c"])), "holds binary, not text"),
    ("doubles", lambda: table(embedding=lists([[1.0] * 4] * 3, pa.list_(pa.float64()))), "not vector"),
    ("halves", lambda: table(embedding=pa.array([1.0, 2.0, 3.0], pa.float32())), "not vector"),
    ("a struct", lambda: table(tags=pa.array([{"a": 1}] * 3)), "not texts"),
    ("too few rows", lambda: table(2), "another number of rows"),
    ("too many rows", lambda: table(4), "another number of rows"),
    ("an id missing", lambda: table(id=strings("a", None, "c")), "the column id has an empty place"),
    ("a text missing", lambda: table(text=strings("a", None, "c")), "the column text has an empty place"),
    ("an id twice", lambda: table(id=strings("a", "b", "a")), "an id stands in it twice"),
    ("an empty id", lambda: table(id=strings("a", "", "c")), "1 to 200 visible characters"),
    ("a long id", lambda: table(id=strings("a", "b" * 201, "c")), "1 to 200 visible characters"),
    ("a hidden id", lambda: table(id=strings("a", "b\u202e", "c")), "1 to 200 visible characters"),
    (
        "a long text",
        lambda: table(text=strings("a", "b", "c" * (TEXT_CHARS_MAX + 1))),
        "65,536 characters at most",
    ),
    ("a vector missing", lambda: table(embedding=lists([[1.0] * 4, None, [1.0] * 4])), "missing"),
    ("a number missing", lambda: table(embedding=lists([[1.0, None, 1.0, 1.0]] * 3)), "missing"),
    ("narrow vectors", lambda: table(embedding=lists([[1.0] * 3] * 3)), "not as wide"),
    ("one wide vector", lambda: table(embedding=lists([[1.0] * 4] * 2 + [[1.0] * 5])), "not as wide"),
    (
        "not a number",
        lambda: table(embedding=lists([[1.0] * 4] * 2 + [[1.0, float("nan"), 0, 0]])),
        "is none",
    ),
    ("infinite", lambda: table(embedding=lists([[1.0] * 4] * 2 + [[1.0, float("-inf"), 0, 0]])), "infinite"),
    ("all zeros", lambda: table(embedding=lists([[1.0] * 4] * 2 + [[0.0] * 4])), "all zeros"),
    (
        "all zeros with signs",
        lambda: table(embedding=lists([[1.0] * 4] * 2 + [[0.0, -0.0] * 2])),
        "all zeros",
    ),
    ("a turn below 0", lambda: table(turn=pa.array([0, -1, 2])), "counted from 0"),
    ("an empty sitting", lambda: table(sitting=strings("a", "", "b")), "name of a sitting"),
    ("a time without zone", lambda: table(created_at=strings("2030-01-31T12:00:00", None, None)), "RFC 3339"),
    ("a time as a date", lambda: table(created_at=strings("2030-01-31", None, None)), "RFC 3339"),
    ("many tags", lambda: table(tags=lists([["x"] * 33, [], []], pa.list_(pa.string()))), "32 tags at most"),
    ("an empty tag", lambda: table(tags=lists([[""], [], []], pa.list_(pa.string()))), "each 1 to 128"),
    ("a tag missing", lambda: table(tags=lists([[None], [], []], pa.list_(pa.string()))), "each 1 to 128"),
]


class TestRefusals:
    """What is not what the manifest says is refused, and the reason told."""

    @pytest.mark.parametrize(
        ("made", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
    )
    def test_a_wrong_bundle_is_refused(self, made: Callable[[], Any], reason: str) -> None:
        assert reason in why(written(made()), memory(3))

    @pytest.mark.parametrize("dictionary", [True, False])
    def test_a_long_text_is_refused_however_it_is_stored(self, dictionary: bool) -> None:
        data = written(table(3, text=strings(*["x" * 300_000] * 3)), use_dictionary=dictionary)
        assert "65,536 characters at most" in why(data, memory(3))

    def test_an_encoding_in_which_little_becomes_much_is_refused(self) -> None:
        data = written(table(3), use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})
        assert "the encoding DELTA_BYTE_ARRAY" in why(data, memory(3))

    def test_a_compression_that_is_not_known_is_refused(self) -> None:
        assert "the compression BROTLI" in why(written(table(3), compression="brotli"), memory(3))

    def test_a_row_group_that_is_too_long_is_refused(self) -> None:
        rows = ROWS_PER_GROUP_MAX + 1
        data = written(table(rows), row_group_size=rows)
        assert "32,768 rows at most" in why(data, memory(rows))

    @pytest.mark.parametrize(
        ("group", "reason"),
        [
            (RowGroup(1, GROUP_BYTES_MAX + 1, frozenset(), frozenset(), False), "bytes at most"),
            (RowGroup(1, 1, frozenset(), frozenset(), True), "stand in another file"),
        ],
        ids=["unpacked", "elsewhere"],
    )
    def test_what_a_file_says_of_itself_is_enough_to_refuse_it(self, group: RowGroup, reason: str) -> None:
        with pytest.raises(MemoryBundleInvalidError, match=reason):
            check_groups([group], memory(1))

    def test_a_text_a_million_times_over_is_refused_before_it_is_unpacked(self) -> None:
        # Half a megabyte of file that says of itself that it is 300 megabytes.
        text = pa.repeat(pa.scalar("x" * 60_000), 5_000)
        made = table(5_000).drop_columns(["text"]).append_column("text", text)
        data = written(made, use_dictionary=False, compression="zstd", row_group_size=5_000)
        assert len(data) < 1_000_000
        assert "bytes at most" in why(data, memory(5_000))

    @pytest.mark.parametrize(
        "data", [b"", b"PAR1", b"PAR1PAR1", b"junk" * 100, b"PAR1" + b"\xff" * 100 + b"PAR1"]
    )
    def test_what_is_no_parquet_is_refused(self, data: bytes) -> None:
        assert why(data, memory(3)) == "it cannot be read as Parquet"

    def test_more_than_a_bundle_may_hold_is_not_looked_at(self) -> None:
        with mmap.mmap(-1, BUNDLE_BYTES_MAX + 1) as nothing, memoryview(nothing) as data:
            assert "1,073,741,824 bytes at most" in why(data, memory(1))

    def test_a_file_that_breaks_off_is_refused(self) -> None:
        data = memory_bundle(20, 8)
        for size in range(0, len(data), 97):
            assert why(data[:size], memory(20, 8))

    def test_what_an_extension_type_says_of_itself_is_not_asked(self) -> None:
        # Types with code of their own are named in the file's schema; what is read is what they are stored as.
        kind = pa.json_()
        made = table(3, text=pa.ExtensionArray.from_storage(kind, strings("1", "2", "3")))
        assert list(bundle_texts(written(made), memory(3))) == ["1", "2", "3"]


class TestAProcessOfItsOwn:
    """A bundle of somebody else's is looked at by a process that can do nothing else."""

    def test_it_finds_what_a_check_finds(self) -> None:
        data = memory_bundle(50, 8)
        halves = [data[:1_000], data[1_000:]]
        assert inspect_bundle(halves, memory(50, 8)) == check_bundle(data, memory(50, 8))

    def test_its_refusal_is_the_same_refusal(self) -> None:
        with pytest.raises(MemoryBundleInvalidError) as refusal:
            inspect_bundle([memory_bundle(50, 8)], memory(49, 8))
        assert (refusal.value.facts["expected"], refusal.value.facts["found"]) == (49, 50)

    def test_bytes_that_cannot_be_fetched_are_an_error_of_their_own(self) -> None:
        def broken() -> Iterator[bytes]:
            yield b"PAR1"
            raise LookupError("the store is away")

        with pytest.raises(LookupError):
            inspect_bundle(broken(), memory(1))

    @pytest.mark.parametrize("at", [-696, -752, -1_018, -1_050])
    def test_a_bundle_that_ends_its_reader_is_refused(self, at: int) -> None:
        # With the version of the library in use, these bits make it end the process in which it runs.
        data = bytearray(memory_bundle(20, 8))
        data[at] ^= 1
        with pytest.raises(MemoryBundleInvalidError):
            inspect_bundle([bytes(data)], memory(20, 8))
