"""Invoices: one a period and customer, drawn up from the log as it was known at a position, and never changed.

    issued -> paid
        \\-> overdue -> paid

What comes later for a period that was billed does not touch its invoice. A correction is a document of its own: it
reverses the last document of that period and enters it anew with everything known by then, keeps the period of the
service, and is booked when it is made. What it gives back, less what credit notes have given back before it, is credit
of the customer. Drawing up twice from the same log
comes to the same bytes, and a correction with nothing to correct is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from fractions import Fraction
from typing import Literal, NamedTuple

import msgspec
from pydantic import Field

from domain.billing.accounts import PLATFORM, account_name, ensure
from domain.billing.bills import Bill, Terms, bill
from domain.billing.booking import Billed, booked, change_of, columns_of
from domain.billing.customers import Customer
from domain.billing.grants import Grant, burn_grant, grant_credit
from domain.billing.metering import Evidence, Proven, Used, rate_usage
from domain.billing.periods import Period
from domain.billing.price_books import PriceBook, PriceSheet, sheet_name
from domain.billing.prices import decimal_of
from domain.billing.rating import print_exact, read_exact
from domain.book import Posting, Transfer
from domain.errors import (
    CustomerNotFoundError,
    InvoiceNotFoundError,
    InvoiceSettledError,
    InvoiceTooLargeError,
    NothingToCorrectError,
    PeriodOpenError,
    PriceBookNotFoundError,
)
from domain.fields import Command, Id
from domain.ledger import Caller, Case, Redo, allow
from domain.log.records import Aggregate, Event, MoneyEvent, Record
from domain.values import NANO, Money, Tenant, moment_of, moment_text, print_nano

DUE_WITHIN_S = 14 * 86_400
# How long after a payment failed it is tried again; after the last the invoice is overdue.
RETRIES_S = (86_400, 3 * 86_400, 7 * 86_400)
LINES_MAX = 150


class SheetUsed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version of a price book, the half-open part of the period it was in force, and what share of it that is.

    Units: share of a whole period, as a fraction.
    """

    sheet: str
    address: str
    start: str
    end: str
    share: str


class Counted(msgspec.Struct, frozen=True):
    """What the log says was used, part by part, as known at a position.

    Units: known_at is the size of the log then: records before it count.
    """

    known_at: int
    parts: list[tuple[str, str, list[Used]]]


class Invoice(Aggregate):
    """What a customer owes for a period. Its bill never changes; what is still due goes down to zero, once."""

    KIND = "invoice"

    number: str = ""
    kind: str = "invoice"
    corrects: str | None = None
    period_start: str = ""
    period_end: str = ""
    zone: str = ""
    known_at: int = 0
    sheets: list[SheetUsed] = msgspec.field(default_factory=list)
    terms: Terms | None = None
    bill: Bill | None = None
    evidence: list[Evidence | None] = msgspec.field(default_factory=list)
    owed: Money | None = None
    tax: Money | None = None
    due: Money | None = None
    credited: Money | None = None
    paid: Money | None = None
    refunded: Money | None = None
    corrected_by: str | None = None
    status: str = "issued"
    due_at: str | None = None
    attempts: int = 0
    next_attempt_at: str | None = None

    class Issued(MoneyEvent, frozen=True):
        """An invoice was issued, or a correction of one."""

        TOPIC = "invoice.issued"

        number: str
        kind: Literal["invoice", "correction"]
        corrects: str | None
        period_start: str
        period_end: str
        zone: str
        known_at: int
        sheets: list[SheetUsed]
        terms: Terms
        bill: Bill
        evidence: list[Evidence | None]
        owed: Money
        tax: Money
        due: Money
        due_at: str

        def apply(self, invoice: Invoice, record: Record) -> None:
            for name in self.__struct_fields__:
                if name != "money":
                    setattr(invoice, name, getattr(self, name))
            invoice.credited = invoice.paid = invoice.refunded = Money.of(0, self.owed.currency)
            invoice.status = "issued" if self.due.nano > 0 else "paid"
            invoice.next_attempt_at = record.at if self.due.nano > 0 else None

    class Corrected(Event, frozen=True):
        """A later document takes the place of this one for its period."""

        TOPIC = "invoice.corrected"

        by: str

        def apply(self, invoice: Invoice, record: Record) -> None:
            invoice.corrected_by = self.by

    class Paid(MoneyEvent, frozen=True):
        """What was due was paid from the customer's wallet."""

        TOPIC = "invoice.paid"

        amount: Money

        def apply(self, invoice: Invoice, record: Record) -> None:
            invoice.due = Money.of(0, self.amount.currency)
            invoice.paid = self.amount
            invoice.status = "paid"
            invoice.next_attempt_at = None

    class Credited(Event, frozen=True):
        """A part of it was taken back; what is still due goes down first, and some may be back in the wallet."""

        TOPIC = "invoice.credited"

        note: str
        amount: Money
        off_due: Money
        refunded: Money

        def apply(self, invoice: Invoice, record: Record) -> None:
            invoice.credited = self.amount if invoice.credited is None else invoice.credited + self.amount
            invoice.refunded = self.refunded if invoice.refunded is None else invoice.refunded + self.refunded
            before = self.off_due if invoice.due is None else invoice.due
            invoice.due = Money.of(before.nano - self.off_due.nano, self.amount.currency)
            if not invoice.due.nano:
                invoice.status, invoice.next_attempt_at = "paid", None

    class PaymentFailed(Event, frozen=True):
        """The wallet did not hold what is due; it is tried again, or the invoice is overdue."""

        TOPIC = "invoice.payment_failed"

        reason: str
        attempt: int
        next_attempt_at: str | None

        def apply(self, invoice: Invoice, record: Record) -> None:
            invoice.attempts = self.attempt
            invoice.next_attempt_at = self.next_attempt_at
            invoice.status = "issued" if self.next_attempt_at else "overdue"

    def status_key(self) -> str:
        return self.status

    def owner_key(self) -> str:
        return self.number

    def deadline_key(self) -> str | None:
        return self.next_attempt_at if self.status == "issued" else None

    @property
    def made(self) -> Bill:
        assert self.bill is not None, "an invoice starts with its bill"
        return self.bill

    @property
    def billed(self) -> Billed:
        sums = (self.owed, self.tax, self.credited)
        return Billed(*(0 if money is None else money.nano for money in sums))

    @property
    def period(self) -> Period:
        return Period(moment_of(self.period_start), moment_of(self.period_end))


# --------------------------------------------------------------------------- drawing up


class Part(NamedTuple):
    """A part of a period under one version of a book: its share of the whole period, and what was used in it."""

    sheet: PriceSheet
    start: str
    end: str
    share: Fraction
    used: Sequence[Used]


class Source(NamedTuple):
    """Usage of one name in a half-open part of a period, as a line counts it."""

    start: str
    end: str
    provider: str
    model: str
    persona_id: str | None


class DrawnUp(NamedTuple):
    """A bill, with the records behind each of its lines, and which usage they are."""

    bill: Bill
    evidence: list[Evidence | None]
    sources: list[list[Source]]


def draw_up(parts: Sequence[Part], terms: Terms, at: str) -> DrawnUp:
    """Make the bill of a period: what a quote shows and what an invoice charges.

    Errors: currency_mismatch, invoice_too_large.
    """
    proven = _proven(parts, terms.currency)
    if len(proven) > LINES_MAX:
        # Whoever names models chooses how many names there are; no bill may fail for that.
        proven = _proven(parts, terms.currency, unpriced_apart=False)
    if len(proven) > LINES_MAX:
        raise InvoiceTooLargeError(lines=len(proven), lines_max=LINES_MAX)
    made = bill([one.rated for _, one in proven], terms, at)
    evidence = [one.evidence for _, one in proven]
    sources = [
        [Source(part.start, part.end, u.provider, u.model, u.persona_id) for u in one.used]
        for part, one in proven
    ]
    # What a bill adds by itself, such as a commitment, counts no records.
    added = len(made.lines) - len(proven)
    return DrawnUp(made, evidence + [None] * added, sources + [[] for _ in range(added)])


def _proven(
    parts: Sequence[Part], currency: str, *, unpriced_apart: bool = True
) -> list[tuple[Part, Proven]]:
    return [
        (part, one)
        for part in parts
        for one in rate_usage(
            part.sheet.charges, part.used, currency, part.share, unpriced_apart=unpriced_apart
        )
    ]


def sheets_of(parts: Sequence[Part]) -> list[SheetUsed]:
    """Name the versions that parts of a period are under."""
    return [SheetUsed(p.sheet.id, p.sheet.address, p.start, p.end, str(p.share)) for p in parts]


def commitment_of(parts: Sequence[Part]) -> str | None:
    """Add up the least a customer pays, each version's for its share of the period.

    Units: of the currency; rounded to nano-units half to even, for a commitment is an agreed amount.
    """
    agreed = [(part.sheet.commitment, part.share) for part in parts if part.sheet.commitment is not None]
    if not agreed:
        return None
    nano = sum((decimal_of(amount) * NANO * share for amount, share in agreed), Fraction(0))
    return print_nano(round(nano), parts[0].sheet.currency)


# --------------------------------------------------------------------------- commands


class IssueInvoice(Command):
    """Bill a customer's next period."""

    tenant: Tenant


class CorrectInvoice(Command):
    """Bill again a period that was billed, with what came since."""

    invoice_id: Id


class InvoiceStep(Command):
    """Name an invoice."""

    invoice_id: Id


class FailPayment(Command):
    """Write down that a payment did not go through."""

    invoice_id: Id
    reason: str = Field(min_length=1, max_length=200)


@allow("service", "billing", "operator")
def issue_invoice(case: Case, command: IssueInvoice, *, counted: Counted) -> Invoice:
    """Bill the next period of a customer, once it is over and its grace has passed.

    Errors: customer_not_found, invoice_too_large, period_open, price_book_not_found, price_not_in_force.
    """
    customer = case.get(Customer, command.tenant, CustomerNotFoundError)
    if not may_bill(case.caller):
        raise CustomerNotFoundError(id=customer.id)
    period = customer.next_period()
    _check_over(case, customer, period)
    parts = parts_of(case, customer, period, counted)
    grants = [case.get(Grant, name) for name in customer.grants]
    terms = terms_of(customer, parts, grants)
    drawn = draw_up(parts, terms, case.now)
    number = f"INV-{customer.id}-{customer.invoice_count + 1:06d}"
    issued = _issued(case, customer, period, counted, parts, terms, drawn, number)
    invoice = case.create(Invoice, number.lower(), issued, tenant=customer.id)
    for item in drawn.bill.credits:
        burn_grant(case, customer, item.name, item.amount, invoice.id)
    case.emit(
        customer,
        Customer.Billed(invoice=invoice.id, period_end=moment_text(period.end), carried=drawn.bill.carried),
    )
    return invoice


@allow("service", "billing", "operator")
def correct_invoice(case: Case, command: CorrectInvoice, *, counted: Counted) -> Invoice:
    """Enter a billed period anew, with all that is known now; the difference is owed, or becomes credit.

    Errors: customer_not_found, invoice_not_found, invoice_too_large, nothing_to_correct.
    """
    before = _invoice(case, command.invoice_id)
    if before.corrected_by is not None:
        raise NothingToCorrectError("a later document stands in its place", corrected_by=before.corrected_by)
    customer = case.get(Customer, before.tenant, CustomerNotFoundError)
    parts = parts_again(before, counted, lambda name: case.get(PriceSheet, name, PriceBookNotFoundError))
    terms = _unburdened(before)
    drawn = draw_up(parts, terms, case.now)
    if drawn.bill.lines == before.made.lines and drawn.evidence == before.evidence:
        raise NothingToCorrectError(known_at=counted.known_at, invoice=before.id)
    number = f"INV-{customer.id}-{customer.invoice_count + 1:06d}"
    corrected = _correction(case, customer, before, counted, terms, drawn, number)
    invoice = case.create(Invoice, number.lower(), corrected, tenant=customer.id)
    case.emit(before, Invoice.Corrected(by=invoice.id))
    carried = read_exact(customer.carried) + _rounded_off(drawn.bill) - _rounded_off(before.made)
    case.emit(customer, Customer.Corrected(invoice=invoice.id, carried=print_exact(carried)))
    if invoice.owed is not None and invoice.owed.nano < 0:
        back = Money.of(-invoice.owed.nano, invoice.owed.currency)
        grant_credit(case, customer, back, source="correction", reference=invoice.id)
    return invoice


@allow("service", "billing", "operator")
def pay_invoice(case: Case, command: InvoiceStep) -> Invoice:
    """Pay what is due from the customer's wallet.

    Errors: account_not_found, insufficient_funds, invoice_settled, invoice_not_found.
    """
    invoice = _unpaid(case, command.invoice_id)
    assert invoice.due is not None
    currency = invoice.due.currency
    wallet = ensure(case, "wallet", invoice.tenant, currency)
    receivable = account_name("receivable", invoice.tenant, currency)
    legs = [Posting(wallet, invoice.due.amount), Posting(receivable, "-" + invoice.due.amount)]
    return case.emit(invoice, Invoice.Paid(amount=invoice.due, money=[Transfer(currency, legs)]))


@allow("service", "billing", "operator")
def fail_payment(case: Case, command: FailPayment) -> Invoice:
    """Write down a failed payment, and when it is tried again; before that time it is not tried, and nothing fails.

    Errors: invoice_not_found, invoice_settled.
    """
    invoice = _unpaid(case, command.invoice_id)
    if invoice.next_attempt_at is None or case.now < invoice.next_attempt_at:
        return invoice
    attempt = invoice.attempts + 1
    again = RETRIES_S[attempt - 1] if attempt <= len(RETRIES_S) else None
    failed = Invoice.PaymentFailed(
        reason=command.reason,
        attempt=attempt,
        next_attempt_at=None if again is None else _after(case.now, again),
    )
    return case.emit(invoice, failed)


# --------------------------------------------------------------------------- parts of it


def _check_over(case: Case, customer: Customer, period: Period) -> None:
    ready = customer.ready_at
    if case.now < ready:
        raise PeriodOpenError(
            "the period is over, with its grace, at " + ready,
            period_end=moment_text(period.end),
            ready_at=ready,
        )


def parts_of(case: Case, customer: Customer, period: Period, counted: Counted) -> list[Part]:
    """Put what was counted under the versions of the customer's book that are in force.

    The counting was done before the decision; where it was for another period or cut otherwise, it is done again.
    Errors: price_book_not_found, price_not_in_force.
    """
    book = case.get(PriceBook, customer.agreed.book, PriceBookNotFoundError)
    pieces = book.between(moment_text(period.start), moment_text(period.end))
    if [(start, end) for start, end, _ in pieces] != [(start, end) for start, end, _ in counted.parts]:
        raise Redo("what was counted is for another period")
    whole = customer.whole_period()
    return [
        Part(
            case.get(PriceSheet, sheet_name(book.id, version.number), PriceBookNotFoundError),
            start,
            end,
            Period(moment_of(start), moment_of(end)).share_of(whole),
            used,
        )
        for (start, end, version), (_, _, used) in zip(pieces, counted.parts, strict=True)
    ]


def parts_again(invoice: Invoice, counted: Counted, sheet_of: Callable[[str], PriceSheet]) -> list[Part]:
    """Put what is counted now under the versions that an invoice was made with."""
    if [(one.start, one.end) for one in invoice.sheets] != [(start, end) for start, end, _ in counted.parts]:
        raise Redo("what was counted is for another period")
    return [
        Part(
            sheet_of(one.sheet),
            one.start,
            one.end,
            Fraction(one.share),
            used,
        )
        for one, (_, _, used) in zip(invoice.sheets, counted.parts, strict=True)
    ]


def terms_of(customer: Customer, parts: Sequence[Part], grants: Sequence[Grant]) -> Terms:
    """Give the terms of a customer's next bill."""
    return Terms(
        currency=customer.agreed.currency,
        commitment=commitment_of(parts),
        coupons=[one.coupon for one in customer.coupons],
        taxes=customer.agreed.taxes,
        credits=[grant.as_credit() for grant in grants if grant.left.nano],
        carried=customer.carried,
    )


def _unburdened(invoice: Invoice) -> Terms:
    """Give the terms of an invoice without what was of that moment: its credits and what was carried to it."""
    assert invoice.terms is not None
    return msgspec.structs.replace(invoice.terms, credits=[], carried="0")


def _rounded_off(made: Bill) -> Fraction:
    """Add up what rounding took of the lines of a bill.

    Units: of the currency.
    """
    return sum((read_exact(line.rounding) for line in made.lines), Fraction(0))


def _issued(
    case: Case,
    customer: Customer,
    period: Period,
    counted: Counted,
    parts: Sequence[Part],
    terms: Terms,
    drawn: DrawnUp,
    number: str,
) -> Invoice.Issued:
    made = drawn.bill
    columns = columns_of(made)
    return Invoice.Issued(
        number=number,
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
        owed=Money.of(columns.owed, made.currency),
        tax=Money.of(columns.tax, made.currency),
        due=made.due,
        due_at=_after(case.now, DUE_WITHIN_S),
        money=booked(case, customer.id, made.currency, columns),
    )


def _correction(
    case: Case,
    customer: Customer,
    before: Invoice,
    counted: Counted,
    terms: Terms,
    drawn: DrawnUp,
    number: str,
) -> Invoice.Issued:
    made = drawn.bill
    earlier = documents_of(case, before)
    change = change_of(made, earlier[0].made.rounding.nano, [one.billed for one in earlier])
    owed = Money.of(change.owed, made.currency)
    return Invoice.Issued(
        number=number,
        kind="correction",
        corrects=before.id,
        period_start=before.period_start,
        period_end=before.period_end,
        zone=before.zone,
        known_at=counted.known_at,
        sheets=before.sheets,
        terms=terms,
        bill=made,
        evidence=drawn.evidence,
        owed=owed,
        tax=Money.of(change.tax, made.currency),
        due=Money.of(max(0, change.owed), made.currency),
        due_at=_after(case.now, DUE_WITHIN_S),
        money=booked(case, customer.id, made.currency, change),
    )


def documents_of(case: Case, invoice: Invoice) -> list[Invoice]:
    """List the documents of an invoice's period, the first one first.

    Cost: one look-up for each of them.
    """
    every = [invoice]
    while every[0].corrects is not None:
        every.insert(0, case.get(Invoice, every[0].corrects, InvoiceNotFoundError))
    while every[-1].corrected_by is not None:
        every.append(case.get(Invoice, every[-1].corrected_by, InvoiceNotFoundError))
    return every


def may_bill(caller: Caller) -> bool:
    """Say whether somebody may bill others: who keeps the books, and of programs the platform's own."""
    return caller.tenant == PLATFORM or bool(caller.roles & {"billing", "operator"})


def _invoice(case: Case, name: str) -> Invoice:
    invoice = case.get(Invoice, name, InvoiceNotFoundError)
    if not may_bill(case.caller):
        raise InvoiceNotFoundError(id=name)
    return invoice


def _unpaid(case: Case, name: str) -> Invoice:
    invoice = _invoice(case, name)
    if invoice.status == "paid":
        raise InvoiceSettledError(invoice=invoice.id)
    return invoice


def _after(moment: str, seconds: int) -> str:
    return moment_text(moment_of(moment) + timedelta(seconds=seconds))
