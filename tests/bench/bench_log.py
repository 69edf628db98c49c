"""Measure commands through the gate against the plain library, and the log against the bare database."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import statistics
import time
import uuid
from collections.abc import Callable
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate as LibraryAggregate
from eventsourcing.domain import event
from eventsourcing.persistence import IntegrityError, StoredEvent

from domain.fields import Command
from domain.ledger import Caller, Case
from domain.log.records import Aggregate, Event, Record
from tests.bench.figures import (
    CALLERS,
    Figure,
    House,
    Load,
    Turn,
    compared,
    open_house,
    run,
    take_turns,
    tasks,
    threads,
)

CALLER = Caller("bench", "acme", frozenset({"operator"}))
BULK_RECORDS = 1_000
BULK_CALLS = 12
SINGLE_S = 1.5
RETRY_PAUSE_S_MAX = 0.05


# --------------------------------------------------------------------------- the same work, twice


class Usage(Aggregate):
    """What both sides create: an aggregate with two texts and a number."""

    KIND: ClassVar[str] = "bench_usage"

    owner: str = ""
    price: str = ""
    tokens: int = 0

    class Opened(Event):
        """It was opened."""

        TOPIC = "bench_usage.opened"

        owner: str
        price: str

        def apply(self, usage: Usage, record: Record) -> None:
            usage.owner, usage.price = self.owner, self.price

    class Used(Event):
        """Something was used."""

        TOPIC = "bench_usage.used"

        tokens: int
        model: str

        def apply(self, usage: Usage, record: Record) -> None:
            usage.tokens += self.tokens


class OpenUsage(Command):
    """Open one."""

    owner: str
    price: str


class Use(Command):
    """Use something."""

    id: str
    tokens: int
    model: str


def open_usage(case: Case, command: OpenUsage) -> Usage:
    """Open one."""
    return case.create(Usage, case.new_id("usage"), Usage.Opened(owner=command.owner, price=command.price))


def use(case: Case, command: Use) -> Usage:
    """Use something."""
    return case.emit(case.get(Usage, command.id), Usage.Used(tokens=command.tokens, model=command.model))


class LibraryUsage(LibraryAggregate):
    """The same aggregate as the library has it."""

    @event("Opened")
    def __init__(self, owner: str, price: str) -> None:
        self.owner, self.price, self.tokens = owner, price, 0

    @event("Used")
    def use(self, tokens: int, model: str) -> None:
        self.tokens += tokens


def plain_library(house: House, *, functions: bool = False) -> Application[uuid.UUID]:
    """Open the library's application on the baseline's database, with its defaults."""
    host = parse_qs(urlsplit(house.baseline_url).query)["host"][0]
    name = "WithFunctions" if functions else "Plain"
    env = {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": "baseline",
        "POSTGRES_HOST": host,
        "POSTGRES_USER": "postgres",
        "POSTGRES_PASSWORD": "unused",
        "POSTGRES_ENABLE_DB_FUNCTIONS": "y" if functions else "n",
    }
    return type(name, (Application,), {"name": name.lower()})(env)


# --------------------------------------------------------------------------- many callers


def library_creates(app: Application[uuid.UUID]) -> Turn:
    """Let threads create and save aggregates."""
    return threads(lambda _: app.save(LibraryUsage(owner="o", price="10.00")))


def library_uses_one(app: Application[uuid.UUID]) -> Turn:
    """Let threads change one aggregate; who meets a conflict reads it again."""
    hot = LibraryUsage(owner="o", price="10.00")
    app.save(hot)

    def change(_: int) -> None:
        while True:
            try:
                usage: LibraryUsage = app.repository.get(hot.id)
                usage.use(tokens=3, model="gpt")
                app.save(usage)
                return
            except IntegrityError:
                # A short pause of random length, as a caller would make.
                time.sleep(random.uniform(0, RETRY_PAUSE_S_MAX))

    return threads(change)


def ledger_creates(house: House, *, keyed: bool = False) -> Turn:
    """Let tasks create aggregates through the gate."""
    ledger, numbers = house.runtime.ledger, itertools.count()

    def act(_: int) -> Any:
        command = OpenUsage(owner="o", price="10.00")
        return ledger.act(open_usage, command, CALLER, key=f"key-{next(numbers)}" if keyed else None)

    return tasks(act)


async def ledger_uses_one(house: House) -> Turn:
    """Let tasks change one aggregate through the gate."""
    ledger = house.runtime.ledger
    made = await ledger.act(open_usage, OpenUsage(owner="o", price="10.00"), CALLER)
    name = json.loads(made.body)["id"]
    return tasks(lambda _: ledger.act(use, Use(id=name, tokens=3, model="gpt"), CALLER))


def commands_64() -> list[Figure]:
    """Measure 64 callers who each create one aggregate with one event, against the plain library."""

    async def measure() -> list[Figure]:
        async with open_house() as house:
            app = plain_library(house)
            plain, ours = await take_turns(library_creates(app), ledger_creates(house))
            plain_again, keyed = await take_turns(library_creates(app), ledger_creates(house, keyed=True))
            app.close()
        return [
            compared("log.commands_64", "commands/s", ours.per_s, plain.per_s, at_least=12),
            compared("log.commands_64_keyed", "commands/s", keyed.per_s, plain_again.per_s),
            compared("log.commands_64_p99_over_p50", "ms", ours.p99_ms, ours.p50_ms, at_most=4),
            compared("log.commands_64_keyed_p99_over_p50", "ms", keyed.p99_ms, keyed.p50_ms),
            compared("log.commands_64_p50", "ms", ours.p50_ms, plain.p50_ms),
        ]

    return run(measure)


def commands_64_functions() -> list[Figure]:
    """Measure the same against the library with its database functions, which promise less."""

    async def measure() -> list[Figure]:
        async with open_house() as house:
            app = plain_library(house, functions=True)
            theirs, ours = await take_turns(library_creates(app), ledger_creates(house))
            app.close()
        return [compared("log.commands_64_functions", "commands/s", ours.per_s, theirs.per_s, at_least=4)]

    return run(measure)


def commands_hot() -> list[Figure]:
    """Measure 64 callers who all change one aggregate."""

    async def measure() -> list[Figure]:
        async with open_house() as house:
            app = plain_library(house)
            plain, ours = await take_turns(library_uses_one(app), await ledger_uses_one(house))
            app.close()
        return [
            compared("log.commands_hot", "commands/s", ours.per_s, plain.per_s, at_least=50),
            compared("log.commands_hot_p99_over_p50", "ms", ours.p99_ms, ours.p50_ms),
        ]

    return run(measure)


# --------------------------------------------------------------------------- one caller, and the bare database

_BARE = (
    "CREATE TABLE bare (position bigint PRIMARY KEY, version bigint NOT NULL, stream text NOT NULL,"
    " type text NOT NULL, tenant text NOT NULL, address bytea NOT NULL, record bytea NOT NULL)"
)
_INSERT = "INSERT INTO bare VALUES (%s, 1, 'bench_usage/1', 'bench_usage.opened', 'acme', %s, %s)"


def bare_commits(house: House, record: bytes) -> Callable[[int], None]:
    """Hash a record twice and commit it, and nothing else."""
    connection, positions = house.connect_baseline(), itertools.count()
    connection.execute(_BARE)

    def commit(_: int) -> None:
        address = hashlib.sha3_512(record).digest()
        hashlib.sha256(b"\x00" + record).digest()
        connection.execute(_INSERT, (next(positions), address, record), prepare=True, binary=True)

    return commit


def single() -> list[Figure]:
    """Measure how long one caller waits, against one bare durable commit plus hashing."""

    async def measure() -> list[Figure]:
        async with open_house() as house:
            act = ledger_single(house)
            made = await act(0)
            record = next(iter(house.runtime.recorder.select_notifications(made.position + 1, 1))).state
            bare = threads(bare_commits(house, bytes(record)), 1, SINGLE_S)
            plain, ours = await take_turns(bare, tasks(act, 1, SINGLE_S), rounds=5)
        return [
            compared("log.single", "ms", ours.p50_ms, plain.p50_ms, at_most=1.5),
            compared("log.single_p99", "ms", ours.p99_ms, plain.p99_ms),
        ]

    return run(measure)


def ledger_single(house: House) -> Callable[[int], Any]:
    """Give the call of one caller."""
    ledger = house.runtime.ledger
    return lambda _: ledger.act(open_usage, OpenUsage(owner="o", price="10.00"), CALLER)


# --------------------------------------------------------------------------- bulk


def stored_events(call: int) -> list[StoredEvent]:
    """Write a thousand records of a new stream, each of about 400 bytes."""
    stream = f"bench_usage/bulk-{call:08d}"
    previous = "sha3-512:" + "ab" * 64
    return [
        StoredEvent(
            stream,
            version,
            "bench_usage.used",
            json.dumps(
                {
                    "actor": "bench",
                    "at": "2030-01-01T00:00:00.000000Z",
                    "causation": None,
                    "correlation": None,
                    "data": {"model": "gpt", "tokens": version},
                    "previous": previous,
                    "schema": 1,
                    "stream": stream,
                    "tenant": "acme",
                    "type": "bench_usage.used",
                    "version": version,
                },
                separators=(",", ":"),
            ).encode(),
        )
        for version in range(1, BULK_RECORDS + 1)
    ]


def copy_stream(events: list[StoredEvent], position: int) -> bytes:
    """Write the same rows in the binary form of COPY."""
    parts = [b"PGCOPY\n\xff\r\n\0" + bytes(8)]
    for at, one in enumerate(events, position):
        address = hashlib.sha3_512(one.state).digest()
        fields = [at.to_bytes(8, "big"), one.originator_version.to_bytes(8, "big")]
        fields += [str(one.originator_id).encode(), one.topic.encode(), b"acme", address, one.state]
        parts.append(len(fields).to_bytes(2, "big"))
        parts += [len(field).to_bytes(4, "big") + field for field in fields]
    return b"".join(parts) + b"\xff\xff"


def timed_calls(call: Callable[[Any], object], arguments: list[Any]) -> Load:
    """Time calls whose arguments are ready, one after the other."""
    taken = []
    for argument in arguments:
        started = time.perf_counter()
        call(argument)
        taken.append(time.perf_counter() - started)
    median_s = statistics.median(taken)
    return Load(BULK_RECORDS / median_s, median_s * 1e3, max(taken) * 1e3)


def bulk() -> list[Figure]:
    """Measure appends of 1,000 records a call, against raw binary COPY of the same bytes."""

    async def measure() -> list[Figure]:
        async with open_house() as house:
            connection = house.connect_baseline()
            connection.execute(_BARE)
            recorder, calls = house.runtime.recorder, itertools.count()

            def copy(data: bytes) -> None:
                with (
                    connection.transaction(),
                    connection.cursor().copy("COPY bare FROM STDIN (FORMAT BINARY)") as c,
                ):
                    c.write(data)

            async def theirs() -> Load:
                batches = [next(calls) for _ in range(BULK_CALLS)]
                return timed_calls(copy, [copy_stream(stored_events(n), n * BULK_RECORDS) for n in batches])

            async def ours() -> Load:
                return timed_calls(
                    recorder.insert_events, [stored_events(next(calls)) for _ in range(BULK_CALLS)]
                )

            plain, mine = await take_turns(theirs, ours, rounds=5)
        return [compared("log.bulk", "records/s", mine.per_s, plain.per_s, at_least=0.5)]

    return run(measure)


FIGURES = {
    "log.commands_64": commands_64,
    "log.commands_64_functions": commands_64_functions,
    "log.commands_hot": commands_hot,
    "log.single": single,
    "log.bulk": bulk,
}

assert CALLERS == 64, "the names of the figures say so"
