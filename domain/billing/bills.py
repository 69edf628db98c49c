"""Bills: what a customer owes for a period, from rated lines to the amount due. Quotes and invoices are both bills.

The order is fixed and shown: lines, then the minimum commitment, then coupons, then tax on what is left, then prepaid
credits, then what rounding took before. Every amount after the lines is whole minor units, so each column of a bill
adds up as a reader adds it up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Literal

import msgspec

from domain.billing.prices import Step, decimal_of, nano_of
from domain.billing.rating import Line, Rated, carry, line_of, minor_nano, print_exact, read_exact, round_nano
from domain.errors import CurrencyMismatchError
from domain.values import NANO, Money

COMMITMENT = "commitment"
ROUNDING = "rounding"
# Sorts behind every moment: a credit that never expires is burned last among its equals.
NEVER = "9999-12-31T23:59:59.999999Z"


class Coupon(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A discount on some charges or on all.

    Units: share from 0 to 1, or an amount in the currency of the bill; exactly one of the two.
    """

    code: str
    share: str | None = None
    amount: Money | None = None
    charges: list[str] | None = None


class Tax(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tax that is added to the net amount.

    Units: share from 0 to 1.
    """

    name: str
    share: str


class Credit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prepaid money that is left: burned in order of priority, then of expiry, then of age."""

    id: str
    amount: Money
    granted_at: str
    expires_at: str | None = None
    priority: int = 0


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bill is made under, besides its lines.

    Units: commitment in units of the currency, already the period's part of it; carried as `print_exact` writes it,
           in units of the currency.
    """

    currency: str
    commitment: str | None = None
    coupons: list[Coupon] = []
    taxes: list[Tax] = []
    credits: list[Credit] = []
    carried: str = "0"


class Item(msgspec.Struct, frozen=True):
    """An amount below the lines: a discount, a tax or a credit, by its name."""

    kind: Literal["coupon", "tax", "credit"]
    name: str
    amount: Money


class Bill(msgspec.Struct, frozen=True):
    """What is owed and how it comes about: total = lines - discounts + taxes; due = total - credits + rounding.

    Units: carried is what rounding leaves for the next bill, exact, in units of the currency.
    """

    currency: str
    lines: list[Line]
    subtotal: Money
    discounts: list[Item]
    net: Money
    taxes: list[Item]
    total: Money
    credits: list[Item]
    rounding: Money
    due: Money
    carried: str


def bill(rated: Sequence[Rated], terms: Terms, at: str) -> Bill:
    """Make a bill of rated lines; `at` decides which credits have expired.

    Errors: currency_mismatch.
    """
    currency = terms.currency
    rated = [*rated, *_commitment(rated, terms)]
    _check_currency(rated, terms)
    subtotal = sum(one.line.amount.nano for one in rated)
    discounts = discount(rated, terms.coupons, currency)
    net = subtotal - sum(item.amount.nano for item in discounts)
    taxes = [_tax(tax, net, currency) for tax in terms.taxes]
    total = net + sum(item.amount.nano for item in taxes)
    rounding, carried = carry(read_exact(terms.carried) * NANO, rated, currency)
    # What rounding gives back never makes a bill negative: it waits for a bill that can bear it.
    if total + rounding < 0:
        rounding, carried = 0, carried + rounding
    burned = burn(terms.credits, total + rounding, at, currency)
    due = total + rounding - sum(item.amount.nano for item in burned)
    return Bill(
        currency=currency,
        lines=[one.line for one in rated],
        subtotal=Money.of(subtotal, currency),
        discounts=discounts,
        net=Money.of(net, currency),
        taxes=taxes,
        total=Money.of(total, currency),
        credits=burned,
        rounding=Money.of(rounding, currency),
        due=Money.of(due, currency),
        carried=print_exact(carried / NANO),
    )


def _commitment(rated: Sequence[Rated], terms: Terms) -> list[Rated]:
    """Add what is missing to the least a customer pays for a period."""
    if terms.commitment is None:
        return []
    missing = nano_of(terms.commitment) - sum((one.exact_nano for one in rated), Fraction(0))
    if missing <= 0:
        return []
    step = Step("commitment true-up", Fraction(1), terms.commitment, missing)
    return [line_of(COMMITMENT, "period", "Minimum commitment", Fraction(1), [step], terms.currency)]


def _check_currency(rated: Iterable[Rated], terms: Terms) -> None:
    named = {one.line.amount.currency for one in rated}
    named |= {credit.amount.currency for credit in terms.credits}
    named |= {coupon.amount.currency for coupon in terms.coupons if coupon.amount is not None}
    if others := named - {terms.currency}:
        raise CurrencyMismatchError("a bill has one currency", bill=terms.currency, others=sorted(others))


def discount(rated: Sequence[Rated], coupons: Sequence[Coupon], currency: str) -> list[Item]:
    """Take coupons off, one after another, each from what the ones before left of the lines it is for.

    Units: whole minor units; a coupon takes a line to zero at most.
    """
    left = {index: one.line.amount.nano for index, one in enumerate(rated)}
    items = []
    for coupon in coupons:
        meant = [
            i for i, one in enumerate(rated) if coupon.charges is None or one.line.charge in coupon.charges
        ]
        taken = _off(coupon, sum(left[i] for i in meant), currency)
        _take(left, meant, taken)
        items.append(Item("coupon", coupon.code, Money.of(taken, currency)))
    return items


def _off(coupon: Coupon, meant_nano: int, currency: str) -> int:
    if coupon.amount is not None:
        return min(coupon.amount.nano // minor_nano(currency) * minor_nano(currency), meant_nano)
    assert coupon.share is not None, "a coupon has a share or an amount"
    return min(round_nano(meant_nano * decimal_of(coupon.share), currency), meant_nano)


def _take(left: dict[int, int], meant: Sequence[int], nano: int) -> None:
    """Take an amount from lines in their order."""
    for index in meant:
        part = min(left[index], nano)
        left[index] -= part
        nano -= part


def _tax(tax: Tax, net_nano: int, currency: str) -> Item:
    return Item("tax", tax.name, Money.of(round_nano(net_nano * decimal_of(tax.share), currency), currency))


def burn(grants: Sequence[Credit], due_nano: int, at: str, currency: str) -> list[Item]:
    """Pay with credits that have not expired: by priority, then what expires first, then the oldest.

    Units: due_nano is not negative; a credit's part below a minor unit stays where it is.
    """
    items, minor = [], minor_nano(currency)
    for credit in sorted(grants, key=_burned_before):
        part = min(credit.amount.nano // minor * minor, due_nano)
        if part > 0 and (credit.expires_at is None or at < credit.expires_at):
            due_nano -= part
            items.append(Item("credit", credit.id, Money.of(part, currency)))
    return items


def _burned_before(credit: Credit) -> tuple[int, str, str, str]:
    return credit.priority, credit.expires_at or NEVER, credit.granted_at, credit.id
