"""What becomes of a period that was billed: late, corrected and moved usage, each in a document that says so.

Usage goes through the gate as it does in service, and an auditor who shares no code with billing checks every document
(auditor.py). Billing is run twice each time: the second run writes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import wraps
from typing import Any

from domain.billing.accounts import Deposit, deposit
from domain.billing.customers import Enroll, enroll
from domain.billing.invoices import Invoice
from domain.billing.price_books import PublishPrices, publish_prices
from domain.billing.usage import CorrectUsage, MeterUsage, correct_usage, meter_usage, usage_name
from domain.values import Money, moment_text
from tests.unit.billing.commerce_world import Commerce
from tests.unit.persona.renting_maker import CLOCK, TELLER

JANUARY, FEBRUARY = "2026-01-10T08:00:00.000000Z", "2026-02-10T08:00:00.000000Z"
CHARGES = [
    {"id": "base", "meter": "period", "price": {"model": "flat", "price": "10"}},
    {"id": "out", "meter": "tokens_out", "price": {"model": "per_unit", "price": "0.02", "per": "1000"}},
]


class Closing(Commerce):
    """A customer in Berlin, billed by the month: 10.00 and 0.02 for a thousand tokens."""

    async def begin(self) -> None:
        """Publish prices and enroll the customer at the local midnight with which the year begins."""
        self.now = "2025-12-31T23:00:00.000000Z"
        prices = {"book": "plain", "currency": "USD", "charges": CHARGES}
        await self.do(publish_prices, PublishPrices.model_validate(prices), TELLER)
        plan = {
            "tenant": "renters",
            "book": "platform.plain",
            "zone": "Europe/Berlin",
            "anchor": "2026-01-01",
        }
        await self.do(enroll, Enroll.model_validate(plan), TELLER)
        await self.do(deposit, Deposit(tenant="renters", amount=Money.parse("500", "USD")), TELLER)

    async def use(self, name: str, thousands: int, at: str) -> None:
        """Take a reading in, when it occurs or later."""
        self.now = max(self.now, at)
        reading = {
            "source": "gateway", "event_id": name, "occurred_at": at, "provider": "p", "model": "m",
            "tokens_in": 0, "tokens_out": thousands * 1_000, "tenant": "renters",
        }  # fmt: skip
        taken = await self.do(meter_usage, MeterUsage.model_validate({"readings": [reading]}), CLOCK)
        assert not taken["rejected"]

    async def put_right(self, name: str, replaces: int = 1, **members: Any) -> None:
        """Correct a reading."""
        named = {
            "usage_id": usage_name("renters", "gateway", name),
            "replaces": replaces,
            "reason": "miscounted",
        }
        await self.do(correct_usage, CorrectUsage.model_validate(named | members), CLOCK)

    async def month_ends(self, month: int) -> list[Invoice]:
        """Let the clock go to a month's second day, and run billing; give the documents that are new."""
        return await self.billed(moment_text(datetime(2026, month, 2, tzinfo=UTC)))

    async def billed(self, at: str) -> list[Invoice]:
        """Run billing at a moment, twice; give the documents that are new."""
        before = {one.number for one in self.all_of(Invoice)}
        self.now = max(self.now, at)
        await self.run_billing()
        size = len(self.store.logged)
        await self.run_billing()
        assert len(self.store.logged) == size, "billing again changed something"
        self.audit()
        self.auditor.check_all_billed()
        return [one for one in self.all_of(Invoice) if one.number not in before]

    def left(self) -> list[tuple[str, str]]:
        """List the customer's credits: what is left of each, and which document it came by."""
        grants = [self.state("grant", s.id) for s in self.store.states.values() if s.kind == "grant"]
        return [(one["left"]["amount"], one["reference"]) for one in grants]


def story(told: Callable[[Closing], Awaitable[None]]) -> Callable[[], None]:
    """Tell a story of January, in which 1,000 thousand tokens were used and billed."""

    @wraps(told)
    def run() -> None:
        async def scene() -> None:
            world = Closing()
            await world.begin()
            await world.use("one", 1_000, JANUARY)
            (january,) = await world.month_ends(2)
            assert said(january) == ("INV-renters-000001", "invoice", None, "30.00", "0.00", "paid")
            await told(world)

        asyncio.run(scene())

    # Else a test runner would ask who gives the world.
    del run.__wrapped__  # type: ignore[attr-defined]
    return run


def said(one: Invoice) -> tuple[str, str, str | None, str, str, str]:
    """Say what a document is: its number, kind and what it corrects, what is owed and due by it, and its status."""
    assert one.owed is not None
    assert one.due is not None
    return one.number, one.kind, one.corrects, one.owed.amount, one.due.amount, one.status


def total(one: Invoice) -> str:
    """Say what a period comes to, by a document."""
    return one.made.total.amount


@story
async def test_late_usage_makes_a_correction_of_its_own_period_and_leaves_the_invoice_as_it_is(world):
    first = world.one(Invoice, "inv-renters-000001")
    await world.use("late", 500, JANUARY)
    (later,) = await world.billed("2026-02-03T00:00:00.000000Z")
    assert said(later) == ("INV-renters-000002", "correction", first.id, "10.00", "0.00", "paid")
    assert (later.period_start, later.period_end) == (first.period_start, first.period_end)
    assert (total(first), total(later)) == ("30.00", "40.00")
    now = world.one(Invoice, first.id)
    assert (now.corrected_by, now.bill, now.evidence) == (later.id, first.bill, first.evidence)
    assert [(e and e.events) for e in later.evidence] == [None, 2]
    assert (await world.month_ends(3))[0].made.subtotal.amount == "10.00"


@story
async def test_usage_that_came_too_late_waits_for_more_of_its_kind_for_as_long_as_the_grace(world):
    await world.use("late", 500, JANUARY)
    await world.use("later", 500, JANUARY)
    await world.run_billing()
    assert len(world.all_of(Invoice)) == 1
    (both,) = await world.billed("2026-02-02T01:00:00.000000Z")
    assert both.owed.amount == "20.00"


@story
async def test_corrected_usage_makes_a_correction_for_the_difference(world):
    await world.put_right("one", tokens_out=1_250_000)
    (later,) = await world.billed("2026-02-03T00:00:00.000000Z")
    assert (said(later)[1:4], total(later)) == (("correction", "inv-renters-000001", "5.00"), "35.00")


@story
async def test_usage_taken_back_becomes_credit_that_the_next_invoice_burns(world):
    await world.put_right("one", tokens_out=0, requests=0)
    (back,) = await world.billed("2026-02-03T00:00:00.000000Z")
    assert said(back)[1:] == ("correction", "inv-renters-000001", "-20.00", "0.00", "paid")
    assert world.left() == [("20.00", back.id)]
    (february,) = await world.month_ends(3)
    assert (total(february), said(february)[3:]) == ("10.00", ("10.00", "0.00", "paid"))
    assert world.left() == [("10.00", back.id)]


@story
async def test_usage_moved_to_another_closed_period_is_given_back_in_one_and_owed_in_the_other(world):
    await world.month_ends(3)
    await world.put_right("one", occurred_at=FEBRUARY)
    january, february = sorted(
        await world.billed("2026-03-03T00:00:00.000000Z"), key=lambda d: d.period_start
    )
    assert (said(january)[2:4], total(january)) == (("inv-renters-000001", "-20.00"), "10.00")
    assert (said(february)[2:4], total(february)) == (("inv-renters-000002", "20.00"), "30.00")


@story
async def test_usage_moved_into_the_open_period_is_given_back_now_and_billed_with_that_period(world):
    await world.put_right("one", occurred_at="2026-02-01T12:00:00.000000Z")
    (january,) = await world.billed("2026-02-03T00:00:00.000000Z")
    assert january.owed.amount == "-20.00"
    (february,) = await world.month_ends(3)
    assert (total(february), february.due.amount, world.left()[0][0]) == ("30.00", "0.00", "0.00")


@story
async def test_a_moment_decides_to_which_side_of_local_midnight_usage_belongs(world):
    await world.use("inside", 100, "2026-01-31T22:59:59.999999Z")
    await world.use("outside", 200, "2026-01-31T23:00:00.000000Z")
    (january,) = await world.billed("2026-02-03T00:00:00.000000Z")
    assert january.owed.amount == "2.00"
    assert total((await world.month_ends(3))[0]) == "14.00"


@story
async def test_a_correction_is_corrected_in_its_turn_and_each_says_what_it_stands_for(world):
    await world.use("late", 500, JANUARY)
    (second,) = await world.billed("2026-02-03T00:00:00.000000Z")
    await world.put_right("late", tokens_out=0)
    (third,) = await world.billed("2026-02-04T00:00:00.000000Z")
    await world.put_right("late", replaces=2, tokens_out=750_000)
    (fourth,) = await world.billed("2026-02-05T00:00:00.000000Z")
    documents = (second, third, fourth)
    assert [one.corrects for one in documents] == ["inv-renters-000001", second.id, third.id]
    assert [one.owed.amount for one in documents] == ["10.00", "-10.00", "15.00"]
    assert [total(one) for one in documents] == ["40.00", "30.00", "45.00"]
    for earlier in ("inv-renters-000001", second.id, third.id):
        assert await world.correct(earlier) == "nothing_to_correct"


@story
async def test_what_was_put_right_and_comes_to_the_same_is_a_document_of_nothing(world):
    await world.put_right("one", tokens_in=5)
    (same,) = await world.billed("2026-02-03T00:00:00.000000Z")
    assert said(same)[1:] == ("correction", "inv-renters-000001", "0.00", "0.00", "paid")
    first = world.one(Invoice, "inv-renters-000001")
    assert (same.bill.lines, same.evidence != first.evidence) == (first.bill.lines, True)


@story
async def test_the_same_reading_sent_again_corrects_nothing(world):
    await world.use("one", 1_000, JANUARY)
    assert await world.billed("2026-02-03T00:00:00.000000Z") == []
