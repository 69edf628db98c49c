"""The relay: every record of the log, once and in order, into Kafka.

One batch is one Kafka transaction: its messages, the newest signed checkpoint within it, and the relay's own position.
Readers of committed messages see all of that or nothing. The position lies in Kafka, so it cannot differ from what it
is about. The states of the world, in order (a crash test stops at each):

    1  a batch was read from the log; nothing is begun
    2  a transaction is begun, the batch's messages are on their way
    3  the position is on its way, too
    4  the brokers hold all of it, and nobody sees it yet
    5  it is committed; the relay has not said so

A crash before 5 leaves an open transaction, which the next relay gives up as it starts; from 5 on the position stands
behind the batch. While a commit's outcome is unknown the next start settles it: the cluster finishes or gives up
whatever the transactional id had begun before it tells the position. A second relay makes the first one's transactions
fail (`relay_fenced`); the first one then queues for the lock in PostgreSQL again, so that the two do not fight.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from domain.errors import BrokerUnavailableError, LedgerError, PositionNotFoundError, RelayDivergedError
from domain.log.records import address_text
from domain.values import moment_text
from ops import telemetry
from ops.kafka import Kafka, Message, TransactionalProducer
from ops.positions import Place
from ops.reads import Head, Stored
from ops.runtime import Runtime
from projections.cloud_events import TOPICS, CloudEvents
from projections.follower import Batch, HandoverError

log = telemetry.logger(__name__)

NAME = "kafka.relay"
POSITIONS = "soma.relay.positions"

T = TypeVar("T")


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """How far the relay of a log came, as it lies in Kafka.

    Units: position is the first one that is not relayed; address is of the record before it; checkpoint is a size.
    """

    position: int
    address: str | None
    checkpoint: int


_START = Position(position=0, address=None, checkpoint=0)
_positions = msgspec.json.Decoder(Position)


class Relay:
    """The Kafka sink of the log. observe is called at each numbered state of the world."""

    def __init__(self, runtime: Runtime, observe: Callable[[int], None] | None = None) -> None:
        self._runtime = runtime
        self._origin = runtime.signer.name
        self._events = CloudEvents(self._origin)
        self._observe = observe or (lambda _state: None)
        self._at = _START
        self._place: Place | None = None
        self._producer: TransactionalProducer | None = None
        self._thread: ThreadPoolExecutor | None = None

    # ------------------------------------------------------------------ what a follower asks

    @property
    def skips(self) -> Sequence[str]:
        return ()

    async def open(self) -> int:
        """Wait to be the leader, put any other relay of this log out of work, and read how far it came.

        Errors: broker_refused, broker_unavailable, relay_diverged, relay_fenced, topic_unsuitable, unavailable.
        """
        self._thread = ThreadPoolExecutor(1, NAME)
        self._place = await Place.open(self._runtime.url, NAME)
        await self._place.lead()
        self._at = await self._in_thread(self._take_over)
        await self._recognise(self._at)
        log.info("relay_opened", position=self._at.position, checkpoint=self._at.checkpoint)
        return self._at.position

    async def prepare(self, batch: Batch) -> Batch:
        """Leave it as it is: messages are made while the brokers take those before them."""
        return batch

    async def apply(self, batch: Batch) -> None:
        """Relay a batch in one transaction; what is relayed already is left out.

        Errors: broker_refused, broker_unavailable, log_damaged, relay_diverged, relay_fenced, unavailable.
        """
        records = batch.records[max(0, self._at.position - batch.start) :]
        if records:
            if records[0].position != self._at.position:
                raise RelayDivergedError(relayed=self._at.position, given=records[0].position)
            self._observe(1)
            head = await self._runtime.reader.head_within(batch.end)
            self._at = await self._in_thread(lambda: self._write(records, head))
        await self._show()

    async def idle(self) -> None:
        """Let go where somebody asked for it."""
        await self._show()

    async def close(self) -> None:
        """Let go of the transaction, the producer and the place."""
        thread, self._thread = self._thread, None
        place, self._place = self._place, None
        try:
            if thread is not None:
                # Whatever was going on in the thread ends first, be it the making of a producer.
                closing = thread.submit(self._drop)
                thread.shutdown(wait=False)
                await asyncio.wrap_future(closing)
        finally:
            if place is not None:
                await place.close()

    # ------------------------------------------------------------------ the place in PostgreSQL

    async def _show(self) -> None:
        """Show the position where all followers show theirs; that row is a copy, what counts lies in Kafka."""
        assert self._place is not None
        await self._place.advance(self._at.position)
        if self._place.handover:
            raise HandoverError

    async def _recognise(self, at: Position) -> None:
        """See that the last record in Kafka is one of this log."""
        if at.position == 0:
            return
        try:
            stored = await self._runtime.reader.at(at.position - 1)
        except PositionNotFoundError as missing:
            raise RelayDivergedError(relayed=at.position) from missing
        if address_text(stored.address) != at.address:
            raise RelayDivergedError(relayed=at.position, has=at.address, log=address_text(stored.address))

    # ------------------------------------------------------------------ in the thread

    async def _in_thread(self, do: Callable[[], T]) -> T:
        assert self._thread is not None
        return await asyncio.get_running_loop().run_in_executor(self._thread, do)

    def _take_over(self) -> Position:
        kafka = Kafka(self._runtime.settings)
        kafka.make_topics([*map(kafka.event_topic, TOPICS), kafka.position_topic(POSITIONS)])
        # In this order: once this one is the producer, whatever another had begun is settled.
        self._producer = kafka.producer(f"{POSITIONS}/{self._origin}")
        kept = kafka.last(POSITIONS, self._origin)
        return _START if kept is None else _positions.decode(kept)

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close()

    def _write(self, records: Sequence[Stored], head: Head) -> Position:
        """Write one transaction; give the position that it committed."""
        producer = self._producer
        if producer is None:
            raise BrokerUnavailableError("the relay has no producer; it must be opened again")
        try:
            counts: Counter[str] = Counter()
            producer.begin()
            producer.send(self._messages(records, head, counts))
            self._observe(2)
            after = self._after(records[-1], head)
            producer.send([Message(POSITIONS, self._origin, msgspec.json.encode(after), [])])
            self._observe(3)
            producer.flush()
            self._observe(4)
            producer.commit()
        except LedgerError as error:
            telemetry.RELAY_ABORTS.labels(error.code).inc()
            producer.abort()
            raise
        self._observe(5)
        telemetry.RELAY_TRANSACTIONS.inc()
        for topic, count in counts.items():
            telemetry.RELAY_RECORDS.labels(topic).inc(count)
        return after

    def _messages(self, records: Sequence[Stored], head: Head, counts: Counter[str]) -> Iterator[Message]:
        write: Any = self._events.messages
        for stored in records:
            for message in write(stored):
                counts[message.topic] += 1
                yield message
        if head.size > self._at.checkpoint:
            yield self._events.checkpoint(head.size, self._runtime.note(head), moment_text(head.committed_at))

    def _after(self, last: Stored, head: Head) -> Position:
        checkpoint = max(head.size, self._at.checkpoint)
        return Position(position=last.position + 1, address=address_text(last.address), checkpoint=checkpoint)
