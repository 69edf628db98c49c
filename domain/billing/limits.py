"""Limits on what is spent: what usage comes to, by the same functions that draw up quotes and invoices.

What a limit counts as spent is the subtotal of a quote for the usage in its scope, no more and no less. What is
reserved beside it is not yet known to the last token, so it counts with the most that any part of it could come to:
under a price that falls with the volume, less usage may cost more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from math import floor
from typing import Literal, NamedTuple

import msgspec

from domain.billing.bills import Terms, bill
from domain.billing.invoices import Part, commitment_of
from domain.billing.metering import NOTHING, Used, meter, rate_usage
from domain.billing.price_books import PriceSheet
from domain.billing.prices import Volume, decimal_of, nano_of
from domain.billing.rating import ONE, Charge, Rated, minor_nano, rate
from domain.values import Money

# Rows of counters a quota keeps by name; names beyond them are counted in a row that is priced as they are.
ROWS_MAX = 256


class Scope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which usage a limit is for; a member left out is met by any."""

    provider: str | None = None
    model: str | None = None
    persona_id: str | None = None
    rental_id: str | None = None

    def covers(self, one: Row | Reservation) -> bool:
        """Say whether usage is meant."""
        return (
            self.provider in (None, one.provider)
            and self.model in (None, one.model)
            and self.persona_id in (None, one.persona_id)
            and self.rental_id in (None, one.rental_id)
        )


EVERYTHING = Scope()


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The most that may be spent in a period within a scope, or the sum above which somebody wants to know.

    Units: thresholds are shares of the amount, ascending. Without `fees`, what is owed without any usage (base fees,
           minimums, a commitment) does not count. `by` is who set it: the platform, or the tenant for itself.
    """

    id: str
    scope: Scope
    amount: Money
    mode: Literal["hard", "soft"]
    thresholds: list[str]
    fees: bool
    by: Literal["platform", "tenant"]


class Piece(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A half-open part of a period under one version of a book.

    Units: share of a whole period, as a fraction.
    """

    start: str
    end: str
    sheet: str
    share: str


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was used under one name since a moment: a counter, or what is added to one.

    Units: counts, below zero where usage was taken back; all of it occurred from `start` to `last`, both included.
    """

    start: str
    last: str
    provider: str
    model: str
    persona_id: str | None
    rental_id: str | None
    tokens_in: int
    tokens_out: int
    cached_tokens: int
    requests: int

    @property
    def key(self) -> tuple[str, str, str, str | None, str | None]:
        return self.start, self.provider, self.model, self.persona_id, self.rental_id

    def plus(self, more: Row) -> Row:
        """Add what has the same key."""
        return msgspec.structs.replace(
            self,
            last=max(self.last, more.last),
            tokens_in=self.tokens_in + more.tokens_in,
            tokens_out=self.tokens_out + more.tokens_out,
            cached_tokens=self.cached_tokens + more.cached_tokens,
            requests=self.requests + more.requests,
        )


class Reservation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Usage that is about to happen: the most it is expected to be, until a moment.

    Units: counts; `cost` is what it could add to the bill when it was made; `hold` is what the wallet holds for it.
    """

    id: str
    provider: str
    model: str
    persona_id: str | None
    rental_id: str | None
    tokens_in: int
    tokens_out: int
    cached_tokens: int
    requests: int
    reserved_at: str
    expires_at: str
    cost: Money
    hold: Money | None


def added(rows: Iterable[Row], more: Iterable[Row]) -> list[Row]:
    """Add rows to counters, each to the one of its key."""
    found = {row.key: row for row in rows}
    for row in more:
        known = found.get(row.key)
        found[row.key] = row if known is None else known.plus(row)
    return list(found.values())


# --------------------------------------------------------------------------- what usage comes to


class Priced(NamedTuple):
    """A piece of a period with the charges in force in it."""

    piece: Piece
    sheet: PriceSheet

    def part(self, used: Sequence[Used]) -> Part:
        """Put usage under the charges."""
        return Part(self.sheet, self.piece.start, self.piece.end, Fraction(self.piece.share), used)


def spent_nano(priced: Sequence[Priced], rows: Sequence[Row], scope: Scope, *, fees: bool = True) -> int:
    """Give what usage within a scope comes to: the subtotal of a quote for it.

    Units:  nano-units, whole minor units.
    Errors: invalid_amount.
    """
    if not priced:
        return 0
    total = _subtotal([one.part(_used(one, rows, scope)) for one in priced])
    return total if fees else total - _subtotal([one.part([]) for one in priced])


def most_nano(
    priced: Sequence[Priced],
    rows: Sequence[Row],
    reserved: Sequence[Reservation],
    scope: Scope,
    *,
    fees: bool = True,
) -> int:
    """Give the most that usage comes to when any part of what is reserved is used as well.

    It never grows when a reservation is let go, nor when usage within a reservation takes its place.
    Units:  nano-units, whole minor units.
    Errors: invalid_amount.
    """
    meant = [one for one in reserved if scope.covers(one)]
    if not priced or not meant:
        return spent_nano(priced, rows, scope, fees=fees)
    low = [one.part(_used(one, rows, scope)) for one in priced]
    high = [p.part([*part.used, *_expected(p, meant)]) for p, part in zip(priced, low, strict=True)]
    most = _most(low, high)
    return most if fees else most - _subtotal([one.part([]) for one in priced])


def _subtotal(parts: Sequence[Part]) -> int:
    currency = parts[0].sheet.currency
    rated = [one.rated for p in parts for one in rate_usage(p.sheet.charges, list(p.used), currency, p.share)]
    # Which credits have expired does not matter to a subtotal.
    return bill(rated, Terms(currency, commitment=commitment_of(parts)), "").subtotal.nano


def _used(priced: Priced, rows: Iterable[Row], scope: Scope) -> list[Used]:
    return [_as_used(row) for row in rows if row.start == priced.piece.start and scope.covers(row)]


def _expected(priced: Priced, reserved: Iterable[Reservation]) -> list[Used]:
    """List what may be used within a piece: a reservation is for usage from when it was made until it expires."""
    piece = priced.piece
    return [_as_used(one) for one in reserved if one.reserved_at < piece.end and piece.start < one.expires_at]


def _as_used(one: Row | Reservation) -> Used:
    return Used(
        one.provider, one.model, one.persona_id, one.tokens_in, one.tokens_out, one.cached_tokens, one.requests,
        0, 0, 0, "0" * 16,
    )  # fmt: skip


def _most(low: Sequence[Part], high: Sequence[Part]) -> int:
    """Bound the subtotal of whatever lies between two amounts of usage."""
    currency = low[0].sheet.currency
    bounds = [
        bound for one, other in zip(low, high, strict=True) for bound in _line_bounds(one, other, currency)
    ]
    top = sum(most.line.amount.nano for _, most in bounds)
    commitment = commitment_of(low)
    if commitment is None:
        return top
    agreed = nano_of(commitment)
    if sum((least.exact_nano for least, _ in bounds), Fraction(0)) >= agreed:
        return top
    # Below the commitment its line makes up for what is missing, and each line is rounded by half a unit at most.
    minor = minor_nano(currency)
    roundings = 1 + sum(1 for _, most in bounds if most.exact_nano)
    return max(top, floor((agreed + Fraction(roundings * minor, 2)) / minor) * minor)


def _line_bounds(low: Part, high: Part, currency: str) -> Iterator[tuple[Rated, Rated]]:
    """Give the cheapest and the dearest line of each charge."""
    before, after = meter(low.sheet.charges, low.used)[0], meter(high.sheet.charges, high.used)[0]
    for charge in low.sheet.charges:
        least, most = before.get(charge.id, NOTHING).quantity, after.get(charge.id, NOTHING).quantity
        lines = [
            rate(charge, quantity, currency, low.share) for quantity in _turns(charge, least, most, low.share)
        ]
        yield min(lines, key=_exact), max(lines, key=_exact)


def _exact(one: Rated) -> Fraction:
    return one.exact_nano


def _turns(charge: Charge, least: Fraction, most: Fraction, share: Fraction) -> list[Fraction]:
    """List the quantities among which are the cheapest and the dearest from one to another.

    All prices grow with the quantity but the one by volume, which may fall where the next tier begins.
    """
    found = [least, most]
    if isinstance(charge.price, Volume):
        free = decimal_of(charge.free) * (share if charge.prorate else ONE)
        tops = [
            Fraction(floor(decimal_of(tier.up_to) + free))
            for tier in charge.price.tiers
            if tier.up_to is not None
        ]
        found += [at for top in tops for at in (top, top + 1) if least < at < most]
    return found


# --------------------------------------------------------------------------- keeping counters few


def row_for(
    row: Row, known: Mapping[tuple[str, str, str, str | None, str | None], Row], sheet: PriceSheet | None,
    scopes: Sequence[Scope],
) -> Row:  # fmt: skip
    """Choose the counter for usage: its own, or with many of them one that prices and limits take for the same.

    Cost: O(rows x charges) where there are too many names, else O(1).
    """
    if len(known) < ROWS_MAX or row.key in known:
        return row
    meant = _class(row, sheet, scopes)
    for other in known.values():
        if other.start == row.start and _class(other, sheet, scopes) == meant:
            return msgspec.structs.replace(
                row,
                provider=other.provider,
                model=other.model,
                persona_id=other.persona_id,
                rental_id=other.rental_id,
            )
    return row


def _class(
    row: Row, sheet: PriceSheet | None, scopes: Sequence[Scope]
) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """Name what usage is to prices and limits: the charges that count it, and the scopes it lies in."""
    charges = () if sheet is None else sheet.charges
    return tuple(meter(charges, [_as_used(row)])[0]), tuple(scope.covers(row) for scope in scopes)
