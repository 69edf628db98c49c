"""The eventsourcing library on our log, beside the gate: repository, snapshots, notification log, subscriptions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import pytest
from eventsourcing.application import AggregateNotFoundError
from eventsourcing.persistence import InfrastructureFactoryError, IntegrityError

from domain.billing.accounts import Payment
from domain.book import payment
from domain.errors import InsufficientFundsError, NotFoundError
from domain.log.records import decode, encode_state
from ops.application import LedgerApplication
from ops.runtime import Runtime, open_runtime
from ops.settings import Settings
from ops.verify import verify_database
from tests.real.log.world import (
    Add,
    OpenTally,
    Tally,
    add,
    body,
    check_database,
    give,
    member,
    open_tally,
    usd,
)

AT = "2030-01-01T00:00:00.000000Z"
MIA = member("acme")


class Tallies(LedgerApplication):
    """An application that keeps a snapshot of every fifth version."""

    snapshotting_intervals: ClassVar[dict[type[Any], int]] = {Tally: 5}


def run(settings: Settings, story: Callable[[Runtime, Tallies], Awaitable[None]]) -> None:
    """Open a runtime with the library's application on it, live through a story, and check what it left."""

    async def live() -> None:
        async with open_runtime(settings) as rt:
            await story(rt, Tallies(rt.recorder))
            assert verify_database(rt.url, rt.signer.key.text).all_findings == []

    asyncio.run(live())
    assert settings.database_url
    check_database(settings.database_url.get_secret_value())


async def written_by_the_gate(rt: Runtime, name: str, times: int) -> None:
    await rt.ledger.act(open_tally, OpenTally(name=name), MIA)
    for n in range(1, times + 1):
        await rt.ledger.act(add, Add(name=name, count=n), MIA)


def test_the_repository_reads_what_the_gate_wrote_at_every_version(settings: Settings) -> None:
    async def story(rt: Runtime, app: Tallies) -> None:
        await written_by_the_gate(rt, "one", 7)
        totals = [app.repository.get("tally/one", version=v).total for v in range(1, 9)]
        assert totals == [0, 1, 3, 6, 10, 15, 21, 28]
        state = body(await rt.ledger.act(add, Add(name="one", count=0), MIA))
        assert state["version"] == app.repository.get("tally/one").version == 9
        assert "tally/one" in app.repository
        assert "tally/two" not in app.repository
        with pytest.raises(AggregateNotFoundError):
            app.repository.get("tally/two")

    run(settings, story)


def test_the_gate_goes_on_with_what_the_library_saved(settings: Settings) -> None:
    async def story(rt: Runtime, app: Tallies) -> None:
        draft = app.start(Tally, "one", "acme")
        draft.emit(Tally.Opened(start=40), actor="lib", at=AT)
        draft.emit(Tally.Added(count=1, seen=40), actor="lib", at=AT)
        recordings = await asyncio.to_thread(app.save, draft)
        assert [r.notification.id for r in recordings] == [1, 2]
        state = body(await rt.ledger.act(add, Add(name="one"), MIA))
        assert (state["total"], state["version"]) == (42, 3)
        stored = (await rt.reader.load(["tally/one"]))["tally/one"]
        assert encode_state(app.repository.get("tally/one")) == encode_state(stored.aggregate)

    run(settings, story)


def test_a_gate_that_holds_the_aggregate_hears_what_the_library_saved(settings: Settings) -> None:
    async def story(rt: Runtime, app: Tallies) -> None:
        await written_by_the_gate(rt, "one", 1)
        for n in range(2, 12):
            draft = app.draft("tally/one")
            draft.emit(Tally.Added(count=100, seen=draft.aggregate.total), actor="lib", at=AT)
            await asyncio.to_thread(app.save, draft)
            state = body(await rt.ledger.act(add, Add(name="one"), MIA))
            assert state["version"] == 2 * n
            assert state["total"] == (n - 1) * 100 + n

    run(settings, story)


def test_a_draft_that_was_overtaken_is_refused_whole(settings: Settings) -> None:
    async def story(rt: Runtime, app: Tallies) -> None:
        await written_by_the_gate(rt, "one", 1)
        late, fresh = app.draft("tally/one"), app.start(Tally, "two", "acme")
        late.emit(Tally.Added(count=5, seen=1), actor="lib", at=AT)
        fresh.emit(Tally.Opened(start=0), actor="lib", at=AT)
        await rt.ledger.act(add, Add(name="one"), MIA)
        with pytest.raises(IntegrityError):
            await asyncio.to_thread(app.save, fresh, late)
        assert "tally/two" not in app.repository
        assert app.repository.get("tally/one").total == 2

    run(settings, story)


def test_a_record_that_does_not_name_its_previous_one_is_refused(settings: Settings) -> None:
    async def story(rt: Runtime, app: Tallies) -> None:
        await written_by_the_gate(rt, "one", 2)
        orphan = app.draft("tally/one")
        orphan._previous = bytes(64)
        record = orphan.emit(Tally.Added(count=5, seen=3), actor="lib", at=AT)
        with pytest.raises(IntegrityError):
            await asyncio.to_thread(app.save, record)

    run(settings, story)


def test_snapshots_are_taken_and_the_repository_starts_from_them(settings: Settings) -> None:
    async def story(rt: Runtime, app: Tallies) -> None:
        draft = app.start(Tally, "one", "acme")
        draft.emit(Tally.Opened(start=0), actor="lib", at=AT)
        for n in range(11):
            draft.emit(Tally.Added(count=n, seen=draft.aggregate.total), actor="lib", at=AT)
        await asyncio.to_thread(app.save, draft)
        assert app.snapshots is not None
        assert [s.originator_version for s in app.snapshots.get("tally/one")] == [5, 10]
        plain = LedgerApplication(rt.recorder)
        plain.repository.snapshot_store = None
        for version in (1, 4, 5, 6, 10, 11, 12):
            fast, slow = (
                app.repository.get("tally/one", version=version),
                plain.repository.get("tally/one", version=version),
            )
            assert encode_state(fast) == encode_state(slow)
        app.take_snapshot("tally/one")
        assert next(iter(app.snapshots.get("tally/one", desc=True, limit=1))).originator_version == 12
        assert encode_state(app.repository.get("tally/one")) == encode_state(draft.aggregate)

    run(settings, story)


def test_the_notification_log_is_the_log_in_its_order(settings: Settings) -> None:
    async def story(rt: Runtime, app: Tallies) -> None:
        await asyncio.gather(*(written_by_the_gate(rt, f"t{n}", 3) for n in range(10)))
        section = app.notification_log["1,1000"]
        assert [n.id for n in section.items] == list(range(1, 41))
        stored = await rt.reader.span(0, 40)
        assert [n.state for n in section.items] == [s.record for s in stored]
        opened = app.notification_log.select(1, 100, topics=["tally.opened"])
        assert [decode(n.state).type for n in opened] == ["tally.opened"] * 10

    run(settings, story)


def test_a_subscription_hears_the_gate_and_the_library_in_log_order(settings: Settings) -> None:
    async def story(rt: Runtime, app: Tallies) -> None:
        await written_by_the_gate(rt, "one", 2)
        heard: list[int] = []

        def listen() -> None:
            with app.recorder.subscribe(gt=1) as subscription:
                for notification in subscription:
                    heard.append(notification.id)
                    if len(heard) == 13:
                        return

        listening = asyncio.create_task(asyncio.to_thread(listen))
        await written_by_the_gate(rt, "two", 5)
        draft = app.draft("tally/one")
        for _ in range(5):
            draft.emit(Tally.Added(count=1, seen=0), actor="lib", at=AT)
        await asyncio.to_thread(app.save, draft)
        await asyncio.wait_for(listening, 20)
        assert heard == list(range(2, 15))

    run(settings, story)


def test_money_saved_through_the_library_passes_the_same_book(settings: Settings) -> None:
    async def story(rt: Runtime, app: Tallies) -> None:
        await give(rt.ledger, "acme", "10")
        await give(rt.ledger, "beta", "1")

        def pay(name: str, amount: str) -> None:
            money = usd(amount)
            entry = payment("wallet.acme.USD", "wallet.beta.USD", money)
            draft = app.start(Payment, name, "acme")
            posted = Payment.Posted(
                source="wallet.acme.USD", target="wallet.beta.USD", amount=money, memo="", money=[entry]
            )
            draft.emit(posted, actor="lib", at=AT)
            app.save(draft)

        await asyncio.to_thread(pay, "transfer-1", "7")
        with pytest.raises(InsufficientFundsError):
            await asyncio.to_thread(pay, "transfer-2", "7")
        assert (await rt.reader.balance("wallet.acme.USD")).balance_nano == 3_000_000_000
        assert "transfer/transfer-2" not in app.repository

    run(settings, story)


def test_the_environment_of_the_process_is_not_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSISTENCE_MODULE", "eventsourcing.popo")
    monkeypatch.setenv("AGGREGATE_CACHE_MAXSIZE", "10")

    async def story(rt: Runtime, app: Tallies) -> None:
        assert app.recorder is rt.recorder
        assert app.repository.cache is None
        assert "PERSISTENCE_MODULE" not in app.env
        for asked in (app.factory.tracking_recorder, app.factory.process_recorder):
            with pytest.raises(InfrastructureFactoryError):
                asked()
        app.close()
        await written_by_the_gate(rt, "one", 1)
        with pytest.raises(NotFoundError):
            await rt.ledger.act(add, Add(name="zero"), MIA)

    run(settings, story)
