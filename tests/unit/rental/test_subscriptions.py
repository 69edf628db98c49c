"""Subscriptions and purchases: every second is paid for once, and nobody loses access because nobody looked."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from domain.errors import InsufficientFundsError, LedgerError
from domain.fields import Command
from domain.ledger import Case, allow
from domain.rental import purchases, subscriptions
from domain.rental.purchases import Purchase
from domain.rental.settling import fee_nano
from domain.rental.subscriptions import GRACE_S, Plan, Subscription
from domain.values import Money, moment_of, moment_text
from tests.unit.market.market_maker import SERVICE, usd
from tests.unit.rental.rental_maker import SALE
from tests.unit.rental.test_rentals import RENTER, Rentals, amount

MONTHLY = Plan(SALE, usd("31"), "month", "UTC", "2026-01-01")
DEARER = msgspec.structs.replace(MONTHLY, price=usd("62"))
DAY_S = 86_400


class Name(Command):
    """Name what is meant."""

    id: str = ""


@allow()
def subscribe(case: Case, command: Name) -> Subscription:
    """Subscribe by the month."""
    return subscriptions.start_subscription(case, MONTHLY)


@allow()
def renew(case: Case, command: Name) -> Subscription:
    """Renew what is due."""
    return subscriptions.renew_subscription(case, command.id)


@allow()
def fail(case: Case, command: Name) -> Subscription:
    """Write a failed renewal down."""
    return subscriptions.fail_renewal(case, command.id, "insufficient_funds")


@allow()
def cancel(case: Case, command: Name) -> Subscription:
    """Let it run out."""
    return subscriptions.cancel_at_end(case, case.get(Subscription, command.id))


@allow()
def resume(case: Case, command: Name) -> Subscription:
    """Let it go on after all."""
    return subscriptions.resume_subscription(case, case.get(Subscription, command.id))


@allow()
def stop(case: Case, command: Name) -> Subscription:
    """End it now."""
    return subscriptions.end_subscription(case, case.get(Subscription, command.id), "cancelled")


@allow()
def upgrade(case: Case, command: Name) -> Subscription:
    """Change to the dearer plan."""
    return subscriptions.change_subscription(case, case.get(Subscription, command.id), DEARER)


@allow()
def buy(case: Case, command: Name) -> Purchase:
    """Buy for thirty dollars."""
    return purchases.make_purchase(case, SALE, usd("30"))


@allow()
def settle(case: Case, command: Name) -> Purchase:
    """Let a timer look at a purchase."""
    return purchases.settle_purchase(case, command.id)


@allow()
def give_back(case: Case, command: Name) -> Purchase:
    """Give it back."""
    return purchases.refund_purchase(case, case.get(Purchase, command.id), "returned")


class Subscriptions(Rentals):
    """A market with subscribers."""

    async def begun(self, use_case: Any) -> str:
        """Begin something, and give its name."""
        return str((await self.do(use_case, Name(), RENTER))["id"])

    async def step(self, what: Any, name: str) -> str:
        """Carry a step out; give "ok" or the code."""
        return await self.heard(what, Name(id=name), SERVICE)

    async def timer(self, name: str) -> str:
        """Do what the timer does: renew, or write down why not."""
        try:
            await self.do(renew, Name(id=name), SERVICE)
        except InsufficientFundsError as refusal:
            await self.do(fail, Name(id=name), SERVICE)
            return refusal.code
        except LedgerError as refusal:
            return refusal.code
        return "ok"

    def one(self, name: str) -> Subscription:
        """Read a subscription."""
        return msgspec.json.decode(self.store.states[f"subscription/{name}"].state, type=Subscription)


def play(story: Any, money: str = "100") -> None:
    """Play a story in a market of its own."""

    async def run() -> None:
        told = Subscriptions()
        await told.pay_in(money)
        await story(told)

    asyncio.run(run())


class TestASubscription:
    def test_reserves_a_period_and_pays_it_when_it_is_over(self):
        async def story(told: Subscriptions) -> None:
            name = await told.begun(subscribe)
            assert told.wallet("acme") == (amount("100"), amount("31"))
            assert await told.timer(name) == "renewal_not_due"
            told.wait(31 * DAY_S)
            assert await told.timer(name) == "ok"
            assert told.wallet("acme") == (amount("69"), amount("31"))
            assert told.one(name).period_end == "2026-03-01T00:00:00.000000Z"

        play(story)

    def test_that_starts_late_in_a_period_reserves_the_rest_of_it(self):
        async def story(told: Subscriptions) -> None:
            told.wait(21 * DAY_S)
            await told.begun(subscribe)
            assert told.wallet("acme")[1] == amount("10")

        play(story)

    def test_stopped_early_is_paid_for_the_time_that_was_used(self):
        async def story(told: Subscriptions) -> None:
            name = await told.begun(subscribe)
            told.wait(10.5 * DAY_S)
            await told.step(stop, name)
            assert told.wallet("acme") == (amount("89.50"), 0)
            assert await told.step(stop, name) == "subscription_ended"
            assert not told.one(name).is_usable(told.now)

        play(story)

    def test_cancelled_runs_to_its_end_and_not_a_moment_longer(self):
        async def story(told: Subscriptions) -> None:
            name = await told.begun(subscribe)
            await told.step(cancel, name)
            one = told.one(name)
            assert one.is_usable(moment_text(moment_of(one.period_end) - timedelta(microseconds=1)))
            assert not one.is_usable(one.period_end)
            await told.step(resume, name)
            assert told.one(name).is_usable(one.period_end)
            await told.step(cancel, name)
            told.wait(40 * DAY_S)
            await told.timer(name)
            assert (told.one(name).status, told.wallet("acme")) == ("ended", (amount("69"), 0))

        play(story)

    def test_changed_pays_the_old_price_until_then_and_reserves_the_new_one_for_the_rest(self):
        async def story(told: Subscriptions) -> None:
            name = await told.begun(subscribe)
            told.wait(21 * DAY_S)
            await told.step(upgrade, name)
            assert told.wallet("acme") == (amount("79"), amount("20"))
            told.wait(10 * DAY_S)
            await told.timer(name)
            assert told.wallet("acme") == (amount("59"), 0)

        play(story)

    def test_that_cannot_be_renewed_is_tried_again_and_ends_after_its_grace(self):
        async def story(told: Subscriptions) -> None:
            name = await told.begun(subscribe)
            told.wait(31 * DAY_S)
            tries = []
            while told.one(name).status != "ended":
                told.now = max(told.now, told.one(name).deadline_key())
                assert told.one(name).is_usable(told.now) == (told.now < "2026-02-08T00:00:00.000000Z")
                await told.timer(name)
                tries.append((told.now[:10], told.one(name).status))
            assert tries == [
                ("2026-02-01", "past_due"),
                ("2026-02-02", "past_due"),
                ("2026-02-04", "past_due"),
                ("2026-02-06", "past_due"),
                ("2026-02-08", "ended"),
            ]
            assert told.wallet("acme") == (amount("19"), 0)

        play(story, money="50")

    def test_paid_in_time_goes_on_as_if_nothing_had_happened(self):
        async def story(told: Subscriptions) -> None:
            name = await told.begun(subscribe)
            told.wait(31 * DAY_S)
            assert await told.timer(name) == "insufficient_funds"
            told.wait(DAY_S)
            await told.pay_in("50")
            assert await told.timer(name) == "ok"
            one = told.one(name)
            assert (one.status, one.period_start[:10], one.attempts) == ("active", "2026-02-01", 0)

        play(story, money="50")


class TestAPurchase:
    def test_is_given_back_in_time_or_not_at_all(self):
        async def story(told: Subscriptions) -> None:
            first, second = await told.begun(buy), await told.begun(buy)
            assert await told.step(give_back, first) == "ok"
            assert await told.step(give_back, first) == "refund_closed"
            told.wait(purchases.REFUND_WITHIN_S - 1)
            await told.step(settle, second)
            assert told.state("purchase", second)["status"] == "held"
            told.wait(purchases.REFUND_WITHIN_S)
            assert await told.step(give_back, second) == "refund_closed"
            for _ in range(2):
                await told.step(settle, second)
            assert told.wallet("acme") == (amount("70"), 0)
            assert told.earnings("maker") == (amount("26.25"), 0)
            assert told.state("purchase", second)["status"] == "settled"

        play(story)


class SubscriptionLives(RuleBasedStateMachine):
    """Random clocks, timers that come late or never, cancellations, changes and money."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.told = Subscriptions()
        self.paid_in = amount("40")
        self.run(self.told.pay_in("40"))
        self.names: list[str] = []

    def teardown(self) -> None:
        self.loop.close()

    def run(self, story: Any) -> Any:
        return self.loop.run_until_complete(story)

    @rule()
    def subscribes(self) -> None:
        if self.run(self.told.heard(subscribe, Name(), RENTER)) == "ok":
            states = self.told.store.states
            self.names = [s.removeprefix("subscription/") for s in states if s.startswith("subscription/")]

    @precondition(lambda self: self.names)
    @rule(data=st.data(), step=st.sampled_from([cancel, resume, stop, upgrade]))
    def steps(self, data: st.DataObject, step: Any) -> None:
        self.run(self.told.step(step, data.draw(st.sampled_from(self.names))))

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def timer_comes(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.names))
        before = self.told.one(name)
        heard = self.run(self.told.timer(name))
        after = self.told.one(name)
        if before.status != "ended" and self.told.now >= before.period_end:
            assert heard in ("ok", "insufficient_funds")
            assert after.period_start == before.period_end or after.status in ("past_due", "ended")
        else:
            assert after == before

    @rule(amount_usd=st.integers(1, 60))
    def pays_in(self, amount_usd: int) -> None:
        self.run(self.told.pay_in(str(amount_usd)))
        self.paid_in += amount(str(amount_usd))

    @rule(seconds=st.one_of(st.integers(0, DAY_S), st.integers(0, 40 * DAY_S)))
    def waits(self, seconds: int) -> None:
        self.told.wait(seconds)

    @invariant()
    def the_books_balance(self) -> None:
        ones = [self.told.one(name) for name in self.names]
        paid = sum(one.paid.nano for one in ones if one.paid)
        held = sum(one.reserved.amount.nano for one in ones if one.reserved)
        assert self.told.wallet("acme") == (self.paid_in - paid, held)
        fees = self.told.store.book.accounts.get("fees.platform.USD")
        assert self.told.earnings("maker")[0] + (fees.balance_nano if fees else 0) == paid
        assert all(not one.reserved for one in ones if one.status == "ended")

    @invariant()
    def access_ends_with_the_grace_whoever_looked(self) -> None:
        for one in (self.told.one(name) for name in self.names):
            limit = moment_text(moment_of(one.period_end) + timedelta(seconds=GRACE_S))
            assert not one.is_usable(limit)
            if one.status == "ended":
                assert not one.is_usable(one.period_start)


TestSubscriptionLives = SubscriptionLives.TestCase
TestSubscriptionLives.settings = settings(max_examples=100, stateful_step_count=50)


def test_a_fee_is_part_of_the_price_and_never_more():
    assert all(0 <= fee_nano(SALE, n) <= n for n in range(0, 10**9, 10**7))
    assert fee_nano(SALE, Money.parse("0.44", "USD").nano) == Money.parse("0.06", "USD").nano
