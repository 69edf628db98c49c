"""What billing on ClickHouse commonly gets wrong, each provoked on the real engine with records made for it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from domain.errors import DecimalOverflowError
from ops.dead_letters import DeadLetters
from ops.engine.process import Target
from ops.reads import Stored
from projections.columns import Unprojected, decimals
from projections.follower import Batch
from projections.warehouse import letters_to
from tests.real.clickhouse.warehouse_world import ask, connected, log_of, sink_of

LAST, FIRST = "2026-06-30T23:59:59.999999Z", "2026-07-01T00:00:00.000000Z"


class Log:
    """A log of records made for a test."""

    def __init__(self) -> None:
        self.stored: list[Stored] = []

    def add(self, at: str, wire: str, stream: str, data: dict[str, Any], **more: Any) -> int:
        """Write a record; give its position."""
        envelope = {
            "actor": "anna", "at": at, "causation": None, "correlation": None, "data": data, "previous": None,
            "schema": 1, "stream": stream, "tenant": "acme", "type": wire, "version": 1,
        }  # fmt: skip
        record = msgspec.json.encode(envelope | more, order="sorted")
        self.stored.append(Stored(len(self.stored), hashlib.sha3_512(record).digest(), record))
        return len(self.stored) - 1

    def pay(self, at: str, amount: str) -> int:
        """Write a transfer."""
        legs = [("wallet.acme.USD", amount), ("wallet.lab.USD", f"-{amount}")]
        postings = [{"account": account, "amount": moved} for account, moved in legs]
        money = [{"op": "transfer", "currency": "USD", "postings": postings}]
        return self.add(at, "transfer.posted", f"transfer/{len(self.stored)}", {"money": money})

    def meter(self, at: str, occurred_at: str, cost: str = "1") -> int:
        """Write a usage reading."""
        data: dict[str, Any] = dict.fromkeys(["rental_id", "persona_id", "cached_tokens", "latency_ms"]) | {
            "source": "gw", "event_id": f"e{len(self.stored)}", "occurred_at": occurred_at, "provider": "p",
            "model": "m", "tokens_in": 1, "tokens_out": 2, "requests": 1, "status": "ok",
            "cost": {"amount": cost, "currency": "USD"},
        }  # fmt: skip
        return self.add(at, "usage.metered", f"usage/{len(self.stored)}", data)

    def batch(self, start: int = 0, end: int | None = None) -> Batch:
        """Cut a batch out."""
        return Batch(start, self.stored[start:end])


@pytest.fixture
def log() -> Log:
    """Lend an empty log."""
    return Log()


def apply(
    target: Target, url: str, name: str, batches: Iterable[Batch], found: list[Unprojected] | None = None
) -> None:
    """Apply batches, and settle."""

    async def report(unprojected: Any) -> None:
        (found if found is not None else []).extend(unprojected)

    async def work() -> None:
        async with sink_of(target, url, f"clickhouse.{name}", rollup_pause_s=0, report=report) as sink:
            for batch in batches:
                await sink.apply(batch)
            await sink.settle()

    asyncio.run(work())


def rows(target: Target, query: str) -> list[Any]:
    """Ask as the service."""
    return asyncio.run(ask(target, query))


def test_a_batch_sent_again_months_later_meets_its_twin_in_each_partition(
    migrated: Target, database_url: str, log: Log
) -> None:
    for n in range(100):
        log.pay((LAST, FIRST)[n % 2], "1")
    apply(migrated, database_url, "records", [log.batch(), log.batch(20, 80), log.batch(50)])
    apply(migrated, database_url, "billing", [log.batch(), log.batch(20, 80), log.batch(50)])
    for table, count in (("records", 100), ("entries", 200)):
        for shortcut in (0, 1):
            chosen = f"SETTINGS do_not_merge_across_partitions_select_final = {shortcut}"
            query = f"SELECT count() FROM soma.{table} FINAL {chosen}"
            assert rows(migrated, query) == [(count,)]
    parts = rows(
        migrated,
        "SELECT DISTINCT partition FROM system.parts WHERE database = 'soma' AND table = 'entries' AND active",
    )
    assert sorted(parts) == [("202606",), ("202607",)]


def test_an_entry_on_the_boundary_of_a_period_is_billed_once(
    migrated: Target, database_url: str, log: Log
) -> None:
    log.pay(LAST, "1")
    log.pay(FIRST, "2")
    apply(migrated, database_url, "billing", [log.batch(), log.batch()])
    for column, first, turn, last in (
        ("day", "2026-06-01", "2026-07-01", "2026-08-01"),
        ("at", "2026-06-01 00:00:00", "2026-07-01 00:00:00", "2026-08-01 00:00:00"),
    ):
        query = "SELECT sum(amount) FROM bi.ledger_entries WHERE account = 'wallet.acme.USD'"
        assert rows(migrated, f"{query} AND {column} >= '{first}' AND {column} < '{turn}'") == [(1,)]
        assert rows(migrated, f"{query} AND {column} >= '{turn}' AND {column} < '{last}'") == [(2,)]
    assert rows(
        migrated, "SELECT day, debits FROM bi.balances_daily WHERE account = 'wallet.acme.USD' ORDER BY day"
    ) == [
        (rows(migrated, "SELECT toDate('2026-06-30')")[0][0], 1),
        (rows(migrated, "SELECT toDate('2026-07-01')")[0][0], 2),
    ]


def test_late_usage_lands_in_the_hour_of_its_use_and_the_hour_is_summed_again(
    migrated: Target, database_url: str, log: Log
) -> None:
    log.meter(LAST, "2026-06-30T10:10:00.000000Z")
    log.meter(LAST, "2026-06-30T22:00:00.000000Z")
    apply(migrated, database_url, "usage", [log.batch()])
    late = log.meter("2026-09-01T00:00:00.000000Z", "2026-06-30T10:59:59.999999Z", "0.000003")
    apply(migrated, database_url, "usage", [log.batch(late)])
    found = rows(
        migrated, "SELECT toString(hour), readings, cost, upto FROM soma.usage_hourly FINAL ORDER BY hour"
    )
    assert found == [("2026-06-30 10:00:00", 2, Decimal("1.000003"), 3), ("2026-06-30 22:00:00", 1, 1, 2)]


def test_many_tiny_amounts_sum_exactly(migrated: Target, database_url: str, log: Log) -> None:
    for _ in range(1_000):
        log.meter(LAST, LAST, "0.000003")
    apply(migrated, database_url, "usage", [log.batch(0, 313), log.batch(100)])
    assert rows(migrated, "SELECT sum(cost), sum(readings) FROM bi.usage_hourly") == [
        (Decimal("0.003"), 1_000)
    ]


def test_sums_of_the_largest_amounts_do_not_wrap(migrated: Target, database_url: str, log: Log) -> None:
    for _ in range(300):
        log.pay(LAST, "999999999999999.999999999")
    apply(migrated, database_url, "billing", [log.batch()])
    whole = Decimal("999999999999999.999999999") * 300
    assert rows(migrated, "SELECT debits, change FROM bi.balances_daily WHERE tenant = 'acme'") == [
        (whole, -whole)
    ]
    weighted = sum(int(Decimal("999999999999999.999999999").scaleb(9)) * (n + 1) for n in range(300))
    assert rows(migrated, "SELECT weighted FROM soma.entries_daily FINAL WHERE tenant = 'acme'") == [
        (weighted,)
    ]
    with pytest.raises(DecimalOverflowError):
        decimals([10**38])


def test_a_doubled_record_is_seen_by_count_and_sum_where_the_xor_is_blind(
    migrated: Target, database_url: str, log: Log
) -> None:
    log.pay(LAST, "1")
    apply(migrated, database_url, "billing", [log.batch()])
    # As if a record had been booked three times: two more rows cancel in the XOR.
    again = "INSERT INTO soma.entries SELECT * REPLACE ({} AS position) FROM soma.entries AS e WHERE e.position = 0"
    for position in (1, 2):
        asyncio.run(ask_to(migrated, again.format(position)))
    word = "reinterpretAsInt64(reverse(substring(address, {}, 8)))"
    query = f"SELECT count(), groupBitXor({word.format(1)}), sum(toInt128({word.format(17)}))"
    ((count, x0, s2),) = rows(migrated, f"{query} FROM soma.entries FINAL WHERE account = 'wallet.acme.USD'")
    ((entries, kept_x0, kept_s2),) = rows(
        migrated, "SELECT entries, x0, s2 FROM soma.entries_daily FINAL WHERE account = 'wallet.acme.USD'"
    )
    assert x0 == kept_x0
    assert count == 3 != entries == 1
    assert s2 == 3 * kept_s2 != kept_s2


async def ask_to(target: Target, statement: str) -> None:
    """Change something."""
    async with connected(target) as clickhouse:
        await clickhouse.command(statement)


def test_records_that_cannot_be_told_are_named_and_stop_nobody(
    migrated: Target, database_url: str, log: Log
) -> None:
    log.pay(LAST, "1")
    odd = log.add(LAST, "transfer.posted", "transfer/x", {"money": [{"op": "levitate"}]})
    log.stored.append(Stored(2, b"\7" * 64, b"{torn"))
    last = log.pay(FIRST, "2")
    named: dict[str, list[Unprojected]] = {"records": [], "billing": [], "usage": [], "market": []}
    for name, found in named.items():
        apply(migrated, database_url, name, [log.batch(), log.batch()], found)
    assert {name: sorted({one.position for one in found}) for name, found in named.items()} == {
        "records": [2], "billing": [odd, 2], "usage": [2], "market": [2],
    }  # fmt: skip
    assert rows(migrated, "SELECT position, record FROM soma.records FINAL WHERE position = 2") == [
        (2, "{torn")
    ]
    assert rows(migrated, "SELECT count() FROM soma.records FINAL") == [(4,)]
    assert rows(migrated, "SELECT DISTINCT position FROM soma.entries FINAL ORDER BY position") == [
        (0,),
        (last,),
    ]


def test_records_that_cannot_be_told_become_dead_letters_once(
    migrated: Target, database_url: str, log: Log
) -> None:
    log.pay(LAST, "1")
    odd = log.add(LAST, "transfer.posted", "transfer/x", {"money": [{"op": "levitate"}]})

    async def work() -> list[Any]:
        async with log_of(database_url) as reader:
            letters = DeadLetters(reader.pool)
            report = letters_to(letters, "clickhouse.billing")
            async with sink_of(migrated, database_url, "clickhouse.billing", report=report) as sink:
                await sink.apply(log.batch())
                await sink.apply(log.batch(0))
            return await letters.list()

    ((letter),) = asyncio.run(work())
    assert (letter.kind, letter.topic, letter.offset, letter.code) == (
        "projection", "clickhouse.billing", odd, "log_damaged",
    )  # fmt: skip
    assert letter.attempts == 2
    assert letter.payload == log.stored[odd].record


def test_subscriptions_to_come_are_told_by_the_view_of_renewals(
    migrated: Target, database_url: str, log: Log
) -> None:
    log.add(LAST, "subscription.started", "subscription/1", {"persona_id": "p"})
    log.add(FIRST, "subscription.renewed", "subscription/1", {}, version=2)
    log.add(FIRST, "subscription.renewed", "subscription/2", {"persona_id": "p"}, tenant="lab")
    apply(migrated, database_url, "records", [log.batch(), log.batch(1)])
    found = rows(
        migrated, "SELECT tenant, toString(day), event, subscriptions FROM bi.renewals ORDER BY day, tenant"
    )
    assert found == [
        ("acme", "2026-06-30", "started", 1), ("acme", "2026-07-01", "renewed", 1), ("lab", "2026-07-01", "renewed", 1),
    ]  # fmt: skip
    told = rows(migrated, "SELECT position FROM bi.persona_timeline WHERE persona_id = 'p' ORDER BY position")
    assert told == [(0,), (1,), (2,)]
