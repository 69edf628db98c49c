"""Metering: from what was used to the quantities of charges. Every reading is counted by exactly one charge a meter.

Usage comes as sums by provider, model and persona; the first charge of a sheet, in its order, that fits a sum prices
it. What fits none is not lost: it stands on the bill as an unpriced line of nothing, so that it is seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import msgspec

from domain.billing.prices import Flat
from domain.billing.rating import Charge, Rated, line_of, rate

METERS = ("tokens_in", "tokens_out", "cached_tokens", "requests")
UNPRICED = "unpriced"


class Used(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was used of one model, summed up over a stretch of time; and which records say so.

    Units: counts; first and last are positions in the log; fingerprint is the sum of the first eight bytes of the
           addresses modulo 2^64, as 16 hex digits, so it does not depend on an order.
    """

    provider: str
    model: str
    persona_id: str | None
    tokens_in: int
    tokens_out: int
    cached_tokens: int
    requests: int
    events: int
    first: int
    last: int
    fingerprint: str


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The records a line comes from.

    Units: as in `Used`.
    """

    events: int
    first: int
    last: int
    fingerprint: str


class Metered(NamedTuple):
    """What a charge counts, the records behind it, and the sums these are in."""

    quantity: Fraction
    evidence: Evidence | None
    used: tuple[Used, ...] = ()


NOTHING = Metered(Fraction(0), None)


def meter(charges: Sequence[Charge], used: Iterable[Used]) -> tuple[dict[str, Metered], list[Used]]:
    """Count usage by charges; give it by charge, and what no charge is for.

    Cost: O(sums x charges).
    """
    counted: dict[str, Metered] = {}
    unpriced = []
    for one in used:
        fitting = list(_fitting(charges, one))
        for charge in fitting:
            counted[charge.id] = _add(counted.get(charge.id, NOTHING), getattr(one, charge.meter), one)
        if not fitting:
            unpriced.append(one)
    return counted, unpriced


def _fitting(charges: Sequence[Charge], used: Used) -> Iterable[Charge]:
    for meter_name in METERS:
        for charge in charges:
            if charge.meter == meter_name and charge.match.fits(used.provider, used.model, used.persona_id):
                yield charge
                break


def _add(metered: Metered, quantity: int, used: Used) -> Metered:
    evidence = Evidence(used.events, used.first, used.last, used.fingerprint)
    return Metered(metered.quantity + quantity, together(metered.evidence, evidence), (*metered.used, used))


def together(one: Evidence | None, other: Evidence) -> Evidence:
    """Put the records of two sums together; no record is in both."""
    if one is None:
        return other
    mixed = (int(one.fingerprint, 16) + int(other.fingerprint, 16)) % 2**64
    return Evidence(
        one.events + other.events, min(one.first, other.first), max(one.last, other.last), f"{mixed:016x}"
    )


class Proven(NamedTuple):
    """A rated line with the records behind it, and the sums these are in."""

    rated: Rated
    evidence: Evidence | None
    used: tuple[Used, ...]


def rate_usage(
    charges: Sequence[Charge],
    used: Sequence[Used],
    currency: str,
    share: Fraction,
    *,
    unpriced_apart: bool = True,
) -> list[Proven]:
    """Rate everything that was used, and every fee of the period; empty lines are left out.

    What no charge is for has a line for each name, or one for all of them.
    Units: share is the part of the period that these charges are for.
    """
    counted, unpriced = meter(charges, used)
    lines = []
    for charge in charges:
        metered = counted.get(charge.id, NOTHING)
        rated = rate(charge, metered.quantity, currency, share)
        if rated.exact_nano or metered.evidence is not None or isinstance(charge.price, Flat):
            lines.append(Proven(rated, metered.evidence, metered.used))
    if unpriced and not unpriced_apart:
        return [*lines, _unpriced(f"{len(unpriced)} names: no charge is for them", unpriced, currency)]
    return lines + [
        _unpriced(f"{one.provider} {one.model}: no charge is for it", [one], currency) for one in unpriced
    ]


def _unpriced(name: str, used: Sequence[Used], currency: str) -> Proven:
    asked = Fraction(sum(one.requests for one in used))
    evidence: Evidence | None = None
    for one in used:
        evidence = together(evidence, Evidence(one.events, one.first, one.last, one.fingerprint))
    return Proven(line_of(UNPRICED, "requests", name, asked, [], currency), evidence, tuple(used))
