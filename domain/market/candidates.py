"""What goes into a match: the offers as candidates, the want of a buyer, and the policy that weighs them.

Shares of one are integers in parts per million (ppm).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from domain.canonical import encode_record
from domain.market.standing import PPM
from domain.values import Money, parse_nano

Numbers = npt.NDArray[Any]


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One version of an offer, with the standing of its seller as evidence gives it.

    An empty allowed_tasks allows every task; expires_at is a moment's text, None for never. declared_quality is
    what the seller says; it is carried along and never scored. An intent's least quality is held against
    threshold_ppm: evidence where there is some, otherwise the declared value, so that a new seller stands low in
    the ranking but is not shut out. None means quality_ppm.

    Units:  price per round; quality_ppm and threshold_ppm in 0..1,000,000.
    """

    offer_id: str
    version: int
    seller: str
    price: Money
    allowed_tasks: tuple[str, ...]
    modality: str
    status: str
    expires_at: str | None
    quality_ppm: int
    declared_quality: str
    successes: int
    failures: int
    min_rounds: int = 1
    threshold_ppm: int | None = None


class Want(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a buyer looks for.

    budget None is unlimited and 0 buys only free offers; no required modality means any; max_per_seller None
    leaves sellers uncapped.
    """

    owner: str
    task_type: str
    required_modalities: tuple[str, ...]
    min_quality_ppm: int
    budget: Money | None
    currency: str
    max_offers: int = 3
    deadline: str | None = None
    max_per_seller: int | None = None


class MatchPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The weights and limits of a match; its digest names them in every result.

    `algorithm` changes whenever the same inputs could give another answer. With offers_outlive_deadline an offer
    that expires before the deadline of the want counts as expired.

    Units:  weights in ppm, together 1,000,000; nodes_max and states_max bound the work, see knapsack.
    """

    w_quality: int = 500_000
    w_cost: int = 300_000
    w_trust: int = 200_000
    nodes_max: int = 200_000
    states_max: int = 2_000_000
    offers_outlive_deadline: bool = False
    algorithm: str = "match-1"

    @property
    def digest(self) -> str:
        """Address the policy by its canonical JSON.

        Source: RFC 8785.
        """
        return "sha3-512:" + hashlib.sha3_512(encode_record(msgspec.to_builtins(self))).hexdigest()


class Columns(msgspec.Struct):
    """All candidates in the order of their ids, as parallel columns; prices in nano-units."""

    offers: list[Candidate]
    seller: Sequence[str]
    currency: list[str]
    nano: Numbers
    allowed_tasks: Sequence[tuple[str, ...]]
    modality: Sequence[str]
    status: Sequence[str]
    expires_at: Sequence[str | None]
    quality: Numbers
    threshold: Numbers
    successes: Sequence[int]
    failures: Sequence[int]


def columns_of(candidates: Sequence[Candidate]) -> Columns:
    """Turn candidates into columns, in the order of their ids."""
    offers = sorted(candidates, key=_offer_id)
    rows = list(zip(*map(msgspec.structs.astuple, offers), strict=True)) or [()] * len(
        Candidate.__struct_fields__
    )
    ids, _, seller, prices, tasks, modality, status, expires_at = rows[:8]
    qualities, _, successes, failures, _, least = rows[8:]
    if len(set(ids)) != len(ids):
        raise ValueError("each offer can be a candidate once")
    quality = np.array(qualities, dtype=np.int64)
    thresholds = [own if one is None else one for one, own in zip(least, qualities, strict=True)]
    if len(quality) and not 0 <= min(*qualities, *thresholds) <= max(*qualities, *thresholds) <= PPM:
        raise ValueError("quality lies in 0..1,000,000 ppm")
    return Columns(
        offers=offers,
        seller=seller,
        currency=[price.currency for price in prices],
        nano=whole_numbers([parse_nano(price.amount) for price in prices]),
        allowed_tasks=tasks,
        modality=modality,
        status=status,
        expires_at=expires_at,
        quality=quality,
        threshold=np.array(thresholds, dtype=np.int64),
        successes=successes,
        failures=failures,
    )


def _offer_id(candidate: Candidate) -> str:
    return candidate.offer_id


def whole_numbers(values: list[int]) -> Numbers:
    """Put integers in an array that never overflows: native where they fit, Python's own otherwise."""
    return np.array(values, dtype=np.int64 if max(values, default=0) < 2**62 else object)
