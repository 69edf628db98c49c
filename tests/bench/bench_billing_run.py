"""Measure the billing of a month of a million readings of a hundred customers against reading their bytes once.

What comes out is held against an addition in decimals that knows nothing of lines, prices or the log, and against what
ClickHouse sums up; some readings are then put right, their invoices are corrected, and all of it is reconciled.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
from typing import Any

from domain.billing.accounts import Deposit, deposit
from domain.billing.customers import Enroll, enroll
from domain.billing.price_books import PublishPrices, publish_prices
from domain.billing.usage import CorrectUsage, MeterUsage, Reading, correct_usage, meter_usage, usage_name
from domain.ledger import Caller
from domain.values import Money, moment_text
from ops.clickhouse import ClickHouse
from ops.reads import RecordFilter
from ops.runtime import Runtime
from projections.billing_run import BillingRun
from projections.reconcile import Comparison, compare
from tests.bench.bench_reconcile import follow, read_once
from tests.bench.figures import Figure, compared, run
from tests.bench.followed_log import open_warehouse
from tests.unit.billing.billing_maker import CHARGES

READINGS = int(os.environ.get("SOMA_BENCH_BILLING_READINGS", "1000000"))
CUSTOMERS = 100
PART = 1_000
AT_ONCE = 4
# How many readings are put right after they were billed.
CORRECTIONS = 40
BOOKS = Caller("books", "platform", frozenset({"operator", "billing"}))
CENT = Decimal("0.01")
NAMES = [f"tenant-{n:03d}" for n in range(CUSTOMERS)]
MODELS = ("m1", "m2", "m3")
# What is counted by which charge: the column, and the models it is for.
COUNTED = {"in": (0, ("m1",)), "out": (1, MODELS), "calls": (2, MODELS)}


class Sums:
    """What a customer used, as its sender added it up: tokens in, tokens out and requests, by model."""

    def __init__(self) -> None:
        self.by_model = {model: [0, 0, 0] for model in MODELS}

    def add(self, model: str, tokens_in: int, tokens_out: int, requests: int = 1) -> None:
        """Add a reading."""
        self.by_model[model] = [
            a + b for a, b in zip(self.by_model[model], (tokens_in, tokens_out, requests), strict=True)
        ]

    def counted(self, charge: str) -> int:
        """Give what a charge counts."""
        place, models = COUNTED[charge]
        return sum(self.by_model[model][place] for model in models)

    @property
    def due(self) -> Decimal:
        """Price the sums by hand: 500 tokens are free, 100,000 at 0.01 and the rest at 0.007 a thousand."""
        counted = max(0, self.counted("in") - 500)
        dear = min(counted, 100_000)
        lines = [
            Decimal(10),
            (dear * Decimal("0.01") + (counted - dear) * Decimal("0.007")) / 1_000,
            self.counted("out") * Decimal("0.03") / 1_000,
            (Decimal(self.counted("calls")) / 100).to_integral_value(ROUND_CEILING) * Decimal("0.5"),
        ]
        rounded = sum((line.quantize(CENT, ROUND_HALF_EVEN) for line in lines), Decimal(0))
        return rounded + (sum(lines, Decimal(0)) - rounded).quantize(CENT, ROUND_HALF_EVEN)


class Used:
    """What was sent: its sums by customer, and some readings to be put right."""

    def __init__(self) -> None:
        self.sums = defaultdict[str, Sums](Sums)
        self.kept: list[Reading] = []


class Passing:
    """A clock that is set ahead."""

    def __init__(self, runtime: Runtime) -> None:
        self._ahead = timedelta()
        runtime.clock._now_ns = lambda: time.time_ns() + int(self._ahead.total_seconds() * 10**9)

    def go_to(self, moment: datetime) -> None:
        """Let time pass until a moment."""
        self._ahead = moment - datetime.now(UTC)


async def enroll_all(runtime: Runtime, first: datetime) -> None:
    """Make customers whose month begins on a day, with money."""
    for name in NAMES:
        customer = Enroll(tenant=name, book="platform.standard", anchor=first.date().isoformat(), grace_s=0)
        await runtime.ledger.act(enroll, customer, BOOKS)
        money = Deposit(tenant=name, amount=Money.parse("1000000", "USD"))
        await runtime.ledger.act(deposit, money, BOOKS)


async def use(runtime: Runtime, first: datetime) -> Used:
    """Take readings of a month in; give what was used."""
    draw, used = random.Random(5), Used()
    parts = iter(range(READINGS // PART))

    def reading(number: str) -> Reading:
        name, model = draw.choice(NAMES), draw.choice(MODELS)
        tokens_in, tokens_out = draw.randrange(4_000), draw.randrange(900)
        used.sums[name].add(model, tokens_in, tokens_out)
        return Reading(
            source="bench", event_id=number, provider="p", model=model, tokens_in=tokens_in, tokens_out=tokens_out,
            tenant=name, occurred_at=moment_text(first + timedelta(seconds=draw.randrange(26 * 86_400))),
        )  # fmt: skip

    async def send() -> None:
        for part in parts:
            readings = [reading(f"{part}-{n}") for n in range(PART)]
            used.kept += readings[: max(1, CORRECTIONS - len(used.kept))] if not part else []
            await runtime.ledger.act(meter_usage, MeterUsage(readings=readings), BOOKS)

    await asyncio.gather(*(send() for _ in range(AT_ONCE)))
    return used


async def put_right(runtime: Runtime, used: Used) -> set[str]:
    """Correct readings that were billed: counts and model; give whose they were."""
    for number, reading in enumerate(used.kept):
        assert reading.tenant is not None
        sums, model = used.sums[reading.tenant], MODELS[number % len(MODELS)]
        command = CorrectUsage(
            usage_id=usage_name(reading.tenant, reading.source, reading.event_id),
            replaces=1,
            reason="counted wrongly",
            model=model,
            tokens_out=reading.tokens_out + 100_000,
        )
        await runtime.ledger.act(correct_usage, command, BOOKS)
        sums.add(reading.model, -reading.tokens_in, -reading.tokens_out, -1)
        sums.add(model, reading.tokens_in, reading.tokens_out + 100_000)
    return {reading.tenant or "" for reading in used.kept}


async def documents(runtime: Runtime) -> dict[str, dict[str, Any]]:
    """Read the document of each customer that holds now."""
    made = await runtime.reader.records(RecordFilter("invoice"), before=None, limit=500)
    return {one["tenant"]: one for one in made if one["corrected_by"] is None}


async def check(runtime: Runtime, clickhouse: ClickHouse, sums: dict[str, Sums]) -> Comparison:
    """Hold what was billed, what ClickHouse sums up and what was sent against each other, and reconcile."""
    held = await documents(runtime)
    assert held.keys() == sums.keys()
    for name, made in held.items():
        assert Decimal(made["bill"]["due"]["amount"]) == sums[name].due, name
        quantities = {line["charge"]: line["quantity"] for line in made["bill"]["lines"]}
        assert {charge: quantities[charge] for charge in COUNTED} == {
            charge: str(sums[name].counted(charge)) for charge in COUNTED
        }, name
    await follow(runtime, clickhouse)
    used = await clickhouse.rows(
        "SELECT tenant, provider, model, sum(tokens_in), sum(tokens_out), sum(requests) FROM bi.usage_hourly"
        " GROUP BY tenant, provider, model"
    )
    sent = {(name, "p", model): tuple(one.by_model[model]) for name, one in sums.items() for model in MODELS}
    assert {row[:3]: row[3:] for row in used} == {key: counts for key, counts in sent.items() if any(counts)}
    billed = await clickhouse.rows(
        "SELECT tenant, charge, sum(quantity) FROM bi.invoice_lines WHERE charge != 'base' GROUP BY tenant, charge"
    )
    assert {(name, charge): quantity for name, charge, quantity in billed} == {
        (name, charge): one.counted(charge) for name, one in sums.items() for charge in COUNTED
    }
    found = await compare(runtime.url, clickhouse)
    assert found.is_clean, found.found.listed
    assert found.bound == found.log_size
    return found


def bill() -> list[Figure]:
    """Measure one run that bills and collects a month; a second one must write nothing."""

    async def measure() -> list[Figure]:
        async with open_warehouse(1) as (house, (clickhouse,)):
            runtime = house.runtime
            clock = Passing(runtime)
            first = (
                datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0) + timedelta(days=40)
            ).replace(day=1, microsecond=0)
            clock.go_to(first - timedelta(hours=1))
            prices = PublishPrices(book="standard", currency="USD", charges=CHARGES)
            await runtime.ledger.act(publish_prices, prices, BOOKS)
            clock.go_to(first + timedelta(hours=1))
            await enroll_all(runtime, first)
            clock.go_to(first + timedelta(days=27))
            used = await use(runtime, first)
            clock.go_to(first + timedelta(days=35))
            read_s = await asyncio.to_thread(read_once, runtime.url)
            before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            started_s = time.perf_counter()
            tally = await BillingRun(runtime).run()
            run_s = time.perf_counter() - started_s
            more_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1_024
            assert tally[:5] == (CUSTOMERS, 0, 0, CUSTOMERS, 0), tally
            size = await runtime.reader.size()
            assert not any(await BillingRun(runtime).run())
            assert await runtime.reader.size() == size
            found = await check(runtime, clickhouse, used.sums)
            corrected = await put_right(runtime, used)
            assert (await BillingRun(runtime).run()).corrected == len(corrected)
            await check(runtime, clickhouse, used.sums)
        memory = Figure("billing.run_1m_memory", round(more_mb, 1), "MB more", 0.0, 0.0)
        reconciled = compared("billing.reconcile_usage_1m", "s", found.seconds, read_s)
        return [compared("billing.run_1m", "s", run_s, read_s), memory, reconciled]

    return run(measure)


FIGURES = {"billing.run_1m": bill}
