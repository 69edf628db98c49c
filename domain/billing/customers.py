"""Customers: how a tenant is billed. In which zone its days begin, under which book, with which taxes and coupons.

What is agreed holds from the next period on; a period that has begun is billed as it began.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Annotated

import msgspec
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from domain.billing.bills import Coupon, Tax
from domain.billing.periods import Every, Period, day_start, period_at, zone_of
from domain.billing.price_books import PriceBook
from domain.errors import (
    CouponInvalidError,
    CurrencyMismatchError,
    CustomerExistsError,
    CustomerNotFoundError,
    PriceBookNotFoundError,
    TimeZoneUnknownError,
)
from domain.fields import Command, Id, Label, Share
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record
from domain.values import Money, Tenant, moment_of, moment_text

GRACE_S = 3_600
GRACE_S_MAX = 30 * 86_400


class Redeemed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A coupon of a customer; `periods_left` None means for ever."""

    coupon: Coupon
    periods_left: int | None


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a customer is billed by.

    Units: anchor is a local day; grace_s is how long a period waits for late usage before it is billed, in seconds.
    """

    book: str
    currency: str
    zone: str
    every: Every
    anchor: str
    taxes: list[Tax]
    grace_s: int


class Customer(Aggregate):
    """A tenant that is billed. Its periods follow one another without gaps; `billed_to` is where the next begins."""

    KIND = "customer"

    plan: Plan | None = None
    next_plan: Plan | None = None
    billed_to: str = ""
    invoice_count: int = 0
    credit_note_count: int = 0
    carried: str = "0"
    grants: list[str] = msgspec.field(default_factory=list)
    coupons: list[Redeemed] = msgspec.field(default_factory=list)
    status: str = "active"

    class Enrolled(Event, frozen=True):
        """A tenant became a customer; billing starts with the period in which that happened."""

        TOPIC = "customer.enrolled"

        plan: Plan
        billed_to: str

        def apply(self, customer: Customer, record: Record) -> None:
            customer.plan = self.plan
            customer.billed_to = self.billed_to

    class Replanned(Event, frozen=True):
        """Another plan was agreed, for the periods after the present one."""

        TOPIC = "customer.replanned"

        plan: Plan

        def apply(self, customer: Customer, record: Record) -> None:
            customer.next_plan = self.plan

    class CouponRedeemed(Event, frozen=True):
        """A discount was granted for the next periods."""

        TOPIC = "customer.coupon_redeemed"

        redeemed: Redeemed

        def apply(self, customer: Customer, record: Record) -> None:
            customer.coupons = [*customer.coupons, self.redeemed]

    class Billed(Event, frozen=True):
        """A period was billed; the next one begins where it ended."""

        TOPIC = "customer.billed"

        invoice: str
        period_end: str
        carried: str

        def apply(self, customer: Customer, record: Record) -> None:
            customer.billed_to = self.period_end
            customer.invoice_count += 1
            customer.carried = self.carried
            customer.plan, customer.next_plan = customer.next_plan or customer.plan, None
            customer.coupons = [kept for one in customer.coupons if (kept := _after_period(one)) is not None]

    class Corrected(Event, frozen=True):
        """A correction changed what rounding has left."""

        TOPIC = "customer.corrected"

        invoice: str
        carried: str

        def apply(self, customer: Customer, record: Record) -> None:
            customer.invoice_count += 1
            customer.carried = self.carried

    class NoteIssued(Event, frozen=True):
        """A credit note was issued to the customer."""

        TOPIC = "customer.note_issued"

        note: str

        def apply(self, customer: Customer, record: Record) -> None:
            customer.credit_note_count += 1

    class CreditAdded(Event, frozen=True):
        """A grant was added to the customer's credits."""

        TOPIC = "customer.credit_added"

        grant: str

        def apply(self, customer: Customer, record: Record) -> None:
            customer.grants = [*customer.grants, self.grant]

    class CreditSpent(Event, frozen=True):
        """A grant is used up or has expired."""

        TOPIC = "customer.credit_spent"

        grant: str

        def apply(self, customer: Customer, record: Record) -> None:
            customer.grants = [name for name in customer.grants if name != self.grant]

    def status_key(self) -> str:
        return self.status

    def deadline_key(self) -> str | None:
        return self.ready_at if self.plan is not None else None

    @property
    def ready_at(self) -> str:
        """Give the moment from which on the next period can be billed: its end, and the grace after it."""
        return moment_text(self.next_period().end + timedelta(seconds=self.agreed.grace_s))

    @property
    def agreed(self) -> Plan:
        assert self.plan is not None, "a customer starts with its plan"
        return self.plan

    def next_period(self) -> Period:
        """Give the period that is to be billed next."""
        plan = self.agreed
        anchor = date.fromisoformat(plan.anchor)
        start = moment_of(self.billed_to)
        # A change of zone or anchor starts inside one of its periods; the piece up to that one's end is billed alone.
        return Period(start, period_at(plan.every, anchor, plan.zone, start).end)

    def whole_period(self) -> Period:
        """Give the whole period of which the next one may be a piece."""
        plan = self.agreed
        return period_at(plan.every, date.fromisoformat(plan.anchor), plan.zone, moment_of(self.billed_to))


def _after_period(one: Redeemed) -> Redeemed | None:
    if one.periods_left is None:
        return one
    return Redeemed(one.coupon, one.periods_left - 1) if one.periods_left > 1 else None


# --------------------------------------------------------------------------- commands


def _zone(name: str) -> str:
    try:
        zone_of(name)
    except TimeZoneUnknownError as error:
        raise PydanticCustomError("zone", "{why}", {"why": error.message}) from error
    return name


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise PydanticCustomError("day", "a day is written as 2026-01-31") from error


Zone = Annotated[str, Field(max_length=64, examples=["Europe/Berlin"]), AfterValidator(_zone)]
Day = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"), AfterValidator(_day)]


class TaxTerm(Command):
    """A tax by its name and share."""

    name: Label
    share: Share


class Enroll(Command):
    """Make a tenant a customer, or agree on another plan from its next period on."""

    tenant: Tenant
    book: Id
    zone: Zone = "UTC"
    every: Every = "month"
    anchor: Day | None = Field(None, description="A local day on which a period begins; today if left out.")
    taxes: list[TaxTerm] = Field([], max_length=8)
    grace_s: int = Field(GRACE_S, ge=0, le=GRACE_S_MAX)


class RedeemCoupon(Command):
    """Grant a customer a discount: a share or an amount, on some charges or all, for some periods or for ever."""

    tenant: Tenant
    code: Label
    share: Share | None = None
    amount: Money | None = None
    charges: list[Label] | None = Field(None, min_length=1, max_length=50)
    periods: int | None = Field(None, ge=1, le=1_200)


@allow("billing", "operator")
def enroll(case: Case, command: Enroll) -> Customer:
    """Begin to bill a tenant: from the start of its local day on, or from when its book is in force.

    Errors: customer_exists, price_book_not_found.
    """
    if case.find(Customer, command.tenant) is not None:
        raise CustomerExistsError(tenant=command.tenant)
    plan = _plan(case, command)
    today = moment_of(case.now).astimezone(zone_of(plan.zone)).date()
    book = case.get(PriceBook, plan.book, PriceBookNotFoundError)
    start = max(moment_text(day_start(today, plan.zone)), book.first_in_force)
    return case.create(
        Customer, command.tenant, Customer.Enrolled(plan=plan, billed_to=start), tenant=command.tenant
    )


@allow("billing", "operator")
def replan(case: Case, command: Enroll) -> Customer:
    """Agree on another plan; it holds from the next period on. The currency stays what it was.

    A book without a price for the moment at which that period begins would leave it unbilled for ever.
    Errors: currency_mismatch, customer_not_found, price_book_not_found, price_not_in_force, version_mismatch.
    """
    customer = case.get(Customer, command.tenant, CustomerNotFoundError)
    case.match_version(customer)
    plan = _plan(case, command)
    _check_same_currency(customer, plan.currency)
    book = case.get(PriceBook, plan.book, PriceBookNotFoundError)
    book.in_force(moment_text(customer.next_period().end))
    return case.emit(customer, Customer.Replanned(plan=plan))


@allow("billing", "operator")
def redeem_coupon(case: Case, command: RedeemCoupon) -> Customer:
    """Grant a discount, which counts from the next bill on. One code is granted once at a time.

    Errors: coupon_invalid, currency_mismatch, customer_not_found.
    """
    customer = case.get(Customer, command.tenant, CustomerNotFoundError)
    _check_coupon(customer, command)
    coupon = Coupon(command.code, command.share, command.amount, command.charges)
    return case.emit(customer, Customer.CouponRedeemed(redeemed=Redeemed(coupon, command.periods)))


def _plan(case: Case, command: Enroll) -> Plan:
    book = case.get(PriceBook, command.book, PriceBookNotFoundError)
    today = moment_of(case.now).astimezone(zone_of(command.zone)).date()
    return Plan(
        book=book.id,
        currency=book.currency,
        zone=command.zone,
        every=command.every,
        anchor=command.anchor or today.isoformat(),
        taxes=[Tax(tax.name, tax.share) for tax in command.taxes],
        grace_s=command.grace_s,
    )


def _check_same_currency(customer: Customer, currency: str) -> None:
    if currency != customer.agreed.currency:
        raise CurrencyMismatchError(
            "a customer keeps its currency", has=customer.agreed.currency, asked=currency
        )


def _check_coupon(customer: Customer, command: RedeemCoupon) -> None:
    if (command.share is None) == (command.amount is None):
        raise CouponInvalidError("a coupon has a share or an amount, not both and not neither")
    if command.amount is not None:
        _check_same_currency(customer, command.amount.currency)
    if any(one.coupon.code == command.code for one in customer.coupons):
        raise CouponInvalidError("this coupon is in use already", coupon=command.code)
