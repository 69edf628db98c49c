"""Measure usage readings that come in by the thousand over HTTP against raw COPY of the very rows they became.

The service is a process of its own on an embedded PostgreSQL. Bodies are written before the clock runs; each of two
connections sends the next request as soon as the one before is answered. Then the rows that a turn left in `events`
and `records` are copied, ready made, into empty tables of the same shape, in one transaction for each request.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psycopg

from domain.values import moment_text
from ops.embedded import EmbeddedPostgres
from ops.postgres import connect_owner
from tests.bench.bench_http import serving_in
from tests.bench.figures import Figure, compared, run

READINGS = 10_000
REQUESTS = 8
CONNECTIONS = 2
TURNS = 3
ALONE_S = 4.0
SINGLE_PAUSE_S = 0.02

_TABLES = {"events": "position", "records": "id"}


class Rate(NamedTuple):
    """Readings a second of one turn, and of the copies of its rows."""

    ours: float
    copied: float
    bare: float


# --------------------------------------------------------------------------- what is sent


def readings(first: int, chance: random.Random, count: int = READINGS) -> list[dict[str, Any]]:
    """Write the readings of one request as a gateway sends them."""
    now = datetime.now(UTC)
    return [
        {
            "source": f"gateway-{chance.randrange(4)}",
            "event_id": f"req_{first + n:012d}",
            "occurred_at": moment_text(now - timedelta(microseconds=chance.randrange(10**9))),
            "provider": chance.choice(("openai", "anthropic", "mistral")),
            "model": chance.choice(("gpt-4o-mini", "claude-sonnet", "mistral-large")),
            "tokens_in": chance.randrange(8_000),
            "tokens_out": chance.randrange(2_000),
            "latency_ms": chance.randrange(20_000),
            "cost": {"amount": f"0.{chance.randrange(10**6):06d}", "currency": "USD"},
        }
        for n in range(count)
    ]


def bodies(numbers: Sequence[int]) -> list[bytes]:
    """Write the bodies of some requests."""
    chance = random.Random(numbers[0])
    return [json.dumps({"readings": readings(n * READINGS, chance)}).encode() for n in numbers]


class Sender:
    """A connection that stays open and sends one body after another."""

    def __init__(self, url: str, token: str) -> None:
        self._address = urlsplit(url)
        lines = [
            "POST /v1/usage HTTP/1.1",
            f"Host: {self._address.netloc}",
            f"Authorization: Bearer {token}",
            "Content-Type: application/json",
        ]
        self._head = "\r\n".join(lines).encode()

    async def open(self) -> Sender:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection(self._address.hostname, self._address.port)
        return self

    async def send(self, body: bytes, key: str | None = None) -> dict[str, Any]:
        """Send a body and read its answer."""
        keyed = b"" if key is None else b"\r\nIdempotency-Key: " + key.encode()
        length = b"\r\nContent-Length: %d\r\n\r\n" % len(body)
        self._writer.write(self._head + keyed + length)
        self._writer.write(body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        at = head.lower().index(b"content-length:") + 15
        answer = await self._reader.readexactly(int(head[at : head.index(b"\r", at)]))
        assert head.startswith(b"HTTP/1.1 200 "), head + answer
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        """Let go."""
        self._writer.close()


async def sent(
    url: str, token: str, waiting: Sequence[bytes], keys: str | None = None
) -> tuple[float, int, int]:
    """Send bodies over some connections; give readings a second, and how many were new and how many known."""
    senders = [await Sender(url, token).open() for _ in range(CONNECTIONS)]
    queue = list(enumerate(waiting))[::-1]
    answers = []
    started = time.perf_counter()

    async def caller(sender: Sender) -> None:
        while queue:
            number, body = queue.pop()
            answers.append(await sender.send(body, None if keys is None else f"{keys}-{number}"))

    await asyncio.gather(*(caller(sender) for sender in senders))
    per_s = len(waiting) * READINGS / (time.perf_counter() - started)
    for sender in senders:
        sender.close()
    return per_s, sum(one["inserted"] for one in answers), sum(one["duplicates"] for one in answers)


# --------------------------------------------------------------------------- the baseline


def make_tables(connection: psycopg.Connection[Any]) -> None:
    """Make the empty tables: of the same shape with all constraints and indexes, and with none."""
    for table in _TABLES:
        connection.execute(f"CREATE TABLE like_{table} (LIKE {table} INCLUDING ALL)")
        connection.execute(f"CREATE TABLE bare_{table} AS SELECT * FROM {table} WITH NO DATA")


def rows_of(connection: psycopg.Connection[Any], start: int, end: int) -> list[dict[str, bytes]]:
    """Read what a turn wrote, ready to be copied, in the pieces in which it came."""
    pieces = []
    for at in range(start, end, READINGS):
        events = (
            f"SELECT * FROM events WHERE position >= {at} AND position < {at + READINGS} ORDER BY position"
        )
        states = (
            "SELECT r.* FROM events AS e JOIN records AS r ON r.kind = 'usage' AND r.id = split_part(e.stream, '/', 2)"
            f" WHERE e.position >= {at} AND e.position < {at + READINGS} ORDER BY e.position"
        )
        pieces.append({"events": copied_out(connection, events), "records": copied_out(connection, states)})
    return pieces


def copied_out(connection: psycopg.Connection[Any], query: str) -> bytes:
    """Read rows in the binary form of COPY."""
    with connection.cursor().copy(f"COPY ({query}) TO STDOUT (FORMAT BINARY)") as copy:  # type: ignore[arg-type]
        return b"".join(bytes(part) for part in copy)


def copied_in(connection: psycopg.Connection[Any], kind: str, pieces: Sequence[dict[str, bytes]]) -> float:
    """Copy rows in, one transaction for each request; give readings a second."""
    started = time.perf_counter()
    for piece in pieces:
        with connection.transaction():
            for table, data in piece.items():
                with connection.cursor().copy(f"COPY {kind}_{table} FROM STDIN (FORMAT BINARY)") as copy:  # type: ignore[arg-type]
                    copy.write(data)
    return len(pieces) * READINGS / (time.perf_counter() - started)


def size_of(connection: psycopg.Connection[Any]) -> int:
    """Count the records of the log."""
    row = connection.execute("SELECT size FROM log_head").fetchone()
    assert row is not None
    return int(row[0])


# --------------------------------------------------------------------------- turns


class Bench:
    """A running service, connections to it, and one to its database."""

    def __init__(self, url: str, token: str, connection: psycopg.Connection[Any]) -> None:
        self.url, self.token, self.connection = url, token, connection
        self._numbers = itertools.count()

    def next_bodies(self) -> list[bytes]:
        """Write the requests of another turn."""
        return bodies([next(self._numbers) for _ in range(REQUESTS)])

    async def sent(self, waiting: Sequence[bytes], keys: str | None = None) -> tuple[float, int, int]:
        """Send bodies to the service."""
        return await sent(self.url, self.token, waiting, keys)

    async def turn(self, waiting: Sequence[bytes]) -> Rate:
        """Let the service and COPY take the same rows, one after the other."""
        start = size_of(self.connection)
        ours, inserted, _ = await self.sent(waiting)
        end = size_of(self.connection)
        assert inserted == end - start == len(waiting) * READINGS
        pieces = rows_of(self.connection, start, end)
        copied, bare = (copied_in(self.connection, kind, pieces) for kind in ("like", "bare"))
        return Rate(ours, copied, bare)

    async def waits_ms(self, beside: asyncio.Task[Any] | None) -> list[float]:
        """Send single readings, one after another, until a task is done or for a while; give how long each took."""
        sender = await Sender(self.url, self.token).open()
        first = next(self._numbers) * READINGS
        taken: list[float] = []
        until = time.perf_counter() + ALONE_S
        while time.perf_counter() < until if beside is None else not beside.done():
            (one, *_) = readings(first + len(taken), random.Random(len(taken)), 1)
            body = json.dumps({"readings": [one]}).encode()
            started = time.perf_counter()
            await sender.send(body)
            taken.append((time.perf_counter() - started) * 1e3)
            await asyncio.sleep(SINGLE_PAUSE_S)
        sender.close()
        return taken


@asynccontextmanager
async def opened() -> Any:
    """Start the service and connect to it."""
    with (
        tempfile.TemporaryDirectory(prefix="soma-bench-") as directory,
        serving_in(directory) as (url, token),
    ):
        # Once the first is answered the database is there.
        await sent(url, token, bodies([10**6, 10**6 + 1]))
        with EmbeddedPostgres.start(Path(directory)) as server, connect_owner(server.url) as connection:
            make_tables(connection)
            bench = Bench(url, token, connection)
            yield bench


def p99(taken: Sequence[float]) -> float:
    """Give the 99th percentile."""
    return sorted(taken)[int(len(taken) * 0.99)]


def usage_http() -> list[Figure]:
    """Measure new readings, the same once more, and the same under keys."""

    async def measure() -> list[Figure]:
        async with opened() as bench:
            rates, again, keyed = [], [], []
            alone = await bench.waits_ms(None)
            beside = await bench.waits_ms(asyncio.create_task(bench.sent(bench.next_bodies())))
            for turn in range(TURNS):
                waiting = bench.next_bodies()
                rates.append(await bench.turn(waiting))
                per_s, _, known = await bench.sent(waiting)
                assert known == len(waiting) * READINGS, "a duplicate was not found"
                again.append(per_s)
                per_s, new, _ = await bench.sent(bench.next_bodies(), f"turn-{turn}")
                assert new == REQUESTS * READINGS
                keyed.append(per_s)
        ours, copied, bare = (statistics.median(column) for column in zip(*rates, strict=True))
        return [
            compared("billing.usage_http", "records/s", ours, copied, at_least=0.3),
            compared("billing.usage_http_bare", "records/s", ours, bare),
            compared("billing.usage_http_of_20k", "records/s", ours, 20_000),
            compared("billing.usage_http_again", "records/s", statistics.median(again), ours),
            compared("billing.usage_http_keyed", "records/s", statistics.median(keyed), copied),
            compared(
                "billing.usage_http_beside_p50", "ms", statistics.median(beside), statistics.median(alone)
            ),
            compared("billing.usage_http_beside_p99", "ms", p99(beside), p99(alone)),
        ]

    return run(measure)


FIGURES = {"billing.usage_http": usage_http}
