"""Budgeting: limits are set, usage is reserved under them and let go again, and how they stand is shown.

Those who keep the books set limits of both kinds. A tenant sets soft ones for itself, which only tell; neither side
changes those of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from datetime import timedelta
from itertools import pairwise
from typing import Annotated, Literal

import msgspec
from pydantic import AfterValidator, Field, StringConstraints

from domain.billing.accounts import PLATFORM, ensure
from domain.billing.customers import Customer
from domain.billing.limits import (
    EVERYTHING,
    Limit,
    Priced,
    Reservation,
    Row,
    Scope,
    most_nano,
    spent_nano,
)
from domain.billing.prices import decimal_of
from domain.billing.quotas import (
    ROWS_AT_ONCE,
    Quota,
    basis_now,
    chosen,
    cross_thresholds,
    expire_reservations,
    keep_up,
    prices,
    stretches,
)
from domain.book import Entry, Hold, Void
from domain.errors import (
    CurrencyMismatchError,
    CustomerNotFoundError,
    ForbiddenError,
    InvalidFieldError,
    PriceNotInForceError,
    QuotaExceededError,
    QuotaNotFoundError,
    ReservationNotFoundError,
    TooManyReservationsError,
)
from domain.fields import Command, Id, Label
from domain.ledger import Caller, Case, Redo, allow
from domain.values import Money, Tenant, moment_of, moment_text

LIMITS_MAX = 20
THRESHOLDS_MAX = 10
RESERVATIONS_MAX = 256
TTL_S, TTL_S_MAX = 600, 86_400
COUNT_MAX = 10**12

KEEPERS = frozenset({"billing", "operator"})
READERS = KEEPERS | {"auditor"}

Decimal = Annotated[str, StringConstraints(pattern=r"^(?:0|[1-9][0-9]{0,2})(?:\.[0-9]{1,6})?$")]
Quantity = Annotated[int, Field(ge=0, le=COUNT_MAX)]


def _ascending(shares: list[str]) -> list[str]:
    values = [decimal_of(share) for share in shares]
    if any(a >= b for a, b in pairwise(values)):
        raise ValueError("thresholds ascend, each once")
    return shares


class LimitTerm(Command):
    """The most that may be spent in a billing period, or the sum above which somebody wants to know.

    Units: thresholds are shares of the amount: 0.8 is 80 %, 1.2 is 20 % over it.
    """

    id: Label
    amount: Money
    mode: Literal["hard", "soft"] = "hard"
    provider: Label | None = None
    model: Label | None = None
    persona_id: Id | None = None
    rental_id: Id | None = None
    thresholds: Annotated[list[Decimal], Field(max_length=THRESHOLDS_MAX), AfterValidator(_ascending)] = [
        "0.5", "0.8", "1"
    ]  # fmt: skip
    fees: bool = Field(
        True, description="Whether what is owed without any usage counts too, as it does on the invoice."
    )


class SetQuota(Command):
    """Set the limits of a customer, in place of those the same side set before; none takes them away.

    What the platform sets and what a tenant sets for itself stand beside each other.
    """

    tenant: Tenant
    limits: list[LimitTerm] = Field(max_length=LIMITS_MAX)
    prepaid: bool | None = Field(
        None, description="Whether reservations hold money of the wallet; as it was, if left out."
    )


class Reserve(Command):
    """Reserve usage that is about to happen: the most it is expected to be.

    Units: counts; ttl_s is how long it is kept, in seconds, and never beyond the billing period.
    """

    tenant: Tenant
    provider: Label
    model: Label
    persona_id: Id | None = None
    rental_id: Id | None = None
    tokens_in: Quantity = 0
    tokens_out: Quantity = 0
    cached_tokens: Quantity = 0
    requests: Quantity = 1
    ttl_s: int = Field(TTL_S, ge=1, le=TTL_S_MAX)


class ReleaseReservation(Command):
    """Let a reservation go that is not used."""

    tenant: Tenant
    reservation_id: Id


class QuotaStep(Command):
    """Name a quota."""

    tenant: Tenant


class PastUsage(msgspec.Struct, frozen=True):
    """What the log says was used before the counting began, cut as the quota was cut then.

    Units: version of the quota's stream that began the counting; known_at is the size of the log.
    """

    version: int
    known_at: int
    stretches: list[str]
    rows: list[Row]


class LimitState(msgspec.Struct, frozen=True):
    """How a limit stands. Amounts are null while the usage so far is being counted.

    Units: spent is the subtotal of a quote for the usage in its scope; reserved is the most that reservations may add;
           left is what neither takes, over is what is spent beyond the amount.
    """

    id: str
    scope: Scope
    mode: Literal["hard", "soft"]
    by: Literal["platform", "tenant"]
    fees: bool
    amount: Money
    spent: Money | None
    reserved: Money | None
    left: Money | None
    over: Money | None
    thresholds: list[str]
    crossed: list[str]


class QuotaState(msgspec.Struct, frozen=True):
    """How a quota stands at a moment."""

    tenant: str
    at: str
    currency: str
    prepaid: bool
    period_start: str
    period_end: str
    is_counted: bool
    limits: list[LimitState]
    used: list[Row]
    reservations: list[Reservation]
    version: int


class Reserved(msgspec.Struct, frozen=True):
    """A reservation that was made, and how the limits it falls under stand with it."""

    reservation: Reservation
    limits: list[LimitState]


@allow("billing", "operator", "owner")
def set_quota(case: Case, command: SetQuota) -> Quota:
    """Set limits. Those who keep the books set any; an owner sets soft ones for its own tenant.

    Errors: currency_mismatch, customer_not_found, forbidden, invalid_field, version_mismatch.
    """
    is_keeper = bool(case.caller.roles & KEEPERS)
    if not is_keeper and command.tenant != case.caller.tenant:
        raise CustomerNotFoundError(id=command.tenant)
    customer = case.get(Customer, command.tenant, CustomerNotFoundError)
    quota = case.find(Quota, command.tenant)
    limits = _limits(quota, command, customer.agreed.currency, is_keeper)
    was_prepaid = quota is not None and quota.prepaid
    wanted = Quota(
        id=customer.id,
        tenant=customer.id,
        limits=limits,
        prepaid=was_prepaid if command.prepaid is None else command.prepaid,
    )
    if quota is not None:
        case.match_version(quota)
        if (quota.limits, quota.prepaid) == (wanted.limits, wanted.prepaid):
            return quota
    anew = quota is None or not quota.is_on or not wanted.rentals <= quota.rentals
    event = Quota.Set(
        currency=customer.agreed.currency, limits=limits, prepaid=wanted.prepaid, counts_anew=anew
    )
    if quota is None:
        quota = case.create(Quota, customer.id, event, tenant=customer.id)
    else:
        case.emit(quota, event)
    keep_up(case, quota)
    cross_thresholds(case, quota)
    return quota


def _limits(quota: Quota | None, command: SetQuota, currency: str, is_keeper: bool) -> list[Limit]:
    """Put the limits of one side beside those of the other."""
    by: Literal["platform", "tenant"] = "platform" if is_keeper else "tenant"
    if not is_keeper and (command.prepaid is not None or any(one.mode == "hard" for one in command.limits)):
        raise ForbiddenError("an owner sets soft limits for its own tenant; hard ones are the platform's")
    others = [one for one in (quota.limits if quota else []) if one.by != by]
    mine = [_limit(one, by) for one in command.limits]
    names = [one.id for one in (*others, *mine)]
    if len(set(names)) < len(names) or len(names) > LIMITS_MAX:
        raise InvalidFieldError(
            f"there are {LIMITS_MAX} limits at most, each with an id of its own", field="limits"
        )
    if wrong := {one.amount.currency for one in mine} - {currency}:
        raise CurrencyMismatchError(
            "a limit is in the customer's currency", has=currency, asked=sorted(wrong)
        )
    # The platform's first, whoever set theirs last.
    return sorted((*others, *mine), key=lambda one: one.by != "platform")


def _limit(term: LimitTerm, by: Literal["platform", "tenant"]) -> Limit:
    scope = Scope(term.provider, term.model, term.persona_id, term.rental_id)
    return Limit(term.id, scope, term.amount, term.mode, term.thresholds, term.fees, by)


@allow("service", "provider", "owner", "billing", "operator")
def reserve(case: Case, command: Reserve) -> Reserved:
    """Reserve usage, if every hard limit it falls under has room for it.

    Errors: account_not_found, insufficient_funds (where reservations are paid ahead), price_not_in_force,
            quota_exceeded, quota_not_found, too_many_reservations.
    """
    quota = _own(case, command.tenant)
    if not quota.is_on:
        raise QuotaNotFoundError(id=command.tenant)
    keep_up(case, quota)
    if quota.counting is not None:
        raise Redo("the usage so far is not counted yet")
    expire_reservations(case, quota)
    if len(quota.reservations) >= RESERVATIONS_MAX:
        raise TooManyReservationsError(reservations_max=RESERVATIONS_MAX)
    if quota.place(case.now) is None or not quota.pieces:
        raise PriceNotInForceError(at=case.now)
    made = _reservation(case, quota, command)
    priced = prices(case, quota)
    for limit in quota.limits:
        if limit.mode == "hard" and limit.scope.covers(made):
            _check(quota, priced, limit, made)
    held: list[Entry] = []
    if made.hold is not None:
        wallet = ensure(case, "wallet", quota.id, made.hold.currency)
        held = [Hold(made.id, wallet, made.hold.amount, made.hold.currency)]
    case.emit(quota, Quota.Reserved(reservation=made, money=held))
    told = [limit for limit in quota.limits if limit.scope.covers(made)]
    return Reserved(made, [_state(quota, priced, limit, quota.reservations) for limit in told])


@allow("service", "provider", "owner", "billing", "operator")
def release_reservation(case: Case, command: ReleaseReservation) -> Quota:
    """Let a reservation go.

    Errors: quota_not_found, reservation_not_found.
    """
    quota = _own(case, command.tenant)
    keep_up(case, quota)
    expire_reservations(case, quota)
    found = [one for one in quota.reservations if one.id == command.reservation_id]
    if not found:
        raise ReservationNotFoundError(
            "there is no such reservation, or it was used, released or expired before",
            id=command.reservation_id,
        )
    money: list[Entry] = [Void(one.id) for one in found if one.hold is not None]
    return case.emit(
        quota, Quota.Released(reservations=[command.reservation_id], reason="released", money=money)
    )


@allow("service")
def tend_quota(case: Case, command: QuotaStep) -> Quota:
    """Write down what the clock has decided: that reservations expired, and that a period began.

    Errors: quota_not_found.
    """
    quota = case.get(Quota, command.tenant, QuotaNotFoundError)
    expire_reservations(case, quota)
    if quota.is_on:
        keep_up(case, quota)
        cross_thresholds(case, quota)
    return quota


@allow("service")
def count_quota(case: Case, command: QuotaStep, *, past: PastUsage | None) -> Quota:
    """Add what was used before the counting began; done once, it changes nothing.

    Errors: quota_not_found.
    """
    quota = case.get(Quota, command.tenant, QuotaNotFoundError)
    keep_up(case, quota)
    if quota.counting is None or not quota.is_on:
        return quota
    if past is None or (past.version, past.stretches) != (quota.counting, stretches(quota)):
        raise Redo("what was counted is for another period")
    rows = chosen(case, quota, past.rows)
    for start in range(0, len(rows) or 1, ROWS_AT_ONCE):
        part, is_last = rows[start : start + ROWS_AT_ONCE], start + ROWS_AT_ONCE >= len(rows)
        case.emit(quota, Quota.Counted(known_at=past.known_at, rows=part, is_last=is_last))
    cross_thresholds(case, quota)
    return quota


@allow()
def show_quota(case: Case, command: QuotaStep, *, stored: Quota | None) -> QuotaState:
    """Show how a quota stands now, as it is stored; nothing is written.

    Errors: quota_not_found.
    """
    is_seen = command.tenant == case.caller.tenant or bool(case.caller.roles & READERS)
    if stored is None or not is_seen:
        raise QuotaNotFoundError(id=command.tenant)
    quota, basis = copy(stored), basis_now(case, command.tenant)
    if basis.start != quota.period_start:
        quota.crossed = []
    quota.enter(basis, quota.version)
    priced, still_open = prices(case, quota), quota.open_at(case.now)
    return QuotaState(
        tenant=quota.id,
        at=case.now,
        currency=quota.currency,
        prepaid=quota.prepaid,
        period_start=quota.period_start,
        period_end=quota.period_end,
        is_counted=quota.is_on and quota.counting is None,
        limits=[_state(quota, priced, limit, still_open) for limit in quota.limits],
        used=[row for row in quota.rows if row.start < quota.period_end],
        reservations=still_open,
        version=quota.version,
    )


# --------------------------------------------------------------------------- parts of it


def may_reserve(caller: Caller, tenant: str) -> bool:
    """Say whether somebody may reserve for a tenant: its own people and programs, and the platform's."""
    return tenant == caller.tenant or "operator" in caller.roles or (
        caller.tenant == PLATFORM and bool(caller.roles & {"service", "billing"})
    )  # fmt: skip


def _own(case: Case, tenant: str) -> Quota:
    quota = case.get(Quota, tenant, QuotaNotFoundError)
    if not may_reserve(case.caller, tenant):
        raise QuotaNotFoundError(id=tenant)
    return quota


def _reservation(case: Case, quota: Quota, command: Reserve) -> Reservation:
    """Write a reservation, and what it could add to the bill."""
    until = moment_text(moment_of(case.now) + timedelta(seconds=command.ttl_s))
    nothing = Money.of(0, quota.currency)
    made = Reservation(
        case.new_id("reservation"), command.provider, command.model, command.persona_id, command.rental_id,
        command.tokens_in, command.tokens_out, command.cached_tokens, command.requests, case.now,
        min(until, quota.period_end), nothing, None,
    )  # fmt: skip
    priced = prices(case, quota)
    before = most_nano(priced, quota.rows, quota.reservations, EVERYTHING)
    after = most_nano(priced, quota.rows, [*quota.reservations, made], EVERYTHING)
    cost = Money.of(max(0, after - before), quota.currency)
    return msgspec.structs.replace(made, cost=cost, hold=cost if quota.prepaid and cost.nano else None)


def _check(quota: Quota, priced: Sequence[Priced], limit: Limit, made: Reservation) -> None:
    """Refuse what does not fit into a limit, and say what would."""

    def fits(one: Reservation) -> bool:
        taken = most_nano(priced, quota.rows, [*quota.reservations, one], limit.scope, fees=limit.fees)
        return taken <= limit.amount.nano

    if fits(made):
        return
    state = _state(quota, priced, limit, quota.reservations)
    raise QuotaExceededError(
        f"limit {limit.id!r} has {'nothing' if state.left is None else state.left.amount}"
        f" of {limit.amount.amount} {quota.currency} left"
        f" until {quota.period_end}",
        limit=limit.id,
        amount=msgspec.to_builtins(limit.amount),
        spent=msgspec.to_builtins(state.spent),
        reserved=msgspec.to_builtins(state.reserved),
        left=msgspec.to_builtins(state.left),
        fits_tokens_out=_largest(
            lambda n: fits(msgspec.structs.replace(made, tokens_out=n)), made.tokens_out
        ),
        resets_at=quota.period_end,
    )


def _largest(fits: Callable[[int], bool], most: int) -> int | None:
    """Find the largest number that fits, none if not even zero does; what fits goes on fitting below.

    Cost: one look for each halving.
    """
    if not fits(0):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _state(
    quota: Quota, priced: Sequence[Priced], limit: Limit, still_open: Sequence[Reservation]
) -> LimitState:
    def money(nano: int) -> Money:
        return Money.of(nano, quota.currency)

    spent = reserved = left = over = None
    if quota.counting is None and quota.is_on:
        used = spent_nano(priced, quota.rows, limit.scope, fees=limit.fees)
        most = most_nano(priced, quota.rows, still_open, limit.scope, fees=limit.fees)
        spent, reserved = money(used), money(most - used)
        left, over = money(max(0, limit.amount.nano - most)), money(max(0, used - limit.amount.nano))
    return LimitState(
        id=limit.id,
        scope=limit.scope,
        mode=limit.mode,
        by=limit.by,
        fees=limit.fees,
        amount=limit.amount,
        spent=spent,
        reserved=reserved,
        left=left,
        over=over,
        thresholds=limit.thresholds,
        crossed=[one.threshold for one in quota.crossed if one.limit == limit.id],
    )
