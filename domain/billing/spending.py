"""Spending: readings that were taken in are counted under the quota of their tenant, in the same commit.

It never refuses: what is counted here has happened. A tenant without limits costs one look for each command.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from domain.billing.accounts import ensure
from domain.billing.customers import Customer
from domain.billing.grants import GRANTS_MAX, Grant, grant_credit, grow_grant
from domain.billing.limits import EVERYTHING, Limit, Reservation, Row, added, spent_nano
from domain.billing.quotas import ROWS_AT_ONCE, Quota, chosen, cross_thresholds, keep_up, prices
from domain.book import Entry, Void, settlement
from domain.errors import CustomerNotFoundError, LedgerError
from domain.ledger import Case
from domain.values import Money


class Consumed(Protocol):
    """What a reading says was used."""

    @property
    def occurred_at(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def persona_id(self) -> str | None: ...
    @property
    def rental_id(self) -> str | None: ...
    @property
    def tokens_in(self) -> int: ...
    @property
    def tokens_out(self) -> int: ...
    @property
    def cached_tokens(self) -> int | None: ...
    @property
    def requests(self) -> int: ...


class Taken(NamedTuple):
    """A reading that counts from now on, or with a sign of -1 one that no longer does."""

    used: Consumed
    reservation_id: str | None = None
    sign: int = 1


def spend(case: Case, taken: Iterable[tuple[str, Consumed, str | None]]) -> None:
    """Count new readings (tenant, reading, reservation) for the tenants that have a quota.

    Cost: one look for each tenant, and for each reading of those that have one.
    """
    first = None
    quotas: dict[str, list[Taken] | None] = {}
    for tenant, used, reservation_id in taken:
        if tenant != first:
            first = tenant
            if tenant not in quotas:
                quotas[tenant] = [] if _quota(case, tenant) is not None else None
            counted = quotas[tenant]
        if counted is not None:
            counted.append(Taken(used, reservation_id))
    for tenant, found in quotas.items():
        if found:
            _count(case, tenant, found)


def spend_corrected(case: Case, tenant: str, before: Consumed, after: Consumed) -> None:
    """Count what a reading says now in place of what it said."""
    if _quota(case, tenant) is not None:
        _count(case, tenant, [Taken(before, sign=-1), Taken(after)])


def quota_streams(tenants: Iterable[str]) -> list[str]:
    """Name the streams that will be asked for."""
    return [f"{Quota.KIND}/{tenant}" for tenant in tenants]


def _quota(case: Case, tenant: str) -> Quota | None:
    quota = case.find(Quota, tenant)
    return quota if quota is not None and quota.is_on else None


def _count(case: Case, tenant: str, taken: Sequence[Taken]) -> None:
    quota = case.get(Quota, tenant)
    counting = quota.counting
    keep_up(case, quota)
    named = {one.reservation_id for one in taken}
    ended = [one for one in quota.open_at(case.now) if one.id in named]
    # Where the counting begins with this very commit, its readings are counted from the log with all before them.
    is_counted = quota.counting == counting
    rows = chosen(case, quota, _rows(quota, taken)) if is_counted else []
    if not rows and not ended:
        return
    is_held = any(one.hold is not None for one in ended)
    credit, entries = _settled(case, quota, taken, ended) if is_held else (None, [])
    grant = _credited(case, quota, credit) if credit is not None else None
    for start in range(0, len(rows) or 1, ROWS_AT_ONCE):
        is_first = not start
        spent = Quota.Spent(
            rows=rows[start : start + ROWS_AT_ONCE],
            readings=len(taken) if is_first else 0,
            reservations=[one.id for one in ended] if is_first else [],
            prepaid=credit if is_first else None,
            grant=grant if is_first else None,
            money=entries if is_first else [],
        )
        case.emit(quota, spent)
    cross_thresholds(case, quota, lambda limit: _concerns(limit, rows))


def _concerns(limit: Limit, rows: Sequence[Row]) -> bool:
    return bool(limit.thresholds) and any(limit.scope.covers(row) for row in rows)


def _rows(quota: Quota, taken: Iterable[Taken]) -> list[Row]:
    """Sum readings up by counter; what occurred before the period is no part of it."""
    rentals, found = quota.rentals, list[Row]()
    for used, _, sign in taken:
        start = quota.place(used.occurred_at)
        if start is not None:
            rental = used.rental_id if used.rental_id in rentals else None
            found.append(
                Row(
                    start, used.occurred_at, used.provider, used.model, used.persona_id, rental,
                    sign * used.tokens_in, sign * used.tokens_out, sign * (used.cached_tokens or 0),
                    sign * used.requests,
                )
            )  # fmt: skip
    return added([], found)


# --------------------------------------------------------------------------- paid ahead


def _settled(
    case: Case, quota: Quota, taken: Sequence[Taken], ended: Sequence[Reservation]
) -> tuple[Money | None, list[Entry]]:
    """Settle the holds of reservations that ended: what their usage adds to the bill becomes credit, the rest is freed.

    Units: nothing is credited where it cannot be said what usage adds, or where no further credit can be kept.
    """
    names = {one.id for one in ended}
    left = _adds_nano(case, quota, [one for one in taken if one.reservation_id in names])
    wallet = ensure(case, "wallet", quota.id, quota.currency)
    credited = ensure(case, "credits", quota.id, quota.currency)
    entries: list[Entry] = []
    paid = 0
    for one in ended:
        if one.hold is None:
            continue
        part = min(left, one.hold.nano)
        left, paid = left - part, paid + part
        share = Money.of(part, quota.currency)
        entries.append(settlement(one.id, wallet, [(credited, share)]) if part else Void(one.id))
    return (Money.of(paid, quota.currency) if paid else None), entries


def _adds_nano(case: Case, quota: Quota, taken: Sequence[Taken]) -> int:
    """Give what readings add to the bill of the period so far; never less than nothing."""
    if quota.counting is not None or not _can_credit(case, quota):
        return 0
    priced, rows = prices(case, quota), chosen(case, quota, _rows(quota, taken))
    try:
        before = spent_nano(priced, quota.rows, EVERYTHING)
        return max(0, spent_nano(priced, added(quota.rows, rows), EVERYTHING) - before)
    except LedgerError:
        return 0  # more than can be written as money


def _can_credit(case: Case, quota: Quota) -> bool:
    customer = case.get(Customer, quota.id, CustomerNotFoundError)
    return _grant(case, quota) is not None or len(customer.grants) < GRANTS_MAX


def _grant(case: Case, quota: Quota) -> Grant | None:
    """Give the credit of this period, if there is some left of it to add to."""
    made = case.find(Grant, quota.grant) if quota.grant is not None else None
    return made if made is not None and made.status == "active" else None


def _credited(case: Case, quota: Quota, amount: Money) -> str:
    """Add to the credit of this period; the money is moved by the quota's own event."""
    made = _grant(case, quota)
    if made is not None:
        return grow_grant(case, made, amount).id
    customer = case.get(Customer, quota.id, CustomerNotFoundError)
    reference = f"{quota.id} {quota.period_start}"
    return grant_credit(case, customer, amount, source="prepaid", reference=reference).id
