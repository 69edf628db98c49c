"""Reading the log in large batches, for followers: one connection and one thread for each of them.

The pool's asynchronous connections answer many small questions at once; for megabytes they register with the event loop
at every piece that arrives, which cost a fifth of a follower's time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg

from domain.errors import UnavailableError
from ops import postgres
from ops.reads import Stored

# Bounded by LIMIT and not by an end: whatever the planner thinks of the table, it then walks the index.
_LAST = """
SELECT max(position) FROM (
    SELECT position, sum(length(record)) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING) AS bytes
    FROM (SELECT position, record FROM events WHERE position >= %s ORDER BY position LIMIT %s) AS e
) AS e WHERE bytes <= %s OR position = %s
"""
_RECORDS = """
SELECT position, address, record FROM (
    SELECT position, address, record, type FROM events WHERE position >= %s ORDER BY position LIMIT %s
) AS e WHERE NOT type = ANY(%s) ORDER BY position
"""


class BatchReader:
    """Reads batches one after another; after an outage the next one connects again."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection[Any] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")

    async def read(
        self, start: int, end: int, bytes_max: int, skips: Sequence[str] = ()
    ) -> tuple[list[Stored], int]:
        """Read records from a position on, up to an end or to a number of bytes, but at least one; and give the end.

        Where it is cut depends on nothing but the log, so a batch that is read again is the same one. Records of wire
        types in `skips` are left out of it.
        Errors: unavailable.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._read, start, end, bytes_max, list(skips)
        )

    async def close(self) -> None:
        """Finish what is being read, and give the connection back."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._forget)
        self._thread.shutdown(wait=False)

    def _read(self, start: int, end: int, bytes_max: int, skips: list[str]) -> tuple[list[Stored], int]:
        try:
            if self._connection is None:
                self._connection = postgres.connect_reader(self._url)
            with self._connection.cursor(binary=True) as cursor:
                row = cursor.execute(_LAST, (start, end - start, bytes_max, start)).fetchone()
                if row is None or row[0] is None:
                    return [], start
                rows = cursor.execute(_RECORDS, (start, row[0] + 1 - start, skips)).fetchall()
                return list(map(Stored._make, rows)), row[0] + 1
        except (psycopg.OperationalError, psycopg.InterfaceError) as outage:
            self._forget()
            raise UnavailableError(
                "the database does not answer", internal=str(outage), retry_after_s=1
            ) from outage

    def _forget(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
