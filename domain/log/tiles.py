"""Tiles: the tree and its records cut into files that never change, and the paths they are served under.

A tile is up to 256 neighbouring hashes of one level; level `n` holds every eighth row of the tree. An
entry bundle is the same cut through the records themselves. Only full tiles are hashed upward, so the
hashes of a partial tile are the beginning of the full one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from domain.errors import BundleMalformedError, LogDamagedError, RecordTooLargeError
from domain.log.hashes import HASH_BYTES, complete_root

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
TILE_BYTES = TILE_WIDTH * HASH_BYTES
RECORD_BYTES_MAX = 65_535

# The level of a bundle of entries; hash tiles start at level 0.
ENTRIES = -1
LEVEL_MAX = 63

# Positions are signed 64-bit integers in the database.
TILE_INDEX_MAX = 2**63 // TILE_WIDTH - 1

_PATH = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<index>(?:x[0-9]{3}/){0,6}[0-9]{3})"
    r"(?:\.p/(?P<width>[1-9][0-9]{0,2}))?\Z",
    re.ASCII,
)


class Tile(msgspec.Struct, frozen=True, order=True):
    """The name of a hash tile, or of an entry bundle where the level is `ENTRIES`."""

    level: int
    index: int
    width: int = TILE_WIDTH

    @property
    def is_full(self) -> bool:
        """Tell whether the tile will never grow."""
        return self.width == TILE_WIDTH

    @property
    def is_entries(self) -> bool:
        """Tell whether this names records rather than hashes."""
        return self.level == ENTRIES

    @property
    def first_position(self) -> int:
        """Give the position of the first record under the tile."""
        return self.index << (TILE_HEIGHT * (max(self.level, 0) + 1))

    @property
    def path(self) -> str:
        """Give the path under the prefix of the log."""
        if self.is_entries:
            return entries_path(self.index, self.width)
        return tile_path(self.level, self.index, self.width)


# --------------------------------------------------------------------------- paths


def tile_path(level: int, index: int, width: int = TILE_WIDTH) -> str:
    """Write the path of a hash tile, without a leading slash.

    Source: c2sp.org/tlog-tiles, Merkle Tree.
    """
    return f"tile/{level}/{_index_path(index)}{_width_path(width)}"


def entries_path(index: int, width: int = TILE_WIDTH) -> str:
    """Write the path of an entry bundle, without a leading slash.

    Source: c2sp.org/tlog-tiles, Log entries.
    """
    return f"tile/entries/{_index_path(index)}{_width_path(width)}"


def _index_path(index: int) -> str:
    path = f"{index % 1000:03d}"
    while index := index // 1000:
        path = f"x{index % 1000:03d}/{path}"
    return path


def _width_path(width: int) -> str:
    return "" if width == TILE_WIDTH else f".p/{width}"


def parse_tile_path(text: str) -> Tile | None:
    """Read the path of a tile or bundle; anything but the one canonical spelling is None."""
    match = _PATH.match(text)
    if match is None:
        return None
    level = ENTRIES if match["level"] == "entries" else int(match["level"])
    tile = Tile(level, int(re.sub("[x/]", "", match["index"])), int(match["width"] or TILE_WIDTH))
    if level > LEVEL_MAX or tile.index > TILE_INDEX_MAX or tile.path != text:
        return None
    return tile


# --------------------------------------------------------------------------- which tiles a tree has


def level_count(size: int) -> int:
    """Count the levels of tiles of a tree."""
    return (size.bit_length() + TILE_HEIGHT - 1) // TILE_HEIGHT


def partial_width(level: int, size: int) -> int:
    """Give the width of the partial tile at the right end of a level; 0 says that there is none.

    Source: c2sp.org/tlog-tiles, Partial Tiles.
    """
    return (size >> (TILE_HEIGHT * max(level, 0))) % TILE_WIDTH


def tile_width(level: int, index: int, size: int) -> int:
    """Give the width a tile has in a tree of this size; 0 says that the tree does not reach it."""
    hash_count = size >> (TILE_HEIGHT * max(level, 0))
    return max(0, min(TILE_WIDTH, hash_count - index * TILE_WIDTH))


def tiles_of(size: int, start: int = 0) -> Iterator[Tile]:
    """List the hash tiles of a tree, level by level, partial ones last on their level.

    With a start, list only tiles that a tree of that smaller size did not have in this width.
    """
    for level in range(level_count(size)):
        full_count = size >> (TILE_HEIGHT * (level + 1))
        for index in range(start >> (TILE_HEIGHT * (level + 1)), full_count):
            yield Tile(level, index)
        width = partial_width(level, size)
        if width and (start >> (TILE_HEIGHT * level)) < (size >> (TILE_HEIGHT * level)):
            yield Tile(level, full_count, width)


def bundles_of(size: int) -> Iterator[Tile]:
    """List the entry bundles of a tree, the partial one last."""
    for index in range(size // TILE_WIDTH):
        yield Tile(ENTRIES, index)
    if width := size % TILE_WIDTH:
        yield Tile(ENTRIES, size // TILE_WIDTH, width)


def tile_root(tile: bytes) -> bytes:
    """Hash a full tile to the one hash that stands for it on the level above.

    Cost:   255 hashes.
    Errors: log_damaged.
    """
    if len(tile) != TILE_BYTES:
        raise LogDamagedError("a full tile has 8,192 bytes", got=len(tile))
    return complete_root(tile)


# --------------------------------------------------------------------------- entry bundles


def encode_bundle(records: Iterable[bytes]) -> bytes:
    """Write records one after the other, each behind its length in two bytes.

    Errors: record_too_large.
    Source: c2sp.org/tlog-tiles, Log entries.
    """
    parts: list[bytes] = []
    for record in records:
        if len(record) > RECORD_BYTES_MAX:
            raise RecordTooLargeError(record_bytes=len(record))
        parts.append(len(record).to_bytes(2, "big"))
        parts.append(record)
    return b"".join(parts)


def decode_bundle(data: bytes) -> Sequence[bytes]:
    """Read the records of a bundle.

    Errors: malformed_bundle.
    """
    records: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + 2
        at = start + int.from_bytes(data[at:start], "big")
        if at > len(data) or len(records) == TILE_WIDTH:
            raise BundleMalformedError(records_read=len(records))
        records.append(data[start:at])
    return records
