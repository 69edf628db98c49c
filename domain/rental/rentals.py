"""Rentals: a persona by the minute, paid for before, settled once, over by the clock and not by a timer.

    requested -> active -> ended | expired | revoked
        \\-> cancelled | lapsed

A request reserves the price of the whole time on the renter's wallet; an extension reserves what the longer time costs
more. Whoever asks whether the renter may use the persona compares `now < expires_at` at that moment. Every ending
settles all holds in one event: what was used goes to the seller and the platform, the rest is free again; a rental
that ran to its end is used whole, one that was never activated costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from fractions import Fraction
from typing import Literal

import msgspec

from domain.billing.prices import Package, PerMinute, decimal_of, steps_of, total_of
from domain.billing.rating import round_up_nano
from domain.book import Entry
from domain.errors import (
    RentalActiveError,
    RentalLapsedError,
    RentalNotActiveError,
    RentalNotFoundError,
    RentalNotOpenError,
    RentalTooLongError,
)
from domain.ledger import Case
from domain.log.records import Aggregate, Event, MoneyEvent, Record
from domain.rental.settling import Reserved, Sale, fee_nano, held_by, hold_on, settle
from domain.trust.judgements import Judgement
from domain.values import Money, moment_of, moment_text

MINUTES_MAX = 60 * 24 * 366
ACTIVATE_WITHIN_S = 7 * 86_400
OPEN = ("requested", "active")

Reason = Literal["returned", "expired", "revoked", "cancelled", "lapsed"]
_STATUS: dict[str, str] = {"returned": "ended"}


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rental was agreed at; a later change of prices does not touch it.

    Units: the price is for seconds: minutes begun, or packages of so many seconds of which one begun is one paid.
    """

    sale: Sale
    price: PerMinute | Package

    @property
    def period_minutes(self) -> int:
        """Give the minutes that are paid at a time."""
        return int(decimal_of(self.price.size)) // 60 if isinstance(self.price, Package) else 1


class Rental(Aggregate):
    """A persona rented by the minute: it ends exactly once, and costs what was used, at most what was reserved."""

    KIND = "rental"

    terms: Terms | None = None
    renter: str = ""
    minutes: int = 0
    status: str = "requested"
    activate_by: str | None = None
    activated_at: str | None = None
    expires_at: str | None = None
    ended_at: str | None = None
    holds: list[Reserved] = msgspec.field(default_factory=list)
    reserved: Money | None = None
    charged: Money | None = None
    used_s: int | None = None
    # What the policy obliged its renter to, and the renter accepted.
    accepted: list[str] = msgspec.field(default_factory=list)
    # Grows with every ending, so that what was issued before is void.
    access_epoch: int = 1

    class Requested(MoneyEvent, frozen=True):
        """The price of a time was reserved."""

        TOPIC = "rental.requested"

        terms: Terms
        persona_id: str
        renter: str
        minutes: int
        amount: Money
        activate_by: str
        judgement: Judgement | None = None

        def apply(self, rental: Rental, record: Record) -> None:
            rental.accepted = self.judgement.obligations if self.judgement else []
            rental.terms = self.terms
            rental.renter = self.renter
            rental.minutes = self.minutes
            rental.activate_by = self.activate_by
            _reserve(rental, self.money, self.amount)

    class Activated(Event, frozen=True):
        """The time began to run."""

        TOPIC = "rental.activated"

        expires_at: str
        judgement: Judgement | None = None

        def apply(self, rental: Rental, record: Record) -> None:
            rental.status = "active"
            rental.activated_at = record.at
            rental.expires_at = self.expires_at

    class Extended(MoneyEvent, frozen=True):
        """More time was reserved, and more money for it."""

        TOPIC = "rental.extended"

        minutes: int
        amount: Money
        expires_at: str | None

        def apply(self, rental: Rental, record: Record) -> None:
            rental.minutes += self.minutes
            rental.expires_at = self.expires_at
            _reserve(rental, self.money, self.amount)

    class Ended(MoneyEvent, frozen=True):
        """The rental is over and settled."""

        TOPIC = "rental.ended"

        reason: Reason
        used_s: int
        charged: Money
        fee: Money
        released: Money

        def apply(self, rental: Rental, record: Record) -> None:
            rental.status = _STATUS.get(self.reason, self.reason)
            rental.ended_at = record.at
            rental.charged = self.charged
            rental.used_s = self.used_s
            rental.access_epoch += 1

    def owner_key(self) -> str | None:
        return self.terms.sale.persona_id if self.terms else None

    def status_key(self) -> str:
        return self.status

    def party_keys(self) -> list[str] | None:
        return [self.terms.sale.seller] if self.terms else None

    def deadline_key(self) -> str | None:
        """Name the end of the time to activate it, or of its time."""
        if self.status == "requested":
            return self.activate_by
        return self.expires_at if self.status == "active" else None

    @property
    def agreed(self) -> Terms:
        assert self.terms is not None, "a rental starts with its terms"
        return self.terms

    def is_usable(self, now: str) -> bool:
        """Say whether the renter may use the persona at a moment; nothing else decides it."""
        return self.status == "active" and self.expires_at is not None and now < self.expires_at


def _reserve(rental: Rental, money: Sequence[Entry], amount: Money) -> None:
    rental.holds = [*rental.holds, *held_by(money)]
    rental.reserved = amount if rental.reserved is None else rental.reserved + amount


# --------------------------------------------------------------------------- what time costs


def cost_nano(terms: Terms, seconds: int) -> int:
    """Price a time under a rental's terms, rounded up to a payable amount.

    Units: nano-units, whole minor units of the currency.
    """
    return round_up_nano(total_of(steps_of(terms.price, Fraction(seconds))), terms.sale.currency)


def check_length(minutes: int) -> int:
    """Give a time that may be rented.

    Errors: rental_too_long.
    """
    if not 1 <= minutes <= MINUTES_MAX:
        raise RentalTooLongError(minutes=minutes, minutes_max=MINUTES_MAX)
    return minutes


# --------------------------------------------------------------------------- the life of a rental


def request_rental(case: Case, terms: Terms, minutes: int, judgement: Judgement | None = None) -> Rental:
    """Reserve a time: the price is held on the caller's wallet until the rental is settled.

    Units:  minutes, at least one.
    Errors: account_not_found, insufficient_funds, rental_too_long.
    """
    check_length(minutes)
    name = case.new_id("rental")
    renter = case.caller.tenant
    amount = Money.of(cost_nano(terms, minutes * 60), terms.sale.currency)
    requested = Rental.Requested(
        terms=terms,
        persona_id=terms.sale.persona_id,
        renter=renter,
        minutes=minutes,
        amount=amount,
        activate_by=_after(case.now, ACTIVATE_WITHIN_S),
        judgement=judgement,
        money=hold_on(f"{name}.1", renter, amount),
    )
    return case.create(Rental, name, requested)


def activate_rental(case: Case, rental: Rental, judgement: Judgement | None = None) -> Rental:
    """Let the time run from now on.

    Errors: rental_active, rental_lapsed, rental_not_open.
    """
    if rental.status == "active":
        raise RentalActiveError(expires_at=rental.expires_at)
    _check_open(rental)
    if rental.activate_by is not None and rental.activate_by <= case.now:
        raise RentalLapsedError(activate_by=rental.activate_by)
    expires_at = _after(case.now, rental.minutes * 60)
    return case.emit(rental, Rental.Activated(expires_at=expires_at, judgement=judgement))


def extend_rental(case: Case, rental: Rental, minutes: int) -> Rental:
    """Add time to a rental that has not run out; it costs what the longer time costs more.

    Errors: insufficient_funds, rental_not_active, rental_not_open, rental_too_long.
    """
    _check_open(rental)
    if rental.status == "active" and not rental.is_usable(case.now):
        raise RentalNotActiveError("its time has run out; rent it again", expires_at=rental.expires_at)
    check_length(rental.minutes + minutes)
    terms = rental.agreed
    more = cost_nano(terms, (rental.minutes + minutes) * 60) - cost_nano(terms, rental.minutes * 60)
    amount = Money.of(more, terms.sale.currency)
    extended = Rental.Extended(
        minutes=minutes,
        amount=amount,
        expires_at=None if rental.expires_at is None else _after(rental.expires_at, minutes * 60),
        money=hold_on(f"{rental.id}.{rental.version + 1}", rental.renter, amount),
    )
    return case.emit(rental, extended)


def end_rental(case: Case, rental: Rental, reason: Reason, at: str | None = None) -> Rental:
    """End a rental and settle it, once: what was used is paid, the rest of what was reserved is free again.

    Where its use was over before now, `at` is that moment, and nothing is paid for what came after it.
    Errors: rental_not_open.
    """
    _check_open(rental)
    used_s = _used_s(rental, case.now if at is None else min(at, case.now))
    terms = rental.agreed
    charged = cost_nano(terms, used_s)
    sale = terms.sale
    fee = fee_nano(sale, charged)
    reserved = sum(part.amount.nano for part in rental.holds)
    ended = Rental.Ended(
        reason=reason,
        used_s=used_s,
        charged=Money.of(charged, terms.sale.currency),
        fee=Money.of(fee, terms.sale.currency),
        released=Money.of(reserved - charged, terms.sale.currency),
        money=settle(
            case, sale, rental.renter, rental.holds, charged, expired=reason in ("expired", "lapsed")
        ),
    )
    return case.emit(rental, ended)


def expire_rental(case: Case, name: str) -> Rental:
    """Write down that a rental's time has run out, and settle it; asking again changes nothing.

    Errors: rental_not_found.
    """
    rental = case.get(Rental, name, RentalNotFoundError)
    deadline = rental.deadline_key()
    if deadline is None or case.now < deadline:
        return rental
    return end_rental(case, rental, "expired" if rental.status == "active" else "lapsed")


def reason_of(rental: Rental, now: str) -> Reason:
    """Say as what a rental ends that its renter gives back now."""
    if rental.status == "requested":
        return "cancelled"
    return "returned" if rental.is_usable(now) else "expired"


# --------------------------------------------------------------------------- steps


def _check_open(rental: Rental) -> None:
    if rental.status not in OPEN:
        raise RentalNotOpenError(f"the rental is {rental.status}", status=rental.status)


def _after(moment: str, seconds: int) -> str:
    return moment_text(moment_of(moment) + timedelta(seconds=seconds))


def _used_s(rental: Rental, now: str) -> int:
    """Count the seconds that were used, begun ones included, up to the end that was paid for."""
    if rental.activated_at is None or rental.expires_at is None:
        return 0
    until = min(moment_of(now), moment_of(rental.expires_at))
    return max(0, -((moment_of(rental.activated_at) - until) // timedelta(seconds=1)))
