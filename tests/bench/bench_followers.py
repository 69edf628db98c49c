"""Measure the followers of ClickHouse: against inserting the same columns directly, live under load, and a rebuild."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import httpx
import pyarrow as pa
from prometheus_client.parser import text_string_to_metric_families

from ops.clickhouse import ClickHouse
from ops.interpreter import settle_for_followers
from ops.listen import Listener
from ops.postgres import connect_owner
from ops.runtime import Runtime
from projections.columns import by_month
from projections.follower import Follower, cut
from projections.groups import GROUPS, NOTHING
from projections.rebuild import rebuild
from projections.warehouse import PROJECTIONS, Warehouse
from tests.bench.bench_transfers import fill as open_wallets
from tests.bench.bench_transfers import pairs
from tests.bench.figures import Figure, compared, run
from tests.bench.followed_log import fill, open_warehouse

RECORDS = 200_000
TURNS = 3
REBUILT = 1_000_000
RATE_PER_S = 1_000
LIVE_S = 30

# The log that is measured holds no persona and no customer; the followers of these would pass it by.
MEASURED = tuple(name for name in PROJECTIONS if name not in ("clickhouse.governance", "clickhouse.commerce"))

Parts = list[tuple[str, pa.Table]]


# --------------------------------------------------------------------------- throughput


async def follow_all(
    runtime: Runtime, connections: Sequence[ClickHouse], size: int, names: Sequence[str] = MEASURED
) -> float:
    """Let followers read the whole log into their tables; give the seconds until the last is done."""
    settle_for_followers()
    async with Listener(runtime.url) as listener:

        async def one(name: str, clickhouse: ClickHouse) -> None:
            sink = Warehouse(name, runtime.url, clickhouse, runtime.reader.versions)
            await Follower(name, sink, runtime.url, listener).run(until=size)

        started = time.perf_counter()
        await asyncio.gather(*(one(n, c) for n, c in zip(names, connections, strict=False)))
        return time.perf_counter() - started


async def columns_of(runtime: Runtime, size: int) -> dict[str, Parts]:
    """Make the columns of every batch beforehand: what the direct inserts of the baseline send."""
    told: dict[str, Parts] = {name: [] for name in MEASURED}
    position = 0
    while position < size:
        end = cut(position, size)
        stored = await runtime.reader.span(position, end)
        for name in MEASURED:
            group = GROUPS[name]
            tables = group.tell(group.read(stored), NOTHING)
            told[name] += [
                (shape.name, part) for shape in group.shapes for part in by_month(shape, tables[shape.name])
            ]
        position = end
    return told


async def insert_all(
    told: dict[str, Parts], connections: Sequence[ClickHouse], names: Sequence[str] = MEASURED
) -> float:
    """Insert columns that are ready into empty tables of the same shape; give the seconds."""
    for table in {table for name in names for table, _ in told[name]}:
        await connections[0].command(f"CREATE OR REPLACE TABLE soma.{table}_direct AS soma.{table}")

    async def one(parts: Parts, clickhouse: ClickHouse) -> None:
        for table, part in parts:
            await clickhouse.insert(f"soma.{table}_direct", part)

    started = time.perf_counter()
    await asyncio.gather(*(one(told[n], c) for n, c in zip(names, connections, strict=False)))
    return time.perf_counter() - started


async def forget(runtime: Runtime, clickhouse: ClickHouse) -> None:
    """Let the followers start over with empty tables."""
    for group in GROUPS.values():
        for table in group.tables:
            await clickhouse.command(f"TRUNCATE TABLE soma.{table}")
    await clickhouse.command("TRUNCATE TABLE soma.watermarks")
    with connect_owner(runtime.url) as connection:
        connection.execute("DELETE FROM followers")


def throughput() -> list[Figure]:
    """Measure all four followers at once, then each alone, and the direct inserts of the columns they make."""

    async def measure() -> list[Figure]:
        async with open_warehouse() as (house, connections):
            await fill(house.runtime, RECORDS)
            size = await house.runtime.reader.size()
            told = await columns_of(house.runtime, size)
            turns: dict[str, tuple[list[float], list[float]]] = {}
            for _ in range(TURNS):
                for label, names in [
                    ("", MEASURED),
                    *((f"_{n.partition('.')[2]}", [n]) for n in MEASURED),
                ]:
                    ours, direct = turns.setdefault(label, ([], []))
                    direct.append(size / await insert_all(told, connections, names))
                    await forget(house.runtime, connections[0])
                    ours.append(size / await follow_all(house.runtime, connections, size, names))
        return [
            compared(
                f"followers.clickhouse{label}",
                "records/s",
                statistics.median(ours),
                statistics.median(direct),
                at_least=None if label else 0.5,
            )
            for label, (ours, direct) in turns.items()
        ]

    return run(measure)


# --------------------------------------------------------------------------- lag


def lag() -> list[Figure]:
    """Measure how old the oldest record of a batch is when it is applied, at 1,000 records a second."""

    async def measure() -> list[Figure]:
        async with open_warehouse(1) as (house, _):
            await open_wallets(house)
            settings = house.runtime.settings
            words = [
                sys.executable,
                "-m",
                "api.cli",
                "follow",
                "--data-dir",
                str(settings.data_dir),
                "clickhouse",
            ]
            child = subprocess.Popen(  # noqa: ASYNC220 - it starts once, before anything is measured
                [*words, "--metrics-port", "0"], stderr=subprocess.PIPE, text=True
            )
            try:
                url = await asyncio.to_thread(_metrics_url, child)
                await asyncio.sleep(8)
                before = _buckets(url)
                written, seconds = await _write(house.runtime)
                await asyncio.sleep(2)
                after = _buckets(url)
            finally:
                child.terminate()
                await asyncio.to_thread(child.wait)
        counts = {edge: after[edge] - before.get(edge, 0) for edge in after}
        p50, p95 = quantile(counts, 0.5), quantile(counts, 0.95)
        return [
            Figure("followers.lag_p95", p95, "s", 1.0, round(p95, 3), value_at_most=1.0),
            Figure("followers.lag_p50", p50, "s", 1.0, round(p50, 3)),
            Figure("followers.lag_written", round(written / seconds), "records/s", RATE_PER_S, 1.0),
        ]

    return run(measure)


def _metrics_url(child: subprocess.Popen[str]) -> str:
    assert child.stderr is not None
    url = child.stderr.readline().split()[-1]
    # Whatever it says from here on is read away, so that it never waits for a reader.
    import threading

    threading.Thread(target=lambda: [None for _ in child.stderr or ()], daemon=True).start()
    return url


def _buckets(url: str) -> dict[float, float]:
    """Read how many batches had at most each age, over all followers."""
    found: dict[float, float] = {}
    for family in text_string_to_metric_families(httpx.get(url, trust_env=False).text):
        for sample in family.samples:
            if sample.name == "soma_follower_lag_bucket":
                edge = float(sample.labels["le"])
                found[edge] = found.get(edge, 0) + sample.value
    return found


def quantile(cumulative: dict[float, float], share: float) -> float:
    """Read a quantile off a histogram, as Prometheus does: evenly within a bucket."""
    edges = sorted(cumulative)
    wanted, low, below = cumulative[edges[-1]] * share, 0.0, 0.0
    for edge in edges:
        if cumulative[edge] >= wanted:
            inside = cumulative[edge] - below
            return round(low + (edge - low) * (wanted - below) / inside, 3)
        low, below = edge, cumulative[edge]
    raise AssertionError("no batch was applied")


async def _write(runtime: Runtime) -> tuple[int, float]:
    """Write transfers at an even rate; give how many in how long."""
    from domain.billing import accounts
    from domain.ledger import Caller
    from domain.values import Money

    draw, amount, pending = pairs(3), Money.parse("0.01", "EUR"), set()
    before = await runtime.reader.size()
    started = time.perf_counter()
    for number in range(RATE_PER_S * LIVE_S):
        source, target = draw()
        command = accounts.TransferMoney(to_tenant=f"tenant-{target:02d}", amount=amount)
        caller = Caller("owner", f"tenant-{source:02d}", frozenset({"owner"}))
        pending.add(task := asyncio.ensure_future(runtime.ledger.act(accounts.transfer, command, caller)))
        task.add_done_callback(pending.discard)
        if number % 20 == 19:
            await asyncio.sleep(max(0, (number + 1) / RATE_PER_S - (time.perf_counter() - started)))
    await asyncio.gather(*pending)
    return await runtime.reader.size() - before, time.perf_counter() - started


# --------------------------------------------------------------------------- rebuild


def rebuild_1m() -> list[Figure]:
    """Measure rebuilds of the mirror and of billing beside the live tables, over a million records."""

    async def measure() -> list[Figure]:
        async with open_warehouse() as (house, connections):
            await fill(house.runtime, REBUILT)
            size = await house.runtime.reader.size()
            first_s = await follow_all(house.runtime, connections, size)
            figures = []
            for name in ("clickhouse.records", "clickhouse.billing"):
                started = time.perf_counter()
                await rebuild(connections[0], house.runtime.url, name, lambda position, size: None)
                taken_s = time.perf_counter() - started
                label = f"followers.rebuild_1m_{name.partition('.')[2]}"
                figures.append(
                    Figure(label, round(taken_s, 2), "s", round(first_s, 2), round(taken_s / first_s, 3))
                )
        return figures

    return run(measure)


FIGURES = {
    "followers.clickhouse": throughput,
    "followers.lag": lag,
    "followers.rebuild_1m": rebuild_1m,
}
