"""The nightly reconciliation: one a night whatever is started, stopped or killed, by whichever process is there.

Nothing is remembered here. Whether a night is still open follows from the last record of a nightly reconciliation, and
that no two processes compare at once from the lock each comparison holds; so a restart neither repeats nor skips one.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from domain.billing.reconciliation import Reconciliation
from domain.errors import LedgerError, ReconciliationRunningError
from domain.ledger import Caller
from domain.values import moment_of
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


def is_due(at_utc: str, last_at: datetime | None, now: datetime) -> bool:
    """Say whether the latest night has not been reconciled yet; where there was none before, it has not."""
    return last_at is None or last_at < last_hour(at_utc, now)


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
        at_utc, last_at = self._runtime.settings.reconcile_at_utc, await self._last_at()
        if not is_due(at_utc, last_at, now):
            return None
        if last_at is None and not await self._runtime.reader.size_at(last_hour(at_utc, now)):
            # The log is younger than the hour: its first night is still to come.
            return None
        try:
            done = await reconcile(
                self._runtime,
                self._clickhouse,
                Scope(),
                NIGHT,
                occasion="nightly",
                name=_name(self._runtime, now),
            )
        except ReconciliationRunningError:
            # Another process has this night, or somebody asked; the next look tells whether it is still open.
            return None
        assert done.record is not None
        _say(done.record)
        return done

    async def _last_at(self) -> datetime | None:
        known = await last(self._runtime, scope="all", occasion="nightly")
        return None if known is None else moment_of(known.created_at)

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


def _name(runtime: Runtime, now: datetime) -> str:
    """Name the record of a night: two processes that end at the same moment write it once.

    Names of this kind are in the order of time, which a night's beginning keeps: the digits of a time-ordered id first.
    """
    at_ms = int(last_hour(runtime.settings.reconcile_at_utc, now).timestamp() * 1_000)
    return f"reconciliation-{at_ms:012x}-nightly"


def _say(record: Reconciliation) -> None:
    said = {"bound": record.bound, "differences": record.difference_count, "duration_ms": record.duration_ms}
    if record.clean:
        log.info("reconciled", **said)
    else:
        log.error("reconciliation_found_differences", first=record.differences[0].kind, **said)
