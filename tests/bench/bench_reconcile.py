"""Measure a clean reconciliation of a million records against reading their bytes out of PostgreSQL once."""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time
from datetime import UTC, datetime, timedelta

import psycopg

from domain.billing import accounts
from domain.ledger import Caller
from domain.values import moment_text
from ops.clickhouse import ClickHouse
from ops.listen import Listener
from ops.runtime import Runtime
from projections.follower import Follower
from projections.reconcile import Comparison, compare
from projections.warehouse import Warehouse
from tests.bench.bench_transfers import ACCOUNTS, AMOUNT, pairs
from tests.bench.bench_transfers import fill as open_wallets
from tests.bench.figures import Figure, compared, run
from tests.bench.followed_log import open_warehouse

RECORDS = int(os.environ.get("SOMA_BENCH_RECONCILE_RECORDS", "1000000"))
DAYS = 30
ROUNDS = 3
AT_ONCE = 256
FOLLOWERS = ("clickhouse.records", "clickhouse.billing", "clickhouse.usage", "clickhouse.commerce")


async def write(runtime: Runtime, count: int) -> None:
    """Write transfers through the gate, whose clock runs through a month meanwhile."""
    begin, numbers, draw = datetime(2026, 3, 1, tzinfo=UTC), itertools.count(), pairs(5)
    step = timedelta(days=DAYS) / (count + 1)
    runtime.ledger._clock = lambda: moment_text(begin + step * min(next(numbers), count))
    callers = [Caller("owner", f"tenant-{n:02d}", frozenset({"owner"})) for n in range(ACCOUNTS)]
    left = count - await runtime.reader.size()

    async def pay(times: int) -> None:
        for _ in range(times):
            source, target = draw()
            command = accounts.TransferMoney(to_tenant=f"tenant-{target:02d}", amount=AMOUNT)
            await runtime.ledger.act(accounts.transfer, command, callers[source])

    await asyncio.gather(*(pay(left // AT_ONCE + (n < left % AT_ONCE)) for n in range(AT_ONCE)))


async def follow(runtime: Runtime, clickhouse: ClickHouse) -> None:
    """Follow the log to its end, and let everything settle."""
    size = await runtime.reader.size()
    async with Listener(runtime.url) as listener:
        for name in FOLLOWERS:
            sink = Warehouse(name, runtime.url, clickhouse, runtime.reader.versions)
            # Its second life begins where the mark of the first says, and has little left to do.
            for _ in range(2):
                await Follower(name, sink, runtime.url, listener).run(until=size)
            await sink.open()
            await sink.settle()
            await sink.close()


def read_once(url: str) -> float:
    """Read every record's bytes; give the seconds."""
    started_s = time.perf_counter()
    copy = "COPY (SELECT position, address, record FROM events) TO STDOUT (FORMAT binary)"
    with psycopg.connect(url) as connection, connection.cursor().copy(copy) as stream:
        bytes_read = sum(len(block) for block in stream)
    assert bytes_read > 0
    return time.perf_counter() - started_s


def reconcile() -> list[Figure]:
    """Measure reading and reconciling in turns; give the medians."""

    async def measure() -> list[Figure]:
        async with open_warehouse(1) as (house, (clickhouse,)):
            url = house.runtime.url
            await open_wallets(house)
            await write(house.runtime, RECORDS)
            await follow(house.runtime, clickhouse)
            read_s: list[float] = []
            found: list[Comparison] = []
            for _ in range(ROUNDS):
                read_s.append(await asyncio.to_thread(read_once, url))
                found.append(await compare(url, clickhouse))
        assert all(one.is_clean and one.bound == one.log_size >= RECORDS for one in found), found[
            0
        ].found.listed
        ours_s = statistics.median(one.seconds for one in found)
        return [compared("billing.reconcile_1m", "s", ours_s, statistics.median(read_s))]

    return run(measure)


FIGURES = {"billing.reconcile_1m": reconcile}
