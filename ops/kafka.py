"""The one door to Kafka: a transactional producer, a reader of what was committed, and topics as they must be.

Everything here blocks; followers call it from a thread. What Kafka says goes out as refusals of ours: `relay_fenced`
where another producer has taken over, `broker_refused` where a person must look, `offset_lost` where retention was
faster than the reader, else `broker_unavailable`, for which starting over is the answer.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import (
    OFFSET_BEGINNING,
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from domain.errors import (
    BrokerRefusedError,
    BrokerUnavailableError,
    LedgerError,
    OffsetLostError,
    RelayFencedError,
    TopicUnsuitableError,
)
from ops.settings import Settings

Client = TypeVar("Client")

ANSWER_S_MAX = 30.0
LOOK_S_MAX = 5.0
COMMIT_S_MAX = 60.0
ABORT_S_MAX = 10.0
TRANSACTION_MS_MAX = 60_000
DELIVERY_MS_MAX = 45_000
LOOK_BACK = 64

Headers = list[tuple[str, str | bytes | None]]

# An option that would break a promise is not the operator's to choose.
KEPT_OPTIONS = frozenset(
    "acks enable.auto.commit enable.auto.offset.store enable.idempotence isolation.level partitioner"
    " transactional.id".split()
)
FENCED = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.FENCED_INSTANCE_ID,
    }
)
REFUSED = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._INVALID_ARG,
        KafkaError._SSL,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.INVALID_CONFIG,
        KafkaError.INVALID_REPLICATION_FACTOR,
        KafkaError.POLICY_VIOLATION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)


class Message(NamedTuple):
    """A message to be sent."""

    topic: str
    key: str | bytes
    value: bytes
    headers: Headers


class Arrived(NamedTuple):
    """A message that was read; what it holds may be anything.

    Units: arrived_ms is the broker's clock (or the producer's, by the topic's setting) in milliseconds since 1970.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    arrived_ms: int | None


class Topic(NamedTuple):
    """A topic as it must be."""

    name: str
    partitions: int
    config: dict[str, str]


class Kafka:
    """A cluster, by its settings."""

    def __init__(self, settings: Settings) -> None:
        assert settings.kafka_bootstrap_servers, "Kafka is off"
        given = settings.kafka_options.get_secret_value() if settings.kafka_options else "{}"
        options = {name: value for name, value in json.loads(given).items() if name not in KEPT_OPTIONS}
        self._options: dict[str, Any] = {
            "client.id": "soma-ledger",
            # A broker that comes back is found again within a second.
            "reconnect.backoff.max.ms": 1_000,
            **options,
            "bootstrap.servers": settings.kafka_bootstrap_servers,
            "logger": logging.getLogger(__name__),
        }
        self._settings = settings

    def event_topic(self, name: str) -> Topic:
        """Describe a topic of events: never compacted, times by the broker's clock, kept as long as the settings say.

        With the events' own times, retention would take a late one away the moment it came.
        """
        days = self._settings.kafka_retention_days
        config = {
            "cleanup.policy": "delete",
            "message.timestamp.type": "LogAppendTime",
            "retention.ms": str(-1 if days is None else days * 86_400_000),
            "retention.bytes": "-1",
        }
        return Topic(name, self._settings.kafka_partitions, config)

    def position_topic(self, name: str) -> Topic:
        """Describe a topic that keeps the last value of each key."""
        return Topic(name, 1, {"cleanup.policy": "compact", "segment.ms": str(86_400_000)})

    def make_topics(self, topics: Iterable[Topic]) -> None:
        """Make the topics that are missing, and see that those that are there are as they must be.

        Errors: broker_refused, broker_unavailable, topic_unsuitable.
        """
        admin = _made(AdminClient, self._options)
        wanted = {topic.name: topic for topic in topics}
        factor = self._settings.kafka_replication_factor or -1
        new = [NewTopic(t.name, t.partitions, factor, config=t.config) for t in wanted.values()]
        for name, made in admin.create_topics(new, request_timeout=ANSWER_S_MAX).items():
            try:
                made.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise told(error, f"the topic {name} cannot be made") from error
        self._check(admin, wanted)

    def _check(self, admin: AdminClient, wanted: Mapping[str, Topic]) -> None:
        counts = _partition_counts(admin, wanted)
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in wanted]
        for resource, asked in admin.describe_configs(resources, request_timeout=ANSWER_S_MAX).items():
            topic = wanted[resource.name]
            try:
                found = asked.result()
            except KafkaException as error:
                raise told(error, f"the topic {topic.name} cannot be looked at") from error
            for name in ("cleanup.policy", "message.timestamp.type"):
                has = found[name].value if name in found else None
                if name in topic.config and has != topic.config[name]:
                    raise TopicUnsuitableError(
                        topic=topic.name, setting=name, has=has, needs=topic.config[name]
                    )
            if counts[topic.name] != topic.partitions:
                # Another number of partitions sends a stream's next record to another partition: its order is gone.
                has_count = counts[topic.name]
                raise TopicUnsuitableError(
                    topic=topic.name, setting="partitions", has=has_count, needs=topic.partitions
                )

    def broker_count(self) -> int:
        """Count the brokers.

        Errors: broker_refused, broker_unavailable.
        """
        try:
            return len(_made(AdminClient, self._options).list_topics(timeout=LOOK_S_MAX).brokers)
        except KafkaException as error:
            raise told(error, "no broker answers") from error

    def last(self, topic: str, key: str) -> bytes | None:
        """Read the last committed value under a key of a topic with one partition.

        Cost:   the end of the partition; all of it where the key is old.
        Errors: broker_refused, broker_unavailable.
        """
        with _Closing(self._consumer(None, {"enable.partition.eof": True})) as consumer:
            low, high = _ends(consumer, topic, 0)
            end, width = high, LOOK_BACK
            while end > low:
                start = max(low, end - width)
                found = _last_between(consumer, TopicPartition(topic, 0, start), end, key.encode())
                if found is not None:
                    return found
                end, width = start, width * 8
        return None

    def producer(self, transactional_id: str) -> TransactionalProducer:
        """Become the one producer of an id; whoever was it before is refused from now on.

        Errors: broker_refused, broker_unavailable, relay_fenced.
        """
        return TransactionalProducer(
            {
                "compression.type": "lz4",
                **self._options,
                "transactional.id": transactional_id,
                "transaction.timeout.ms": TRANSACTION_MS_MAX,
                "delivery.timeout.ms": DELIVERY_MS_MAX,
                "linger.ms": 5,
                "batch.size": 1_000_000,
                "queue.buffering.max.messages": 200_000,
                # As Java's clients place keys, so that a topic others also write keeps its order.
                "partitioner": "murmur2_random",
            }
        )

    def reader(self, topic: str, group: str) -> CommittedReader:
        """Open a reader of a topic; its owner keeps the offsets, or keeps them with the group.

        Errors: broker_refused, broker_unavailable.
        """
        return CommittedReader(self._consumer(group, {}), topic)

    def _consumer(self, group: str | None, more: Mapping[str, Any]) -> Consumer:
        return _made(
            Consumer,
            {
                **self._options,
                **more,
                "group.id": group or "soma-ledger",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "isolation.level": "read_committed",
                # An offset that is gone is an accident to be told, not a reason to jump.
                "auto.offset.reset": "error",
            },
        )


def brokers(settings: Settings) -> int:
    """Count the brokers of the cluster that answer for it.

    Errors: broker_refused, broker_unavailable.
    """
    return Kafka(settings).broker_count()


class TransactionalProducer:
    """Sends messages of which all or none are ever seen. Used by one thread.

    After an error it is of no use any more: close it, and make another one, which settles what this one left open.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._producer = _made(Producer, options)
        self._is_open = False
        try:
            _patiently(lambda: self._producer.init_transactions(ANSWER_S_MAX), COMMIT_S_MAX)
        except LedgerError:
            self.close()
            raise

    def begin(self) -> None:
        """Begin a transaction.

        Errors: broker_unavailable, relay_fenced.
        """
        self._is_open = True
        _patiently(self._producer.begin_transaction, 0)

    def send(self, messages: Iterable[Message]) -> int:
        """Hand messages over; give their number. They travel while the next ones are made.

        Errors: broker_refused, broker_unavailable, relay_fenced.
        """
        produce, count = self._producer.produce, 0
        try:
            for topic, key, value, headers in messages:
                try:
                    produce(topic, value, key, headers=headers)
                except BufferError:
                    self._producer.flush(ANSWER_S_MAX)
                    produce(topic, value, key, headers=headers)
                count += 1
            self._producer.poll(0)
        except BufferError as full:
            raise BrokerUnavailableError("the brokers do not take what is sent", internal=str(full)) from full
        except KafkaException as error:
            raise told(error, "a message was not taken") from error
        return count

    def flush(self) -> None:
        """Wait until the brokers hold everything that was sent, or the time is up; commit tells which.

        Errors: broker_refused, broker_unavailable, relay_fenced.
        """
        try:
            self._producer.flush(ANSWER_S_MAX)
        except KafkaException as error:
            raise told(error, "what was sent did not arrive") from error

    def commit(self) -> None:
        """Commit, and wait for it; after broker_unavailable it is open whether it happened.

        Errors: broker_refused, broker_unavailable, relay_fenced.
        """
        _patiently(lambda: self._producer.commit_transaction(ANSWER_S_MAX), COMMIT_S_MAX)
        self._is_open = False

    def abort(self) -> None:
        """Give up what was begun, as far as that can be done from here; readers go on past it at once."""
        self._is_open = False
        with suppress(KafkaException):
            self._producer.abort_transaction(ABORT_S_MAX)

    def close(self) -> None:
        """Let go; nothing of what is unsent or uncommitted is kept."""
        if self._is_open:
            self.abort()
        self._producer.purge()
        # The library's own close gives up a transaction a second time, and warns where that cannot be done.
        del self._producer


class CommittedReader:
    """Reads what transactions committed, partition by partition, from offsets its owner keeps. Used by one thread.

    Its owner applies what it was given, keeps `next_offsets()` with the effect, and gives them to `go_to` at a start.
    """

    def __init__(self, consumer: Consumer, topic: str) -> None:
        self._consumer = consumer
        self.topic = topic

    def partitions(self) -> list[int]:
        """List the topic's partitions.

        Errors: broker_refused, broker_unavailable.
        """
        try:
            found = self._consumer.list_topics(self.topic, ANSWER_S_MAX).topics[self.topic]
        except KafkaException as error:
            raise told(error, f"the topic {self.topic} cannot be looked at") from error
        if found.error is not None:
            raise told(KafkaException(found.error), f"the topic {self.topic} cannot be looked at")
        return sorted(found.partitions)

    def go_to(self, offsets: Mapping[int, int]) -> None:
        """Read every partition from the offset given, from its beginning where none is given.

        Errors: broker_refused, broker_unavailable.
        """
        places = [
            TopicPartition(self.topic, number, offsets.get(number, OFFSET_BEGINNING))
            for number in self.partitions()
        ]
        try:
            self._consumer.assign(places)
        except KafkaException as error:
            raise told(error, "the offsets cannot be gone to") from error

    def read(self, count_max: int, timeout_s: float) -> list[Arrived]:
        """Read up to a number of messages; fewer, or none, when the time is up.

        Errors: broker_refused, broker_unavailable, offset_lost.
        """
        try:
            found = self._consumer.consume(count_max, timeout_s)
        except KafkaException as error:
            raise told(error, "nothing can be read") from error
        arrived = []
        for message in found:
            if message.error() is not None:
                raise told(KafkaException(message.error()), f"the topic {self.topic} cannot be read")
            arrived.append(_arrived(message))
        return arrived

    def next_offsets(self) -> dict[int, int]:
        """Give, for each partition of which something was read, the offset to go on from."""
        places = self._consumer.position([TopicPartition(self.topic, n) for n in self._assigned()])
        return {place.partition: place.offset for place in places if place.offset >= 0}

    def ends(self) -> dict[int, int]:
        """Give, for each partition, the offset after the last one that is committed.

        Errors: broker_refused, broker_unavailable.
        """
        return {number: _ends(self._consumer, self.topic, number)[1] for number in self._assigned()}

    def lag(self) -> int:
        """Count the messages that were not read yet, as the latest answers of the brokers told; nothing is asked."""
        count = 0
        for number, offset in self.next_offsets().items():
            known = self._consumer.get_watermark_offsets(TopicPartition(self.topic, number), cached=True)
            count += max(0, known[1] - offset) if known else 0
        return count

    def keep(self, offsets: Mapping[int, int]) -> None:
        """Keep offsets with the group, for owners who keep them nowhere else.

        Errors: broker_refused, broker_unavailable.
        """
        places = [TopicPartition(self.topic, number, offset) for number, offset in offsets.items()]
        try:
            self._consumer.commit(offsets=places, asynchronous=False)
        except KafkaException as error:
            raise told(error, "the offsets cannot be kept") from error

    def kept(self) -> dict[int, int]:
        """Read the offsets that are kept with the group.

        Errors: broker_refused, broker_unavailable.
        """
        places = [TopicPartition(self.topic, number) for number in self.partitions()]
        try:
            found = self._consumer.committed(places, ANSWER_S_MAX)
        except KafkaException as error:
            raise told(error, "the offsets cannot be read") from error
        return {place.partition: place.offset for place in found if place.offset >= 0}

    def close(self) -> None:
        """Let go."""
        self._consumer.close()

    def _assigned(self) -> list[int]:
        return [place.partition for place in self._consumer.assignment()]


def told(error: KafkaException, what: str) -> LedgerError:
    """Say in our words what Kafka said."""
    said: KafkaError = error.args[0]
    words = f"{said.name()}: {said.str()}"
    if said.code() in FENCED:
        return RelayFencedError(internal=words)
    if said.code() in REFUSED:
        return BrokerRefusedError(f"{what}: {said.str()}", internal=words)
    if said.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        return OffsetLostError(internal=words)
    return BrokerUnavailableError(what, internal=words)


def _made(kind: Callable[[dict[str, Any]], Client], options: dict[str, Any]) -> Client:
    """Make a client; it looks at its options when it is made."""
    try:
        return kind(options)
    except KafkaException as error:
        raise told(error, "SOMA_KAFKA_OPTIONS cannot be used") from error


def _patiently(step: Callable[[], object], patience_s: float) -> None:
    """Take a step of a transaction, again while Kafka says that it may work."""
    until = time.monotonic() + patience_s
    while True:
        try:
            step()
            return
        except KafkaException as error:
            if not error.args[0].retriable() or time.monotonic() > until:
                raise told(error, "the transaction could not be finished") from error
        time.sleep(0.05)


def _partition_counts(admin: AdminClient, names: Iterable[str]) -> dict[str, int]:
    """Count the partitions of topics; one that was just made may take a moment to be known."""
    until = time.monotonic() + ANSWER_S_MAX
    while True:
        try:
            found = admin.list_topics(timeout=ANSWER_S_MAX).topics
        except KafkaException as error:
            raise told(error, "the topics cannot be listed") from error
        if all(name in found and found[name].partitions for name in names):
            return {name: len(found[name].partitions) for name in names}
        if time.monotonic() > until:
            raise BrokerUnavailableError("a topic that was made is not known")
        time.sleep(0.05)


def _ends(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    try:
        found = consumer.get_watermark_offsets(TopicPartition(topic, partition), ANSWER_S_MAX)
    except KafkaException as error:
        raise told(error, f"the topic {topic} cannot be looked at") from error
    if found is None:
        raise BrokerUnavailableError(f"the topic {topic} cannot be looked at")
    return int(found[0]), int(found[1])


def _last_between(consumer: Consumer, start: TopicPartition, end: int, key: bytes) -> bytes | None:
    """Read from a place to an offset; give the last value under the key."""
    consumer.assign([start])
    found, until = None, time.monotonic() + ANSWER_S_MAX
    while time.monotonic() < until:
        for message in consumer.consume(1_000, 0.2):
            error = message.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                return found
            if error is not None:
                raise told(KafkaException(error), f"the topic {start.topic} cannot be read")
            if (message.offset() or 0) >= end:
                return found
            if message.key() == key:
                found = message.value()
    raise BrokerUnavailableError(f"the topic {start.topic} could not be read to its end")


def _arrived(message: Any) -> Arrived:
    kind, moment_ms = message.timestamp()
    return Arrived(
        message.topic(),
        message.partition(),
        message.offset(),
        message.key(),
        message.value(),
        message.headers() or [],
        None if kind == TIMESTAMP_NOT_AVAILABLE else moment_ms,
    )


class _Closing:
    """Closes a consumer, whatever happens."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def __enter__(self) -> Consumer:
        return self._consumer

    def __exit__(self, *_: object) -> None:
        self._consumer.close()
