"""Measure the relay against a bare producer that sends the same messages, ready made, without a log or a transaction;
and the intake of readings against a bare consumer.

Both send to topics of the same shape on one real broker, in turns; the relay reads the log from PostgreSQL, writes the
headers, and commits transactions with its position and signed checkpoints.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from confluent_kafka import Consumer, Producer

from domain.log.notes import Signer
from ops.kafka import Kafka, Message
from ops.listen import Listener
from ops.runtime import Runtime
from projections.cloud_events import TOPICS, CloudEvents
from projections.follower import BATCH_MAX, Follower
from projections.ingest import TOPIC as INGEST_TOPIC
from projections.ingest import Ingest
from projections.relay import NAME, Relay
from tests.bench.bench_log import ledger_creates
from tests.bench.bench_transfers import fill, through_gate
from tests.bench.bench_usage import READINGS, readings
from tests.bench.figures import Figure, House, compared, open_house, run
from tests.kafka.broker import Broker

ROUNDS = 5
RECORDS = 60_000
BARE = "bench.bare."
INGESTED = 60_000


async def written(house: House) -> float:
    """Write a log of creations and transfers, as large as the measurement needs; give records a second."""
    await fill(house)
    turns, rates = (ledger_creates(house), through_gate(house)), []
    while (size := await house.runtime.reader.size()) < RECORDS:
        started = time.perf_counter()
        for turn in turns:
            await turn()
        rates.append((await house.runtime.reader.size() - size) / (time.perf_counter() - started))
    return statistics.median(rates)


async def made(runtime: Runtime) -> list[Message]:
    """Make the messages that the relay would send."""
    events = CloudEvents(runtime.signer.name)
    stored = await runtime.reader.span(0, RECORDS)
    return [
        message._replace(topic=BARE + message.topic) for one in stored for message in events.messages(one)
    ]


def bare(bootstrap: str, messages: list[Message]) -> float:
    """Send messages as fast as the library does; give records a second."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 5,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 200_000,
            "partitioner": "murmur2_random",
        }
    )
    started = time.perf_counter()
    for number, (topic, key, value, headers) in enumerate(messages):
        producer.produce(topic, value, key, headers=headers)
        if number % BATCH_MAX == 0:
            producer.poll(0)
    assert producer.flush(60) == 0
    return RECORDS / (time.perf_counter() - started)


async def relayed(runtime: Runtime) -> float:
    """Relay the log from its beginning; give records a second, without the time it takes to open the relay."""
    opened_at = 0.0

    class Timed(Relay):
        """A relay that notes when it is open."""

        async def open(self) -> int:
            nonlocal opened_at
            position = await super().open()
            opened_at = time.perf_counter()
            assert position == 0
            return position

    async with Listener(runtime.url) as listener:
        follower = Follower(NAME, Timed(runtime), runtime.url, listener)
        await follower.run(until=RECORDS // BATCH_MAX * BATCH_MAX)
    return RECORDS // BATCH_MAX * BATCH_MAX / (time.perf_counter() - opened_at)


async def turns(house: House, broker: Broker) -> list[Figure]:
    """Let both take turns; each relay has a name of its own, and so begins at the beginning."""
    settings = house.runtime.settings.model_copy(update={"kafka_bootstrap_servers": broker.bootstrap})
    writes = await written(house)
    messages = await made(house.runtime)
    kafka = Kafka(settings)
    kafka.make_topics([kafka.event_topic(BARE + topic) for topic in TOPICS])
    ours, base = [], []
    for number in range(1 + ROUNDS):
        signer = Signer(f"bench/{number}", bytes(32))
        base.append(await asyncio.to_thread(bare, broker.bootstrap, messages))
        ours.append(await relayed(replace(house.runtime, settings=settings, signer=signer)))
    # A broker that has just started compiles itself while it works: the first turn of each is no figure.
    rate = statistics.median(ours[1:])
    return [
        compared("kafka.relay", "records/s", rate, statistics.median(base[1:]), at_least=0.5),
        compared("kafka.relay_of_writes", "records/s", rate, writes, at_least=1.0),
    ]


def kafka_relay() -> list[Figure]:
    """Measure both on one broker."""

    async def measure() -> list[Figure]:
        with TemporaryDirectory(prefix="soma-kafka-") as place:
            broker = await asyncio.to_thread(Broker(Path(place)).start)
            try:
                async with open_house() as house:
                    return await turns(house, broker)
            finally:
                await asyncio.to_thread(broker.stop)

    return run(measure)


# --------------------------------------------------------------------------- readings from the topic


def produce(bootstrap: str) -> None:
    """Put readings of one tenant on the topic."""
    producer = Producer(
        {"bootstrap.servers": bootstrap, "linger.ms": 5, "queue.buffering.max.messages": 200_000}
    )
    chance = random.Random(7)
    for number in range(INGESTED // READINGS):
        for reading in readings(number * READINGS, chance):
            producer.produce(INGEST_TOPIC, json.dumps(reading | {"tenant": "acme"}).encode(), b"acme")
        producer.poll(0)
    assert producer.flush(60) == 0


def consumed(bootstrap: str) -> float:
    """Read the topic and do nothing with it; give messages a second."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bare", "auto.offset.reset": "earliest"})
    consumer.subscribe([INGEST_TOPIC])
    count, started = 0, None
    while count < INGESTED:
        messages = consumer.consume(10_000, 1.0)
        if messages and started is None:
            started = time.perf_counter()
        count += len(messages)
    assert started is not None
    took_s = time.perf_counter() - started
    consumer.close()
    return INGESTED / took_s


async def ingested(runtime: Runtime) -> float:
    """Take the topic in; give readings a second, from the first that is in the log to the last."""
    task = asyncio.create_task(Ingest(runtime).run())
    seen, size = [], 0
    while size < INGESTED:
        await asyncio.sleep(0.02)
        assert not task.done(), task
        if (now := await runtime.reader.size()) > size:
            seen.append((time.perf_counter(), size := now))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])


def kafka_ingest() -> list[Figure]:
    """Measure readings from the topic to the log, against reading the topic alone."""

    async def measure() -> list[Figure]:
        with TemporaryDirectory(prefix="soma-kafka-") as place:
            broker = await asyncio.to_thread(Broker(Path(place)).start)
            try:
                async with open_house() as house:
                    settings = house.runtime.settings.model_copy(
                        update={"kafka_bootstrap_servers": broker.bootstrap}
                    )
                    kafka = Kafka(settings)
                    kafka.make_topics([kafka.event_topic(INGEST_TOPIC)])
                    await asyncio.to_thread(produce, broker.bootstrap)
                    rate = await ingested(replace(house.runtime, settings=settings))
                    bare_rate = await asyncio.to_thread(consumed, broker.bootstrap)
            finally:
                await asyncio.to_thread(broker.stop)
        return [compared("kafka.ingest", "readings/s", rate, bare_rate)]

    return run(measure)


FIGURES = {"kafka.relay": kafka_relay, "kafka.ingest": kafka_ingest}
