"""What followers keep in ClickHouse, held against the log read plainly: every record once, every sum exact."""

from __future__ import annotations

import asyncio
import hashlib
from decimal import Decimal
from functools import reduce
from operator import xor
from typing import Any

import psycopg
import pytest

from ops.engine.process import Target
from ops.positions import Place
from projections.follower import Batch, cut
from projections.groups import group_of
from projections.warehouse import PROJECTIONS
from tests.real.clickhouse.conftest import migrate_afresh
from tests.real.clickhouse.warehouse_world import Plain, ask, follow, log_of, prints, sink_of, summed


@pytest.fixture
def followed(migrated: Target, market: str) -> Target:
    """Lend a ClickHouse into which the whole market was followed."""
    asyncio.run(follow(migrated, market))
    return migrated


@pytest.fixture(scope="session")
def plain(market: str) -> Plain:
    """Read the log of the market plainly."""
    return Plain(market)


def rows(target: Target, query: str) -> list[Any]:
    """Ask as the service."""
    return asyncio.run(ask(target, query))


def test_every_record_is_mirrored_once_with_its_bytes(followed: Target, plain: Plain) -> None:
    found = rows(
        followed,
        "SELECT position, address, tenant, stream, version, type, schema, at, actor, record"
        " FROM soma.records FINAL ORDER BY position",
    )
    assert len(found) == plain.size > 150
    for place, (position, address, tenant, stream, version, kind, schema, at, actor, record) in enumerate(
        found
    ):
        told = plain.records[place]
        assert position == place
        assert record.encode() == plain.bytes[place]
        assert address == plain.addresses[place] == hashlib.sha3_512(plain.bytes[place]).digest()
        assert (tenant, stream, version, kind, schema, actor) == tuple(
            told[name] for name in ("tenant", "stream", "version", "type", "schema", "actor")
        )
        assert at.strftime("%Y-%m-%dT%H:%M:%S.%fZ") == told["at"]


def test_every_movement_of_money_is_there_once_under_its_leg(followed: Target, plain: Plain) -> None:
    found = rows(
        followed,
        "SELECT position, leg, toString(day), account, currency, amount, op, tenant, purpose, address"
        " FROM soma.entries FINAL ORDER BY position, leg",
    )
    legs = plain.legs()
    assert [tuple(row[:7]) for row in found] == [tuple(leg) for leg in legs]
    assert len(found) > 100
    for position, _, _, account, *_, tenant, purpose, address in found:
        assert account.split(".")[:2] == [purpose, tenant]
        assert address == plain.addresses[position]


def test_legs_are_numbered_as_the_postings_of_the_log_database(followed: Target, market: str) -> None:
    found = rows(
        followed, "SELECT position, leg, account, toInt128(amount * 1000000000) FROM soma.entries FINAL"
    )
    with psycopg.connect(market) as connection:
        kept = connection.execute(
            "SELECT position, leg, account, amount_nano::text FROM postings WHERE amount_nano <> 0"
        ).fetchall()
    assert sorted(found) == sorted((p, leg, account, int(nano)) for p, leg, account, nano in kept)


def test_balances_equal_the_book_of_the_log_to_the_last_digit(followed: Target, plain: Plain) -> None:
    found = rows(followed, "SELECT account, side, balance, held, available FROM bi.balances")
    assert {account: (side, balance, held) for account, side, balance, held, _ in found} == plain.accounts
    assert all(available == balance - held for _, _, balance, held, available in found)
    assert any(held for _, _, _, held, _ in found)


def test_days_are_summed_exactly_with_their_fingerprints(followed: Target, plain: Plain) -> None:
    found = rows(
        followed,
        "SELECT account, currency, toString(day), entries, debits, credits, net, x0, s2, weighted, upto"
        " FROM soma.entries_daily FINAL",
    )
    legs = plain.legs()

    def words(number: int) -> list[int]:
        return [int.from_bytes(a[8 * number : 8 * number + 8], "big", signed=True) for a in plain.addresses]

    first, third = words(0), words(2)
    assert len(found) == len({(leg.account, leg.currency, leg.day) for leg in legs}) > 5
    for account, currency, day, entries, debit, credit, net, x0, s2, weighted, upto in found:
        mine = [leg for leg in legs if (leg.account, leg.currency, leg.day) == (account, currency, day)]
        assert entries == len(mine)
        assert debit == sum(leg.amount for leg in mine if leg.amount > 0)
        assert credit == -sum(leg.amount for leg in mine if leg.amount < 0)
        assert net == sum(leg.amount for leg in mine)
        assert x0 == reduce(xor, (first[leg.position] for leg in mine))
        assert s2 == sum(third[leg.position] for leg in mine)
        assert weighted == sum(int(leg.amount.scaleb(9)) * (leg.position + 1) for leg in mine)
        assert upto <= plain.size


def test_usage_stands_in_the_hour_of_its_use(followed: Target, plain: Plain) -> None:
    readings = [record["data"] | {"tenant": record["tenant"]} for record in plain.of("usage.metered")]
    assert len(readings) == 60

    def by_hour(value: Any) -> dict[Any, Any]:
        return summed(
            (
                (
                    r["tenant"],
                    r["provider"],
                    r["model"],
                    (r["cost"] or {}).get("currency", ""),
                    r["occurred_at"][:13],
                ),
                value(r),
            )
            for r in readings
        )

    found = rows(
        followed,
        "SELECT tenant, provider, model, currency, formatDateTime(hour, '%Y-%m-%dT%H'), readings, requests, errors,"
        " tokens_in, tokens_out, timed, latency_ms, cost FROM soma.usage_hourly FINAL",
    )
    values: list[Any] = [
        lambda r: 1,
        lambda r: r["requests"],
        lambda r: r["requests"] * (r["status"] == "error"),
        lambda r: r["tokens_in"],
        lambda r: r["tokens_out"],
        lambda r: r["requests"] * (r["latency_ms"] is not None),
        lambda r: r["latency_ms"] or 0,
        lambda r: Decimal((r["cost"] or {"amount": "0"})["amount"]),
    ]
    for place, value in enumerate(values):
        assert {row[:5]: row[5 + place] for row in found} == by_hour(value)
    assert rows(followed, "SELECT count(), sum(tokens_in) FROM soma.usage FINAL") == [
        (60, sum(r["tokens_in"] for r in readings))
    ]


# --------------------------------------------------------------------------- again, and again


def test_batches_sent_again_recut_or_overlapping_change_nothing(followed: Target, market: str) -> None:
    before = prints(followed)
    # Nobody is billed on this market; tests/real/clickhouse/test_commerce.py has whom these tables are about.
    empty = {table for table, (count, _) in before.items() if not count}
    assert empty == set(group_of("clickhouse.commerce").tables)

    async def again(name: str, start: int, batch_max: int) -> None:
        for suffix in ("", ".rollup"):
            place = await Place.open(market, name + suffix)
            await place.set(start)
            await place.close()
        async with log_of(market) as log, sink_of(followed, market, name, rollup_pause_s=0) as sink:
            position, size = sink.position, await log.size()
            assert position <= start
            while position < size:
                end = cut(position, size, batch_max)
                await sink.apply(Batch(position, await log.span(position, end)))
                position = end
            await sink.settle()

    for start, batch_max in ((0, 8_192), (17, 31), (100, 64)):
        for name in PROJECTIONS:
            asyncio.run(again(name, start, batch_max))
        assert prints(followed) == before
    stored = rows(followed, "SELECT count() FROM soma.records")[0][0]
    assert stored >= before["records"][0]


def test_a_clickhouse_that_was_lost_is_filled_again(followed: Target, market: str) -> None:
    before = prints(followed)
    asyncio.run(migrate_afresh(followed))
    assert prints(followed)["records"][0] == 0
    asyncio.run(follow(followed, market))
    assert prints(followed) == before


def test_a_clickhouse_put_back_to_an_earlier_day_catches_up(
    followed: Target, market: str, plain: Plain
) -> None:
    before = prints(followed)
    asyncio.run(migrate_afresh(followed))
    asyncio.run(follow(followed, market, until=plain.size // 2))
    with psycopg.connect(market) as connection:
        connection.execute("UPDATE followers SET position = %s", [plain.size])
    asyncio.run(follow(followed, market))
    assert prints(followed) == before
