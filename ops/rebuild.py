"""Rebuilding everything that follows the log inside its own database, and holding it against what is there.

Records, accounts, holds, postings and the catalogue are computed a second time, from the records alone and with the
writer's own statements, into temporary tables of the same shape. Then both are digested row by row. Where they differ
the rows are named and, if asked, put right in one transaction that holds the head row, so that no commit passes in
between.

A running service keeps in memory what it has read: after a repair it must be started again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha3_512
from typing import Any, NamedTuple

import msgspec
import psycopg
from psycopg.rows import tuple_row

from domain.book import Book
from domain.errors import LedgerError, LogDamagedError, UnavailableError
from domain.ledger import state_of
from domain.log.records import AGGREGATES, Aggregate, MoneyEvent, Record, blank, decode, digest
from ops import arrays
from ops.plans import Plan, money_params, state_params
from ops.postgres import connect_owner
from ops.statements import HeadMode, Parts, commit_statement

CHUNK_EVENTS = 8_192
RESIDENT_MAX = 200_000
DIFFERENCES_MAX = 100

# The primary key of each table that follows the log.
TABLES: dict[str, tuple[str, ...]] = {
    "records": ("kind", "id"),
    "accounts": ("account",),
    "holds": ("hold",),
    "postings": ("account", "position", "leg"),
    "catalogue": ("persona_id",),
}

Progress = Callable[[int, int], None]


class Difference(NamedTuple):
    """A row that is not what the log leads to; None where there is no such row."""

    table: str
    key: tuple[str, ...]
    live: str | None
    rebuilt: str | None


@dataclass
class RebuildReport:
    """What a rebuild came to.

    Units: seconds is the replay alone; digests are SHA3-512 over all rows in the order of their keys.
    """

    event_count: int = 0
    seconds: float = 0.0
    digests: dict[str, tuple[str, str]] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    difference_count: int = 0
    repaired: bool = False

    @property
    def identical(self) -> bool:
        """Say whether every live row is, bit for bit, the rebuilt one."""
        return all(live == rebuilt for live, rebuilt in self.digests.values())

    @property
    def events_per_s(self) -> float:
        """Give the speed of the replay."""
        return self.event_count / self.seconds if self.seconds else 0.0


def rebuild(
    url: str, progress: Progress | None = None, *, repair: bool = False, resident_max: int = RESIDENT_MAX
) -> RebuildReport:
    """Replay the whole log and compare; with repair, put rows right that differ.

    Connects as the owner of the tables. progress hears (events done, events in all). The report is about the tables as
    they were found; a repair is checked by digests before it is committed.
    Cost:   memory for at most resident_max aggregates and all accounts and pending holds; the database keeps a second
            copy of the tables, without write-ahead log, until the end.
    Errors: log_damaged, unavailable.
    """
    try:
        with connect_owner(url) as conn:
            arrays.register(conn)
            replay = _Replay(conn, progress or _silent, resident_max)
            with conn.transaction():
                # One snapshot for events and tables: writers go on meanwhile and do not disturb the comparison.
                conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                replay.make_tables()
                replay.catch_up()
                report = replay.compare()
            if repair and not report.identical:
                with conn.transaction():
                    conn.execute("SELECT 1 FROM public.log_head FOR UPDATE")
                    replay.catch_up()
                    replay.repair()
                report.repaired = True
            return report
    except psycopg.OperationalError as outage:
        raise UnavailableError("the database does not answer", internal=str(outage)) from outage


def _silent(done: int, total: int) -> None:
    """Say nothing about progress."""


class _Replay:
    """The log computed again, chunk by chunk, into temporary tables that shadow the live ones by name."""

    def __init__(self, conn: psycopg.Connection[Any], progress: Progress, resident_max: int) -> None:
        self._conn = conn
        self._cursor = conn.cursor(binary=True, row_factory=tuple_row)
        self._progress = progress
        self._resident_max = resident_max
        self._residents: OrderedDict[str, tuple[Aggregate, bytes]] = OrderedDict()
        self._book = Book()
        self._done = 0
        self._seconds = 0.0

    def make_tables(self) -> None:
        """Make empty tables of the same shape; unqualified names mean them from here on."""
        for table, key in TABLES.items():
            self._conn.execute(
                f"CREATE TEMP TABLE {table} (LIKE public.{table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)"
            )
            self._conn.execute(f"ALTER TABLE pg_temp.{table} ADD PRIMARY KEY ({', '.join(key)})")

    # ------------------------------------------------------------------ replaying

    def catch_up(self) -> None:
        """Replay from where it stands to the end of the log as this transaction sees it."""
        row = self._cursor.execute("SELECT size FROM public.log_head").fetchone()
        assert row is not None, "the migrations write the head row"
        started = time.perf_counter()
        self._progress(self._done, row[0])
        while self._done < row[0]:
            self._chunk(min(self._done + CHUNK_EVENTS, row[0]))
            self._progress(self._done, row[0])
        self._cursor.execute("TRUNCATE pg_temp.catalogue")
        # The catalogue is a function of each persona's record; replaying writes past the trigger that calls it.
        self._cursor.execute(
            "INSERT INTO pg_temp.catalogue SELECT c.* FROM pg_temp.records r,"
            " public.catalogue_row(r.id, r.tenant, r.state) AS c WHERE r.kind = 'persona'"
        )
        self._seconds += time.perf_counter() - started

    def _chunk(self, end: int) -> None:
        found = self._cursor.execute(
            "SELECT position, record FROM public.events WHERE position >= %s AND position < %s ORDER BY position",
            (self._done, end),
            prepare=True,
        ).fetchall()
        if len(found) != end - self._done:
            raise LogDamagedError("positions are missing from the log", start=self._done, end=end)
        records = [(position, bytes(data), decode(data)) for position, data in found]
        self._fetch({record.stream for _, _, record in records if record.version > 1})
        plan = Plan((), self._done, b"")
        touched: dict[str, None] = {}
        for position, data, record in records:
            self._mutate(data, record)
            touched[record.stream] = None
            if isinstance(record.data, MoneyEvent) and record.data.money:
                self._post(position, record.data, plan)
        self._write(plan, list(touched))
        self._done = end
        self._forget()

    def _mutate(self, data: bytes, record: Record) -> None:
        known = self._residents.get(record.stream)
        aggregate = (
            known[0] if known is not None and record.version > 1 else blank(record.stream, record.tenant)
        )
        self._residents[record.stream] = (aggregate.mutate(record), digest(data))

    def _post(self, position: int, event: MoneyEvent, plan: Plan) -> None:
        try:
            groups = self._book.apply(event.money)
        except LedgerError as refusal:
            raise LogDamagedError(
                f"record {position} moves money that is not there", internal=str(refusal)
            ) from refusal
        for leg, move in enumerate(move for group in groups for move in group):
            plan.postings.append((position, leg, move))
            plan.accounts[move.account] = self._book.accounts[move.account]
            if move.hold is not None:
                plan.holds[move.hold] = self._book.holds[move.hold]

    def _write(self, plan: Plan, streams: Sequence[str]) -> None:
        parts = Parts(HeadMode.DONE, False, False, False, False, bool(plan.postings), True)
        params: list[Any] = [self._done]
        if plan.postings:
            params += money_params(plan)
        params += state_params([state_of(*self._residents[stream]) for stream in streams])
        self._cursor.execute(commit_statement(parts), params, prepare=True)

    # ------------------------------------------------------------------ bounded memory

    def _fetch(self, streams: set[str]) -> None:
        """Read back aggregates that had to make room."""
        wanted = [stream.partition("/")[::2] for stream in streams if stream not in self._residents]
        if not wanted:
            return
        rows = self._cursor.execute(
            "SELECT r.kind, r.id, r.state::text, r.address FROM pg_temp.records r"
            " JOIN unnest(%b::text[], %b::text[]) AS u(kind, id) USING (kind, id)",
            (arrays.text([kind for kind, _ in wanted]), arrays.text([name for _, name in wanted])),
        )
        for kind, name, state, address in rows:
            aggregate = msgspec.json.decode(state, type=AGGREGATES[kind])
            self._residents[f"{kind}/{name}"] = (aggregate, bytes(address))

    def _forget(self) -> None:
        """Keep what fits; all of it is written by now. Settled holds are never asked for again."""
        while len(self._residents) > self._resident_max:
            self._residents.popitem(last=False)
        for name in [name for name, hold in self._book.holds.items() if hold.status != "pending"]:
            del self._book.holds[name]

    # ------------------------------------------------------------------ comparing

    def compare(self) -> RebuildReport:
        """Digest both sides; where they differ, name the first rows."""
        report = RebuildReport(self._done, self._seconds, self._digests())
        for table, (live, rebuilt) in report.digests.items():
            if live != rebuilt:
                self._differences(table, report)
        return report

    def _digests(self) -> dict[str, tuple[str, str]]:
        return {table: (self._digest("public", table), self._digest("pg_temp", table)) for table in TABLES}

    def _digest(self, schema: str, table: str) -> str:
        hashed = sha3_512()
        rows = f"COPY (SELECT * FROM {schema}.{table} ORDER BY {', '.join(TABLES[table])}) TO STDOUT"
        with self._cursor.copy(rows) as copy:
            for data in copy:
                hashed.update(data)
        return hashed.hexdigest()

    def _differences(self, table: str, report: RebuildReport) -> None:
        key = TABLES[table]
        names = ", ".join(f"coalesce(l.{name}, r.{name})::text" for name in key)
        rows = self._cursor.execute(
            f"SELECT count(*) OVER (), {names}, ROW(l.*)::text, ROW(r.*)::text, l.{key[0]} IS NULL, r.{key[0]} IS NULL"
            f" {_differing(table)} ORDER BY {', '.join(str(n + 2) for n in range(len(key)))} LIMIT {DIFFERENCES_MAX}"
        ).fetchall()
        for _count, *found, live, rebuilt, no_live, no_rebuilt in rows:
            shown = None if no_live else live, None if no_rebuilt else rebuilt
            if len(report.differences) < DIFFERENCES_MAX:
                report.differences.append(Difference(table, tuple(found), *shown))
        report.difference_count += rows[0][0] if rows else 0

    def repair(self) -> None:
        """Replace every row that differs, and hold the outcome against the rebuilt tables once more."""
        for table, key in TABLES.items():
            names = ", ".join(key)
            self._conn.execute(
                f"CREATE TEMP TABLE wrong ON COMMIT DROP AS SELECT"
                f" {', '.join(f'coalesce(l.{name}, r.{name}) AS {name}' for name in key)} {_differing(table)}"
            )
            self._conn.execute(f"DELETE FROM public.{table} WHERE ({names}) IN (SELECT {names} FROM wrong)")
            self._conn.execute(
                f"INSERT INTO public.{table} SELECT * FROM pg_temp.{table}"
                f" WHERE ({names}) IN (SELECT {names} FROM wrong)"
            )
            self._conn.execute("DROP TABLE pg_temp.wrong")
        for table, (live, rebuilt) in self._digests().items():
            assert live == rebuilt, f"{table} still differs after its repair"


def _differing(table: str) -> str:
    """Join live and rebuilt rows, and keep those whose text differs; equal numbers of other scale differ too."""
    key = TABLES[table]
    return (
        f"FROM public.{table} l FULL JOIN pg_temp.{table} r USING ({', '.join(key)})"
        " WHERE ROW(l.*)::text IS DISTINCT FROM ROW(r.*)::text"
    )
