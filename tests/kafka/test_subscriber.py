"""The example subscriber: killed again and again it sees each record once; what is not the log, it does not take."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from pathlib import Path

import pytest
from confluent_kafka import Producer

from domain.log.notes import Signer
from domain.log.records import address_text, digest
from ops.kafka import Kafka
from ops.runtime import Runtime, open_runtime
from ops.settings import Settings
from projections.cloud_events import EVENTS
from tests.kafka.broker import Broker
from tests.kafka.children import Child
from tests.kafka.world import kafka_settings, new_origin, read_topic, relay_all, whole_log, write_some

EXAMPLE = "docs/examples/subscriber.py"
# How often it is killed; the full bar is 20.
KILLS = int(os.environ.get("SOMA_SUBSCRIBER_KILLS", "20"))


@pytest.fixture
def settings(broker: Broker, database_url: str, tmp_path: Path) -> Settings:
    """Give the settings of a log of its own on the shared broker."""
    return kafka_settings(database_url, tmp_path, broker.bootstrap, new_origin())


def subscriber(runtime: Runtime, state: Path, *more: str, key: str = "") -> Child:
    """Start the example as its page says."""
    brokers = str(runtime.settings.kafka_bootstrap_servers)
    words = ["--brokers", brokers, "--key", key or runtime.signer.key.text, "--state", str(state)]
    return Child([EXAMPLE, *words, *more])


async def check_taken(runtime: Runtime, state: Path) -> None:
    """Check that every record of the log was taken in once."""
    with sqlite3.connect(state) as db:
        taken = db.execute("SELECT position, address FROM taken ORDER BY position").fetchall()
        waiting = db.execute("SELECT count(*) FROM waiting").fetchone()
    db.close()
    assert taken == [(stored.position, address_text(stored.address)) for stored in await whole_log(runtime)]
    assert waiting == (0,)


def test_a_subscriber_killed_again_and_again_sees_each_record_once(
    settings: Settings, tmp_path: Path
) -> None:
    chance, state = random.Random(), tmp_path / "seen.db"

    async def play() -> None:
        async with open_runtime(settings) as rt:
            sizes = [0]
            for kill in range(KILLS):
                await write_some(rt, 30, f"k{kill}")
                await relay_all(rt, batch_max=64)
                with subscriber(rt, state) as child:
                    resumed = await asyncio.to_thread(child.hear, lambda line: "resumed_at" in line)
                    assert resumed["resumed_at"] >= sizes[-1], "what was taken in is gone"
                    await asyncio.sleep(chance.uniform(0, 0.5))
                    child.kill()
                sizes.append(resumed["resumed_at"])
            size = await rt.reader.size()
            with subscriber(rt, state, "--until", str(size)) as child:
                assert await asyncio.to_thread(child.join) == 0
            await check_taken(rt, state)

    asyncio.run(play())


def forge(broker: Broker, settings: Settings, **changed: bytes) -> None:
    """Send the last record of the log again, changed, as somebody with the right to write to the topic could."""
    records = [
        one for one in read_topic(broker.bootstrap, EVENTS, settings.log_origin) if not one.is_checkpoint
    ]
    last = max(records, key=lambda one: one.headers["ce_sequence"])
    value = changed.pop("value", last.value)
    headers = last.headers | {"ce_id": address_text(digest(value)).encode()} | changed
    producer = Producer({"bootstrap.servers": broker.bootstrap, "partitioner": "murmur2_random"})
    producer.produce(EVENTS, value, last.key, headers=dict(headers))
    producer.flush()


async def _broken(settings: Settings, state: Path, broker: Broker, **changed: bytes) -> str:
    async with open_runtime(settings) as rt:
        await write_some(rt, 10)
        await relay_all(rt)
        size = await rt.reader.size()
        with subscriber(rt, state, "--until", str(size)) as child:
            assert await asyncio.to_thread(child.join) == 0
        forge(broker, settings, **changed)
        await write_some(rt, 5, "later")
        await relay_all(rt)
        with subscriber(rt, state) as child:
            found = await asyncio.to_thread(child.hear, lambda line: "broken" in line)
            assert await asyncio.to_thread(child.join) == 1
        return str(found["broken"])


def test_a_record_that_comes_twice_is_not_taken(broker: Broker, settings: Settings, tmp_path: Path) -> None:
    assert "came twice" in asyncio.run(_broken(settings, tmp_path / "seen.db", broker))


def test_a_record_that_is_not_what_its_id_says_is_not_taken(
    broker: Broker, settings: Settings, tmp_path: Path
) -> None:
    found = asyncio.run(_broken(settings, tmp_path / "seen.db", broker, ce_id=b"sha3-512:" + b"0" * 128))
    assert "not what its id says" in found


def test_a_record_the_log_did_not_write_is_not_taken(
    broker: Broker, settings: Settings, tmp_path: Path
) -> None:
    async def play() -> str:
        state = tmp_path / "seen.db"
        async with open_runtime(settings) as rt:
            await write_some(rt, 10)
            await relay_all(rt)
            size = await rt.reader.size()
        position = f"{size:020d}".encode()
        # It fits everywhere but in the tree: a stream of its own, the right address, the next position.
        value = (
            b'{"actor":"eve","at":"2026-01-01T00:00:00.000000Z","causation":null,"correlation":null,"data":{},'
            b'"previous":null,"schema":1,"stream":"tally/eve","tenant":"eve","type":"tally.opened","version":1}'
        )
        forge(broker, settings, value=value, ce_sequence=position)
        async with open_runtime(settings) as rt:
            with subscriber(rt, state, "--until", str(size)) as child:
                assert await asyncio.to_thread(child.join) == 0
            await check_taken_but_one(state, size)
            await write_some(rt, 5, "later")
            await relay_all(rt)
            with subscriber(rt, state) as child:
                found = await asyncio.to_thread(child.hear, lambda line: "broken" in line)
        return str(found["broken"])

    assert "came twice" in asyncio.run(play())


def test_a_history_that_is_not_the_one_the_log_signed_is_not_taken(
    settings: Settings, tmp_path: Path
) -> None:
    state = tmp_path / "seen.db"

    async def play() -> str:
        async with open_runtime(settings) as rt:
            await write_some(rt, 10)
            await relay_all(rt)
            with subscriber(rt, state, "--until", str(await rt.reader.size())) as child:
                assert await asyncio.to_thread(child.join) == 0
            with sqlite3.connect(state) as db:
                db.execute("UPDATE tree SET hash = zeroblob(32) WHERE width = (SELECT max(width) FROM tree)")
            db.close()
            await write_some(rt, 5, "later")
            await relay_all(rt)
            with subscriber(rt, state) as child:
                return str((await asyncio.to_thread(child.hear, lambda line: "broken" in line))["broken"])

    assert "the root that the log signed" in asyncio.run(play())


async def check_taken_but_one(state: Path, size: int) -> None:
    """Check that the forged record waits for a checkpoint that will never come."""
    with sqlite3.connect(state) as db:
        assert db.execute("SELECT count(*) FROM taken").fetchone() == (size,)
    db.close()


def test_a_record_that_is_missing_is_told_once_every_partition_is_past_it(
    broker: Broker, settings: Settings, tmp_path: Path
) -> None:
    kafka = Kafka(settings)
    kafka.make_topics([kafka.event_topic(EVENTS)])
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for partition in range(settings.kafka_partitions):
        value = b'{"stream":"tally/%d"}' % partition
        headers = {
            "ce_source": settings.log_origin,
            "ce_type": "tally.opened",
            "ce_id": address_text(digest(value)),
            "ce_sequence": f"{partition + 1:020d}",
        }
        producer.produce(EVENTS, value, f"tally/{partition}", partition, headers=headers)
    producer.flush()

    async def play() -> str:
        async with open_runtime(settings) as rt:
            with subscriber(rt, tmp_path / "seen.db") as child:
                return str((await asyncio.to_thread(child.hear, lambda line: "broken" in line))["broken"])

    assert asyncio.run(play()) == "the record at 0 is missing: every partition is past it"


def test_checkpoints_of_another_key_prove_nothing(broker: Broker, settings: Settings, tmp_path: Path) -> None:
    async def play() -> str:
        async with open_runtime(settings) as rt:
            await write_some(rt, 5)
            await relay_all(rt)
            key = Signer(rt.signer.name, bytes(32)).key.text
            with subscriber(rt, tmp_path / "seen.db", key=key) as child:
                return str((await asyncio.to_thread(child.hear, lambda line: "broken" in line))["broken"])

    assert "not signed by the log" in asyncio.run(play())
