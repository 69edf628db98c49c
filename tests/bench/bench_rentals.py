"""Off-boarding under load: many rentals with durations by chance, the timers in processes of their own, and kills."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from domain.persona.offboarding import entitlement
from domain.rental.rentals import Rental
from ops.embedded import EmbeddedPostgres
from ops.migrate import migrate
from ops.runtime import Runtime, open_runtime
from tests.bench.figures import Figure
from tests.real.rental.rental_desk import (
    Ending,
    check_books,
    endings,
    quantile,
    rented_many,
    rich,
    timers,
    wait_settled,
)
from tests.real.service import settings_on

COUNT = 2_000
OUTAGE_S = 120.0


async def loaded(runtime: Runtime, names: list[str], until: asyncio.Event) -> tuple[int, int]:
    """Ask for access without a pause, as fast as one can; give how often, and how often it was wrongly given."""
    asked = wrong = 0
    while not until.is_set():
        for name in names:
            found = (await runtime.reader.load([f"rental/{name}"]))[f"rental/{name}"].aggregate
            assert isinstance(found, Rental)
            assert found.expires_at is not None
            now = runtime.clock()
            wrong += entitlement(found, None, now).granted and now >= found.expires_at
            asked += 1
    return asked, wrong


def lateness(name: str, ended: list[Ending], limit_s: float) -> Figure:
    """Tell how late the endings were: the 99th percentile, beside the median."""
    late = [one.lateness_s for one in ended]
    p99, median = quantile(late, 0.99), quantile(late, 0.5)
    return Figure(name, p99, "s", median, p99 / median, value_at_most=limit_s)


async def killed(url: str, place: Path, over: asyncio.Event) -> int:
    """Keep a standby beside the leader, and kill the leader again and again; give how often."""
    count = 0
    with ExitStack() as living:
        leader = living.enter_context(timers(url, place))
        while not over.is_set():
            standby = await asyncio.to_thread(living.enter_context, timers(url, place))
            await asyncio.sleep(3.0)
            leader.send_signal(signal.SIGKILL)
            leader, count = standby, count + 1
    return count


async def loaded_run(url: str, place: Path, count: int, *, kills: bool) -> list[Figure]:
    """Let rentals end under load while the timers run, or are killed again and again."""
    async with open_runtime(settings_on(url, place)) as runtime:
        await rich(runtime)
        over = asyncio.Event()
        with ExitStack() as living:
            if not kills:
                living.enter_context(timers(url, place))
            killing = asyncio.create_task(killed(url, place, over)) if kills else None
            made = await rented_many(runtime, count, 5.0, 30.0)
            load = asyncio.create_task(loaded(runtime, [one.id for one in made[::100]], over))
            await asyncio.to_thread(wait_settled, url, 120.0)
            over.set()
            asked, wrong = await load
            kill_count = await killing if killing else 0
    assert wrong == 0, "access was given at or after the end"
    ended = endings(url)
    assert len(ended) == count
    check_books(url, ended)
    print(f"{count} rentals, {kill_count} kills, {asked} checks of access, {wrong} wrong", file=sys.stderr)
    name = "rentals.killed" if kills else "rentals.lateness"
    return [lateness(name, ended, 30.0 if kills else 2.0)]


async def outage_run(url: str, place: Path, count: int) -> list[Figure]:
    """Let rentals run out while nobody looks; measure the restart."""
    async with open_runtime(settings_on(url, place)) as runtime:
        await rich(runtime)
        with timers(url, place) as child:
            await rented_many(runtime, count, 20.0, OUTAGE_S)
            child.send_signal(signal.SIGKILL)
        await asyncio.sleep(OUTAGE_S)
        started = time.monotonic()
        with timers(url, place):
            await asyncio.to_thread(wait_settled, url, 60.0)
            took_s = time.monotonic() - started
    ended = endings(url)
    check_books(url, ended)
    return [Figure("rentals.outage", took_s, "s", OUTAGE_S, took_s / OUTAGE_S, value_at_most=30.0)]


def measured(run: Callable[[str, Path], Coroutine[Any, Any, list[Figure]]]) -> list[Figure]:
    """Measure on a server of its own."""
    with (
        TemporaryDirectory(prefix="soma-bench-") as data,
        TemporaryDirectory(prefix="soma-bench-") as database,
        EmbeddedPostgres.start(Path(database)) as server,
    ):
        migrate(server.url)
        return asyncio.run(run(server.url, Path(data)))


def running() -> list[Figure]:
    """Measure lateness while the timers run."""
    return measured(lambda url, place: loaded_run(url, place, COUNT, kills=False))


def killing() -> list[Figure]:
    """Measure lateness while the leader is killed every few seconds."""
    return measured(lambda url, place: loaded_run(url, place, COUNT, kills=True))


def outage() -> list[Figure]:
    """Measure how soon everything is done after an outage."""
    return measured(lambda url, place: outage_run(url, place, COUNT))


FIGURES = {"rentals.lateness": running, "rentals.killed": killing, "rentals.outage": outage}
