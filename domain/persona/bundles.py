"""What a memory bundle is: texts with their embeddings, as many and as wide as the manifest says.

A bundle is a Parquet file. These rules know nothing of files: whoever reads one (ops/bundles.py) tells them first what
the file says of itself, so that what is too large is refused before it is unpacked, and then its rows, batch by batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import msgspec

from domain.errors import MemoryBundleInvalidError
from domain.persona.tokens import token_count

BUNDLE_BYTES_MAX = 1024 * 1024 * 1024
ROWS_PER_GROUP_MAX = 32_768
GROUP_BYTES_MAX = 256 * 1024 * 1024
TEXT_CHARS_MAX = 65_536
ID_CHARS_MAX = 200
TAG_CHARS_MAX = 128
TAGS_MAX = 32
CODECS = frozenset({"UNCOMPRESSED", "SNAPPY", "ZSTD", "LZ4", "GZIP"})
# A dictionary is looked at before it is spread out; texts that are each the last one and a little more cannot be.
ENCODINGS_REFUSED = frozenset({"DELTA_BYTE_ARRAY"})

_CREATED_AT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?Z\Z", re.ASCII
)
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]")


class Column(msgspec.Struct, frozen=True):
    """A column a bundle may have: text, vector (of float32), whole (64 bits) or texts."""

    kind: str
    required: bool
    meaning: str


COLUMNS: dict[str, Column] = {
    "id": Column("text", True, "Names the memory within its bundle; distinct."),
    "text": Column("text", True, "What is remembered."),
    "embedding": Column(
        "vector", True, "Its embedding: finite, not all zeros, as wide as the manifest says."
    ),
    "turn": Column("whole", False, "Its place within a sitting, counted from 0."),
    "sitting": Column("text", False, "The conversation it is from."),
    "created_at": Column("text", False, "When it was said: RFC 3339, in UTC, ending in Z."),
    "tags": Column("texts", False, "Words to filter by."),
}


class Expected(Protocol):
    """What a manifest says of its bundle; its own block of memory does."""

    @property
    def item_count(self) -> int: ...

    @property
    def dimension(self) -> int: ...

    @property
    def metric(self) -> str: ...


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same on its way to another process, which need not know of manifests."""

    item_count: int
    dimension: int
    metric: str


class RowGroup(msgspec.Struct, frozen=True):
    """What a file says of one of its row groups."""

    row_count: int
    bytes_unpacked: int
    codecs: frozenset[str]
    encodings: frozenset[str]
    elsewhere: bool


class BundleFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle was found to hold."""

    item_count: int
    dimension: int
    text_chars: int
    text_tokens: int
    columns: list[str]


def refused(why: str, **facts: Any) -> NoReturn:
    """Refuse a bundle.

    Errors: memory_bundle_invalid.
    """
    raise MemoryBundleInvalidError(f"the memory bundle cannot be used: {why}", why=why, **facts)


def check_columns(kinds: Mapping[str, str]) -> None:
    """Refuse a bundle that lacks a column, has one that is not known, or has one of another kind.

    Errors: memory_bundle_invalid.
    """
    for name, column in COLUMNS.items():
        if column.required and name not in kinds:
            refused(f"the column {name} is missing", column=name)
    for name, kind in kinds.items():
        known = COLUMNS.get(name)
        if known is None:
            refused(f"there is no such column: {name[:64]}", column=name[:64])
        if kind != known.kind:
            refused(f"the column {name} holds {kind[:64]}, not {known.kind}", column=name)


def check_groups(groups: Iterable[RowGroup], memory: Expected) -> None:
    """Refuse a bundle by what its file says of itself, before any of it is unpacked.

    Errors: memory_bundle_invalid.
    """
    rows = 0
    for number, group in enumerate(groups):
        rows += group.row_count
        if group.row_count > ROWS_PER_GROUP_MAX:
            refused(f"a row group holds {ROWS_PER_GROUP_MAX:,} rows at most", group=number)
        if group.bytes_unpacked > GROUP_BYTES_MAX:
            refused(f"a row group holds {GROUP_BYTES_MAX:,} bytes at most", group=number)
        if strange := group.codecs - CODECS:
            refused(f"the compression {min(strange)} is not read here", group=number)
        if strange := group.encodings & ENCODINGS_REFUSED:
            refused(f"the encoding {min(strange)} is not read here", group=number)
        if group.elsewhere:
            refused("its columns stand in another file", group=number)
    if rows != memory.item_count:
        refused(
            "it has another number of rows than the manifest says", expected=memory.item_count, found=rows
        )


class Rows:
    """The rows of a bundle seen so far; ids are distinct over all of them."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self.text_chars = 0
        self.text_tokens = 0

    @property
    def count(self) -> int:
        return len(self._ids)

    def take(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Check the rows of a batch, given by column; embeddings are checked where they are numbers.

        Errors: memory_bundle_invalid.
        """
        for name in ("id", "text"):
            if None in columns[name]:
                refused(f"the column {name} has an empty place", column=name)
        self._take_ids(columns["id"])
        self._take_texts(columns["text"])
        _check_turns(columns.get("turn", ()))
        _check_sittings(columns.get("sitting", ()))
        _check_moments(columns.get("created_at", ()))
        _check_tags(columns.get("tags", ()))

    def _take_ids(self, ids: Sequence[str]) -> None:
        for one in ids:
            if not 0 < len(one) <= ID_CHARS_MAX or _HIDDEN.search(one):
                refused(f"an id is 1 to {ID_CHARS_MAX} visible characters", row=len(self._ids))
            if one in self._ids:
                refused("an id stands in it twice", row=len(self._ids), id=one)
            self._ids.add(one)

    def _take_texts(self, texts: Sequence[str]) -> None:
        longest = max(map(len, texts), default=0)
        if longest > TEXT_CHARS_MAX:
            refused(f"a text holds {TEXT_CHARS_MAX:,} characters at most", found=longest)
        self.text_chars += sum(map(len, texts))
        self.text_tokens += sum(map(token_count, texts))


def _check_turns(turns: Iterable[int | None]) -> None:
    if any(turn is not None and turn < 0 for turn in turns):
        refused("turns are counted from 0", column="turn")


def _check_sittings(sittings: Iterable[str | None]) -> None:
    if any(one is not None and not 0 < len(one) <= ID_CHARS_MAX for one in sittings):
        refused(f"the name of a sitting is 1 to {ID_CHARS_MAX} characters", column="sitting")


def _check_moments(moments: Iterable[str | None]) -> None:
    if any(at is not None and not _CREATED_AT.match(at) for at in moments):
        refused("a time is RFC 3339 in UTC, such as 2030-01-31T12:00:00Z", column="created_at")


def _check_tags(rows: Iterable[list[str | None] | None]) -> None:
    for tags in rows:
        if tags is None:
            continue
        if len(tags) > TAGS_MAX or any(tag is None or not 0 < len(tag) <= TAG_CHARS_MAX for tag in tags):
            refused(
                f"a memory has {TAGS_MAX} tags at most, each 1 to {TAG_CHARS_MAX} characters", column="tags"
            )
