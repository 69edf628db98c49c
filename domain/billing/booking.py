"""Booking: what a document moves between a customer, the platform's revenue and the taxes it collects.

Several documents and credit notes may be of one period. What they come to together is told here, so that neither a
credit note nor a correction gives back what another has given back already.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from domain.billing.accounts import PLATFORM, ensure
from domain.billing.bills import Bill
from domain.billing.rating import round_nano
from domain.book import Entry, Posting, Transfer
from domain.ledger import Case
from domain.values import print_nano


class Columns(NamedTuple):
    """What a document books: to whom the amount owed goes.

    Units: nano-units.
    """

    net: int
    tax: int
    rounding: int

    @property
    def owed(self) -> int:
        return self.net + self.tax + self.rounding


class Billed(NamedTuple):
    """What a document billed, the tax in it, and what credit notes took back of it.

    Units: nano-units.
    """

    owed: int
    tax: int
    credited: int


def columns_of(made: Bill) -> Columns:
    """Divide what a bill comes to."""
    return Columns(made.net.nano, sum(item.amount.nano for item in made.taxes), made.rounding.nano)


def change_of(made: Bill, settled: int, documents: Sequence[Billed]) -> Columns:
    """Give what a period comes to now, less what its documents billed.

    What credit notes took back of it is gone already, so a correction never gives that back once more.
    Units: settled is what the period's first document settled of roundings before it, in nano-units.
    """
    owed, tax = made.total.nano + settled, columns_of(made).tax
    credited = sum(one.credited for one in documents)
    if (more := credited - owed) > 0:
        tax += round_nano(more * sum(map(_exact_tax, documents), Fraction(0)) / credited, made.currency)
        owed = credited
    owed, tax = owed - sum(one.owed for one in documents), tax - sum(one.tax for one in documents)
    return Columns(owed - tax, tax, 0)


def tax_in(tax: int, owed: int, credited: int, currency: str) -> int:
    """Give the tax in the first so much credited of a document, in proportion to the tax in what it billed.

    Units: nano-units.
    """
    return round_nano(_exact_tax(Billed(owed, tax, credited)), currency)


def booked(case: Case, tenant: str, currency: str, columns: Columns) -> list[Entry]:
    """Book what is owed: to the customer's receivable, or as credit where it is less than nothing."""
    side = "receivable" if columns.owed >= 0 else "credits"
    sides = [
        (side, tenant, columns.owed),
        ("revenue", PLATFORM, -columns.net),
        ("tax", PLATFORM, -columns.tax),
        ("rounding", PLATFORM, -columns.rounding),
    ]
    legs = [
        Posting(ensure(case, purpose, owner, currency), print_nano(nano, currency))
        for purpose, owner, nano in sides
        if nano
    ]
    return [Transfer(currency, legs)] if legs else []


def _exact_tax(one: Billed) -> Fraction:
    return Fraction(one.tax * one.credited, one.owed) if one.owed else Fraction(0)
