"""Reconciliation over days of commerce: clean where nothing is wrong, and what is damaged in corrected usage named."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from domain.billing.reconciliation import Difference
from ops.engine.process import EmbeddedClickHouse
from projections.reconcile import Comparison
from projections.reconciliations import repair
from tests.real.clickhouse.commerce_world import Shop, Time, days_of_commerce
from tests.real.clickhouse.reconciled import World, world

Story = Callable[[World, Shop], Awaitable[None]]
Tell = Callable[[Story], None]


@pytest.fixture
def tell(database_url: str, tmp_path: Path, engine: EmbeddedClickHouse) -> Tell:
    """Play a story after days of commerce in a world of its own."""

    def play(story: Story) -> None:
        async def run() -> None:
            time = Time()
            async with world(database_url, tmp_path, engine.target, payments=0, clock=time.clock) as told:
                shop = Shop(told, time)
                await days_of_commerce(shop)
                await story(told, shop)

        asyncio.run(run())

    return play


def only(found: Comparison, kind: str) -> Difference:
    """Give the one difference there is."""
    assert [d.kind for d in found.found.listed] == [kind], found.found.listed
    return found.found.listed[0]


async def place_of(told: World, where: str) -> int:
    """Find a row of usage."""
    ((position,),) = await told.rows(f"SELECT min(position) FROM soma.usage FINAL WHERE {where}")
    return int(position)


async def mend(told: World, found: Comparison) -> None:
    """Put right what was found, and see that nothing differs any more."""
    await repair(told.runtime, told.clickhouse, found)
    again = await told.compare()
    assert again.is_clean, again.found.listed


def test_after_days_of_commerce_everything_agrees_also_while_they_go_on(tell: Tell) -> None:
    async def story(told: World, shop: Shop) -> None:
        found = await told.compare()
        assert found.is_clean, found.found.listed
        assert found.bound == found.log_size == await told.runtime.reader.size()
        # 49 readings, and two rows for each of six corrections.
        assert found.rows["usage"] == 49 + 2 * 6
        # More comes, and the tables are behind in the middle of a reading's life.
        (name,) = await shop.use(1)
        await shop.correct(name, tokens_in=5)
        await told.follow()
        await shop.correct(name, 2, tokens_in=6, model="m7")
        await shop.bill()
        assert (await told.compare()).is_clean
        await told.follow(batch_max=1)
        found = await told.compare()
        assert found.is_clean, found.found.listed
        assert found.rows["usage"] == 49 + 2 * 6 + 1 + 2 * 2

    tell(story)


def test_damage_in_what_was_put_right_is_named_and_mended(tell: Tell) -> None:
    async def story(told: World, shop: Shop) -> None:
        # What a correction takes back is altered: the sums of its hour are wrong by what nobody else says.
        position = await place_of(told, "sign = -1 AND tokens_in > 0")
        await told.replace("usage", f"position = {position} AND leg = 0", tokens_in="tokens_in - 1")
        found = await told.compare()
        named = only(found, "altered")
        assert (named.table, named.position, [c.column for c in named.changes]) == (
            "usage",
            position,
            ["tokens_in"],
        )
        await mend(told, found)
        # What it takes back is added instead.
        await told.replace("usage", f"position = {position} AND leg = 0", sign="toInt8(1)")
        assert [c.column for c in only(await told.compare(), "altered").changes] == ["sign"]
        await told.replace("usage", f"position = {position} AND leg = 0", sign="toInt8(-1)")
        # What holds instead is missing.
        position = await place_of(told, "leg = 1 AND version = 3")
        await told.delete("usage", f"position = {position} AND leg = 1")
        found = await told.compare()
        named = only(found, "missing")
        assert (named.table, named.position, named.rows) == ("usage", position, 1)
        await mend(told, found)
        # Its hour was not summed up again.
        await told.replace("usage_hourly", "latency_max = 10000000", latency_max="latency_max - 1")
        named = only(await told.compare(), "stale_rollup")
        assert (named.table, [c.column for c in named.changes]) == ("usage_hourly", ["latency_max"])

    tell(story)


def test_a_damaged_entry_of_a_bill_is_named(tell: Tell) -> None:
    async def story(told: World, shop: Shop) -> None:
        ((position, leg),) = await told.rows(
            "SELECT position, min(leg) FROM soma.entries FINAL WHERE type = 'invoice.issued' AND purpose = 'revenue'"
            " GROUP BY position ORDER BY position LIMIT 1"
        )
        await told.replace("entries", f"position = {position} AND leg = {leg}", amount="amount + 1")
        named = only(await told.compare(), "altered")
        assert (named.table, named.position, [c.column for c in named.changes]) == (
            "entries",
            position,
            ["amount"],
        )

    tell(story)


LINE_COLUMNS = {
    "tenant": "'dune'", "entry": "'reversed'", "line": "toUInt32(9)", "line_of": "'x'", "charge": "'x'", "meter": "'x'",
    "period_start": "period_start - INTERVAL 1 DAY", "period_end": "period_end + INTERVAL 1 DAY",
    "description": "'x'", "quantity": "quantity + 1", "quantity_exact": "'7'", "amount": "amount + 1", "exact": "'7'",
    "rounding": "'7'", "currency": "'EUR'", "events": "events + 1", "first": "toNullable(toUInt64(0))",
    "last": "toNullable(toUInt64(9999))", "fingerprint": "'x'", "at": "at + INTERVAL 1 SECOND",
}  # fmt: skip
SALE_COLUMNS = {
    "seller": "'x'", "persona_id": "'x'", "capsule": "'x'", "currency": "'EUR'", "fee_share": "'0.5'",
    "price": "price + 1", "every": "'x'", "minutes": "minutes + 1", "reserved": "reserved + 1",
    "charged": "charged + 1", "fee": "fee + 1", "released": "released + 1", "used_s": "used_s + 1", "reason": "'x'",
    "period_start": "toNullable(at)", "period_end": "toNullable(at)", "expires_at": "toNullable(at)",
    "event": "'x'", "version": "version + 1",
}  # fmt: skip


def test_every_column_of_a_line_and_of_a_sale_that_is_altered_is_named(tell: Tell) -> None:
    async def story(told: World, shop: Shop) -> None:
        for table, columns in (("invoice_lines", LINE_COLUMNS), ("sale_events", SALE_COLUMNS)):
            rows = await told.rows(
                f"SELECT position, max({'leg' if table == 'invoice_lines' else '0'}) FROM soma.{table} FINAL"
                f" GROUP BY position ORDER BY position LIMIT {len(columns)}"
            )
            assert len(rows) == len(columns)
            for (position, leg), (column, value) in zip(rows, columns.items(), strict=True):
                where = f"position = {position}" + (f" AND leg = {leg}" if table == "invoice_lines" else "")
                await told.replace(table, where, **{column: value})
            found = (await told.compare()).found
            assert [d.table for d in found.listed] == [table] * len(columns), found.listed
            assert [[c.column for c in d.changes] for d in found.listed] == [[column] for column in columns]
            assert [d.position for d in found.listed] == [position for position, _ in rows]
            await mend(told, await told.compare())

    tell(story)


def test_a_line_that_is_missing_or_of_no_document_is_named(tell: Tell) -> None:
    async def story(told: World, shop: Shop) -> None:
        ((position,),) = await told.rows(
            "SELECT min(position) FROM soma.invoice_lines FINAL WHERE entry = 'reversed'"
        )
        await told.delete("invoice_lines", f"position = {position} AND leg = 0")
        found = await told.compare()
        named = only(found, "missing")
        assert (named.table, named.position, named.rows) == ("invoice_lines", position, 1)
        await mend(told, found)
        await told.add("invoice_lines", f"position = {position} AND leg = 0", leg="toUInt32(99)")
        named = only(await told.compare(), "extra")
        assert (named.table, named.position) == ("invoice_lines", position)

    tell(story)
