"""Those who wait for the log to grow hear of it at once, all of them, and through an outage of their connection."""

from __future__ import annotations

import asyncio
import time

import psycopg

from ops.listen import Listener

SLOW_POLL_S = 300.0


def grow(url: str, size: int, notify: bool = True) -> None:
    """Move the head as a commit does."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("UPDATE log_head SET size = %s", [size])
        if notify:
            conn.execute("SELECT pg_notify('soma_log', %s)", [str(size)])


async def until_listening(listener: Listener, url: str) -> None:
    """Wait until the connection stands: a size it can only have read is there."""
    await asyncio.to_thread(grow, url, 1)
    await listener.wait(0, 30)
    assert listener.size == 1
    async with asyncio.timeout(30):
        while True:
            with psycopg.connect(url) as conn:
                row = conn.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid() AND state = 'idle'"
                ).fetchone()
            if row and row[0]:
                return
            await asyncio.sleep(0.01)


def test_all_who_wait_are_woken_by_one_notification(database_url: str) -> None:
    async def scene() -> None:
        async with Listener(database_url, poll_s=SLOW_POLL_S) as listener:
            await until_listening(listener, database_url)
            waiting = [asyncio.create_task(listener.wait(1, 60)) for _ in range(100)]
            await asyncio.sleep(0)
            started = time.monotonic()
            await asyncio.to_thread(grow, database_url, 2)
            await asyncio.gather(*waiting)
            assert listener.size == 2
            assert time.monotonic() - started < 30  # far from the sixty of the time-out and the poll

    asyncio.run(scene())


def test_who_has_not_seen_what_is_there_does_not_wait_and_who_has_waits_for_its_time(
    database_url: str,
) -> None:
    async def scene() -> None:
        async with Listener(database_url, poll_s=SLOW_POLL_S) as listener:
            await until_listening(listener, database_url)
            await listener.wait(0, 3_600)
            await listener.wait(1, 0.05)
            assert listener.size == 1

    asyncio.run(scene())


def test_growth_without_a_notification_is_found_by_looking(database_url: str) -> None:
    async def scene() -> None:
        async with Listener(database_url, poll_s=0.05) as listener:
            await until_listening(listener, database_url)
            await asyncio.to_thread(grow, database_url, 9, notify=False)
            await listener.wait(1, 60)
            assert listener.size == 9

    asyncio.run(scene())


def test_a_lost_connection_is_made_again_and_nothing_is_missed(database_url: str) -> None:
    async def scene() -> None:
        async with Listener(database_url, poll_s=SLOW_POLL_S) as listener:
            await until_listening(listener, database_url)
            for size in range(2, 6):
                with psycopg.connect(database_url, autocommit=True) as conn:
                    conn.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                await asyncio.to_thread(grow, database_url, size)
                await listener.wait(size - 1, 60)
                assert listener.size == size

    asyncio.run(scene())
