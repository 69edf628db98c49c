"""Where a follower stands, kept in PostgreSQL for sinks that have no transactions; and the lock of its one leader.

The lock belongs to the connection the position is written through: a leader that lost the one cannot write the other.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from hashlib import sha256
from typing import Any

import psycopg

from domain.errors import FollowerSupersededError, UnavailableError
from ops import postgres

RETRY_S = 0.2
_ADVANCE = (
    "UPDATE followers SET position = %s, updated_at = clock_timestamp()"
    " WHERE name = %s AND position = %s RETURNING handover"
)


class Place:
    """The place of one follower. After `lead`, and until `close`, this process is its only leader."""

    def __init__(self, conn: psycopg.AsyncConnection[Any], name: str) -> None:
        self._conn = conn
        self.name = name
        self.position = 0
        self.handover = False
        self._asked = False

    @classmethod
    async def open(cls, url: str, name: str) -> Place:
        """Connect; the follower is made known if it is new.

        Errors: unavailable.
        """
        try:
            conn = await postgres.connect_follower(url)
        except psycopg.OperationalError as outage:
            raise _away(outage) from outage
        place = cls(conn, name)
        try:
            await place._run("INSERT INTO followers (name) VALUES (%s) ON CONFLICT DO NOTHING", name)
        except BaseException:
            # Whoever is stopped meanwhile has no place to close; the connection would be left to nobody.
            await place.close()
            raise
        return place

    async def lead(self, wait_s: float | None = None) -> int:
        """Wait to be the leader; give the first position that is not applied.

        A bounded wait that is in vain ends in TimeoutError.
        Errors: unavailable.
        """
        async with asyncio.timeout(wait_s):
            # Asked for again and again, since a connection that waits inside the server cannot be cancelled cleanly.
            while not await self._try_lock():
                await asyncio.sleep(RETRY_S)
                if self._asked:
                    # Who began to lead after the wish was told has not heard of it.
                    await self.ask_handover()
        row = await self._run(
            "UPDATE followers SET handover = false WHERE name = %s RETURNING position", self.name
        )
        self.position, self.handover = int(row[0]), False
        return self.position

    async def _try_lock(self) -> bool:
        return bool((await self._run("SELECT pg_try_advisory_lock(%s)", _lock_key(self.name)))[0])

    async def advance(self, end: int) -> None:
        """Remember that everything before `end` is applied; notice a wish for handover.

        Errors: follower_superseded, unavailable.
        """
        row = await self._run(_ADVANCE, end, self.name, self.position)
        if row is None:
            raise FollowerSupersededError(follower=self.name)
        self.position, self.handover = end, bool(row[0])

    async def look(self) -> None:
        """Notice a wish for handover, and a position that somebody moved.

        Errors: follower_superseded, unavailable.
        """
        await self.advance(self.position)

    async def ask_handover(self) -> None:
        """Ask the leader to let go; while `lead` waits, whoever leads by then is asked as well."""
        self._asked = True
        await self._run("UPDATE followers SET handover = true WHERE name = %s RETURNING true", self.name)

    async def set(self, position: int) -> None:
        """Move the follower; whoever leads it starts over from there."""
        await self._run(
            "UPDATE followers SET position = %s, updated_at = clock_timestamp() WHERE name = %s RETURNING true",
            position,
            self.name,
        )
        self.position = position

    async def forget(self) -> None:
        """Remove the follower's place."""
        await self._run("DELETE FROM followers WHERE name = %s RETURNING true", self.name)

    async def close(self) -> None:
        """Let go of the lock and of the connection."""
        with suppress(psycopg.Error):
            await self._conn.close()

    async def _run(self, statement: str, *params: Any) -> Any:
        try:
            cursor = await self._conn.execute(statement, params)
            return await cursor.fetchone() if cursor.description else None
        except (psycopg.OperationalError, psycopg.InterfaceError) as outage:
            raise _away(outage) from outage


def _lock_key(name: str) -> int:
    """Give the advisory lock of a follower."""
    return int.from_bytes(sha256(f"soma follower {name}".encode()).digest()[:8], "big", signed=True)


def _away(outage: Exception) -> UnavailableError:
    return UnavailableError("the database does not answer", internal=str(outage), retry_after_s=1)
