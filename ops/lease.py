"""Leadership by a lock in PostgreSQL: of all processes at one log, one at a time does what one is enough for.

The lock belongs to a connection of its own: a process that dies lets go of it with its socket, and one whose connection
is cut finds out the next time it looks. Nothing may be right only because of a lease, for a process that is stopped
may believe in its own for a while; it saves work, and what is done twice must come to the same.
"""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256
from typing import Any

import psycopg

from ops import postgres


class Lease:
    """One process's wish to lead something."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._key = int.from_bytes(sha256(f"soma lease {name}".encode()).digest()[:8], "big", signed=True)
        self._conn: psycopg.AsyncConnection[Any] | None = None
        self.is_held = False

    async def hold(self) -> bool:
        """Take the lead if nobody has it, and see that it was not lost; never waits for others.

        A database that is away means that it is not held.
        """
        try:
            if self._conn is None:
                self._conn = await postgres.connect_follower(self._url)
            # While it is held, asking anything shows whether the connection, and the lock with it, are still there.
            statement = "SELECT true" if self.is_held else "SELECT pg_try_advisory_lock(%s)"
            cursor = await self._conn.execute(statement, () if self.is_held else (self._key,))
            row = await cursor.fetchone()
            self.is_held = bool(row and row[0])
        except psycopg.Error:
            await self.close()
        return self.is_held

    async def close(self) -> None:
        """Let go."""
        conn, was_held, self._conn, self.is_held = self._conn, self.is_held, None, False
        if conn is None:
            return
        with suppress(psycopg.Error):
            if was_held and not conn.broken:
                # The server would find out from the closed socket too, but a little later.
                await conn.execute("SELECT pg_advisory_unlock(%s)", (self._key,))
        with suppress(psycopg.Error):
            await conn.close()
