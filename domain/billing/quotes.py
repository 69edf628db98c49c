"""Quotes: what a period comes to, drawn up by what draws up invoices, and nothing is written.

A quote is for a customer's next period, with its plan, coupons and credits, or for a price book alone. What was used
is taken from the log, or is what somebody supposes. For the same usage it is the same bill as the invoice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

import msgspec
from pydantic import Field

from domain.billing.accounts import PLATFORM
from domain.billing.bills import Bill, Coupon, Terms
from domain.billing.customers import Customer
from domain.billing.grants import Grant
from domain.billing.invoices import (
    Counted,
    DrawnUp,
    Part,
    SheetUsed,
    commitment_of,
    draw_up,
    parts_of,
    sheets_of,
    terms_of,
)
from domain.billing.metering import Evidence, Used
from domain.billing.periods import Period
from domain.billing.price_books import PriceBook, PriceSheet, sheet_name
from domain.billing.usage import Count
from domain.errors import CouponInvalidError, CustomerNotFoundError, InvalidFieldError, PriceBookNotFoundError
from domain.fields import Command, Id, Label, Moment, Share
from domain.ledger import Caller, Case, allow
from domain.values import Money, Tenant, moment_of, moment_text

USAGE_MAX = 1_000
READERS = frozenset({"operator", "auditor", "billing"})


class SupposedUsage(Command):
    """What is supposed to be used of one model.

    Units: counts; at is a moment of the period, its start if left out.
    """

    provider: Label
    model: Label
    persona_id: Id | None = None
    tokens_in: Count = 0
    tokens_out: Count = 0
    cached_tokens: Count = 0
    requests: Count = 0
    at: Moment | None = None


class SupposedCoupon(Command):
    """A discount to try: a share or an amount."""

    code: Label
    share: Share | None = None
    amount: Money | None = None
    charges: list[Label] | None = Field(None, min_length=1, max_length=50)


class AskQuote(Command):
    """Ask what a period comes to: a customer's next one, or one under a price book."""

    tenant: Tenant | None = Field(None, description="The customer; its next period is quoted.")
    book: Id | None = Field(None, description="A price book, in place of a customer.")
    start: Moment | None = Field(None, description="Of the period under a book; now if left out.")
    end: Moment | None = Field(None, description="Of the period under a book; one whole period if left out.")
    usage: list[SupposedUsage] | None = Field(
        None, max_length=USAGE_MAX, description="What is used; for a customer what the log says if left out."
    )
    coupons: list[SupposedCoupon] = Field([], max_length=20)


class Quote(msgspec.Struct, frozen=True):
    """A bill that nobody owes.

    Units: known_at is the size of the log whose usage it counts, or null where usage was supposed.
    """

    tenant: str | None
    book: str
    period_start: str
    period_end: str
    known_at: int | None
    sheets: list[SheetUsed]
    terms: Terms
    bill: Bill
    evidence: list[Evidence | None]


@allow()
def quote(case: Case, command: AskQuote, *, counted: Counted | None = None) -> Quote:
    """Draw up what a period comes to.

    Errors: coupon_invalid, currency_mismatch, customer_not_found, invalid_field, invoice_too_large,
            price_book_not_found, price_not_in_force.
    """
    if (command.tenant is None) == (command.book is None):
        raise InvalidFieldError(
            "a quote is for a tenant or for a book, not both and not neither", field="tenant"
        )
    if command.tenant is not None:
        return _for_customer(case, command.tenant, command, counted)
    return _for_book(case, str(command.book), command)


def may_see_book(caller: Caller, book: PriceBook | PriceSheet, customer: Customer | None) -> bool:
    """Say whether somebody may look at a book: the platform's are on show, others their customers'."""
    if caller.roles & READERS or book.tenant in (PLATFORM, caller.tenant):
        return True
    plans = [] if customer is None else [customer.plan, customer.next_plan]
    name = book.id if isinstance(book, PriceBook) else book.book
    return any(plan is not None and plan.book == name for plan in plans)


def _for_customer(case: Case, tenant: str, command: AskQuote, counted: Counted | None) -> Quote:
    if tenant != case.caller.tenant and not case.caller.roles & READERS:
        raise CustomerNotFoundError(id=tenant)
    customer = case.get(Customer, tenant, CustomerNotFoundError)
    period = customer.next_period()
    if command.usage is not None or counted is None:
        book = case.get(PriceBook, customer.agreed.book, PriceBookNotFoundError)
        cuts = [(a, b) for a, b, _ in book.between(moment_text(period.start), moment_text(period.end))]
        counted = Counted(0, suppose(command.usage or [], cuts))
    parts = parts_of(case, customer, period, counted)
    grants = [case.get(Grant, name) for name in customer.grants]
    terms = _with_coupons(terms_of(customer, parts, grants), command.coupons)
    drawn = draw_up(parts, terms, case.now)
    known_at = None if command.usage is not None else counted.known_at
    return _quote(tenant, customer.agreed.book, period, known_at, parts, terms, drawn)


def _for_book(case: Case, name: str, command: AskQuote) -> Quote:
    book = case.get(PriceBook, name, PriceBookNotFoundError)
    if not may_see_book(case.caller, book, case.find(Customer, case.caller.tenant)):
        raise PriceBookNotFoundError(id=name)
    period, parts = _book_parts(case, book, command)
    terms = _with_coupons(Terms(book.currency, commitment_of(parts)), command.coupons)
    return _quote(None, book.id, period, None, parts, terms, draw_up(parts, terms, case.now))


def _book_parts(case: Case, book: PriceBook, command: AskQuote) -> tuple[Period, list[Part]]:
    """Cut a period where versions of a book change; without an end it is one whole period under one version."""
    start = command.start or case.now
    end = command.end or start
    if end < start:
        raise InvalidFieldError("the period ends before it starts", field="end")
    pieces = book.between(start, end) or [(start, end, book.in_force(start))]
    whole = Period(moment_of(start), moment_of(end))
    used = suppose(command.usage or [], [(a, b) for a, b, _ in pieces])
    return whole, [
        Part(
            case.get(PriceSheet, sheet_name(book.id, version.number), PriceBookNotFoundError),
            a,
            b,
            Period(moment_of(a), moment_of(b)).share_of(whole) if start < end else Fraction(1),
            found,
        )
        for (a, b, version), (_, _, found) in zip(pieces, used, strict=True)
    ]


def suppose(
    usage: Iterable[SupposedUsage], cuts: Sequence[tuple[str, str]]
) -> list[tuple[str, str, list[Used]]]:
    """Sum supposed usage up as the log's would be, part by part of a period.

    Errors: invalid_field.
    """
    sums: list[dict[tuple[str, str, str], list[int]]] = [{} for _ in cuts]
    for index, one in enumerate(usage):
        at = one.at or cuts[0][0]
        place = next((n for n, (a, b) in enumerate(cuts) if a <= at < b or a == at == b), None)
        if place is None:
            raise InvalidFieldError("it lies outside of the period", field=f"usage.{index}.at", got=at)
        found = sums[place].setdefault((one.provider, one.model, one.persona_id or ""), [0, 0, 0, 0])
        counts = (one.tokens_in, one.tokens_out, one.cached_tokens, one.requests)
        found[:] = [before + more for before, more in zip(found, counts, strict=True)]
    return [
        (a, b, [_supposed(name, counts) for name, counts in sorted(found.items())])
        for (a, b), found in zip(cuts, sums, strict=True)
    ]


def _supposed(name: tuple[str, str, str], counts: list[int]) -> Used:
    provider, model, persona_id = name
    tokens_in, tokens_out, cached_tokens, requests = counts
    return Used(
        provider, model, persona_id or None, tokens_in, tokens_out, cached_tokens, requests, 0, 0, 0, "0" * 16
    )


def _with_coupons(terms: Terms, coupons: Sequence[SupposedCoupon]) -> Terms:
    if any((one.share is None) == (one.amount is None) for one in coupons):
        raise CouponInvalidError("a coupon has a share or an amount, not both and not neither")
    more = [Coupon(one.code, one.share, one.amount, one.charges) for one in coupons]
    return msgspec.structs.replace(terms, coupons=[*terms.coupons, *more])


def _quote(
    tenant: str | None,
    book: str,
    period: Period,
    known_at: int | None,
    parts: Sequence[Part],
    terms: Terms,
    drawn: DrawnUp,
) -> Quote:
    return Quote(
        tenant=tenant,
        book=book,
        period_start=moment_text(period.start),
        period_end=moment_text(period.end),
        known_at=known_at,
        sheets=sheets_of(parts),
        terms=terms,
        bill=drawn.bill,
        evidence=drawn.evidence if known_at is not None else [],
    )
