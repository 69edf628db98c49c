"""A server that takes webhook messages on a real socket, and answers as a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

WAIT_S_MAX = 15.0


class Received(NamedTuple):
    """A message as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["data"]
        return found

    @property
    def position(self) -> int:
        return int(self.data["position"])


Answer = tuple[int, dict[str, str]]
OK: Answer = (204, {})


class Receiver:
    """Takes messages and keeps them in the order of their arrival."""

    def __init__(self, port: int = 0) -> None:
        self.seen: list[Received] = []
        self.answer: Callable[[Received], Answer] = lambda received: OK
        self.news = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                received = Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                status, headers = receiver.answer(received)
                with receiver.news:
                    receiver.seen.append(received)
                    receiver.news.notify_all()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """Say nothing of those who leave in the middle: they were killed on purpose."""

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"

    def wait(self, enough: Callable[[list[Received]], bool], why: str = "the messages do not arrive") -> None:
        """Wait until what arrived is enough."""
        until = time.monotonic() + WAIT_S_MAX
        with self.news:
            while not enough(self.seen):
                left_s = until - time.monotonic()
                assert left_s > 0, f"{why}: {len(self.seen)} are there"
                self.news.wait(left_s)

    def positions(self) -> list[int]:
        """List the positions in the order of their arrival."""
        return [received.position for received in self.seen]


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    """Run a receiver until the block is left."""
    receiver = Receiver(port)
    thread = threading.Thread(
        target=receiver.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join()


def firsts(positions: list[int]) -> list[int]:
    """Keep the first arrival of each position."""
    return list(dict.fromkeys(positions))
