"""Rebuilding a group of tables from the log beside the live ones, and putting them in their place.

The states of the world; a rebuild that is started again goes on from whichever it finds:

    1 MADE       `*_next` tables are there, each with the comment `next`; nothing of the live ones is touched
    2 FOLLOWED   the next tables hold the log up to a position of their own, which only grows
    3 LED        the live follower has let go of its lock; the next tables reach at least as far as the live ones
    4 COMPARED   the next tables agree with the log; how the live ones differed is known
    5 EXCHANGED  one more table has changed places with its next one; the comment goes with the table
    6 MOVED      the live position is that of the rebuilt tables
    7 DROPPED    the old tables are gone

Between two exchanges some live tables are new and some old, and all of them hold every record before the live position,
which has not moved: the live follower goes on from there as if nothing had happened, since what is sent twice changes
nothing. Which tables were exchanged is told by the comments alone: `next` on a live table says that it was.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from domain.errors import RebuildDiffersError, RebuildRunsError, UnavailableError
from ops import telemetry
from ops.clickhouse import ClickHouse
from ops.listen import Listener
from ops.positions import Place
from ops.postgres import reader_pool
from ops.reads import LogReader
from projections.follower import Follower
from projections.groups import Group, group_of
from projections.warehouse import NEXT, Warehouse

log = telemetry.logger(__name__)

MARK = "next"
HANDOVER_S_MAX = 120.0
ALONE_S_MAX = 2.0

Progress = Callable[[int, int], None]


class State(IntEnum):
    """The numbered states of the world during a rebuild."""

    MADE = 1
    FOLLOWED = 2
    LED = 3
    COMPARED = 4
    EXCHANGED = 5
    MOVED = 6
    DROPPED = 7


class Difference(NamedTuple):
    """A table before its rebuild and after: rows as they are read, and whether every column of them was the same."""

    live_rows: int
    next_rows: int
    same: bool


@dataclass
class Report:
    """What a rebuild came to."""

    name: str
    record_count: int = 0
    seconds: float = 0.0
    tables: dict[str, Difference] = field(default_factory=dict)

    def __str__(self) -> str:
        rate = self.record_count / self.seconds if self.seconds else 0.0
        lines = [f"{self.name}: {self.record_count:,} records in {self.seconds:,.1f} s, {rate:,.0f} a second"]
        for table, found in self.tables.items():
            said = "as it was" if found.same else f"it had {found.live_rows:,} and differed"
            lines.append(f"  {table}: {found.next_rows:,} rows, {said}")
        return "\n".join(lines)


async def rebuild(
    clickhouse: ClickHouse,
    url: str,
    name: str,
    progress: Progress | None = None,
    *,
    observe: Callable[[State], None] = lambda _: None,
) -> Report:
    """Build a group of tables again and put them in the place of the live ones; readers see one or the other.

    progress hears (position, size of the log). A live follower goes on meanwhile and is asked to pause at the end.
    Errors: follower_unknown, rebuild_differs, rebuild_runs, unavailable, clickhouse_refused.
    """
    group = group_of(name)
    pool = reader_pool(url, 2)
    await pool.open()
    try:
        async with _alone(url, name), Listener(url) as listener:
            work = _Rebuild(clickhouse, url, group, LogReader(pool), listener, progress, observe)
            return await work.run()
    finally:
        await pool.close()


@asynccontextmanager
async def _alone(url: str, name: str) -> AsyncIterator[None]:
    """Keep others from rebuilding the same tables at the same time.

    Errors: rebuild_runs, unavailable.
    """
    place = await Place.open(url, f"{name}.rebuild")
    try:
        try:
            await place.lead(ALONE_S_MAX)
        except TimeoutError as error:
            raise RebuildRunsError(name=name) from error
        yield
        await place.forget()
    finally:
        await place.close()


class _Rebuild:
    def __init__(
        self,
        clickhouse: ClickHouse,
        url: str,
        group: Group,
        reader: LogReader,
        listener: Listener,
        progress: Progress | None,
        observe: Callable[[State], None],
    ) -> None:
        self._clickhouse = clickhouse
        self._url = url
        self._group = group
        self._reader = reader
        self._listener = listener
        self._progress = progress
        self._observe = observe
        self._report = Report(group.name)

    async def run(self) -> Report:
        """Go from whichever state is found to the end."""
        marks = await self._marks()
        exchanged = {name for name in self._group.tables if marks.get(name) == MARK}
        if not exchanged:
            await self._make(marks)
            self._observe(State.MADE)
            marks = await self._marks()
        waiting = [name for name in self._group.tables if marks.get(name + NEXT) == MARK]
        if waiting:
            await self._follow(await self._reader.size())
            self._observe(State.FOLLOWED)
        async with self._leading() as live:
            if waiting:
                end = await self._follow(max(live.position, await self._reader.size()))
                self._observe(State.LED)
                if not exchanged:
                    await self._compare(end)
                    self._observe(State.COMPARED)
                await self._exchange(waiting)
                await self._move(live, end)
            await self._drop()
        return self._report

    # ------------------------------------------------------------------ 1, 2: beside the live ones

    async def _marks(self) -> dict[str, str]:
        """Read the comments of the live tables and of the next ones that are there."""
        names = ", ".join(f"'{name}{suffix}'" for name in self._group.tables for suffix in ("", NEXT))
        found = await self._clickhouse.rows(
            f"SELECT name, comment FROM system.tables WHERE database = 'soma' AND name IN ({names})"
        )
        return {str(name): str(comment) for name, comment in found}

    async def _make(self, marks: dict[str, str]) -> None:
        if not any(name + NEXT in marks for name in self._group.tables):
            # An earlier rebuild may have left a position; these tables begin with nothing.
            for name in self._places():
                await self._with_place(name, 0)
        for name in self._group.tables:
            await self._clickhouse.command(
                f"CREATE TABLE IF NOT EXISTS soma.{name}{NEXT} AS soma.{name} COMMENT '{MARK}'"
            )

    def _places(self) -> list[str]:
        name = self._group.name + NEXT.replace("_", ".")
        return [name, f"{name}.rollup"] if self._group.rollup else [name]

    async def _with_place(self, name: str, position: int | None) -> None:
        """Set a place, or remove it."""
        place = await Place.open(self._url, name)
        try:
            await (place.forget() if position is None else place.set(position))
        finally:
            await place.close()

    async def _follow(self, end: int) -> int:
        """Fill the next tables with every record before an end, and settle their sums."""
        sink = Warehouse(self._group.name, self._url, self._clickhouse, self._reader.versions, suffix=NEXT)
        follower = Follower(sink.name, sink, self._url, self._listener, linger_s=0, progress=self._progress)
        started_s = time.monotonic()
        start = await sink.open()
        await sink.close()
        await follower.run(until=end)
        try:
            position = await sink.open()
            await sink.settle()
        finally:
            await sink.close()
        self._report.record_count += position - start
        self._report.seconds += time.monotonic() - started_s
        return position

    # ------------------------------------------------------------------ 3, 4: held against the log and the live ones

    @asynccontextmanager
    async def _leading(self) -> AsyncIterator[Place]:
        """Take the live follower's lock, once it has let go."""
        place = await Place.open(self._url, self._group.name)
        try:
            await place.ask_handover()
            try:
                await place.lead(HANDOVER_S_MAX)
            except TimeoutError as error:
                raise UnavailableError("the live follower does not let go of its lock") from error
            yield place
        finally:
            await place.close()

    async def _compare(self, end: int) -> None:
        """Hold the next tables against the log, and tell how the live ones differ from them.

        Errors: rebuild_differs.
        """
        for shape in self._group.shapes:
            live, following = [await self._print(shape.name + suffix, end) for suffix in ("", NEXT)]
            self._report.tables[shape.name] = Difference(live[0], following[0], live == following)
        records, moves = await self._reader.fingerprints(end)
        if self._group.name == "clickhouse.records":
            word = "reinterpretAsInt64(reverse(substring(address, {}, 8)))"
            query = f"SELECT count(), groupBitXor({word.format(1)}), sum(toInt128({word.format(17)}))"
            await self._agree(f"{query} FROM soma.records{NEXT} FINAL WHERE position < {end}", records)
        if self._group.name == "clickhouse.billing":
            query = "SELECT toUInt64(sum(entries)), sum(weighted)"
            await self._agree(f"{query} FROM soma.entries_daily{NEXT} FINAL", moves)

    async def _print(self, table: str, end: int) -> tuple[int, int]:
        query = f"SELECT count(), sum(toUInt128(sipHash64(tuple(*)))) FROM soma.{table} FINAL"
        found = await self._clickhouse.rows(f"{query} WHERE position < {end}")
        return int(found[0][0]), int(found[0][1])

    async def _agree(self, query: str, wanted: tuple[int, ...]) -> None:
        found = tuple(int(value) for value in (await self._clickhouse.rows(query))[0])
        if found != wanted:
            raise RebuildDiffersError(name=self._group.name, log=str(wanted), rebuilt=str(found))

    # ------------------------------------------------------------------ 5, 6, 7: in their place

    async def _exchange(self, waiting: Sequence[str]) -> None:
        for name in waiting:
            await self._clickhouse.command(f"EXCHANGE TABLES soma.{name} AND soma.{name}{NEXT}")
            self._observe(State.EXCHANGED)

    async def _move(self, live: Place, end: int) -> None:
        """Let the live follower go on from where the rebuilt tables end."""
        names = [self._group.name] + ([self._group.rollup_name] if self._group.rollup else [])
        rows = " UNION ALL ".join(f"SELECT '{name}', {end}" for name in names)
        await self._clickhouse.recompute(f"INSERT INTO soma.watermarks (projection, position) {rows}")
        for name in names[1:]:
            await self._with_place(name, end)
        await live.set(end)
        self._observe(State.MOVED)

    async def _drop(self) -> None:
        for name in self._group.tables:
            await self._clickhouse.command(f"DROP TABLE IF EXISTS soma.{name}{NEXT} SYNC")
        for place in self._places():
            await self._with_place(place, None)
        for name in self._group.tables:
            await self._clickhouse.command(f"ALTER TABLE soma.{name} MODIFY COMMENT ''")
        self._observe(State.DROPPED)
