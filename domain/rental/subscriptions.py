"""Subscriptions: a persona for a period at a time, paid for before, renewed until somebody says otherwise.

    active -> past_due -> ended
       \\-> ended (cancelled, revoked)

The price of a period is reserved when it begins and paid when it is over; one that is cut short is paid for the part
that was used, by the second, in payable amounts rounded up. A renewal that cannot be paid starts the dunning: it is
tried again on fixed days while access goes on for the grace, no longer than what was subscribed to, and then the
subscription ends. A subscription whose renewal is merely late, because nobody looked, stays usable for that grace.
"""

from __future__ import annotations

from datetime import date, timedelta
from fractions import Fraction
from typing import Literal

import msgspec

from domain.billing.periods import Every, Period, period_at
from domain.billing.rating import round_up_nano
from domain.book import Entry
from domain.errors import (
    RenewalNotDueError,
    SubscriptionEndedError,
    SubscriptionNotFoundError,
)
from domain.ledger import Case
from domain.log.records import Aggregate, Event, MoneyEvent, Record
from domain.rental.settling import Reserved, Sale, fee_nano, held_by, hold_on, settle
from domain.trust.judgements import Judgement
from domain.values import Money, moment_of, moment_text

GRACE_S = 7 * 86_400
# After a failed renewal it is tried again so long after the period's end.
RETRIES_S = (86_400, 3 * 86_400, 5 * 86_400)

Reason = Literal["cancelled", "not_renewed", "unpaid", "revoked"]


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a subscription costs: a price for each period, counted in local time from an anchored day."""

    sale: Sale
    price: Money
    every: Every
    zone: str
    anchor: str


class Subscription(Aggregate):
    """A persona by the period. Every period is reserved once, and settled once when it is over or cut short."""

    KIND = "subscription"

    plan: Plan | None = None
    renter: str = ""
    status: str = "active"
    period_start: str = ""
    period_end: str = ""
    reserved: Reserved | None = None
    cancel_at_end: bool = False
    attempts: int = 0
    next_attempt_at: str | None = None
    ended_at: str | None = None
    paid: Money | None = None
    renewals: int = 0
    access_epoch: int = 1

    class Started(MoneyEvent, frozen=True):
        """The first period was reserved."""

        TOPIC = "subscription.started"

        persona_id: str
        plan: Plan
        renter: str
        period_start: str
        period_end: str
        judgement: Judgement | None = None

        def apply(self, subscription: Subscription, record: Record) -> None:
            subscription.renter = self.renter
            subscription.plan = self.plan
            subscription.paid = Money.of(0, self.plan.sale.currency)
            _begin(subscription, self.period_start, self.period_end, self.money)

    class PeriodSettled(MoneyEvent, frozen=True):
        """A period is over, or was cut short, and what was used of it is paid."""

        TOPIC = "subscription.period_settled"

        period_start: str
        until: str
        charged: Money
        fee: Money

        def apply(self, subscription: Subscription, record: Record) -> None:
            subscription.reserved = None
            subscription.paid = (
                self.charged if subscription.paid is None else subscription.paid + self.charged
            )

    class Renewed(MoneyEvent, frozen=True):
        """The next period was reserved."""

        TOPIC = "subscription.renewed"

        period_start: str
        period_end: str

        def apply(self, subscription: Subscription, record: Record) -> None:
            subscription.status = "active"
            subscription.renewals += 1
            subscription.attempts, subscription.next_attempt_at = 0, None
            _begin(subscription, self.period_start, self.period_end, self.money)

    class RenewalFailed(Event, frozen=True):
        """The next period could not be reserved."""

        TOPIC = "subscription.renewal_failed"

        reason: str
        attempt: int
        next_attempt_at: str | None

        def apply(self, subscription: Subscription, record: Record) -> None:
            subscription.status = "past_due"
            subscription.attempts = self.attempt
            subscription.next_attempt_at = self.next_attempt_at

    class CancelAsked(Event, frozen=True):
        """It will not be renewed."""

        TOPIC = "subscription.cancel_asked"

        def apply(self, subscription: Subscription, record: Record) -> None:
            subscription.cancel_at_end = True

    class Resumed(Event, frozen=True):
        """It will be renewed after all."""

        TOPIC = "subscription.resumed"

        def apply(self, subscription: Subscription, record: Record) -> None:
            subscription.cancel_at_end = False

    class Changed(MoneyEvent, frozen=True):
        """Another plan holds for the rest of the period and from then on."""

        TOPIC = "subscription.changed"

        plan: Plan
        judgement: Judgement | None = None

        def apply(self, subscription: Subscription, record: Record) -> None:
            subscription.plan = self.plan
            _begin(subscription, record.at, subscription.period_end, self.money)

    class Ended(Event, frozen=True):
        """The subscription is over."""

        TOPIC = "subscription.ended"

        reason: Reason

        def apply(self, subscription: Subscription, record: Record) -> None:
            subscription.status = "ended"
            subscription.ended_at = record.at
            subscription.next_attempt_at = None
            subscription.access_epoch += 1

    def owner_key(self) -> str | None:
        return self.plan.sale.persona_id if self.plan else None

    def status_key(self) -> str:
        return self.status

    def party_keys(self) -> list[str] | None:
        return [self.plan.sale.seller] if self.plan else None

    def deadline_key(self) -> str | None:
        """Name the end of the period, or the next attempt to renew."""
        if self.status == "past_due":
            return self.next_attempt_at or self.usable_until
        return self.period_end if self.status == "active" else None

    @property
    def agreed(self) -> Plan:
        assert self.plan is not None, "a subscription starts with its plan"
        return self.plan

    @property
    def usable_until(self) -> str:
        """Give the end of access if nothing more is paid; the grace is never longer than what was subscribed to."""
        if self.cancel_at_end:
            return self.period_end
        lasted_s = (moment_of(self.period_end) - moment_of(self.created_at)) // timedelta(seconds=1)
        return _after(self.period_end, min(GRACE_S, lasted_s))

    def is_usable(self, now: str) -> bool:
        """Say whether the renter may use the persona at a moment; nothing else decides it."""
        return self.status in ("active", "past_due") and now < self.usable_until

    def next_period(self) -> Period:
        """Give the period after the one that was paid for."""
        plan = self.agreed
        return period_at(plan.every, date.fromisoformat(plan.anchor), plan.zone, moment_of(self.period_end))


def _begin(subscription: Subscription, start: str, end: str, money: list[Entry]) -> None:
    subscription.period_start, subscription.period_end = start, end
    held = held_by(money)
    subscription.reserved = held[-1] if held else None


# --------------------------------------------------------------------------- the life of a subscription


def start_subscription(case: Case, plan: Plan, judgement: Judgement | None = None) -> Subscription:
    """Subscribe the caller's tenant: the rest of the present period is reserved, its part of the price.

    Errors: account_not_found, insufficient_funds, time_zone_unknown.
    """
    whole = period_at(plan.every, date.fromisoformat(plan.anchor), plan.zone, moment_of(case.now))
    name, renter = case.new_id("subscription"), case.caller.tenant
    amount = _part_of(plan, Period(moment_of(case.now), whole.end), whole)
    started = Subscription.Started(
        persona_id=plan.sale.persona_id,
        plan=plan,
        renter=renter,
        period_start=case.now,
        period_end=moment_text(whole.end),
        judgement=judgement,
        money=hold_on(f"{name}.1", renter, amount),
    )
    return case.create(Subscription, name, started)


def renew_subscription(case: Case, name: str) -> Subscription:
    """Settle a period that is over, and reserve the next, or end what shall not be renewed.

    Errors: account_not_found, insufficient_funds, renewal_not_due, subscription_ended, subscription_not_found.
    """
    subscription = _open(case, name)
    if case.now < subscription.period_end:
        raise RenewalNotDueError(period_end=subscription.period_end)
    _settle(case, subscription, subscription.period_end)
    if subscription.cancel_at_end:
        return case.emit(subscription, Subscription.Ended(reason="not_renewed"))
    plan, period = subscription.agreed, subscription.next_period()
    renewed = Subscription.Renewed(
        period_start=subscription.period_end,
        period_end=moment_text(period.end),
        money=hold_on(
            f"{name}.{subscription.version + 1}", subscription.renter, _part_of(plan, period, period)
        ),
    )
    return case.emit(subscription, renewed)


def fail_renewal(case: Case, name: str, reason: str) -> Subscription:
    """Write down that a renewal could not be paid: it is tried again, and ends when the grace is over.

    Errors: renewal_not_due, subscription_ended, subscription_not_found.
    """
    subscription = _open(case, name)
    if case.now < subscription.period_end:
        raise RenewalNotDueError(period_end=subscription.period_end)
    _settle(case, subscription, subscription.period_end)
    if case.now >= subscription.usable_until:
        return case.emit(subscription, Subscription.Ended(reason="unpaid"))
    later = [_after(subscription.period_end, s) for s in RETRIES_S]
    again = next((moment for moment in later if case.now < moment < subscription.usable_until), None)
    failed = Subscription.RenewalFailed(
        reason=reason, attempt=subscription.attempts + 1, next_attempt_at=again
    )
    return case.emit(subscription, failed)


def cancel_at_end(case: Case, subscription: Subscription) -> Subscription:
    """Let a subscription run out; asking again changes nothing.

    Errors: subscription_ended.
    """
    _check_open(subscription)
    return subscription if subscription.cancel_at_end else case.emit(subscription, Subscription.CancelAsked())


def resume_subscription(case: Case, subscription: Subscription) -> Subscription:
    """Take a cancellation back before the period is over.

    Errors: subscription_ended.
    """
    _check_open(subscription)
    return case.emit(subscription, Subscription.Resumed()) if subscription.cancel_at_end else subscription


def end_subscription(
    case: Case, subscription: Subscription, reason: Reason, at: str | None = None
) -> Subscription:
    """End a subscription now; the part of the period that was used is paid, the rest is free again.

    Where its use was over before now, `at` is that moment, and nothing is paid for what came after it.
    Errors: subscription_ended.
    """
    _check_open(subscription)
    _settle(case, subscription, case.now if at is None else min(at, case.now))
    return case.emit(subscription, Subscription.Ended(reason=reason))


def change_subscription(
    case: Case, subscription: Subscription, plan: Plan, judgement: Judgement | None = None
) -> Subscription:
    """Change to another plan now: what was used is paid at the old price, the rest reserved at the new one.

    Errors: insufficient_funds, renewal_not_due, subscription_ended.
    """
    _check_open(subscription)
    if case.now >= subscription.period_end:
        raise RenewalNotDueError(
            "the period is over; it is renewed first", period_end=subscription.period_end
        )
    old = subscription.agreed
    plan = msgspec.structs.replace(plan, every=old.every, zone=old.zone, anchor=old.anchor)
    _settle(case, subscription, case.now)
    whole = period_at(old.every, date.fromisoformat(old.anchor), old.zone, moment_of(case.now))
    amount = _part_of(plan, Period(moment_of(case.now), moment_of(subscription.period_end)), whole)
    hold = f"{subscription.id}.{subscription.version + 1}"
    money = hold_on(hold, subscription.renter, amount)
    return case.emit(subscription, Subscription.Changed(plan=plan, judgement=judgement, money=money))


# --------------------------------------------------------------------------- steps


def _open(case: Case, name: str) -> Subscription:
    subscription = case.get(Subscription, name, SubscriptionNotFoundError)
    _check_open(subscription)
    return subscription


def _check_open(subscription: Subscription) -> None:
    if subscription.status == "ended":
        raise SubscriptionEndedError(ended_at=subscription.ended_at)


def _part_of(plan: Plan, piece: Period, whole: Period) -> Money:
    """Price a piece of a period by the time that passes in it, rounded up to a payable amount."""
    nano = Fraction(plan.price.nano) * piece.share_of(whole)
    return Money.of(round_up_nano(nano, plan.sale.currency), plan.sale.currency)


def _settle(case: Case, subscription: Subscription, until: str) -> None:
    """Pay the part of the reserved piece that was used up to a moment; what was settled is not settled again."""
    reserved, sale = subscription.reserved, subscription.agreed.sale
    if reserved is None:
        return
    piece = Period(moment_of(subscription.period_start), moment_of(subscription.period_end))
    used = Period(piece.start, max(piece.start, min(moment_of(until), piece.end)))
    exact = reserved.amount.nano * used.share_of(piece)
    charged = min(round_up_nano(exact, sale.currency), reserved.amount.nano)
    settled = Subscription.PeriodSettled(
        period_start=subscription.period_start,
        until=moment_text(used.end),
        charged=Money.of(charged, sale.currency),
        fee=Money.of(fee_nano(sale, charged), sale.currency),
        money=settle(case, sale, subscription.renter, [reserved], charged),
    )
    case.emit(subscription, settled)


def _after(moment: str, seconds: int) -> str:
    return moment_text(moment_of(moment) + timedelta(seconds=seconds))
