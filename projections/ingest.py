"""Ingest: the readings of the Kafka topic `slm.metrics` become usage, each exactly once in effect.

    1  read       a batch of messages, from the offsets kept with the group
    2  meter      all readings of the batch in one command; one that was taken before is a duplicate
    3  set aside  what is no reading, or was rejected, becomes a dead letter with its reason
    4  keep       the offsets

A crash anywhere sends the batch again, and every step takes a repetition for what it is: readings are known by their
ids, dead letters by their places. No message stops those behind it, not even one that meets a fault of ours; only when
the log or the brokers are away is there a wait, and then nothing is skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from domain.billing.usage import Flaw, Metered, MeterUsage, Reading, meter_usage, read_reading
from domain.canonical import read_json
from domain.errors import (
    REGISTRY,
    DeadLetterClosedError,
    DeadLetterKindError,
    DeadLetterNotTakenError,
    InvalidError,
    LedgerError,
    MessageEmptyError,
    MessageNotJsonError,
    MessageTooLargeError,
    MissingFieldError,
    OffsetLostError,
    Retry,
    TopicUnsuitableError,
)
from domain.ledger import Caller, Ledger
from ops import telemetry
from ops.dead_letters import DeadLetter, DeadLetters, Letter
from ops.kafka import Arrived, Kafka
from ops.positions import Place
from ops.runtime import Runtime

log = telemetry.logger(__name__)

TOPIC = "slm.metrics"
NAME = "kafka.ingest"
GROUP = "soma-ledger.ingest"
BUG = "internal"
MESSAGES_MAX = 1_000
MESSAGE_BYTES_MAX = 65_536
WAIT_S = 0.25
# How often a leader makes sure that it is one, and that it reads all there is.
LOOK_S = 5.0
INGESTER = Caller("ingest", "platform", frozenset({"service"}))

# CloudEvents, binary mode: what a header says counts where the value says nothing.
CLOUD_EVENTS = {"ce_id": "event_id", "ce_source": "source", "ce_time": "occurred_at"}

_answers = msgspec.json.Decoder(Metered)


class Source(Protocol):
    """Where messages come from; ops.kafka has the real one. Everything blocks; one thread at a time."""

    def partitions(self) -> list[int]:
        """List the partitions there are."""

    def go_to(self, offsets: Mapping[int, int]) -> None:
        """Read every partition from the offset given, from its beginning where none is given."""

    def read(self, count_max: int, timeout_s: float) -> list[Arrived]:
        """Read up to a number of messages; fewer, or none, when the time is up."""

    def next_offsets(self) -> dict[int, int]:
        """Give the offsets to go on from."""

    def lag(self) -> int:
        """Count the messages that were not read yet."""

    def kept(self) -> dict[int, int]:
        """Read the offsets that were kept."""

    def keep(self, offsets: Mapping[int, int]) -> None:
        """Keep offsets."""

    def close(self) -> None:
        """Let go."""


class Tally(NamedTuple):
    """What came of messages."""

    inserted: int = 0
    duplicates: int = 0
    dead_letters: int = 0


# --------------------------------------------------------------------------- one message


def read_message(value: bytes | None, headers: Sequence[tuple[str, Any]] = ()) -> Reading:
    """Read a message strictly: one JSON object, of known members, with the tenant it is about.

    Errors: message_empty, message_not_json, message_too_large; invalid_amount, invalid_currency, invalid_field,
            missing_field, unknown_field.
    """
    if value is None:
        raise MessageEmptyError
    if len(value) > MESSAGE_BYTES_MAX:
        raise MessageTooLargeError(f"{len(value)} bytes, where {MESSAGE_BYTES_MAX} are allowed")
    try:
        found = read_json(value)
    except InvalidError as error:
        raise MessageNotJsonError(error.message.replace("the body", "the value")[:400]) from error
    return as_reading(_told(headers) | found if isinstance(found, dict) else found)


def as_reading(value: Any) -> Reading:
    """Read the reading of some tenant.

    Errors: invalid_amount, invalid_currency, invalid_field, missing_field, unknown_field.
    """
    reading = read_reading(value)
    if isinstance(reading, Flaw):
        raise REGISTRY[reading.code](reading.detail)
    if reading.tenant is None:
        raise MissingFieldError("tenant: a message says whose usage it is")
    return reading


def _told(headers: Sequence[tuple[str, Any]]) -> dict[str, str]:
    """Read what the headers say of a reading."""
    found = {}
    for name, value in headers:
        member = CLOUD_EVENTS.get(name)
        if member is not None and value is not None:
            found[member] = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return found


def letter_of(message: Arrived, code: str, detail: str) -> Letter:
    """Make the dead letter of a message."""
    return Letter(
        kind="message",
        source=NAME,
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        payload=message.value,
        code=code,
        detail=detail,
        key=message.key,
        headers=message.headers,
    )


# --------------------------------------------------------------------------- batches


class Intake:
    """Takes batches of messages into the log, and sets aside what cannot be taken."""

    def __init__(
        self, ledger: Ledger, letters: DeadLetters, observe: Callable[[int], None] | None = None
    ) -> None:
        self._ledger = ledger
        self._letters = letters
        self._observe = observe or (lambda _: None)

    async def take(self, messages: Sequence[Arrived]) -> Tally:
        """Take a batch in; afterwards every message of it is in the log or a dead letter.

        Errors: overloaded, shutting_down, unavailable.
        """
        good: list[tuple[Arrived, Reading]] = []
        bad: list[Letter] = []
        for message in messages:
            try:
                good.append((message, read_message(message.value, message.headers)))
            except LedgerError as refusal:
                bad.append(letter_of(message, refusal.code, refusal.message))
        self._observe(1)
        inserted, duplicates, rejected = await self._meter(good)
        self._observe(2)
        await self._letters.add(bad + rejected)
        self._observe(3)
        return _counted(messages, Tally(inserted, duplicates, len(bad) + len(rejected)))

    async def _meter(self, good: Sequence[tuple[Arrived, Reading]]) -> tuple[int, int, list[Letter]]:
        """Meter readings in one command; where a whole command is refused, halve it until the culprit stands alone."""
        if not good:
            return 0, 0, []
        try:
            counted = await meter(self._ledger, [reading for _, reading in good], INGESTER)
        except LedgerError as refusal:
            if refusal.status >= 500 or refusal.retry is not Retry.NEVER:
                raise
            code, detail = refusal.code, refusal.message
        except Exception as bug:  # noqa: BLE001 - a message that meets a fault of ours must not stop those behind it
            log.error("ingest_bug", error=repr(bug), messages=len(good))
            code, detail = BUG, f"the service made a mistake: {type(bug).__name__}"
        else:
            letters = [letter_of(good[one.index][0], one.code, one.detail) for one in counted.rejected]
            return counted.inserted, counted.duplicates, letters
        if len(good) == 1:
            return 0, 0, [letter_of(good[0][0], code, detail)]
        half = len(good) // 2
        first, second = await self._meter(good[:half]), await self._meter(good[half:])
        return first[0] + second[0], first[1] + second[1], first[2] + second[2]


async def meter(
    ledger: Ledger, readings: Sequence[Reading], caller: Caller, correlation: str | None = None
) -> Metered:
    """Take readings into the log.

    Errors: overloaded, shutting_down, unavailable.
    """
    command = MeterUsage(readings=list(readings))
    answer = await ledger.act(meter_usage, command, caller, correlation=correlation)
    return _answers.decode(answer.body)


def _counted(messages: Sequence[Arrived], tally: Tally) -> Tally:
    topic = messages[0].topic if messages else TOPIC
    outcomes = {
        "inserted": tally.inserted,
        "duplicate": tally.duplicates,
        "dead_letter": tally.dead_letters,
    }
    for outcome, count in outcomes.items():
        telemetry.INGEST_MESSAGES.labels(topic, outcome).inc(count)
    if messages:
        log.info("ingested", topic=topic, messages=len(messages), **outcomes)
    return tally


# --------------------------------------------------------------------------- following the topic


class Ingest:
    """Follows a topic for one runtime. One process leads, the others wait for it to go away.

    A second leader for a moment, after a lost connection, would take messages twice and count none twice.
    observe is called at each numbered step; crash tests use it.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        topic: str = TOPIC,
        messages_max: int = MESSAGES_MAX,
        observe: Callable[[int], None] | None = None,
    ) -> None:
        self._runtime = runtime
        self._topic = topic
        self._messages_max = messages_max
        self._observe = observe or (lambda _: None)
        self._partitions: list[int] = []
        self._intake = Intake(runtime.ledger, DeadLetters(runtime.reader.pool), self._observe)

    async def run(self) -> None:
        """Take messages in until cancelled; an outage is raised, and starting again goes on where this ended.

        Errors: broker_refused, broker_unavailable, follower_superseded, unavailable.
        """
        place = await Place.open(self._runtime.url, NAME)
        try:
            await place.lead()
            source = await asyncio.to_thread(open_topic, Kafka(self._runtime.settings), self._topic)
            try:
                await self._follow(source, place)
            finally:
                await asyncio.shield(asyncio.to_thread(source.close))
        finally:
            await place.close()

    async def _follow(self, source: Source, place: Place) -> None:
        await self._begin(source, await asyncio.to_thread(source.kept))
        looked_s = self._now_s()
        while True:
            if self._now_s() - looked_s > LOOK_S:
                looked_s = self._now_s()
                await place.look()
                await self._join_new_partitions(source)
            try:
                messages = await asyncio.to_thread(source.read, self._messages_max, WAIT_S)
            except OffsetLostError as gap:
                # Retention was faster than we: what is left is read from its beginning, and taken once.
                log.error("ingest_gap", topic=self._topic, code=gap.code, detail=gap.message)
                telemetry.FOLLOWER_FAILURES.labels(NAME, gap.code).inc()
                await self._begin(source, {})
                continue
            if messages:
                await self._step(source, messages)
            telemetry.INGEST_LAG.labels(self._topic).set(await asyncio.to_thread(source.lag))

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def _step(self, source: Source, messages: Sequence[Arrived]) -> None:
        offsets = await asyncio.to_thread(source.next_offsets)
        await self._intake.take(messages)
        await asyncio.to_thread(source.keep, offsets)
        self._observe(4)

    async def _begin(self, source: Source, offsets: Mapping[int, int]) -> None:
        await asyncio.to_thread(source.go_to, offsets)
        self._partitions = await asyncio.to_thread(source.partitions)
        log.info("ingest_begins", topic=self._topic, partitions=self._partitions, offsets=dict(offsets))

    async def _join_new_partitions(self, source: Source) -> None:
        """Read partitions that were added since; the others go on where they are kept."""
        if await asyncio.to_thread(source.partitions) != self._partitions:
            await self._begin(source, await asyncio.to_thread(source.kept))


def open_topic(kafka: Kafka, topic: str = TOPIC) -> Source:
    """Open the topic of readings; it is made where it is missing, and taken as it is where others made it.

    Errors: broker_refused, broker_unavailable.
    """
    try:
        kafka.make_topics([kafka.event_topic(topic)])
    except TopicUnsuitableError as other:
        log.info("ingest_topic_of_others", **other.facts)
    return kafka.reader(topic, GROUP)


# --------------------------------------------------------------------------- dead letters, once more


async def requeue(
    ledger: Ledger, letters: DeadLetters, letter_id: int, who: Caller, mended: Any = None
) -> DeadLetter:
    """Have a dead letter taken in again, as it is or mended; it is closed once it is in the log.

    A crash between the two leaves it open, and the next try meets a duplicate. The records name the letter as their
    correlation, and who asked as their actor.
    Errors: dead_letter_closed, dead_letter_not_found, dead_letter_not_requeueable, dead_letter_not_taken, unavailable.
    """
    letter = await letters.get(letter_id)
    if letter.state != "open":
        raise DeadLetterClosedError(id=letter_id, state=letter.state, closed_by=letter.closed_by)
    if letter.kind != "message":
        raise DeadLetterKindError(id=letter_id, kind=letter.kind, source=letter.source)
    try:
        reading = _read_again(letter) if mended is None else as_reading(mended)
        caller = INGESTER._replace(subject=who.subject)
        counted = await meter(ledger, [reading], caller, f"dead-letter-{letter_id}")
        for rejected in counted.rejected:
            raise REGISTRY[rejected.code](rejected.detail)
    except LedgerError as refusal:
        if refusal.status >= 500:
            raise
        await letters.failed_again(letter_id, refusal.code, refusal.message)
        raise DeadLetterNotTakenError(refusal.message, id=letter_id, reason=refusal.code) from refusal
    note = None if mended is None else "mended"
    return await letters.mark(letter_id, "requeued", who.subject, note)


def _read_again(letter: DeadLetter) -> Reading:
    if not letter.is_whole:
        raise MessageTooLargeError(f"{letter.payload_bytes} bytes, of which only the first were kept")
    return read_message(letter.payload, letter.headers)
