"""What the gate promises, whatever log is behind it.

A test module subclasses GatePromises and says how a world is opened: in memory (tests/unit/test_ledger.py) or on
PostgreSQL (tests/real/log/test_gate_promises.py).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import wraps
from typing import Any, Protocol

import msgspec
import pytest

from domain.billing.accounts import Deposit, TransferMoney, deposit, ensure, transfer
from domain.book import payment
from domain.errors import (
    ConflictError,
    ForbiddenError,
    IdempotencyKeyReusedError,
    InsufficientFundsError,
    InvalidIdempotencyKeyError,
    LedgerError,
    NotFoundError,
    OverloadedError,
    RecordTooLargeError,
    VersionMismatchError,
)
from domain.fields import Command
from domain.ledger import Answer, Caller, Case, Ledger, Redo, allow
from domain.log.records import Aggregate, Event, MoneyEvent, Record, address_text, digest
from domain.values import Money


class World(Protocol):
    """An open ledger on some log."""

    ledger: Ledger

    def pause(self) -> None:
        """Let commits wait."""

    def go_on(self) -> None:
        """Commit what has waited."""

    def another_gate(self) -> Ledger:
        """Give a gate on the same log that remembers nothing, as after a restart."""

    def another_node(self) -> AbstractAsyncContextManager[World]:
        """Open the same ledger a second time, as another process would."""

    async def records(self) -> list[bytes]:
        """Read the whole log."""

    async def load(self, stream: str) -> Aggregate:
        """Read an aggregate as the log last committed it."""

    async def balances(self) -> dict[str, int]:
        """Read all balances in nano-units."""


OpenWorld = Callable[..., AbstractAsyncContextManager[World]]


def promise(test: Any = None, /, **options: Any) -> Any:
    """Run an async test in a world of its own."""
    if test is None:
        return lambda test: promise(test, **options)

    @wraps(test)
    def run(self: Any, open_world: OpenWorld) -> None:
        async def scene() -> None:
            async with asyncio.timeout(60), open_world(**options) as world:
                await test(self, world)

        asyncio.run(scene())

    # pytest reads the parameters of what it calls.
    run.__wrapped__ = lambda self, open_world: None  # type: ignore[attr-defined]
    return run


@contextmanager
def held_up(world: World) -> Iterator[None]:
    """Let commits wait for as long as this lasts."""
    world.pause()
    try:
        yield
    finally:
        world.go_on()


# --------------------------------------------------------------------------- a small context of its own


class Jar(Aggregate):
    """A count of beans. A sealed jar takes no more; sealing costs money."""

    KIND = "jar"

    beans: int = 0
    is_sealed: bool = False

    class Opened(Event, frozen=True):
        TOPIC = "jar.opened"

        def apply(self, jar: Jar, record: Record) -> None:
            jar.beans = 0

    class Added(Event, frozen=True):
        TOPIC = "jar.added"

        count: int
        seen: int
        note: str = ""

        def apply(self, jar: Jar, record: Record) -> None:
            jar.beans += self.count

    class Sealed(MoneyEvent, frozen=True):
        TOPIC = "jar.sealed"

        def apply(self, jar: Jar, record: Record) -> None:
            jar.is_sealed = True


class Named(Command):
    """Name a jar."""

    name: str


class Add(Command):
    """Put beans into a jar."""

    name: str
    count: int = 1
    note: str = ""


class Seal(Command):
    """Seal a jar for a fee."""

    name: str
    fee: Money


class Pair(Command):
    """Name two jars."""

    name: str
    other: str


class Names(Command):
    """Name many jars."""

    names: list[str]


def open_jar(case: Case, command: Named) -> Jar:
    """Open a jar, unless it is open."""
    return case.find(Jar, command.name) or case.create(Jar, command.name, Jar.Opened())


def open_all(case: Case, command: Names) -> Opened:
    """Open the jars that are not open, looking at all of them in one go; say which were."""
    case.look(Jar, command.names)
    missing = [name for name in command.names if case.find(Jar, name) is None]
    for name in missing:
        case.create(Jar, name, Jar.Opened())
    return Opened(missing)


class Opened(msgspec.Struct):
    """An answer that is no aggregate."""

    opened: list[str]


def create_jar(case: Case, command: Named) -> Jar:
    """Open a jar without looking."""
    return case.create(Jar, command.name, Jar.Opened())


def add(case: Case, command: Add) -> Jar:
    """Put beans into an open jar."""
    jar = case.get(Jar, command.name)
    case.match_version(jar)
    if jar.is_sealed:
        raise ConflictError("the jar is sealed", beans=jar.beans)
    return case.emit(jar, Jar.Added(count=command.count, seen=jar.beans, note=command.note))


def seal(case: Case, command: Seal) -> Jar:
    """Seal a jar; the fee is paid with it."""
    jar = case.get(Jar, command.name)
    currency = command.fee.currency
    entry = payment(
        ensure(case, "wallet", case.caller.tenant, currency),
        ensure(case, "fees", "platform", currency),
        command.fee,
    )
    return case.emit(jar, Jar.Sealed(money=[entry]))


def pour_over(case: Case, command: Pair) -> Jar:
    """Put as many beans into one jar as the other has; the other is only looked at."""
    seen = case.get(Jar, command.other).beans
    jar = case.get(Jar, command.name)
    return case.emit(jar, Jar.Added(count=seen, seen=jar.beans))


def open_if_alone(case: Case, command: Pair) -> Jar:
    """Open a jar if the other one does not exist."""
    if case.find(Jar, command.other) is not None:
        raise ConflictError("the other jar is open")
    return case.create(Jar, command.name, Jar.Opened())


def peek(case: Case, command: Named) -> Jar:
    """Look, and change nothing."""
    return case.get(Jar, command.name)


def stumble(case: Case, command: Named) -> Jar:
    """Change a jar, then fall over a bug."""
    jar = case.get(Jar, command.name)
    case.emit(jar, Jar.Added(count=1_000, seen=jar.beans))
    raise ZeroDivisionError


def withdraw_late(case: Case, command: Named) -> Jar:
    """Change a jar, then refuse."""
    jar = case.get(Jar, command.name)
    case.emit(jar, Jar.Added(count=1_000, seen=jar.beans))
    raise ConflictError("not today")


def add_what_was_gathered(case: Case, command: Named, *, gathered: Jar) -> Jar:
    """Add a bean, if what was gathered is what is known here."""
    jar = case.get(Jar, command.name)
    if jar.version != gathered.version:
        raise Redo
    return case.emit(jar, Jar.Added(count=1, seen=gathered.beans))


@allow("operator")
def guarded(case: Case, command: Named) -> Jar:
    """Open a jar, as operators may."""
    return open_jar(case, command)


ANNA = Caller("anna", "acme", frozenset(["owner"]))
OLGA = Caller("olga", "platform", frozenset(["operator", "billing"]))


def read(answer: Answer) -> dict[str, Any]:
    """Read an answer."""
    return msgspec.json.decode(answer.body)


async def spoken(coroutine: Coroutine[Any, Any, Answer]) -> dict[str, Any]:
    """Hear an answer or a refusal, as a client would."""
    try:
        return read(await coroutine)
    except LedgerError as refusal:
        return msgspec.json.decode(msgspec.json.encode(refusal.problem()))


async def beans(world: World, name: str = "j") -> list[tuple[int, int]]:
    """List what was put into a jar: how much, and what its decider saw there before."""
    records = [msgspec.json.decode(record) for record in await world.records()]
    return [
        (r["data"]["count"], r["data"]["seen"])
        for r in records
        if r["stream"] == f"jar/{name}" and r["type"] == "jar.added"
    ]


async def check_log(world: World) -> list[dict[str, Any]]:
    """Hold every stream to its chain; give the records."""
    ends: dict[str, tuple[int, str | None]] = {}
    raw = await world.records()
    records = [msgspec.json.decode(one) for one in raw]
    for data, record in zip(raw, records, strict=True):
        version, address = ends.get(record["stream"], (0, None))
        assert (record["version"], record["previous"]) == (version + 1, address)
        ends[record["stream"]] = (record["version"], address_text(digest(data)))
    for name in [stream.partition("/")[2] for stream in ends if stream.startswith("jar/")]:
        total = 0
        for count, seen in await beans(world, name):
            assert seen == total, "a decision stood on something that is not in the log"
            total += count
    return records


class GatePromises:
    """The promises."""

    # ------------------------------------------------------------------ deciding and committing

    @promise
    async def test_an_answer_says_what_was_written_and_where(self, world):
        first = await world.ledger.act(open_jar, Named(name="j"), ANNA)
        second = await world.ledger.act(
            add, Add(name="j", count=3), ANNA, correlation="trace", causation=address_text(b"\1" * 64)
        )
        assert (first.position, first.event_count, second.position, second.repeated) == (0, 1, 1, False)
        assert (read(second)["beans"], read(second)["version"]) == (3, 2)
        record = (await check_log(world))[1]
        assert (record["actor"], record["tenant"], record["type"]) == ("anna", "acme", "jar.added")
        assert (record["correlation"], record["causation"]) == ("trace", address_text(b"\1" * 64))
        assert record["at"] == read(second)["updated_at"]

    @promise
    async def test_a_command_that_changes_nothing_writes_nothing(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        for use_case in (open_jar, peek):
            again = await world.ledger.act(use_case, Named(name="j"), ANNA)
            assert (again.position, again.event_count, read(again)["version"]) == (None, 0, 1)
        assert len(await world.records()) == 1

    @promise
    async def test_a_busy_aggregate_is_decided_on_what_is_still_on_its_way(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        with held_up(world):
            waiting = [
                asyncio.create_task(world.ledger.act(add, Add(name="j", count=n), ANNA)) for n in range(40)
            ]
            await asyncio.sleep(0)
            assert not any(task.done() for task in waiting)
        answers = [read(answer) for answer in await asyncio.gather(*waiting)]
        assert sorted(answer["version"] for answer in answers) == list(range(2, 42))
        assert len(await check_log(world)) == 41

    @promise
    async def test_what_was_built_on_a_refused_commit_is_decided_again(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        with held_up(world):
            sealing = asyncio.create_task(world.ledger.act(seal, Seal(name="j", fee=usd("5")), ANNA))
            for _ in range(200):
                await asyncio.sleep(0.001)
            looking = asyncio.create_task(world.ledger.act(peek, Named(name="j"), ANNA))
            adding = asyncio.create_task(spoken(world.ledger.act(add, Add(name="j"), ANNA)))
            await asyncio.sleep(0.01)
        with pytest.raises(InsufficientFundsError):
            await sealing
        assert read(await looking)["is_sealed"] is False
        assert (await adding)["beans"] == 1
        assert [r["type"] for r in await check_log(world)] == ["jar.opened", "jar.added"]
        assert await world.balances() == {}

    @promise
    async def test_a_refusal_that_stands_on_a_commit_waits_for_it(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        await world.ledger.act(deposit, Deposit(tenant="acme", amount=usd("9")), OLGA)
        with held_up(world):
            sealing = asyncio.create_task(world.ledger.act(seal, Seal(name="j", fee=usd("5")), ANNA))
            await asyncio.sleep(0.1)
            adding = asyncio.create_task(spoken(world.ledger.act(add, Add(name="j"), ANNA, key="k")))
            await asyncio.sleep(0.01)
            assert not adding.done()
        assert read(await sealing)["is_sealed"] is True
        assert (await adding)["message"] == "the jar is sealed"
        assert (await world.balances())["wallet.acme.USD"] == 4 * 10**9

    @promise
    async def test_a_use_case_that_refuses_or_fails_half_way_leaves_no_trace(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        for use_case, error in ((stumble, ZeroDivisionError), (withdraw_late, ConflictError)):
            with pytest.raises(error):
                await world.ledger.act(use_case, Named(name="j"), ANNA, key=error.__name__)
        with pytest.raises(RecordTooLargeError):
            await world.ledger.act(add, Add.model_construct(name="j", count=1, note="x" * 70_000), ANNA)
        assert read(await world.ledger.act(add, Add(name="j"), ANNA))["beans"] == 1
        assert len(await check_log(world)) == 2

    @promise
    async def test_what_does_not_exist_is_not_found(self, world):
        with pytest.raises(NotFoundError):
            await world.ledger.act(add, Add(name="j"), ANNA)
        assert await world.records() == []
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        assert read(await world.ledger.act(add, Add(name="j"), ANNA))["beans"] == 1

    @promise
    async def test_a_deterministic_id_is_created_once(self, world):
        other = world.another_gate()
        gates = [world.ledger, other] * 10
        answers = await asyncio.gather(*(gate.act(open_jar, Named(name="j"), ANNA) for gate in gates))
        assert sum(answer.event_count for answer in answers) == 1
        assert {read(answer)["version"] for answer in answers} == {1}
        assert len(await check_log(world)) == 1

    @promise
    async def test_creating_what_exists_is_a_conflict(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        with pytest.raises(ConflictError):
            await world.ledger.act(create_jar, Named(name="j"), ANNA)
        assert read(await world.ledger.act(add, Add(name="j"), ANNA))["version"] == 2

    @promise
    async def test_many_are_looked_up_together_and_decided_on_what_is_under_way(self, world):
        for name in ("j0", "j7"):
            await world.ledger.act(open_jar, Named(name=name), ANNA)
        names = [f"j{n}" for n in range(10)]
        with held_up(world):
            pending = asyncio.create_task(world.ledger.act(open_jar, Named(name="j3"), ANNA))
            await asyncio.sleep(0.02)
            asked = [
                asyncio.create_task(world.ledger.act(open_all, Names(names=names), ANNA)) for _ in range(4)
            ]
            await asyncio.sleep(0.02)
        opened = [read(answer)["opened"] for answer in await asyncio.gather(*asked)]
        await pending
        assert opened == [[f"j{n}" for n in (1, 2, 4, 5, 6, 8, 9)], [], [], []]
        assert len(await check_log(world)) == 10

    @promise
    async def test_an_answer_that_is_no_aggregate_is_remembered_like_any_other(self, world):
        first = await world.ledger.act(open_all, Names(names=["a", "b"]), ANNA, key="k")
        again = await world.another_gate().act(open_all, Names(names=["a", "b"]), ANNA, key="k")
        assert (read(first), read(again)) == ({"opened": ["a", "b"]}, {"opened": ["a", "b"]})
        assert (again.repeated, again.position, again.event_count) == (True, 0, 2)

    @promise(resident_max=3)
    async def test_many_looked_up_by_two_nodes_at_once_are_opened_once(self, world):
        names = [f"j{n}" for n in range(20)]
        async with world.another_node() as other:
            asked = [
                node.ledger.act(open_all, Names(names=names[start : start + 12]), ANNA)
                for start in (0, 4, 8)
                for node in (world, other)
            ]
            opened = [name for answer in await asyncio.gather(*asked) for name in read(answer)["opened"]]
        assert sorted(opened) == sorted(names)
        assert len(await check_log(world)) == 20

    @promise(resident_max=2)
    async def test_memory_for_two_aggregates_is_enough(self, world):
        dice = random.Random(7)
        names = [f"j{n}" for n in range(6)]
        await asyncio.gather(*(world.ledger.act(open_jar, Named(name=name), ANNA) for name in names))
        counts = [(dice.choice(names), dice.randrange(10)) for _ in range(120)]
        for start in range(0, 120, 30):
            batch = [Add(name=name, count=count) for name, count in counts[start : start + 30]]
            await asyncio.gather(*(world.ledger.act(add, command, ANNA) for command in batch))
        for name in names:
            expected = sum(count for jar, count in counts if jar == name)
            assert read(await world.ledger.act(peek, Named(name=name), ANNA))["beans"] == expected
        assert len(await check_log(world)) == 126

    @promise
    async def test_a_wallet_never_falls_below_zero_in_a_race(self, world):
        for tenant in ("acme", "bolt"):
            await world.ledger.act(deposit, Deposit(tenant=tenant, amount=usd("10")), OLGA)
        command = TransferMoney(to_tenant="bolt", amount=usd("3"))
        heard = await asyncio.gather(*(spoken(world.ledger.act(transfer, command, ANNA)) for _ in range(12)))
        assert sorted(h.get("code", "paid") for h in heard) == ["insufficient_funds"] * 9 + ["paid"] * 3
        balances = await world.balances()
        assert balances["wallet.acme.USD"] == 10**9
        assert balances["wallet.bolt.USD"] == 19 * 10**9

    # ------------------------------------------------------------------ keys

    @promise
    async def test_a_key_that_was_answered_hears_the_same_answer(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        first = await world.ledger.act(add, Add(name="j", count=2), ANNA, key="k")
        await world.ledger.act(add, Add(name="j", count=5), ANNA, key="l")
        for gate in (world.ledger, world.another_gate(), world.another_gate()):
            again = await gate.act(add, Add(name="j", count=2), ANNA, key="k")
            assert again == first._replace(repeated=True)
        assert await beans(world) == [(2, 0), (5, 2)]

    @promise
    async def test_a_refusal_is_remembered_under_its_key(self, world):
        refused = await spoken(world.ledger.act(add, Add(name="j"), ANNA, key="k"))
        assert refused["code"] == "not_found"
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        for gate in (world.ledger, world.another_gate()):
            assert await spoken(gate.act(add, Add(name="j"), ANNA, key="k")) == refused
        assert read(await world.ledger.act(add, Add(name="j"), ANNA, key="l"))["beans"] == 1

    @promise
    async def test_a_refusal_by_the_book_is_remembered_under_its_key(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        command = Seal(name="j", fee=usd("5"))
        refused = await spoken(world.ledger.act(seal, command, ANNA, key="k"))
        assert refused["code"] == "insufficient_funds"
        await world.ledger.act(deposit, Deposit(tenant="acme", amount=usd("9")), OLGA)
        for gate in (world.ledger, world.another_gate()):
            assert await spoken(gate.act(seal, command, ANNA, key="k")) == refused
        assert read(await world.ledger.act(seal, command, ANNA, key="l"))["is_sealed"] is True

    @promise
    async def test_a_key_stands_for_one_request(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA, key="k")
        await world.ledger.act(add, Add(name="j"), ANNA, key="l", if_match=1)
        for gate in (world.ledger, world.another_gate()):
            for use_case, command, key, if_match in (
                (open_jar, Named(name="i"), "k", None),
                (peek, Named(name="j"), "k", None),
                (add, Add(name="j", count=2), "l", 1),
                (add, Add(name="j"), "l", 2),
                (add, Add(name="j"), "l", None),
            ):
                with pytest.raises(IdempotencyKeyReusedError):
                    await gate.act(use_case, command, ANNA, key=key, if_match=if_match)
        assert len(await check_log(world)) == 2

    @promise
    async def test_keys_of_different_callers_never_meet(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        callers = [
            ("a", "bc"),
            ("ab", "c"),
            ("abc", ""),
            ("", "abc"),
            ("c", "ab"),
            ("1:a", "b"),
            ("a1:", "b"),
        ]
        for subject, tenant in callers:
            caller = Caller(subject, tenant, frozenset())
            assert not (await world.ledger.act(add, Add(name="j"), caller, key="k")).repeated
            assert (await world.ledger.act(add, Add(name="j"), caller, key="k")).repeated
        assert len(await beans(world)) == len(callers)

    @promise
    async def test_racers_with_one_key_have_one_effect_and_hear_one_answer(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        gates = [world.ledger, world.ledger, world.another_gate()] * 8
        answers = await asyncio.gather(*(gate.act(add, Add(name="j"), ANNA, key="k") for gate in gates))
        assert {(a.body, a.position, a.event_count) for a in answers} == {(answers[0].body, 1, 1)}
        assert [answer.repeated for answer in answers].count(False) == 1
        assert await beans(world) == [(1, 0)]

    @promise
    async def test_racers_with_one_key_hear_one_refusal(self, world):
        gates = [world.ledger, world.ledger, world.another_gate()] * 8
        heard = await asyncio.gather(*(spoken(gate.act(add, Add(name="j"), ANNA, key="k")) for gate in gates))
        assert all(one == heard[0] for one in heard)
        assert await world.records() == []

    @pytest.mark.parametrize("key", ["", "x" * 256, "naïve", "a\nb", "a\0", "\x7f"])
    def test_a_key_is_short_visible_ascii(self, open_world, key):
        async def scene() -> None:
            async with open_world() as world:
                with pytest.raises(InvalidIdempotencyKeyError):
                    await world.ledger.act(open_jar, Named(name="j"), ANNA, key=key)
                assert await world.records() == []

        asyncio.run(scene())

    # ------------------------------------------------------------------ callers who go away, queues that are full

    @promise
    async def test_a_caller_who_goes_away_loses_nothing_and_doubles_nothing(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        for steps in range(12):
            going = asyncio.create_task(world.ledger.act(add, Add(name="j"), ANNA, key=f"k{steps}"))
            for _ in range(steps):
                await asyncio.sleep(0)
            going.cancel()
            again = await world.ledger.act(add, Add(name="j"), ANNA, key=f"k{steps}")
            assert read(again)["beans"] == steps + 1
        assert await beans(world) == [(1, n) for n in range(12)]
        await check_log(world)

    @promise
    async def test_others_go_on_where_a_caller_went_away_before_the_commit(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        with held_up(world):
            tasks = [
                asyncio.create_task(world.ledger.act(add, Add(name="j"), ANNA, key=str(n))) for n in range(6)
            ]
            await asyncio.sleep(0.02)
            tasks[1].cancel()
            tasks[4].cancel()
            await asyncio.sleep(0.02)
            late = asyncio.create_task(world.ledger.act(add, Add(name="j"), ANNA))
            await asyncio.sleep(0.02)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert read(await late)["beans"] == 7
        repeated = [await world.ledger.act(add, Add(name="j"), ANNA, key=str(n)) for n in range(6)]
        assert all(answer.repeated for answer in repeated)
        assert await beans(world) == [(1, n) for n in range(7)]

    @promise(queue_commands_max=2)
    async def test_a_full_queue_refuses_and_blocks_nobody_afterwards(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        with held_up(world):
            tasks = []
            for n in range(8):
                tasks.append(asyncio.create_task(world.ledger.act(add, Add(name="j"), ANNA, key=str(n))))
                await asyncio.sleep(0.01)
        heard = await asyncio.gather(*tasks, return_exceptions=True)
        turned_away = [n for n, one in enumerate(heard) if isinstance(one, OverloadedError)]
        assert turned_away
        assert len(turned_away) < 8
        for n in turned_away:
            assert not (await world.ledger.act(add, Add(name="j"), ANNA, key=str(n))).repeated
        assert await beans(world) == [(1, n) for n in range(8)]

    # ------------------------------------------------------------------ versions and roles

    @promise
    async def test_if_match_holds_a_command_to_a_version(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        assert read(await world.ledger.act(add, Add(name="j"), ANNA, if_match=1))["version"] == 2
        for stale in (0, 1, 3):
            with pytest.raises(VersionMismatchError) as refused:
                await world.ledger.act(add, Add(name="j"), ANNA, if_match=stale)
            assert refused.value.facts == {"version": 2, "if_match": stale}
        racers = [spoken(world.ledger.act(add, Add(name="j"), ANNA, if_match=2)) for _ in range(8)]
        codes = [one.get("code", "added") for one in await asyncio.gather(*racers)]
        assert sorted(codes) == ["added", *["version_mismatch"] * 7]

    @promise
    async def test_a_use_case_names_who_may_call_it(self, world):
        with pytest.raises(ForbiddenError):
            await world.ledger.act(guarded, Named(name="j"), ANNA, key="k")
        assert await world.records() == []
        assert read(await world.ledger.act(guarded, Named(name="j"), OLGA))["version"] == 1

    # ------------------------------------------------------------------ other processes

    @promise
    async def test_two_processes_change_one_aggregate_in_turn(self, world):
        async with world.another_node() as other:
            for node in (world, other) * 3:
                await node.ledger.act(open_jar, Named(name="j"), ANNA)
                await node.ledger.act(add, Add(name="j"), ANNA)
            await asyncio.gather(*(n.ledger.act(add, Add(name="j"), ANNA) for n in (world, other) * 10))
        assert await beans(world) == [(1, n) for n in range(26)]
        await check_log(world)

    @promise
    async def test_a_decision_does_not_stand_on_what_another_process_has_changed(self, world):
        async with world.another_node() as other:
            for name in ("a", "b"):
                await world.ledger.act(open_jar, Named(name=name), ANNA)
                await world.ledger.act(add, Add(name=name), ANNA)
            await other.ledger.act(add, Add(name="a", count=10), ANNA)
            answer = await world.ledger.act(pour_over, Pair(name="b", other="a"), ANNA)
        assert read(answer)["beans"] == 12

    @promise
    async def test_a_decision_does_not_stand_on_an_absence_that_another_process_has_ended(self, world):
        async with world.another_node() as other:
            with held_up(world):
                waiting = asyncio.create_task(
                    spoken(world.ledger.act(open_if_alone, Pair(name="a", other="b"), ANNA))
                )
                await asyncio.sleep(0.1)
                await other.ledger.act(open_jar, Named(name="b"), ANNA)
            assert (await waiting).get("message") == "the other jar is open"
        assert [r["stream"] for r in await check_log(world)] == ["jar/b"]

    @promise
    async def test_what_was_gathered_anew_is_believed_over_what_is_held(self, world):
        async with world.another_node() as other:
            await world.ledger.act(open_jar, Named(name="j"), ANNA)
            await other.ledger.act(add, Add(name="j", count=10), ANNA)
            rounds = 0

            async def gather() -> dict[str, Any]:
                nonlocal rounds
                rounds += 1
                return {"gathered": await world.load("jar/j")}

            answer = await world.ledger.act(add_what_was_gathered, Named(name="j"), ANNA, gather=gather)
        assert read(answer)["beans"] == 11
        assert rounds <= 4

    @promise
    async def test_what_is_forgotten_is_read_again(self, world):
        await world.ledger.act(open_jar, Named(name="j"), ANNA)
        with held_up(world):
            waiting = asyncio.create_task(world.ledger.act(add, Add(name="j"), ANNA))
            await asyncio.sleep(0.01)
            world.ledger.forget(["jar/j", "jar/unknown"], world.ledger.epoch)
            late = asyncio.create_task(world.ledger.act(add, Add(name="j"), ANNA))
            await asyncio.sleep(0.01)
        assert [read(await task)["beans"] for task in (waiting, late)] == [1, 2]
        world.ledger.forget(None, world.ledger.epoch)
        assert read(await world.ledger.act(add, Add(name="j"), ANNA))["beans"] == 3


def usd(amount: str) -> Money:
    """Make dollars."""
    return Money.parse(amount, "USD")
