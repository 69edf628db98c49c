"""What was used: readings of the log summed up in PostgreSQL, as they were known at a position.

A reading counts by the latest version of it before the position, in the stretch of time it occurred in. What a total
is made of can be listed again, record by record, so every figure of a bill leads back to the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec
from psycopg import AsyncCursor
from psycopg_pool import AsyncConnectionPool

from domain.billing.invoices import Source
from domain.billing.limits import Row
from domain.billing.metering import Used
from domain.billing.usage import AHEAD_S_MAX
from domain.log.records import address_text
from domain.values import moment_of, moment_text
from ops.postgres import RECONCILE_TIMEOUT_MS, reading

# Two clocks of the ledger never differ by more than this, nor does one of them step back further.
CLOCKS_S_MAX = 86_400

# The wire types are written out, since only then the indices on them are used.
_VERSIONS = """
    SELECT position, version, stream, tenant, address, record FROM events
    WHERE type = 'usage.metered' AND tenant = ANY(%(tenants)s) AND position >= %(first)s AND position < %(bound)s
    UNION ALL
    SELECT position, version, stream, tenant, address, record FROM events
    WHERE type = 'usage.corrected' AND tenant = ANY(%(tenants)s) AND position >= %(first)s AND position < %(bound)s
"""
_MEMBERS = """json_to_record(convert_from(e.record, 'UTF8')::json -> 'data') AS d(
    occurred_at text, provider text, model text, persona_id text,
    tokens_in bigint, tokens_out bigint, cached_tokens bigint, requests bigint)"""
_LATEST = """NOT EXISTS (
    SELECT FROM events c WHERE c.type = 'usage.corrected' AND c.tenant = ANY(%(tenants)s)
    AND c.position < %(bound)s AND c.stream = e.stream AND c.version = e.version + 1)"""
_TOTALS = f"""
SELECT s.stretch, d.provider, d.model, d.persona_id, sum(d.tokens_in)::text, sum(d.tokens_out)::text,
    coalesce(sum(d.cached_tokens), 0)::text, sum(d.requests)::text, count(*), min(e.position), max(e.position),
    sum(('x' || encode(substring(e.address, 1, 8), 'hex'))::bit(64)::bigint::numeric)::text
FROM ({_VERSIONS}) AS e CROSS JOIN LATERAL {_MEMBERS}
JOIN unnest(%(owners)s::text[], %(starts)s::text[], %(ends)s::text[], %(numbers)s::int[])
    AS s(tenant, start, stop, stretch)
    ON s.tenant = e.tenant AND d.occurred_at COLLATE "C" >= s.start AND d.occurred_at COLLATE "C" < s.stop
WHERE {_LATEST}
GROUP BY s.stretch, d.provider, d.model, d.persona_id
ORDER BY s.stretch, d.provider COLLATE "C", d.model COLLATE "C", d.persona_id COLLATE "C" NULLS FIRST
"""
_READINGS = f"""
SELECT e.position, e.version, e.stream, e.address, convert_from(e.record, 'UTF8')
FROM ({_VERSIONS}) AS e CROSS JOIN LATERAL {_MEMBERS}
JOIN unnest(%(starts)s::text[], %(ends)s::text[], %(providers)s::text[], %(models)s::text[], %(personas)s::text[])
    AS g(start, stop, provider, model, persona)
    ON g.provider = d.provider AND g.model = d.model AND g.persona IS NOT DISTINCT FROM d.persona_id
    AND d.occurred_at COLLATE "C" >= g.start AND d.occurred_at COLLATE "C" < g.stop
WHERE {_LATEST}
ORDER BY e.position LIMIT %(limit)s
"""
# The same, with the rentals that are counted apart, and the latest moment in each total.
_COUNTERS = f"""
SELECT s.stretch, d.provider, d.model, d.persona_id,
    CASE WHEN r.rental_id = ANY(%(rentals)s) THEN r.rental_id END AS rental,
    sum(d.tokens_in)::text, sum(d.tokens_out)::text, coalesce(sum(d.cached_tokens), 0)::text, sum(d.requests)::text,
    max(d.occurred_at COLLATE "C")
FROM ({_VERSIONS}) AS e CROSS JOIN LATERAL {_MEMBERS}
CROSS JOIN LATERAL (SELECT convert_from(e.record, 'UTF8')::json -> 'data' ->> 'rental_id' AS rental_id) AS r
JOIN unnest(%(owners)s::text[], %(starts)s::text[], %(ends)s::text[], %(numbers)s::int[])
    AS s(tenant, start, stop, stretch)
    ON s.tenant = e.tenant AND d.occurred_at COLLATE "C" >= s.start AND d.occurred_at COLLATE "C" < s.stop
WHERE {_LATEST}
GROUP BY s.stretch, d.provider, d.model, d.persona_id, rental
ORDER BY s.stretch, d.provider COLLATE "C", d.model COLLATE "C", d.persona_id COLLATE "C" NULLS FIRST, rental
"""
# Usage that came after the last document of its period was drawn up; a correction also counts where the version it
# replaces had its place.
_LATE = f"""
SELECT i.id, min(e.position) FROM (
    SELECT position, tenant, record FROM events
    WHERE type IN ('usage.metered', 'usage.corrected') AND position >= %(first)s AND position < %(bound)s
    UNION ALL
    SELECT c.position, c.tenant, b.record FROM events c
    JOIN events b ON b.stream = c.stream AND b.version = c.version - 1
    WHERE c.type = 'usage.corrected' AND c.position >= %(first)s AND c.position < %(bound)s
) AS e CROSS JOIN LATERAL {_MEMBERS}
JOIN records i ON i.kind = 'invoice' AND i.tenant = e.tenant AND i.state ->> 'corrected_by' IS NULL
    AND (i.state ->> 'known_at')::bigint <= e.position
    AND d.occurred_at COLLATE "C" >= i.state ->> 'period_start' COLLATE "C"
    AND d.occurred_at COLLATE "C" < i.state ->> 'period_end' COLLATE "C"
GROUP BY i.id ORDER BY 2
"""
_AT = "SELECT convert_from(record, 'UTF8')::json ->> 'at' FROM events WHERE position = %s"


class Stretch(NamedTuple):
    """A half-open stretch of a tenant's time: moments as the log writes them."""

    tenant: str
    start: str
    end: str


class Reading(NamedTuple):
    """A record behind a total. Units: position in the log; version in its stream; record is its exact text."""

    position: int
    version: int
    stream: str
    address: str
    data: dict[str, Any]
    record: str


class _Record(msgspec.Struct):
    data: dict[str, Any]


_records = msgspec.json.Decoder(_Record)


async def usage_totals(
    pool: AsyncConnectionPool[Any], stretches: Sequence[Stretch], bound: int
) -> dict[Stretch, list[Used]]:
    """Sum up what was used in stretches of time by provider, model and persona, as known before a position.

    Cost:   one pass over the readings of these tenants since the first stretch began: some 7 s a million on two cores.
    Errors: unavailable.
    """
    wanted = list(dict.fromkeys(stretches))
    found: dict[Stretch, list[Used]] = {stretch: [] for stretch in wanted}
    if not wanted:
        return found
    async with reading(pool) as cursor, cursor.connection.transaction():
        await cursor.execute(f"SET LOCAL statement_timeout = {RECONCILE_TIMEOUT_MS}")
        await cursor.execute(_TOTALS, await _given(cursor, wanted, bound))
        async for row in cursor:
            found[wanted[row[0]]].append(_used(row))
    return found


async def usage_counters(
    pool: AsyncConnectionPool[Any], stretches: Sequence[Stretch], rentals: Iterable[str], bound: int
) -> list[Row]:
    """Sum up what was used in stretches of time as a quota counts it, as known before a position.

    Cost:   as for the totals of one tenant.
    Errors: unavailable.
    """
    async with reading(pool) as cursor, cursor.connection.transaction():
        await cursor.execute(f"SET LOCAL statement_timeout = {RECONCILE_TIMEOUT_MS}")
        given = await _given(cursor, stretches, bound)
        await cursor.execute(_COUNTERS, given | {"rentals": sorted(rentals)})
        found = await cursor.fetchall()
    return [
        Row(stretches[row[0]].start, row[9], *row[1:5], *(int(count) for count in row[5:9])) for row in found
    ]


async def usage_readings(
    pool: AsyncConnectionPool[Any],
    tenant: str,
    groups: Sequence[Source],
    *,
    bound: int,
    after: int = -1,
    limit: int = 100,
) -> list[Reading]:
    """List the records that groups of usage are made of, as known before a position, in the order of the log.

    Cost:   as for the totals of one tenant, less what lies before `after`.
    Errors: unavailable.
    """
    if not groups:
        return []
    async with reading(pool) as cursor:
        given = {
            "tenants": [tenant], "first": after + 1, "bound": bound, "limit": limit,
            "starts": [g.start for g in groups], "ends": [g.end for g in groups],
            "providers": [g.provider for g in groups], "models": [g.model for g in groups],
            "personas": [g.persona_id for g in groups],
        }  # fmt: skip
        await cursor.execute(_READINGS, given)
        rows = await cursor.fetchall()
    return [
        Reading(position, version, stream, address_text(bytes(address)), _records.decode(record).data, record)
        for position, version, stream, address, record in rows
    ]


async def late_usage(pool: AsyncConnectionPool[Any], first: int, bound: int) -> dict[str, int]:
    """Find invoices that usage recorded between two positions came too late for, each with the first such position.

    Cost:   one pass over the records between the positions.
    Errors: unavailable.
    """
    async with reading(pool) as cursor, cursor.connection.transaction():
        await cursor.execute(f"SET LOCAL statement_timeout = {RECONCILE_TIMEOUT_MS}")
        await cursor.execute(_LATE, {"first": first, "bound": bound})
        return dict(await cursor.fetchall())


async def _given(cursor: AsyncCursor[Any], wanted: Sequence[Stretch], bound: int) -> dict[str, Any]:
    return {
        "tenants": sorted({stretch.tenant for stretch in wanted}),
        "first": await _first(cursor, min(stretch.start for stretch in wanted), bound),
        "bound": bound,
        "owners": [stretch.tenant for stretch in wanted],
        "starts": [stretch.start for stretch in wanted],
        "ends": [stretch.end for stretch in wanted],
        "numbers": list(range(len(wanted))),
    }


async def _first(cursor: AsyncCursor[Any], start: str, bound: int) -> int:
    """Find a position before which nothing can have occurred at a moment or later, since it was recorded too early.

    Cost: one look-up by position for each halving.
    """
    earliest = moment_text(moment_of(start) - timedelta(seconds=AHEAD_S_MAX + CLOCKS_S_MAX))
    low, high = 0, bound
    while low < high:
        middle = (low + high) // 2
        await cursor.execute(_AT, (middle,))
        row = await cursor.fetchone()
        if row is not None and row[0] < earliest:
            low = middle + 1
        else:
            high = middle
    return low


def _used(row: Any) -> Used:
    return Used(
        provider=row[1],
        model=row[2],
        persona_id=row[3],
        tokens_in=int(row[4]),
        tokens_out=int(row[5]),
        cached_tokens=int(row[6]),
        requests=int(row[7]),
        events=row[8],
        first=row[9],
        last=row[10],
        fingerprint=f"{int(row[11]) % 2**64:016x}",
    )
