"""Measure the billing of a month of a million readings of a hundred customers against reading their bytes once.

What comes out is held against an addition in decimals that knows nothing of lines, prices or the log.
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

from domain.billing.accounts import Deposit, deposit
from domain.billing.customers import Enroll, enroll
from domain.billing.price_books import PublishPrices, publish_prices
from domain.billing.usage import MeterUsage, Reading, meter_usage
from domain.ledger import Caller
from domain.values import Money, moment_text
from ops.reads import RecordFilter
from ops.runtime import Runtime
from projections.billing_run import BillingRun
from tests.bench.bench_reconcile import read_once
from tests.bench.figures import Figure, compared, open_house, run
from tests.unit.billing.billing_maker import CHARGES

READINGS = int(os.environ.get("SOMA_BENCH_BILLING_READINGS", "1000000"))
CUSTOMERS = 100
PART = 1_000
AT_ONCE = 4
BOOKS = Caller("books", "platform", frozenset({"operator", "billing"}))
CENT = Decimal("0.01")
NAMES = [f"tenant-{n:03d}" for n in range(CUSTOMERS)]


class Sums:
    """What a customer used, as its sender added it up."""

    def __init__(self) -> None:
        self.tokens_in = self.tokens_out = self.requests = 0

    @property
    def due(self) -> Decimal:
        """Price the sums by hand: 500 tokens are free, 100,000 at 0.01 and the rest at 0.007 a thousand."""
        counted = max(0, self.tokens_in - 500)
        dear = min(counted, 100_000)
        lines = [
            Decimal(10),
            (dear * Decimal("0.01") + (counted - dear) * Decimal("0.007")) / 1_000,
            self.tokens_out * Decimal("0.03") / 1_000,
            (Decimal(self.requests) / 100).to_integral_value(ROUND_CEILING) * Decimal("0.5"),
        ]
        rounded = sum(line.quantize(CENT, ROUND_HALF_EVEN) for line in lines)
        return rounded + (sum(lines) - rounded).quantize(CENT, ROUND_HALF_EVEN)


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


async def use(runtime: Runtime, first: datetime) -> dict[str, Sums]:
    """Take readings of a month in; give what was used."""
    draw, sums = random.Random(5), defaultdict[str, Sums](Sums)
    parts = iter(range(READINGS // PART))

    def reading(number: str) -> Reading:
        name, model = draw.choice(NAMES), draw.choice(["m1", "m2", "m3"])
        tokens_in, tokens_out = draw.randrange(4_000), draw.randrange(900)
        sums[name].tokens_in += tokens_in if model == "m1" else 0
        sums[name].tokens_out += tokens_out
        sums[name].requests += 1
        return Reading(
            source="bench", event_id=number, provider="p", model=model, tokens_in=tokens_in, tokens_out=tokens_out,
            tenant=name, occurred_at=moment_text(first + timedelta(seconds=draw.randrange(26 * 86_400))),
        )  # fmt: skip

    async def send() -> None:
        for part in parts:
            readings = [reading(f"{part}-{n}") for n in range(PART)]
            await runtime.ledger.act(meter_usage, MeterUsage(readings=readings), BOOKS)

    await asyncio.gather(*(send() for _ in range(AT_ONCE)))
    return sums


def bill() -> list[Figure]:
    """Measure one run that bills and collects a month; a second one must write nothing."""

    async def measure() -> list[Figure]:
        async with open_house() as house:
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
            sums = await use(runtime, first)
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
            invoices = await runtime.reader.records(RecordFilter("invoice"), before=None, limit=500)
        for made in invoices:
            assert Decimal(made["bill"]["due"]["amount"]) == sums[made["tenant"]].due, made["tenant"]
        memory = Figure("billing.run_1m_memory", round(more_mb, 1), "MB more", 0.0, 0.0)
        return [compared("billing.run_1m", "s", run_s, read_s), memory]

    return run(measure)


FIGURES = {"billing.run_1m": bill}
