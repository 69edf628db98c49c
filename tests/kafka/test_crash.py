"""Killing the relay, and the broker under it, at every numbered state and at random moments.

After each kill what is committed in Kafka is a beginning of the log, each record once; in the end it is the whole log.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ops.runtime import Runtime, open_runtime
from projections.cloud_events import EVENTS
from tests.kafka.broker import Broker
from tests.kafka.children import Child
from tests.kafka.world import (
    check_exactly_once,
    kafka_settings,
    new_origin,
    read_topic,
    relay_all,
    whole_log,
    write_some,
)

# Kills at random moments; the full bar is 50.
RUNS = int(os.environ.get("SOMA_CRASH_RUNS", "3"))
BROKER_KILLS = max(2, RUNS // 10)
BATCH_MAX = 32


class Scene:
    """A log, a broker, and a way to start relays between them."""

    def __init__(self, runtime: Runtime, broker: Broker) -> None:
        self.runtime = runtime
        self.broker = broker

    def relay(self, **more: Any) -> Child:
        """Start a relay."""
        settings = self.runtime.settings
        plan = {
            "url": self.runtime.url,
            "data_dir": str(settings.data_dir),
            "bootstrap": settings.kafka_bootstrap_servers,
            "origin": settings.log_origin,
            "batch_max": BATCH_MAX,
        }
        return Child(["-m", "tests.kafka.relay_child", json.dumps(plan | more)])

    async def check(self, *, whole: bool) -> int:
        """Check that a beginning of the log is in Kafka, or all of it; give its length."""
        log = await whole_log(self.runtime)
        seen = await asyncio.to_thread(
            read_topic, self.broker.bootstrap, EVENTS, self.runtime.settings.log_origin
        )
        count = sum(not one.is_checkpoint for one in seen)
        assert not whole or count == len(log)
        check_exactly_once(seen, log[:count])
        return count


@asynccontextmanager
async def scene(broker: Broker, url: str, place: Path) -> AsyncIterator[Scene]:
    """Open a log whose relay is to be killed."""
    settings = kafka_settings(url, place, broker.bootstrap, new_origin())
    async with open_runtime(settings) as runtime:
        yield Scene(runtime, broker)


def test_a_relay_killed_at_any_state_leaves_a_beginning_of_the_log_and_its_successor_finishes(
    broker: Broker, database_url: str, tmp_path: Path
) -> None:
    async def play() -> None:
        async with scene(broker, database_url, tmp_path) as on:
            for state in (1, 2, 3, 4, 5):
                await write_some(on.runtime, 15, f"s{state}")
                before = await on.check(whole=False)
                with on.relay(state=state, nth=2) as child:
                    await asyncio.to_thread(child.hear, lambda line: "at" in line)
                    opened = next(line["opened"] for line in child.said if "opened" in line)
                    applied = [line["applied"] for line in child.said if "applied" in line]
                    child.kill()
                assert opened == before
                assert len(applied) == 1
                relayed = await on.check(whole=False)
                # What was acknowledged is there; of the second batch, all or nothing, by the state.
                assert (relayed == applied[0]) == (state < 5), f"state {state}"
            await relay_all(on.runtime)
            await on.check(whole=True)

    asyncio.run(play())


def test_a_relay_killed_at_random_moments_under_load_relays_every_record_once(
    broker: Broker, database_url: str, tmp_path: Path
) -> None:
    chance = random.Random()

    async def play() -> None:
        async with scene(broker, database_url, tmp_path) as on:
            for run in range(RUNS):
                writing = asyncio.create_task(write_some(on.runtime, 120, f"r{run}"))
                with on.relay() as child:
                    await asyncio.to_thread(child.hear, lambda line: "opened" in line)
                    await asyncio.sleep(chance.uniform(0, 0.6))
                    child.kill()
                await on.check(whole=False)
                await writing
            await relay_all(on.runtime)
            await on.check(whole=True)

    asyncio.run(play())


def test_a_broker_killed_under_load_loses_and_doubles_nothing(
    own_broker: Broker, database_url: str, tmp_path: Path
) -> None:
    chance = random.Random()

    async def play() -> None:
        async with scene(own_broker, database_url, tmp_path) as on:
            with on.relay() as child:
                await asyncio.to_thread(child.hear, lambda line: "opened" in line)
                for run in range(BROKER_KILLS):
                    writing = asyncio.create_task(write_some(on.runtime, 150, f"b{run}"))
                    await asyncio.sleep(chance.uniform(0.1, 0.6))
                    await asyncio.to_thread(own_broker.kill)
                    await asyncio.sleep(chance.uniform(0, 1))
                    await asyncio.to_thread(own_broker.start)
                    await writing
                size = await on.runtime.reader.size()
                # The relay that lived through all of it comes to the end by itself.
                await asyncio.to_thread(child.hear, lambda line: line.get("applied") == size)
            await on.check(whole=True)

    asyncio.run(play())


def test_relay_and_broker_killed_together_lose_and_double_nothing(
    own_broker: Broker, database_url: str, tmp_path: Path
) -> None:
    async def play() -> None:
        async with scene(own_broker, database_url, tmp_path) as on:
            await write_some(on.runtime, 60)
            with on.relay(state=4, nth=2) as child:
                await asyncio.to_thread(child.hear, lambda line: "at" in line)
                await asyncio.to_thread(own_broker.kill)
                child.kill()
            await asyncio.to_thread(own_broker.start)
            await relay_all(on.runtime)
            await on.check(whole=True)

    asyncio.run(play())
