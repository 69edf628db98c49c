"""Redrawing: an invoice made again from what the log held before it, and every difference from the one that was issued.

It is given the aggregates as they stood just before the invoice, and what a recount came to. What follows from them is
written as the event that should have been committed, and compared member by member with the one that was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from fractions import Fraction
from typing import Any, NamedTuple

import msgspec

from domain.billing.accounts import PLATFORM, account_name
from domain.billing.bills import Bill
from domain.billing.booking import Billed, change_of
from domain.billing.customers import Customer
from domain.billing.grants import Grant
from domain.billing.invoices import (
    DUE_WITHIN_S,
    Counted,
    DrawnUp,
    Invoice,
    Part,
    SheetUsed,
    draw_up,
    sheets_of,
    terms_of,
)
from domain.billing.periods import Period
from domain.billing.price_books import CONTEXT, PriceBook, PriceSheet, sheet_name
from domain.billing.rating import print_exact, read_exact
from domain.book import Posting, Transfer
from domain.canonical import sealed
from domain.errors import LogDamagedError
from domain.values import Money, moment_of, moment_text, print_nano

Cuts = list[tuple[str, str]]


class Difference(NamedTuple):
    """A member in which an invoice is not what the log comes to; line is its line, where it is of one."""

    invoice: str
    where: str
    line: int | None
    expected: Any
    found: Any


class Drawn(NamedTuple):
    """What should have been committed: the document, what it is made of, and what goes with it in other streams."""

    issued: Invoice.Issued
    drawn: DrawnUp
    beside: dict[str, Any]


class Before(NamedTuple):
    """The aggregates an invoice was made from, as they stood just before it.

    `documents` are those of its period until then, the first one first.
    """

    customer: Customer
    book: PriceBook | None
    sheets: Mapping[str, PriceSheet]
    grants: Sequence[Grant] = ()
    documents: Sequence[Invoice] = ()

    @property
    def corrected(self) -> Invoice | None:
        """Give what a correction takes the place of: the last document of its period."""
        return self.documents[-1] if self.documents else None

    def sheet(self, name: str) -> PriceSheet:
        """Give a version of a book.

        Errors: log_damaged.
        """
        if name not in self.sheets:
            raise LogDamagedError(f"no prices {name} were written before the invoice", sheet=name)
        return self.sheets[name]


def cuts_of(before: Before) -> Cuts:
    """Cut the period that is billed where another version of the prices comes into force.

    Errors: log_damaged, price_not_in_force.
    """
    if before.corrected is not None:
        return [(one.start, one.end) for one in before.corrected.sheets]
    if before.book is None:
        raise LogDamagedError("the customer's price book was not published before the invoice")
    period = before.customer.next_period()
    return [(a, b) for a, b, _ in before.book.between(moment_text(period.start), moment_text(period.end))]


# --------------------------------------------------------------------------- an invoice


def redraw(before: Before, counted: Counted, at: str, invoice_id: str) -> Drawn:
    """Draw up what should have been issued at a moment.

    Errors: currency_mismatch, invoice_too_large, log_damaged.
    """
    if before.corrected is None:
        return _invoice(before, counted, at, invoice_id)
    return _correction(before, before.corrected, counted, at, invoice_id)


def _invoice(before: Before, counted: Counted, at: str, invoice_id: str) -> Drawn:
    customer, book = before.customer, before.book
    assert book is not None, "a period is cut by its book"
    period, whole = customer.next_period(), customer.whole_period()
    parts = [
        Part(
            before.sheet(sheet_name(book.id, book.in_force(start).number)),
            start,
            end,
            Period(moment_of(start), moment_of(end)).share_of(whole),
            used,
        )
        for start, end, used in counted.parts
    ]
    terms = terms_of(customer, parts, before.grants)
    drawn = draw_up(parts, terms, at)
    made = drawn.bill
    columns = (made.net.nano, _tax(made), made.rounding.nano)
    issued = Invoice.Issued(
        number=_number(customer),
        kind="invoice",
        corrects=None,
        period_start=moment_text(period.start),
        period_end=moment_text(period.end),
        zone=customer.agreed.zone,
        known_at=counted.known_at,
        sheets=sheets_of(parts),
        terms=terms,
        bill=made,
        evidence=drawn.evidence,
        owed=Money.of(sum(columns), made.currency),
        tax=Money.of(columns[1], made.currency),
        due=made.due,
        due_at=_due_at(at),
        money=_postings(customer.id, made.currency, *columns),
    )
    return Drawn(issued, drawn, _beside_invoice(customer, issued, invoice_id))


def _beside_invoice(customer: Customer, issued: Invoice.Issued, invoice_id: str) -> dict[str, Any]:
    """Say what follows in other streams: the credits that are burned, and the customer's next period."""
    burned = {item.name: [_burned(customer.id, item.amount, invoice_id)] for item in issued.bill.credits}
    billed = {
        "invoice": invoice_id,
        "period_end": issued.period_end,
        "carried": issued.bill.carried,
    }
    return {"credits": burned, "given": [], "customer": [billed], "corrected": []}


def _burned(tenant: str, amount: Money, invoice_id: str) -> dict[str, Any]:
    names = [account_name(purpose, tenant, amount.currency) for purpose in ("credits", "receivable")]
    legs = [Posting(names[0], amount.amount), Posting(names[1], "-" + amount.amount)]
    plain = {"invoice": invoice_id, "amount": amount, "money": [Transfer(amount.currency, legs)]}
    found: dict[str, Any] = _plain(plain)
    return found


# --------------------------------------------------------------------------- a correction


def _correction(before: Before, earlier: Invoice, counted: Counted, at: str, invoice_id: str) -> Drawn:
    customer = before.customer
    parts = [
        Part(before.sheet(one.sheet), one.start, one.end, Fraction(one.share), used)
        for one, (_, _, used) in zip(earlier.sheets, counted.parts, strict=True)
    ]
    assert earlier.terms is not None, "an invoice starts with its terms"
    terms = msgspec.structs.replace(earlier.terms, credits=[], carried="0")
    drawn = draw_up(parts, terms, at)
    made, was = drawn.bill, earlier.made
    change = change_of(
        made, before.documents[0].made.rounding.nano, [_billed(one) for one in before.documents]
    )
    issued = Invoice.Issued(
        number=_number(customer),
        kind="correction",
        corrects=earlier.id,
        period_start=earlier.period_start,
        period_end=earlier.period_end,
        zone=earlier.zone,
        known_at=counted.known_at,
        sheets=[SheetUsed(p.sheet.id, p.sheet.address, p.start, p.end, str(p.share)) for p in parts],
        terms=terms,
        bill=made,
        evidence=drawn.evidence,
        owed=Money.of(change.owed, made.currency),
        tax=Money.of(change.tax, made.currency),
        due=Money.of(max(0, change.owed), made.currency),
        due_at=_due_at(at),
        money=_postings(customer.id, made.currency, *change),
    )
    carried = read_exact(customer.carried) + _rounded(made) - _rounded(was)
    told = {"invoice": invoice_id, "carried": print_exact(carried)}
    given = _given(issued, invoice_id)
    beside = {"credits": {}, "given": given, "customer": [told], "corrected": [invoice_id]}
    return Drawn(issued, drawn, beside)


def _given(issued: Invoice.Issued, invoice_id: str) -> list[dict[str, Any]]:
    """Say what becomes credit: what the customer owes less than before."""
    if issued.owed.nano >= 0:
        return []
    back = Money.of(-issued.owed.nano, issued.owed.currency)
    given = {
        "source": "correction",
        "amount": back,
        "priority": 0,
        "expires_at": None,
        "reference": invoice_id,
    }
    return [_plain(given | {"money": []})]


def _billed(one: Invoice) -> Billed:
    assert one.owed is not None, "an invoice starts with what is owed"
    assert one.tax is not None, "an invoice starts with its tax"
    return Billed(one.owed.nano, one.tax.nano, 0 if one.credited is None else one.credited.nano)


def _rounded(made: Bill) -> Fraction:
    return sum((read_exact(line.rounding) for line in made.lines), Fraction(0))


# --------------------------------------------------------------------------- what both book


def _number(customer: Customer) -> str:
    return f"INV-{customer.id}-{customer.invoice_count + 1:06d}"


def _due_at(at: str) -> str:
    return moment_text(moment_of(at) + timedelta(seconds=DUE_WITHIN_S))


def _tax(made: Bill) -> int:
    return sum(item.amount.nano for item in made.taxes)


def _postings(tenant: str, currency: str, net: int, tax: int, rounding: int) -> list[Any]:
    """Book what is owed, by the rule the page about money states: who owes it, and what each part of it is.

    Units: nano-units.
    """
    owed = net + tax + rounding
    sides = [
        ("receivable" if owed >= 0 else "credits", tenant, owed),
        ("revenue", PLATFORM, -net),
        ("tax", PLATFORM, -tax),
        ("rounding", PLATFORM, -rounding),
    ]
    legs = [
        Posting(account_name(purpose, owner, currency), print_nano(nano, currency))
        for purpose, owner, nano in sides
        if nano
    ]
    return [Transfer(currency, legs)] if legs else []


# --------------------------------------------------------------------------- differences


def seal_of_sheet(sheet: PriceSheet) -> str:
    """Compute the address of a version of a book from its charges.

    Errors: not_canonical.
    """
    document = {
        "schema": "soma/price-book/1",
        "book": sheet.book,
        "number": sheet.number,
        "currency": sheet.currency,
        "effective_from": sheet.effective_from,
        "charges": msgspec.to_builtins(sheet.charges),
        "commitment": sheet.commitment,
    }
    return sealed(CONTEXT, document)[1]


def differences(invoice_id: str, expected: Any, found: Any) -> list[Difference]:
    """List every member in which a document is not what it should be."""
    return [
        Difference(invoice_id, where, _line_of(where), wanted, got)
        for where, wanted, got in _differing("", _plain(expected), _plain(found))
    ]


def _differing(where: str, expected: Any, found: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in sorted(expected.keys() | found.keys()):
            place = f"{where}.{name}" if where else name
            yield from _differing(place, expected.get(name), found.get(name))
    elif isinstance(expected, list) and isinstance(found, list):
        for at in range(max(len(expected), len(found))):
            sides = [side[at] if at < len(side) else None for side in (expected, found)]
            yield from _differing(f"{where}[{at}]", *sides)
    elif expected != found:
        yield where, expected, found


def _line_of(where: str) -> int | None:
    """Read the line a member belongs to."""
    for start in ("bill.lines[", "evidence["):
        if where.startswith(start):
            return int(where[len(start) : where.index("]")])
    return None


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)
