"""Reconciliation on a real log and a real engine: clean where nothing is wrong, and every damage found and named."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from domain.billing.reconciliation import Change, Difference
from domain.errors import ReconciliationRunningError
from domain.log.records import parse_address
from ops.engine.process import EmbeddedClickHouse
from ops.reconcile_log import LogSide
from projections.reconcile import WHOLE, Comparison, Scope, compare
from projections.reconciliations import repair
from tests.real.clickhouse.reconciled import COMPARED, World, world

Story = Callable[[World], Awaitable[None]]
Tell = Callable[[Story], None]


@pytest.fixture
def tell(database_url: str, tmp_path: Path, engine: EmbeddedClickHouse) -> Tell:
    """Play a story in a world of its own."""

    def play(story: Story) -> None:
        async def run() -> None:
            async with world(database_url, tmp_path, engine.target) as told:
                await story(told)

        asyncio.run(run())

    return play


def only(found: Comparison, *kinds: str) -> list[Difference]:
    """Give the differences, which must be of these kinds, in this order."""
    assert [d.kind for d in found.found.listed] == list(kinds), found.found.listed
    assert found.found.count == len(kinds)
    return found.found.listed


async def mended(told: World, found: Comparison) -> list[str]:
    """Put right what was found, and see that nothing differs any more; give what was done."""
    done = await repair(told.runtime, told.clickhouse, found)
    again = await told.compare()
    assert again.is_clean, again.found.listed
    return done


# --------------------------------------------------------------------------- nothing is wrong


def test_a_log_and_its_followers_agree_to_the_last_digit(tell: Tell) -> None:
    async def story(told: World) -> None:
        found = await told.compare()
        assert found.is_clean, found.found.listed
        assert found.bound == found.log_size == await told.runtime.reader.size()
        assert found.rows["records"] == found.log_size
        assert found.rows["entries"] == 2 * (8 + 200)
        assert found.rows["usage"] == 60
        assert found.accounts == found.groups["entries"] == 10
        assert found.views == len(await told.rows("SELECT name FROM system.tables WHERE database = 'bi'"))

    tell(story)


def test_one_account_is_compared_alone_and_up_to_a_position(tell: Tell) -> None:
    async def story(told: World) -> None:
        account = "wallet.acme.USD"
        legs = await told.legs_of(account)
        found = await told.compare(Scope(account=account, as_of=legs[3]))
        assert found.is_clean, found.found.listed
        assert (found.bound, found.rows, found.accounts) == (legs[3] + 1, {"entries": 4}, 1)
        damaged = legs[10]
        await told.replace("entries", f"position = {damaged} AND account = '{account}'", amount="amount + 1")
        assert (await told.compare(Scope(account=account, as_of=damaged - 1))).is_clean
        assert not (await told.compare(Scope(account=account, as_of=damaged))).is_clean
        assert (await told.compare(Scope(account="wallet.bolt.USD"))).is_clean

    tell(story)


def test_a_log_that_grows_meanwhile_gives_no_false_alarm(tell: Tell) -> None:
    async def story(told: World) -> None:
        stop = asyncio.Event()

        async def write() -> None:
            number = 0
            while not stop.is_set():
                await told.pay_many(20)
                number += 20

        async def follow() -> None:
            while not stop.is_set():
                await told.follow(COMPARED, 137)

        tasks = [asyncio.create_task(write()), asyncio.create_task(follow())]
        bounds = set()
        try:
            until = time.monotonic() + 60
            while len(bounds) < 3 and time.monotonic() < until:
                found = await told.compare()
                assert found.is_clean, found.found.listed
                bounds.add(found.bound)
        finally:
            stop.set()
            await asyncio.gather(*tasks)
        assert len(bounds) == 3, "the log did not grow"

    tell(story)


def test_only_one_reconciliation_runs_at_a_time(tell: Tell) -> None:
    async def story(told: World) -> None:
        with LogSide.opened(told.runtime.url), pytest.raises(ReconciliationRunningError):
            await told.compare()
        assert (await told.compare()).is_clean

    tell(story)


# --------------------------------------------------------------------------- what is missing or too much


def test_a_dropped_batch_is_named_by_its_first_and_last_position(tell: Tell) -> None:
    async def story(told: World) -> None:
        await told.delete("entries", "position >= 64 AND position < 128")
        found = await told.compare()
        missing = [d for d in found.found.listed if d.kind == "missing"]
        assert [(d.table, d.position, d.last, d.rows) for d in missing] == [("entries", 64, 127, 128)]
        assert missing[0].address == await told.address_at(64)
        # The rollup still says what was there, so it is the entries alone that differ.
        assert found.found.count == 1
        assert await mended(told, found) == ["rebuilt clickhouse.billing"]

    tell(story)


def test_a_batch_that_was_dropped_before_the_rollup_is_named_in_both(tell: Tell) -> None:
    async def story(told: World) -> None:
        account = "wallet.acme.USD"
        await told.delete("entries", f"account = '{account}' AND position >= 100")
        await told.delete("entries_daily", f"account = '{account}'")
        found = (await told.compare()).found.listed
        stale = [d for d in found if d.kind == "stale_rollup"]
        assert [d.key.rsplit(" ", 1)[0] for d in stale] == [f"{account} USD"]
        assert {d.kind for d in found} == {"missing", "stale_rollup"}
        assert sum(d.rows for d in found if d.kind == "missing") == sum(
            p >= 100 for p in await _legs_in_log(told, account)
        )

    tell(story)


async def _legs_in_log(told: World, account: str) -> list[int]:
    return [row["position"] for row in await told.runtime.reader.postings(account, before=None, limit=1000)
            if row["amount_nano"] != "0"]  # fmt: skip


def test_a_missing_record_of_the_mirror_is_named(tell: Tell) -> None:
    async def story(told: World) -> None:
        await told.delete("records", "position = 77")
        (found,) = only(await told.compare(), "missing")
        stored = await told.runtime.reader.at(77)
        assert (found.table, found.position, found.last, found.rows) == ("records", 77, 77, 1)
        assert parse_address(str(found.address)) == stored.address
        assert str(found.stream).encode() in stored.record

    tell(story)


def test_a_batch_that_was_sent_twice_is_named_as_harmless(tell: Tell) -> None:
    async def story(told: World) -> None:
        await told.clickhouse.command("SYSTEM STOP MERGES soma.entries")
        await told.clickhouse.command(
            "INSERT INTO soma.entries SELECT * FROM soma.entries FINAL WHERE position >= 64 AND position < 128"
        )
        compared = await told.compare()
        (found,) = only(compared, "doubled")
        assert (found.table, found.position, found.last, found.rows) == ("entries", 64, 127, 128)
        assert found.harmless
        await told.clickhouse.command("SYSTEM START MERGES soma.entries")
        assert await mended(told, compared) == ["merged soma.entries"]

    tell(story)


def test_a_batch_that_was_sent_twice_under_other_keys_is_not_harmless(tell: Tell) -> None:
    async def story(told: World) -> None:
        (position,) = (await told.legs_of("wallet.acme.USD"))[5:6]
        await told.add("entries", f"position = {position} AND account = 'wallet.acme.USD'", day="day + 1")
        (found,) = only(await told.compare(), "doubled")
        assert (found.position, found.rows, found.harmless) == (position, 1, False)
        assert [change.column for change in found.changes] == ["day"]

    tell(story)


def test_a_row_of_no_record_is_named_as_extra(tell: Tell) -> None:
    async def story(told: World) -> None:
        size = await told.runtime.reader.size()
        await told.add("entries", "position = 64", position="0", leg="leg + 7")
        await told.add("records", "position = 64", position=f"{size + 5}")
        found = await told.compare()
        told_of = [(d.kind, d.table, d.position, d.rows) for d in found.found.listed]
        assert told_of == [("extra", "entries", 0, 2), ("extra", "records", size + 5, 1)]
        assert await mended(told, found) == ["rebuilt clickhouse.billing", "rebuilt clickhouse.records"]

    tell(story)


# --------------------------------------------------------------------------- what is altered


def test_one_altered_amount_is_named_with_both_values(tell: Tell) -> None:
    async def story(told: World) -> None:
        account = "wallet.bolt.EUR"
        position = (await told.legs_of(account, "EUR"))[7]
        ((amount,),) = await told.rows(
            f"SELECT toString(amount) FROM soma.entries FINAL WHERE position = {position} AND account = '{account}'"
        )
        await told.replace(
            "entries", f"position = {position} AND account = '{account}'", amount="amount + 0.000000001"
        )
        compared = await told.compare()
        (found,) = only(compared, "altered")
        assert (found.position, found.address) == (position, await told.address_at(position))
        assert found.key.startswith(f"{account} EUR ")
        (change,) = found.changes
        assert (change.column, change.log) == ("amount", amount.rstrip("0"))
        assert change.follower != change.log
        await mended(told, compared)

    tell(story)


def test_two_alterations_that_cancel_in_the_sum_are_both_named(tell: Tell) -> None:
    async def story(told: World) -> None:
        account = "wallet.acme.USD"
        first, second = (await told.legs_of(account))[4:6]
        await told.replace("entries", f"position = {first} AND account = '{account}'", amount="amount + 5")
        await told.replace("entries", f"position = {second} AND account = '{account}'", amount="amount - 5")
        one, two = only(await told.compare(), "altered", "altered")
        assert (one.position, two.position) == (first, second)
        assert [c.column for c in (*one.changes, *two.changes)] == ["amount", "amount"]

    tell(story)


def test_amounts_that_changed_places_are_named_though_nothing_adds_up_wrong(tell: Tell) -> None:
    async def story(told: World) -> None:
        account = "wallet.acme.USD"
        a, b, c = (await told.legs_of(account))[4:7]
        # Neither the sum nor the sum weighted by position sees these three: their digests do.
        for position, by in ((a, c - b), (b, a - c), (c, b - a)):
            await told.replace(
                "entries", f"position = {position} AND account = '{account}'", amount=f"amount + {by}"
            )
        found = only(await told.compare(), "altered", "altered", "altered")
        assert [d.position for d in found] == [a, b, c]

    tell(story)


ENTRY_COLUMNS = (
    ("day", "day + 1"), ("day", "day + 60"), ("account", "'wallet.acme.EUR'"), ("currency", "'CHF'"),
    ("address", "repeat('a', 64)"), ("actor", "'mallory'"), ("hold", "'contract-1'"), ("at", "at + 1"),
    ("op", "'post'"),
    ("type", "'t'"), ("stream", "'s/1'"), ("tenant", "'dune'"), ("record_tenant", "'dune'"), ("purpose", "'fees'"),
)  # fmt: skip


def test_every_column_of_an_entry_that_is_altered_is_named(tell: Tell) -> None:
    async def story(told: World) -> None:
        places = (await told.legs_of("wallet.acme.USD"))[4 : 4 + len(ENTRY_COLUMNS)]
        wanted = [
            (f"position = {position} AND account = 'wallet.acme.USD'", {column: value})
            for position, (column, value) in zip(places, ENTRY_COLUMNS, strict=True)
        ]
        await told.replace_each("entries", wanted)
        found = only(await told.compare(), *["altered"] * len(ENTRY_COLUMNS))
        assert [d.position for d in found] == places
        assert [[c.column for c in d.changes] for d in found] == [[column] for column, _ in ENTRY_COLUMNS]

    tell(story)


def test_an_altered_payload_is_named_by_both_addresses(tell: Tell) -> None:
    async def story(told: World) -> None:
        await told.replace("records", "position = 90", record="replaceOne(record, 'payment', 'Payment')")
        (found,) = only(await told.compare(), "altered")
        (change,) = found.changes
        assert (found.position, change.column) == (90, "record")
        assert (await told.address_at(90)) in str(change.log)
        assert (await told.address_at(90)) not in str(change.follower)
        deep = await told.compare(Scope(deep=True))
        assert [d.position for d in deep.found.listed] == [90, 90]
        assert await mended(told, deep) == ["rebuilt clickhouse.records"]

    tell(story)


RECORD_COLUMNS = (
    ("tenant", "'nobody'"), ("type", "'transfer.undone'"), ("at", "at + 1"), ("at", "at + toIntervalDay(40)"),
    ("actor", "'mallory'"), ("version", "version + 1"), ("kind", "'gift'"), ("correlation", "'c-1'"),
    ("causation", "'c-2'"), ("schema", "schema + 1"), ("stream", "'transfer/transfer-1'"),
    ("address", "repeat('a', 64)"),
)  # fmt: skip


def test_every_column_of_the_mirror_that_is_altered_is_named(tell: Tell) -> None:
    async def story(told: World) -> None:
        places = range(60, 60 + len(RECORD_COLUMNS))
        wanted = [
            (f"position = {position}", {column: value})
            for position, (column, value) in zip(places, RECORD_COLUMNS, strict=True)
        ]
        await told.replace_each("records", wanted)
        found = only(await told.compare(), *["altered"] * len(RECORD_COLUMNS))
        assert [d.position for d in found] == list(places)
        assert [[c.column for c in d.changes] for d in found] == [[column] for column, _ in RECORD_COLUMNS]

    tell(story)


def test_an_altered_reading_of_usage_is_named(tell: Tell) -> None:
    async def story(told: World) -> None:
        ((position,),) = await told.rows("SELECT max(position) FROM soma.usage FINAL")
        await told.replace("usage", f"position = {position}", tokens_in="tokens_in + 1")
        (found,) = only(await told.compare(), "altered")
        assert (found.table, found.position) == ("usage", position)
        assert [change.column for change in found.changes] == ["tokens_in"]

    tell(story)


# --------------------------------------------------------------------------- what is stale


def test_a_stale_rollup_is_named_by_its_group_and_what_it_says(tell: Tell) -> None:
    async def story(told: World) -> None:
        account = "wallet.cube.USD"
        await told.replace("entries_daily", f"account = '{account}'", net="net + 1", entries="entries - 1")
        compared = await told.compare()
        (found,) = only(compared, "stale_rollup")
        assert found.table == "entries_daily"
        assert found.key.startswith(f"{account} USD ")
        assert [change.column for change in found.changes] == ["rows", "amount"]
        assert _one_more(found.changes[1])
        assert await mended(told, compared) == ["rebuilt clickhouse.billing"]

    tell(story)


def _one_more(change: Change) -> bool:
    return round(float(str(change.follower)) - float(str(change.log)), 9) == 1


def test_a_rollup_that_was_not_recomputed_for_the_last_batch_is_named(tell: Tell) -> None:
    async def story(told: World) -> None:
        await told.clickhouse.command(
            "CREATE TABLE soma.kept ENGINE = Memory AS SELECT * FROM soma.entries_daily FINAL"
        )
        await told.pay_many(30)
        await told.follow()
        assert (await told.compare()).is_clean
        await told.clickhouse.command("TRUNCATE TABLE soma.entries_daily SYNC")
        await told.clickhouse.command("INSERT INTO soma.entries_daily SELECT * FROM soma.kept")
        found = (await told.compare()).found.listed
        assert {d.kind for d in found} == {"stale_rollup"}
        wallets = [f"wallet.{t}.{c}" for t in ("acme", "bolt", "cube", "dune") for c in ("EUR", "USD")]
        assert {d.key.split()[0] for d in found} <= set(wallets)
        assert len(found) >= 4

    tell(story)


def test_a_stale_rollup_of_usage_is_named(tell: Tell) -> None:
    async def story(told: World) -> None:
        await told.replace("usage_hourly", "provider = 'p2' AND model = 'm0' AND tenant = 'cube' AND currency = 'USD'",
                           tokens_out="tokens_out + 1")  # fmt: skip
        (found,) = only(await told.compare(), "stale_rollup")
        assert (found.table, found.key.split()[:3]) == ("usage_hourly", ["cube", "p2", "m0"])
        assert [change.column for change in found.changes] == ["tokens_out"]

    tell(story)


@pytest.mark.parametrize("damage", ["another query", "a table", "nothing"])
def test_a_view_that_is_not_the_released_one_is_named(tell: Tell, damage: str) -> None:
    async def story(told: World) -> None:
        name = "bi.ledger_entries"
        await told.clickhouse.command(f"DROP VIEW {name}")
        if damage == "another query":
            await told.clickhouse.command(f"CREATE VIEW {name} AS SELECT * FROM soma.entries")
        elif damage == "a table":
            await told.clickhouse.command(
                f"CREATE TABLE {name} ENGINE = MergeTree ORDER BY position AS SELECT * FROM soma.entries FINAL"
            )
        compared = await told.compare()
        (found,) = only(compared, "stale_view")
        assert found.table == name
        assert found.changes[0].column == "query"
        assert (found.changes[0].follower is None) == (damage == "nothing")
        assert await mended(told, compared) == [f"made again: {name}"]

    tell(story)


def test_balances_of_the_database_that_do_not_follow_from_the_log_are_named(tell: Tell) -> None:
    async def story(told: World) -> None:
        with psycopg.connect(told.runtime.url, autocommit=True) as connection:
            connection.execute(
                "UPDATE postings SET balance_nano = balance_nano + 1 WHERE (account, position, leg) IN"
                " (SELECT account, position, leg FROM postings WHERE account = 'wallet.dune.EUR'"
                " ORDER BY position DESC, leg DESC LIMIT 1)"
            )
        (found,) = only(await told.compare(), "balance")
        assert (found.table, found.key) == ("accounts", "wallet.dune.EUR")

    tell(story)


def test_a_follower_far_behind_is_named_and_the_others_are_compared(
    tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(told: World) -> None:
        monkeypatch.setattr("projections.reconcile.BEHIND_RECORDS_MAX", 10)
        at = await told.runtime.reader.size()
        await told.pay_many(40)
        await told.follow([name for name in COMPARED if name != "clickhouse.billing"])
        (found,) = only(await told.compare(), "behind")
        assert (found.table, found.position, found.rows) == ("entries", at, 40)

    tell(story)


# --------------------------------------------------------------------------- many at once


def test_more_differences_than_are_listed_are_all_counted(
    tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(told: World) -> None:
        monkeypatch.setattr("projections.reconcile_search.LISTED_MAX", 5)
        await told.replace("records", "position >= 20 AND position < 60", actor="'mallory'")
        found: Any = (await told.compare()).found
        assert (found.count, len(found.listed)) == (40, 5)
        assert [d.position for d in found.listed] == [20, 21, 22, 23, 24]

    tell(story)


def test_one_that_is_given_up_lets_go_at_once(tell: Tell) -> None:
    async def story(told: World) -> None:
        begun = threading.Event()

        def slow(what: str, done: int) -> None:
            begun.set()
            time.sleep(0.05)

        task = asyncio.create_task(compare(told.runtime.url, told.clickhouse, WHOLE, slow))
        await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        until = time.monotonic() + 20
        found = None
        while found is None and time.monotonic() < until:
            try:
                found = await told.compare()
            except ReconciliationRunningError:
                await asyncio.sleep(0.05)
        assert found is not None
        assert found.is_clean

    tell(story)


def test_an_emptied_rollup_is_counted_to_its_last_group(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(told: World) -> None:
        monkeypatch.setattr("projections.reconcile.LISTED_MAX", 3)
        await told.clickhouse.command("TRUNCATE TABLE soma.entries_daily SYNC")
        found = await told.compare()
        assert (found.found.count, found.found.harmful_count, len(found.found.listed)) == (10, 10, 3)
        assert {d.kind for d in found.found.listed} == {"stale_rollup"}
        await mended(told, found)

    tell(story)
