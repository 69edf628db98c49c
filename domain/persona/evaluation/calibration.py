"""How sure a memory may be of its answers: confidence held against what was right, on cases not looked at.

The confidence is the gap between the best text and the first that is left out. It becomes a probability by the shares
of right answers at such gaps, made to rise with the gap, on all cases but those of the fold that is judged. Nothing a
caller says enters it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

MILLION = 1_000_000


class Block(NamedTuple):
    """Cases of similar confidence.

    Units: gap_from in millionths of the best score.
    """

    gap_from: int
    right: int
    case_count: int


def cross_fitted(
    gaps: Sequence[int], right: Sequence[bool], folds: Sequence[int], cases_min: int
) -> list[int]:
    """Estimate for each case the chance that it is right, from the cases of the other folds.

    Units:  gaps and chances in millionths.
    Cost:   O(n log n) for each fold.
    """
    chances = [0] * len(gaps)
    for fold in sorted(set(folds)):
        known = [(gap, hit) for gap, hit, of in zip(gaps, right, folds, strict=True) if of != fold]
        blocks = rising(known, cases_min)
        for at, of in enumerate(folds):
            if of == fold:
                chances[at] = chance(blocks, gaps[at])
    return chances


def rising(known: Sequence[tuple[int, bool]], cases_min: int) -> list[Block]:
    """Pool cases into blocks whose share of right answers rises with the gap.

    Source: Ayer et al. 1955 (pool adjacent violators), on blocks of at least cases_min cases.
    """
    blocks: list[Block] = []
    for block in _bins(sorted(known), cases_min):
        blocks.append(block)
        while len(blocks) > 1 and _share_falls(blocks[-2], blocks[-1]):
            last = blocks.pop()
            blocks[-1] = _joined(blocks[-1], last)
    return blocks


def chance(blocks: Sequence[Block], gap: int) -> int:
    """Read the chance of a gap; without any case it is one half, and it is never none and never certain.

    Units:  gap and chance in millionths.
    Source: Laplace's rule of succession.
    """
    if not blocks:
        return MILLION // 2
    at = max(bisect_right([block.gap_from for block in blocks], gap) - 1, 0)
    return (blocks[at].right + 1) * MILLION // (blocks[at].case_count + 2)


def _bins(cases: Sequence[tuple[int, bool]], cases_min: int) -> list[Block]:
    """Cut rising cases into bins; cases of one gap stay together, and what is left over joins the last bin."""
    bins: list[Block] = []
    right = count = 0
    for at, (gap, hit) in enumerate(cases):
        right, count = right + hit, count + 1
        ends = at + 1 == len(cases) or cases[at + 1][0] != gap
        if ends and count >= cases_min:
            bins.append(Block(cases[at + 1 - count][0], right, count))
            right = count = 0
    if count:
        rest = Block(cases[len(cases) - count][0], right, count)
        bins = [*bins[:-1], _joined(bins[-1], rest)] if bins else [rest]
    return bins


def _share_falls(before: Block, after: Block) -> bool:
    return before.right * after.case_count >= after.right * before.case_count


def _joined(before: Block, after: Block) -> Block:
    return Block(before.gap_from, before.right + after.right, before.case_count + after.case_count)
