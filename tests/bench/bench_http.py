"""Measure commands over HTTP against the same application answering the same body without a ledger.

The server is one process; the clients are this one, with connections that stay open. They speak just enough HTTP to be
cheaper than what they measure.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests.bench.figures import CALLERS, ROUND_S, Figure, Load, Turn, compared, load_of, run, take_turns

BODY = json.dumps(
    {
        "model_owner_id": "acme-models",
        "task_type": "classification",
        "round_id": "round-1",
        "required_modalities": ["tabular"],
        "min_quality_score": "0.6",
        "budget_total": {"amount": "120.00", "currency": "USD"},
        "max_per_seller": 2,
    }
).encode()

Request = Callable[[], bytes]


class Client(asyncio.Protocol):
    """One connection: as soon as an answer is whole, the next request goes out."""

    def __init__(self, request: Request, stop_at: float, taken: list[float]) -> None:
        self._request, self._stop_at, self._taken = request, stop_at, taken
        self._seen = b""
        self.last = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]
        self._send()

    def data_received(self, data: bytes) -> None:
        """Collect an answer."""
        self._seen += data
        head, blank, rest = self._seen.partition(b"\r\n\r\n")
        if not blank or len(rest) < _content_length(head):
            return
        assert head.startswith(b"HTTP/1.1 201 "), self._seen
        self.last, self._seen = rest, b""
        self._taken.append(time.perf_counter() - self._started)
        if time.perf_counter() < self._stop_at:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """End this caller's turn."""
        if not self.done.done():
            self.done.set_result(None)

    def _send(self) -> None:
        self._started = time.perf_counter()
        self._transport.write(self._request())


def _content_length(head: bytes) -> int:
    at = head.lower().index(b"content-length:") + 15
    return int(head[at : at + 12].split(b"\r\n")[0])


def requests(url: str, token: str, path: str, *, keyed: bool = False) -> Request:
    """Make the request each caller sends."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {urlsplit(url).netloc}", f"Authorization: Bearer {token}"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(BODY)}"]
    head, numbers = "\r\n".join(lines).encode(), itertools.count()
    if not keyed:
        whole = head + b"\r\n\r\n" + BODY
        return lambda: whole
    return lambda: head + b"\r\nIdempotency-Key: bench-%d" % next(numbers) + b"\r\n\r\n" + BODY


async def drive(url: str, request: Request, callers: int, seconds: float) -> tuple[Load, bytes]:
    """Let callers send for a while; give the load and one of the answers."""
    taken: list[float] = []
    address, started = urlsplit(url), time.perf_counter()
    loop, clients = (
        asyncio.get_running_loop(),
        [Client(request, started + seconds, taken) for _ in range(callers)],
    )
    for client in clients:
        await loop.create_connection(lambda client=client: client, address.hostname, address.port)
    await asyncio.gather(*(client.done for client in clients))
    return load_of(taken, time.perf_counter() - started), clients[0].last


def turn_of(url: str, request: Request) -> Turn:
    """Measure one kind of request."""

    async def turn() -> Load:
        return (await drive(url, request, CALLERS, ROUND_S))[0]

    return turn


@contextmanager
def serving() -> Iterator[tuple[str, str]]:
    """Start the server in a process of its own; give its URL and a token."""
    with tempfile.TemporaryDirectory(prefix="soma-bench-") as directory, serving_in(directory) as served:
        yield served


@contextmanager
def serving_in(directory: str) -> Iterator[tuple[str, str]]:
    """Start the server on a directory that is kept; give its URL and a token."""
    command = [sys.executable, "-m", "tests.bench.http_server", directory]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url, token = server.stdout.readline().split()
            yield url, token
        finally:
            server.terminate()
            server.wait()


def http_commands() -> list[Figure]:
    """Measure 64 connections that each open one intent after another."""

    async def measure() -> list[Figure]:
        with serving() as (url, token):
            real = requests(url, token, "/v1/intents")
            _, answer = await drive(url, real, 1, 0.5)
            echo = requests(url, token, f"/bench/intents?answer_bytes={len(answer)}")
            bare, ours = await take_turns(turn_of(url, echo), turn_of(url, real))
            keyed_requests = requests(url, token, "/v1/intents", keyed=True)
            bare_again, keyed = await take_turns(turn_of(url, echo), turn_of(url, keyed_requests))
        return [
            compared("log.http_commands", "requests/s", ours.per_s, bare.per_s, at_least=0.5),
            compared("log.http_commands_keyed", "requests/s", keyed.per_s, bare_again.per_s),
            compared("log.http_commands_p99_over_p50", "ms", ours.p99_ms, ours.p50_ms),
        ]

    return run(measure)


FIGURES = {"log.http_commands": http_commands}
