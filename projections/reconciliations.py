"""Reconciliations as acts: compared, written down as an event, told as metrics, and put right where that is asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime
from typing import Any, Literal, NamedTuple

import msgspec

from domain.billing.fingerprints import TABLES
from domain.billing.reconciliation import (
    FINDINGS_MAX,
    CompleteReconciliation,
    Difference,
    Reconciliation,
    complete_reconciliation,
)
from domain.errors import LedgerError, ReconciliationRunningError
from domain.ledger import Caller
from domain.values import moment_of
from ops import telemetry
from ops.clickhouse import ClickHouse, open_clickhouse
from ops.clickhouse_migrate import migrate_clickhouse, on_cluster
from ops.reads import RecordFilter
from ops.reconcile_views import mend_views
from ops.runtime import Runtime
from ops.tasks import stop
from projections.reconcile import Comparison, Progress, Scope, compare, silent

log = telemetry.logger(__name__)

# What differences may take of a record, which holds 65,535 bytes.
DIFFERENCES_BYTES_MAX = 40_000
CHANGES_MAX = 8
LATEST_MAX = 100

Occasion = Literal["nightly", "asked"]


class Reconciled(NamedTuple):
    """A comparison, and the record that was written of it."""

    comparison: Comparison
    record: Reconciliation | None
    position: int | None


async def reconcile(
    runtime: Runtime,
    clickhouse: ClickHouse,
    scope: Scope,
    caller: Caller,
    *,
    occasion: Occasion = "asked",
    name: str | None = None,
    progress: Progress = silent,
    written: bool = True,
) -> Reconciled:
    """Compare, and write down what came of it unless it is only a look.

    Errors: forbidden, reconciliation_running, unavailable, clickhouse_refused.
    """
    try:
        found = await compare(runtime.url, clickhouse, scope, progress)
    except ReconciliationRunningError:
        raise
    except LedgerError:
        telemetry.RECONCILIATIONS.labels("failed").inc()
        raise
    if not written:
        return Reconciled(found, None, None)
    command = CompleteReconciliation(id=name, occasion=occasion, **members(found))
    answer = await runtime.ledger.act(complete_reconciliation, command, caller)
    record = msgspec.json.decode(answer.body, type=Reconciliation)
    tell(record, found)
    return Reconciled(found, record, answer.position)


def members(found: Comparison) -> dict[str, Any]:
    """Give what an event says of a comparison."""
    return {
        "bound": found.bound,
        "log_size": found.log_size,
        "records": found.rows.get("records", 0),
        "entries": found.rows.get("entries", 0),
        "groups": sum(found.groups.values()),
        "difference_count": found.found.count,
        "harmful_count": found.found.harmful_count,
        "differences": kept(found.found.listed),
        "duration_ms": round(found.seconds * 1_000),
        "scope": found.scope.text,
        "deep": found.scope.deep,
    }


def kept(differences: list[Difference]) -> list[dict[str, Any]]:
    """Give the first differences, as many as a record holds."""
    fitting: list[dict[str, Any]] = []
    bytes_left = DIFFERENCES_BYTES_MAX
    for difference in differences[:FINDINGS_MAX]:
        shown: dict[str, Any] = msgspec.to_builtins(difference)
        shown["changes"] = shown["changes"][:CHANGES_MAX]
        bytes_left -= len(msgspec.json.encode(shown))
        if bytes_left < 0:
            break
        fitting.append(shown)
    return fitting


def tell(record: Reconciliation, found: Comparison | None = None) -> None:
    """Say what the last reconciliation over everything came to, as metrics; kinds as far as it lists them."""
    if record.scope != "all":
        return
    at_s = moment_of(record.created_at).timestamp()
    telemetry.RECONCILED_AT.set(at_s)
    telemetry.RECONCILIATION_BOUND.set(record.bound)
    telemetry.RECONCILIATION_SECONDS.set(record.duration_ms / 1_000)
    telemetry.RECONCILIATION_DRIFT.set(record.harmful_count)
    telemetry.RECONCILIATION_DIFFERENCES.clear()
    for kind, count in Counter(difference.kind for difference in record.differences).items():
        telemetry.RECONCILIATION_DIFFERENCES.labels(kind).set(count)
    if not record.harmful_count:
        telemetry.RECONCILED_CLEAN_AT.set(at_s)
    if found is not None:
        telemetry.RECONCILIATIONS.labels("clean" if record.clean else "drift").inc()


async def last(runtime: Runtime, **contains: Any) -> Reconciliation | None:
    """Read the newest reconciliation there is of some sort.

    Errors: unavailable.
    """
    wanted = RecordFilter("reconciliation", contains=contains or None)
    rows = await runtime.reader.records(wanted, before=None, limit=LATEST_MAX)
    # A night that was made up for late is named after the hour at which it was due.
    newest = max(rows, key=lambda row: row["created_at"], default=None)
    return None if newest is None else msgspec.convert(newest, Reconciliation)


# --------------------------------------------------------------------------- putting right


async def repair(runtime: Runtime, clickhouse: ClickHouse, found: Comparison) -> list[str]:
    """Put right what follows the log in ClickHouse; tell what was done. What differs elsewhere is left as it is.

    Errors: unavailable, clickhouse_refused, and those of a rebuild.
    """
    from projections.rebuild import rebuild

    done: list[str] = []
    harmful = {d.table for d in found.found.listed if not d.harmless and d.kind != "behind"}
    followers = {t.name: t for t in TABLES if t.name in found.tables_apart}
    for name, table in followers.items():
        if name in harmful or table.rollup in harmful or found.found.count > len(found.found.listed):
            await rebuild(clickhouse, runtime.url, table.follower)
            done.append(f"rebuilt {table.follower}")
        else:
            merge = on_cluster(f"OPTIMIZE TABLE soma.{name} FINAL", runtime.settings.clickhouse_cluster)
            await clickhouse.command(merge)
            done.append(f"merged soma.{name}")
    if found.views_apart:
        await mend_views(clickhouse, found.views_apart, runtime.settings.clickhouse_cluster)
        done.append(f"made again: {', '.join(f'bi.{name}' for name in found.views_apart)}")
    return done


# --------------------------------------------------------------------------- asked for over HTTP


class Asked:
    """Reconciliations that were asked for in this process: one at a time, each in the background."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._task: asyncio.Task[None] | None = None
        self._name = ""
        self._asked_at: datetime | None = None
        self._refusal: LedgerError | None = None

    def start(self, scope: Scope, caller: Caller) -> str:
        """Begin one; give the name under which it will be found.

        Errors: reconciliation_running.
        """
        if self._task is not None and not self._task.done():
            raise ReconciliationRunningError(id=self._name)
        self._name = f"reconciliation-{self._runtime.ledger.next_id()}"
        self._refusal = None
        self._task = asyncio.get_running_loop().create_task(self._run(self._name, scope, caller))
        return self._name

    def state(self, name: str) -> dict[str, Any] | None:
        """Tell about one that is not in the log (yet), if it was asked for here."""
        if name != self._name or self._task is None:
            return None
        if not self._task.done():
            return {"id": name, "status": "running"}
        return {"id": name, "status": "failed", **self._refusal.problem()} if self._refusal else None

    async def close(self) -> None:
        """Give up what runs; nothing of it has been written."""
        await stop(self._task)

    async def _run(self, name: str, scope: Scope, caller: Caller) -> None:
        try:
            async with open_clickhouse(self._runtime.settings) as clickhouse:
                await migrate_clickhouse(clickhouse, self._runtime.settings.clickhouse_cluster)
                await reconcile(self._runtime, clickhouse, scope, caller, name=name)
        except LedgerError as refusal:
            self._refusal = refusal
            log.warning("reconciliation_failed", id=name, code=refusal.code, detail=refusal.message)
