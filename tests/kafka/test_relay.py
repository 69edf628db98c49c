"""What the relay puts into Kafka, read back by a plain consumer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from pydantic import SecretStr

from domain.errors import BrokerUnavailableError, RelayDivergedError, RelayFencedError, TopicUnsuitableError
from domain.log.notes import open_checkpoint
from domain.trust.training import DisableTraining, EnableTraining, disable_training, enable_training
from ops.kafka import Kafka, Topic
from ops.listen import Listener
from ops.runtime import Runtime, open_runtime
from ops.settings import Settings
from projections.cloud_events import BILLING, EVENTS, TRAINING
from projections.follower import Batch, Follower
from projections.relay import NAME, Relay
from tests.kafka.broker import Broker
from tests.kafka.world import (
    check_exactly_once,
    kafka_settings,
    new_origin,
    read_topic,
    relay_all,
    whole_log,
    write_some,
)
from tests.real.log.world import member


@pytest.fixture
def settings(broker: Broker, database_url: str, tmp_path: Path) -> Settings:
    """Give the settings of a log of its own on the shared broker."""
    return kafka_settings(database_url, tmp_path, broker.bootstrap, new_origin())


@asynccontextmanager
async def opened(runtime: Runtime) -> AsyncIterator[Relay]:
    """Open a relay that a test drives by hand."""
    relay = Relay(runtime)
    try:
        await relay.open()
        yield relay
    finally:
        await relay.close()


async def batch_of(runtime: Runtime, start: int, end: int) -> Batch:
    """Read a batch."""
    return Batch(start, await runtime.reader.span(start, end))


def test_every_record_is_relayed_once_unchanged_and_in_order_by_stream(
    broker: Broker, settings: Settings
) -> None:
    async def play() -> None:
        async with open_runtime(settings) as rt:
            await write_some(rt, 100)
            await relay_all(rt, batch_max=64)
            await write_some(rt, 20, "b")
            await relay_all(rt, batch_max=64)
            seen = read_topic(broker.bootstrap, EVENTS, settings.log_origin)
            check_exactly_once(seen, await whole_log(rt))
            assert len({one.partition for one in seen}) > 1

    asyncio.run(play())


def test_money_is_on_the_billing_topic_and_training_on_the_audit_topic(
    broker: Broker, settings: Settings
) -> None:
    async def play() -> None:
        async with open_runtime(settings) as rt:
            await write_some(rt, 20)
            await rt.ledger.act(enable_training, EnableTraining(reason="a round"), member("acme"))
            await rt.ledger.act(disable_training, DisableTraining(reason="done"), member("acme"))
            await relay_all(rt)
            log = [json.loads(stored.record) for stored in await whole_log(rt)]
            billing = read_topic(broker.bootstrap, BILLING, settings.log_origin)
            training = read_topic(broker.bootstrap, TRAINING, settings.log_origin)
            moved = [n for n, record in enumerate(log) if record["data"].get("money")]
            trained = [n for n, record in enumerate(log) if record["type"].startswith("training.")]
            assert moved
            assert trained
            assert sorted(int(one.text["ce_sequence"]) for one in billing) == moved
            assert sorted(int(one.text["ce_sequence"]) for one in training) == trained
            paid = [one.text for one in billing if one.text["ce_type"] == "transfer.posted"]
            assert {text["ce_amount"] for text in paid} == {"1000.00", "0.25"}
            assert {text["ce_currency"] for text in paid} == {"USD"}
            assert all(len(text["ce_accounts"].split(",")) == 2 for text in paid)

    asyncio.run(play())


def test_each_transaction_carries_a_signed_checkpoint_of_the_log(broker: Broker, settings: Settings) -> None:
    async def play() -> None:
        async with open_runtime(settings) as rt:
            await write_some(rt, 60)
            size = await relay_all(rt, batch_max=64)
            notes = [
                one for one in read_topic(broker.bootstrap, EVENTS, settings.log_origin) if one.is_checkpoint
            ]
            sizes = []
            for one in notes:
                checkpoint, _ = open_checkpoint(one.value, [rt.signer.key])
                assert checkpoint.root == (await rt.reader.head(checkpoint.size)).root
                assert int(one.text["ce_sequence"]) == checkpoint.size
                assert one.key.decode() == settings.log_origin
                sizes.append(checkpoint.size)
            assert sizes == sorted(set(sizes)), "a checkpoint came twice, or a smaller one after a larger"
            assert len(sizes) > 2
            assert sizes[-1] == size

    asyncio.run(play())


def test_a_batch_that_is_applied_again_changes_nothing(broker: Broker, settings: Settings) -> None:
    async def play() -> None:
        async with open_runtime(settings) as rt:
            await write_some(rt, 20)
            size = await rt.reader.size()
            batch = await batch_of(rt, 0, size - 10)
            async with opened(rt) as relay:
                await relay.apply(batch)
                await relay.apply(batch)
            async with opened(rt) as relay:
                await relay.apply(batch)
                # Cut otherwise than before: what is there already is left out.
                await relay.apply(await batch_of(rt, size - 20, size))
            seen = read_topic(broker.bootstrap, EVENTS, settings.log_origin)
            check_exactly_once(seen, await whole_log(rt))

    asyncio.run(play())


def test_a_batch_that_leaves_a_gap_is_refused(settings: Settings) -> None:
    async def play() -> None:
        async with open_runtime(settings) as rt:
            await write_some(rt, 5)
            async with opened(rt) as relay:
                with pytest.raises(RelayDivergedError):
                    await relay.apply(await batch_of(rt, 3, 6))

    asyncio.run(play())


def lose_the_lock(url: str) -> int:
    """End the connection that holds the relay's place, if one does, as a network that breaks would."""
    with psycopg.connect(url, autocommit=True) as conn:
        ended = conn.execute(
            "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
            " WHERE l.locktype = 'advisory' AND d.datname = current_database()"
        ).fetchall()
    return len(ended)


def test_a_second_relay_puts_the_first_one_out_of_work(
    broker: Broker, settings: Settings, database_url: str
) -> None:
    async def play() -> None:
        async with open_runtime(settings) as rt:
            await write_some(rt, 20)
            size = await rt.reader.size()
            async with opened(rt) as first:
                await first.apply(await batch_of(rt, 0, 10))
                assert await asyncio.to_thread(lose_the_lock, database_url) == 1
                async with opened(rt) as second:
                    await second.apply(await batch_of(rt, 10, 20))
                    # The first one does not know yet; the cluster does.
                    with pytest.raises(RelayFencedError):
                        await first.apply(await batch_of(rt, 10, size))
                    await second.apply(await batch_of(rt, 20, size))
            check_exactly_once(read_topic(broker.bootstrap, EVENTS, settings.log_origin), await whole_log(rt))

    asyncio.run(play())


def test_a_relay_that_was_put_out_of_work_stands_by_and_goes_on_when_its_turn_comes(
    broker: Broker, settings: Settings, database_url: str
) -> None:
    async def play() -> None:
        async with open_runtime(settings) as rt, Listener(rt.url) as listener:
            await write_some(rt, 20)

            def following() -> asyncio.Task[None]:
                follower = Follower(NAME, Relay(rt), rt.url, listener, batch_max=16, linger_s=0)
                return asyncio.create_task(follower.run())

            tasks = [following(), following()]
            for n in range(4):
                await write_some(rt, 20, f"n{n}")
                await asyncio.to_thread(lose_the_lock, database_url)
            tasks[0].cancel()
            size = await rt.reader.size()
            async with asyncio.timeout(60):
                while True:
                    seen = await asyncio.to_thread(read_topic, broker.bootstrap, EVENTS, settings.log_origin)
                    if sum(not one.is_checkpoint for one in seen) >= size:
                        break
            tasks[1].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            check_exactly_once(seen, await whole_log(rt))

    asyncio.run(play())


def test_a_log_that_was_set_back_is_not_relayed_over_what_is_there(settings: Settings) -> None:
    async def play() -> None:
        async with open_runtime(settings) as rt:
            await write_some(rt, 5)
            await relay_all(rt)
            reader, size = rt.reader, await rt.reader.size()

            class SetBack(type(reader)):  # type: ignore[misc]
                """The log as it was before its last record."""

                def __init__(self) -> None:
                    self._pool = reader._pool

                async def at(self, position: int):  # type: ignore[no-untyped-def]
                    return await super().at(position if position < size - 1 else position + 1)

            relay = Relay(replace(rt, reader=SetBack()))
            with pytest.raises(RelayDivergedError):
                await relay.open()
            await relay.close()

    asyncio.run(play())


def test_a_topic_that_would_lose_records_or_their_order_is_refused(
    broker: Broker, settings: Settings
) -> None:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    kafka = Kafka(settings)
    for name, config, partitions in [
        ("compacted", {"cleanup.policy": "compact", "message.timestamp.type": "LogAppendTime"}, 3),
        ("dated", {"message.timestamp.type": "CreateTime"}, 3),
        ("narrow", {"message.timestamp.type": "LogAppendTime"}, 2),
    ]:
        topic = f"{name}.{settings.log_origin.rpartition('/')[2]}"
        admin.create_topics([NewTopic(topic, partitions, 1, config=config)])[topic].result()
        with pytest.raises(TopicUnsuitableError):
            kafka.make_topics([kafka.event_topic(topic)])


def test_a_topic_is_made_once_and_found_again(broker: Broker, settings: Settings) -> None:
    kafka = Kafka(settings)
    topic = Topic(f"t.{settings.log_origin.rpartition('/')[2]}", 2, {"cleanup.policy": "delete"})
    kafka.make_topics([topic])
    kafka.make_topics([topic])
    with pytest.raises(TopicUnsuitableError):
        kafka.make_topics([topic._replace(partitions=3)])


def test_where_no_broker_answers_the_relay_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ops.kafka.ANSWER_S_MAX", 1.0)
    nowhere = settings.model_copy(
        update={
            "kafka_bootstrap_servers": "127.0.0.1:1",
            "kafka_options": SecretStr('{"client.id": "lost", "enable.idempotence": false}'),
        }
    )
    kafka = Kafka(nowhere)
    with pytest.raises(BrokerUnavailableError):
        kafka.make_topics([kafka.event_topic(EVENTS)])
