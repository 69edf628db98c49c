"""Counting for bills: what the log says was used in the parts of a period, before a bill is drawn up from it.

It is done outside of the decision, which holds it against the customer and the book it finds: what was counted for
another period or under other versions is counted again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from domain.billing.customers import Customer
from domain.billing.invoices import Counted, DrawnUp, Invoice, draw_up, parts_again
from domain.billing.price_books import PriceBook, PriceSheet
from domain.errors import LogDamagedError, PriceNotInForceError
from domain.values import moment_text
from ops.reads import LogReader
from ops.usage_totals import Stretch, usage_totals

NOTHING = Counted(0, [])


class Due(NamedTuple):
    """A customer's next period, cut where another version of its book comes into force."""

    tenant: str
    cuts: list[tuple[str, str]]


async def count_next(reader: LogReader, tenants: Sequence[str]) -> dict[str, Counted]:
    """Count the next periods of customers, all as known at one position; who is none is left out.

    Cost:   one pass over the usage of these tenants.
    Errors: unavailable.
    """
    # The size comes first: what is read after it knows every record before it.
    bound = await reader.size()
    due = await _due(reader, tenants)
    return await _count(reader, {one.tenant: one for one in due}, bound)


async def count_again(reader: LogReader, invoice: Invoice, bound: int | None = None) -> Counted:
    """Count the period of an invoice, cut as it was, as known now or at a position.

    Errors: unavailable.
    """
    known_at = await reader.size() if bound is None else bound
    due = Due(invoice.tenant, [(one.start, one.end) for one in invoice.sheets])
    return (await _count(reader, {invoice.id: due}, known_at))[invoice.id]


async def drawn_again(reader: LogReader, invoice: Invoice) -> DrawnUp:
    """Draw an invoice up again from the log as it was known then: the same lines, and which usage is in each.

    Errors: log_damaged, unavailable.
    """
    counted = await count_again(reader, invoice, invoice.known_at)
    streams = [f"{PriceSheet.KIND}/{one.sheet}" for one in invoice.sheets]
    sheets = {s.partition("/")[2]: one.aggregate for s, one in (await reader.load(streams)).items()}
    parts = parts_again(invoice, counted, lambda name: _sheet(sheets, name))
    assert invoice.terms is not None
    drawn = draw_up(parts, invoice.terms, invoice.created_at)
    if drawn.bill.lines != invoice.made.lines or drawn.evidence != invoice.evidence:
        raise LogDamagedError("an invoice is not what the log comes to", invoice=invoice.id)
    return drawn


def _sheet(sheets: Mapping[str, Any], name: str) -> PriceSheet:
    sheet = sheets[name]
    assert isinstance(sheet, PriceSheet)
    return sheet


async def _due(reader: LogReader, tenants: Sequence[str]) -> list[Due]:
    loaded = await reader.load([f"{Customer.KIND}/{tenant}" for tenant in tenants])
    customers = [one.aggregate for one in loaded.values() if isinstance(one.aggregate, Customer)]
    names = {f"{PriceBook.KIND}/{customer.agreed.book}" for customer in customers}
    books = {s.partition("/")[2]: one.aggregate for s, one in (await reader.load(sorted(names))).items()}
    return [Due(c.id, _cuts(c, books[c.agreed.book])) for c in customers if c.agreed.book in books]


def _cuts(customer: Customer, book: Any) -> list[tuple[str, str]]:
    period = customer.next_period()
    try:
        pieces = book.between(moment_text(period.start), moment_text(period.end))
    except PriceNotInForceError:
        # The decision finds the same, and says so.
        return []
    return [(start, end) for start, end, _ in pieces]


async def _count(reader: LogReader, due: Mapping[str, Due], bound: int) -> dict[str, Counted]:
    wanted = [Stretch(one.tenant, a, b) for one in due.values() for a, b in one.cuts]
    totals = await usage_totals(reader.pool, wanted, bound)
    return {
        name: Counted(bound, [(a, b, totals[Stretch(one.tenant, a, b)]) for a, b in one.cuts])
        for name, one in due.items()
    }
