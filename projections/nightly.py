"""The nightly reconciliation: one a night whatever is started, stopped or killed, by whichever process is there.

Nothing is remembered here. Each night has a name of its own, so whether it is still open follows from the log; that no
two processes compare at once, from the lock each comparison holds. So a restart neither repeats a night nor skips one.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from domain.billing.reconciliation import Reconciliation
from domain.errors import LedgerError, ReconciliationRunningError
from domain.ledger import Caller
from ops import telemetry
from ops.clickhouse import ClickHouse
from ops.dead_letters import DeadLetters
from ops.runtime import Runtime
from projections.reconcile import Scope
from projections.reconciliations import Reconciled, last, reconcile, tell

log = telemetry.logger(__name__)

NIGHT = Caller("nightly", "platform", frozenset({"service"}))
LOOK_S = 30.0
PAUSE_S_MAX = 600.0


def last_hour(at_utc: str, now: datetime) -> datetime:
    """Give the latest moment, not after now, at which a night's reconciliation was due."""
    hour, minute = map(int, at_utc.split(":"))
    today = now.astimezone(UTC).replace(hour=hour, minute=minute, second=0, microsecond=0)
    return today if today <= now else today - timedelta(days=1)


def night_name(due_at: datetime) -> str:
    """Name the record of a night: a pure function of when it was due, so each night has one record at most.

    Names of this kind are in the order of time: they begin with the milliseconds since 1970.
    """
    return f"reconciliation-{int(due_at.timestamp() * 1_000):012x}-nightly"


class Nightly:
    """Reconciles every night at the hour of the settings."""

    def __init__(self, runtime: Runtime, clickhouse: ClickHouse) -> None:
        self._runtime = runtime
        self._clickhouse = clickhouse
        self._pause_s = LOOK_S

    async def run(self) -> None:
        """Look twice a minute whether a night is open."""
        while True:
            await self._try()
            await asyncio.sleep(self._pause_s)

    async def _try(self) -> None:
        try:
            await self._tell()
            await self.look(datetime.now(UTC))
            self._pause_s = LOOK_S
        except LedgerError as outage:
            self._pause_s = min(PAUSE_S_MAX, self._pause_s * 2)
            log.warning(
                "nightly_reconciliation_failed",
                code=outage.code,
                detail=outage.message,
                retry_s=self._pause_s,
            )

    async def look(self, now: datetime) -> Reconciled | None:
        """Reconcile if the latest night has not been, and nobody else is at it.

        Errors: unavailable, clickhouse_refused.
        """
        due_at = last_hour(self._runtime.settings.reconcile_at_utc, now)
        name = night_name(due_at)
        if await self._runtime.reader.load([f"reconciliation/{name}"]):
            return None
        if not await self._runtime.reader.size_at(due_at):
            # The log is younger than the hour: its first night is still to come.
            return None
        try:
            done = await reconcile(
                self._runtime,
                self._clickhouse,
                Scope(),
                NIGHT,
                occasion="nightly",
                name=name,
            )
        except ReconciliationRunningError:
            # Another process has this night, or somebody asked; the next look tells whether it is still open.
            return None
        assert done.record is not None
        _say(done.record)
        return done

    async def _tell(self) -> None:
        """Say when the last one was, whoever made it, and how many dead letters are open."""
        known = await last(self._runtime, scope="all")
        first = [] if known is not None else await self._runtime.reader.heads(0, 1)
        if known is not None:
            tell(known)
        elif first:
            # Where there was none yet, the log has been waiting for one since its first record.
            telemetry.RECONCILED_AT.set(first[0].committed_at.timestamp())
        counts = await DeadLetters(self._runtime.reader.pool).counts()
        telemetry.DEAD_LETTERS_OPEN.set(counts.get("open", 0))


def _say(record: Reconciliation) -> None:
    said = {"bound": record.bound, "differences": record.difference_count, "duration_ms": record.duration_ms}
    if record.clean:
        log.info("reconciled", **said)
    else:
        log.error("reconciliation_found_differences", first=record.differences[0].kind, **said)
