"""Arrays in PostgreSQL's binary form, packed in bulk.

A commit sends one array per column. psycopg dumps arrays element by element in Python, which costs more than the
database needs to store them; here the elements of a column are joined in one or two calls.
Source: PostgreSQL, src/backend/utils/adt/arrayfuncs.c, array_recv.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct, pack

import numpy as np
from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper
from psycopg.pq import Format

_BYTEA, _INT8, _INT4, _INT2, _TEXT = 17, 20, 23, 21, 25
_header = Struct("!iiIii")
_length = Struct("!i").pack
_NULL = _length(-1)


class PackedArray:
    """The binary form of a one-dimensional array; its type is named by a cast in the statement."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class PackedArrayDumper(Dumper):
    """Hand the packed bytes to libpq as they are."""

    format = Format.BINARY
    oid = 0

    def dump(self, obj: PackedArray) -> bytes:
        """Give the bytes."""
        return obj.data


def register(context: AdaptContext) -> None:
    """Let a connection send packed arrays."""
    context.adapters.register_dumper(PackedArray, PackedArrayDumper)  # type: ignore[union-attr]


def _array(oid: int, count: int, body: bytes, nulls: int = 0) -> PackedArray:
    if count == 0:
        return PackedArray(pack("!iiI", 0, 0, oid))
    return PackedArray(_header.pack(1, nulls, oid, count, 1) + body)


def bytea(items: Sequence[bytes]) -> PackedArray:
    """Pack bytea[]."""
    return _array(
        _BYTEA, len(items), b"".join([part for item in items for part in (_length(len(item)), item)])
    )


def fixed_bytea(items: Sequence[bytes], width: int) -> PackedArray:
    """Pack bytea[] of items that all have the same width, in one join."""
    size = _length(width)
    return _array(_BYTEA, len(items), size + size.join(items) if items else b"")


def text(items: Sequence[str | None]) -> PackedArray:
    """Pack text[]; None becomes NULL."""
    return _array(_TEXT, len(items), _text_body(items), int(None in items))


def _text_body(items: Sequence[str | None]) -> bytes:
    # Most columns of a batch hold one value throughout: a tenant, a type, NULL.
    if items and items.count(items[0]) == len(items):
        items, times = items[:1], len(items)
    else:
        times = 1
    parts: list[bytes] = []
    for item in items:
        if item is None:
            parts.append(_NULL)
        else:
            data = item.encode()
            parts += (_length(len(data)), data)
    return b"".join(parts) * times


def text_bytes(items: Sequence[bytes]) -> PackedArray:
    """Pack text[] from UTF-8 bytes."""
    return _array(
        _TEXT, len(items), b"".join([part for item in items for part in (_length(len(item)), item)])
    )


# Above this many elements numpy is faster than struct.
_STRUCT_MAX = 64
_INTS = {
    _INT8: (np.dtype([("n", ">i4"), ("v", ">i8")]), "iq"),
    _INT4: (np.dtype([("n", ">i4"), ("v", ">i4")]), "ii"),
    _INT2: (np.dtype([("n", ">i4"), ("v", ">i2")]), "ih"),
}


def _ints(oid: int, items: Sequence[int]) -> PackedArray:
    form, letters = _INTS[oid]
    width = form["v"].itemsize
    if len(items) <= _STRUCT_MAX:
        words = [word for item in items for word in (width, item)]
        return _array(oid, len(items), pack("!" + letters * len(items), *words))
    rows = np.empty(len(items), dtype=form)
    rows["n"] = width
    rows["v"] = items
    return _array(oid, len(items), rows.tobytes())


def int8(items: Sequence[int]) -> PackedArray:
    """Pack bigint[]."""
    return _ints(_INT8, items)


def int4(items: Sequence[int]) -> PackedArray:
    """Pack integer[]."""
    return _ints(_INT4, items)


def int2(items: Sequence[int]) -> PackedArray:
    """Pack smallint[]."""
    return _ints(_INT2, items)


def nullable_int8(items: Sequence[int | None]) -> PackedArray:
    """Pack bigint[]; None becomes NULL."""
    word = Struct("!iq").pack
    body = b"".join([_NULL if item is None else word(8, item) for item in items])
    return _array(_INT8, len(items), body, int(None in items))
