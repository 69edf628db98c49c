"""A log to be followed: transfers, usage readings and offers, written in bulk; and a house with ClickHouse in it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from eventsourcing.persistence import StoredEvent

from domain.billing.accounts import Payment, account_name
from domain.billing.usage import Usage
from domain.book import payment
from domain.log.records import Event, Record, encode
from domain.market.intents import Intent
from domain.values import Money, moment_text
from ops.clickhouse import ClickHouse, clickhouse_places
from ops.clickhouse_migrate import migrate_clickhouse
from ops.runtime import Runtime
from tests.bench.figures import House, open_house

TENANTS = 200
SAVE = 4_000
# Ten days of an even trade.
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
SPAN_S = 10 * 86_400


class Warehouse(NamedTuple):
    """A house, and connections to a ClickHouse of its own."""

    house: House
    connections: Sequence[ClickHouse]


@asynccontextmanager
async def open_warehouse(connections: int = 4) -> AsyncIterator[Warehouse]:
    """Open an embedded PostgreSQL with a ledger, and an embedded ClickHouse with our tables."""
    async with open_house() as house, AsyncExitStack() as stack:
        service, _reader = await stack.enter_async_context(clickhouse_places(house.runtime.settings))
        opened = [await ClickHouse.found(service) for _ in range(connections)]
        for one in opened:
            stack.push_async_callback(one.close)
        await migrate_clickhouse(opened[0])
        yield Warehouse(house, opened)


async def fill(runtime: Runtime, count: int) -> None:
    """Write so many records: seven of ten move money, two are usage, one is of the market."""
    chance = random.Random(count)
    for start in range(0, count, SAVE):
        numbers = range(start, min(count, start + SAVE))
        events = [
            _stored(chance, number, BEGIN + timedelta(seconds=SPAN_S * number / count)) for number in numbers
        ]
        await asyncio.to_thread(runtime.recorder.insert_events, events)


def _stored(chance: random.Random, number: int, at: datetime) -> StoredEvent:
    kind = number % 10
    tenant = f"tenant-{chance.randrange(TENANTS):03d}"
    if kind < 7:
        stream, event = f"transfer/t{number:09d}", _transfer(chance, tenant)
    elif kind < 9:
        stream, event = f"usage/u{number:09d}", _reading(chance, number, at)
    else:
        stream, event = f"intent/i{number:09d}", _intent(chance)
    record = Record(
        actor="bench", at=moment_text(at), causation=None, correlation=f"c{number}", data=event, previous=None,
        schema=1, stream=stream, tenant=tenant, type=event.TOPIC, version=1,
    )  # fmt: skip
    return StoredEvent(stream, 1, event.TOPIC, encode(record))


def _transfer(chance: random.Random, tenant: str) -> Event:
    amount = Money.parse(f"{chance.randrange(1_000)}.{chance.randrange(10**9):09d}", "EUR")
    source = account_name("wallet", tenant, "EUR")
    target = account_name("wallet", f"tenant-{chance.randrange(TENANTS):03d}x", "EUR")
    entry = payment(source, target, amount)
    return Payment.Posted(source=source, target=target, amount=amount, memo="", money=[entry])


def _reading(chance: random.Random, number: int, at: datetime) -> Event:
    return Usage.Metered(
        source="gateway", event_id=str(number), occurred_at=moment_text(at), provider=f"p{chance.randrange(4)}",
        model=f"m{chance.randrange(12)}", rental_id=None, persona_id=None, tokens_in=chance.randrange(9_999),
        tokens_out=chance.randrange(9_999), cached_tokens=None, requests=1, latency_ms=chance.randrange(2_000),
        cost=Money.parse(f"0.{chance.randrange(10**9):09d}", "USD"), status="ok",
    )  # fmt: skip


def _intent(chance: random.Random) -> Event:
    return Intent.Opened(
        round_id="", model_owner_id="bench", task_type="classification", required_modalities=["tabular"],
        min_quality_score="0.5", budget_total=Money.parse(str(chance.randrange(1, 999)), "EUR"), currency="EUR",
        deadline_ts="2027-01-01T00:00:00.000000Z", max_per_seller=None,
    )  # fmt: skip
