"""ClickHouse as a sink: a batch is written into its tables, then sums are recomputed, then the position is kept.

The states of the world while a batch is applied; whoever is killed in one of them sends the batch again:

    1 TOLD        the batch is in columns; nothing is written
    2 PART        one more insert is there: a part of one partition of one table
    3 TABLES      every table holds the batch, once or several times; read with FINAL it is there once
    4 RECOMPUTED  sums of touched keys are replaced; their position is still the old one
    5 ROLLED      the position of the sums is kept
    6 MARKED      ClickHouse itself says how far it is complete
    7 ADVANCED    PostgreSQL says so too: the batch will not be sent again

The position is kept twice. PostgreSQL's decides who leads and is never ahead of the tables; the mark in ClickHouse is
written before it, so a ClickHouse that was lost or put back to an earlier day has an earlier mark, or none, and is
filled again from there.

Sums may wait: they have a position of their own, and are recomputed when there is a pause, or every few seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from enum import IntEnum
from typing import Any

from ops import telemetry
from ops.clickhouse import ClickHouse
from ops.dead_letters import DeadLetters, Letter
from ops.positions import Place
from ops.reads import Stored
from projections.columns import (
    RECORD_ROWS,
    Earlier,
    Rows,
    Subject,
    Unprojected,
    Version,
    adopt,
    by_month,
    orphans,
)
from projections.follower import BATCH_MAX, Batch, HandoverError
from projections.groups import GROUPS, Known, group_of

log = telemetry.logger(__name__)

ROLLUP_PAUSE_S = 2.0
# Sums take at most one part in so many of a follower's time, however many rows a day has.
ROLLUP_SHARE = 5
MARK_PAUSE_S = 1.0
# While it catches up in full batches, sums and marks would soon be outdated anyway.
CATCH_UP_PAUSE_S = 15.0
PARENTS_MAX = 200_000
NEXT = "_next"

PROJECTIONS: tuple[str, ...] = tuple(GROUPS)


class State(IntEnum):
    """The numbered states of the world between one batch and the next."""

    TOLD = 1
    PART = 2
    TABLES = 3
    RECOMPUTED = 4
    ROLLED = 5
    MARKED = 6
    ADVANCED = 7


Versions = Callable[[Sequence[Version]], Awaitable[Sequence[Stored]]]
Report = Callable[[Sequence[Unprojected]], Awaitable[None]]


async def _say(found: Sequence[Unprojected]) -> None:
    for one in found:
        log.warning("record_not_projected", position=one.position, reason=one.reason)


def letters_to(letters: DeadLetters, follower: str) -> Report:
    """Keep records that cannot be projected as dead letters of their follower; the same one again counts an attempt."""

    async def report(found: Sequence[Unprojected]) -> None:
        await _say(found)
        await letters.add(
            [
                Letter("projection", follower, follower, 0, one.position, one.record, one.code, one.reason)
                for one in found
            ]
        )

    return report


class Warehouse:
    """One group of tables in ClickHouse, kept by one follower. `versions` reads records by stream and version.

    With the suffix `_next` it fills the tables that a rebuild puts in the place of the live ones.
    """

    def __init__(
        self,
        name: str,
        url: str,
        clickhouse: ClickHouse,
        versions: Versions,
        *,
        report: Report = _say,
        observe: Callable[[State], None] = lambda _: None,
        suffix: str = "",
        rollup_pause_s: float = ROLLUP_PAUSE_S,
    ) -> None:
        self.group = group_of(name)
        self._skips = self.group.skips
        self.name = name + suffix.replace("_", ".")
        self._clickhouse = clickhouse
        self._url = url
        self._versions = versions
        self._report = report
        self._observe = observe
        self._suffix = suffix
        self._rollup_pause_s = rollup_pause_s
        self._parents: dict[str, list[Subject]] = {}
        self._place: Place | None = None
        self._sums: Place | None = None
        # Whether records since the position of the sums may have touched a key.
        self._touched = True
        self._recompute_at_s = 0.0
        self._mark_at_s = 0.0
        self._settled_at_s = 0.0
        self._marked = -1

    # ------------------------------------------------------------------ the sink

    @property
    def skips(self) -> Sequence[str]:
        return self._skips

    async def open(self) -> int:
        """Become the only writer; give the first position that is not applied.

        Errors: unavailable, clickhouse_refused.
        """
        marks = await self._marks()
        self._place = await Place.open(self._url, self.name)
        position = await self._lead(self._place, marks, None)
        if self.group.rollup is not None:
            self._sums = await Place.open(self._url, f"{self.name}.rollup")
            await self._lead(self._sums, marks, position)
        self._touched, self._marked = True, -1
        self._recompute_at_s = self._mark_at_s = 0.0
        self._settled_at_s = time.monotonic()
        return position

    async def prepare(self, batch: Batch) -> Batch:
        """Put a batch into columns.

        Errors: unavailable.
        """
        rows = await asyncio.to_thread(self.group.read, batch.records)
        if self.group.has_parents:
            await self._know_parents(rows)
        known = Known(self._parents, await self._earlier(rows))
        return batch._replace(prepared=(rows, await asyncio.to_thread(self.group.tell, rows, known)))

    async def apply(self, batch: Batch) -> None:
        """Apply a batch; applying it again, or a part of it, or more than it, changes nothing.

        Errors: unavailable, clickhouse_refused, follower_superseded.
        """
        place = self._leading
        rows, tables = (batch if batch.prepared else await self.prepare(batch)).prepared
        self._observe(State.TOLD)
        for shape in self.group.shapes:
            for part in by_month(shape, tables[shape.name]):
                await self._clickhouse.insert(self.table(shape.name), part)
                self._observe(State.PART)
        self._observe(State.TABLES)
        if rows.unread:
            await self._report(rows.unread)
        rollup = self.group.rollup
        self._touched |= rollup is not None and tables[rollup.source].num_rows > 0
        if self._may_settle(batch):
            if time.monotonic() >= self._recompute_at_s:
                await self._recompute(batch.end)
            if self._marked < 0 or time.monotonic() >= self._mark_at_s:
                await self._mark(batch.end)
        await place.advance(batch.end)
        self._observe(State.ADVANCED)
        self._hand_over(place)

    def _may_settle(self, batch: Batch) -> bool:
        """Tell whether sums and marks are worth their time now: always, but seldom while catching up."""
        now_s = time.monotonic()
        if batch.end - batch.start >= BATCH_MAX and now_s < self._settled_at_s + CATCH_UP_PAUSE_S:
            return False
        self._settled_at_s = now_s
        return True

    async def idle(self) -> None:
        """Recompute what waited, and see whether somebody wants to lead.

        Errors: unavailable, clickhouse_refused, follower_superseded.
        """
        place = self._leading
        await place.look()
        await self.settle()
        self._hand_over(place)

    async def settle(self) -> None:
        """Recompute and mark whatever may wait, so that everything is complete to the same position.

        Errors: unavailable, clickhouse_refused, follower_superseded.
        """
        position = self._leading.position
        if self._sums is not None and self._sums.position < position:
            await self._recompute(position)
        if self._marked < position:
            await self._mark(position)

    async def close(self) -> None:
        """Let go of the lead; the connection to ClickHouse is the caller's."""
        for place in (self._place, self._sums):
            if place is not None:
                await place.close()
        self._place = self._sums = None

    # ------------------------------------------------------------------ how far it is

    @property
    def position(self) -> int:
        """Give the first position that is not applied."""
        return self._leading.position

    @property
    def _leading(self) -> Place:
        assert self._place is not None, "the sink is closed"
        return self._place

    def table(self, name: str) -> str:
        """Name a table of the group in ClickHouse."""
        return f"soma.{name}{self._suffix}"

    async def _marks(self) -> dict[str, int]:
        names = f"('{self.name}', '{self.name}.rollup')"
        found = await self._clickhouse.rows(
            f"SELECT projection, argMax(position, written_at) FROM soma.watermarks WHERE projection IN {names}"
            " GROUP BY projection"
        )
        return {str(name): int(position) for name, position in found}

    async def _lead(self, place: Place, marks: dict[str, int], most: int | None) -> int:
        """Lead a place, and take it back to where ClickHouse is complete if that is earlier."""
        kept = await place.lead()
        position = min(kept, marks.get(place.name, 0), kept if most is None else most)
        if position < kept:
            log.info("follower_goes_back", follower=place.name, kept=kept, position=position)
            await place.set(position)
        return position

    async def _mark(self, end: int) -> None:
        """Write down in ClickHouse how far it is complete."""
        marks = [(self.name, end)] + ([(self._sums.name, self._sums.position)] if self._sums else [])
        rows = " UNION ALL ".join(f"SELECT '{name}', {position}" for name, position in marks)
        await self._clickhouse.recompute(f"INSERT INTO soma.watermarks (projection, position) {rows}")
        self._marked = end
        self._mark_at_s = time.monotonic() + MARK_PAUSE_S
        self._observe(State.MARKED)

    def _hand_over(self, place: Place) -> None:
        if place.handover:
            raise HandoverError

    # ------------------------------------------------------------------ sums

    async def _recompute(self, end: int) -> None:
        """Recompute the sums of every key that was touched since they were last, from the records before an end."""
        rollup, sums = self.group.rollup, self._sums
        if rollup is None or sums is None:
            return
        started_s = time.monotonic()
        if self._touched and sums.position < end:
            target, source = self.table(rollup.table), self.table(rollup.source)
            await self._clickhouse.recompute(rollup.statement(target, source, sums.position, end))
        self._observe(State.RECOMPUTED)
        await sums.advance(end)
        self._touched, self._marked = False, -1
        now_s = time.monotonic()
        self._recompute_at_s = now_s + max(self._rollup_pause_s, ROLLUP_SHARE * (now_s - started_s))
        self._observe(State.ROLLED)

    # ------------------------------------------------------------------ what belongs to what

    async def _know_parents(self, rows: Rows[Any]) -> None:
        """Learn what the streams of a batch belong to: from the batch, or from their first records in the log."""
        self._parents.update(adopt(rows))
        unknown = orphans(rows, self._parents)
        if unknown:
            self._parents.update({stream: [] for stream in unknown})
            firsts = await self._versions([(stream, 1) for stream in unknown])
            self._parents.update(adopt(RECORD_ROWS.read(firsts)))
        while len(self._parents) > PARENTS_MAX:
            del self._parents[next(iter(self._parents))]

    async def _earlier(self, rows: Rows[Any]) -> dict[Version, Earlier]:
        """Find the earlier records that a batch refers to: in the batch, or in the log."""
        wanted = set(self.group.refers_to(rows))
        if not wanted:
            return {}
        found = _versions_in(rows, wanted)
        if missing := sorted(wanted - found.keys()):
            found |= _versions_in(RECORD_ROWS.read(await self._versions(missing)), wanted)
        return found


def _versions_in(rows: Rows[Any], wanted: AbstractSet[Version]) -> dict[Version, Earlier]:
    """Pick records by stream and version."""
    return {
        (envelope.stream, envelope.version): Earlier(stored.position, stored.record)
        for envelope, stored in zip(rows.envelopes, rows.stored, strict=True)
        if (envelope.stream, envelope.version) in wanted
    }
