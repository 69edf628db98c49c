"""Hearing that the log has grown: one connection that listens, for all who wait in this process.

A notification can be lost - with the connection, or where a pooler stands in between - so the size is also read once a
second. What a waiter is told is only that it is worth looking; what is there, it reads from the log.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Self

import psycopg

from ops import postgres, telemetry

log = telemetry.logger(__name__)

POLL_S = 1.0
RETRY_S_MAX = 5.0
ANSWER_S_MAX = 10.0


class Listener:
    """Wakes those who wait for the log to grow; it outlives outages of the database.

    Units: sizes count records, so the record at position p is there once the size is above p.
    """

    def __init__(self, url: str, poll_s: float = POLL_S) -> None:
        self._url = url
        self._poll_s = poll_s
        self._size = 0
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="log-listener")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    @property
    def size(self) -> int:
        """Give the size last heard of; the log may be larger, never smaller."""
        return self._size

    async def wait(self, size_seen: int, timeout_s: float) -> None:
        """Wait until the log is larger than what was seen, or until the time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._size <= size_seen:
                    await self._news.wait()

    def _tell(self, size: int) -> None:
        if size != self._size:
            self._size = size
            # Those who wait hold the old event; whoever comes later waits for the next news.
            self._news.set()
            self._news = asyncio.Event()

    async def _run(self) -> None:
        pause_s = 0.05
        while True:
            try:
                async with await postgres.connect_listener(self._url) as conn:
                    pause_s = 0.05
                    await self._listen(conn)
            except (psycopg.Error, OSError, TimeoutError) as outage:
                # State: nobody is woken. Waiters come back by their time-out and meet the outage themselves.
                log.warning("listener_lost", detail=str(outage), retry_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(RETRY_S_MAX, pause_s * 2)

    async def _listen(self, conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("LISTEN soma_log")
        while True:
            # Read after LISTEN, so that no commit falls between; a size that was read may also be smaller than
            # what was heard, when the database was restored to an earlier state.
            self._tell(await _read_size(conn))
            async for notification in conn.notifies(timeout=self._poll_s):
                if notification.payload.isdigit():
                    self._tell(max(self._size, int(notification.payload)))


async def _read_size(conn: psycopg.AsyncConnection[Any]) -> int:
    """Read the size of the log; a connection that hangs is given up."""
    async with asyncio.timeout(ANSWER_S_MAX):
        cursor = await conn.execute("SELECT size FROM log_head")
        row = await cursor.fetchone()
    return int(row[0]) if row else 0
