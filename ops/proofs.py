"""Proofs out of the stored tiles: the tiles a proof is made of are fetched side by side, the mathematics is pure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from domain.errors import TreeSizeInvalidError
from domain.log.proof_files import ProofFile, make_proof_file
from domain.log.tiles import Tile, level_count, partial_width
from domain.log.tree import (
    Prover,
    ReadTile,
    consistency_proof,
    consistency_tiles,
    inclusion_proof,
    inclusion_tiles,
    root_from_tiles,
)
from ops.reads import Head, LogReader
from ops.runtime import Runtime


async def inclusion(reader: LogReader, position: int, size: int) -> list[bytes]:
    """Prove that the record at a position is in the tree of a size.

    Cost:   at most two tiles per level.
    Errors: invalid_tree_size.
    """
    await _check_size(reader, size)
    tiles = await _fetched(reader, inclusion_tiles(position, size), size)
    return inclusion_proof(position, size, tiles)


async def inclusions(reader: LogReader, positions: Sequence[int], size: int) -> dict[int, list[bytes]]:
    """Prove that records at several positions are in the tree of a size; the tiles they share are read once.

    Cost:   a tile a record where they lie far apart; hashing is done off the loop.
    Errors: invalid_tree_size.
    """
    await _check_size(reader, size)
    wanted = {tile for position in positions for tile in inclusion_tiles(position, size)}
    prover = Prover(size, await _fetched(reader, wanted, size))
    return await asyncio.to_thread(lambda: {position: prover.prove(position) for position in positions})


async def consistency(reader: LogReader, size1: int, size2: int) -> list[bytes]:
    """Prove that the tree of the first size is the beginning of the tree of the second.

    Cost:   at most two tiles per level.
    Errors: invalid_tree_size.
    """
    await _check_size(reader, size2)
    tiles = await _fetched(reader, consistency_tiles(size1, size2), size2)
    return consistency_proof(size1, size2, tiles)


async def root(reader: LogReader, size: int) -> bytes:
    """Give the root of the tree of any size up to now, whether a checkpoint was signed there or not.

    Errors: invalid_tree_size.
    """
    await _check_size(reader, size)
    edge = [
        Tile(level, size >> (8 * (level + 1)), width)
        for level in range(level_count(size))
        if (width := partial_width(level, size))
    ]
    return root_from_tiles(size, await _fetched(reader, edge, size))


async def receipt(opened: Runtime, position: int, size: int | None = None) -> ProofFile:
    """Write the receipt of a record: its proof under a signed checkpoint, with the cosignatures there are.

    Without a size the checkpoint is the latest that a witness cosigned, or, where there is none, the latest.
    Errors: checkpoint_not_found, invalid_tree_size.
    """
    head = await _head_over(opened.reader, position, size)
    siblings = await inclusion(opened.reader, position, head.size)
    return make_proof_file(position, siblings, await opened.cosigned_note(head))


async def _head_over(reader: LogReader, position: int, size: int | None) -> Head:
    return await reader.head(size if size is not None else await reader.cosigned_size(position))


async def _check_size(reader: LogReader, size: int) -> None:
    if size > (reached := await reader.size()):
        raise TreeSizeInvalidError("the log has not reached that size", size=size, log_size=reached)


async def _fetched(reader: LogReader, tiles: Iterable[Tile], size: int) -> ReadTile:
    wanted = list(tiles)
    found = await asyncio.gather(*(reader.hash_tile(t.level, t.index, t.width, size) for t in wanted))
    by_place = {(t.level, t.index): hashes for t, hashes in zip(wanted, found, strict=True)}
    return lambda level, index, width: by_place[level, index][: width * 32]
