"""Quotas: what a customer may spend in a period, kept by the ledger itself and priced as its invoice will be.

A quota is one stream of a tenant with its limits. The commit that takes readings in also counts them here, so what is
spent is known at once and is never another number than the bill's. A reservation is checked against every hard limit
it falls under, together with all that is spent and reserved; it ends by a reading that names it, by its release, or
by its time, which is decided at the check and not by a timer. Usage that was never reserved has happened all the same:
it is counted, and shown as over the limit.

What was used before there was a quota, or could no longer be told apart when prices changed, is counted from the log as
it was known at the record that began the counting (`counting`), while usage after it is counted as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date
from typing import Literal, NamedTuple

import msgspec

from domain.billing.customers import Customer
from domain.billing.limits import (
    Limit,
    Piece,
    Priced,
    Reservation,
    Row,
    Scope,
    added,
    row_for,
    spent_nano,
)
from domain.billing.periods import Period, period_at
from domain.billing.price_books import PriceBook, PriceSheet, sheet_name
from domain.billing.prices import decimal_of
from domain.book import Entry, Expire
from domain.errors import (
    CustomerNotFoundError,
    LedgerError,
    PriceBookNotFoundError,
    PriceNotInForceError,
)
from domain.ledger import Case
from domain.log.records import Aggregate, Event, MoneyEvent, Record
from domain.values import Money, moment_of, moment_text

FAR = "9999-12-31T23:59:59.999999Z"
# Rows of one record, so that it stays within the size of records.
ROWS_AT_ONCE = 64


class Crossed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A threshold of a limit that was reached in this period."""

    limit: str
    threshold: str


class Quota(Aggregate):
    """What a tenant may spend, and has spent in the present period."""

    KIND = "quota"

    currency: str = ""
    limits: list[Limit] = msgspec.field(default_factory=list)
    prepaid: bool = False
    period_start: str = ""
    period_end: str = ""
    pieces: list[Piece] = msgspec.field(default_factory=list)
    rows: list[Row] = msgspec.field(default_factory=list)
    # The version of this stream before which usage is still to be counted from the log; None where all is counted.
    counting: int | None = None
    crossed: list[Crossed] = msgspec.field(default_factory=list)
    reservations: list[Reservation] = msgspec.field(default_factory=list)
    grant: str | None = None

    class Set(Event, frozen=True):
        """The limits were set; where `counts_anew`, the usage so far is counted from the log."""

        TOPIC = "quota.set"

        currency: str
        limits: list[Limit]
        prepaid: bool
        counts_anew: bool

        def apply(self, quota: Quota, record: Record) -> None:
            kept = {one.id for one in self.limits if _same_sum(one, quota.limits)}
            quota.currency = self.currency
            quota.limits = self.limits
            quota.prepaid = self.prepaid
            quota.crossed = [one for one in quota.crossed if one.limit in kept]
            if self.counts_anew:
                quota.rows, quota.counting = [], record.version

    class PeriodBegan(Event, frozen=True):
        """A period began, with nothing spent in it but what clocks that are ahead had sent."""

        TOPIC = "quota.period_began"

        period_start: str
        period_end: str
        pieces: list[Piece]

        def apply(self, quota: Quota, record: Record) -> None:
            quota.crossed, quota.grant = [], None
            quota.enter(Basis(self.period_start, self.period_end, self.pieces), record.version)

    class Repriced(Event, frozen=True):
        """Other prices, or another end, came to hold for the present period."""

        TOPIC = "quota.repriced"

        period_end: str
        pieces: list[Piece]

        def apply(self, quota: Quota, record: Record) -> None:
            quota.enter(Basis(quota.period_start, self.period_end, self.pieces), record.version)

    class Counted(Event, frozen=True):
        """Usage from before the counting began was added from the log; with the last part all is counted.

        Units: known_at is the size of the log whose usage it is.
        """

        TOPIC = "quota.counted"

        known_at: int
        rows: list[Row]
        is_last: bool

        def apply(self, quota: Quota, record: Record) -> None:
            quota.rows = added(quota.rows, self.rows)
            if self.is_last:
                quota.counting = None

    class Reserved(MoneyEvent, frozen=True):
        """Usage was reserved."""

        TOPIC = "quota.reserved"

        reservation: Reservation

        def apply(self, quota: Quota, record: Record) -> None:
            quota.reservations = [*quota.reservations, self.reservation]

    class Released(MoneyEvent, frozen=True):
        """Reservations were let go without usage."""

        TOPIC = "quota.released"

        reservations: list[str]
        reason: Literal["released", "expired"]

        def apply(self, quota: Quota, record: Record) -> None:
            quota.let_go(self.reservations)

    class Spent(MoneyEvent, frozen=True):
        """Readings were counted: what they add to the counters, and which reservations they put an end to.

        Units: readings is how many of them are in it; prepaid is what was paid for them out of holds.
        """

        TOPIC = "quota.spent"

        rows: list[Row]
        readings: int
        reservations: list[str]
        prepaid: Money | None
        grant: str | None

        def apply(self, quota: Quota, record: Record) -> None:
            quota.rows = added(quota.rows, self.rows)
            quota.let_go(self.reservations)
            quota.grant = self.grant or quota.grant

    class ThresholdCrossed(Event, frozen=True):
        """What is spent has reached a share of a limit, for the first time in the period."""

        TOPIC = "quota.threshold_crossed"

        limit: str
        threshold: str
        scope: Scope
        mode: Literal["hard", "soft"]
        amount: Money
        spent: Money
        period_start: str
        period_end: str

        def apply(self, quota: Quota, record: Record) -> None:
            quota.crossed = [*quota.crossed, Crossed(self.limit, self.threshold)]

    # ------------------------------------------------------------------ what it is

    def status_key(self) -> str:
        return "on" if self.is_on else "off"

    def deadline_key(self) -> str | None:
        """Name the moment at which there is something to write down: now, where the past is still to be counted."""
        expiries = [one.expires_at for one in self.reservations]
        if not self.is_on:
            return min(expiries, default=None)
        if self.counting is not None:
            return self.created_at or None
        return min([self.period_end, *expiries]) or None

    @property
    def is_on(self) -> bool:
        """Say whether anything is limited or paid ahead; otherwise usage is not counted here."""
        return bool(self.limits) or self.prepaid

    @property
    def rentals(self) -> set[str]:
        """Name the rentals that limits are for; the usage of others is not kept apart."""
        return {limit.scope.rental_id for limit in self.limits if limit.scope.rental_id is not None}

    def open_at(self, moment: str) -> list[Reservation]:
        """List the reservations that have not expired at a moment."""
        return [one for one in self.reservations if moment < one.expires_at]

    def place(self, occurred_at: str) -> str | None:
        """Give the start of the piece that a moment lies in; None before the period."""
        return next((start for start, end in self._stretches() if start <= occurred_at < end), None)

    def _stretches(self) -> list[tuple[str, str]]:
        """List the half-open stretches that are counted apart; behind the period lies what is of the next."""
        within = [(p.start, p.end) for p in self.pieces] or [(self.period_start, self.period_end)]
        return [*within, (self.period_end, FAR)]

    # ------------------------------------------------------------------ how it changes

    def let_go(self, names: Sequence[str]) -> None:
        """Drop reservations."""
        if names:
            self.reservations = [one for one in self.reservations if one.id not in names]

    def enter(self, basis: Basis, version: int) -> None:
        """Go over to another period or other prices, with the counters that are still apart under them.

        Where one counts usage of both sides of a cut, all is counted from the log again.
        """
        self.period_start, self.period_end, self.pieces = basis
        rows: list[Row] = []
        for row in self.rows:
            if row.last < basis.start:
                continue
            start = self.place(row.start)
            if start is None or start != self.place(row.last):
                self.rows, self.counting = [], version
                return
            rows.append(msgspec.structs.replace(row, start=start))
        self.rows = added([], rows)


class Basis(NamedTuple):
    """A period, and the prices in force in it."""

    start: str
    end: str
    pieces: list[Piece]


def _same_sum(one: Limit, others: Iterable[Limit]) -> bool:
    """Say whether a limit is for the same sum as before, so that what was told about it stays told."""
    known = next((other for other in others if other.id == one.id), None)
    return known is not None and (known.scope, known.amount, known.fees) == (one.scope, one.amount, one.fees)


# --------------------------------------------------------------------------- keeping up with the clock


def basis_now(case: Case, tenant: str) -> Basis:
    """Give the billing period it is now, and the prices in it, as they are agreed by now."""
    customer = case.get(Customer, tenant, CustomerNotFoundError)
    now = moment_of(case.now)
    plan, period = customer.agreed, customer.next_period()
    anchored = plan.every, date.fromisoformat(plan.anchor), plan.zone
    if period.end <= now:
        # The one before is not billed yet; this one goes by what was agreed for it.
        plan, begun = customer.next_plan or plan, period.end
        anchored = plan.every, date.fromisoformat(plan.anchor), plan.zone
        whole = period_at(*anchored, now)
        period = Period(max(begun, whole.start), whole.end)
    whole = period_at(*anchored, period.start)
    start, end = moment_text(period.start), moment_text(period.end)
    try:
        cut = case.get(PriceBook, plan.book, PriceBookNotFoundError).between(start, end)
    except PriceNotInForceError:
        cut = []
    pieces = [
        Piece(a, b, sheet_name(plan.book, v.number), str(Period(moment_of(a), moment_of(b)).share_of(whole)))
        for a, b, v in cut
    ]
    return Basis(start, end, pieces)


def keep_up(case: Case, quota: Quota) -> None:
    """Write down that another period has begun, or that other prices hold in this one, where it is so."""
    basis = basis_now(case, quota.id)
    if basis.start != quota.period_start:
        began = Quota.PeriodBegan(period_start=basis.start, period_end=basis.end, pieces=basis.pieces)
        case.emit(quota, began)
    elif (basis.end, basis.pieces) != (quota.period_end, quota.pieces):
        case.emit(quota, Quota.Repriced(period_end=basis.end, pieces=basis.pieces))


def stretches(quota: Quota) -> list[str]:
    """List the moments at which the counting of a quota is cut: usage from each to the next is counted apart."""
    return [*([p.start for p in quota.pieces] or [quota.period_start]), quota.period_end]


def prices(case: Case, quota: Quota) -> list[Priced]:
    """Give the pieces of the present period with their charges."""
    return [Priced(one, case.get(PriceSheet, one.sheet, PriceBookNotFoundError)) for one in quota.pieces]


def chosen(case: Case, quota: Quota, rows: Iterable[Row]) -> list[Row]:
    """Choose the counters for what is to be added, and sum up what goes to the same."""
    sheets = {one.piece.start: one.sheet for one in prices(case, quota)}
    scopes = [limit.scope for limit in quota.limits]
    known, found = {row.key: row for row in quota.rows}, list[Row]()
    for row in rows:
        counter = row_for(row, known, sheets.get(row.start), scopes)
        known.setdefault(counter.key, counter)
        found.append(counter)
    return added([], found)


def expire_reservations(case: Case, quota: Quota) -> None:
    """Let go of what has expired."""
    gone = [one for one in quota.reservations if one.expires_at <= case.now]
    if gone:
        money: list[Entry] = [Expire(one.id) for one in gone if one.hold is not None]
        names = [one.id for one in gone]
        case.emit(quota, Quota.Released(reservations=names, reason="expired", money=money))


def cross_thresholds(
    case: Case, quota: Quota, meant: Callable[[Limit], bool] = lambda limit: bool(limit.thresholds)
) -> None:
    """Tell of thresholds that are reached, each once a period. It never refuses: what it follows has happened."""
    told = {(one.limit, one.threshold) for one in quota.crossed}
    waiting = [
        one
        for one in quota.limits
        if meant(one) and any((one.id, threshold) not in told for threshold in one.thresholds)
    ]
    if quota.counting is not None or not waiting:
        return
    priced = prices(case, quota)
    for limit in waiting:
        try:
            spent = spent_nano(priced, quota.rows, limit.scope, fees=limit.fees)
        except LedgerError:
            continue  # more than can be written as money; whoever looks at the quota hears of it
        for threshold in limit.thresholds:
            if (limit.id, threshold) not in told and _is_reached(limit, threshold, spent):
                case.emit(quota, _crossing(quota, limit, threshold, spent))


def _is_reached(limit: Limit, threshold: str, spent: int) -> bool:
    return spent > 0 and spent >= decimal_of(threshold) * limit.amount.nano


def _crossing(quota: Quota, limit: Limit, threshold: str, spent: int) -> Quota.ThresholdCrossed:
    return Quota.ThresholdCrossed(
        limit=limit.id,
        threshold=threshold,
        scope=limit.scope,
        mode=limit.mode,
        amount=limit.amount,
        spent=Money.of(spent, quota.currency),
        period_start=quota.period_start,
        period_end=quota.period_end,
    )
