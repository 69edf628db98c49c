"""The gate on the recorder and PostgreSQL keeps the promises it keeps on a log in memory."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("tests.unit.gate_promises")

from domain.ledger import Ledger  # noqa: E402
from domain.log.records import Aggregate  # noqa: E402
from ops.clock import next_id  # noqa: E402
from ops.runtime import Runtime, _GateLog, open_runtime  # noqa: E402
from tests.real.log.world import check_database, settings_for  # noqa: E402
from tests.unit.gate_promises import GatePromises, World  # noqa: E402


class Brake:
    """Stops the writer before it looks at a batch."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()

    def __call__(self, state: int) -> None:
        if state == 1:
            self._open.wait()

    def pause(self) -> None:
        self._open.clear()

    def go_on(self) -> None:
        self._open.set()


class RealWorld:
    """A ledger on a database."""

    def __init__(self, runtime: Runtime, brake: Brake) -> None:
        self._runtime = runtime
        self.pause, self.go_on = brake.pause, brake.go_on
        self.ledger = runtime.ledger

    def another_gate(self) -> Ledger:
        runtime = self._runtime
        return Ledger(_GateLog(runtime.recorder, runtime.reader), clock=runtime.clock, next_id=next_id)

    @asynccontextmanager
    async def another_node(self) -> AsyncIterator[World]:
        brake = Brake()
        async with open_runtime(self._runtime.settings, observe=brake) as runtime:
            yield RealWorld(runtime, brake)

    async def records(self) -> list[bytes]:
        size = await self._runtime.reader.size()
        return [(await self._runtime.reader.at(position)).record for position in range(size)]

    async def load(self, stream: str) -> Aggregate:
        return (await self._runtime.reader.load([stream]))[stream].aggregate

    async def balances(self) -> dict[str, int]:
        return check_database(self._runtime.url).balances


@pytest.fixture
def open_world(database_url: str, tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[World]]:
    """Say how a world on a database is opened; at its end the whole database is checked."""

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[World]:
        brake = Brake()
        async with open_runtime(settings_for(database_url, tmp_path, **options), observe=brake) as runtime:
            try:
                yield RealWorld(runtime, brake)
            finally:
                brake.go_on()
        check_database(database_url)

    return opened


class TestGateOnTheRecorder(GatePromises):
    pass
