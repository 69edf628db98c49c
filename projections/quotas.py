"""Quotas in the background: what the clock decides is written down, and what was used before a quota is counted.

Nothing waits for it to be right. A reservation that has expired counts for nothing at the check, whoever has written
that down, and where the past is still to be counted a reservation has it counted first. What this brings is that holds
are let go soon after their time, that alerts of a new period come by themselves, and that nobody has to ask first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from domain.billing.budgeting import (
    PastUsage,
    QuotaStep,
    SetQuota,
    count_quota,
    set_quota,
    show_quota,
    tend_quota,
)
from domain.billing.quotas import FAR, Quota, stretches
from domain.errors import LedgerError
from domain.ledger import Answer, Caller
from domain.log.records import Aggregate
from ops import telemetry
from ops.lease import Lease
from ops.runtime import Runtime
from ops.tasks import stop
from ops.usage_totals import Stretch, usage_counters

log = telemetry.logger(__name__)

WATCH = Caller("quota-watch", "platform", frozenset({"service"}))
INTERVAL_S = 1.0
BATCH_MAX = 500


async def count_past(runtime: Runtime, tenant: str) -> None:
    """Count what a tenant used before its quota began to count, if that is still to be done.

    Cost:   one pass over the usage of the tenant in the period.
    Errors: quota_not_found, unavailable.
    """

    async def gather() -> dict[str, Any]:
        # What is to be counted is only fixed once the clock's part is written down.
        await runtime.ledger.act(tend_quota, QuotaStep(tenant=tenant), WATCH)
        return {"past": await past_usage(runtime, tenant)}

    await runtime.ledger.act(count_quota, QuotaStep(tenant=tenant), WATCH, gather=gather)


def counted_first(runtime: Runtime, tenant: str) -> Callable[[], Awaitable[dict[str, Any]]]:
    """Give what a reservation gathers: nothing at first, and if it is decided anew, that the past is counted."""
    is_first = True

    async def gather() -> dict[str, Any]:
        nonlocal is_first
        if not is_first:
            await count_past(runtime, tenant)
        is_first = False
        return {}

    return gather


async def set_limits(runtime: Runtime, command: SetQuota, who: Caller, **sent: Any) -> Answer:
    """Set limits, and have counted what was used before.

    Errors: as of `set_quota`, and unavailable.
    """
    answer = await runtime.ledger.act(set_quota, command, who, **sent)
    if not (answer.event_count or answer.repeated):
        # Nothing to change may be said of what is held here only; another process may have changed it meanwhile.
        runtime.ledger.forget([f"{Quota.KIND}/{command.tenant}"], runtime.ledger.epoch)
        answer = await runtime.ledger.act(set_quota, command, who, **sent)
    await count_past(runtime, command.tenant)
    return answer


async def stored_quota(runtime: Runtime, tenant: str) -> Quota | None:
    """Read a quota as the log has it, whichever process wrote it last.

    Errors: unavailable.
    """
    stream = f"{Quota.KIND}/{tenant}"
    loaded = (await runtime.reader.load([stream])).get(stream)
    quota: Aggregate | None = loaded.aggregate if loaded else None
    return quota if isinstance(quota, Quota) else None


async def show(runtime: Runtime, tenant: str, who: Caller) -> bytes:
    """Print how a quota stands now.

    Errors: quota_not_found, unavailable.
    """

    async def gather() -> dict[str, Any]:
        return {"stored": await stored_quota(runtime, tenant)}

    return (await runtime.ledger.act(show_quota, QuotaStep(tenant=tenant), who, gather=gather)).body


async def past_usage(runtime: Runtime, tenant: str) -> PastUsage | None:
    """Sum up what the log said when the counting began; None where nothing is to be counted.

    Errors: unavailable.
    """
    quota = await stored_quota(runtime, tenant)
    if quota is None or quota.counting is None:
        return None
    (began,) = await runtime.reader.versions([(quota.stream, quota.counting)])
    cuts = stretches(quota)
    wanted = [Stretch(tenant, start, end) for start, end in zip(cuts, [*cuts[1:], FAR], strict=True)]
    rows = await usage_counters(runtime.reader.pool, wanted, quota.rentals, began.position)
    return PastUsage(quota.counting, began.position, cuts, rows)


class QuotaWatch:
    """Looks once a second; one process at a time does."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lease = Lease(runtime.url, "quotas")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop looking."""
        await stop(self._task)
        await self._lease.close()

    async def look(self) -> int:
        """See to every quota that is due; give how many were."""
        if not await self._lease.hold():
            return 0
        due = await self._runtime.reader.deadlines([Quota.KIND], self._runtime.clock(), BATCH_MAX)
        for tenant in (one.id for one in due):
            try:
                # What is held here may be older than what was read, if another process wrote it.
                self._runtime.ledger.forget([f"{Quota.KIND}/{tenant}"], self._runtime.ledger.epoch)
                await count_past(self._runtime, tenant)
            except LedgerError as refusal:
                if refusal.status >= 500:
                    raise
                # One quota that cannot be seen to must not keep the others from it.
                log.error("quota_not_tended", tenant=tenant, code=refusal.code, detail=refusal.message)
        return len(due)

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except LedgerError as outage:
                log.warning("quotas_failed", code=outage.code, detail=outage.message)
            except Exception as bug:
                log.error("quotas_bug", exc_info=bug)
            await asyncio.sleep(INTERVAL_S)
