"""Group commit on a real PostgreSQL: outcomes, keys, two writers, lost connections, full queues, the end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import msgspec
import psycopg
import pytest
from eventsourcing.persistence import StoredEvent

from domain.billing.accounts import deposit
from domain.errors import (
    ForbiddenError,
    IdempotencyKeyReusedError,
    InsufficientFundsError,
    InvalidIdempotencyKeyError,
    NotCanonicalError,
    NotFoundError,
    OverloadedError,
    RecordTooLargeError,
    ShuttingDownError,
)
from domain.ledger import Answer, Caller, Commit, Redo
from ops.runtime import Runtime, open_runtime
from ops.settings import Settings
from tests.real.log.world import (
    Add,
    Checked,
    Copy,
    OpenTally,
    States,
    Wire,
    add,
    body,
    check_database,
    copy_total,
    give,
    member,
    open_tally,
    pay,
    refuse,
    settings_for,
)

MIA = member("acme")

Story = Callable[[Runtime, States], Awaitable[None]]


def run(settings: Settings, story: Story) -> Checked:
    """Open a runtime, live through a story, and check what it left."""

    async def live() -> None:
        states = States()
        async with open_runtime(settings, states) as rt:
            await story(rt, states)

    asyncio.run(live())
    assert settings.database_url
    return check_database(settings.database_url.get_secret_value())


async def outcome(answer: Awaitable[Answer]) -> Answer | Exception:
    try:
        return await answer
    except Exception as error:  # noqa: BLE001  (the kind of failure is what is looked at)
        return error


async def in_one_batch(rt: Runtime, states: States, *asked: Awaitable[Any]) -> list[Any]:
    """Let commands gather behind a stopped writer, so that one batch takes them all."""
    held = states.hold()
    first = asyncio.create_task(rt.ledger.act(open_tally, OpenTally(), MIA))
    await held.reached()
    tasks = [asyncio.create_task(outcome(a)) for a in asked]
    for _ in range(400):
        await asyncio.sleep(0.001)
        if len(rt.recorder._queue) >= len(tasks):
            break
    held.release()
    await first
    return await asyncio.gather(*tasks)


# --------------------------------------------------------------------------- large and small


def test_one_command_of_50_000_events_works_beside_small_ones(settings: Settings) -> None:
    async def story(rt: Runtime, states: States) -> None:
        await rt.ledger.act(open_tally, OpenTally(name="big"), MIA)
        big = rt.ledger.act(add, Add(name="big", times=50_000), MIA, key="big")
        small = (rt.ledger.act(open_tally, OpenTally(), MIA) for _ in range(30))
        answers = await asyncio.gather(big, *small)
        assert answers[0].event_count == 50_000
        assert body(answers[0])["total"] == 50_000
        assert (await rt.ledger.act(add, Add(name="big", times=50_000), MIA, key="big")).repeated

    assert run(settings, story).size == 50_031


def test_positions_are_given_in_the_order_of_versions(settings: Settings) -> None:
    answers: list[Answer] = []

    async def story(rt: Runtime, states: States) -> None:
        await rt.ledger.act(open_tally, OpenTally(name="hot"), MIA)

        async def writer() -> None:
            for _ in range(10):
                answers.append(await rt.ledger.act(add, Add(name="hot", times=3), MIA))

        await asyncio.gather(*(writer() for _ in range(40)))

    checked = run(settings, story)
    assert checked.size == 1 + 40 * 10 * 3
    by_position = sorted(answers, key=lambda a: a.position or 0)
    assert [a.position for a in by_position] == list(range(1, checked.size, 3))
    assert [body(a)["version"] for a in by_position] == list(range(4, checked.size + 1, 3))
    assert all(r["data"]["seen"] == n for n, r in enumerate(checked.records[1:]))


# --------------------------------------------------------------------------- outcomes of one batch


def test_every_command_of_a_batch_has_its_own_outcome(settings: Settings) -> None:
    async def story(rt: Runtime, states: States) -> None:
        await give(rt.ledger, "acme", "10")
        await give(rt.ledger, "beta", "1")
        before = len(states.seen)
        outcomes = await in_one_batch(
            rt,
            states,
            pay(rt.ledger, "acme", "beta", "6", key="a"),
            pay(rt.ledger, "acme", "beta", "6", key="b"),
            rt.ledger.act(refuse, Add(name="x"), MIA, key="c"),
            rt.ledger.act(open_tally, OpenTally(name="t"), MIA),
            pay(rt.ledger, "acme", "beta", "4"),
            rt.ledger.act(open_tally, OpenTally(name="\u0000"), MIA),
            rt.ledger.act(add, Add(name="t"), MIA),
        )
        assert [type(o) for o in outcomes] == [
            Answer, InsufficientFundsError, NotFoundError, Answer, Answer, NotCanonicalError, Answer,
        ]  # fmt: skip
        assert states.seen[before:].count(1) == 2
        assert (await rt.reader.balance("wallet.acme.USD")).balance_nano == 0

    run(settings, story)


def test_of_two_commits_that_claim_one_version_the_first_wins_and_neighbours_are_untouched(
    settings: Settings,
) -> None:
    async def story(rt: Runtime, states: States) -> None:
        row = None

        def spy(commit: Commit) -> None:
            nonlocal row
            row = commit.rows[0]
            original(commit)

        original = rt.recorder.submit
        rt.ledger._log.submit = spy
        await rt.ledger.act(open_tally, OpenTally(name="one"), MIA)
        rt.ledger._log.submit = original
        assert row is not None
        rivals = [Commit([msgspec.structs.replace(row, stream="tally/x")]) for _ in range(3)] + [
            Commit([row])
        ]

        async def sent(commit: Commit) -> Any:
            rt.recorder.submit(commit)
            assert commit.future is not None
            await commit.future
            return type(commit.error) if commit.error else commit.position

        outcomes = await in_one_batch(
            rt, states, *map(sent, rivals), rt.ledger.act(open_tally, OpenTally(), MIA)
        )
        assert outcomes[0] == 2
        assert outcomes[1:4] == [Redo] * 3
        assert isinstance(outcomes[4], Answer)

    async def live() -> None:
        states = States()
        async with open_runtime(settings, states) as rt:
            await story(rt, states)

    asyncio.run(live())


def test_a_command_the_database_refuses_leaves_no_trace_in_the_balances_of_others(settings: Settings) -> None:
    async def story(rt: Runtime, states: States) -> None:
        await give(rt.ledger, "acme", "1")
        broken = [StoredEvent("thing/\u0000", 1, "topic", b"{}")]
        outcomes = await in_one_batch(
            rt, states, give(rt.ledger, "acme", "2"), asyncio.to_thread(rt.recorder.insert_events, broken)
        )
        assert isinstance(outcomes[0], Answer)
        assert isinstance(outcomes[1], Exception)
        await give(rt.ledger, "acme", "4")
        assert (await rt.reader.balance("wallet.acme.USD")).balance_nano == 7_000_000_000

    run(settings, story)


def test_a_record_over_the_limit_and_one_with_a_nul_are_refused_whole(settings: Settings) -> None:
    async def story(rt: Runtime, states: States) -> None:
        await rt.ledger.act(open_tally, OpenTally(name="t"), MIA)
        for note, refusal in (("x\x00y", NotCanonicalError), ("é" * 32_768, RecordTooLargeError)):
            command = Add.model_construct(name="t", count=1, times=2, note=note)
            for _ in range(2):
                with pytest.raises(refusal):
                    await rt.ledger.act(add, command, MIA, key=f"k{len(note)}")
        assert body(await rt.ledger.act(add, Add(name="t"), MIA))["version"] == 2
        limit = Add.model_construct(name="t", count=1, times=1, note="")
        fits = 65_535 - len((await rt.reader.at(1)).record)
        answer = await rt.ledger.act(add, limit.model_copy(update={"note": "n" * fits}), MIA)
        assert len((await rt.reader.at(answer.position)).record) == 65_535

    run(settings, story)


# --------------------------------------------------------------------------- remembered keys


def test_a_repeated_key_hears_the_same_answer_also_after_a_restart(settings: Settings) -> None:
    first: list[Answer] = []

    async def story(rt: Runtime, states: States) -> None:
        await give(rt.ledger, "acme", "5", key="in")
        for _ in range(3):
            first.append(await give(rt.ledger, "acme", "5", key="x"))

    run(settings, story)
    checked = run(settings, story)
    assert checked.balances["wallet.acme.USD"] == 10_000_000_000
    assert {a.body for a in first} == {first[0].body}
    assert {(a.position, a.event_count) for a in first} == {(first[0].position, first[0].event_count)}
    assert [a.repeated for a in first] == [False, True, True, True, True, True]


def test_a_refusal_is_remembered_though_the_command_would_succeed_by_now(settings: Settings) -> None:
    async def story(rt: Runtime, states: States) -> None:
        await give(rt.ledger, "acme", "1", key="seed")
        await give(rt.ledger, "beta", "1", key="seed2")
        refusals = []
        for _ in range(2):
            with pytest.raises(InsufficientFundsError) as refused:
                await pay(rt.ledger, "acme", "beta", "500", key="much")
            refusals.append(refused.value.problem())
            await give(rt.ledger, "acme", "1000", key="rich")
        assert refusals[0] == refusals[1]
        await pay(rt.ledger, "acme", "beta", "500", key="again")

    run(settings, story)
    run(settings, story)


def test_another_body_under_a_key_is_refused_and_the_first_answer_stands(settings: Settings) -> None:
    async def story(rt: Runtime, states: States) -> None:
        first = await give(rt.ledger, "acme", "1", key="k")
        with pytest.raises(IdempotencyKeyReusedError):
            await give(rt.ledger, "acme", "2", key="k")
        with pytest.raises(IdempotencyKeyReusedError):
            await give(rt.ledger, "beta", "1", key="k")
        assert (await give(rt.ledger, "acme", "1", key="k")).body == first.body

    run(settings, story)


def test_keys_of_different_callers_never_meet(settings: Settings) -> None:
    callers = [Caller("ab", "c", frozenset()), Caller("b", "ca", frozenset()), Caller("a", "bc", frozenset())]
    callers += [Caller("ab", "c2", frozenset()), Caller("ab2", "c", frozenset())]

    async def story(rt: Runtime, states: States) -> None:
        answers = [await rt.ledger.act(open_tally, OpenTally(), caller, key="k") for caller in callers]
        assert len({a.body for a in answers}) == len(callers)
        assert not any(a.repeated for a in answers)

    assert run(settings, story).size == len(callers)


def test_a_key_is_1_to_255_visible_characters_and_a_forbidden_command_is_not_remembered(
    settings: Settings,
) -> None:
    async def story(rt: Runtime, states: States) -> None:
        for key in ("", "x" * 256, "é", "a\nb"):
            with pytest.raises(InvalidIdempotencyKeyError):
                await give(rt.ledger, "acme", "1", key=key)
        with pytest.raises(ForbiddenError):
            await rt.ledger.act(deposit, Add(name="x"), MIA, key="k")

    assert run(settings, story).size == 0


@pytest.fixture
def restless_threads() -> Iterator[None]:
    """Let threads take turns as often as they can, so that what can fall between two steps does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless_threads")
def test_a_storm_of_repeated_keys_on_one_aggregate_leaves_its_stream_whole(settings: Settings) -> None:
    async def asked(rt: Runtime, keys: Iterable[str]) -> list[Answer]:
        return await asyncio.gather(*(rt.ledger.act(add, Add(name="hot"), MIA, key=key) for key in keys))

    async def story(rt: Runtime, states: States) -> None:
        await rt.ledger.act(open_tally, OpenTally(name="hot"), MIA, key="open")
        known = [f"k{n}" for n in range(200)]
        first = await asked(rt, known)
        for turn in range(6):
            rt.ledger._remembered.clear()
            mixed = [key for n, key in enumerate(known) for key in (key, f"new-{turn}-{n}")]
            answers = await asked(rt, mixed)
            assert [a.position for a in answers[::2]] == [a.position for a in first]
            assert not any(a.repeated for a in answers[1::2])

    checked = run(settings, story)
    assert checked.size == 1 + 200 * 7


# --------------------------------------------------------------------------- two writers on one log


def run_two(settings: Settings, story: Callable[[Runtime, Runtime], Awaitable[None]]) -> Checked:
    """Open two runtimes on one database, as two processes would."""

    async def live() -> None:
        async with open_runtime(settings) as one, open_runtime(settings) as two:
            await story(one, two)

    asyncio.run(live())
    assert settings.database_url
    return check_database(settings.database_url.get_secret_value())


def test_two_writers_under_contention_lose_no_update_and_leave_no_gap(settings: Settings) -> None:
    async def story(one: Runtime, two: Runtime) -> None:
        await one.ledger.act(open_tally, OpenTally(name="hot"), MIA)

        async def writer(rt: Runtime, n: int) -> None:
            for k in range(15):
                await rt.ledger.act(add, Add(name="hot"), MIA, key=f"{n}-{k}")
                await rt.ledger.act(open_tally, OpenTally(), MIA)

        await asyncio.gather(*(writer(rt, n) for n, rt in enumerate([one, two] * 8)))

    checked = run_two(settings, story)
    assert checked.size == 1 + 16 * 15 * 2
    hot = [r for r in checked.records if r["stream"] == "tally/hot"]
    assert [r["data"]["seen"] for r in hot[1:]] == list(range(16 * 15))


def test_a_decision_on_what_another_writer_has_changed_is_made_again(settings: Settings) -> None:
    async def story(one: Runtime, two: Runtime) -> None:
        await one.ledger.act(open_tally, OpenTally(name="source"), MIA)
        for n in range(1, 25):
            await one.ledger.act(copy_total, Copy(source="source", name=f"warm-{n}"), MIA)
            await two.ledger.act(add, Add(name="source"), MIA)
            copied = await one.ledger.act(copy_total, Copy(source="source", name=f"copy-{n}"), MIA)
            assert body(copied)["total"] == n

    run_two(settings, story)


def test_what_another_writer_wrote_is_noticed_while_idle(settings: Settings) -> None:
    async def story(one: Runtime, two: Runtime) -> None:
        await one.ledger.act(open_tally, OpenTally(name="x"), MIA)
        assert one.ledger.resident("tally/x") is not None
        await two.ledger.act(add, Add(name="x"), MIA)
        for _ in range(1_000):
            if one.ledger.resident("tally/x") is None:
                break
            await asyncio.sleep(0.01)
        assert one.ledger.resident("tally/x") is None

    run_two(settings, story)


def test_one_key_sent_to_two_writers_has_one_effect_and_one_answer(settings: Settings) -> None:
    async def story(one: Runtime, two: Runtime) -> None:
        for n in range(20):
            sent = (give(rt.ledger, "acme", "1", key=f"k{n}") for rt in (one, two, one, two))
            answers = await asyncio.gather(*sent)
            assert len({a.body for a in answers}) == 1
            assert len({a.position for a in answers}) == 1

    assert run_two(settings, story).balances["wallet.acme.USD"] == 20_000_000_000


def test_two_writers_never_overdraw_one_wallet(settings: Settings) -> None:
    paid: list[Any] = []

    async def story(one: Runtime, two: Runtime) -> None:
        await give(one.ledger, "acme", "30")
        await give(one.ledger, "beta", "1")
        asked = (outcome(pay((one, two)[n % 2].ledger, "acme", "beta", "1")) for n in range(60))
        paid.extend(await asyncio.gather(*asked))

    checked = run_two(settings, story)
    assert sum(isinstance(p, Answer) for p in paid) == 30
    assert {type(p) for p in paid} == {Answer, InsufficientFundsError}
    assert checked.balances["wallet.acme.USD"] == 0


# --------------------------------------------------------------------------- connections lost while writing


def backend_of(rt: Runtime) -> int:
    conn = rt.recorder._committer._conn
    assert conn is not None
    return conn.info.backend_pid


def end_backend(url: str, pid: int) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


# A small batch is one statement: it has no state between execution and commit.
@pytest.mark.parametrize(
    ("mode", "state"),
    [(m, s) for m in ("small", "bulk", "locked") for s in (1, 2, 3, 4) if (m, s) != ("small", 3)],
)
def test_a_backend_that_dies_at_any_state_costs_nothing_and_doubles_nothing(
    settings: Settings, mode: str, state: int
) -> None:
    times = 400 if mode == "bulk" else 2

    async def story(rt: Runtime, states: States) -> None:
        await rt.ledger.act(open_tally, OpenTally(name="t"), MIA)
        for n in range(1, 4):
            if mode == "locked":
                rt.recorder._committer._locked_batches = 8
            states.at(state, lambda: end_backend(rt.url, backend_of(rt)))
            answers = await asyncio.gather(
                rt.ledger.act(add, Add(name="t", times=times), MIA, key=f"k{n}"),
                give(rt.ledger, "acme", "1", key=f"m{n}"),
            )
            assert body(answers[0])["total"] == n * times
        assert (await rt.reader.balance("wallet.acme.USD")).balance_nano == 3_000_000_000

    checked = run(settings, story)
    assert [r["data"]["seen"] for r in checked.records if r["type"] == "tally.added"] == list(
        range(3 * times)
    )


@pytest.mark.parametrize("lost", ["request", "reply"])
@pytest.mark.parametrize("mode", ["small", "bulk", "keys only", "locked"])
def test_a_commit_whose_outcome_is_unknown_happens_exactly_once(
    database_url: str, settings: Settings, lost: str, mode: str
) -> None:
    wire = Wire(database_url)
    wired = settings_for(wire.url, settings.data_dir)

    async def story(rt: Runtime, states: States) -> None:
        await rt.ledger.act(open_tally, OpenTally(name="t"), MIA)
        for n in range(4):
            if mode == "locked":
                rt.recorder._committer._locked_batches = 8
            at = 2 if mode in ("small", "keys only") else 3
            states.at(at, lambda: wire.lose(lost))
            if mode == "keys only":
                with pytest.raises(NotFoundError):
                    await rt.ledger.act(refuse, Add(name=f"x{n}"), MIA, key=f"k{n}")
            else:
                command = Add(name="t", times=300 if mode == "bulk" else 1)
                answer = await rt.ledger.act(add, command, MIA, key=f"k{n}")
                assert not answer.repeated
                assert (await rt.ledger.act(add, command, MIA, key=f"k{n}")).body == answer.body
        assert wire.cut_count == 4

    async def live() -> None:
        states = States()
        async with open_runtime(wired, states) as rt:
            await story(rt, states)

    asyncio.run(live())
    wire.close()
    checked = check_database(database_url)
    assert checked.size == {"small": 5, "locked": 5, "bulk": 1_201, "keys only": 1}[mode]
    with psycopg.connect(database_url) as conn:
        assert conn.execute("SELECT count(*) FROM keys").fetchone() == (4,)


def test_a_command_without_a_key_whose_reply_is_lost_happens_once_though_the_database_stays_away_for_a_while(
    database_url: str, settings: Settings
) -> None:
    wire = Wire(database_url)

    async def live() -> None:
        states = States()
        async with open_runtime(settings_for(wire.url, settings.data_dir), states) as rt:
            await rt.ledger.act(open_tally, OpenTally(name="t"), MIA)
            committer = rt.recorder._committer
            connect, refusals = committer._connect, iter(range(3))

            def away_at_first() -> psycopg.Connection[Any]:
                if next(refusals, None) is not None:
                    raise psycopg.OperationalError("away")
                return connect()

            def lose() -> None:
                wire.lose("reply")
                committer._connect = away_at_first

            states.at(2, lose)
            answer = await rt.ledger.act(add, Add(name="t"), MIA)
            assert answer.position == 1
            assert next(refusals, None) is None

    asyncio.run(live())
    wire.close()
    assert check_database(database_url).size == 2


# --------------------------------------------------------------------------- limits and the end


def test_a_full_queue_refuses_with_overloaded_and_forgets_nothing_it_took(settings: Settings) -> None:
    small = settings.model_copy(update={"queue_commands_max": 5})

    async def story(rt: Runtime, states: States) -> None:
        held = states.hold()
        first = asyncio.create_task(rt.ledger.act(open_tally, OpenTally(name="first"), MIA))
        await held.reached()
        tasks = [asyncio.create_task(outcome(rt.ledger.act(open_tally, OpenTally(), MIA))) for _ in range(12)]
        while sum(t.done() for t in tasks) < 7:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        held.release()
        await first
        kinds = [type(o) for o in await asyncio.gather(*tasks)]
        assert kinds == [Answer] * 5 + [OverloadedError] * 7
        await rt.ledger.act(add, Add(name="first"), MIA)

    assert run(small, story).size == 7


def test_a_refused_command_of_a_full_queue_can_be_sent_again_under_its_key(settings: Settings) -> None:
    small = settings.model_copy(update={"queue_commands_max": 1})

    async def story(rt: Runtime, states: States) -> None:
        await rt.ledger.act(open_tally, OpenTally(name="t"), MIA)
        held = states.hold()
        first = asyncio.create_task(rt.ledger.act(add, Add(name="t"), MIA))
        await held.reached()
        second = asyncio.create_task(rt.ledger.act(add, Add(name="t"), MIA))
        await asyncio.sleep(0)
        for _ in range(2):
            with pytest.raises(OverloadedError):
                await rt.ledger.act(open_tally, OpenTally(), MIA, key="k")
        held.release()
        await asyncio.gather(first, second)
        assert not (await rt.ledger.act(open_tally, OpenTally(), MIA, key="k")).repeated

    assert run(small, story).size == 4


def test_closing_finishes_the_queue_and_refuses_what_comes_after(settings: Settings) -> None:
    async def story(rt: Runtime, states: States) -> None:
        held = states.hold()
        tasks = [asyncio.create_task(rt.ledger.act(open_tally, OpenTally(), MIA)) for _ in range(20)]
        await held.reached()
        closing = asyncio.create_task(asyncio.to_thread(rt.recorder.close))
        while not rt.recorder._closing:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        with pytest.raises(ShuttingDownError):
            await rt.ledger.act(open_tally, OpenTally(), MIA)
        held.release()
        positions = sorted(a.position for a in await asyncio.gather(*tasks) if a.position is not None)
        assert positions == list(range(20))
        await closing

    assert run(settings, story).size == 20


def test_a_caller_who_goes_away_changes_nothing_for_the_others(settings: Settings) -> None:
    async def story(rt: Runtime, states: States) -> None:
        await rt.ledger.act(open_tally, OpenTally(name="t"), MIA)
        held = states.hold()
        first = asyncio.create_task(rt.ledger.act(add, Add(name="t"), MIA))
        await held.reached()
        gone = [asyncio.create_task(rt.ledger.act(add, Add(name="t"), MIA)) for _ in range(5)]
        last = asyncio.create_task(rt.ledger.act(add, Add(name="t"), MIA))
        await asyncio.sleep(0.01)
        for task in gone:
            task.cancel()
        held.release()
        await asyncio.gather(first, *gone, return_exceptions=True)
        assert body(await last)["version"] == 8
        assert body(await rt.ledger.act(add, Add(name="t"), MIA))["total"] == 8

    run(settings, story)
