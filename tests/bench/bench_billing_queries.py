"""Measure what billing teams ask over ten million ledger entries: through the documented views and their rollups, with
FINAL over the entries, and over the entries plainly, which counts what was sent twice twice."""

from __future__ import annotations

import os
import random
import statistics
import time
from typing import NamedTuple

from ops.clickhouse import ClickHouse
from projections.groups import BILLING
from tests.bench.figures import Figure, run
from tests.bench.followed_log import open_warehouse

ROWS = int(os.environ.get("SOMA_BENCH_QUERY_ROWS", "10000000"))
PIECE = 1_000_000
TENANTS = 1_000
DAYS = 365
ROUNDS = 9
# One row of a hundred lies there twice, as after a crash.
TWICE = 100


class Question(NamedTuple):
    """One question in three forms: through a view, over `{entries}` read in two ways."""

    name: str
    view: str
    entries: str


NET = "sum(toDecimal256(amount, 9))"
MONTH = "day >= '2026-03-01' AND day < '2026-04-01'"
DAY = "day = '2026-03-10'"
TENANT = "tenant = 'tenant-0042'"
ACCOUNT = "account = 'wallet.tenant-0042.USD'"
QUESTIONS = (
    Question(
        "account_month",
        f"SELECT day, change, balance FROM bi.balances_daily WHERE {TENANT} AND {ACCOUNT} AND {MONTH} ORDER BY day",
        f"SELECT day, -{NET} FROM {{entries}} WHERE {TENANT} AND {ACCOUNT} AND {MONTH} GROUP BY day ORDER BY day",
    ),
    Question(
        "tenant_balance",
        f"SELECT account, balance FROM bi.balances WHERE {TENANT} ORDER BY account",
        f"SELECT account, -{NET} FROM {{entries}} WHERE {TENANT} GROUP BY account ORDER BY account",
    ),
    Question(
        "month_by_currency",
        f"SELECT currency, sum(entries), sum(credits) FROM bi.balances_daily WHERE {MONTH}"
        " GROUP BY currency ORDER BY 1",
        f"SELECT currency, count(), -sumIf(toDecimal256(amount, 9), amount < 0) FROM {{entries}} WHERE {MONTH}"
        " GROUP BY currency ORDER BY 1",
    ),
    Question(
        "day_top_accounts",
        f"SELECT account, entries FROM bi.balances_daily WHERE {DAY} ORDER BY entries DESC, account LIMIT 20",
        f"SELECT account, count() AS n FROM {{entries}} WHERE {DAY} GROUP BY account"
        " ORDER BY n DESC, account LIMIT 20",
    ),
)


async def load(clickhouse: ClickHouse) -> None:
    """Fill entries and accounts straight, some rows twice, and recompute the rollup from them."""
    for start in range(0, ROWS, PIECE):
        await _piece(clickhouse, start, min(ROWS, start + PIECE), 1)
        await _piece(clickhouse, start, min(ROWS, start + PIECE), TWICE)
    await clickhouse.command(
        "INSERT INTO soma.accounts SELECT DISTINCT account, tenant, purpose, currency, 'credit', false, 0, 0,"
        " toFixedString('', 64), toDateTime64('2026-01-01 00:00:00', 6, 'UTC') FROM soma.entries"
    )
    assert BILLING.rollup is not None
    await clickhouse.recompute(BILLING.rollup.statement("soma.entries_daily", "soma.entries", 0, ROWS))


async def _piece(clickhouse: ClickHouse, start: int, end: int, every: int) -> None:
    await clickhouse.command(
        "INSERT INTO soma.entries SELECT n AS position, 0,"
        " toFixedString(concat(SHA256(toString(n)), SHA256(reverse(toString(n)))), 64),"
        " toDateTime64('2026-01-01 00:00:00', 6, 'UTC') + toIntervalSecond(intDiv(n * 86400, {step:UInt64})) AS at,"
        " toDate(at) AS day, concat('tenant-', leftPad(toString(sipHash64(n) % {tenants:UInt64}), 4, '0')) AS tenant,"
        " concat('wallet.', tenant, '.', currency) AS account, 'wallet',"
        " if(sipHash64(n, 1) % 3 = 0, 'EUR', 'USD') AS currency,"
        " toDecimal128((toInt64(sipHash64(n, 2) % 2000000) - 1000000) / 100, 9), 'transfer', '', 'transfer.posted',"
        " concat('transfer/', toString(n)), tenant, 'bench'"
        " FROM (SELECT number AS n FROM numbers({start:UInt64}, {count:UInt64}) WHERE number % {every:UInt64} = 0)",
        {
            "start": start, "count": end - start, "every": every, "tenants": TENANTS, "step": max(1, ROWS // DAYS),
        },
    )  # fmt: skip


async def _asked(clickhouse: ClickHouse, statement: str) -> float:
    started_s = time.perf_counter()
    rows = await clickhouse.rows(statement)
    assert rows
    return (time.perf_counter() - started_s) * 1e3


async def _measure(clickhouse: ClickHouse) -> dict[tuple[str, str], float]:
    """Ask every question in every form, in random order, many times; give the medians in milliseconds."""
    forms = {}
    for question in QUESTIONS:
        forms[question.name, "view"] = question.view
        forms[question.name, "final"] = question.entries.format(entries="soma.entries FINAL")
        forms[question.name, "plain"] = question.entries.format(entries="soma.entries")
    taken: dict[tuple[str, str], list[float]] = {form: [] for form in forms}
    turns = [form for form in forms for _ in range(ROUNDS)]
    random.Random(7).shuffle(turns)
    for form in [*forms, *turns]:
        taken[form].append(await _asked(clickhouse, forms[form]))
    # The first of each warms up, and does not count.
    return {form: statistics.median(times[1:]) for form, times in taken.items()}


def queries() -> list[Figure]:
    """Measure each question through views; the baseline is FINAL, and plain stands beside."""

    async def measure() -> list[Figure]:
        async with open_warehouse(1) as (_, (clickhouse,)):
            await load(clickhouse)
            await clickhouse.command("SYSTEM STOP MERGES soma.entries")
            median_ms = await _measure(clickhouse)
        worst_ms = max(ms for (_, form), ms in median_ms.items() if form == "view")
        worst_final_ms = max(ms for (_, form), ms in median_ms.items() if form == "final")
        figures = [_figure("billing.query_10m", worst_ms, worst_final_ms, 50)]
        for question in QUESTIONS:
            view, final, plain = (median_ms[question.name, form] for form in ("view", "final", "plain"))
            figures.append(_figure(f"billing.query_10m_{question.name}", view, final, 50))
            figures.append(_figure(f"billing.query_10m_{question.name}_plain", plain, final))
        return figures

    return run(measure)


def _figure(name: str, value_ms: float, baseline_ms: float, most_ms: float | None = None) -> Figure:
    ratio = round(value_ms / baseline_ms, 3)
    return Figure(name, round(value_ms, 2), "ms", round(baseline_ms, 2), ratio, value_at_most=most_ms)


FIGURES = {"billing.query_10m": queries}
