"""Followers of a real log: every record once and in order, whatever fails, and one leader at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from domain.errors import FollowerSupersededError, UnavailableError
from ops.batches import BatchReader
from ops.listen import Listener
from ops.positions import Place
from ops.postgres import connect_owner
from ops.runtime import Runtime, open_runtime
from ops.settings import Settings
from projections.follower import Batch, Follower, HandoverError
from tests.real.log.world import Add, OpenTally, add, member, open_tally, settings_for

ACME = member("acme")
DONE_S_MAX = 30.0


class Shelf:
    """A sink that keeps positions in a table; it fails where a test wants it to, before or after its effect."""

    def __init__(self, url: str, fail: Callable[[str], bool] = lambda _: False) -> None:
        self._url = url
        self._fail = fail
        self._place: Place | None = None
        self.batches: list[tuple[int, int]] = []
        self.moved = asyncio.Event()
        self.idled = asyncio.Event()
        self.skips: list[str] = []

    async def open(self) -> int:
        self._place = await Place.open(self._url, "shelf")
        return await self._place.lead()

    async def prepare(self, batch: Batch) -> Batch:
        return batch

    async def apply(self, batch: Batch) -> None:
        assert self._place is not None
        assert [stored.position for stored in batch.records] == list(range(batch.start, batch.end))
        self._stumble("before")
        await asyncio.to_thread(self._write, batch)
        self._stumble("after")
        await self._place.advance(batch.end)
        self.batches.append((batch.start, batch.end))
        self.moved.set()
        if self._place.handover:
            raise HandoverError

    async def idle(self) -> None:
        assert self._place is not None
        self.idled.set()
        await self._place.look()
        if self._place.handover:
            raise HandoverError

    async def close(self) -> None:
        if self._place is not None:
            await self._place.close()
            self._place = None

    async def reaches(self, size: int) -> None:
        """Wait until everything before a position was applied."""
        async with asyncio.timeout(DONE_S_MAX):
            while not self.batches or self.batches[-1][1] < size:
                await self.moved.wait()
                self.moved.clear()

    def _stumble(self, where: str) -> None:
        if self._fail(where):
            raise RuntimeError(f"the sink fell over {where} its effect")

    def _write(self, batch: Batch) -> None:
        with connect_owner(self._url) as connection:
            connection.cursor().executemany(
                "INSERT INTO shelf VALUES (%s, %s) ON CONFLICT (position) DO NOTHING",
                [(stored.position, stored.address) for stored in batch.records],
            )


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Give settings for a fresh database with a table for the sink."""
    with connect_owner(database_url) as connection:
        connection.execute("CREATE TABLE shelf (position bigint PRIMARY KEY, address bytea NOT NULL)")
    return settings_for(database_url, tmp_path)


@asynccontextmanager
async def a_log(settings: Settings) -> AsyncIterator[tuple[Runtime, Listener]]:
    """Open a log with a tally in it, and somebody who listens."""
    async with open_runtime(settings) as runtime, Listener(runtime.url) as listener:
        await runtime.ledger.act(open_tally, OpenTally(name="tally"), ACME)
        yield runtime, listener


async def write(runtime: Runtime, commands: int, times: int = 1) -> int:
    """Let the log grow; give its size."""
    await asyncio.gather(
        *(runtime.ledger.act(add, Add(name="tally", times=times), ACME) for _ in range(commands))
    )
    return await runtime.reader.size()


async def done(work: Awaitable[None]) -> None:
    """Wait for a follower that has an end."""
    async with asyncio.timeout(DONE_S_MAX):
        await work


def assert_shelved(url: str, size: int) -> None:
    """Compare the sink's table with the log, record by record."""
    with connect_owner(url) as connection:
        kept = connection.execute("SELECT position, address FROM shelf ORDER BY position").fetchall()
        logged = connection.execute(
            "SELECT position, address FROM events WHERE position < %s ORDER BY position", [size]
        ).fetchall()
    assert kept == logged


def test_a_follower_applies_every_record_once_and_in_order_and_goes_on_where_it_stopped(
    settings: Settings,
) -> None:
    """Two runs of a follower read the log as one."""

    async def story() -> None:
        async with a_log(settings) as (runtime, listener):
            first = await write(runtime, 50, times=7)
            shelf = Shelf(runtime.url)
            follower = Follower("shelf", shelf, runtime.url, listener, batch_max=64, linger_s=0)
            await done(follower.run(until=first))
            second = await write(runtime, 20)
            await done(follower.run(until=second))
            assert_shelved(runtime.url, second)
            assert [start for start, _ in shelf.batches] == [0, *(end for _, end in shelf.batches[:-1])]

    asyncio.run(story())


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_sink_that_fails_around_its_effect_is_sent_the_same_batch_again(
    settings: Settings, where: str
) -> None:
    """However often it falls over, nothing is lost and nothing is there twice."""
    chance = random.Random(where)

    async def story() -> None:
        async with a_log(settings) as (runtime, listener):
            size = await write(runtime, 60, times=5)
            shelf = Shelf(runtime.url, lambda now: now == where and chance.random() < 0.4)
            follower = Follower("shelf", shelf, runtime.url, listener, batch_max=32, linger_s=0)
            await done(follower.run(until=size))
            assert_shelved(runtime.url, size)

    asyncio.run(story())


def test_a_follower_hears_of_new_records_and_is_idle_in_between(settings: Settings) -> None:
    """It follows for ever; what is written while it waits arrives without being asked for."""

    async def story() -> None:
        async with a_log(settings) as (runtime, listener):
            shelf = Shelf(runtime.url)
            following = asyncio.create_task(Follower("shelf", shelf, runtime.url, listener).run())
            for _ in range(3):
                size = await write(runtime, 5)
                await shelf.reaches(size)
            await asyncio.wait_for(shelf.idled.wait(), DONE_S_MAX)
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
            assert_shelved(runtime.url, size)

    asyncio.run(story())


def test_of_two_processes_one_leads_and_the_other_takes_over_when_its_connection_dies(
    settings: Settings, database_url: str
) -> None:
    """The lock and the position share a connection: who lost the one cannot write the other."""

    async def story() -> None:
        first = await Place.open(database_url, "shelf")
        assert await first.lead() == 0
        await first.advance(10)
        second = await Place.open(database_url, "shelf")
        with pytest.raises(TimeoutError):
            await second.lead(wait_s=0.5)
        with connect_owner(database_url) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
        assert await second.lead(wait_s=10) == 10
        with pytest.raises(UnavailableError):
            await first.advance(20)
        await second.advance(15)
        await first.close()
        await second.close()

    asyncio.run(story())


def test_a_position_that_somebody_moved_is_not_written_over(settings: Settings, database_url: str) -> None:
    """A rebuild moves a follower back; the follower notices instead of jumping forward."""

    async def story() -> None:
        leader = await Place.open(database_url, "shelf")
        await leader.lead()
        await leader.advance(100)
        other = await Place.open(database_url, "shelf")
        await other.set(40)
        with pytest.raises(FollowerSupersededError):
            await leader.advance(120)
        with pytest.raises(FollowerSupersededError):
            await leader.look()
        await leader.close()
        assert await other.lead(wait_s=5) == 40
        await other.close()

    asyncio.run(story())


def test_a_wish_for_the_lead_reaches_who_begins_to_lead_after_it(settings: Settings) -> None:
    async def story() -> None:
        async with a_log(settings) as (runtime, _):
            leader, borrower = [await Place.open(runtime.url, "shelf") for _ in range(2)]
            await borrower.ask_handover()
            await leader.lead(10)
            waiting = asyncio.create_task(borrower.lead(30))
            while not leader.handover:
                await asyncio.sleep(0.05)
                await leader.look()
                assert not waiting.done()
            await leader.close()
            await waiting
            await borrower.close()

    asyncio.run(asyncio.wait_for(story(), 40))


def test_a_leader_that_is_asked_lets_go_and_comes_back(settings: Settings) -> None:
    """Whoever swaps tables borrows the lock for that long."""

    async def story() -> None:
        async with a_log(settings) as (runtime, listener):
            shelf = Shelf(runtime.url)
            following = asyncio.create_task(Follower("shelf", shelf, runtime.url, listener).run())
            size = await write(runtime, 5)
            borrower = await Place.open(runtime.url, "shelf")
            await borrower.ask_handover()
            await borrower.lead(wait_s=10)
            size = await write(runtime, 5)
            held_at = borrower.position
            await asyncio.sleep(1.5)
            assert not shelf.batches or shelf.batches[-1][1] <= held_at
            await borrower.close()
            await shelf.reaches(size)
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
            assert_shelved(runtime.url, size)

    asyncio.run(story())


def test_a_batch_of_large_records_is_cut_by_bytes_and_always_holds_one(settings: Settings) -> None:
    """Memory is bounded by bytes, not by hope."""

    async def story() -> None:
        async with a_log(settings) as (runtime, _):
            for _ in range(6):
                await runtime.ledger.act(add, Add(name="tally", note="x" * 3_500), ACME)
            reader, counts = BatchReader(runtime.url), []
            position, size = 0, await runtime.reader.size()
            while position < size:
                batch, end = await reader.read(position, size, 8_800)
                assert end == position + len(batch)
                assert [stored.position for stored in batch] == list(range(position, position + len(batch)))
                position += len(batch)
                counts.append(len(batch))
            assert counts == [3, 2, 2]
            assert len((await reader.read(1, size, 10))[0]) == 1
            await reader.close()

    asyncio.run(story())


def test_a_follower_outlives_the_loss_of_its_database_connections(
    settings: Settings, database_url: str
) -> None:
    """Connections that break in the middle cost time and nothing else."""

    async def story() -> None:
        async with a_log(settings) as (runtime, listener):
            shelf = Shelf(runtime.url)
            follower = Follower("shelf", shelf, runtime.url, listener, batch_max=16, linger_s=0)
            following = asyncio.create_task(follower.run())
            for _ in range(4):
                size = await write(runtime, 20, times=3)
                with psycopg.connect(database_url, autocommit=True) as connection:
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
                        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                    )
            await shelf.reaches(size)
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
            assert_shelved(runtime.url, size)

    asyncio.run(story())
