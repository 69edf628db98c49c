"""Reading the records that issued documents, in the order of their numbers, a page at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from psycopg_pool import AsyncConnectionPool

from domain.billing.statements import Frame
from ops.postgres import reading
from ops.reads import Stored

# Documents read at a time. A record holds 64 KiB at most.
PAGE = 100

_ISSUED = """
    SELECT r.id, e.position, e.address, e.record FROM records r
    JOIN events e ON e.stream = r.kind || '/' || r.id AND e.version = 1
    WHERE r.kind = %(kind)s AND r.id > %(after)s AND e.position <= %(as_of)s
        AND (%(tenant)s::text IS NULL OR r.tenant = %(tenant)s)
        AND (%(start)s::text IS NULL OR r.state ->> 'created_at' COLLATE "C" >= %(start)s)
        AND (%(end)s::text IS NULL OR r.state ->> 'created_at' COLLATE "C" < %(end)s)
    ORDER BY r.id LIMIT %(limit)s
"""


async def issued_in(
    pool: AsyncConnectionPool[Any], kind: str, frame: Frame, tenant: str | None, page: int = PAGE
) -> AsyncIterator[list[Stored]]:
    """Read the first records of all aggregates of a kind that were written in a period, as known at a position.

    Cost:   one walk over the aggregates of the kind, and memory for one page.
    Errors: unavailable.
    """
    after = ""
    while True:
        given = {"kind": kind, "after": after, "tenant": tenant, "limit": page, **frame._asdict()}
        async with reading(pool) as cursor:
            await cursor.execute(_ISSUED, given)
            rows = await cursor.fetchall()
        if rows:
            yield [Stored(*row[1:]) for row in rows]
        if len(rows) < page:
            return
        after = rows[-1][0]
