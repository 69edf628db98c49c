"""Reading the log and what follows it inside PostgreSQL. Nothing here changes anything but cosignatures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from psycopg_pool import AsyncConnectionPool

from domain.errors import (
    AddressNotFoundError,
    CheckpointNotFoundError,
    PositionNotFoundError,
    TileNotFoundError,
)
from domain.ledger import Loaded, Remembered
from domain.log.filters import Wish
from domain.log.hashes import leaf_hash
from domain.log.records import AGGREGATES, blank, decode
from domain.log.tiles import TILE_WIDTH, encode_bundle, tile_width
from domain.market.offers import Offer, Seller
from domain.values import moment_text
from ops import arrays
from ops.balances import BookReader
from ops.postgres import reading

_TOLD = "SELECT position, address, record, stream, type, tenant FROM events"
_offers = msgspec.json.Decoder(Offer)
_sellers = msgspec.json.Decoder(Seller)


class Stored(NamedTuple):
    """A record as it lies in the log."""

    position: int
    address: bytes
    record: bytes


class Told(NamedTuple):
    """A record with what it is chosen by."""

    position: int
    address: bytes
    record: bytes
    stream: str
    type: str
    tenant: str


class Head(NamedTuple):
    """A committed head with the log's signature over it."""

    size: int
    root: bytes
    signature: bytes
    committed_at: datetime


class Deadline(NamedTuple):
    """When something of an aggregate becomes due."""

    at: str
    kind: str
    id: str


class RecordFilter(NamedTuple):
    """What a list of records may be narrowed by; None means any."""

    kind: str
    tenant: str | None = None
    party: str | None = None
    owner: str | None = None
    status: str | None = None
    text: str | None = None
    contains: dict[str, Any] | None = None


class LogReader(BookReader):
    """Reads through a pool; also the reading half of what the gate needs."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    @property
    def pool(self) -> AsyncConnectionPool[Any]:
        return self._pool

    async def close(self) -> None:
        """Give the connections back."""
        await self._pool.close()

    async def _all(self, statement: str, *params: Any) -> list[Any]:
        async with reading(self._pool) as cursor:
            await cursor.execute(statement, params)
            return await cursor.fetchall()

    async def _one(self, statement: str, *params: Any) -> Any:
        async with reading(self._pool) as cursor:
            await cursor.execute(statement, params)
            return await cursor.fetchone()

    # ------------------------------------------------------------------ the gate's side

    async def load(self, streams: Sequence[str]) -> dict[str, Loaded]:
        """Read the aggregates that exist among these streams."""
        # No text of Postgres holds NUL, so nothing is kept under such a name; asking for it would be an error there.
        pairs = [stream.partition("/")[::2] for stream in streams if "\0" not in stream]
        rows = await self._all(
            "SELECT r.kind, r.id, r.state::text, r.address FROM records r"
            " JOIN unnest(%b::text[], %b::text[]) AS u(kind, id) USING (kind, id)",
            arrays.text([kind for kind, _ in pairs]),
            arrays.text([name for _, name in pairs]),
        )
        return {
            f"{kind}/{name}": Loaded(msgspec.json.decode(state, type=AGGREGATES[kind]), bytes(address))
            for kind, name, state, address in rows
        }

    async def remembered(self, key_id: bytes) -> Remembered | None:
        """Read what was answered under a key."""
        row = await self._one(
            "SELECT digest, status, answer, position, event_count FROM keys WHERE id = %s", key_id
        )
        return Remembered(bytes(row[0]), row[1], bytes(row[2]), row[3], row[4]) if row else None

    # ------------------------------------------------------------------ records by place

    async def size(self) -> int:
        """Count the records of the log."""
        return int((await self._one("SELECT size FROM log_head"))[0])

    async def at(self, position: int) -> Stored:
        """Read the record at a position.

        Errors: position_not_found.
        """
        row = await self._one("SELECT position, address, record FROM events WHERE position = %s", position)
        if row is None:
            raise PositionNotFoundError(position=position)
        return Stored(*row)

    async def addressed(self, address: bytes) -> Stored:
        """Read the record of an address.

        Errors: address_not_found.
        """
        row = await self._one("SELECT position, address, record FROM events WHERE address = %s", address)
        if row is None:
            raise AddressNotFoundError
        return Stored(*row)

    async def span(self, start: int, end: int) -> list[Stored]:
        """Read the records of a range of positions, the end not included."""
        rows = await self._all(
            "SELECT position, address, record FROM events WHERE position >= %s AND position < %s ORDER BY position",
            start,
            end,
        )
        return [Stored(*row) for row in rows]

    async def stream(
        self, stream: str, *, size: int | None = None, after: int = 0, limit: int = 10_000
    ) -> list[Stored]:
        """Read a stream in order, as it was in the log of a size, after a version."""
        rows = await self._all(
            "SELECT position, address, record FROM events WHERE stream = %s AND version > %s"
            " AND position < %s ORDER BY version LIMIT %s",
            stream,
            after,
            2**62 if size is None else size,
            limit,
        )
        return [Stored(*row) for row in rows]

    async def fingerprints(self, end: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
        """Fingerprint the records and the movements of money before a position, whatever their order.

        Gives (count, XOR, sum) over words of the addresses, and (count, sum of nano-units x (position + 1)).
        """
        word = "('x' || encode(substring(address, {}, 8), 'hex'))::bit(64)::bigint"
        records = await self._one(
            f"SELECT count(*), coalesce(bit_xor({word.format(1)}), 0),"
            f" coalesce(sum(({word.format(17)})::numeric), 0)::text FROM events WHERE position < %s",
            end,
        )
        moves = await self._one(
            "SELECT count(*), coalesce(sum(amount_nano * (position + 1)), 0)::text FROM postings"
            " WHERE position < %s AND amount_nano <> 0",
            end,
        )
        return (records[0], records[1], int(records[2])), (moves[0], int(moves[1]))

    async def firsts(self, streams: Sequence[str]) -> list[Stored]:
        """Read the first record of each of some streams."""
        return await self.versions([(stream, 1) for stream in streams])

    async def versions(self, wanted: Sequence[tuple[str, int]]) -> list[Stored]:
        """Read records by their stream and their version there; what is not in the log is left out."""
        rows = await self._all(
            "SELECT e.position, e.address, e.record FROM unnest(%s::text[], %s::bigint[]) AS w(stream, version)"
            " JOIN events AS e USING (stream, version) ORDER BY e.position",
            [stream for stream, _ in wanted],
            [version for _, version in wanted],
        )
        return [Stored(*row) for row in rows]

    async def kinds(self, kinds: Sequence[str], *, after: int, size: int, limit: int) -> list[Stored]:
        """Read the records of all streams of some kinds, after a position, in the log of a size."""
        rows = await self._all(
            "SELECT position, address, record FROM events WHERE position > %s AND position < %s"
            " AND split_part(stream, '/', 1) = ANY(%s) ORDER BY position LIMIT %s",
            after,
            size,
            list(kinds),
            limit,
        )
        return [Stored(*row) for row in rows]

    async def search(
        self,
        *,
        after: int,
        limit: int,
        scan: int,
        size: int,
        tenant: str | None,
        wire_type: str | None,
        actor: str | None,
    ) -> tuple[list[Stored], int]:
        """Read records after a position that fit; give them and the position up to which was looked.

        Cost: at most `scan` records are looked at, so a rare wish takes several pages instead of one long query.
        """
        end = min(size, after + 1 + scan)
        rows = await self._all(
            "SELECT position, address, record FROM events WHERE position > %s AND position < %s"
            " AND (%s::text IS NULL OR tenant = %s) AND (%s::text IS NULL OR type = %s)"
            " AND (%s::text IS NULL OR convert_from(record, 'UTF8')::jsonb ->> 'actor' = %s)"
            " ORDER BY position LIMIT %s",
            after, end, tenant, tenant, wire_type, wire_type, actor, actor, limit,
        )  # fmt: skip
        found = [Stored(*row) for row in rows]
        return found, (found[-1].position if len(found) == limit else end - 1)

    async def told(self, start: int, end: int) -> list[Told]:
        """Read a range of positions, the end not included, with what records are chosen by."""
        rows = await self._all(
            f"{_TOLD} WHERE position >= %s AND position < %s ORDER BY position", start, end
        )
        return [Told(*row) for row in rows]

    async def wanted(self, wish: Wish, *, after: int, end: int, limit: int) -> list[Told]:
        """Read the records a follower wants, behind a position and before an end.

        Cost: every record between is looked at, so the caller bounds the range.
        """
        rows = await self._all(
            f"{_TOLD} WHERE position > %s AND position < %s"
            " AND (%s::text IS NULL OR tenant = %s)"
            " AND (cardinality(%s::text[]) = 0 OR stream = ANY(%s::text[]))"
            " AND (cardinality(%s::text[]) + cardinality(%s::text[]) = 0 OR type = ANY(%s::text[])"
            " OR EXISTS (SELECT FROM unnest(%s::text[]) AS b WHERE starts_with(type, b)))"
            " ORDER BY position LIMIT %s",
            after, end, wish.tenant, wish.tenant, *[sorted(wish.streams)] * 2,
            sorted(wish.types), list(wish.beginnings), sorted(wish.types), list(wish.beginnings), limit,
        )  # fmt: skip
        return [Told(*row) for row in rows]

    async def state_at(self, stream: str, size: int) -> Any:
        """Rebuild an aggregate as it was in the log of a size; None where it did not exist yet."""
        aggregate = None
        while True:
            page = await self.stream(stream, size=size, after=aggregate.version if aggregate else 0)
            for stored in page:
                record = decode(stored.record)
                aggregate = (aggregate or blank(stream, record.tenant)).mutate(record)
            if len(page) < 10_000:
                return aggregate

    # ------------------------------------------------------------------ heads and tiles

    async def head(self, size: int | None = None) -> Head:
        """Read the latest committed head, or the one of a size.

        Errors: checkpoint_not_found.
        """
        where = "ORDER BY size DESC LIMIT 1" if size is None else "WHERE size = %s"
        row = await self._one(
            f"SELECT size, root, signature, committed_at FROM checkpoints {where}",
            *([] if size is None else [size]),
        )
        if row is None:
            raise CheckpointNotFoundError(size=size)
        return Head(row[0], bytes(row[1]), bytes(row[2]), row[3])

    async def head_within(self, size: int) -> Head:
        """Read the largest committed head that is not above a size; there is always the empty one."""
        row = await self._one(
            "SELECT size, root, signature, committed_at FROM checkpoints WHERE size <= %s ORDER BY size DESC LIMIT 1",
            size,
        )
        return Head(row[0], bytes(row[1]), bytes(row[2]), row[3])

    async def heads(self, after: int, limit: int) -> list[Head]:
        """List committed heads by size."""
        rows = await self._all(
            "SELECT size, root, signature, committed_at FROM checkpoints WHERE size > %s ORDER BY size LIMIT %s",
            after,
            limit,
        )
        return [Head(r[0], bytes(r[1]), bytes(r[2]), r[3]) for r in rows]

    async def size_at(self, moment: datetime) -> int:
        """Give the size of the log as it was committed by a moment."""
        row = await self._one("SELECT max(size) FROM checkpoints WHERE committed_at <= %s", moment)
        return int(row[0] or 0)

    async def hash_tile(self, level: int, index: int, width: int, size: int | None = None) -> bytes:
        """Read the first hashes of a tile; partial ones are computed from what lies below.

        Cost:   one row for a full tile, at most 255 for a partial one.
        Errors: tile_not_found.
        """
        if width > tile_width(level, index, await self.size() if size is None else size):
            raise TileNotFoundError(level=level, index=index, width=width)
        full = await self._one("SELECT hashes FROM tiles WHERE level = %s AND index = %s", level, index)
        if full is not None:
            return bytes(full[0])[: width * 32]
        first = index * TILE_WIDTH
        if level == 0:
            return b"".join(leaf_hash(s.record) for s in await self.span(first, first + width))
        rows = await self._all(
            "SELECT root FROM tiles WHERE level = %s AND index >= %s AND index < %s ORDER BY index",
            level - 1,
            first,
            first + width,
        )
        return b"".join(bytes(r) for (r,) in rows)

    async def bundle(self, index: int, width: int) -> bytes:
        """Read an entry bundle.

        Errors: tile_not_found.
        """
        if width > tile_width(0, index, await self.size()):
            raise TileNotFoundError(index=index, width=width)
        first = index * TILE_WIDTH
        return encode_bundle([s.record for s in await self.span(first, first + width)])

    # ------------------------------------------------------------------ witnesses

    async def witnesses(self) -> list[tuple[str, str, str | None]]:
        """List the witnesses this log knows: name, verifier key, URL."""
        return [tuple(row) for row in await self._all("SELECT name, vkey, url FROM witnesses ORDER BY name")]

    async def add_witness(self, name: str, vkey: str, url: str | None) -> None:
        """Trust a witness; a known key is left as it is."""
        async with reading(self._pool) as cursor:
            await cursor.execute(
                "INSERT INTO witnesses (name, vkey, url) VALUES (%s, %s, %s) ON CONFLICT (vkey) DO NOTHING",
                (name, vkey, url),
            )

    async def cosignatures(self, size: int) -> list[str]:
        """List the cosignature lines over the checkpoint of a size."""
        rows = await self._all("SELECT line FROM cosignatures WHERE size = %s ORDER BY at, vkey", size)
        return [line for (line,) in rows]

    async def cosigned_size(self, above: int) -> int | None:
        """Give the largest size above another one whose checkpoint a witness has cosigned."""
        return (await self._one("SELECT max(size) FROM cosignatures WHERE size > %s", above))[0]

    async def add_cosignature(self, size: int, vkey: str, line: str, at: datetime) -> bool:
        """Keep a cosignature that was verified; say whether it is new."""
        async with reading(self._pool) as cursor:
            await cursor.execute(
                "INSERT INTO cosignatures (size, vkey, line, at) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                (size, vkey, line, at),
            )
            return cursor.rowcount == 1

    # ------------------------------------------------------------------ current state

    async def records(self, wanted: RecordFilter, *, before: str | None, limit: int) -> list[dict[str, Any]]:
        """List current states, the newest id first, before an id."""
        where, params = _conditions(wanted)
        if before is not None:
            where.append("id < %s")
            params.append(before)
        rows = await self._all(
            f"SELECT state::text FROM records WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT %s",
            *params,
            limit,
        )
        return [msgspec.json.decode(state) for (state,) in rows]

    async def usage(self, tenant: str, *, before: int | None, limit: int) -> list[dict[str, Any]]:
        """List a tenant's usage as it stands, the latest taken first, before a position."""
        rows = await self._all(
            "SELECT e.position, r.state::text FROM events e"
            " JOIN records r ON r.kind = 'usage' AND r.id = substr(e.stream, 7)"
            " WHERE e.type = 'usage.metered' AND e.tenant = %s AND e.position < %s ORDER BY e.position DESC LIMIT %s",
            tenant,
            2**62 if before is None else before,
            limit,
        )
        return [{"position": position, **msgspec.json.decode(state)} for position, state in rows]

    async def count(self, wanted: RecordFilter) -> int:
        """Count current states."""
        where, params = _conditions(wanted)
        return int((await self._one(f"SELECT count(*) FROM records WHERE {' AND '.join(where)}", *params))[0])

    async def all_of(self, kind: str, status: str) -> list[Any]:
        """Read every aggregate of a kind in a status."""
        rows = await self._all(
            "SELECT state::text FROM records WHERE kind = %s AND status = %s", kind, status
        )
        decoder = msgspec.json.Decoder(AGGREGATES[kind])
        return [decoder.decode(state) for (state,) in rows]

    async def market(self) -> tuple[int, list[Offer], dict[str, Seller]]:
        """Read, in one snapshot, the size of the log, every offer not retired, and the history of every seller."""
        async with reading(self._pool) as cursor, cursor.connection.transaction():
            await cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            await cursor.execute("SELECT size FROM log_head")
            ((size,),) = await cursor.fetchall()
            await cursor.execute(
                "SELECT state::text FROM records WHERE kind = 'offer' AND status <> 'retired'"
            )
            offers = [_offers.decode(state) for (state,) in await cursor.fetchall()]
            await cursor.execute("SELECT id, state::text FROM records WHERE kind = 'seller'")
            return size, offers, {name: _sellers.decode(state) for name, state in await cursor.fetchall()}

    async def market_counts(self, party: str | None) -> dict[tuple[str, str | None], int]:
        """Count records by (kind, status), and by (kind, None) in total; offers are everybody's to see."""
        rows = await self._all(
            "SELECT kind, status, count(*) FROM records WHERE kind IN ('offer', 'intent', 'contract', 'dispute')"
            " AND (kind = 'offer' OR %s::text IS NULL OR tenant = %s OR %s = ANY(parties))"
            " GROUP BY GROUPING SETS ((kind, status), (kind))",
            party,
            party,
            party,
        )
        return {(kind, status): count for kind, status, count in rows}

    async def contract_totals(self, party: str | None) -> list[tuple[str, str, int]]:
        """Sum money of contracts: (escrow status, currency, nano-units held or paid out)."""
        rows = await self._all(
            "SELECT escrow_status, currency, sum(trunc(amount * 1000000000))::text FROM ("
            " SELECT state ->> 'escrow_status' AS escrow_status,"
            " state #>> '{agreed_price_per_round_total,currency}' AS currency,"
            " coalesce(state #>> '{payout_amount,amount}', state #>> '{agreed_price_per_round_total,amount}')::numeric"
            " AS amount FROM records WHERE kind = 'contract'"
            " AND (%s::text IS NULL OR tenant = %s OR %s = ANY(parties))) c GROUP BY 1, 2",
            party,
            party,
            party,
        )
        return [(status, currency, int(nano)) for status, currency, nano in rows]

    async def due(self, kinds: Sequence[str], limit: int) -> list[tuple[str, str]]:
        """List aggregates (kind, id) whose deadline has passed, the longest overdue first."""
        rows = await self._all(
            "SELECT kind, id FROM records WHERE deadline <= clock_timestamp() AND kind = ANY(%s)"
            " ORDER BY deadline LIMIT %s",
            list(kinds),
            limit,
        )
        return [(kind, name) for kind, name in rows]

    async def deadlines(
        self, kinds: Sequence[str], until: str, limit: int, but: Sequence[str] = ()
    ) -> list[Deadline]:
        """List the deadlines up to a moment, the longest overdue first, but those of some streams."""
        rows = await self._all(
            "SELECT deadline, kind, id FROM records WHERE deadline <= %s::timestamptz AND kind = ANY(%s)"
            " AND NOT (kind || '/' || id) = ANY(%s) ORDER BY deadline LIMIT %s",
            until,
            list(kinds),
            list(but),
            limit,
        )
        return [Deadline(moment_text(at), kind, name) for at, kind, name in rows]

    async def stopped_capsules(self, limit: int) -> list[tuple[str, int, str]]:
        """List capsules (id, version, persona) that were stopped with what runs on them, and not yet seen to."""
        rows = await self._all(
            "SELECT c.id, c.version, c.owner FROM records c"
            " LEFT JOIN records o ON o.kind = 'offboarding' AND o.id = c.id"
            " WHERE c.kind = 'capsule' AND c.status IN ('revoked', 'suspended') AND c.state ->> 'rentals' = 'end'"
            " AND (o.id IS NULL OR (o.state ->> 'capsule_version')::bigint < c.version) ORDER BY c.id LIMIT %s",
            limit,
        )
        return [(name, version, persona) for name, version, persona in rows]

    async def uses_of(self, persona_id: str, capsule: str, limit: int) -> list[tuple[str, str]]:
        """List what runs on a capsule (kind, id): rentals and subscriptions, and purchases not settled yet.

        Cost: one index scan over all that runs in this log.
        """
        rows = await self._all(
            "SELECT kind, id FROM records WHERE owner = %s"
            " AND (kind, status) IN (('rental', 'requested'), ('rental', 'active'), ('subscription', 'active'),"
            " ('subscription', 'past_due'), ('purchase', 'held'))"
            " AND coalesce(state #>> '{terms,sale,capsule}', state #>> '{plan,sale,capsule}',"
            " state #>> '{sale,capsule}') = %s ORDER BY kind, id LIMIT %s",
            persona_id,
            capsule,
            limit,
        )
        return [(kind, name) for kind, name in rows]


def _conditions(wanted: RecordFilter) -> tuple[list[str], list[Any]]:
    """Turn a filter into SQL conditions; the values travel as parameters."""
    where, params = ["kind = %s"], [wanted.kind]
    simple = (("tenant = %s", wanted.tenant), ("owner = %s", wanted.owner), ("status = %s", wanted.status))
    for condition, value in simple:
        if value is not None:
            where.append(condition)
            params.append(value)
    if wanted.party is not None:
        where.append("(tenant = %s OR %s = ANY(parties))")
        params += [wanted.party, wanted.party]
    if wanted.text is not None:
        where.append("search @@ websearch_to_tsquery('simple', %s)")
        params.append(wanted.text)
    if wanted.contains is not None:
        where.append("state @> %s::jsonb")
        params.append(msgspec.json.encode(wanted.contains).decode())
    return where, params
