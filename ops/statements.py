"""The SQL of a commit: one data-modifying statement, put together from the parts a batch needs.

`h` is the head: compared and set, compared only, or already settled by the surrounding transaction. Every other part
writes only where `h` gave a row, so a batch computed on an old head writes nothing at all.
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from typing import NamedTuple


class HeadMode(Enum):
    """How the statement treats the head row."""

    SET = "set"  # the batch has records: compare and set
    KEEP = "keep"  # the batch has none: compare, and keep others out until it is committed
    LOOK = "look"  # the batch writes nothing: compare, so that nobody is refused on an old state
    DONE = "done"  # the surrounding transaction has set it


class Parts(NamedTuple):
    """Which parts a statement has. Parameters follow in this order, after those of the head."""

    head: HeadMode
    events: bool
    tree: bool
    tiles: bool
    keys: bool
    money: bool
    states: bool


_HEAD = {
    HeadMode.SET: "h AS (UPDATE log_head SET size = %b::bigint, root = %b::bytea"
    " WHERE size = %b::bigint AND root = %b::bytea RETURNING size)",
    HeadMode.KEEP: "h AS (SELECT size FROM log_head WHERE size = %b::bigint AND root = %b::bytea FOR SHARE)",
    HeadMode.LOOK: "h AS (SELECT size FROM log_head WHERE size = %b::bigint AND root = %b::bytea)",
    HeadMode.DONE: "h AS (SELECT %b::bigint AS size)",
}
_GO = "WHERE EXISTS (SELECT 1 FROM h)"
_EVENTS = (
    "e AS (INSERT INTO events (position, version, stream, type, tenant, address, record)"
    " SELECT %b::bigint + u.n - 1, u.v, u.s, u.t, u.o, u.a, u.r"
    " FROM unnest(%b::bigint[], %b::text[], %b::text[], %b::text[], %b::bytea[], %b::bytea[])"
    f" WITH ORDINALITY AS u(v, s, t, o, a, r, n) {_GO})"
)
_TREE = "c AS (INSERT INTO checkpoints (size, root, signature) SELECT size, %b::bytea, %b::bytea FROM h)"
_TILES = (
    "t AS (INSERT INTO tiles (level, index, hashes, root)"
    f" SELECT * FROM unnest(%b::smallint[], %b::bigint[], %b::bytea[], %b::bytea[]) {_GO})"
)
_KEYS = (
    "k AS (INSERT INTO keys (id, digest, status, position, event_count, answer)"
    " SELECT * FROM unnest(%b::bytea[], %b::bytea[], %b::smallint[], %b::bigint[], %b::integer[], %b::bytea[])"
    f" {_GO})"
)
_MONEY = (
    "p AS (INSERT INTO postings (account, position, leg, amount_nano, hold, balance_nano, held_nano)"
    " SELECT u.a, u.p, u.l, u.m::numeric, u.h, u.b::numeric, u.r::numeric FROM unnest(%b::text[], %b::bigint[],"
    f" %b::integer[], %b::text[], %b::text[], %b::text[], %b::text[]) AS u(a, p, l, m, h, b, r) {_GO}),"
    " a AS (INSERT INTO accounts (account, currency, side, overdraft, balance_nano, held_nano)"
    " SELECT u.a, u.c, u.s, u.o = 't', u.b::numeric, u.h::numeric FROM unnest(%b::text[], %b::text[], %b::text[],"
    f" %b::text[], %b::text[], %b::text[]) AS u(a, c, s, o, b, h) {_GO}"
    " ON CONFLICT (account) DO UPDATE SET balance_nano = excluded.balance_nano, held_nano = excluded.held_nano),"
    " g AS (INSERT INTO holds (hold, account, currency, amount_nano, status)"
    " SELECT u.h, u.a, u.c, u.m::numeric, u.s FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[])"
    f" AS u(h, a, c, m, s) {_GO} ON CONFLICT (hold) DO UPDATE SET status = excluded.status)"
)
_STATES = (
    "s AS (INSERT INTO records (kind, id, version, address, tenant, owner, status, deadline, parties, state, search)"
    " SELECT u.k, u.i, u.v, u.a, u.t, u.o, u.s, u.d::timestamptz, string_to_array(u.p, ','), u.j::jsonb,"
    " to_tsvector('simple', u.x)"
    " FROM unnest(%b::text[], %b::text[], %b::bigint[], %b::bytea[], %b::text[], %b::text[], %b::text[], %b::text[],"
    f" %b::text[], %b::text[], %b::text[]) AS u(k, i, v, a, t, o, s, d, p, j, x) {_GO}"
    " ON CONFLICT (kind, id) DO UPDATE SET version = excluded.version, address = excluded.address,"
    " owner = excluded.owner, status = excluded.status, deadline = excluded.deadline, parties = excluded.parties,"
    " state = excluded.state, search = excluded.search)"
)


@cache
def commit_statement(parts: Parts) -> bytes:
    """Put the statement together; it returns one row, or none where the head had moved."""
    ctes = [_HEAD[parts.head]]
    wanted = zip(parts[1:], (_EVENTS, _TREE, _TILES, _KEYS, _MONEY, _STATES), strict=True)
    ctes += [cte for want, cte in wanted if want]
    notify = "pg_notify('soma_log', size::text), " if parts.tree else ""
    return f"WITH {', '.join(ctes)} SELECT {notify}size FROM h".encode()


SET_HEAD = b"UPDATE log_head SET size = %b, root = %b WHERE size = %b AND root = %b"
READ_HEAD = b"SELECT size, root FROM log_head"
LOCK_HEAD = b"SELECT size, root FROM log_head FOR UPDATE"
COPY_EVENTS = (
    b"COPY events (position, version, stream, type, tenant, address, record) FROM STDIN (FORMAT BINARY)"
)
# States of streams that begin in this batch, and need none of the columns left out: no row of theirs can be there.
COPY_STATES = (
    b"COPY records (kind, id, version, address, tenant, owner, status, state) FROM STDIN (FORMAT BINARY)"
)
WAS_COMMITTED = b"SELECT 1 FROM checkpoints WHERE size = %b AND root = %b"
TAKEN_VERSIONS = (
    b"SELECT DISTINCT u.n - 1 FROM unnest(%b::text[], %b::bigint[]) WITH ORDINALITY AS u(s, v, n)"
    b" JOIN events e ON e.stream = u.s AND e.version = u.v"
)
TAKEN_KEYS = b"SELECT id FROM keys WHERE id = ANY(%b::bytea[])"
LOAD_ACCOUNTS = (
    b"SELECT account, currency, side, overdraft, balance_nano::text, held_nano::text FROM accounts"
    b" WHERE account = ANY(%b::text[])"
)
LOAD_HOLDS = (
    b"SELECT hold, account, amount_nano::text, currency, status FROM holds WHERE hold = ANY(%b::text[])"
)
FOREIGN_STREAMS = b"SELECT DISTINCT stream FROM events WHERE position >= %b AND position < %b LIMIT 5001"
EDGE_RECORDS = b"SELECT record FROM events WHERE position >= %b AND position < %b ORDER BY position"
EDGE_ROOTS = b"SELECT root FROM tiles WHERE level = %b AND index >= %b AND index < %b ORDER BY index"
