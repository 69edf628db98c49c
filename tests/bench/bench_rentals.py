"""Rentals under load, with durations by chance: who is let in and until when, and how late their ends are written down.

The timers are processes of their own, and are killed; access is asked for over HTTP while other commands come in.
"""

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
from ops.settings import Settings
from tests.bench.figures import Figure
from tests.real.rental.access_desk import (
    SECOND_NS,
    Asking,
    SteppedService,
    data_of,
    ends_of,
    judge,
    load,
    nanoseconds,
    public_key,
    soma_timers,
    stepped_service,
)
from tests.real.rental.rental_desk import (
    RENTER,
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


# --------------------------------------------------------------------------- access over HTTP

# For so long the timers run, and the leader is killed every so often, before all of them are gone.
RUNNING_S, KILL_EVERY_S = 60.0, 15.0
# When the clock of the service's machine is set off by how much, in seconds.
STEPS = ((5, -3_600), (15, 0), (25, 2), (35, -60), (45, 0), (70, 86_400 * -3), (90, 0), (110, 5), (130, 0))


async def killing_leaders(settings: Settings, living: ExitStack, until: float) -> int:
    """Keep a standby beside the leader, kill the leader now and then, and in the end both; give how often."""
    leader, count = await asyncio.to_thread(living.enter_context, soma_timers(settings)), 0
    standby = await asyncio.to_thread(living.enter_context, soma_timers(settings))
    while time.monotonic() < until - KILL_EVERY_S:
        await asyncio.sleep(KILL_EVERY_S)
        leader.send_signal(signal.SIGKILL)
        leader, count = standby, count + 1
        standby = await asyncio.to_thread(living.enter_context, soma_timers(settings))
    await asyncio.sleep(max(0.0, until - time.monotonic()))
    for one in (standby, leader):
        one.send_signal(signal.SIGKILL)
    return count + 2


async def stepping(service: SteppedService) -> None:
    """Set the clock back and forward, as told."""
    started = time.monotonic()
    for at_s, offset_s in STEPS:
        await asyncio.sleep(max(0.0, started + at_s - time.monotonic()))
        await asyncio.to_thread(service.step, offset_s * SECOND_NS)


async def access_run(url: str, place: Path, count: int) -> list[Figure]:
    """Ask for access over HTTP at every end: while the timers run and are killed, through an outage, and afterwards."""
    settings = data_of(place, url)
    async with open_runtime(settings) as runtime:
        await rich(runtime)
        with ExitStack() as living:
            service = living.enter_context(stepped_service(settings))
            async with service.client(RENTER) as client, load(service, 0.02) as done:
                killers = asyncio.create_task(killing_leaders(settings, living, time.monotonic() + RUNNING_S))
                steps = asyncio.create_task(stepping(service))
                made = await rented_many(runtime, count, 5.0, RUNNING_S + OUTAGE_S - 10.0)
                print(f"{count} rentals made", file=sys.stderr)
                asking, over = Asking(service, client, made), asyncio.Event()
                asked = asyncio.create_task(asking.everywhere(over, 0.01))
                kills = await killers
                killed_ns = time.time_ns()
                print(f"{kills} timers killed, {len(asking.answers)} answers", file=sys.stderr)
                await steps
                await service.reach(max(nanoseconds(str(one.expires_at)) for one in made))
                await asyncio.sleep(max(0.0, OUTAGE_S - (time.time_ns() - killed_ns) / SECOND_NS))
                print(f"the outage is over, {len(asking.answers)} answers", file=sys.stderr)
                started = time.monotonic()
                await asyncio.to_thread(living.enter_context, soma_timers(settings))
                await asyncio.to_thread(wait_settled, url, 120.0)
                took_s = time.monotonic() - started
                over.set()
                await asked
            found = judge(asking.answers, ends_of(url), public_key(service))
    ended = endings(url)
    assert len(ended) == count
    check_books(url, ended)
    before = [one for one in ended if nanoseconds(one.expires_at) < killed_ns - 2 * SECOND_NS]
    told = f"{count} rentals, {kills} kills, {len(service.steps)} clock steps, {len(before)} ended while timers ran"
    print(f"{told}; {found}; {done[0]} transfers, {done[1]} readings meanwhile", file=sys.stderr)
    return [
        Figure("rentals.access", found.wrong, "wrong", found.answers, 0.0, value_at_most=0),
        lateness("rentals.access_lateness", before, 2.0),
        Figure("rentals.access_outage", took_s, "s", OUTAGE_S, took_s / OUTAGE_S, value_at_most=30.0),
    ]


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


def access() -> list[Figure]:
    """Measure whether anybody is let in too long, over HTTP."""
    return measured(lambda url, place: access_run(url, place, COUNT))


FIGURES = {
    "rentals.access": access,
    "rentals.lateness": running,
    "rentals.killed": killing,
    "rentals.outage": outage,
}
