"""Killing followers, rebuilds and the engine: at every numbered state, and at random moments.

After each kill somebody goes on; at the end every table must be what an undisturbed follower makes of the same log.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import psutil
import psycopg
import pytest

from domain.errors import RebuildRunsError
from ops.clickhouse import ClickHouse, as_service
from ops.engine.process import EmbeddedClickHouse, Target
from ops.listen import Listener
from ops.positions import Place
from projections import rebuild, warehouse
from projections.follower import Follower
from projections.groups import GROUPS
from projections.warehouse import PROJECTIONS, Warehouse
from tests.real.clickhouse.conftest import migrate_afresh
from tests.real.clickhouse.warehouse_world import follow, log_of, prints

# Kills at random moments; the full bar is 50.
RUNS = int(os.environ.get("SOMA_CRASH_RUNS", "4"))
ENGINE_KILLS = max(2, RUNS // 10)
SAID_S_MAX = 60.0


class Child:
    """A follower or a rebuild in a process of its own."""

    started: ClassVar[list[Child]] = []

    def __init__(self, root: Path, plan: dict[str, Any]) -> None:
        self.started.append(self)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.real.clickhouse.follower_child", json.dumps(plan)],
            stdout=subprocess.PIPE,
            cwd=root,
        )

    def hear(self, *words: str) -> str:
        """Wait until it says one of some words, or is gone."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = [word for word in words if line.startswith(b"{") and word in json.loads(line)]
            if found:
                return found[0]
        return "gone"

    def kill(self) -> None:
        """Kill it without a word."""
        self.process.kill()
        self.end()

    def end(self) -> int:
        """Wait until it is gone."""
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(SAID_S_MAX)


@pytest.fixture(scope="session")
def undisturbed(engine: EmbeddedClickHouse, market: str) -> dict[str, Any]:
    """Tell what the tables are when nobody is killed."""
    asyncio.run(migrate_afresh(engine.target))
    asyncio.run(follow(engine.target, market))
    return prints(engine.target)


@pytest.fixture
def plan(undisturbed: dict[str, Any], migrated: Target, market: str) -> dict[str, Any]:
    """Plan for a child on an empty ClickHouse."""
    return {"url": market, "service": as_service(migrated), "names": PROJECTIONS, "batch_max": 48}


def finish(root: Path, plan: dict[str, Any]) -> None:
    """Let a child go on to the end."""
    child = Child(root, {name: value for name, value in plan.items() if name != "state"})
    assert child.hear("finished") == "finished"
    assert child.end() == 0


def test_a_follower_killed_in_each_state_leaves_nothing_out_and_nothing_twice(
    plan: dict[str, Any], migrated: Target, undisturbed: dict[str, Any], repository_root: Path
) -> None:
    plan["names"] = ["clickhouse.billing"]
    for state in warehouse.State:
        child = Child(repository_root, plan | {"state": int(state)})
        assert child.hear("at", "finished") == "at"
        child.kill()
    finish(repository_root, plan)
    found = prints(migrated)
    tables = GROUPS["clickhouse.billing"].tables
    assert {table: found[table] for table in tables} == {table: undisturbed[table] for table in tables}


def test_followers_killed_at_random_moments_come_to_the_same_tables(
    plan: dict[str, Any], migrated: Target, undisturbed: dict[str, Any], repository_root: Path
) -> None:
    chance, kills = random.Random(7), 0
    while kills < RUNS:
        child = Child(repository_root, plan | {"batch_max": 8, "pause_s": chance.choice([0.0, 0.2])})
        assert child.hear("ready") == "ready"
        time.sleep(chance.uniform(0.0, 0.8))
        kills += child.process.poll() is None
        child.kill()
        if chance.random() < 0.3:
            finish(repository_root, plan)
            assert prints(migrated) == undisturbed
            asyncio.run(migrate_afresh(migrated))
    finish(repository_root, plan)
    assert prints(migrated) == undisturbed


def test_an_engine_killed_under_load_loses_nothing_that_was_kept(
    market: str, undisturbed: dict[str, Any]
) -> None:
    async def load(engine: EmbeddedClickHouse) -> None:
        async with log_of(market) as log, Listener(market) as listener:
            size, done = await log.size(), asyncio.Event()

            async def one(name: str) -> None:
                clickhouse = await ClickHouse.found(lambda: as_service(engine.target))
                sink = Warehouse(name, market, clickhouse, log.versions, rollup_pause_s=0)
                await Follower(name, sink, market, listener, batch_max=8, linger_s=0).run(until=size)
                await clickhouse.close()

            async def kill() -> None:
                for _ in range(ENGINE_KILLS):
                    await asyncio.sleep(random.uniform(0.3, 1.0))
                    pid = engine.engine_pid
                    if pid is not None and psutil.pid_exists(pid):
                        os.kill(pid, signal.SIGKILL)
                done.set()

            await asyncio.gather(kill(), *(one(name) for name in PROJECTIONS))

    with TemporaryDirectory(prefix="soma-engine-") as place, EmbeddedClickHouse.start(Path(place)) as engine:
        asyncio.run(migrate_afresh(engine.target))
        asyncio.run(load(engine))
        asyncio.run(follow(engine.target, market))
        assert prints(engine.target) == undisturbed


# --------------------------------------------------------------------------- rebuilds


DAMAGE = (
    "ALTER TABLE soma.entries UPDATE amount = -amount WHERE leg > 0 SETTINGS mutations_sync = 2",
    "ALTER TABLE soma.holds DELETE WHERE op = 'void' SETTINGS mutations_sync = 2",
    "INSERT INTO soma.entries_daily SELECT * REPLACE (net + 7 AS net, upto + 1 AS upto) FROM soma.entries_daily FINAL",
)


@pytest.fixture
def damaged(
    plan: dict[str, Any], migrated: Target, market: str, undisturbed: dict[str, Any]
) -> dict[str, Any]:
    """Spoil live tables that were complete."""

    async def spoil() -> None:
        clickhouse = await ClickHouse.open(*as_service(migrated))
        for statement in DAMAGE:
            await clickhouse.command(statement)
        await clickhouse.close()

    asyncio.run(follow(migrated, market))
    asyncio.run(spoil())
    found = prints(migrated)
    assert all(found[table] != undisturbed[table] for table in ("entries", "holds", "entries_daily"))
    return plan | {"rebuild": "clickhouse.billing"}


def tables_of(target: Target) -> set[str]:
    """Name the tables that are there, with comments."""
    query = "SELECT name || comment FROM system.tables WHERE database = 'soma'"
    return {name for (name,) in asyncio.run(_rows(target, query))}


async def _rows(target: Target, query: str) -> list[Any]:
    clickhouse = await ClickHouse.open(*as_service(target))
    try:
        return await clickhouse.rows(query)
    finally:
        await clickhouse.close()


def test_a_rebuild_repairs_and_says_what_it_found(
    damaged: dict[str, Any], migrated: Target, market: str, undisturbed: dict[str, Any]
) -> None:
    before, heard = tables_of(migrated), []

    async def repair() -> rebuild.Report:
        clickhouse = await ClickHouse.open(*as_service(migrated))
        try:
            return await rebuild.rebuild(
                clickhouse, market, "clickhouse.billing", lambda done, size: heard.append((done, size))
            )
        finally:
            await clickhouse.close()

    report = asyncio.run(repair())
    assert prints(migrated) == undisturbed
    assert tables_of(migrated) == before
    assert {name: found.same for name, found in report.tables.items()} == {
        "entries": False,
        "accounts": True,
        "holds": False,
    }
    assert "holds: " in str(report)
    assert heard[-1][0] == heard[-1][1]


def test_a_rebuild_killed_in_every_state_is_done_by_those_after_it(
    damaged: dict[str, Any], migrated: Target, market: str, undisturbed: dict[str, Any], repository_root: Path
) -> None:
    for state in (1, 2, 3, 4, 5, 5, 6):
        child = Child(repository_root, damaged | {"state": state})
        assert child.hear("at", "finished") == "at"
        child.kill()
        # Whatever is there now, the live follower goes on from it without harm.
        asyncio.run(follow(migrated, market, ["clickhouse.billing"]))
    finish(repository_root, damaged)
    assert prints(migrated) == undisturbed
    assert not [name for name in tables_of(migrated) if name.endswith("next")]


def test_a_live_follower_hands_over_to_a_rebuild_and_goes_on(
    damaged: dict[str, Any], migrated: Target, market: str, undisturbed: dict[str, Any]
) -> None:
    async def both() -> None:
        async with log_of(market) as log, Listener(market) as listener:
            theirs, ours = [await ClickHouse.open(*as_service(migrated)) for _ in range(2)]
            sink = Warehouse("clickhouse.billing", market, theirs, log.versions)
            live = asyncio.create_task(Follower(sink.name, sink, market, listener).run())
            await asyncio.sleep(0.5)
            await rebuild.rebuild(ours, market, "clickhouse.billing")
            async with asyncio.timeout(20):
                while sink._place is None or sink.position < await log.size():  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0.1)
            live.cancel()
            await asyncio.gather(live, return_exceptions=True)
            await theirs.close()
            await ours.close()

    asyncio.run(both())
    assert prints(migrated) == undisturbed


def test_two_rebuilds_of_the_same_tables_do_not_run_at_once(migrated: Target, market: str) -> None:
    async def second() -> None:
        first = await Place.open(market, "clickhouse.usage.rebuild")
        await first.lead()
        clickhouse = await ClickHouse.open(*as_service(migrated))
        try:
            with pytest.raises(RebuildRunsError):
                await rebuild.rebuild(clickhouse, market, "clickhouse.usage")
        finally:
            await clickhouse.close()
            await first.forget()
            await first.close()

    asyncio.run(second())


@pytest.fixture(autouse=True)
def _nothing_left(market: str) -> Iterator[None]:
    """See that no child is left, and that a rebuild leaves no place of its own behind."""
    yield
    while Child.started:
        child = Child.started.pop()
        if child.process.poll() is None:
            child.kill()
        elif child.process.stdout is not None:
            child.process.stdout.close()
    with psycopg.connect(market) as connection:
        names = connection.execute("SELECT name FROM followers WHERE name ~ 'next|rebuild'").fetchall()
        connection.execute("DELETE FROM followers WHERE name ~ 'next|rebuild'")
    assert not names
