"""The hash tree of the log, recomputed from the records and compared with every stored tile.

Three witnesses tell about each hash: what the records give, what the tile stores, and what the entry
above (or the signed root) says. Where two of them agree, the third is the altered one; so a flipped
byte in a record and one in a tile have different names. The tree above goes on with the hash that won.

Source: RFC 6962 section 2.1; C2SP tlog-tiles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import product

from domain.log.audit_findings import Findings, Reader

HASH_BYTES = 32
TILE_WIDTH = 256
EMPTY_ROOT = hashlib.sha256(b"").digest()

_sha256 = hashlib.sha256

# Of a partial tile: computed hashes with gaps filled, stored hashes, the places where they differ.
Row = tuple[list[bytes], list[bytes], list[int]]


def tile_path(level: int | str, index: int, width: int = TILE_WIDTH) -> str:
    """Name the path of a hash tile, or of an entry bundle when the level is `entries`.

    Source: C2SP tlog-tiles, paths.
    """
    groups = [f"{index % 1000:03d}"]
    while index >= 1000:
        index //= 1000
        groups.append(f"x{index % 1000:03d}")
    partial = "" if width == TILE_WIDTH else f".p/{width}"
    return f"tile/{level}/{'/'.join(reversed(groups))}{partial}"


def layers(hashes: list[bytes]) -> list[list[bytes]]:
    """Hash pairs upward; layer b holds the roots of all whole subtrees of 2^b of these hashes."""
    built = [hashes]
    while len(built[-1]) > 1:
        row = built[-1]
        pairs = zip(row[0::2], row[1::2], strict=False)
        built.append([_sha256(b"\x01" + left + right).digest() for left, right in pairs])
    return built


def perfect_root(hashes: list[bytes]) -> bytes:
    """Compute the root over 256 hashes."""
    row = hashes
    while len(row) > 1:
        row = [
            _sha256(b"\x01" + left + right).digest() for left, right in zip(row[0::2], row[1::2], strict=True)
        ]
    return row[0]


def peaks(built: list[list[bytes]], count: int) -> list[bytes]:
    """Give the roots of the whole subtrees that make up the first `count` hashes, largest first."""
    found, start = [], 0
    for bit in range(count.bit_length() - 1, -1, -1):
        if count >> bit & 1:
            found.append(built[bit][start >> bit])
            start += 1 << bit
    return found


def fold(subtrees: list[bytes]) -> bytes:
    """Join whole subtrees, largest first, into the root of them all."""
    if not subtrees:
        return EMPTY_ROOT
    root = subtrees[-1]
    for left in reversed(subtrees[:-1]):
        root = _sha256(b"\x01" + left + root).digest()
    return root


def split_hashes(body: bytes) -> list[bytes]:
    """Cut a tile into its hashes."""
    return [body[at : at + HASH_BYTES] for at in range(0, len(body), HASH_BYTES)]


def differing(left: list[bytes], right: list[bytes]) -> list[int]:
    """List the places where two rows of hashes differ."""
    return [at for at, (one, other) in enumerate(zip(left, right, strict=True)) if one != other]


class Tree:
    """Collects the hashes of the records, tile by tile, and judges every stored tile on the way.

    An unknown hash is empty bytes. Full tiles are pushed in order; `close` judges the partial ones
    against the signed root.
    """

    def __init__(self, reader: Reader, findings: Findings, size: int, root: bytes) -> None:
        self._reader = reader
        self._findings = findings
        self._size = size
        self._root = root
        self._pending: list[list[bytes]] = [[] for _ in range(max(2, (size.bit_length() + 7) // 8 + 1))]
        self._stored: dict[int, tuple[int, bytes | None]] = {}
        self._layers: dict[int, tuple[int, list[list[bytes]]]] = {}

    # ------------------------------------------------------------------ stored tiles

    def width(self, level: int, index: int) -> int:
        """Tell how many hashes the tile has at this size."""
        return min(TILE_WIDTH, (self._size >> (8 * level)) - index * TILE_WIDTH)

    def stored(self, level: int, index: int) -> bytes | None:
        """Read a stored tile once; a missing or malformed one is a finding and None."""
        held = self._stored.get(level)
        if held is None or held[0] != index:
            held = (index, self._read_tile(level, index))
            self._stored[level] = held
        return held[1]

    def _read_tile(self, level: int, index: int) -> bytes | None:
        width = self.width(level, index)
        path = tile_path(level, index, width)
        if width == TILE_WIDTH:
            body = self._reader.read(path, missing="tile_missing")
        else:
            # A grown log may have dropped the partial tile for the full one.
            body = self._reader.read(path)
            if body is None:
                body = self._reader.read(tile_path(level, index))
                body = body[: width * HASH_BYTES] if body is not None else None
            if body is None:
                self._findings.add("tile_missing", f"{path} is not there", path=path)
        if body is None:
            return None
        if len(body) != width * HASH_BYTES:
            message = f"{path} has {len(body)} bytes instead of {width * HASH_BYTES}"
            self._findings.add("tile_altered", message, position=self._first(level, index, 0), path=path)
            return None
        return body

    def parent(self, level: int, index: int) -> bytes:
        """Read what the tile above stores for this full tile; empty when that is not there."""
        above = self.stored(level + 1, index // TILE_WIDTH)
        at = index % TILE_WIDTH * HASH_BYTES
        return above[at : at + HASH_BYTES] if above is not None else b""

    def _first(self, level: int, index: int, at: int) -> int:
        return (index * TILE_WIDTH + at) << (8 * level)

    # ------------------------------------------------------------------ judging

    def judge(self, level: int, index: int, hashes: list[bytes]) -> tuple[list[bytes], set[int]]:
        """Compare a full tile with its stored form; give the believed hashes and the places altered below."""
        body = self.stored(level, index)
        # Without this tile, the one above is compared with what the hashes give.
        if body is None or b"".join(hashes) == body:
            return hashes, set()
        parent = self.parent(level, index)
        stored = split_hashes(body)
        hashes = [mine or theirs for mine, theirs in zip(hashes, stored, strict=True)]
        places = differing(hashes, stored)
        if not places:
            return hashes, set()
        if perfect_root(hashes) == parent:
            self._tile_altered(level, index, places)
            return hashes, set()
        if perfect_root(stored) != parent:
            self._tile_altered(level, index, places)
        self._below_altered(level, index, places)
        return stored, set(places)

    def _tile_altered(self, level: int, index: int, places: list[int]) -> None:
        path = tile_path(level, index, self.width(level, index))
        message = f"hash {places[0]} of {path} is not what lies below it ({len(places)} such hashes)"
        self._findings.add("tile_altered", message, position=self._first(level, index, places[0]), path=path)

    def _below_altered(self, level: int, index: int, places: list[int]) -> None:
        """Name what lies under these hashes; single records are named by the caller, who can read them."""
        if level == 0:
            return
        path = tile_path(level, index, self.width(level, index))
        for at in places:
            first, past = self._first(level, index, at), self._first(level, index, at + 1)
            message = f"records {first} to {min(past, self._size) - 1} and their tiles were altered together"
            self._findings.add("range_altered", message, position=first, path=path)

    # ------------------------------------------------------------------ growing

    def push(self, hashes: list[bytes], root: bytes | None = None, level: int = 0, index: int = 0) -> None:
        """Take the 256 believed hashes of a full tile and put their root one level up."""
        if root is None:
            root = self.parent(level, index) if b"" in hashes else perfect_root(hashes)
        above = self._pending[level + 1]
        above.append(root)
        if len(above) == TILE_WIDTH:
            self._pending[level + 1] = []
            self._layers.pop(level + 1, None)
            believed, _ = self.judge(level + 1, index // TILE_WIDTH, above)
            self.push(believed, None, level + 1, index // TILE_WIDTH)

    def root_with(self, built: list[list[bytes]], count: int) -> bytes | None:
        """Compute the root of the pushed tiles and `count` further leaves; None where hashes are unknown."""
        subtrees: list[bytes] = []
        for level in range(len(self._pending) - 1, 0, -1):
            row = self._pending[level]
            if row:
                subtrees += peaks(self._row_layers(level, row), len(row))
        subtrees += peaks(built, count)
        return None if b"" in subtrees else fold(subtrees)

    def _row_layers(self, level: int, row: list[bytes]) -> list[list[bytes]]:
        held = self._layers.get(level)
        if held is None or held[0] != len(row):
            held = (len(row), layers(row))
            self._layers[level] = held
        return held[1]

    # ------------------------------------------------------------------ closing

    def close(self, leaves: list[bytes]) -> tuple[list[bytes], set[int]]:
        """Judge all partial tiles and the root; give the believed last leaves and the altered places.

        Cost: at most 2^d roots, where d is the number of levels whose partial tile differs.
        """
        rows = dict(self._partial_rows(leaves))
        altered = {level: places for level, (_, _, places) in rows.items() if places}
        choice = self._choose(rows, list(altered))
        doubtful = choice is None
        if choice is None:
            self._no_root(rows)
            choice = dict.fromkeys(altered, 0)
        for level, places in altered.items():
            index = self._size >> (8 * (level + 1))
            if choice[level] == 0 or doubtful:
                self._tile_altered(level, index, places)
            if choice[level] == 1 or doubtful:
                self._below_altered(level, index, places)
        believed, stored, places = rows.get(0, ([], [], []))
        if places and (choice[0] == 1 or doubtful):
            return stored, set(places)
        return believed, set()

    def _partial_rows(self, leaves: list[bytes]) -> Iterator[tuple[int, Row]]:
        """Give the row of each level that has a partial tile."""
        for level in range(len(self._pending)):
            row = leaves if level == 0 else self._pending[level]
            if not row:
                continue
            body = self.stored(level, self._size >> (8 * (level + 1)))
            if body is None:
                yield level, (row, row, [])
                continue
            stored = split_hashes(body)
            filled = [mine or theirs for mine, theirs in zip(row, stored, strict=True)]
            yield level, (filled, stored, differing(filled, stored))

    def _choose(self, rows: dict[int, Row], doubtful: list[int]) -> dict[int, int] | None:
        """Find which of the differing rows, computed (0) or stored (1), gives the signed root."""
        for picks in product((0, 1), repeat=len(doubtful)):
            choice = dict(zip(doubtful, picks, strict=True))
            subtrees: list[bytes] = []
            for level in sorted(rows, reverse=True):
                computed, stored, _ = rows[level]
                row = stored if choice.get(level) else computed
                subtrees += peaks(layers(row), len(row)) if b"" not in row else [b""]
            if b"" not in subtrees and fold(subtrees) == self._root:
                return choice
        return None

    def _no_root(self, rows: dict[int, Row]) -> None:
        unknown = any(b"" in row for row, _, _ in rows.values())
        why = (
            "missing hashes leave the root unknown"
            if unknown
            else "the records and tiles do not give the signed root"
        )
        self._findings.add("root_mismatch", f"{why} of size {self._size}", path="checkpoint")
