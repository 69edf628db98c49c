"""The walk over bundles and tiles, in the order of the log."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from domain.log.audit_findings import Findings, Reader
from domain.log.audit_notes import Checkpoint
from domain.log.audit_records import stream_of
from domain.log.audit_tree import (
    TILE_WIDTH,
    Tree,
    layers,
    perfect_root,
    split_hashes,
    tile_path,
)

# A forged size may promise any number of bundles: after so many missing in a row the walk gives up.
MISSING_IN_A_ROW_MAX = 1024

_sha256 = hashlib.sha256
_sha3 = hashlib.sha3_512


@dataclass(frozen=True)
class Head:
    """An earlier tree head and where it was found."""

    size: int
    root: bytes
    path: str


class Taker(Protocol):
    """Who is handed the records, in the order of the log."""

    def take(self, position: int, records: list[bytes]) -> None:
        """Take authentic records that stand at consecutive positions."""

    def hole(self, position: int) -> None:
        """Hear that a record was here which could not be read."""

    def judge(self, position: int, raw: bytes, digest: bytes, *, altered: bool = False) -> None:
        """Take one record that is not the hashed one."""


def split_bundle(body: bytes, count_max: int) -> tuple[list[bytes], int]:
    """Cut a bundle into at most so many records; give them and the offset where cutting stopped."""
    records: list[bytes] = []
    at, end = 0, len(body)
    while at + 2 <= end and len(records) < count_max:
        start = at + 2
        stop = start + (body[at] << 8 | body[at + 1])
        if stop > end:
            break
        records.append(body[start:stop])
        at = stop
    return records, at


def split_whole(body: bytes) -> list[bytes]:
    """Cut a bundle into its records; give nothing when its lengths do not end where it ends."""
    records: list[bytes] = []
    at, end = 0, len(body) - 1
    while at < end:
        start = at + 2
        at = start + (body[at] << 8 | body[at + 1])
        records.append(body[start:at])
    return records if at == len(body) else []


def leaf_hash(record: bytes) -> bytes:
    """Compute the leaf hash of a record.

    Source: RFC 6962, section 2.1.
    """
    return _sha256(b"\x00" + record).digest()


class Scan:
    """Reads every bundle once, and hands records to the streams and hashes to the tree."""

    def __init__(
        self, reader: Reader, findings: Findings, streams: Taker, checkpoint: Checkpoint, heads: list[Head]
    ) -> None:
        self._reader = reader
        self._findings = findings
        self._streams = streams
        self._size = checkpoint.size
        self._tree = Tree(reader, findings, checkpoint.size, checkpoint.root)
        # Sorted backwards, so that the next head to compare is popped from the end.
        kept = [head for head in heads if head.size <= checkpoint.size]
        self._heads = sorted(kept, key=lambda head: head.size, reverse=True)
        self._missing_in_a_row = 0

    def run(self, progress: Callable[[int, int], None]) -> None:
        """Walk all bundles, then judge the partial tiles and the root."""
        progress(0, self._size)
        self._compare_heads(0, [[]], 0)
        for index in range(self._size // TILE_WIDTH):
            self._full(index)
            if self._missing_in_a_row >= MISSING_IN_A_ROW_MAX:
                self._give_up((index + 1) * TILE_WIDTH)
                return
            progress((index + 1) * TILE_WIDTH, self._size)
        self._last(self._size // TILE_WIDTH, self._size % TILE_WIDTH)
        progress(self._size, self._size)

    # ------------------------------------------------------------------ tiles

    def _full(self, index: int) -> None:
        records, leaves = self._bundle(index, TILE_WIDTH)
        believed, altered = self._tree.judge(0, index, leaves)
        self._take(index, records, believed, altered)
        start = index * TILE_WIDTH
        root = None
        if b"" not in believed:
            built = None
            if self._heads and self._heads[-1].size < start + TILE_WIDTH:
                built = layers(believed)
                self._compare_heads(start, built, TILE_WIDTH - 1)
            root = built[-1][0] if built else perfect_root(believed)
        else:
            self._skip_heads(start + TILE_WIDTH - 1)
        self._tree.push(believed, root, 0, index)
        self._compare_heads(start + TILE_WIDTH, [[]], 0)

    def _last(self, index: int, width: int) -> None:
        """Judge the last, partial bundle together with all partial tiles."""
        records, leaves = self._bundle(index, width) if width else ([], [])
        believed, altered = self._tree.close(leaves)
        self._take(index, records, believed, altered)
        if b"" not in believed:
            self._compare_heads(index * TILE_WIDTH, layers(believed), width)

    # ------------------------------------------------------------------ bundles

    def _bundle(self, index: int, width: int) -> tuple[list[bytes | None], list[bytes]]:
        """Read a bundle; give a record (or None) and its leaf hash (or nothing) for each position."""
        body, path = self._read_bundle(index, width)
        if body is None:
            return [None] * width, [b""] * width
        records = split_whole(body)
        if len(records) == width:
            return list(records), [_sha256(b"\x00" + raw).digest() for raw in records]
        return self._realign(index, width, body, path)

    def _read_bundle(self, index: int, width: int) -> tuple[bytes | None, str]:
        path = tile_path("entries", index, width)
        body = self._reader.read(path)
        if body is None and width < TILE_WIDTH:
            # A grown log may have dropped the partial bundle for the full one.
            body = self._reader.read(tile_path("entries", index))
            if body is not None:
                body = body[: split_bundle(body, width)[1]]
        if body is None:
            self._missing_in_a_row += 1
            last = index * TILE_WIDTH + width - 1
            message = f"{path} with the records {index * TILE_WIDTH} to {last} is not there"
            self._findings.add("bundle_missing", message, position=index * TILE_WIDTH, path=path)
            return None, path
        self._missing_in_a_row = 0
        return body, path

    def _realign(
        self, index: int, width: int, body: bytes, path: str
    ) -> tuple[list[bytes | None], list[bytes]]:
        """Save what is authentic in a bundle that has too little, too much or a broken length.

        Records are put where the stored hash tile says they belong; the first position that no record
        fills, or the first record that fills none, is named.
        """
        found, stop = split_bundle(body, width + TILE_WIDTH)
        stored = self._tree.stored(0, index)
        places = split_hashes(stored) if stored is not None else []
        by_leaf = {leaf_hash(raw): raw for raw in found}
        records: list[bytes | None] = [by_leaf.get(leaf) for leaf in places] or [None] * width
        empty = next((at for at, raw in enumerate(records) if raw is None), None)
        foreign = next(
            (at for at, raw in enumerate(found) if at >= width or leaf_hash(raw) not in places), width
        )
        extra = empty is None or (len(found) > width and stop == len(body))
        if stored is None:
            records = [*found[:width], *[None] * (width - len(found))]
            empty, extra = min(len(found), width), len(found) >= width
        at = foreign if extra else empty or 0
        code = "bundle_extra" if extra else "bundle_malformed"
        what = "has more than its records" if extra else "is not whole"
        message = f"{path} {what}, first seen at position {index * TILE_WIDTH + at}"
        self._findings.add(code, message, position=index * TILE_WIDTH + at, path=path)
        return records, [leaf_hash(raw) if raw is not None else b"" for raw in records]

    # ------------------------------------------------------------------ records

    def _take(
        self, index: int, records: list[bytes | None], believed: list[bytes], altered: set[int]
    ) -> None:
        """Hand on authentic records in runs, altered ones singly, and holes as holes."""
        start = index * TILE_WIDTH
        if not altered and None not in records:
            self._streams.take(start, records)  # type: ignore[arg-type]
            return
        by_leaf = {leaf_hash(raw): raw for raw in records if raw is not None} if altered else {}
        for at, raw in enumerate(records):
            if raw is None:
                self._streams.hole(start + at)
            elif at in altered:
                self._altered(start, at, raw, believed, by_leaf.get(believed[at]))
            else:
                self._streams.take(start + at, [raw])

    def _altered(
        self, start: int, at: int, raw: bytes, believed: list[bytes], authentic: bytes | None
    ) -> None:
        """Name a record that is not the hashed one; go on with the hashed one where it lies close by."""
        leaf = leaf_hash(raw)
        message = f"the bytes of record {start + at} are not those that were hashed into the tree"
        if leaf in believed:
            message += f"; they are those of record {start + believed.index(leaf)}"
        self._findings.add("record_altered", message, position=start + at, stream=stream_of(raw))
        if authentic is not None:
            self._streams.take(start + at, [authentic])
        else:
            self._streams.judge(start + at, raw, _sha3(raw).digest(), altered=True)

    # ------------------------------------------------------------------ earlier heads

    def _compare_heads(self, start: int, built: list[list[bytes]], count_max: int) -> None:
        """Compare all heads of sizes up to start + count_max with the root recomputed at their size."""
        while self._heads and self._heads[-1].size <= start + count_max:
            head = self._heads.pop()
            root = self._tree.root_with(built, head.size - start)
            if root is None or root == head.root:
                continue
            shown = base64.b64encode(root).decode()
            message = f"{head.path} signed another root for size {head.size}; the records now give {shown}"
            self._findings.add("history_rewritten", message, position=head.size, path=head.path)

    def _skip_heads(self, size: int) -> None:
        """Leave out heads whose root cannot be recomputed, because records and tile are both missing."""
        while self._heads and self._heads[-1].size <= size:
            self._heads.pop()

    def _give_up(self, position: int) -> None:
        message = f"so many bundles are missing that the walk ends before position {position}"
        self._findings.add(
            "bundle_missing", message, position=position, path=tile_path("entries", position // 256)
        )
        self._streams.hole(position)
