"""Credit notes: a part of an invoice taken back, never more than its period was billed, each with its reason.

What is still due is taken from first; what was paid comes back as credit, or into the wallet as far as it came from
there. The tax in it is the invoice's own tax in proportion, counted over all credit notes together, so that crediting
all of an invoice in any number of steps gives back exactly its tax.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from domain.billing.accounts import PLATFORM, ensure
from domain.billing.booking import tax_in
from domain.billing.customers import Customer
from domain.billing.grants import BOUGHT, Grant, grant_credit
from domain.billing.invoices import Invoice, documents_of
from domain.billing.rating import minor_nano
from domain.book import Posting, Transfer
from domain.errors import (
    AmountInvalidError,
    CreditTooLargeError,
    CurrencyMismatchError,
    CustomerNotFoundError,
    GrantNotFoundError,
    InvoiceNotFoundError,
)
from domain.fields import Command, Id, Reason
from domain.ledger import Case, allow
from domain.log.records import Aggregate, MoneyEvent, Record
from domain.values import Money, print_nano

Target = Literal["credits", "wallet"]


class CreditNote(Aggregate):
    """A part of an invoice that was taken back; it is one event and never changes."""

    KIND = "credit_note"

    number: str = ""
    invoice: str = ""
    amount: Money | None = None
    tax: Money | None = None
    off_due: Money | None = None
    returned: Money | None = None
    target: str = ""
    reason: str = ""
    status: str = "issued"

    class Issued(MoneyEvent, frozen=True):
        """A part of an invoice was taken back."""

        TOPIC = "credit_note.issued"

        number: str
        invoice: str
        amount: Money
        tax: Money
        off_due: Money
        returned: Money
        target: Target
        reason: str

        def apply(self, note: CreditNote, record: Record) -> None:
            for name in self.__struct_fields__:
                if name != "money":
                    setattr(note, name, getattr(self, name))

    def owner_key(self) -> str:
        return self.invoice

    def status_key(self) -> str:
        return self.status


class CreditInvoice(Command):
    """Take a part of an invoice back, tax included; the reason is for the customer to read."""

    invoice_id: Id
    amount: Money
    target: Target = Field("credits", description="Where what was paid already comes back to.")
    reason: Reason


class _Parts(NamedTuple):
    """How a credited amount divides. Units: nano-units."""

    tax: int
    off_due: int
    returned: int


@allow("billing", "operator")
def credit_invoice(case: Case, command: CreditInvoice) -> CreditNote:
    """Take a part of an invoice back.

    Errors: credit_too_large, currency_mismatch, customer_not_found, invalid_amount, invoice_not_found,
            too_many_grants.
    """
    invoice = case.get(Invoice, command.invoice_id, InvoiceNotFoundError)
    customer = case.get(Customer, invoice.tenant, CustomerNotFoundError)
    _check_amount(case, invoice, command.amount)
    parts = _divide(invoice, command.amount.nano)
    refunded = parts.returned if command.target == "wallet" else 0
    _check_refund(case, invoice, refunded)
    currency = command.amount.currency
    number = f"CN-{customer.id}-{customer.credit_note_count + 1:06d}"
    issued = CreditNote.Issued(
        number=number,
        invoice=invoice.id,
        amount=command.amount,
        tax=Money.of(parts.tax, currency),
        off_due=Money.of(parts.off_due, currency),
        returned=Money.of(parts.returned, currency),
        target=command.target,
        reason=command.reason,
        money=[_booked(case, invoice.tenant, command.target, command.amount, parts)],
    )
    note = case.create(CreditNote, number.lower(), issued, tenant=invoice.tenant)
    case.emit(
        invoice,
        Invoice.Credited(
            note=note.id,
            amount=command.amount,
            off_due=Money.of(parts.off_due, currency),
            refunded=Money.of(refunded, currency),
        ),
    )
    case.emit(customer, Customer.NoteIssued(note=note.id))
    if parts.returned and command.target == "credits":
        back = Money.of(parts.returned, currency)
        grant_credit(case, customer, back, source="correction", reference=note.id)
    return note


def _check_amount(case: Case, invoice: Invoice, amount: Money) -> None:
    assert invoice.owed is not None
    if amount.currency != invoice.owed.currency:
        raise CurrencyMismatchError(invoice=invoice.owed.currency, asked=amount.currency)
    if amount.nano <= 0 or amount.nano % minor_nano(amount.currency):
        raise AmountInvalidError("a credit is a payable amount, more than nothing", got=amount.amount)
    left = min(_left([invoice]), _left(documents_of(case, invoice)))
    if amount.nano > left:
        raise CreditTooLargeError(
            left=print_nano(max(0, left), amount.currency), asked=amount.amount, invoice=invoice.id
        )


def _check_refund(case: Case, invoice: Invoice, refunded: int) -> None:
    """See that no more comes into the wallet than came from it: what was a present comes back as credit."""
    if not refunded:
        return
    assert invoice.paid is not None
    assert invoice.refunded is not None
    burned = sum(item.amount.nano for item in invoice.made.credits if _was_bought(case, item.name))
    left = invoice.paid.nano + burned - invoice.refunded.nano
    if refunded > left:
        raise CreditTooLargeError(
            "no more comes back into the wallet than came from it; take the rest back as credits",
            refundable=print_nano(left, invoice.paid.currency),
            asked=print_nano(refunded, invoice.paid.currency),
            invoice=invoice.id,
        )


def _was_bought(case: Case, grant: str) -> bool:
    return case.get(Grant, grant, GrantNotFoundError).source in BOUGHT


def _left(documents: Sequence[Invoice]) -> int:
    """Give what documents billed together less what was taken back of them; corrections may have given back too.

    Units: nano-units.
    """
    return sum(one.billed.owed - one.billed.credited for one in documents)


def _divide(invoice: Invoice, nano: int) -> _Parts:
    assert invoice.owed is not None
    assert invoice.due is not None
    owed, tax, before = invoice.billed
    currency = invoice.owed.currency
    tax = tax_in(tax, owed, before + nano, currency) - tax_in(tax, owed, before, currency)
    off_due = min(nano, invoice.due.nano)
    return _Parts(tax, off_due, nano - off_due)


def _booked(case: Case, tenant: str, target: Target, amount: Money, parts: _Parts) -> Transfer:
    sides = [
        ("revenue", PLATFORM, amount.nano - parts.tax),
        ("tax", PLATFORM, parts.tax),
        ("receivable", tenant, -parts.off_due),
        (target, tenant, -parts.returned),
    ]
    legs = [
        Posting(ensure(case, purpose, owner, amount.currency), print_nano(nano, amount.currency))
        for purpose, owner, nano in sides
        if nano
    ]
    return Transfer(amount.currency, legs)
