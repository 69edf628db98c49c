"""Reconciliation: the log held against what ClickHouse says, group by group, and every difference named.

    1  how far every follower is; nothing beyond that is compared, so a busy log gives no false alarm
    2  entries, records, usage: the fingerprints of all groups from both sides, merged in the order of their keys
    3  rollups against the same groups, balances of the database against the sums of the log
    4  where anything differs: the positions behind it (projections/reconcile_search.py)

Both sides are computed by their own engines, in their own words, and must agree exactly.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha3_512
from typing import Any, NamedTuple, TypeVar

from domain.billing.fingerprints import EMPTY, ENTRIES, RECORDS, TABLES, Table, Totals
from domain.billing.reconciliation import TEXT_MAX, Change, Difference
from domain.log.records import address_text
from ops.clickhouse import ClickHouse
from ops.reconcile_log import LogSide
from ops.reconcile_views import wrong_views
from ops.reconcile_warehouse import RollupRow, WarehouseSide
from projections.reconcile_search import BUCKET, LISTED_MAX, Differences, Search, tell_doubled, texts, units

# A follower further behind than this is a difference of its own; what it has not applied is not compared.
BEHIND_RECORDS_MAX = 100_000
BEHIND_S_MAX = 600.0
BEYOND_LISTED_MAX = 1_000
# Rollups that went on while they were read are held against the entries they count, this many at most.
MOVING_MAX = 100_000

T = TypeVar("T")
Key = tuple[str, ...]
Progress = Callable[[str, int], None]


class Scope(NamedTuple):
    """What to compare: up to a position (included), one account, and whether every mirrored byte is hashed again."""

    as_of: int | None = None
    account: str | None = None
    deep: bool = False

    @property
    def text(self) -> str:
        return "all" if self.account is None else f"account {self.account}"[:200]


WHOLE = Scope()


@dataclass
class Comparison:
    """What a reconciliation came to.

    Units: bound is the first position that was not compared, the least of `bounds`, which are by table.
    """

    scope: Scope
    log_size: int = 0
    bounds: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    rollup_rows: int = 0
    accounts: int = 0
    seconds: float = 0.0
    found: Differences = field(default_factory=Differences)
    tables_apart: set[str] = field(default_factory=set)
    views: int = 0
    views_apart: list[str] = field(default_factory=list)

    @property
    def bound(self) -> int:
        return min(self.bounds.values(), default=0)

    @property
    def is_clean(self) -> bool:
        """Say whether nothing at all was found."""
        return self.found.count == 0


def silent(what: str, done: int) -> None:
    """Say nothing about progress."""


async def compare(
    url: str, clickhouse: ClickHouse, scope: Scope = WHOLE, progress: Progress = silent
) -> Comparison:
    """Compare the log in a database with a ClickHouse; nothing is changed.

    Cost:   every record is read about three times by PostgreSQL, every row about twice by ClickHouse; more only where
            something differs. Memory for one group of each side.
    Errors: reconciliation_running, unavailable, clickhouse_refused.
    """
    warehouse = WarehouseSide(clickhouse)
    opened: list[LogSide] = []
    try:
        result = await asyncio.to_thread(_compare, url, warehouse, scope, progress, opened)
    except asyncio.CancelledError:
        # The thread is in the middle of a statement; it is not waited for longer than that takes to be given up.
        for log in opened:
            await asyncio.to_thread(log.give_up)
        raise
    if scope.account is None:
        await _compare_views(clickhouse, result)
    return result


async def _compare_views(clickhouse: ClickHouse, result: Comparison) -> None:
    result.views, wrong = await wrong_views(clickhouse)
    for view in wrong:
        words = [_apart("query", view.wanted, view.there)]
        result.found.add(Difference("stale_view", f"bi.{view.name}", "", None, None, 1, None, None, words))
        result.views_apart.append(view.name)
    result.found.settle()


def _apart(what: str, wanted: str, there: str | None) -> Change:
    """Show two long texts from where they part."""
    if there is None:
        return Change(what, wanted[:TEXT_MAX], None)
    same = next((n for n, (a, b) in enumerate(zip(wanted, there, strict=False)) if a != b), 0)
    start = max(0, same - 40)
    return Change(what, wanted[start : start + TEXT_MAX], there[start : start + TEXT_MAX])


def _compare(
    url: str, warehouse: WarehouseSide, scope: Scope, progress: Progress, opened: list[LogSide]
) -> Comparison:
    started_s = time.perf_counter()
    with LogSide.opened(url) as log:
        opened.append(log)
        run = _Run(log, warehouse, scope, progress)
        run.measure()
        tables = TABLES if scope.account is None else (ENTRIES,)
        for table in tables:
            run.table(table)
        run.balances()
        if scope.deep and scope.account is None:
            run.deep()
        run.result.seconds = time.perf_counter() - started_s
        return run.result


class _Run:
    """One comparison under way."""

    def __init__(self, log: LogSide, warehouse: WarehouseSide, scope: Scope, progress: Progress) -> None:
        self._log = log
        self._warehouse = warehouse
        self._scope = scope
        self._progress = progress
        self._nets: dict[str, int] = {}
        self._follower_rows = 0
        self._stale_count = 0
        self.result = Comparison(scope, log.size)
        self.found = self.result.found

    # ------------------------------------------------------------------ how far

    def measure(self) -> None:
        """Find out up to where each table can be compared; a follower far behind is named."""
        asked = self._log.size if self._scope.as_of is None else min(self._log.size, self._scope.as_of + 1)
        named: set[str] = set()
        for table in TABLES if self._scope.account is None else (ENTRIES,):
            standing = self._log.standing(table.follower)
            self.result.bounds[table.name] = min(asked, standing.position)
            lag = self._log.size - standing.position
            age_s = (self._log.now() - standing.since).total_seconds() if standing.since else 0.0
            is_behind = lag > BEHIND_RECORDS_MAX or (lag > 0 and age_s > BEHIND_S_MAX)
            # A follower of several tables is named once.
            if is_behind and table.follower not in named:
                named.add(table.follower)
                words = [Change("position", str(self._log.size), str(standing.position))]
                key = f"{table.follower} {age_s:.0f} s"
                self._add("behind", table, key, lag, words, standing.position, self._log.size - 1)

    def _add(
        self,
        kind: Any,
        table: Table | str,
        key: str,
        rows: int,
        words: list[Change],
        position: int | None = None,
        last: int | None = None,
    ) -> None:
        name = table if isinstance(table, str) else table.name
        self.found.add(Difference(kind, name, key, position, last, rows, None, None, words))

    # ------------------------------------------------------------------ one table

    def table(self, table: Table) -> None:
        """Compare one table, its rollup, and what was sent twice or from nowhere."""
        bound, account = self.result.bounds[table.name], self._scope.account
        self._progress(table.name, 0)
        differs, stale, moving = self._groups(table, bound, account)
        if differs:
            self.result.tables_apart.add(table.name)
            Search(self._log, self._warehouse, table, self.found, account).run(bound)
        self._rollup(table, stale, moving)
        if account is None:
            self._beyond(table)
            if self._warehouse.raw_total(table, bound) != self._follower_rows:
                self.result.tables_apart.add(table.name)
                tell_doubled(self._warehouse, table, bound, self.found)

    def _groups(
        self, table: Table, bound: int, account: str | None
    ) -> tuple[bool, list[tuple[Key, Totals, RollupRow | None]], list[RollupRow]]:
        """Merge the groups of both sides and of the rollup.

        Gives whether any differ, the rows of the rollup that are wrong, and those that went on while they were read.
        """
        differs = False
        stale: list[tuple[Key, Totals, RollupRow | None]] = []
        moving: list[RollupRow] = []
        rows = groups = self._follower_rows = self._stale_count = 0
        rollup = self._warehouse.rollup(table, account) if table.rollup else iter(())
        sides: tuple[Iterator[tuple[Key, Any]], ...] = (
            self._log.groups(table, bound, account),
            self._warehouse.groups(table, bound, account),
            ((row.key, row) for row in rollup),
        )
        for key, (said, there, row) in merged(sides):
            log, warehouse = said or EMPTY, there or EMPTY
            differs = differs or log[:7] != warehouse[:7]
            rows, groups = rows + log.rows, groups + bool(log.rows)
            self._follower_rows += warehouse.rows
            if table is ENTRIES:
                self._nets[key[0]] = self._nets.get(key[0], 0) + log.amount
            if table.rollup:
                if row is not None and row.upto > bound:
                    moving += [row] if len(moving) < MOVING_MAX else []
                elif not agrees(table, log, row):
                    self._stale_count += 1
                    stale += [(key, log, row)] if len(stale) < LISTED_MAX else []
            if groups % 1_000 == 0:
                self._progress(table.name, rows)
        self.result.rows[table.name], self.result.groups[table.name] = rows, groups
        return differs, stale, moving

    def _rollup(
        self, table: Table, stale: list[tuple[Key, Totals, RollupRow | None]], moving: list[RollupRow]
    ) -> None:
        """Name rollup rows that do not say what the log says, or what the entries they count say."""
        if self._scope.as_of is not None:
            # Asked about an earlier day: these count what came later, and say nothing about then.
            moving = []
        self.result.rollup_rows += len(moving)
        counted = self._warehouse.groups_upto(table, moving)
        wrong = [row for row in moving if not agrees(table, counted.get(row.key, EMPTY), row)]
        self.found.count_more(self._stale_count - len(stale))
        for key, right, there in [*stale, *((row.key, counted.get(row.key, EMPTY), row) for row in wrong)]:
            self.result.tables_apart.add(table.name)
            words = _rollup_words(table, right, there)
            self._add("stale_rollup", str(table.rollup), texts(key), max(1, right.rows), words)

    def _beyond(self, table: Table) -> None:
        """Name rows of records the log does not have: by now, since the log goes on while it is compared."""
        rows = self._warehouse.beyond(table, self._log.size, BEYOND_LISTED_MAX)
        size = self._log.size_now() if rows else 0
        for position, address in rows:
            if position >= size:
                self.result.tables_apart.add(table.name)
                found = Difference(
                    "extra", table.name, "beyond the log", position, position, 1,
                    address_text(bytes.fromhex(address)), None, [],
                )  # fmt: skip
                self.found.extend(found)
        self.found.settle()

    # ------------------------------------------------------------------ balances and bytes

    def balances(self) -> None:
        """Hold the database's own balances against the sums of the log's entries."""
        bound = self.result.bounds[ENTRIES.name]
        there = dict(self._log.balances(bound, self._scope.account))
        self.result.accounts = len(there)
        for account in sorted(self._nets.keys() | there.keys()):
            right, said = self._nets.get(account, 0), there.get(account, 0)
            if right != said:
                self._add(
                    "balance", "accounts", account[:200], 1, [Change("balance", units(right), units(said))]
                )

    def deep(self) -> None:
        """Hash every mirrored record again, by the address's own hash."""
        bound = self.result.bounds[RECORDS.name]
        for start in range(0, bound, BUCKET):
            self._progress("bytes", start)
            for position, address, record in self._warehouse.records_from(start, min(bound, start + BUCKET)):
                made = sha3_512(record).digest()
                if made != address:
                    self.result.tables_apart.add(RECORDS.name)
                    words = [Change("address", address_text(made), address_text(address))]
                    self._add("altered", RECORDS, "sha3-512 of the bytes", 1, words, position, position)


def agrees(table: Table, right: Totals, row: RollupRow | None) -> bool:
    """Say whether a row of a rollup counts exactly what it must; a group without rows needs none."""
    if row is None:
        return right.rows == 0
    return row.said == _must_say(table, right, row)


def _must_say(table: Table, right: Totals, row: RollupRow) -> dict[str, int]:
    values = right._asdict() | dict(zip(table.more, right.more or (0,) * len(table.more), strict=True))
    return {name: values[name] for name in row.said}


def _rollup_words(table: Table, right: Totals, row: RollupRow | None) -> list[Change]:
    """List what a row of a rollup says, and what it must say."""
    if row is None:
        return [Change("rows", str(right.rows), None)]
    money = {"amount", "debits", "credits"}
    return [
        Change(
            name, units(value) if name in money else str(value), units(said) if name in money else str(said)
        )
        for name, value in _must_say(table, right, row).items()
        if (said := row.said[name]) != value
    ]


def merged(sides: Iterable[Iterator[tuple[Key, Any]]]) -> Iterator[tuple[Key, list[Any]]]:
    """Walk through several streams that are ordered by key, one key at a time; a side without it gives None."""
    streams = list(sides)
    heads = [next(stream, None) for stream in streams]
    while any(head is not None for head in heads):
        key = min(head[0] for head in heads if head is not None)
        values: list[Any] = []
        for at, head in enumerate(heads):
            if head is not None and head[0] == key:
                values.append(head[1])
                heads[at] = next(streams[at], None)
            else:
                values.append(None)
        yield key, values
