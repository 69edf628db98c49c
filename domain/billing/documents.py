"""Documents: what an invoice, a correction or a credit note says, read from the record that issued it.

A document is made of records alone, so it never changes: what was paid or corrected later is told by statements and by
later documents. A correction shows every line as it was, as it is and what that makes; a credit note shows what was
billed before it and after it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from domain.billing.accounts import PLATFORM
from domain.billing.bills import Bill, Item
from domain.billing.credit_notes import CreditNote
from domain.billing.invoices import Invoice
from domain.billing.metering import UNPRICED
from domain.billing.rating import Line, ShownStep, print_exact, read_exact
from domain.log.records import Record, address_text
from domain.values import Money

INVOICE_SCHEMA = "soma/invoice_document/1"
CREDIT_NOTE_SCHEMA = "soma/credit_note_document/1"
_PER_UNIT = re.compile(r"unit|tier [0-9]+")


class Issue(NamedTuple):
    """The record that issued a document, and its place in the log. Units: position in the log."""

    record: Record
    position: int
    address: bytes

    @property
    def id(self) -> str:
        return self.record.stream.partition("/")[2]


def _place(issue: Issue) -> dict[str, Any]:
    return {
        "id": issue.id,
        "number": issue.record.data.number,
        "issued_at": issue.record.at,
        "position": issue.position,
        "address": address_text(issue.address),
    }


def _period(issued: Invoice.Issued) -> dict[str, str]:
    return {"from": issued.period_start, "to": issued.period_end, "zone": issued.zone}


# --------------------------------------------------------------------------- invoices and corrections


def invoice_document(issue: Issue, before: Issue | None = None) -> dict[str, Any]:
    """Say what an invoice says; for a correction, `before` is the document it corrects.

    Units: amounts are decimal strings of the currency; known_at is the size of the log then.
    """
    issued: Invoice.Issued = issue.record.data
    made, earlier = issued.bill, before.record.data.bill if before is not None else None
    return {
        "schema": INVOICE_SCHEMA,
        **_place(issue),
        "kind": issued.kind,
        "issuer": PLATFORM,
        "tenant": issue.record.tenant,
        "currency": made.currency,
        "corrects": None if before is None else _place(before),
        "period": _period(issued),
        "known_at": issued.known_at,
        "sheets": msgspec.to_builtins(issued.sheets),
        "lines": list(_lines(issued, earlier)),
        "totals": _totals(made) if earlier is None else _changed_totals(made, earlier),
        "owed": issued.owed.amount,
        "tax": issued.tax.amount,
        "due": issued.due.amount,
        "due_at": issued.due_at,
        "carried": made.carried if earlier is None else None,
    }


def _lines(issued: Invoice.Issued, earlier: Bill | None) -> Iterator[dict[str, Any]]:
    """Show the lines, each beside the one it was before; what is no more stands behind them."""
    was = _named(earlier.lines) if earlier is not None else {}
    for number, (name, line) in enumerate(_named(issued.bill.lines).items()):
        evidence = issued.evidence[number] if number < len(issued.evidence) else None
        shown = _line(line, number) | {"evidence": msgspec.to_builtins(evidence)}
        yield shown if earlier is None else shown | _change(was.pop(name, None), line)
    for line in was.values():
        gone = _line(line, None) | {"quantity": "0", "steps": [], "exact": "0", "rounding": "0"}
        gone["amount"] = Money.of(0, line.amount.currency).amount
        yield gone | {"evidence": None} | _change(line, None)


def _named(lines: Iterable[Line]) -> dict[tuple[str, str, int], Line]:
    """Name lines by their charge; a charge that stands on several is counted."""
    seen: Counter[tuple[str, str]] = Counter()
    named = {}
    for line in lines:
        key = (line.charge, line.description)
        named[*key, seen[key]] = line
        seen[key] += 1
    return named


def _line(line: Line, number: int | None) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(line)
    return shown | {
        "number": number,
        "steps": [msgspec.to_builtins(step) | {"per": _per(step)} for step in line.steps],
        "amount": line.amount.amount,
        "unpriced": line.charge == UNPRICED,
        "was": None,
        "difference": None,
    }


def _per(step: ShownStep) -> str | None:
    """Say for how many units a step's price is, where that is not one.

    A step says how many, at what price, and what that came to; only one number of units makes the three agree.
    """
    came_to = read_exact(step.amount)
    if not came_to or not _PER_UNIT.fullmatch(step.what):
        return None
    per = read_exact(step.quantity) * read_exact(step.price) / came_to
    return None if per == 1 else print_exact(per)


def _change(was: Line | None, now: Line | None) -> dict[str, str]:
    currency = (was or now).amount.currency  # type: ignore[union-attr]
    return _difference(was.amount.nano if was else 0, now.amount.nano if now else 0, currency)


def _difference(was: int, now: int, currency: str) -> dict[str, str]:
    return {
        "was": Money.of(was, currency).amount,
        "amount": Money.of(now, currency).amount,
        "difference": Money.of(now - was, currency).amount,
    }


def _total(what: str, amount: Money, name: str = "") -> dict[str, Any]:
    return {"what": what, "name": name, "amount": amount.amount, "was": None, "difference": None}


def _totals(made: Bill) -> list[dict[str, Any]]:
    """Show how the amount due comes about, in the order it is counted."""
    return [
        _total("subtotal", made.subtotal),
        *(_total("discount", _negative(item.amount), item.name) for item in made.discounts),
        _total("net", made.net),
        *(_total("tax", item.amount, item.name) for item in made.taxes),
        _total("total", made.total),
        *(_total("credit", _negative(item.amount), item.name) for item in made.credits),
        _total("rounding", made.rounding),
        _total("due", made.due),
    ]


def _negative(amount: Money) -> Money:
    return Money.of(-amount.nano, amount.currency)


def _changed_totals(made: Bill, earlier: Bill) -> list[dict[str, Any]]:
    """Show the sums of a correction as they were and as they are; neither credits nor rounding are touched by it."""
    return [
        _both("subtotal", "", earlier.subtotal.nano, made.subtotal.nano, made.currency),
        *_both_items("discount", earlier.discounts, made.discounts, made.currency, -1),
        _both("net", "", earlier.net.nano, made.net.nano, made.currency),
        *_both_items("tax", earlier.taxes, made.taxes, made.currency, 1),
        _both("total", "", earlier.total.nano, made.total.nano, made.currency),
    ]


def _both(what: str, name: str, was: int, now: int, currency: str) -> dict[str, Any]:
    return {"what": what, "name": name} | _difference(was, now, currency)


def _both_items(
    what: str, was: Iterable[Item], now: Iterable[Item], currency: str, sign: int
) -> Iterator[dict[str, Any]]:
    # A name may stand twice, such as two coupons of one code: they are shown together.
    before, after = _summed(was), _summed(now)
    for name in dict.fromkeys([*before, *after]):
        yield _both(what, name, sign * before.get(name, 0), sign * after.get(name, 0), currency)


def _summed(items: Iterable[Item]) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in items:
        found[item.name] = found.get(item.name, 0) + item.amount.nano
    return found


# --------------------------------------------------------------------------- credit notes


def credit_note_document(issue: Issue, invoice: Issue, credited_before: Money) -> dict[str, Any]:
    """Say what a credit note says; `credited_before` is what was taken back of its invoice until then."""
    issued: CreditNote.Issued = issue.record.data
    billed: Invoice.Issued = invoice.record.data
    was = billed.owed.nano - credited_before.nano
    currency = issued.amount.currency
    return {
        "schema": CREDIT_NOTE_SCHEMA,
        **_place(issue),
        "kind": "credit_note",
        "issuer": PLATFORM,
        "tenant": issue.record.tenant,
        "currency": currency,
        "reason": issued.reason,
        "invoice": _place(invoice) | {"period": _period(billed)},
        "billed": _difference(was, was - issued.amount.nano, currency),
        "amount": issued.amount.amount,
        "net": Money.of(issued.amount.nano - issued.tax.nano, currency).amount,
        "tax": issued.tax.amount,
        "off_due": issued.off_due.amount,
        "returned": issued.returned.amount,
        "target": issued.target,
    }
