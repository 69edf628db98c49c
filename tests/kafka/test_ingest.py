"""Readings from a real broker: each once in effect whatever dies, and no message stops those behind it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from domain.errors import BrokerUnavailableError
from domain.ledger import Caller
from domain.values import moment_text
from ops.dead_letters import DeadLetters
from ops.kafka import Kafka
from ops.runtime import Runtime, open_runtime
from ops.telemetry import FOLLOWER_FAILURES
from projections import ingest
from projections.ingest import GROUP, TOPIC, Ingest, open_topic, requeue
from tests.kafka.broker import Broker
from tests.kafka.children import Child
from tests.kafka.world import kafka_settings, new_origin
from tests.real.log.world import check_database

# Kills at random moments; the full bar is 50.
RUNS = int(os.environ.get("SOMA_CRASH_RUNS", "5"))
PATIENCE_S = 60.0
MESSAGES_MAX = 40
OPERATOR = Caller("olga", "platform", frozenset({"operator"}))


def a_reading(event_id: str, /, **members: Any) -> dict[str, Any]:
    """Make a reading of now."""
    found = {
        "tenant": "acme", "source": "gateway-eu", "event_id": event_id, "provider": "openai", "tokens_in": 10,
        "occurred_at": moment_text(datetime.now(UTC)), "model": "gpt-4o-mini", "tokens_out": 5,
        "cost": {"amount": "0.000123", "currency": "USD"},
    } | members  # fmt: skip
    return {name: value for name, value in found.items() if value is not ...}


def packed(event_id: str, /, **members: Any) -> bytes:
    return json.dumps(a_reading(event_id, **members)).encode()


def poison() -> list[tuple[bytes | None, str]]:
    """List values that are no readings, each with the reason it is to be set aside for."""
    far = moment_text(datetime.now(UTC) + timedelta(hours=2))
    old = moment_text(datetime.now(UTC) - timedelta(days=401))
    good = packed("p").decode()
    return [
        (None, "message_empty"),
        (b"", "message_not_json"),
        (b"\0", "message_not_json"),
        (b"not json", "message_not_json"),
        (b"\xff\xfe", "message_not_json"),
        (b'{"tokens_in": NaN}', "message_not_json"),
        (b'{"tokens_in": Infinity}', "message_not_json"),
        (b'{"a": 1, "a": 2}', "message_not_json"),
        (b'"\\ud800"', "message_not_json"),
        (b"[" * 60_000, "message_not_json"),
        (b"9" * 60_000, "message_not_json"),
        (b'{"x": "' + b"y" * 900_000 + b'"}', "message_too_large"),
        (b"null", "invalid_field"),
        (b"[]", "invalid_field"),
        (b"{}", "missing_field"),
        (packed("p", tenant=...), "missing_field"),
        (packed("p", event_id=...), "missing_field"),
        (packed("p", tenant="No Such Tenant"), "invalid_field"),
        (packed("p", tokens_in=-1), "invalid_field"),
        (packed("p", tokens_in=1.5), "invalid_field"),
        (packed("p", tokens_in="10"), "invalid_field"),
        (packed("p", tokens_in=10**30), "invalid_field"),
        (good.replace("gpt-4o-mini", "a\\u0000b").encode(), "invalid_field"),
        (packed("p", cost={"amount": 0.1, "currency": "USD"}), "invalid_amount"),
        (packed("p", cost={"amount": "1", "currency": "ABC"}), "invalid_currency"),
        (packed("p", colour="red"), "unknown_field"),
        (packed("p", occurred_at=far), "usage_in_future"),
        (packed("p", occurred_at=old), "usage_too_old"),
    ]


class Scene:
    """A log, a topic, and a way to fill the one from the other."""

    def __init__(self, runtime: Runtime, broker: Broker, partitions: int | None) -> None:
        self.runtime = runtime
        self.topic = f"{TOPIC}.{uuid4().hex}"
        self.letters = DeadLetters(runtime.reader.pool)
        self.kafka = Kafka(runtime.settings)
        self.ends: Counter[int] = Counter()
        self._producer = Producer(
            {"bootstrap.servers": broker.bootstrap, "linger.ms": 5, "topic.metadata.refresh.interval.ms": 500}
        )
        if partitions is not None:
            new = NewTopic(self.topic, partitions, 1, config={"cleanup.policy": "compact,delete"})
            admin = AdminClient({"bootstrap.servers": broker.bootstrap})
            for made in admin.create_topics([new]).values():
                made.result(30)
        open_topic(self.kafka, self.topic).close()

    def send(self, values: Sequence[bytes | None], **more: Any) -> list[tuple[int, int]]:
        """Send messages; give the partition and offset of each."""
        places: list[tuple[int, int]] = [(-1, -1)] * len(values)

        def landed(number: int) -> Callable[[Any, Any], None]:
            def note(error: Any, message: Any) -> None:
                assert error is None, error
                places[number] = message.partition(), message.offset()

            return note

        for number, value in enumerate(values):
            self._producer.produce(self.topic, value, key=str(number), on_delivery=landed(number), **more)
            self._producer.poll(0)
        assert self._producer.flush(30) == 0
        for partition, offset in places:
            self.ends[partition] = max(self.ends[partition], offset + 1)
        return places

    def child(self, **more: Any) -> Child:
        """Start an ingest in a process of its own."""
        settings = self.runtime.settings
        plan = {
            "url": self.runtime.url,
            "data_dir": str(settings.data_dir),
            "bootstrap": settings.kafka_bootstrap_servers,
            "origin": settings.log_origin,
            "topic": self.topic,
            "messages_max": MESSAGES_MAX,
        }
        return Child(["-m", "tests.kafka.ingest_child", json.dumps(plan | more)])

    def is_done(self) -> bool:
        """Say whether every message that was sent is behind the kept offsets; a broker that is away cannot."""
        reader = self.kafka.reader(self.topic, GROUP)
        try:
            kept = reader.kept()
            return all(kept.get(number, 0) >= end for number, end in self.ends.items())
        except BrokerUnavailableError:
            return False
        finally:
            reader.close()

    async def done(self) -> None:
        """Wait until all is taken."""
        until = time.monotonic() + PATIENCE_S
        while not await asyncio.to_thread(self.is_done):
            assert time.monotonic() < until, "the topic was not taken in"
            await asyncio.sleep(0.1)

    async def kept_running(self, **more: Any) -> None:
        """Ingest for ever in this process, as `soma follow` does: a broker that is away is waited for."""
        while True:
            with suppress(BrokerUnavailableError):
                await Ingest(self.runtime, topic=self.topic, **more).run()
            await asyncio.sleep(0.2)

    @asynccontextmanager
    async def ingesting(self, **more: Any) -> AsyncIterator[None]:
        """Ingest for as long as this lasts."""
        task = asyncio.create_task(self.kept_running(**more))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def ingest(self, **more: Any) -> None:
        """Take everything in, in this process."""
        async with self.ingesting(**more):
            await self.done()

    async def taken(self) -> Counter[str]:
        """Count the records of each event id in the log."""
        size = await self.runtime.reader.size()
        records = [msgspec.json.decode(one.record) for one in await self.runtime.reader.span(0, size)]
        return Counter(r["data"]["event_id"] for r in records if r["type"] == "usage.metered")

    async def reasons(self) -> dict[tuple[int, int], str]:
        """Give the reason of each dead letter by its place."""
        found = await self.letters.list(state=None, limit=100_000)
        places = [(one.partition, one.offset) for one in found]
        assert len(set(places)) == len(places), "a message is set aside twice"
        assert {one.topic for one in found} <= {self.topic}
        return {(one.partition, one.offset): one.code for one in found}


@asynccontextmanager
async def scene(broker: Broker, url: str, place: Path, partitions: int | None = None) -> AsyncIterator[Scene]:
    """Open a log and a topic of its own."""
    settings = kafka_settings(url, place, broker.bootstrap, new_origin())
    async with open_runtime(settings) as runtime:
        yield await asyncio.to_thread(Scene, runtime, broker, partitions)


def test_readings_are_taken_and_whatever_is_none_is_set_aside_with_its_reason(
    broker: Broker, database_url: str, tmp_path: Path
) -> None:
    async def play() -> None:
        async with scene(broker, database_url, tmp_path) as s:
            bad = poison()
            values = [packed(f"e{n}") for n in range(100)]
            places = s.send([value for value, _ in bad] + values + [value for value, _ in bad])
            await s.ingest()
            assert await s.taken() == Counter({f"e{n}": 1 for n in range(100)})
            expected = [code for _, code in bad]
            wanted = dict(zip(places, expected + [""] * 100 + expected, strict=True))
            assert await s.reasons() == {place: code for place, code in wanted.items() if code}
            # And from the beginning again, as after offsets that were lost: nothing new.
            reader = s.kafka.reader(s.topic, GROUP)
            reader.keep(dict.fromkeys(reader.partitions(), 0))
            reader.close()
            await s.ingest(messages_max=7)
            assert await s.taken() == Counter({f"e{n}": 1 for n in range(100)})
            assert len(await s.reasons()) == 2 * len(bad)
            assert {one.attempts for one in await s.letters.list(limit=1_000)} == {2}

    asyncio.run(play())
    check_database(database_url)


def test_the_same_id_with_another_body_is_set_aside_and_duplicates_are_not(
    broker: Broker, database_url: str, tmp_path: Path
) -> None:
    async def play() -> None:
        async with scene(broker, database_url, tmp_path) as s:
            same = packed("same")
            s.send([same] * 50)
            await s.ingest()
            places = s.send([same, packed("same", tokens_in=11), same])
            await s.ingest()
            assert await s.taken() == Counter({"same": 1})
            assert await s.reasons() == {places[1]: "usage_conflict"}

    asyncio.run(play())


def test_a_dead_letter_is_taken_in_mended_or_once_its_reason_has_passed(
    broker: Broker, database_url: str, tmp_path: Path
) -> None:
    async def play() -> None:
        async with scene(broker, database_url, tmp_path) as s:
            s.send([packed("n", tokens_in=-5), b"\0", packed("ok")])
            await s.ingest()
            by_code = {one.code: one for one in await s.letters.list()}
            assert sorted(by_code) == ["invalid_field", "message_not_json"]
            ledger = s.runtime.ledger
            mended = a_reading("n", tokens_in=5)
            done = await requeue(ledger, s.letters, by_code["invalid_field"].id, OPERATOR, mended)
            assert done.state == "requeued"
            assert await s.taken() == Counter({"ok": 1, "n": 1})
            # The sender mends it too, and sends it again: it is known by then.
            s.send([json.dumps(mended).encode()])
            await s.ingest()
            assert await s.taken() == Counter({"ok": 1, "n": 1})
            await s.letters.mark(by_code["message_not_json"].id, "discarded", "olga", "noise")
            assert await s.letters.list() == []

    asyncio.run(play())


def test_a_topic_of_others_is_taken_as_it_is_and_what_retention_took_is_told_and_passed_over(
    broker: Broker, database_url: str, tmp_path: Path
) -> None:
    async def play() -> None:
        async with scene(broker, database_url, tmp_path, partitions=1) as s:
            s.send([packed(f"a{n}") for n in range(20)])
            await s.ingest()
            s.send([packed(f"b{n}") for n in range(20)])
            # Ten of the new ones are gone before anybody read them.
            admin = AdminClient({"bootstrap.servers": broker.bootstrap})
            for gone in admin.delete_records([TopicPartition(s.topic, 0, 30)]).values():
                gone.result(30)
            lost = FOLLOWER_FAILURES.labels("kafka.ingest", "offset_lost")._value.get()
            await s.ingest()
            assert await s.taken() == Counter([f"a{n}" for n in range(20)] + [f"b{n}" for n in range(10, 20)])
            assert FOLLOWER_FAILURES.labels("kafka.ingest", "offset_lost")._value.get() == lost + 1

    asyncio.run(play())


def test_a_partition_that_is_added_is_read_too(
    broker: Broker, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "LOOK_S", 0.2)

    async def play() -> None:
        async with scene(broker, database_url, tmp_path, partitions=1) as s, s.ingesting():
            s.send([packed(f"a{n}") for n in range(20)])
            await s.done()
            admin = AdminClient({"bootstrap.servers": broker.bootstrap})
            for added in admin.create_partitions([NewPartitions(s.topic, 4)]).values():
                added.result(30)
            for _ in range(100):  # the producer hears of them in a moment
                if len({partition for partition, _ in s.send([packed(uuid4().hex)] * 20)}) == 4:
                    break
                await asyncio.sleep(0.2)
            assert set(s.ends) == {0, 1, 2, 3}
            await s.done()

    asyncio.run(play())


def mixed(count: int, dice: random.Random) -> tuple[list[bytes | None], Counter[str], Counter[str]]:
    """Mix new readings, repeated ones and poison; say what must come of it."""
    values: list[bytes | None] = [packed(f"e{n}") for n in range(count)]
    bad = dice.choices([one for one in poison() if one[0] is None or len(one[0]) < 10_000], k=count // 10)
    values += dice.choices(values, k=count // 5) + [value for value, _ in bad]
    dice.shuffle(values)
    return values, Counter({f"e{n}": 1 for n in range(count)}), Counter(code for _, code in bad)


async def check(s: Scene, taken: Counter[str], reasons: Counter[str]) -> None:
    """Check that every reading is in the log once, and every bad message set aside once."""
    assert await s.taken() == taken
    assert Counter((await s.reasons()).values()) == reasons


def test_an_ingest_killed_at_any_step_loses_nothing_and_takes_nothing_twice(
    broker: Broker, database_url: str, tmp_path: Path
) -> None:
    async def play() -> None:
        async with scene(broker, database_url, tmp_path) as s:
            values, taken, reasons = mixed(600, random.Random(1))
            s.send(values)
            for step in (1, 2, 3, 4, 2, 3):
                with s.child(step=step, nth=2) as child:
                    await asyncio.to_thread(child.hear, lambda line, step=step: line.get("at") == step)
            await s.ingest()
            await check(s, taken, reasons)

    asyncio.run(play())
    check_database(database_url)


def test_an_ingest_killed_at_random_moments_under_load_takes_each_reading_once(
    broker: Broker, database_url: str, tmp_path: Path
) -> None:
    async def play() -> None:
        dice = random.Random()
        async with scene(broker, database_url, tmp_path) as s:
            values, taken, reasons = mixed(400 * RUNS, dice)
            share = len(values) // RUNS + 1
            for run in range(RUNS):
                sending = asyncio.create_task(
                    asyncio.to_thread(s.send, values[run * share : (run + 1) * share])
                )
                with s.child() as child:
                    await asyncio.to_thread(child.hear, lambda line: "step" in line)
                    await asyncio.sleep(dice.uniform(0, 0.4))
                    child.kill()
                await sending
            await s.ingest()
            await check(s, taken, reasons)

    asyncio.run(play())
    check_database(database_url)


def test_two_ingests_of_one_topic_are_one_leader_and_one_that_waits(
    broker: Broker, database_url: str, tmp_path: Path
) -> None:
    async def play() -> None:
        async with scene(broker, database_url, tmp_path) as s:
            s.send([packed(f"a{n}") for n in range(50)])
            with s.child() as first:
                await asyncio.to_thread(first.hear, lambda line: line.get("step") == 4)
                with s.child() as second:
                    await asyncio.to_thread(second.hear, lambda line: "ready" in line)
                    await s.done()
                    assert not any("step" in line for line in second.said)
                    first.kill()
                    s.send([packed(f"b{n}") for n in range(50)])
                    await asyncio.to_thread(second.hear, lambda line: line.get("step") == 4)
                    await s.done()
            assert sum((await s.taken()).values()) == 100

    asyncio.run(play())


def test_a_broker_that_dies_is_waited_for(own_broker: Broker, database_url: str, tmp_path: Path) -> None:
    async def play() -> None:
        async with scene(own_broker, database_url, tmp_path) as s:
            s.send([packed(f"a{n}") for n in range(200)])
            async with s.ingesting(messages_max=MESSAGES_MAX):
                await asyncio.sleep(0.3)
                await asyncio.to_thread(own_broker.kill)
                await asyncio.to_thread(own_broker.start)
                await asyncio.to_thread(s.send, [packed(f"b{n}") for n in range(200)])
                await s.done()
            assert await s.taken() == Counter({f"{k}{n}": 1 for k in "ab" for n in range(200)})

    asyncio.run(play())
