"""All followers of one process: each by its name, each kept running, none stopped by another's trouble.

clickhouse.records  clickhouse.billing  clickhouse.usage  clickhouse.market     tables of ClickHouse
clickhouse.governance  clickhouse.commerce
kafka.relay         kafka.ingest                                              only where a broker is named
webhooks            nightly                                                   deliveries; reconciliation
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from domain.errors import FollowerUnknownError, LedgerError
from ops import telemetry
from ops.clickhouse import ClickHouse, Locate, clickhouse_places
from ops.clickhouse_migrate import migrate_clickhouse
from ops.dead_letters import DeadLetters
from ops.interpreter import settle_for_followers
from ops.listen import Listener
from ops.runtime import Runtime
from ops.settings import Settings
from projections.follower import Follower
from projections.ingest import Ingest
from projections.nightly import Nightly
from projections.relay import Relay
from projections.warehouse import PROJECTIONS, Warehouse, letters_to
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
    settle_for_followers()
    async with _works(runtime, names) as works, asyncio.TaskGroup() as group:
        for name, work in works.items():
            group.create_task(_kept(name, work), name=name)


@asynccontextmanager
async def _works(runtime: Runtime, names: Sequence[str]) -> AsyncIterator[Mapping[str, Work]]:
    async with AsyncExitStack() as stack:
        listener = await stack.enter_async_context(Listener(runtime.url))
        clickhouses = ClickHouses(runtime.settings, stack)
        yield {name: _work(name, runtime, listener, clickhouses) for name in names}


class ClickHouses:
    """Gives connections to a ClickHouse that has our tables; whoever asks first starts the embedded engine.

    What fails here fails for the follower that asked, which asks again; its neighbours go on.
    """

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        self._settings = settings
        self._stack = stack
        self._asking = asyncio.Lock()
        self._locate: Locate | None = None
        self._migrated = False

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[ClickHouse]:
        """Connect; calls of one connection wait for each other, so each follower has its own.

        Errors: clickhouse_refused, engine_start_failed, unavailable, those of migrations.
        """
        async with self._asking:
            if self._locate is None:
                places = await self._stack.enter_async_context(clickhouse_places(self._settings))
                self._locate = places[0]
            clickhouse = await ClickHouse.found(self._locate)
            try:
                if not self._migrated:
                    await migrate_clickhouse(clickhouse, self._settings.clickhouse_cluster)
                    self._migrated = True
            except BaseException:
                await clickhouse.close()
                raise
        try:
            yield clickhouse
        finally:
            await clickhouse.close()


def _work(name: str, runtime: Runtime, listener: Listener, clickhouses: ClickHouses) -> Work:
    if name == "webhooks":
        return WebhookWorker(runtime, listener).run
    if name == "kafka.ingest":
        return Ingest(runtime).run
    if name == "kafka.relay":
        return Follower(name, Relay(runtime), runtime.url, listener).run

    async def work() -> None:
        async with clickhouses.connected() as clickhouse:
            if name == "nightly":
                await Nightly(runtime, clickhouse).run()
            report = letters_to(DeadLetters(runtime.reader.pool), name)
            sink = Warehouse(name, runtime.url, clickhouse, runtime.reader.versions, report=report)
            await Follower(name, sink, runtime.url, listener).run()

    return work


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
