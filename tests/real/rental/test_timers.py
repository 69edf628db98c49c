"""Timers that are killed, stopped, doubled, or met by a clock that jumps: nobody has access too long, or pays twice."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from domain.persona.offboarding import entitlement
from domain.rental.rentals import Rental
from ops.clock import Clock
from ops.runtime import Runtime, open_runtime
from projections.timers import Timers
from tests.real.rental.rental_desk import (
    check_books,
    endings,
    open_rentals,
    rented,
    rented_many,
    rich,
    timers,
    wait_settled,
)
from tests.real.service import settings_on

COUNT = 150
HOUR_NS = 3_600 * 10**9


async def look_at(runtime: Runtime, name: str) -> tuple[Rental, bool, str]:
    """Ask whether a rental may be used; give it, the answer, and the moment of it."""
    found = (await runtime.reader.load([f"rental/{name}"]))[f"rental/{name}"].aggregate
    assert isinstance(found, Rental)
    now = runtime.clock()
    return found, entitlement(found, None, now).granted, now


async def watch(runtime: Runtime, names: list[str], until: float) -> int:
    """Ask again and again, and see that nobody is let in at or after the end; give the number of answers."""
    asked = 0
    while time.monotonic() < until:
        for name in names:
            rental, granted, now = await look_at(runtime, name)
            assert rental.expires_at is not None
            assert granted == (rental.status == "active" and now < rental.expires_at)
            asked += 1
        await asyncio.sleep(0.01)
    return asked


def test_timers_killed_again_and_again_settle_everything_once(database_url: str, tmp_path: Path) -> None:
    settings = settings_on(database_url, tmp_path)

    async def story() -> None:
        async with open_runtime(settings) as runtime:
            await rich(runtime)
            made = asyncio.create_task(rented_many(runtime, COUNT, 1.0, 8.0))
            for pause_s in (1.0, 1.5, 1.0):
                with timers(database_url, tmp_path) as child:
                    await asyncio.sleep(pause_s)
                    child.send_signal(signal.SIGKILL)
            rentals = await made
            with timers(database_url, tmp_path):
                names = [rental.id for rental in rentals[:10]]
                assert await watch(runtime, names, time.monotonic() + 2.0) > 10
                await asyncio.to_thread(wait_settled, database_url, 30.0)

    asyncio.run(story())
    ended = endings(database_url)
    assert len(ended) == COUNT
    assert all(one.lateness_s >= 0 for one in ended)
    check_books(database_url, ended)


def test_after_an_outage_everything_overdue_is_done_at_once(database_url: str, tmp_path: Path) -> None:
    settings = settings_on(database_url, tmp_path)

    async def story() -> None:
        async with open_runtime(settings) as runtime:
            await rich(runtime)
            rentals = await rented_many(runtime, COUNT, 0.1, 0.5)
            await asyncio.sleep(1.0)
            # Nobody looked, and nobody has access all the same.
            for rental in rentals[:20]:
                found, granted, _ = await look_at(runtime, rental.id)
                assert (found.status, granted) == ("active", False)
            timer = Timers(runtime)
            assert await timer.look() == 0.0
            assert open_rentals(database_url) == 0
            await timer.close()

    asyncio.run(story())
    check_books(database_url, endings(database_url))


def test_one_of_two_processes_leads_and_the_other_takes_over_when_it_is_killed(
    database_url: str, tmp_path: Path
) -> None:
    settings = settings_on(database_url, tmp_path)

    async def story() -> None:
        async with open_runtime(settings) as runtime:
            await rich(runtime)
            first, second = Timers(runtime), Timers(runtime)
            await first.look()
            await second.look()
            assert (first.is_leader, second.is_leader) == (True, False)
            await first.close()
            await second.look()
            assert second.is_leader
            await second.close()
            with timers(database_url, tmp_path) as one, timers(database_url, tmp_path):
                await rented_many(runtime, COUNT, 1.0, 4.0)
                one.send_signal(signal.SIGKILL)
                await asyncio.to_thread(wait_settled, database_url, 30.0)

    asyncio.run(story())
    check_books(database_url, endings(database_url))


def test_a_leader_that_hangs_keeps_nobody_s_money(database_url: str, tmp_path: Path) -> None:
    settings = settings_on(database_url, tmp_path)

    async def story() -> None:
        async with open_runtime(settings) as runtime:
            await rich(runtime)
            with timers(database_url, tmp_path) as leader, timers(database_url, tmp_path):
                leader.send_signal(signal.SIGSTOP)
                await rented_many(runtime, 50, 0.5, 2.0)
                await asyncio.to_thread(wait_settled, database_url, 30.0)
                # It wakes up with what it was about to do, and finds it done.
                leader.send_signal(signal.SIGCONT)
                await rented_many(runtime, 50, 0.5, 2.0, seed=6)
                await asyncio.to_thread(wait_settled, database_url, 30.0)

    asyncio.run(story())
    ended = endings(database_url)
    assert len(ended) == 100
    check_books(database_url, ended)


@pytest.mark.parametrize("step_ns", [HOUR_NS, -HOUR_NS])
def test_a_clock_that_jumps_lets_nobody_in_again(step_ns: int, database_url: str, tmp_path: Path) -> None:
    settings = settings_on(database_url, tmp_path)
    offset = [0]
    clock = Clock(lambda: time.time_ns() + offset[0])

    async def story() -> None:
        async with open_runtime(settings, clock=clock) as runtime:
            await rich(runtime)
            timer = Timers(runtime)
            short, long = await rented(runtime, 0.2), await rented(runtime, 1_800)
            await asyncio.sleep(0.3)
            offset[0] = step_ns
            await timer.look()
            assert (await look_at(runtime, short.id))[1] is False
            _, granted, now = await look_at(runtime, long.id)
            assert granted == (step_ns < 0)
            assert long.expires_at is not None
            assert granted == (now < long.expires_at)
            # Back again: who was out stays out, and what was settled stays settled.
            offset[0] = 0
            await timer.look()
            assert (await look_at(runtime, short.id))[0].status == "expired"
            found, granted, _ = await look_at(runtime, long.id)
            assert (found.status, granted) == (("active", True) if step_ns < 0 else ("expired", False))
            await timer.close()
        # A process that starts with the right clock decides the same.
        async with open_runtime(settings) as runtime:
            assert (await look_at(runtime, short.id))[1] is False
            assert (await look_at(runtime, long.id))[1] == (step_ns < 0)

    asyncio.run(story())


def test_timers_whose_connections_are_cut_lead_again_and_go_on(
    server_url: str, database_url: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with open_runtime(settings_on(database_url, tmp_path)) as runtime:
            await rich(runtime)
            timer = Timers(runtime)
            timer.start()
            await rented_many(runtime, 50, 0.5, 3.0)
            for _ in range(3):
                await asyncio.to_thread(cut, server_url, database_url)
                await asyncio.sleep(0.3)
            await asyncio.to_thread(wait_settled, database_url, 30.0)
            until = time.monotonic() + 10.0
            while not timer.is_leader:
                assert time.monotonic() < until, "nobody leads"
                await asyncio.sleep(0.05)
            await timer.close()

    asyncio.run(story())
    check_books(database_url, endings(database_url))


def cut(server_url: str, database_url: str) -> None:
    """Cut every connection to a database."""
    name = urlsplit(database_url).path.lstrip("/")
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
