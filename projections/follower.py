"""A follower reads the log in order, in batches, and hands them to a sink that remembers how far it came.

    1  sink.open()         where to go on; from here on this process is the only one that writes there
    2  read a batch        cut at fixed positions, so that a batch that is sent again is the same batch
    3  sink.apply(batch)   the effect, then its position; a crash in between sends the batch again
    4  wait for news       a notification, or a second

While one batch is applied the next is read and prepared. Any failure closes the sink and starts over at 1 after a
pause: nothing is skipped, and nothing here knows what a sink is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import msgspec

from domain.errors import LedgerError
from domain.values import moment_of
from ops import telemetry
from ops.batches import BatchReader
from ops.listen import Listener
from ops.reads import Stored

log = telemetry.logger(__name__)

BATCH_MAX = 16_384
BATCH_BYTES_MAX = 16_000_000
# How long a small batch waits for company: many small inserts cost a server more than this costs a reader.
LINGER_S = 0.15
IDLE_S = 1.0
PAUSE_S_MAX = 30.0


class Batch(NamedTuple):
    """Records of the log from `start` on, in order; without a gap but for what the sink skips.

    `stop` is the end where records were skipped; None where none was. `prepared` is what the sink made of it ahead.
    """

    start: int
    records: Sequence[Stored]
    stop: int | None = None
    prepared: Any = None

    @property
    def end(self) -> int:
        return self.start + len(self.records) if self.stop is None else self.stop


class HandoverError(Exception):
    """Somebody asked this follower to let go; it opens its sink again in a moment."""


class Sink(Protocol):
    """Where records go. Applying a batch twice changes nothing, and a position is kept only after its effect."""

    @property
    def skips(self) -> Sequence[str]:
        """Name the wire types that are known and no concern of this sink, so that they are not even read."""

    async def open(self) -> int:
        """Become the only writer; give the first position that is not applied yet."""

    async def prepare(self, batch: Batch) -> Batch:
        """Do what needs neither the lead nor the batch before; called while that one is applied."""

    async def apply(self, batch: Batch) -> None:
        """Apply a batch and remember its end."""

    async def idle(self) -> None:
        """Do what can wait until there is nothing to apply; called about once a second then."""

    async def close(self) -> None:
        """Let go of everything."""


def cut(position: int, size: int, batch_max: int = BATCH_MAX) -> int:
    """Give the end of the batch that starts at a position: the next multiple of batch_max, or the end of the log."""
    return min(size, (position // batch_max + 1) * batch_max)


class Follower:
    """One sink following one log."""

    def __init__(
        self,
        name: str,
        sink: Sink,
        url: str,
        listener: Listener,
        *,
        batch_max: int = BATCH_MAX,
        linger_s: float = LINGER_S,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.name = name
        self._sink = sink
        self._url = url
        self._listener = listener
        self._batch_max = batch_max
        self._linger_s = linger_s
        self._progress = progress
        self._pause_s = 0.1
        # What the metrics tell: how far it is known to be, how old the last batch was, and when it last got on.
        self._position = 0
        self._age_s = 0.0
        self._moved_at_s = time.monotonic()
        telemetry.FOLLOWER_RECORDS.labels(name)

    async def run(self, until: int | None = None) -> None:
        """Follow for ever, or until the sink holds every record before a position."""
        measuring = asyncio.get_running_loop().create_task(self._measure())
        try:
            await self._run(until)
        finally:
            measuring.cancel()

    async def _measure(self) -> None:
        """Tell the lag once a second, also while nothing gets on."""
        while True:
            behind = max(0, self._listener.size - self._position)
            now_s = time.monotonic()
            if not behind:
                self._moved_at_s = now_s
            telemetry.FOLLOWER_LAG_RECORDS.labels(self.name).set(behind)
            telemetry.FOLLOWER_LAG_SECONDS.labels(self.name).set(
                max(self._age_s, now_s - self._moved_at_s) if behind else 0
            )
            await asyncio.sleep(IDLE_S)

    async def _run(self, until: int | None) -> None:
        while True:
            try:
                await self._follow(until)
                return
            except HandoverError:
                log.info("follower_hands_over", follower=self.name)
                await asyncio.sleep(IDLE_S)
            except LedgerError as error:
                await self._failed(error.code, error.message, error.internal)
            except Exception as error:  # noqa: BLE001 - whatever a sink raises, the follower starts over
                await self._failed(type(error).__name__, str(error), repr(error.__cause__ or ""))

    async def _failed(self, code: str, detail: str, internal: str) -> None:
        telemetry.FOLLOWER_FAILURES.labels(self.name, code).inc()
        log.warning(
            "follower_failed",
            follower=self.name,
            code=code,
            detail=detail,
            internal=internal,
            retry_s=self._pause_s,
        )
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(PAUSE_S_MAX, self._pause_s * 2)

    async def _follow(self, until: int | None) -> None:
        reader = BatchReader(self._url)
        reading: asyncio.Task[Batch] | None = None
        try:
            position = self._position = await self._sink.open()
            while until is None or position < until:
                size = await self._size(position)
                if size <= position:
                    await self._sink.idle()
                    continue
                batch = await (reading or self._read(reader, position, size))
                reading = self._ahead(reader, batch.end, size)
                started_s = time.perf_counter()
                await self._sink.apply(batch)
                position = self._position = batch.end
                self._applied(batch, max(size, self._listener.size), time.perf_counter() - started_s)
            await self._sink.idle()
        finally:
            if reading is not None:
                reading.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await reading
            await reader.close()
            await self._sink.close()

    async def _size(self, position: int) -> int:
        """Give the size of the log once there is something to read, or after a second; a trickle is left to gather."""
        if self._listener.size <= position:
            await self._listener.wait(position, IDLE_S)
        if 0 < self._listener.size - position < self._batch_max and self._linger_s:
            await asyncio.sleep(self._linger_s)
        return self._listener.size

    def _ahead(self, reader: BatchReader, position: int, size: int) -> asyncio.Task[Batch] | None:
        """Begin to read the next batch if it is known to be a full one."""
        if size - position < self._batch_max:
            return None
        return asyncio.get_running_loop().create_task(self._read(reader, position, size))

    async def _read(self, reader: BatchReader, position: int, size: int) -> Batch:
        end = cut(position, size, self._batch_max)
        records, stop = await reader.read(position, end, BATCH_BYTES_MAX, self._sink.skips)
        return await self._sink.prepare(Batch(position, records, stop))

    def _applied(self, batch: Batch, size: int, seconds: float) -> None:
        self._pause_s = 0.1
        telemetry.FOLLOWER_POSITION.labels(self.name).set(batch.end)
        telemetry.FOLLOWER_RECORDS.labels(self.name).inc(batch.end - batch.start)
        telemetry.FOLLOWER_BATCH_SECONDS.labels(self.name).observe(seconds)
        if batch.records:
            # The oldest record of the batch waited longest; it speaks for all.
            self._age_s = _age_s(batch.records[0])
            telemetry.FOLLOWER_LAG.labels(self.name).observe(self._age_s)
        self._moved_at_s = time.monotonic()
        if self._progress is not None:
            self._progress(batch.end, size)


class _Dated(msgspec.Struct):
    at: str


_dated = msgspec.json.Decoder(_Dated)


def _age_s(stored: Stored) -> float:
    """Tell how long ago a record was decided."""
    decided_at = moment_of(_dated.decode(stored.record).at)
    return max(0.0, (datetime.now(UTC) - decided_at).total_seconds())
