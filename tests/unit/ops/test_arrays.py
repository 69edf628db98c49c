"""Packed arrays are byte for byte what psycopg's own dumpers write."""

from __future__ import annotations

import struct
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import PyFormat, Transformer
from psycopg.types.array import ListBinaryDumper
from psycopg.types.numeric import Int2, Int4, Int8

from ops import arrays

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def psycopg_bytes(items: list[Any]) -> bytes:
    """Dump a list as psycopg does."""
    dumper = Transformer().get_dumper(items, PyFormat.BINARY)
    assert isinstance(dumper, ListBinaryDumper)
    return bytes(dumper.dump(items) or b"")


class TestPacking:
    @given(st.lists(st.binary(), min_size=1))
    def test_bytes(self, items):
        assert arrays.bytea(items).data == psycopg_bytes(items)

    @given(st.integers(0, 70).flatmap(lambda n: st.lists(st.binary(min_size=n, max_size=n), min_size=1)))
    def test_bytes_of_one_width(self, items):
        assert arrays.fixed_bytea(items, len(items[0])).data == psycopg_bytes(items)

    @given(st.lists(texts | st.none(), min_size=1).filter(lambda items: any(i is not None for i in items)))
    def test_texts_some_of_them_null(self, items):
        assert arrays.text(items).data == psycopg_bytes(items)

    @given(st.lists(texts, min_size=1))
    def test_texts_that_are_utf_8_already(self, items):
        assert arrays.text_bytes([item.encode() for item in items]).data == psycopg_bytes(items)

    @given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
    def test_long_integers(self, items):
        assert arrays.int8(items).data == psycopg_bytes([Int8(item) for item in items])

    @given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1))
    def test_integers(self, items):
        assert arrays.int4(items).data == psycopg_bytes([Int4(item) for item in items])

    @given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1))
    def test_short_integers(self, items):
        assert arrays.int2(items).data == psycopg_bytes([Int2(item) for item in items])

    @given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.none(), min_size=1))
    def test_long_integers_some_of_them_null(self, items):
        if all(item is None for item in items):
            return
        expected = psycopg_bytes([None if item is None else Int8(item) for item in items])
        assert arrays.nullable_int8(items).data == expected


class TestEdges:
    @pytest.mark.parametrize(
        ("packed", "oid"),
        [
            (arrays.bytea([]), 17), (arrays.fixed_bytea([], 32), 17), (arrays.text([]), 25),
            (arrays.text_bytes([]), 25), (arrays.int8([]), 20), (arrays.int4([]), 23), (arrays.int2([]), 21),
            (arrays.nullable_int8([]), 20),
        ],
    )  # fmt: skip
    def test_an_empty_array_has_no_dimension_and_a_type(self, packed, oid):
        assert packed.data == b"\0" * 8 + oid.to_bytes(4, "big")

    def test_an_array_of_nulls_only_keeps_its_type(self):
        head = (1).to_bytes(4, "big") * 2
        for packed, oid in ((arrays.text([None, None]), 25), (arrays.nullable_int8([None, None]), 20)):
            assert packed.data == head + oid.to_bytes(4, "big") + b"\0\0\0\2\0\0\0\1" + b"\xff" * 8

    @pytest.mark.parametrize(
        ("pack", "value"),
        [
            (arrays.int8, 2**63), (arrays.int8, -(2**63) - 1), (arrays.int4, 2**31), (arrays.int2, 2**15),
            (arrays.int2, -(2**15) - 1),
        ],
    )  # fmt: skip
    def test_a_number_that_does_not_fit_is_refused_not_wrapped(self, pack, value):
        with pytest.raises((OverflowError, struct.error)):
            pack([1, value])

    def test_a_connection_hands_packed_bytes_on_as_they_are(self):
        class Context:
            adapters = psycopg.adapters.__class__(psycopg.adapters)

        arrays.register(Context)  # type: ignore[arg-type]
        dumper = Context.adapters.get_dumper(arrays.PackedArray, PyFormat.BINARY)
        packed = arrays.int8([1])
        assert dumper(arrays.PackedArray).dump(packed) == packed.data
