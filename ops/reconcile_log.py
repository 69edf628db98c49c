"""The log's side of a reconciliation: what follows from the bytes of its records, told in SQL of PostgreSQL.

Nothing here knows how a projection works. Legs, days and sums are read out of the records' own JSON, in one snapshot,
and stream out in the order of their keys, so that both sides can be merged in little memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import tuple_row

from domain.billing.fingerprints import (
    DIGESTED,
    ENTRIES,
    LINES,
    RECORDS,
    SALES,
    SEPARATOR,
    USAGE,
    Table,
    Totals,
)
from domain.errors import ReconciliationRunningError, UnavailableError
from ops import reconcile_commerce
from ops.postgres import connect_reconciler

CANCEL_S_MAX = 5.0
LOCK = int.from_bytes(b"somarecn", "big") >> 1

_LEGS_BEFORE = (
    "CASE WHEN m.n = 1 THEN 0 ELSE (SELECT sum(CASE q.entry ->> 'op' WHEN 'transfer' THEN 0 ELSE 1 END"
    " + coalesce(jsonb_array_length(q.entry -> 'postings'), 0))"
    " FROM jsonb_array_elements(j.r #> '{data,money}') WITH ORDINALITY AS q(entry, n) WHERE q.n < m.n) END"
)
# A name of three parts says purpose, tenant and currency; another says nothing.
_NAMED = "array_length(string_to_array(p.posting ->> 'account', '.'), 1) = 3"

# A reading is one row; a correction takes back what it replaces, and says what holds now.
_USED = (
    "SELECT position, 0::bigint AS leg, address, tenant, stream, version, record, NULL::text AS at,"
    " NULL::text AS source, NULL::text AS event_id, NULL::text AS reason, 1 AS sign, 0::bigint AS reverses"
    " FROM events WHERE type = 'usage.metered'"
    " UNION ALL"
    " SELECT c.position, l.leg, c.address, c.tenant, c.stream, c.version,"
    " CASE l.leg WHEN 0 THEN b.record ELSE c.record END, n.c ->> 'at', n.f #>> '{data,source}',"
    " n.f #>> '{data,event_id}', n.c #>> '{data,reason}', CASE l.leg WHEN 0 THEN -1 ELSE 1 END,"
    " CASE l.leg WHEN 0 THEN b.position ELSE 0 END"
    " FROM events AS c JOIN events AS b ON b.stream = c.stream AND b.version = c.version - 1"
    " JOIN events AS f ON f.stream = c.stream AND f.version = 1"
    " CROSS JOIN (VALUES (0::bigint), (1::bigint)) AS l(leg)"
    " CROSS JOIN LATERAL (SELECT convert_from(c.record, 'UTF8')::jsonb AS c, convert_from(f.record, 'UTF8')::jsonb AS f"
    " OFFSET 0) AS n WHERE c.type = 'usage.corrected'"
)
_BOUND = ":bound"
_LATER = (
    "SELECT FROM events AS l WHERE l.type = 'usage.corrected' AND l.stream = e.stream AND l.version = e.version + 1"
    f" AND l.position < {_BOUND}"
)

# Each source gives the columns of its table under their names, all of them as the records state them.
_SOURCES: dict[str, str] = {
    ENTRIES.name: (
        "SELECT e.position, ("
        + _LEGS_BEFORE
        + " + CASE m.entry ->> 'op' WHEN 'post' THEN p.n ELSE p.n - 1 END)::bigint AS leg,"
        " e.address, j.r ->> 'at' AS at, left(j.r ->> 'at', 10) AS day,"
        f" CASE WHEN {_NAMED} THEN split_part(p.posting ->> 'account', '.', 2) ELSE '' END AS tenant,"
        " p.posting ->> 'account' AS account,"
        f" CASE WHEN {_NAMED} THEN split_part(p.posting ->> 'account', '.', 1) ELSE '' END AS purpose,"
        " m.entry ->> 'currency' AS currency, trunc((p.posting ->> 'amount')::numeric * 1000000000) AS amount,"
        " m.entry ->> 'op' AS op, coalesce(m.entry ->> 'hold', '') AS hold, j.r ->> 'type' AS type,"
        " j.r ->> 'stream' AS stream, j.r ->> 'tenant' AS record_tenant, j.r ->> 'actor' AS actor"
        " FROM events AS e CROSS JOIN LATERAL (SELECT convert_from(e.record, 'UTF8')::jsonb AS r OFFSET 0) AS j"
        " CROSS JOIN LATERAL jsonb_array_elements(j.r #> '{data,money}') WITH ORDINALITY AS m(entry, n)"
        " CROSS JOIN LATERAL jsonb_array_elements(m.entry -> 'postings') WITH ORDINALITY AS p(posting, n)"
        # Keys of canonical JSON are spelled in one way, and a quote inside a text is never bare.
        " WHERE position('\"money\":['::bytea IN e.record) > 0"
    ),
    RECORDS.name: (
        "SELECT e.position, 0::bigint AS leg, e.address, e.tenant, e.stream, e.record,"
        " length(e.record)::bigint AS amount,"
        # The first member called `at` is the envelope's: only `actor` stands before it.
        " left(split_part(convert_from(e.record, 'UTF8'), '\"at\":\"', 2), 10) AS day FROM events AS e WHERE true"
    ),
    USAGE.name: (
        "SELECT e.position, e.leg, e.address, coalesce(e.at, j.r ->> 'at') AS at, j.d ->> 'occurred_at' AS occurred_at,"
        " left(j.d ->> 'occurred_at', 13) AS hour, e.tenant, coalesce(e.source, j.d ->> 'source') AS source,"
        " coalesce(e.event_id, j.d ->> 'event_id') AS event_id, e.version, e.sign, e.reverses,"
        " coalesce(e.reason, j.d ->> 'reason', '') AS reason, j.d ->> 'provider' AS provider, j.d ->> 'model' AS model,"
        " coalesce(j.d ->> 'rental_id', '') AS rental, coalesce(j.d ->> 'persona_id', '') AS persona,"
        " j.d ->> 'status' AS status, (j.d ->> 'requests')::bigint AS requests,"
        " (j.d ->> 'tokens_in')::bigint AS tokens_in, (j.d ->> 'tokens_out')::bigint AS tokens_out,"
        " coalesce((j.d ->> 'cached_tokens')::bigint, 0) AS tokens_cached,"
        " coalesce(j.d ->> 'latency_ms', '') AS latency_ms,"
        " trunc(coalesce((j.d #>> '{cost,amount}')::numeric, 0) * 1000000000) AS cost,"
        " coalesce(j.d #>> '{cost,currency}', '') AS currency, e.stream,"
        " e.sign * trunc(coalesce((j.d #>> '{cost,amount}')::numeric, 0) * 1000000000) AS amount,"
        f" e.sign > 0 AND NOT EXISTS ({_LATER}) AS holds"
        f" FROM ({_USED}) AS e CROSS JOIN LATERAL (SELECT c.r, c.r -> 'data' AS d"
        " FROM (SELECT convert_from(e.record, 'UTF8')::jsonb AS r OFFSET 0) AS c OFFSET 0) AS j"
        " WHERE true"
    ),
    LINES.name: reconcile_commerce.LINES,
    SALES.name: reconcile_commerce.SALES,
}
_MORE: dict[str, tuple[str, ...]] = {
    ENTRIES.name: ("sum(greatest(amount, 0))", "sum(greatest(-amount, 0))"),
    **{table.name: () for table in (RECORDS, LINES, SALES)},
    USAGE.name: (
        "sum(sign)", "sum(sign * requests)", "sum(CASE status WHEN 'error' THEN sign * requests ELSE 0 END)",
        "sum(sign * tokens_in)", "sum(sign * tokens_out)", "sum(sign * tokens_cached)",
        "sum(CASE latency_ms WHEN '' THEN 0 ELSE sign * requests END)", "sum(sign * nullif(latency_ms, '')::numeric)",
        "max(nullif(latency_ms, '')::bigint / greatest(requests, 1)) FILTER (WHERE holds)",
    ),
}  # fmt: skip
_ROW_COLUMNS: dict[str, tuple[str, ...]] = {
    ENTRIES.name: ENTRIES.columns,
    RECORDS.name: (
        "position", "leg", "address", "tenant", "split_part(stream, '/', 1)", "stream", "j ->> 'version'",
        "j ->> 'type'",
        "j ->> 'schema'", "j ->> 'at'", "j ->> 'actor'", "coalesce(j ->> 'correlation', '')",
        "coalesce(j ->> 'causation', '')", "record",
    ),
    **{table.name: table.columns for table in (USAGE, LINES, SALES)},
}  # fmt: skip


def _eight(data: str, start: int = 1) -> str:
    """Write how eight bytes are read as a signed number."""
    return f"('x' || encode(substring({data}, {start}, 8), 'hex'))::bit(64)::bigint"


def _digest(table: Table) -> str:
    if table is RECORDS:
        return _eight("sha256(record)")
    columns = ", ".join(DIGESTED[table.name])
    return _eight(f"sha256(convert_to(concat_ws(chr({ord(SEPARATOR)}), {columns}), 'UTF8'))")


def _folds(table: Table) -> str:
    """Write the folds of a fingerprint, in the order of Totals."""
    folds = (
        "count(*)", "coalesce(sum(amount), 0)", "coalesce(sum(amount * (position::numeric + 1)), 0)",
        f"coalesce(bit_xor({_eight('address')}), 0)", f"coalesce(bit_xor({_eight('address', 9)}), 0)",
        f"coalesce(sum({_eight('address', 17)}::numeric), 0)", f"coalesce(bit_xor({_digest(table)}), 0)",
        *(f"coalesce({more}, 0)::numeric" for more in _MORE[table.name]),
    )  # fmt: skip
    return ", ".join(folds)


def _totals(values: Sequence[Any]) -> Totals:
    numbers = [int(value) for value in values]
    rows, amount, weighted, x0, x1, s2, digest = numbers[:7]
    return Totals(rows, amount, weighted, x0, x1, s2, digest, tuple(numbers[7:]))


class Standing(NamedTuple):
    """Where a follower stands; `since` is when the first record it has not applied was committed."""

    position: int
    since: datetime | None


class LogSide:
    """What the log says, seen in one snapshot."""

    def __init__(self, conn: psycopg.Connection[Any], fresh: psycopg.Connection[Any]) -> None:
        self._conn = conn
        self._fresh = fresh
        self._given_up = False
        self._cursor = conn.cursor(binary=True, row_factory=tuple_row)
        self.size: int = self._one("SELECT size FROM log_head")[0]

    @classmethod
    @contextmanager
    def opened(cls, url: str) -> Iterator[LogSide]:
        """Open the log for one comparison; while it is open no other process compares.

        Errors: reconciliation_running, unavailable.
        """
        try:
            with (
                connect_reconciler(url) as fresh,
                _alone(fresh),
                connect_reconciler(url) as conn,
                conn.transaction(),
            ):
                conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                # Groups are gathered in memory, and on disk where they are too many; sorting wide rows takes longer.
                conn.execute("SET LOCAL enable_sort = off")
                conn.execute("SET LOCAL work_mem = '64MB'")
                conn.execute("SET LOCAL enable_memoize = off")
                yield cls(conn, fresh)
        except (psycopg.OperationalError, psycopg.InterfaceError) as outage:
            raise UnavailableError("the database does not answer", internal=str(outage)) from outage

    def _one(self, statement: str, *params: Any) -> Any:
        return self._cursor.execute(statement, params).fetchone()

    def size_now(self) -> int:
        """Count the records of the log as it is by now."""
        row = self._fresh.execute("SELECT size FROM log_head").fetchone()
        assert row is not None, "the migrations write the head row"
        return int(row[0])

    def standing(self, follower: str) -> Standing:
        """Tell how far a follower has come by now, its rollup included, which may wait a little."""
        row = self._fresh.execute(
            "SELECT f.position, (SELECT committed_at FROM checkpoints WHERE size > f.position ORDER BY size LIMIT 1)"
            " FROM (SELECT min(position) AS position FROM followers WHERE name IN (%s, %s)) AS f"
            " WHERE f.position IS NOT NULL",
            [follower, f"{follower}.rollup"],
        ).fetchone()
        return Standing(*row) if row is not None else Standing(0, None)

    def now(self) -> datetime:
        """Give the database's time."""
        row = self._fresh.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        moment: datetime = row[0]
        return moment

    # ------------------------------------------------------------------ groups

    def groups(self, table: Table, bound: int, account: str | None = None) -> Iterator[tuple[Any, Totals]]:
        """Stream the fingerprints of all groups below a position, in the order of their keys.

        Cost: every record below the bound is read once.
        """
        keys = ", ".join(table.group)
        ordered = ", ".join(f'{key} COLLATE "C"' for key in table.group)
        where, params = self._where(table, 0, bound, account)
        statement = (
            f"COPY (SELECT {keys}, {_folds(table)} FROM ({where}) AS s GROUP BY {keys} ORDER BY {ordered})"
            " TO STDOUT (FORMAT binary)"
        )
        width = len(table.group)
        with self._conn.cursor().copy(statement, params) as copy:
            copy.set_types(["text"] * width + self._types(table))
            for row in copy.rows():
                yield row[:width], _totals(row[width:])

    def buckets(self, table: Table, bound: int, width: int, account: str | None = None) -> dict[int, Totals]:
        """Give the fingerprints of ranges of positions of one width, below a bound; empty ones are left out."""
        where, params = self._where(table, 0, bound, account)
        statement = f"SELECT position / {width}, {_folds(table)} FROM ({where}) AS s GROUP BY 1"
        return {row[0]: _totals(row[1:]) for row in self._cursor.execute(statement, params)}

    @staticmethod
    def _types(table: Table) -> list[str]:
        # count and the exclusive ors are whole numbers of 64 bits; sums of whole numbers are numeric.
        return ["int8", "numeric", "numeric", "int8", "int8", "numeric", "int8"] + ["numeric"] * len(
            table.more
        )

    # ------------------------------------------------------------------ ranges and rows

    def totals(self, table: Table, start: int, end: int, account: str | None = None) -> Totals:
        """Give the fingerprint of a range of positions, the end not included."""
        where, params = self._where(table, start, end, account)
        return _totals(self._one(f"SELECT {_folds(table)} FROM ({where}) AS s", *params))

    def rows(self, table: Table, start: int, end: int, account: str | None = None) -> list[dict[str, Any]]:
        """Read the rows of a range of positions."""
        where, params = self._where(table, start, end, account)
        columns = ", ".join(_ROW_COLUMNS[table.name])
        also = ", LATERAL (SELECT convert_from(record, 'UTF8')::jsonb) AS c(j)" if table is RECORDS else ""
        statement = f"SELECT {columns} FROM ({where}) AS s{also} ORDER BY position, leg"
        found = self._cursor.execute(statement, params)
        return [_row(table, values) for values in found]

    def records_from(self, position: int, limit: int) -> list[tuple[int, bytes, bytes]]:
        """Read (position, address, record) in order from a position on."""
        found = self._cursor.execute(
            "SELECT position, address, record FROM events WHERE position >= %s ORDER BY position LIMIT %s",
            (position, limit),
        )
        return [(row[0], bytes(row[1]), bytes(row[2])) for row in found]

    # ------------------------------------------------------------------ giving up

    def give_up(self) -> None:
        """Have the statement under way cancelled and refuse further ones; called from another thread."""
        self._given_up = True
        with suppress(psycopg.Error):
            self._conn.cancel_safe(timeout=CANCEL_S_MAX)

    def _where(self, table: Table, start: int, end: int, account: str | None) -> tuple[str, list[Any]]:
        """Narrow a table's source to a range of positions, and to an account where one is asked for."""
        if self._given_up:
            raise UnavailableError("the reconciliation was given up")
        source, params = (
            f"{_SOURCES[table.name]} AND e.position >= %s AND e.position < %s".replace(_BOUND, str(int(end))),
            [start, end],
        )
        if account is None:
            return source, params
        named = (
            f"{source} AND p.posting ->> 'account' = %s AND position(convert_to(%s, 'UTF8') IN e.record) > 0"
        )
        return named, [*params, account, account]

    # ------------------------------------------------------------------ balances

    def balances(self, bound: int, account: str | None = None) -> Iterator[tuple[str, int]]:
        """Stream what the database's own accounts say after the records below a bound, debits positive, by name.

        Units: nano-units. Cost: one index look-up an account.
        """
        statement = (
            "COPY (SELECT a.account, CASE a.side WHEN 'debit' THEN b.balance_nano ELSE -b.balance_nano END"
            " FROM accounts AS a CROSS JOIN LATERAL (SELECT balance_nano FROM postings AS p WHERE p.account = a.account"
            " AND p.position < %s ORDER BY p.position DESC, p.leg DESC LIMIT 1) AS b"
            ' WHERE %s::text IS NULL OR a.account = %s ORDER BY a.account COLLATE "C") TO STDOUT (FORMAT binary)'
        )
        with self._conn.cursor().copy(statement, (bound, account, account)) as copy:
            copy.set_types(["text", "numeric"])
            for name, nano in copy.rows():
                yield name, int(nano)


@contextmanager
def _alone(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """Hold the lock of reconciliations, or refuse."""
    if conn.execute("SELECT pg_try_advisory_lock(%s)", [LOCK]).fetchone() != (True,):
        raise ReconciliationRunningError
    try:
        yield
    finally:
        # A connection that is closed lets go of its locks a moment later only.
        conn.execute("SELECT pg_advisory_unlock(%s)", [LOCK])


def _row(table: Table, values: Sequence[Any]) -> dict[str, Any]:
    row = dict(zip(table.columns, map(_plain, values), strict=True))
    return row | {"position": int(row["position"]), "leg": int(row["leg"])}


def _plain(value: Any) -> Any:
    """Give bytes as they are and everything else as text."""
    if isinstance(value, bytes | memoryview):
        return bytes(value)
    return str(int(value) if isinstance(value, Decimal) else value)
