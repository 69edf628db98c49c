"""What the relay puts into Kafka, read back by a plain consumer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from domain.errors import RelayDivergedError, RelayFencedError, TopicUnsuitableError
from domain.log.notes import open_checkpoint
from ops.kafka import Kafka
from ops.listen import Listener
from ops.runtime import Runtime, open_runtime
from projections.cloud_events import BILLING, EVENTS, TOPICS, TRAINING
from projections.follower import Batch, Follower
from projections.relay import NAME, POSITIONS, Relay
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


def test_every_record_is_relayed_once_unchanged_and_in_order_by_stream(
    broker: Broker, database_url: str, tmp_path: Path
) -> None:
    async def play() -> None:
        settings = kafka_settings(database_url, tmp_path, broker.bootstrap, new_origin())
        async with open_runtime(settings) as rt:
            await write_some(rt, 100)
            await relay_all(rt, batch_max=64)
            await write_some(rt, 20, "b")
            await relay_all(rt, batch_max=64)
            log = await whole_log(rt)
            seen = read_topic(broker.bootstrap, EVENTS, settings.log_origin)
            check_exactly_once(seen, log)
            assert len({one.partition for one in seen}) > 1

    asyncio.run(play())
