"""A small log with money, usage and a market, projected by the real followers, to be damaged and compared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from domain.billing.accounts import Deposit, TransferMoney, deposit, transfer
from domain.billing.usage import MeterUsage, meter_usage
from domain.ledger import Caller
from domain.values import Money
from ops.clickhouse import ClickHouse, as_service
from ops.clickhouse_migrate import migrate_clickhouse
from ops.clock import Clock
from ops.engine.process import Target
from ops.reconcile_views import mend_views, view_statements, wrong_views
from ops.runtime import Runtime, open_runtime
from ops.settings import Settings
from projections.follower import BATCH_MAX, Batch, cut
from projections.reconcile import WHOLE, Comparison, Scope, compare
from projections.warehouse import Warehouse

TELLER = Caller("tess", "platform", frozenset({"billing", "operator", "service"}))
TENANTS = ("acme", "bolt", "cube", "dune")
COMPARED = ("clickhouse.records", "clickhouse.billing", "clickhouse.usage", "clickhouse.commerce")


class World:
    """An open ledger and the ClickHouse that follows it."""

    def __init__(self, runtime: Runtime, clickhouse: ClickHouse) -> None:
        self.runtime = runtime
        self.clickhouse = clickhouse

    # ------------------------------------------------------------------ writing

    async def open_wallets(self) -> None:
        for tenant in TENANTS:
            for currency in ("USD", "EUR"):
                money = Deposit(tenant=tenant, amount=Money.parse("1000", currency), memo="opening")
                await self.runtime.ledger.act(deposit, money, TELLER)

    async def pay(self, number: int) -> None:
        payer, payee = TENANTS[number % 4], TENANTS[(number + 1 + number % 3) % 4]
        if payer == payee:
            payee = TENANTS[(number + 1) % 4]
        amount = Money.parse(f"0.{number % 97 + 1:03d}", "USD" if number % 2 else "EUR")
        await self.runtime.ledger.act(
            transfer,
            TransferMoney(to_tenant=payee, amount=amount, memo=f"payment {number}"),
            Caller("olga", payer, frozenset({"owner"})),
        )

    async def pay_many(self, count: int) -> None:
        for first in range(0, count, 50):
            await asyncio.gather(*(self.pay(n) for n in range(first, min(count, first + 50))))

    async def use(self, count: int) -> None:
        readings = [
            {
                "source": "gateway", "event_id": f"e-{n}", "occurred_at": self.runtime.clock(), "provider": f"p{n % 3}",
                "model": f"m{n % 2}", "tokens_in": 10 + n, "tokens_out": n, "tenant": TENANTS[n % 4],
                "latency_ms": None if n % 5 == 0 else 7 * n, "status": "error" if n % 11 == 0 else "ok",
                "cost": None if n % 4 == 0 else {"amount": f"0.00{n % 9 + 1}", "currency": "USD"},
            }
            for n in range(count)
        ]  # fmt: skip
        await self.runtime.ledger.act(meter_usage, MeterUsage(readings=readings), TELLER)

    # ------------------------------------------------------------------ following

    async def follow(self, names: Sequence[str] = COMPARED, batch_max: int = BATCH_MAX) -> None:
        """Apply what is new, and let everything settle."""
        for name in names:
            sink = Warehouse(name, self.runtime.url, self.clickhouse, self.runtime.reader.versions)
            try:
                await self._apply(sink, batch_max)
            finally:
                await sink.close()

    async def _apply(self, sink: Warehouse, batch_max: int) -> None:
        position, size = await sink.open(), await self.runtime.reader.size()
        while position < size:
            end = cut(position, size, batch_max)
            await sink.apply(Batch(position, await self.runtime.reader.span(position, end)))
            position = end
        await sink.settle()

    # ------------------------------------------------------------------ damage

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return await self.clickhouse.rows(sql)

    async def delete(self, table: str, where: str) -> None:
        await self.clickhouse.command(
            f"ALTER TABLE soma.{table} DELETE WHERE {where} SETTINGS mutations_sync = 2"
        )

    async def replace(self, table: str, where: str, **columns: str) -> None:
        """Put rows in the place of others, with some columns altered; any column may be, also of the key."""
        await self.replace_each(table, [(where, columns)])

    async def replace_each(self, table: str, wanted: Sequence[tuple[str, Mapping[str, str]]]) -> None:
        """Do that for several rows at once."""
        await self.clickhouse.command(
            f"CREATE TABLE soma.damaged ENGINE = Memory EMPTY AS SELECT * FROM soma.{table}"
        )
        for where, columns in wanted:
            await self.clickhouse.command(f"INSERT INTO soma.damaged {_altered(table, where, columns)}")
        await self.delete(table, " OR ".join(f"({where})" for where, _ in wanted))
        await self.clickhouse.command(f"INSERT INTO soma.{table} SELECT * FROM soma.damaged")
        await self.clickhouse.command("DROP TABLE soma.damaged SYNC")

    async def add(self, table: str, where: str, **columns: str) -> None:
        """Put altered copies of rows beside them."""
        await self.clickhouse.command(f"INSERT INTO soma.{table} {_altered(table, where, columns)}")

    async def legs_of(self, account: str, currency: str = "USD") -> list[int]:
        """List the positions of an account's entries."""
        rows = await self.rows(
            f"SELECT position FROM soma.entries FINAL WHERE account = '{account}'"
            f" AND currency = '{currency}' ORDER BY position"
        )
        return [int(row[0]) for row in rows]

    # ------------------------------------------------------------------ comparing

    async def compare(self, scope: Scope = WHOLE) -> Comparison:
        return await compare(self.runtime.url, self.clickhouse, scope)

    async def address_at(self, position: int) -> str:
        return "sha3-512:" + (await self.runtime.reader.at(position)).address.hex()


@asynccontextmanager
async def world(
    database_url: str, data_dir: Path, target: Target, payments: int = 200, clock: Clock | None = None
) -> AsyncIterator[World]:
    """Open a world whose log is followed to its end."""
    settings = Settings(database_url=SecretStr(database_url), data_dir=data_dir)
    clickhouse = await ClickHouse.open(*as_service(target))
    try:
        await migrate_clickhouse(clickhouse)
        await _empty(clickhouse)
        async with open_runtime(settings, clock=clock) as runtime:
            told = World(runtime, clickhouse)
            if payments:
                await told.open_wallets()
                await told.pay_many(payments)
                await told.use(60)
                await told.follow()
            yield told
    finally:
        await clickhouse.close()


def _altered(table: str, where: str, columns: Mapping[str, str]) -> str:
    changed = ", ".join(f"{value} AS {name}" for name, value in columns.items())
    return f"SELECT * REPLACE ({changed}) FROM (SELECT * FROM soma.{table} FINAL WHERE {where})"


async def _empty(clickhouse: ClickHouse) -> None:
    """Take out what an earlier test left; making all tables again would take longer than most tests."""
    for (name,) in await clickhouse.rows(
        "SELECT name FROM system.tables WHERE database = 'soma' AND name <> 'schema_migrations' AND total_rows > 0"
    ):
        await clickhouse.command(f"TRUNCATE TABLE soma.{name} SYNC")
    for name in ("kept", "damaged"):
        await clickhouse.command(f"DROP TABLE IF EXISTS soma.{name} SYNC")
    for (name,) in await clickhouse.rows("SELECT name FROM system.tables WHERE database = 'bi'"):
        if name not in view_statements():
            await clickhouse.command(f"DROP TABLE bi.{name} SYNC")
    _, wrong = await wrong_views(clickhouse)
    await mend_views(clickhouse, [view.name for view in wrong])
