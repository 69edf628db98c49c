"""Running the HTTP application in this process: one socket, one loop, and an orderly end.

The ledger is opened around the server and not inside it, so a failure to open is an error with a code, and at the
end the queue is finished after the last answer was sent.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from api.app import create_app
from api.routes.sql import sql_app
from domain.errors import ListenError
from ops import telemetry
from ops.children import Child
from ops.runtime import Runtime
from ops.settings import Settings

log = telemetry.logger(__name__)

BACKLOG = 2_048
SILENCE_MS_MAX = 60_000
SIGNALS = (signal.SIGINT, signal.SIGTERM)

Announce = Callable[[str, Runtime], None]


class _Server(uvicorn.Server):
    """A server that leaves signals to whoever runs it."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell those who follow the log that this is the end; their connections would hold the server up."""
        feed = getattr(getattr(self.config.app, "state", None), "feed", None)
        if feed is not None:
            feed.end()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signal."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """Bind the address the service will listen on; port 0 lets the system choose.

    Errors: cannot_listen.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ListenError(
            f"cannot listen on {host} port {port}: {error.strerror}", host=host, port=port
        ) from error
    # Inherited by every connection: without it an answer waits 40 ms for the client's acknowledgement of its headers.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Inherited too: a peer that takes nothing for a minute is gone, however politely its connection was closed.
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS_MAX)
    bound.setblocking(False)
    return bound


def url_of(host: str, bound: socket.socket) -> str:
    """Print where a bound socket can be reached from this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    shown = f"[{name}]" if ":" in name else name
    return f"http://{shown}:{bound.getsockname()[1]}"


def run(settings: Settings, announce: Announce, children: Mapping[str, Sequence[str]]) -> None:
    """Serve until SIGTERM or SIGINT, with children beside it; announce is called once the service can answer.

    Errors: cannot_listen; those of open_runtime.
    """
    # Bound first: a second service on the same port must fail before it touches the ledger.
    with ExitStack() as sockets:
        bound = sockets.enter_context(listen(settings.host, settings.port))
        sql = (
            None
            if settings.sql_port is None
            else sockets.enter_context(listen(settings.host, settings.sql_port))
        )
        # What it says at `info` is said here already, with the URL.
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        app = create_app(settings)
        house = _House(app, settings, [Child(name, words) for name, words in children.items()])
        listeners = [(house.server(app), bound)]
        if sql is not None:
            listeners.append((house.server(sql_app(app.state)), sql))
        with asyncio.Runner(loop_factory=listeners[0][0].config.get_loop_factory()) as runner:
            runner.run(house.serve(listeners, announce))
    # From here on all is written and closed; a late signal changes nothing but how it looks.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class _House:
    """What runs in this process and beside it, from the first answer to the last."""

    def __init__(self, app: FastAPI, settings: Settings, children: Sequence[Child]) -> None:
        self._app = app
        self._settings = settings
        self._children = children

    def server(self, app: ASGIApp) -> _Server:
        """Make a server for one of our applications."""
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=math.ceil(self._settings.shutdown_grace_s),
        )
        return _Server(config)

    async def serve(self, listeners: Sequence[tuple[_Server, socket.socket]], announce: Announce) -> None:
        """Open the ledger, answer on every socket, and close in the opposite order."""
        loop = asyncio.get_running_loop()

        def stop(number: int) -> None:
            for server, _ in listeners:
                server.handle_exit(number, None)

        for number in SIGNALS:
            loop.add_signal_handler(number, stop, number)
        url = url_of(self._settings.host, listeners[0][1])
        async with self._app.router.lifespan_context(self._app):
            for child in self._children:
                child.start()
            # From here on connections are accepted by the kernel; they are answered as soon as the server takes them.
            announce(url, self._app.state.runtime)
            log.info("listening", url=url)
            try:
                await asyncio.gather(*(server.serve(sockets=[bound]) for server, bound in listeners))
            finally:
                log.info("stopping", url=url)
                await asyncio.gather(*(child.close() for child in self._children))
        log.info("stopped", url=url)
