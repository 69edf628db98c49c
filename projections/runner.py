"""All followers of one process: each by its name, each kept running, none stopped by another's trouble.

clickhouse.records  clickhouse.billing  clickhouse.usage  clickhouse.market     tables of ClickHouse
kafka.relay         kafka.ingest                                              only where a broker is named
webhooks            nightly                                                   deliveries; reconciliation
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from domain.errors import FollowerUnknownError, LedgerError
from ops import telemetry
from ops.clickhouse import ClickHouse, clickhouse_places
from ops.clickhouse_migrate import migrate_clickhouse
from ops.listen import Listener
from ops.runtime import Runtime
from ops.settings import Settings
from projections.follower import Follower
from projections.ingest import Ingest
from projections.nightly import Nightly
from projections.relay import Relay
from projections.warehouse import PROJECTIONS, Warehouse
from projections.webhooks import WebhookWorker

log = telemetry.logger(__name__)

PAUSE_S_MAX = 30.0

Work = Callable[[], Awaitable[None]]


def names_of(settings: Settings) -> list[str]:
    """Name the followers these settings turn on."""
    kafka = ["kafka.relay", "kafka.ingest"] if settings.kafka_bootstrap_servers else []
    return [*PROJECTIONS, *kafka, "webhooks", "nightly"]


def chosen(settings: Settings, wanted: Sequence[str]) -> list[str]:
    """Pick followers by name or by the part before the dot; nothing wanted means all.

    Errors: follower_unknown.
    """
    known = names_of(settings)
    if not wanted:
        return known
    for wish in wanted:
        if not any(_fits(name, wish) for name in known):
            raise FollowerUnknownError(f"there is no follower {wish!r} here", known=known)
    return [name for name in known if any(_fits(name, wish) for wish in wanted)]


def _fits(name: str, wish: str) -> bool:
    return name == wish or name.partition(".")[0] == wish


async def follow(runtime: Runtime, wanted: Sequence[str] = ()) -> None:
    """Run followers until cancelled.

    Errors: follower_unknown.
    """
    names = chosen(runtime.settings, wanted)
    async with _works(runtime, names) as works, asyncio.TaskGroup() as group:
        for name, work in works.items():
            group.create_task(_kept(name, work), name=name)


@asynccontextmanager
async def _works(runtime: Runtime, names: Sequence[str]) -> AsyncIterator[Mapping[str, Work]]:
    async with AsyncExitStack() as stack:
        listener = await stack.enter_async_context(Listener(runtime.url))
        connect = _unconnected
        if any(_reads_clickhouse(name) for name in names):
            service, _reader = await stack.enter_async_context(clickhouse_places(runtime.settings))

            async def connect() -> ClickHouse:
                return await stack.enter_async_context(closing(await ClickHouse.found(service)))

            await migrate_clickhouse(await connect())
        # Calls of one connection wait for each other, so each follower has its own.
        yield {
            name: _work(name, runtime, listener, await connect() if _reads_clickhouse(name) else None)
            for name in names
        }


async def _unconnected() -> ClickHouse:
    raise AssertionError("no follower here reads ClickHouse")


@asynccontextmanager
async def closing(clickhouse: ClickHouse) -> AsyncIterator[ClickHouse]:
    """Close a connection at the end."""
    try:
        yield clickhouse
    finally:
        await clickhouse.close()


def _reads_clickhouse(name: str) -> bool:
    return name.startswith("clickhouse.") or name == "nightly"


def _work(name: str, runtime: Runtime, listener: Listener, clickhouse: ClickHouse | None) -> Work:
    if name == "webhooks":
        return WebhookWorker(runtime, listener).run
    if name == "kafka.ingest":
        return Ingest(runtime).run
    if name == "kafka.relay":
        return Follower(name, Relay(runtime), runtime.reader, listener).run
    assert clickhouse is not None
    if name == "nightly":
        return Nightly(runtime, clickhouse).run
    warehouse = Warehouse(name, runtime.url, clickhouse, runtime.reader.firsts)
    return Follower(name, warehouse, runtime.reader, listener).run


async def _kept(name: str, work: Work) -> None:
    """Run a work for ever; what it raises is told and waited out."""
    pause_s = 0.5
    while True:
        try:
            await work()
            return
        except LedgerError as error:
            log.warning(
                "follower_restarts", follower=name, code=error.code, detail=error.message, retry_s=pause_s
            )
        except Exception as error:  # noqa: BLE001 - one follower's trouble is not its neighbours'
            log.error("follower_restarts", follower=name, error=repr(error), retry_s=pause_s)
        telemetry.FOLLOWER_FAILURES.labels(name, "restarted").inc()
        await asyncio.sleep(pause_s)
        pause_s = min(PAUSE_S_MAX, pause_s * 2)
