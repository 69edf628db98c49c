"""What all figures share: their shape, the load they are measured under, and the house they are measured in.

A figure is a ratio of one run: ours and its baseline take turns on the same server in the same minutes, so a busy
machine slows both. The medians of the turns are compared.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg

from ops.postgres import connect_owner
from ops.runtime import Runtime, open_runtime
from ops.settings import LogLevel, Settings

ROUNDS = 3
ROUND_S = 3.0
CALLERS = 64
WAL_MB = 600


class Figure(NamedTuple):
    """One measured figure.

    Units: value and baseline in `unit`; `ratio` is value over baseline. at_least and at_most say what the ratio
    must reach, value_at_most what the value must.
    """

    name: str
    value: float
    unit: str
    baseline: float
    ratio: float
    at_least: float | None = None
    at_most: float | None = None
    value_at_most: float | None = None

    @property
    def met(self) -> bool:
        """Tell whether the bar is met; a figure without one always does."""
        return not (
            (self.at_least is not None and self.ratio < self.at_least)
            or (self.at_most is not None and self.ratio > self.at_most)
            or (self.value_at_most is not None and self.value > self.value_at_most)
        )


def compared(
    name: str,
    unit: str,
    ours: float,
    baseline: float,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Figure:
    """Make a figure of two medians."""
    ratio = round(ours / baseline, 3)
    return Figure(name, float(f"{ours:.5g}"), unit, float(f"{baseline:.5g}"), ratio, at_least, at_most)


class Load(NamedTuple):
    """What a number of callers got done in one turn."""

    per_s: float
    p50_ms: float
    p99_ms: float


Turn = Callable[[], Awaitable[Load]]


def median_of(loads: Sequence[Load]) -> Load:
    """Give the median of each number over several turns."""
    return Load(*(statistics.median(column) for column in zip(*loads, strict=True)))


async def take_turns(baseline: Turn, ours: Turn, rounds: int = ROUNDS) -> tuple[Load, Load]:
    """Measure the two alternately; give the medians, the baseline's first."""
    turns: tuple[list[Load], list[Load]] = ([], [])
    for _ in range(rounds):
        for measured, turn in zip(turns, (baseline, ours), strict=True):
            measured.append(await turn())
            await asyncio.sleep(0.2)
    return median_of(turns[0]), median_of(turns[1])


# --------------------------------------------------------------------------- callers


def tasks(act: Callable[[int], Awaitable[object]], callers: int = CALLERS, seconds: float = ROUND_S) -> Turn:
    """Measure tasks of the running loop that call as fast as they are answered."""

    async def turn() -> Load:
        taken: list[float] = []
        stop_at = time.perf_counter() + seconds

        async def caller(number: int) -> None:
            while (started := time.perf_counter()) < stop_at:
                await act(number)
                _note(taken, started, stop_at)

        await asyncio.gather(*(caller(number) for number in range(callers)))
        return load_of(taken, seconds)

    return turn


def threads(act: Callable[[int], object], callers: int = CALLERS, seconds: float = ROUND_S) -> Turn:
    """Measure threads that call as fast as they are answered."""

    def run() -> Load:
        taken: list[list[float]] = [[] for _ in range(callers)]
        stop_at = time.perf_counter() + seconds

        def caller(number: int) -> None:
            while (started := time.perf_counter()) < stop_at:
                act(number)
                _note(taken[number], started, stop_at)

        workers = [threading.Thread(target=caller, args=(number,)) for number in range(callers)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return load_of([one for column in taken for one in column], seconds)

    return lambda: asyncio.to_thread(run)


def _note(taken: list[float], started: float, stop_at: float) -> None:
    # What ends after the turn does not count: the last of many who collide may need long.
    now = time.perf_counter()
    if now <= stop_at:
        taken.append(now - started)


def load_of(taken: list[float], seconds: float) -> Load:
    """Sum up how long each call took."""
    assert taken, "nobody was answered"
    taken.sort()
    p50, p99 = taken[len(taken) // 2], taken[int(len(taken) * 0.99)]
    return Load(len(taken) / seconds, p50 * 1e3, p99 * 1e3)


# --------------------------------------------------------------------------- the house


class House(NamedTuple):
    """An open ledger in a directory of its own, and on the same server a second database for the baseline."""

    runtime: Runtime
    baseline_url: str

    def connect_baseline(self) -> psycopg.Connection:
        """Open a connection to the baseline's database."""
        return connect_owner(self.baseline_url)


@asynccontextmanager
async def open_house() -> AsyncIterator[House]:
    """Open an embedded server with a ledger and an empty database beside it; all of it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="soma-bench-") as directory:
        settings = Settings(data_dir=Path(directory), log_level=LogLevel.WARNING, database_url=None)
        async with open_runtime(settings) as runtime:
            with connect_owner(runtime.url) as connection:
                connection.execute("CREATE DATABASE baseline")
                _age(connection)
            yield House(runtime, runtime.url.replace("/soma?", "/baseline?"))


def _age(connection: psycopg.Connection) -> None:
    # A server that is a few hours old writes over files of its write-ahead log. A new one makes each of them first,
    # which stops every commit for some 50 ms each time; that is no figure of ours nor of the baseline.
    connection.execute(
        "SELECT count(pg_logical_emit_message(false, 'bench', repeat('x', 1_000_000))) FROM generate_series(1, %s)",
        [WAL_MB],
    )
    connection.execute("CHECKPOINT")


def run(main: Callable[[], Awaitable[list[Figure]]]) -> list[Figure]:
    """Run a measurement on the event loop the service runs on."""
    import uvloop

    return uvloop.run(main())
