"""What the tests of Kafka share: settings, a small log of several kinds of records, and a plain reader of a topic."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from confluent_kafka import Consumer, KafkaError, TopicPartition

from ops.listen import Listener
from ops.reads import Stored
from ops.runtime import Runtime
from ops.settings import Settings
from projections.cloud_events import CHECKPOINT_TYPE
from projections.follower import Follower
from projections.relay import NAME, Relay
from tests.real.log.world import Add, OpenTally, add, give, member, open_tally, pay, settings_for

PARTITIONS = 3


def new_origin() -> str:
    """Name a log of its own, so that tests share a broker and do not meet."""
    return f"kafka.test/{uuid4().hex}"


def kafka_settings(url: str, data_dir: Path, bootstrap: str, origin: str, **more: Any) -> Settings:
    """Make the settings of a log that is relayed."""
    return settings_for(
        url,
        data_dir,
        log_origin=origin,
        kafka_bootstrap_servers=bootstrap,
        kafka_partitions=PARTITIONS,
        **more,
    )


async def write_some(runtime: Runtime, rounds: int, label: str = "a") -> None:
    """Write records of several streams and kinds, some of which move money; a repeat under a label changes nothing."""
    ledger = runtime.ledger
    for tenant in ("acme", *(f"t{n}" for n in range(7))):
        await give(ledger, tenant, "1000.00", key=f"{label}-give-{tenant}")

    async def step(n: int) -> None:
        tenant = f"t{n % 7}"
        await ledger.act(open_tally, OpenTally(name=f"{label}-{n}"), member(tenant), key=f"{label}-o{n}")
        await ledger.act(add, Add(name=f"{label}-{n}", times=3), member(tenant), key=f"{label}-a{n}")
        await pay(ledger, "acme", tenant, "0.25", key=f"{label}-p{n}")

    for start in range(0, rounds, 32):
        await asyncio.gather(*(step(n) for n in range(start, min(rounds, start + 32))))


async def relay_all(runtime: Runtime, **more: Any) -> int:
    """Follow until Kafka holds the whole log; give its size."""
    size = await runtime.reader.size()
    async with Listener(runtime.url) as listener:
        follower = Follower(NAME, Relay(runtime), runtime.url, listener, linger_s=0, **more)
        async with asyncio.timeout(60):
            await follower.run(until=size)
    return size


class Seen(NamedTuple):
    """A message as a foreign reader sees it."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: dict[str, bytes]

    @property
    def text(self) -> dict[str, str]:
        return {name: value.decode() for name, value in self.headers.items()}

    @property
    def is_checkpoint(self) -> bool:
        return self.headers["ce_type"].decode() == CHECKPOINT_TYPE


def read_topic(bootstrap: str, topic: str, source: str) -> list[Seen]:
    """Read all that is committed of one log, in the order of each partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "tests",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    try:
        partitions = consumer.list_topics(topic, 10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, n, 0) for n in partitions])
        seen, open_partitions, until = [], set(partitions), time.monotonic() + 60
        while open_partitions:
            assert time.monotonic() < until, "the topic was not read to its end"
            for message in consumer.consume(1_000, 0.2):
                error = message.error()
                if error is None:
                    headers = dict(message.headers() or [])
                    seen.append(
                        Seen(
                            topic,
                            message.partition(),
                            message.offset(),
                            message.key(),
                            message.value(),
                            headers,
                        )
                    )
                    assert len(headers) == len(message.headers()), "a header is there twice"
                elif error.code() == KafkaError._PARTITION_EOF:
                    open_partitions.discard(message.partition())
                else:
                    raise AssertionError(error)
        return [one for one in seen if one.headers["ce_source"].decode() == source]
    finally:
        consumer.close()


async def whole_log(runtime: Runtime) -> list[Stored]:
    """Read every record of the log."""
    return await runtime.reader.span(0, await runtime.reader.size())


def check_exactly_once(seen: Iterable[Seen], log: list[Stored]) -> None:
    """Check that every record is there once, byte for byte, in order by key, and addressed by its content."""
    records = [one for one in seen if not one.is_checkpoint]
    by_position = {int(one.headers["ce_sequence"]): one for one in records}
    assert len(by_position) == len(records), "a record is there twice"
    assert sorted(by_position) == [stored.position for stored in log]
    for stored in log:
        one = by_position[stored.position]
        assert one.value == stored.record
        assert one.text["ce_id"] == "sha3-512:" + hashlib.sha3_512(one.value).hexdigest()
        assert one.key.decode() == json.loads(stored.record)["stream"]
    last: dict[tuple[int, bytes], int] = {}
    keys: dict[bytes, int] = {}
    for one in records:
        position = int(one.headers["ce_sequence"])
        assert last.get((one.partition, one.key), -1) < position, "records of a key are out of order"
        last[one.partition, one.key] = position
        assert keys.setdefault(one.key, one.partition) == one.partition
