"""Everything that follows the log, computed a second time: the same bits, or the rows that differ by name."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from domain.errors import InsufficientFundsError, LogDamagedError
from ops.rebuild import TABLES, Difference, RebuildReport, rebuild
from ops.runtime import Runtime, open_runtime
from ops.settings import Settings
from tests.real.catalogue import shelf
from tests.real.log.test_races import OWNER, FundContract, fund_contract, matched_contract, release, trained
from tests.real.log.world import Add, OpenTally, add, check_database, give, member, open_tally, pay

MIA = member("acme")


async def busy(rt: Runtime, seed: int, steps: int = 60) -> None:
    """Write a bit of everything: streams, transfers and refusals, a contract with its hold, personas."""
    chance = random.Random(seed)
    await rt.ledger.act(open_tally, OpenTally(name=f"hot-{seed}"), MIA)
    for tenant in ("acme", "beta", "gamma", "lab"):
        await give(rt.ledger, tenant, "30.000000001")

    async def step(n: int) -> None:
        payer, payee = chance.sample(["acme", "beta", "gamma"], 2)
        with suppress(InsufficientFundsError):
            await pay(rt.ledger, payer, payee, f"{chance.randrange(15)}.{n + 1:09d}", key=f"{seed}-{n}")
        await rt.ledger.act(add, Add(name=f"hot-{seed}", count=n, note='é\n"\\ü'), MIA)
        await rt.ledger.act(open_tally, OpenTally(start=n), member(payee))

    await asyncio.gather(*map(step, range(steps)))
    paid, funded = await matched_contract(rt), await matched_contract(rt)
    for contract_id in (paid, funded):
        await rt.ledger.act(fund_contract, FundContract(contract_id=contract_id), OWNER)
    await trained(rt, paid)
    await release(rt, paid)
    await shelf.listed(
        rt, f"night-nurse-{seed}", "clinic", summary="Asks how patients feel.", domains=["health"]
    )
    await shelf.draft(rt, f"half-done-{seed}")


@pytest.fixture
def written(settings: Settings) -> str:
    async def write() -> str:
        async with open_runtime(settings) as rt:
            await busy(rt, 1)
            return rt.url

    return asyncio.run(write())


def contents(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Read the tables that follow the log, whole."""
    with psycopg.connect(url) as conn:
        return {t: conn.execute(f"SELECT {t}::text FROM {t} ORDER BY 1").fetchall() for t in TABLES}  # type: ignore[call-overload]


def spoil(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            assert conn.execute(statement).rowcount > 0, statement  # type: ignore[arg-type]


def differing(report: RebuildReport) -> set[tuple[str, tuple[str, ...]]]:
    return {(d.table, d.key) for d in report.differences}


def test_an_untouched_database_is_rebuilt_bit_for_bit(written: str) -> None:
    before = contents(written)
    heard: list[tuple[int, int]] = []
    report = rebuild(written, lambda done, total: heard.append((done, total)), repair=True)
    assert report.identical
    assert not report.repaired
    assert not report.differences
    assert report.event_count == check_database(written).size == heard[-1][0] == heard[-1][1]
    assert all(len(live) == 128 for live, _ in report.digests.values())
    assert report.events_per_s > 0
    assert contents(written) == before
    assert all(before.values()), "each table has rows to compare"


def test_little_memory_gives_the_same_bits(written: str) -> None:
    assert rebuild(written, resident_max=1).digests == rebuild(written).digests


def test_small_chunks_give_the_same_bits(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rebuild(written).digests
    monkeypatch.setattr("ops.rebuild.CHUNK_EVENTS", 7)
    assert rebuild(written, resident_max=3).digests == whole


def test_an_empty_log_is_rebuilt(database_url: str) -> None:
    report = rebuild(database_url)
    assert report.identical
    assert report.event_count == 0


SPOILS = {
    "a state": "UPDATE records SET state = jsonb_set(state, '{total}', '7') WHERE id = 'hot-1'",
    "a number of another scale": "UPDATE records SET state = jsonb_set(state, '{total}', '1770.0') WHERE id = 'hot-1'",
    "a version": "UPDATE records SET version = version + 1 WHERE id = 'hot-1'",
    "a tenant": "UPDATE records SET tenant = 'evil' WHERE id = 'hot-1'",
    "a status": "UPDATE records SET status = 'paid' WHERE kind = 'contract'",
    "a search text": "UPDATE records SET search = to_tsvector('simple', 'other') WHERE id = 'hot-1'",
    "parties": "UPDATE records SET parties = '{x}' WHERE kind = 'contract'",
    "a deadline": "UPDATE records SET deadline = now() WHERE id = 'hot-1'",
    "a row that is gone": "DELETE FROM records WHERE id = 'hot-1'",
    "a row too many": "INSERT INTO records"
    " SELECT kind, 'ghost', version, address, tenant, owner, status, deadline, parties,"
    " state, search FROM records WHERE id = 'hot-1'",
    "a balance": "UPDATE accounts SET balance_nano = balance_nano + 1 WHERE account = 'wallet.acme.USD'",
    "an overdraft": "UPDATE accounts SET overdraft = true WHERE account = 'wallet.acme.USD'",
    "a hold": "UPDATE holds SET status = 'void' WHERE status = 'pending'",
    "a posting": "UPDATE postings SET amount_nano = amount_nano + 1 WHERE account = 'wallet.acme.USD' AND leg = 0",
    "all postings": "DELETE FROM postings",
    "a facet": "UPDATE catalogue SET facets = facets || '{badge:override}' WHERE persona_id = 'night-nurse-1'",
    "who sees it": "UPDATE catalogue SET public = true WHERE persona_id = 'half-done-1'",
    "words": "UPDATE catalogue SET words = '' WHERE persona_id = 'night-nurse-1'",
    "a persona that is hidden": "DELETE FROM catalogue WHERE persona_id = 'night-nurse-1'",
    "a persona nobody made": "INSERT INTO catalogue SELECT 'ghost', 1, tenant, public, submitted, listed_at,"
    " name, facets, title, words FROM catalogue WHERE persona_id = 'night-nurse-1'",
    "a persona's state, which the catalogue follows": "UPDATE records"
    " SET state = jsonb_set(state, '{summary}', '\"x\"') WHERE id = 'night-nurse-1'",
}


def test_every_spoiled_row_is_found_named_and_repaired(written: str) -> None:
    good = contents(written)
    for name, statement in SPOILS.items():
        spoil(written, statement)
        changed = {table: set(good[table]) ^ set(rows) for table, rows in contents(written).items()}
        wrong = {table for table, rows in changed.items() if rows}
        report = rebuild(written)
        assert not report.identical, name
        assert {d.table for d in report.differences} == wrong, name
        assert contents(written) != good, "looking repairs nothing"
        again = rebuild(written, repair=True)
        assert again.repaired
        assert differing(again) == differing(report)
        assert contents(written) == good, name
    assert rebuild(written).identical


def test_a_difference_shows_both_rows_and_counts_beyond_what_it_shows(written: str) -> None:
    spoil(written, "UPDATE accounts SET balance_nano = 1 WHERE account = 'fees.platform.USD'")
    (found,) = rebuild(written).differences
    assert isinstance(found, Difference)
    assert (found.table, found.key) == ("accounts", ("fees.platform.USD",))
    assert found.live
    assert ",1,0" in found.live
    assert found.rebuilt
    assert ",293750000,0" in found.rebuilt
    spoil(written, "UPDATE records SET tenant = 'evil'")
    report = rebuild(written)
    assert len(report.differences) == 100
    with psycopg.connect(written) as conn:
        assert conn.execute("SELECT count(*) + 1 FROM records").fetchone() == (report.difference_count,)


def test_tables_that_were_lost_altogether_come_back(written: str) -> None:
    good = contents(written)
    with psycopg.connect(written) as conn:
        conn.execute("TRUNCATE records, accounts, holds, postings, catalogue")
    assert rebuild(written, repair=True).repaired
    assert contents(written) == good
    check_database(written)


def test_a_repair_beside_a_busy_writer_loses_nothing_it_writes(settings: Settings) -> None:
    async def story() -> str:
        async with open_runtime(settings) as rt:
            await busy(rt, 1)
            spoil(
                rt.url,
                "UPDATE records SET tenant = 'evil' WHERE id = 'hot-1'",
                "DELETE FROM postings WHERE leg = 1",
            )
            working = asyncio.create_task(busy(rt, 2, steps=200))
            reports = [await asyncio.to_thread(rebuild, rt.url, repair=True) for _ in range(3)]
            assert reports[0].repaired
            await working
            return rt.url

    url = asyncio.run(story())
    assert rebuild(url).identical
    check_database(url)


def test_a_log_that_moves_money_nobody_has_is_damaged_and_said_to_be(written: str) -> None:
    with psycopg.connect(written, autocommit=True) as conn:
        conn.execute("SET session_replication_role = replica")
        (position,) = (
            conn.execute("SELECT min(position) FROM events WHERE type = 'transfer.posted'").fetchone() or ()
        )
        conn.execute("DELETE FROM events WHERE position = %s", [position])
    with pytest.raises(LogDamagedError):
        rebuild(written)
