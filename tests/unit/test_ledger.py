"""The gate on a log in memory: what it promises on every log, and races that only a log in memory can be led into."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

pytest.register_assert_rewrite("tests.unit.gate_promises")

from domain.errors import ConflictError, UnavailableError  # noqa: E402
from domain.ledger import ATTEMPTS_MAX, Case, Ledger, Redo  # noqa: E402
from domain.log.records import Aggregate  # noqa: E402
from ops.clock import Clock, next_id  # noqa: E402
from tests.unit.gate_promises import (  # noqa: E402
    ANNA,
    Add,
    GatePromises,
    Jar,
    Named,
    Names,
    Pair,
    World,
    add,
    beans,
    check_log,
    open_all,
    open_if_alone,
    open_jar,
    peek,
    promise,
    read,
    spoken,
)
from tests.unit.memory_log import MemoryLog, MemoryStore  # noqa: E402


class MemoryWorld:
    """A ledger on a log in memory."""

    def __init__(self, store: MemoryStore, resident_max: int = 10_000, **options: Any) -> None:
        self.log = MemoryLog(store, **options)
        self.pause, self.go_on = self.log.pause, self.log.go_on
        self._resident_max = resident_max
        self.ledger = self.another_gate()
        self.log.on_foreign = self.ledger.forget

    def another_gate(self) -> Ledger:
        return Ledger(self.log, clock=Clock(), next_id=next_id, resident_max=self._resident_max)

    @asynccontextmanager
    async def another_node(self) -> AsyncIterator[World]:
        yield MemoryWorld(self.log.store)

    async def records(self) -> list[bytes]:
        return [logged.row.record for logged in self.log.store.logged]

    async def load(self, stream: str) -> Aggregate:
        return (await self.log.load([stream]))[stream].aggregate

    async def balances(self) -> dict[str, int]:
        return {name: account.balance_nano for name, account in self.log.store.book.accounts.items()}


@pytest.fixture
def open_world() -> Callable[..., AbstractAsyncContextManager[World]]:
    """Say how a world in memory is opened."""

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[World]:
        yield MemoryWorld(MemoryStore(), **options)

    return opened


class TestGateOnALogInMemory(GatePromises):
    pass


class TestRaces:
    @promise
    async def test_commands_that_wait_together_are_committed_together(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        await asyncio.gather(*(world.ledger.act(add, Add(name="j"), ANNA) for _ in range(64)))
        assert world.log.batches == [1, 64]

    @promise
    async def test_an_outage_is_not_remembered_as_an_answer(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        world.log.outage = UnavailableError("the log cannot be written now")
        with pytest.raises(UnavailableError):
            await world.ledger.act(add, Add(name="j"), ANNA, key="k")
        answer = await world.ledger.act(add, Add(name="j"), ANNA, key="k")
        assert (read(answer)["beans"], answer.repeated) == (1, False)

    @promise
    async def test_a_command_that_always_loses_gives_up_in_the_end(self, world):
        decisions = 0

        def lose(case: Case, command: Named) -> Jar:
            nonlocal decisions
            decisions += 1
            raise Redo

        with pytest.raises(ConflictError):
            await world.ledger.act(lose, Named(name="j"), ANNA)
        assert decisions == ATTEMPTS_MAX

    @promise
    async def test_what_changes_while_it_is_read_is_read_again(self, world):
        """Another process writes after the reading began, and the gate hears of it before the reading ends."""
        async with world.another_node() as other:
            await other.ledger.act(open_jar, Named(name="j"), ANNA)
            changed = await other.load("jar/j")
            assert isinstance(changed, Jar)
            in_between = [add]

            def meanwhile(streams: Any) -> None:
                if in_between:
                    writing = asyncio.get_running_loop().create_task(
                        other.ledger.act(in_between.pop(), Add(name="j", count=10), ANNA)
                    )
                    writing.add_done_callback(lambda _: reading.set())

            reading = asyncio.Event()
            load = world.log.load

            async def slow_load(streams: Any) -> Any:
                found = await load(streams)
                await reading.wait()
                world.ledger.forget({"jar/j"}, world.ledger.epoch + 1)
                world.log.load = load
                return found

            world.log.on_load = meanwhile
            world.log.load = slow_load
            seen = read(await world.ledger.act(peek, Named(name="j"), ANNA))
        assert seen["beans"] == 10

    @promise
    async def test_one_of_many_that_is_opened_while_they_are_read_is_not_opened_again(self, world):
        load = world.log.load

        async def slow_load(streams: Any) -> Any:
            found = await load(streams)
            if len(streams) > 1:
                world.log.load = load
                await world.ledger.act(open_jar, Named(name="b"), ANNA)
            return found

        world.log.load = slow_load
        answer = await world.ledger.act(open_all, Names(names=["a", "b", "c"]), ANNA)
        assert read(answer) == {"opened": ["a", "c"]}
        assert len(await check_log(world)) == 3
        assert not world.ledger._watched

    @promise(resident_max=1)
    async def test_an_absence_that_ended_while_something_else_was_read_is_none(self, world):
        """The jar that was absent is opened and pushed out of memory while the decision reads another one."""
        for name in ("x", "y"):
            await world.ledger.act(open_jar, Named(name=name), ANNA)

        def look_twice(case: Case, command: Pair) -> Jar:
            if case.find(Jar, command.other) is not None:
                raise ConflictError("the other jar is open")
            return case.emit(case.get(Jar, command.name), Jar.Added(count=1, seen=0))

        load = world.log.load

        async def slow_load(streams: Any) -> Any:
            found = await load(streams)
            if streams == ["jar/x"]:
                world.log.load = load
                await world.ledger.act(open_jar, Named(name="b"), ANNA)
                await world.ledger.act(add, Add(name="y"), ANNA)
            return found

        world.log.load = slow_load
        heard = await spoken(world.ledger.act(look_twice, Pair(name="x", other="b"), ANNA))
        assert heard["message"] == "the other jar is open"
        assert await beans(world, "x") == []

    @promise
    async def test_nothing_is_watched_when_nobody_decides(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        await asyncio.gather(
            spoken(world.ledger.act(add, Add(name="nowhere"), ANNA)),
            spoken(world.ledger.act(open_if_alone, Pair(name="a", other="b"), ANNA)),
        )
        assert world.ledger._watched == {}
        await check_log(world)
