"""The door to Kafka: what is committed is read, what is not is not, and what is gone is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from domain.errors import BrokerUnavailableError, OffsetLostError, RelayFencedError
from ops import kafka as door
from ops.kafka import Arrived, CommittedReader, Kafka, Message, TransactionalProducer, brokers
from ops.settings import Settings
from tests.kafka.broker import Broker
from tests.kafka.world import kafka_settings


@pytest.fixture
def settings(broker: Broker, tmp_path: Path) -> Settings:
    """Give settings of the shared broker."""
    return kafka_settings("postgresql://nowhere", tmp_path, broker.bootstrap, "door.test/log")


@pytest.fixture
def topic(settings: Settings) -> str:
    """Make a topic of its own."""
    kafka, name = Kafka(settings), f"door.{uuid4().hex}"
    kafka.make_topics([kafka.event_topic(name), kafka.position_topic(name + ".last")])
    return name


@pytest.fixture
def producer(settings: Settings, topic: str) -> Iterator[TransactionalProducer]:
    """Open a producer of its own."""
    made = Kafka(settings).producer(topic)
    yield made
    made.close()


@pytest.fixture
def reader(settings: Settings, topic: str) -> Iterator[CommittedReader]:
    """Open a reader of the topic."""
    made = Kafka(settings).reader(topic, f"group.{topic}")
    yield made
    made.close()


def send(producer: TransactionalProducer, topic: str, *values: bytes) -> None:
    """Send messages, and commit them."""
    producer.begin()
    assert producer.send(Message(topic, f"k{n}", value, []) for n, value in enumerate(values)) == len(values)
    producer.commit()


def read(reader: CommittedReader, count: int) -> list[Arrived]:
    """Read a number of messages."""
    found: list[Arrived] = []
    until = time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < until, f"only {found} came"
        found += reader.read(100, 0.2)
    return found


def test_what_is_committed_is_read_and_what_is_given_up_is_not(
    producer: TransactionalProducer, reader: CommittedReader, topic: str
) -> None:
    send(producer, topic, b"one", b"two")
    producer.begin()
    producer.send([Message(topic, "k", b"never", [])])
    producer.flush()
    producer.abort()
    send(producer, topic, b"three")
    reader.go_to({})
    found = read(reader, 3)
    assert sorted(one.value for one in found) == [b"one", b"three", b"two"]
    assert reader.read(10, 0.5) == []


def test_a_reader_goes_on_where_its_owner_says(
    producer: TransactionalProducer, reader: CommittedReader, topic: str
) -> None:
    send(producer, topic, *(b"%d" % n for n in range(20)))
    reader.go_to({})
    first = reader.read(7, 5)
    kept = reader.next_offsets()
    reader.keep(kept)
    rest = read(reader, 20 - len(first))
    reader.go_to(reader.kept())
    again = read(reader, 20 - len(first))
    assert {one.value for one in first} | {one.value for one in rest} == {b"%d" % n for n in range(20)}
    assert sorted(one.value for one in again) == sorted(one.value for one in rest)
    assert all(one.arrived_ms and abs(one.arrived_ms / 1_000 - time.time()) < 600 for one in again)


def test_records_that_retention_took_away_are_told(
    broker: Broker, producer: TransactionalProducer, reader: CommittedReader, topic: str
) -> None:
    send(producer, topic, *(b"%d" % n for n in range(30)))
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    places = [TopicPartition(topic, n, end) for n, end in enumerate(all_ends(reader).values())]
    for deleted in admin.delete_records([place for place in places if place.offset]).values():
        deleted.result()
    reader.go_to(dict.fromkeys(reader.partitions(), 0))
    with pytest.raises(OffsetLostError):
        read(reader, 1)


def all_ends(reader: CommittedReader) -> dict[int, int]:
    """Ask for the ends of all partitions."""
    reader.go_to({})
    return dict(sorted(reader.ends().items()))


def test_the_last_value_of_a_key_is_found_however_far_back_it_lies(
    settings: Settings, producer: TransactionalProducer, topic: str
) -> None:
    kafka, place = Kafka(settings), topic + ".last"
    assert kafka.last(place, "a") is None
    producer.begin()
    producer.send([Message(place, "a", b"1", []), Message(place, "a", b"2", [])])
    producer.send(Message(place, "b", b"%d" % n, []) for n in range(1_500))
    producer.commit()
    producer.begin()
    producer.send([Message(place, "a", b"3", [])])
    producer.abort()
    # A commit is answered before its end can be read everywhere; whoever leads next waits for that when it begins.
    until = time.monotonic() + 30
    while (found := kafka.last(place, "a")) is None and time.monotonic() < until:
        time.sleep(0.1)
    assert found == b"2"
    assert kafka.last(place, "b") == b"1499"
    assert kafka.last(place, "c") is None


def test_a_producer_whose_id_another_took_is_refused(
    settings: Settings, producer: TransactionalProducer, topic: str
) -> None:
    producer.begin()
    producer.send([Message(topic, "k", b"late", [])])
    second = Kafka(settings).producer(topic)
    with pytest.raises(RelayFencedError):
        producer.commit()
    second.close()


def test_the_brokers_that_answer_are_counted(settings: Settings) -> None:
    assert brokers(settings) == 1


def test_an_outage_longer_than_a_transaction_lives_is_told_and_nothing_of_it_is_seen(
    own_broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("DELIVERY_MS_MAX", 1_500), ("TRANSACTION_MS_MAX", 2_000), ("COMMIT_S_MAX", 4.0)):
        monkeypatch.setattr(door, name, value)
    monkeypatch.setattr(door, "ANSWER_S_MAX", 3.0)
    monkeypatch.setattr(door, "ABORT_S_MAX", 1.0)
    kafka = Kafka(kafka_settings("postgresql://nowhere", tmp_path, own_broker.bootstrap, "door.test/log"))
    kafka.make_topics([kafka.event_topic("away")])
    first = kafka.producer("away")
    send(first, "away", b"before")
    own_broker.kill()
    with pytest.raises(BrokerUnavailableError):
        send(first, "away", b"lost")
    first.abort()
    first.close()
    own_broker.start()
    monkeypatch.setattr(door, "ANSWER_S_MAX", 30.0)
    monkeypatch.setattr(door, "COMMIT_S_MAX", 60.0)
    second = kafka.producer("away")
    send(second, "away", b"after")
    second.close()
    reader = kafka.reader("away", "away")
    reader.go_to({})
    found = read(reader, 2)
    assert sorted(one.value for one in found) == [b"after", b"before"]
    assert reader.read(10, 0.5) == []
    reader.close()
