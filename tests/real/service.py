"""A running service on a database of its own, in a thread of this process, spoken to over a real socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from api.app import create_app
from api.serving import listen, url_of
from domain.ledger import Caller
from ops.clock import Clock
from ops.runtime import Runtime
from ops.settings import Settings

T = TypeVar("T")

STARTING_S_MAX = 60.0
ANSWER_S_MAX = 60.0


class Service:
    """The application while it runs. Its loop is in another thread; `run` carries a coroutine out there."""

    def __init__(self, app: FastAPI, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self.app = app
        self.url = url
        self.loop = loop

    @property
    def settings(self) -> Settings:
        found: Settings = self.app.state.settings
        return found

    @property
    def runtime(self) -> Runtime:
        found: Runtime = self.app.state.runtime
        return found

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Carry a coroutine out on the loop of the service."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(ANSWER_S_MAX)

    def token(self, caller: Caller, ttl_s: int | None = None) -> str:
        """Mint a token for a caller."""
        return str(self.app.state.issuer.mint(caller.subject, caller.tenant, sorted(caller.roles), ttl_s))

    def client(self, caller: Caller | None = None) -> httpx.Client:
        """Give a client that speaks for a caller, or for nobody."""
        headers = {"Authorization": f"Bearer {self.token(caller)}"} if caller else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=ANSWER_S_MAX, trust_env=False)


@contextmanager
def serving(settings: Settings, clock: Clock | None = None) -> Iterator[Service]:
    """Run the application until the block is left, by a clock of the test's if one is given."""
    started = threading.Event()
    found: dict[str, Any] = {}
    with listen("127.0.0.1", 0) as bound:
        app = create_app(settings, clock=clock)
        config = uvicorn.Config(
            app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)

        async def serve() -> None:
            found["loop"] = asyncio.get_running_loop()
            async with app.router.lifespan_context(app):
                started.set()
                await server.serve(sockets=[bound])

        def work() -> None:
            try:
                asyncio.run(serve())
            except BaseException as error:  # noqa: BLE001 - told to the thread that waits
                found["error"] = error
            started.set()

        thread = threading.Thread(target=work, name="service", daemon=True)
        thread.start()
        assert started.wait(STARTING_S_MAX), "the service does not start"
        try:
            if "error" not in found:
                yield Service(app, url_of("127.0.0.1", bound), found["loop"])
        finally:
            server.should_exit = True
            thread.join(STARTING_S_MAX)
        if "error" in found:
            raise found["error"]


def settings_on(database_url: str, data_dir: Path, **more: Any) -> Settings:
    """Make the settings of a service on a database that is there."""
    return Settings(database_url=SecretStr(database_url), data_dir=data_dir, **more)
