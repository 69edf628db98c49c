"""A log to be followed: transfers, usage readings and offers, written in bulk; and a house with ClickHouse in it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from eventsourcing.persistence import StoredEvent

from domain.billing.accounts import Account, Payment, account_name
from domain.billing.usage import Usage
from domain.book import Open, payment
from domain.log.records import Event, MoneyEvent, Record, encode
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
    """Write so many records: seven of ten move money, two are usage, one is of the market; the book is kept."""
    chance = random.Random(count)
    await _save(runtime, [_opened(f"tenant-{n:03d}{end}") for n in range(TENANTS) for end in ("", "x")])
    for start in range(2 * TENANTS, count, SAVE):
        numbers = range(start, min(count, start + SAVE))
        await _save(
            runtime, [_written(chance, n, BEGIN + timedelta(seconds=SPAN_S * n / count)) for n in numbers]
        )


async def _save(runtime: Runtime, written: Sequence[tuple[StoredEvent, Event]]) -> None:
    entries = [(n, event.money) for n, (_, event) in enumerate(written) if isinstance(event, MoneyEvent)]
    await asyncio.to_thread(
        runtime.recorder.insert_events, [stored for stored, _ in written], entries=entries
    )


def _opened(tenant: str) -> tuple[StoredEvent, Event]:
    name = account_name("wallet", tenant, "EUR")
    entry = Open(account=name, currency="EUR", side="credit", overdraft=True)
    event = Account.Opened(purpose="wallet", currency="EUR", side="credit", money=[entry])
    return _stored(f"account/{name}", event, tenant, BEGIN), event


def _written(chance: random.Random, number: int, at: datetime) -> tuple[StoredEvent, Event]:
    kind = number % 10
    tenant = f"tenant-{chance.randrange(TENANTS):03d}"
    event: Event
    if kind < 7:
        stream, event = f"transfer/t{number:09d}", _transfer(chance, tenant)
    elif kind < 9:
        stream, event = f"usage/u{number:09d}", _reading(chance, number, at)
    else:
        stream, event = f"intent/i{number:09d}", _intent(chance)
    return _stored(stream, event, tenant, at), event


def _stored(stream: str, event: Event, tenant: str, at: datetime) -> StoredEvent:
    record = Record(
        actor="bench", at=moment_text(at), causation=None, correlation=stream, data=event, previous=None,
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
