"""The whole house under load, one of its processes killed at a time: service, followers, engine, broker.

Whoever dies and whenever, in the end ClickHouse and Kafka hold every record of the log exactly once.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import psycopg

from ops.clickhouse import ClickHouse, open_clickhouse
from ops.reads import Stored
from projections.cloud_events import EVENTS
from tests.kafka.broker import Broker
from tests.kafka.children import Child
from tests.kafka.world import check_exactly_once, kafka_settings, new_origin, read_topic

# Kills at random moments; the full bar is 50.
RUNS = int(os.environ.get("SOMA_CRASH_RUNS", "6"))
CAUGHT_UP_S_MAX = 120.0
ENGINE_S_MAX = 30.0


class House:
    """The processes, and who can be killed."""

    def __init__(self, broker: Broker, url: str, place: Path) -> None:
        self.broker = broker
        self.url = url
        self.place = place
        self.settings = kafka_settings(url, place, broker.bootstrap, new_origin())
        self._starts = 0
        self.writer = self.start("house_child")
        self.followers = self.start("follow_child")

    def start(self, module: str) -> Child:
        """Start one of our processes and wait until it is at work."""
        self._starts += 1
        plan = {
            "url": self.url,
            "data_dir": str(self.place),
            "bootstrap": self.broker.bootstrap,
            "origin": self.settings.log_origin,
            "run": self._starts,
        }
        child = Child(["-m", f"tests.kafka.{module}", json.dumps(plan)])
        child.hear(lambda line: bool(line.get("ready")))
        return child

    def kill_writer(self) -> None:
        self.writer.kill()
        self.writer = self.start("house_child")

    def kill_followers(self) -> None:
        self.followers.kill()
        self.followers = self.start("follow_child")

    def kill_broker(self) -> None:
        self.broker.kill()
        self.broker.start()

    def kill_engine(self) -> None:
        """Kill the engine, whose owner starts it again."""
        until = time.monotonic() + ENGINE_S_MAX
        while not (engines := self.engines()):
            assert time.monotonic() < until, "there is no engine"
            time.sleep(0.05)
        for engine in engines:
            engine.kill()

    def engines(self) -> list[psutil.Process]:
        """Find the engine's processes of this house."""
        family = psutil.Process(self.followers.process.pid).children(recursive=True)
        return [process for process in family if "ops.engine" in " ".join(process.cmdline())]

    def settle(self) -> list[Stored]:
        """Let the writer finish and the followers catch up; give the log."""
        (self.place / "stop").touch()
        self.writer.join()
        with psycopg.connect(self.url, autocommit=True) as connection:
            rows = connection.execute(
                "SELECT position, address, record FROM events ORDER BY position"
            ).fetchall()
            until = time.monotonic() + CAUGHT_UP_S_MAX
            while True:
                behind = connection.execute(
                    "SELECT name, position FROM followers WHERE position < %s", [len(rows)]
                ).fetchall()
                names = connection.execute("SELECT count(*) FROM followers WHERE name !~ 'rollup'").fetchone()
                if not behind and names and names[0] >= 5:
                    return [Stored(*row) for row in rows]
                assert time.monotonic() < until, f"{behind} behind {len(rows)}: {self.followers.errors!r}"
                time.sleep(0.1)

    def close(self) -> None:
        """End what still runs."""
        for child in (self.writer, self.followers):
            if child.process.poll() is None:
                child.kill()


def test_whoever_is_killed_clickhouse_and_kafka_hold_every_record_once(
    own_broker: Broker, database_url: str, tmp_path: Path
) -> None:
    """Kill one process after another at random moments under load, then compare everything with the log."""
    chance = random.Random(RUNS)
    house = House(own_broker, database_url, tmp_path)
    kills = [house.kill_writer, house.kill_followers, house.kill_engine, house.kill_broker]
    try:
        for number in range(RUNS):
            time.sleep(chance.uniform(0.1, 1.5))
            kills[number % len(kills)]()
        log = house.settle()
        seen = read_topic(own_broker.bootstrap, EVENTS, house.settings.log_origin)
        house.followers.kill()
        assert len([one for one in seen if not one.is_checkpoint]) == len(log)
        check_exactly_once(seen, log)
        asyncio.run(check_clickhouse(house, log))
    finally:
        house.close()


async def check_clickhouse(house: House, log: list[Stored]) -> None:
    """Compare every table that mirrors the log with the log itself, read here with json and nothing of ours."""
    records = [json.loads(stored.record) for stored in log]
    async with open_clickhouse(house.settings) as clickhouse:
        rows = await clickhouse.rows(
            "SELECT position, address, record FROM soma.records FINAL ORDER BY position"
        )
        assert [(p, bytes(a), r.encode() if isinstance(r, str) else r) for p, a, r in rows] == [
            (stored.position, stored.address, stored.record) for stored in log
        ]
        await check_entries(clickhouse, records)
        await check_usage(clickhouse, records)
        offers = await clickhouse.rows("SELECT position FROM soma.offer_events FINAL ORDER BY position")
        assert [p for (p,) in offers] == [p for p, r in enumerate(records) if r["type"].startswith("offer.")]
    with psycopg.connect(house.url) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (len(log),)


async def check_entries(clickhouse: ClickHouse, records: list[dict[str, Any]]) -> None:
    """Compare each leg, and each day of each account, with the money of the records."""
    legs: dict[int, list[tuple[str, Decimal]]] = defaultdict(list)
    days: dict[tuple[str, str], tuple[int, Decimal]] = defaultdict(lambda: (0, Decimal(0)))
    for position, record in enumerate(records):
        for entry in record["data"].get("money", []):
            for posting in entry.get("postings", []):
                amount = Decimal(posting["amount"])
                legs[position].append((posting["account"], amount))
                key = (posting["account"], record["at"][:10])
                days[key] = (days[key][0] + 1, days[key][1] + amount)
    rows = await clickhouse.rows(
        "SELECT position, account, amount FROM soma.entries FINAL ORDER BY position, leg"
    )
    kept: dict[int, list[tuple[str, Decimal]]] = defaultdict(list)
    for position, account, amount in rows:
        kept[position].append((account, amount))
    assert kept == legs
    rollup = await clickhouse.rows(
        "SELECT account, toString(day), entries, net FROM soma.entries_daily FINAL WHERE entries > 0"
    )
    assert {(account, day): (count, net) for account, day, count, net in rollup} == days


async def check_usage(clickhouse: ClickHouse, records: list[dict[str, Any]]) -> None:
    """Compare the readings, and their hours, with the records."""
    taken = {p: r["data"] for p, r in enumerate(records) if r["type"] == "usage.metered"}
    rows = await clickhouse.rows(
        "SELECT position, tokens_in, tokens_out FROM soma.usage FINAL ORDER BY position"
    )
    assert rows == [(p, data["tokens_in"], data["tokens_out"]) for p, data in sorted(taken.items())]
    ((readings, tokens),) = await clickhouse.rows(
        "SELECT sum(readings), sum(tokens_in) FROM soma.usage_hourly FINAL"
    )
    assert (readings, tokens) == (len(taken), sum(data["tokens_in"] for data in taken.values()))
