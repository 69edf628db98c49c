"""Credits: prepaid or given money of a customer, burned by invoices in a fixed order, and gone when it expires.

Credits of a customer are one account; each grant is its own part of it, so that every amount burned can be traced to
where it came from. Money that was paid for and expires becomes revenue, money that was given goes back to where it was
given from.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from pydantic import Field

from domain.billing.accounts import PLATFORM, ensure
from domain.billing.bills import Credit
from domain.billing.customers import Customer
from domain.book import Entry, Posting, Transfer, payment
from domain.errors import (
    AmountInvalidError,
    CurrencyMismatchError,
    CustomerNotFoundError,
    ExpiresAtInvalidError,
    GrantNotFoundError,
    TooManyGrantsError,
)
from domain.fields import Command, Id, Moment, Text
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, MoneyEvent, Record
from domain.values import Money, Tenant

GRANTS_MAX = 200

Source = Literal["paid", "promotion", "correction", "prepaid"]
# From where each kind of credit comes, and to where it goes when it expires.
_FROM = {"paid": "wallet", "promotion": "promotions"}
# Which of them a customer paid for with money of its wallet.
BOUGHT = frozenset({"paid", "prepaid"})
_TO = {"paid": "revenue", "promotion": "promotions", "correction": "revenue", "prepaid": "revenue"}


class Grant(Aggregate):
    """An amount of credit: what is left of it goes down by invoices, or at once when it expires.

    Only what is paid ahead grows: the reservations of a period that were used become one grant, not hundreds.
    """

    KIND = "grant"

    source: str = ""
    amount: Money | None = None
    left: Money = msgspec.field(default_factory=lambda: Money.of(0, "USD"))
    priority: int = 0
    expires_at: str | None = None
    reference: str | None = None
    status: str = "active"

    class Granted(MoneyEvent, frozen=True):
        """Credit was bought, given, or came back by a correction."""

        TOPIC = "grant.granted"

        source: Source
        amount: Money
        priority: int
        expires_at: str | None
        reference: str | None

        def apply(self, grant: Grant, record: Record) -> None:
            grant.source = self.source
            grant.amount = grant.left = self.amount
            grant.priority = self.priority
            grant.expires_at = self.expires_at
            grant.reference = self.reference

    class Grown(Event, frozen=True):
        """More was paid ahead; the event of the quota moves the money."""

        TOPIC = "grant.grown"

        amount: Money

        def apply(self, grant: Grant, record: Record) -> None:
            grant.amount = self.amount if grant.amount is None else grant.amount + self.amount
            grant.left = grant.left + self.amount

    class Burned(MoneyEvent, frozen=True):
        """An invoice was paid with a part of it."""

        TOPIC = "grant.burned"

        invoice: str
        amount: Money

        def apply(self, grant: Grant, record: Record) -> None:
            grant.left = Money.of(grant.left.nano - self.amount.nano, self.amount.currency)
            grant.status = "active" if grant.left.nano else "burned"

    class Expired(MoneyEvent, frozen=True):
        """What was left of it is gone."""

        TOPIC = "grant.expired"

        amount: Money

        def apply(self, grant: Grant, record: Record) -> None:
            grant.left = Money.of(0, self.amount.currency)
            grant.status = "expired"

    def status_key(self) -> str:
        return self.status

    def deadline_key(self) -> str | None:
        return self.expires_at if self.status == "active" else None

    def as_credit(self) -> Credit:
        """Show it as a bill burns it."""
        return Credit(self.id, self.left, self.created_at, self.expires_at, self.priority)


class GrantCredit(Command):
    """Give a customer credit: bought from its wallet, or as a present of the platform."""

    tenant: Tenant
    amount: Money
    source: Literal["paid", "promotion"] = "paid"
    priority: int = Field(0, ge=0, le=1_000, description="What has less is burned first.")
    expires_at: Moment | None = None
    memo: Text = ""


class GrantStep(Command):
    """Name a grant."""

    grant_id: Id


@allow("billing", "operator")
def grant(case: Case, command: GrantCredit) -> Grant:
    """Give credit.

    Errors: account_not_found, currency_mismatch, customer_not_found, insufficient_funds, invalid_amount,
            invalid_expires_at, too_many_grants.
    """
    customer = case.get(Customer, command.tenant, CustomerNotFoundError)
    if command.expires_at is not None and command.expires_at <= case.now:
        raise ExpiresAtInvalidError("expires_at must lie in the future", now=case.now)
    if command.amount.nano <= 0:
        raise AmountInvalidError("a grant is more than nothing", got=command.amount.amount)
    return grant_credit(
        case,
        customer,
        command.amount,
        source=command.source,
        priority=command.priority,
        expires_at=command.expires_at,
        reference=command.memo or None,
    )


def grant_credit(
    case: Case,
    customer: Customer,
    amount: Money,
    *,
    source: Source,
    priority: int = 0,
    expires_at: str | None = None,
    reference: str | None = None,
) -> Grant:
    """Add a grant to a customer's credits; one by a correction, or paid ahead, is booked by what brings it.

    Errors: currency_mismatch, too_many_grants.
    """
    currency = customer.agreed.currency
    if amount.currency != currency:
        raise CurrencyMismatchError(
            "credit is in the customer's currency", has=currency, asked=amount.currency
        )
    if len(customer.grants) >= GRANTS_MAX:
        raise TooManyGrantsError(grants_max=GRANTS_MAX)
    granted = Grant.Granted(
        source=source,
        amount=amount,
        priority=priority,
        expires_at=expires_at,
        reference=reference,
        money=_money_in(case, customer.id, source, amount),
    )
    made = case.create(Grant, case.new_id("grant"), granted, tenant=customer.id)
    case.emit(customer, Customer.CreditAdded(grant=made.id))
    return made


def grow_grant(case: Case, made: Grant, amount: Money) -> Grant:
    """Add to a grant what was paid ahead."""
    return case.emit(made, Grant.Grown(amount=amount))


def burn_grant(case: Case, customer: Customer, name: str, amount: Money, invoice: str) -> None:
    """Pay a part of an invoice with a grant."""
    made = case.get(Grant, name, GrantNotFoundError)
    spent = ensure(case, "credits", customer.id, amount.currency)
    owed = ensure(case, "receivable", customer.id, amount.currency)
    legs = [Posting(spent, amount.amount), Posting(owed, "-" + amount.amount)]
    case.emit(made, Grant.Burned(invoice=invoice, amount=amount, money=[Transfer(amount.currency, legs)]))
    if not made.left.nano:
        case.emit(customer, Customer.CreditSpent(grant=name))


@allow("service")
def expire_grant(case: Case, command: GrantStep) -> Grant:
    """Take what is left of a grant whose time has run out; asking again changes nothing.

    Errors: grant_not_found.
    """
    made = case.get(Grant, command.grant_id, GrantNotFoundError)
    if made.status != "active" or made.expires_at is None or case.now < made.expires_at:
        return made
    customer = case.get(Customer, made.tenant, CustomerNotFoundError)
    spent = ensure(case, "credits", made.tenant, made.left.currency)
    target = ensure(case, _TO[made.source], PLATFORM, made.left.currency)
    gone = Grant.Expired(amount=made.left, money=[payment(spent, target, made.left)])
    case.emit(made, gone)
    case.emit(customer, Customer.CreditSpent(grant=made.id))
    return made


def _money_in(case: Case, tenant: str, source: Source, amount: Money) -> list[Entry]:
    credited = ensure(case, "credits", tenant, amount.currency)
    if source not in _FROM:
        return []
    owner = tenant if source == "paid" else PLATFORM
    return [payment(ensure(case, _FROM[source], owner, amount.currency), credited, amount)]
