"""The live feed: one reader at the end of the log for all who follow it from this process.

    1  catch up    a subscriber reads its own pages from the log until it is near the end
    2  join        then it is handed what the shared reader reads, from the very record it would have read next
    3  fall back   one that takes too little lets its buffer fill: it is told (or, if patient, catches up again)

What a subscriber is given is always everything it wants between two positions, so a position is all it needs to keep.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, Self

from domain.errors import FeedFullError, TooManySubscribersError
from domain.log.filters import Wish
from ops import telemetry
from ops.listen import Listener
from ops.reads import LogReader, Told
from ops.settings import Settings

log = telemetry.logger(__name__)

# One step of the shared reader; short enough that two hundred subscribers are served without a pause on the loop.
TAIL_RECORDS_MAX = 128
RECENT_RECORDS_MAX = 4_096
# So far from the end one who follows reads by itself.
NEAR_RECORDS_MAX = 8
RECENT_BYTES_MAX = 16_000_000
# One page of a subscriber that catches up: so many records are looked at, so many given.
SCAN_RECORDS_MAX = 10_000
PAGE_RECORDS_MAX = 128
# One hand-over from the buffer of a subscriber.
TAKE_RECORDS_MAX = 512
TAKE_BYTES_MAX = 256_000
IDLE_S = 1.0


class Batch(NamedTuple):
    """What was found, and the position up to which everything was considered."""

    records: Sequence[Told]
    position: int


class SlowReaderError(Exception):
    """A subscriber took less than the log gave, until its buffer was full."""


class Limits(NamedTuple):
    """How many may follow, and how far one may fall behind."""

    subscribers_max: int = 256
    subscribers_per_tenant_max: int = 32
    buffer_records_max: int = 2_000
    buffer_bytes_max: int = 4_000_000


def feed_limits(settings: Settings) -> Limits:
    """Read the limits from the settings."""
    return Limits(
        settings.feed_subscribers_max,
        settings.feed_subscribers_per_tenant_max,
        settings.feed_buffer_records_max,
        settings.feed_buffer_bytes_max,
    )


class LogFeed:
    """Hands what is new in the log to every subscriber that wants it."""

    def __init__(self, reader: LogReader, listener: Listener, limits: Limits | None = None) -> None:
        self.reader = reader
        self.limits = limits or Limits()
        self.next = 0  # the first position not handed out yet; meaningful while somebody is live
        self._listener = listener
        self._recent: deque[Told] = deque()  # what was handed out last, without a gap, ending before `next`
        self._recent_bytes = 0
        self._live: set[Subscription] = set()
        self._joined = asyncio.Event()
        self._subscribers: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None
        self.ending = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="log-feed")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end()
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    def end(self) -> None:
        """Tell every subscriber that the service stops; nobody is let in any more."""
        self.ending.set()
        for subscription in list(self._live):
            subscription.wake()

    # ------------------------------------------------------------------ subscribers

    def admit(self, tenant: str) -> None:
        """Take up one of the places; `leave` gives it back.

        Errors: feed_full, too_many_subscribers.
        """
        if self._subscribers.total() >= self.limits.subscribers_max:
            raise FeedFullError(subscribers_max=self.limits.subscribers_max, retry_after_s=10)
        if self._subscribers[tenant] >= self.limits.subscribers_per_tenant_max:
            raise TooManySubscribersError(
                subscribers_max=self.limits.subscribers_per_tenant_max, retry_after_s=10
            )
        self._subscribers[tenant] += 1
        telemetry.FEED_SUBSCRIBERS.inc()

    def leave(self, tenant: str) -> None:
        """Give a place back."""
        self._subscribers[tenant] -= 1
        if not self._subscribers[tenant]:
            del self._subscribers[tenant]
        telemetry.FEED_SUBSCRIBERS.dec()

    def subscribe(self, wish: Wish, after: int, *, patient: bool = False) -> Subscription:
        """Follow the log behind a position. A patient subscriber never loses its feed: it catches up instead."""
        return Subscription(self, wish, after, patient)

    def join(self, subscription: Subscription, size: int) -> bool:
        """Hand a subscriber what comes from now on, if that is close to what it has; else it reads on by itself."""
        first = subscription.after + 1
        if not self._live:
            if size - first > NEAR_RECORDS_MAX:
                return False
            self._recent.clear()
            self._recent_bytes = 0
            self.next = min(first, size)
        oldest = self._recent[0].position if self._recent else self.next
        if first < oldest or not subscription.take_up(
            [told for told in self._recent if told.position >= first]
        ):
            return False
        self._live.add(subscription)
        self._joined.set()
        return True

    def part(self, subscription: Subscription) -> None:
        """Hand a subscriber nothing more."""
        self._live.discard(subscription)

    async def pause(self) -> None:
        """Wait a moment for the log to grow."""
        await self._listener.wait(self._listener.size, IDLE_S)

    # ------------------------------------------------------------------ the shared reader

    async def _run(self) -> None:
        while True:
            self._joined.clear()
            if not self._live:
                await self._joined.wait()
            try:
                await self._step()
            except Exception as trouble:  # noqa: BLE001 - those who follow would wait for ever, and nobody would know
                # State: subscribers keep their places; they hear nothing until the database answers again.
                log.warning("feed_waits", error=repr(trouble))
                await asyncio.sleep(IDLE_S)

    async def _step(self) -> None:
        start = self.next
        if self._listener.size <= start:
            await self._listener.wait(start, IDLE_S)
        end = min(self._listener.size, start + min(TAIL_RECORDS_MAX, self.limits.buffer_records_max // 4))
        page = self._cut(await self.reader.told(start, end)) if end > start else []
        # Meanwhile the last one may have left and another joined elsewhere: then this page is nobody's.
        if page and self._live and self.next == start:
            self._hand_out(page)

    def _cut(self, page: Sequence[Told]) -> Sequence[Told]:
        """Keep what fills no more than a quarter of a buffer: between two steps every subscriber can take."""
        held_bytes = 0
        for count, told in enumerate(page, 1):
            held_bytes += len(told.record)
            if held_bytes > self.limits.buffer_bytes_max // 4:
                return page[:count]
        return page

    def _hand_out(self, page: Sequence[Told]) -> None:
        for told in page:
            assert told.position == self.next, "the log has no gaps"
            self.next += 1
            self._keep(told)
            for subscription in list(self._live):
                subscription.offer(told)

    def _keep(self, told: Told) -> None:
        self._recent.append(told)
        self._recent_bytes += len(told.record)
        while len(self._recent) > RECENT_RECORDS_MAX or self._recent_bytes > RECENT_BYTES_MAX:
            self._recent_bytes -= len(self._recent.popleft().record)


class Subscription:
    """One who follows. `after` is the position up to which everything was given."""

    def __init__(self, feed: LogFeed, wish: Wish, after: int, patient: bool) -> None:
        self.after = after
        self._feed = feed
        self._wish = wish
        self._patient = patient
        self._buffer: deque[Told] = deque()
        self._buffer_bytes = 0
        self._is_live = False
        self._overflowed = False
        self._news = asyncio.Event()

    def close(self) -> None:
        """Follow no more."""
        self._feed.part(self)

    async def read(self, wait_s: float) -> Batch:
        """Give what comes next; after a while, where there is nothing, how far it was looked.

        Raises SlowReaderError to one that is not patient; `after` is then where it may go on.
        Errors: unavailable.
        """
        if not self._is_live:
            page = await self._catch_up()
            if page is not None:
                return page
        if self._feed.ending.is_set():
            await asyncio.sleep(0)  # whoever reads on in a loop must let others run
        elif not self._buffer and not self._overflowed:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
        if self._overflowed:
            self._fall_back()
            return Batch([], self.after)
        return self._take()

    def take_up(self, recent: Sequence[Told]) -> bool:
        """Begin with what was handed out of late; not if that alone would go far to fill the buffer."""
        wanted = [told for told in recent if self._wish.fits(told.type, told.stream, told.tenant)]
        limits = self._feed.limits
        if (
            len(wanted) > limits.buffer_records_max // 2
            or sum(len(told.record) for told in wanted) > limits.buffer_bytes_max // 2
        ):
            return False
        for told in wanted:
            self.offer(told)
        return True

    def offer(self, told: Told) -> None:
        """Buffer a record if it is wanted, and new to this one: it may have read ahead of the shared reader."""
        if told.position <= self.after or not self._wish.fits(told.type, told.stream, told.tenant):
            return
        limits = self._feed.limits
        self._buffer.append(told)
        self._buffer_bytes += len(told.record)
        if len(self._buffer) > limits.buffer_records_max or self._buffer_bytes > limits.buffer_bytes_max:
            self._overflowed = True
            self._empty()
            self._feed.part(self)
        self._news.set()

    def wake(self) -> None:
        """End a wait."""
        self._news.set()

    def _fall_back(self) -> None:
        if not self._patient:
            raise SlowReaderError
        self._overflowed = self._is_live = False

    def _empty(self) -> None:
        self._buffer.clear()
        self._buffer_bytes = 0

    def _take(self) -> Batch:
        taken: list[Told] = []
        taken_bytes = 0
        while self._buffer and len(taken) < TAKE_RECORDS_MAX and taken_bytes < TAKE_BYTES_MAX:
            told = self._buffer.popleft()
            taken.append(told)
            taken_bytes += len(told.record)
        self._buffer_bytes -= taken_bytes
        # With nothing left in the buffer, all that was handed out was considered.
        considered = self._buffer[0].position - 1 if self._buffer else self._feed.next - 1
        self.after = max(self.after, considered)
        if not self._buffer:
            self._news.clear()
        return Batch(taken, self.after)

    async def _catch_up(self) -> Batch | None:
        """Read one page behind `after`; None once live."""
        size = await self._feed.reader.size()
        if self._feed.join(self, size):
            self._is_live = True
            return None
        end = min(size, self.after + 1 + SCAN_RECORDS_MAX)
        if end <= self.after + 1:
            await self._feed.pause()
        found = await self._feed.reader.wanted(self._wish, after=self.after, end=end, limit=PAGE_RECORDS_MAX)
        considered = found[-1].position if len(found) == PAGE_RECORDS_MAX else end - 1
        self.after = max(self.after, considered)
        return Batch(found, self.after)
