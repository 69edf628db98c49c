"""The real application behind a real socket: uvicorn on a free port of this machine, in a thread of the tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import uvicorn

from api.app import create_app
from api.serving import listen, url_of
from domain.ledger import Caller
from ops.runtime import Runtime
from ops.settings import Settings

T = TypeVar("T")

STARTED_S_MAX = 60.0
STOPPED_S_MAX = 60.0


class Served:
    """A service that answers at `url`, and its inside for tests that need to reach past HTTP."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.app = create_app(settings)
        self.url = ""
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="served", daemon=True)

    @property
    def runtime(self) -> Runtime:
        """The open ledger behind the service."""
        opened: Runtime = self.app.state.runtime
        return opened

    def start(self) -> None:
        """Serve from a thread; return once a request would be answered."""
        self._thread.start()
        assert self._ready.wait(STARTED_S_MAX), "the service did not start"
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Finish what was begun and close."""
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join(STOPPED_S_MAX)
        assert not self._thread.is_alive(), "the service did not stop"
        if self._failure is not None:
            raise self._failure

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop of the service."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def token(self, caller: Caller) -> str:
        """Make a token for a caller."""
        return str(self.app.state.issuer.mint(caller.subject, caller.tenant, sorted(caller.roles)))

    def client(self, caller: Caller | None = None) -> httpx.Client:
        """Make a client that speaks for a caller, or for nobody."""
        headers = {"authorization": f"Bearer {self.token(caller)}"} if caller else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)

    def _serve(self) -> None:
        try:
            config = uvicorn.Config(self.app, lifespan="off", log_config=None, access_log=False, ws="none")
            # The loop the product runs on, which also sends small answers at once.
            with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
                runner.run(self._serving(config))
        except BaseException as failure:  # noqa: BLE001 - handed to whoever started or stops the service
            self._failure = failure
        finally:
            self._ready.set()

    async def _serving(self, config: uvicorn.Config) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = _Server(config)
        with listen("127.0.0.1", 0) as bound:
            self.url = url_of("127.0.0.1", bound)
            async with self.app.router.lifespan_context(self.app):
                self._ready.set()
                await self._server.serve(sockets=[bound])


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to pytest."""
        yield


@contextmanager
def serving(settings: Settings) -> Iterator[Served]:
    """Run a service for the length of a block."""
    service = Served(settings)
    service.start()
    try:
        yield service
    finally:
        service.stop()
