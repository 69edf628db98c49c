"""The Merkle tree of the log: how it grows, and the proofs that it only ever grew.

The tree of RFC 9162 (and RFC 6962 before it) over SHA-256. A tree of size n is the same wherever it is
computed from: from its peaks (`Frontier`), from its partial tiles (`Tree`), or from stored tiles (the
proofs). Nothing here changes in place: a batch that fails to commit leaves no trace.

Sizes count leaves, positions are 0-based; a height counts rows of the tree from the leaves up, a level
counts tiles, eight rows each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from domain.errors import LogDamagedError, ProofInvalidError, TreeSizeInvalidError
from domain.log.hashes import (
    EMPTY_ROOT,
    HASH_BYTES,
    complete_root,
    fold_peaks,
    leaf_hash,
    leaf_hashes,
    node_hash,
    parent_hashes,
    split_hashes,
)
from domain.log.tiles import (
    TILE_BYTES,
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    level_count,
    partial_width,
    tile_width,
)

__all__ = [
    "EMPTY_ROOT", "SIZE_MAX", "Frontier", "FullTile", "Growth", "Prover", "ReadTile", "Tree", "consistency_proof",
    "consistency_tiles", "inclusion_proof", "inclusion_tiles", "leaf_hash", "leaf_hashes", "node_hash",
    "root_from_tiles", "verify_consistency", "verify_inclusion",
]  # fmt: skip

SIZE_MAX = 2**63 - 1
SHARED_HASHES_MAX = 1 << 16

ReadTile = Callable[[int, int, int], bytes]
"""Give the first `width` hashes of tile (level, index): `read_tile(level, index, width)`."""


# --------------------------------------------------------------------------- growing


class Frontier(msgspec.Struct, frozen=True):
    """The right edge of a tree: the roots of its complete subtrees, enough to grow it and to give its root.

    `stack[h]` is the complete subtree of height h that no pair has taken up yet, or empty.
    """

    size: int = 0
    stack: tuple[bytes, ...] = ()

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """Give the roots of the complete subtrees, the largest (leftmost) first."""
        return tuple(peak for peak in reversed(self.stack) if peak)

    @classmethod
    def of(cls, size: int, peaks: Sequence[bytes]) -> Frontier:
        """Put a frontier together from the peaks, the largest first.

        Errors: log_damaged.
        """
        if not 0 <= size <= SIZE_MAX or len(peaks) != size.bit_count():
            raise LogDamagedError("the peaks do not belong to this size", size=size, peak_count=len(peaks))
        smallest_first = iter(reversed(peaks))
        heights = range(size.bit_length())
        return cls(size, tuple(next(smallest_first) if size >> height & 1 else b"" for height in heights))

    def to_bytes(self) -> bytes:
        """Write the size in eight bytes and the peaks behind it, the largest first."""
        return self.size.to_bytes(8, "big") + b"".join(self.peaks)

    @classmethod
    def from_bytes(cls, data: bytes) -> Frontier:
        """Read what `to_bytes` wrote.

        Errors: log_damaged.
        """
        if len(data) < 8 or len(data) % HASH_BYTES != 8:
            raise LogDamagedError("a frontier is a size and whole hashes", got=len(data))
        return cls.of(int.from_bytes(data[:8], "big"), split_hashes(data[8:]))

    def root(self) -> bytes:
        """Give the root of the tree.

        Cost: at most one hash per bit of the size.
        """
        return fold_peaks(self.peaks)

    def extend(self, hashes: Sequence[bytes]) -> tuple[Frontier, list[Sequence[bytes]]]:
        """Append leaf hashes; give the new frontier and the hashes that each row gained, leaves first.

        Cost:   about one hash per leaf.
        Source: RFC 9162, section 2.1.1, read from the leaves up.
        """
        if not hashes:
            return self, []
        stack = list(self.stack)
        rows: list[Sequence[bytes]] = []
        start = self.size
        row = hashes
        while row:
            height = len(rows)
            rows.append(row)
            if height == len(stack):
                stack.append(b"")
            if start & 1:
                row = [stack[height], *row]
            stack[height] = row[-1] if len(row) & 1 else b""
            row = parent_hashes(row)
            start >>= 1
        return Frontier(self.size + len(hashes), tuple(stack)), rows


class FullTile(msgspec.Struct, frozen=True):
    """A tile that has just been completed and will never change."""

    level: int
    index: int
    hashes: bytes


class Growth(NamedTuple):
    """What a batch makes of a tree; it becomes true when the batch commits."""

    tree: Tree
    full_tiles: list[FullTile]


class Tree(msgspec.Struct, frozen=True):
    """A tree as its writer holds it: its frontier, and the hashes of the partial tile at each level.

    `edge[level]` is empty where the level ends with a full tile.
    """

    frontier: Frontier = Frontier()
    edge: tuple[bytes, ...] = ()

    @property
    def size(self) -> int:
        """Count the leaves."""
        return self.frontier.size

    def root(self) -> bytes:
        """Give the root of the tree.

        Cost: at most one hash per bit of the size.
        """
        return self.frontier.root()

    @classmethod
    def from_edge(cls, size: int, edge: Sequence[bytes]) -> Tree:
        """Rebuild a tree from the partial tiles of its levels; the caller compares the root with its head.

        Cost:   at most 247 hashes per level.
        Errors: log_damaged.
        """
        if not 0 <= size <= SIZE_MAX or len(edge) != level_count(size):
            raise LogDamagedError("the partial tiles do not belong to this size", size=size, levels=len(edge))
        peaks: list[bytes] = []
        for level in reversed(range(len(edge))):
            if len(edge[level]) != partial_width(level, size) * HASH_BYTES:
                raise LogDamagedError("a partial tile has the wrong width", size=size, level=level)
            peaks.extend(_tile_peaks(edge[level]))
        return cls(Frontier.of(size, peaks), tuple(bytes(hashes) for hashes in edge))

    def extend(self, hashes: Sequence[bytes]) -> Growth:
        """Append leaf hashes; give the new tree and the tiles that became full.

        Cost: about one hash per leaf, and one copy of each partial tile that grows (at most 8 KiB).
        """
        frontier, rows = self.frontier.extend(hashes)
        edge = list(self.edge)
        full_tiles: list[FullTile] = []
        for level, row in enumerate(rows[::TILE_HEIGHT]):
            if level == len(edge):
                edge.append(b"")
            index = self.size >> (TILE_HEIGHT * (level + 1))
            grown = edge[level] + b"".join(row)
            while len(grown) >= TILE_BYTES:
                full_tiles.append(FullTile(level, index, grown[:TILE_BYTES]))
                grown = grown[TILE_BYTES:]
                index += 1
            edge[level] = grown
        return Growth(Tree(frontier, tuple(edge)), full_tiles)

    def partial_tiles(self) -> Iterator[tuple[Tile, bytes]]:
        """List the partial tiles at the right edge, each with its hashes."""
        for level, hashes in enumerate(self.edge):
            if hashes:
                index = self.size >> (TILE_HEIGHT * (level + 1))
                yield Tile(level, index, len(hashes) // HASH_BYTES), hashes


def _tile_peaks(hashes: bytes) -> Iterator[bytes]:
    """Give the roots of the complete subtrees inside one partial tile, the largest first."""
    width = len(hashes) // HASH_BYTES
    at = 0
    for height in reversed(range(TILE_HEIGHT)):
        if width >> height & 1:
            span = HASH_BYTES << height
            yield complete_root(hashes[at : at + span])
            at += span


# --------------------------------------------------------------------------- which hashes a proof is made of

Span = tuple[int, int]
"""A range of positions, the end not included, whose hash is one element of a proof."""


def _split(lo: int, hi: int) -> int:
    """Give the position where a range is cut: behind the largest complete subtree that leaves something."""
    return lo + (1 << ((hi - lo - 1).bit_length() - 1))


def _inclusion_spans(position: int, size: int) -> list[Span]:
    """Name the subtrees beside the way from a leaf to the root, the leaf's neighbour first."""
    spans: list[Span] = []
    lo, hi = 0, size
    while hi - lo > 1:
        middle = _split(lo, hi)
        if position < middle:
            spans.append((middle, hi))
            hi = middle
        else:
            spans.append((lo, middle))
            lo = middle
    return spans[::-1]


def _consistency_spans(size1: int, size2: int) -> list[Span]:
    """Name the subtrees that rebuild both roots, the deepest first.

    Source: RFC 9162, section 2.1.4.1.
    """
    spans: list[Span] = []
    lo, hi = 0, size2
    while size1 < hi:
        middle = _split(lo, hi)
        if size1 <= middle:
            spans.append((middle, hi))
            hi = middle
        else:
            spans.append((lo, middle))
            lo = middle
    if lo:
        spans.append((lo, hi))
    return spans[::-1]


def _complete_subtrees(lo: int, hi: int) -> Iterator[tuple[int, int]]:
    """Cut a range into complete subtrees (height, index), from left to right; each lies in one tile."""
    while lo < hi:
        height = (hi - lo).bit_length() - 1
        if lo:
            height = min(height, (lo & -lo).bit_length() - 1)
        yield height, lo >> height
        lo += 1 << height


def _place(height: int, index: int) -> tuple[int, int, int, int]:
    """Find a complete subtree in its tile: level, tile index, first hash, hash count."""
    level, rows = divmod(height, TILE_HEIGHT)
    tile, first = divmod(index << rows, TILE_WIDTH)
    return level, tile, first, 1 << rows


def _tiles_under(spans: Iterable[Span], size: int) -> list[Tile]:
    places = (_place(*subtree) for lo, hi in spans for subtree in _complete_subtrees(lo, hi))
    names = {(level, index) for level, index, _, _ in places}
    return [Tile(level, index, tile_width(level, index, size)) for level, index in sorted(names)]


def inclusion_tiles(position: int, size: int) -> list[Tile]:
    """Name the tiles an inclusion proof will read, so that one query can fetch them all.

    Cost:   at most two tiles per level.
    Errors: invalid_tree_size.
    """
    _check_position(position, size)
    return _tiles_under(_inclusion_spans(position, size), size)


def consistency_tiles(size1: int, size2: int) -> list[Tile]:
    """Name the tiles a consistency proof will read, so that one query can fetch them all.

    Cost:   at most two tiles per level.
    Errors: invalid_tree_size.
    """
    _check_sizes(size1, size2)
    return _tiles_under(_consistency_spans(size1, size2), size2) if size1 else []


def _check_position(position: int, size: int) -> None:
    if not 0 <= position < size <= SIZE_MAX:
        raise TreeSizeInvalidError("a tree of this size lacks that position", position=position, size=size)


def _check_sizes(size1: int, size2: int) -> None:
    if not 0 <= size1 <= size2 <= SIZE_MAX:
        raise TreeSizeInvalidError("the first size exceeds the second", size1=size1, size2=size2)


# --------------------------------------------------------------------------- proofs


class _Reader:
    """Give subtree hashes out of tiles, each tile read once."""

    def __init__(self, size: int, read_tile: ReadTile) -> None:
        self._size = size
        self._read_tile = read_tile
        self._read: dict[tuple[int, int], bytes] = {}

    def span_hash(self, span: Span) -> bytes:
        return fold_peaks([self._subtree(height, index) for height, index in _complete_subtrees(*span)])

    def _subtree(self, height: int, index: int) -> bytes:
        level, tile, first, count = _place(height, index)
        hashes = self._tile(level, tile)[first * HASH_BYTES : (first + count) * HASH_BYTES]
        return complete_root(hashes)

    def _tile(self, level: int, index: int) -> bytes:
        found = self._read.get((level, index))
        if found is None:
            width = tile_width(level, index, self._size)
            found = self._read_tile(level, index, width)
            if len(found) != width * HASH_BYTES:
                raise LogDamagedError("a tile has the wrong width", level=level, index=index, width=width)
            self._read[level, index] = found
        return found


def root_from_tiles(size: int, read_tile: ReadTile) -> bytes:
    """Give the root of any size the tiles reach, from the partial tiles of that size.

    Cost:   one tile and at most 247 hashes per level.
    Errors: invalid_tree_size, log_damaged.
    """
    _check_sizes(0, size)
    return _Reader(size, read_tile).span_hash((0, size))


def inclusion_proof(position: int, size: int, read_tile: ReadTile) -> list[bytes]:
    """Prove that the leaf at a position is in the tree of a size: the sibling hashes, the leaf's first.

    Cost:   at most two tiles and 502 hashes per level, a level being 256 times the records.
    Errors: invalid_tree_size, log_damaged.
    Source: RFC 9162, section 2.1.3.1.
    """
    _check_position(position, size)
    reader = _Reader(size, read_tile)
    return [reader.span_hash(span) for span in _inclusion_spans(position, size)]


class Prover:
    """Proves many records of one tree; what the proofs of neighbours share is computed once."""

    def __init__(self, size: int, read_tile: ReadTile) -> None:
        self._size = size
        self._read_tile = read_tile
        self._forget()

    def prove(self, position: int) -> list[bytes]:
        """Prove that the leaf at a position is in the tree, as `inclusion_proof` does.

        Cost:   some ten hashes where the record before it lay in the same tile.
        Errors: invalid_tree_size, log_damaged.
        """
        _check_position(position, self._size)
        if len(self._shared) > SHARED_HASHES_MAX:
            self._forget()
        return [self._hash(span) for span in _inclusion_spans(position, self._size)]

    def _hash(self, span: Span) -> bytes:
        found = self._shared.get(span)
        if found is None:
            found = self._shared[span] = self._reader.span_hash(span)
        return found

    def _forget(self) -> None:
        self._reader = _Reader(self._size, self._read_tile)
        self._shared: dict[Span, bytes] = {}


def consistency_proof(size1: int, size2: int, read_tile: ReadTile) -> list[bytes]:
    """Prove that a tree is the beginning of a larger one; from size 0, and to the same size, it is empty.

    Cost:   at most two tiles and 502 hashes per level.
    Errors: invalid_tree_size, log_damaged.
    Source: RFC 9162, section 2.1.4.1.
    """
    _check_sizes(size1, size2)
    if size1 == 0:
        return []
    reader = _Reader(size2, read_tile)
    return [reader.span_hash(span) for span in _consistency_spans(size1, size2)]


def verify_inclusion(leaf: bytes, position: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that a leaf hash and its siblings lead to the root.

    Cost:   one hash per sibling, about log2(size).
    Errors: invalid_tree_size, invalid_proof.
    Source: RFC 9162, section 2.1.3.2.
    """
    _check_position(position, size)
    _check_hashes(leaf, root, *proof)
    here, last, current = position, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofInvalidError("the proof is longer than the way to the root")
        if here & 1 or here == last:
            current = node_hash(sibling, current)
            here, last = _climb_to_right_child(here, last)
        else:
            current = node_hash(current, sibling)
        here, last = here >> 1, last >> 1
    if last or current != root:
        raise ProofInvalidError(position=position, size=size)


def verify_consistency(size1: int, root1: bytes, size2: int, root2: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree of the first size is the beginning of the tree of the second.

    An empty tree proves nothing, so size 0 is refused: its meaning is the caller's to decide.
    Cost:   two hashes per element, about 2 * log2(size2).
    Errors: invalid_tree_size, invalid_proof.
    Source: RFC 9162, section 2.1.4.2.
    """
    _check_sizes(size1, size2)
    if size1 == 0:
        raise TreeSizeInvalidError("a consistency proof starts at size 1", size1=size1, size2=size2)
    if size1 == size2:
        if proof or root1 != root2:
            raise ProofInvalidError("trees of one size need the same root and no proof", size=size1)
        return
    _check_hashes(root1, root2, *proof)
    # Where the first tree is complete, its root is the first element and is left out of the proof.
    path = [root1, *proof] if size1 & (size1 - 1) == 0 else list(proof)
    if not proof or _rebuild_roots(size1, size2, path) != (root1, root2):
        raise ProofInvalidError(size1=size1, size2=size2)


def _rebuild_roots(size1: int, size2: int, path: Sequence[bytes]) -> tuple[bytes, bytes]:
    here, last = size1 - 1, size2 - 1
    while here & 1:
        here, last = here >> 1, last >> 1
    first = second = path[0]
    for element in path[1:]:
        if last == 0:
            raise ProofInvalidError("the proof is longer than the way to the root")
        if here & 1 or here == last:
            first, second = node_hash(element, first), node_hash(element, second)
            here, last = _climb_to_right_child(here, last)
        else:
            second = node_hash(second, element)
        here, last = here >> 1, last >> 1
    if last:
        raise ProofInvalidError("the proof ends before the root")
    return first, second


def _climb_to_right_child(here: int, last: int) -> tuple[int, int]:
    """Skip the rows in which the right edge has no neighbour and rises unchanged."""
    while here and not here & 1:
        here, last = here >> 1, last >> 1
    return here, last


def _check_hashes(*hashes: bytes) -> None:
    if any(len(given) != HASH_BYTES for given in hashes):
        raise ProofInvalidError("every hash has 32 bytes")
