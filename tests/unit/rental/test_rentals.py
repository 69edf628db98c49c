"""Rentals: access by the clock, money held and settled once, and nothing that depends on a timer."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from domain.billing.accounts import Deposit, deposit
from domain.ledger import Caller
from domain.rental.rentals import ACTIVATE_WITHIN_S, MINUTES_MAX, OPEN, cost_nano
from domain.rental.settling import fee_nano
from domain.values import Money, moment_of, moment_text
from tests.unit.market.market_maker import OPERATOR, START, Market, usd
from tests.unit.rental.rental_maker import SALE, TERMS, Ask, activate, expire, extend, give_back, rent, revoke

RENTER = Caller("rick", "acme", frozenset(["owner"]))


class Rentals(Market):
    """A market with a renter who has money."""

    async def pay_in(self, amount: str = "100") -> None:
        """Fill the renter's wallet."""
        await self.do(deposit, Deposit(tenant="acme", amount=usd(amount)), OPERATOR)

    async def rented(self, minutes: int = 60) -> str:
        """Rent, and give the rental's name."""
        return str((await self.do(rent, Ask(minutes=minutes), RENTER))["id"])

    async def ask(self, what: Any, name: str, minutes: int = 0) -> str:
        """Ask something of a rental; give "ok" or the code."""
        return await self.heard(what, Ask(rental_id=name, minutes=minutes), RENTER)

    def rental(self, name: str) -> Any:
        """Read a rental."""
        return self.state("rental", name)

    def wallet(self, tenant: str) -> tuple[int, int]:
        """Give balance and held amount of a wallet, in nano-units."""
        return self._holds(f"wallet.{tenant}.USD")

    def earnings(self, tenant: str) -> tuple[int, int]:
        """Give what a seller was paid, and what is held of it, in nano-units."""
        return self._holds(f"earnings.{tenant}.USD")

    def _holds(self, name: str) -> tuple[int, int]:
        account = self.store.book.accounts.get(name)
        return (account.balance_nano, account.held_nano) if account else (0, 0)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now = moment_text(moment_of(self.now) + timedelta(seconds=seconds))


def play(story: Any) -> None:
    """Play a story in a market of its own."""

    async def run() -> None:
        told = Rentals()
        await told.pay_in()
        await story(told)

    asyncio.run(run())


def amount(text: str) -> int:
    """Read dollars as nano-units."""
    return usd(text).nano


class TestTheClock:
    def test_access_is_half_open(self):
        async def story(told: Rentals) -> None:
            name = await told.rented(10)
            await told.ask(activate, name)
            rental = _loaded(told, name)
            assert rental.is_usable(START)
            assert rental.is_usable(moment_text(moment_of(rental.expires_at) - timedelta(microseconds=1)))
            assert not rental.is_usable(rental.expires_at)

        play(story)

    def test_a_timer_that_comes_too_early_changes_nothing(self):
        async def story(told: Rentals) -> None:
            name = await told.rented(10)
            await told.ask(activate, name)
            told.wait(599.999999)
            await told.ask(expire, name)
            assert told.rental(name)["status"] == "active"
            told.wait(0.000001)
            await told.ask(expire, name)
            assert told.rental(name)["status"] == "expired"

        play(story)

    def test_a_rental_that_ran_out_cannot_be_extended_even_before_any_timer_saw_it(self):
        async def story(told: Rentals) -> None:
            name = await told.rented(10)
            await told.ask(activate, name)
            told.wait(600)
            assert await told.ask(extend, name, 10) == "rental_not_active"

        play(story)

    def test_one_that_is_never_activated_lapses_and_costs_nothing(self):
        async def story(told: Rentals) -> None:
            name = await told.rented(10)
            told.wait(ACTIVATE_WITHIN_S)
            assert await told.ask(activate, name) == "rental_lapsed"
            await told.ask(expire, name)
            assert told.rental(name)["status"] == "lapsed"
            assert told.wallet("acme") == (amount("100"), 0)

        play(story)


class TestTheMoney:
    def test_the_whole_time_is_reserved_and_only_what_was_used_is_paid(self):
        async def story(told: Rentals) -> None:
            name = await told.rented(60)
            assert told.wallet("acme") == (amount("100"), amount("6"))
            await told.ask(activate, name)
            told.wait(61)
            assert await told.ask(give_back, name) == "ok"
            ended = told.rental(name)
            # Two minutes were begun, and five is the least.
            assert (ended["status"], ended["used_s"], ended["charged"]["amount"]) == ("ended", 61, "0.50")
            assert told.wallet("acme") == (amount("99.50"), 0)
            # An eighth of fifty cents is 6.25 cents, half to even.
            assert told.earnings("maker") == (amount("0.44"), 0)
            assert told.store.book.accounts["fees.platform.USD"].balance_nano == amount("0.06")

        play(story)

    def test_an_extension_costs_what_the_longer_time_costs_more(self):
        async def story(told: Rentals) -> None:
            name = await told.rented(2)
            assert told.wallet("acme")[1] == amount("0.50")
            await told.ask(extend, name, 2)
            assert told.wallet("acme")[1] == amount("0.50")
            await told.ask(extend, name, 2)
            assert told.wallet("acme")[1] == amount("0.60")
            await told.ask(activate, name)
            told.wait(400)
            await told.ask(expire, name)
            assert told.rental(name)["charged"]["amount"] == "0.60"
            assert told.wallet("acme") == (amount("99.40"), 0)

        play(story)

    def test_a_renter_who_cannot_pay_gets_nothing(self):
        async def story(told: Rentals) -> None:
            assert await told.heard(rent, Ask(minutes=1001), RENTER) == "insufficient_funds"
            name = await told.rented(1000)
            assert await told.ask(extend, name, 1) == "insufficient_funds"

        play(story)

    def test_a_cancelled_one_costs_nothing_and_a_revoked_one_what_was_used(self):
        async def story(told: Rentals) -> None:
            name = await told.rented(60)
            await told.ask(give_back, name)
            assert told.rental(name)["status"] == "cancelled"
            assert told.wallet("acme") == (amount("100"), 0)
            name = await told.rented(60)
            await told.ask(activate, name)
            told.wait(600)
            await told.ask(revoke, name)
            assert (told.rental(name)["status"], told.rental(name)["charged"]["amount"]) == (
                "revoked",
                "1.00",
            )

        play(story)


@pytest.mark.parametrize("step", [activate, extend, give_back, revoke])
@pytest.mark.parametrize("ending", [give_back, revoke])
def test_what_has_ended_stays_so(step, ending):
    async def story(told: Rentals) -> None:
        name = await told.rented()
        await told.ask(ending, name)
        assert await told.ask(step, name, 5) == "rental_not_open"
        assert await told.ask(expire, name) == "ok"
        assert told.rental(name)["access_epoch"] == 2

    play(story)


@pytest.mark.parametrize("minutes", [0, -1, MINUTES_MAX + 1])
def test_a_rental_has_a_length_within_bounds(minutes):
    async def story(told: Rentals) -> None:
        assert await told.heard(rent, Ask(minutes=minutes), RENTER) == "rental_too_long"

    play(story)


def _loaded(told: Rentals, name: str) -> Any:
    import msgspec

    from domain.rental.rentals import Rental

    return msgspec.json.decode(told.store.states[f"rental/{name}"].state, type=Rental)


class RentalLives(RuleBasedStateMachine):
    """Random renters, steps, timers and clocks; the oracle keeps its own account of seconds and money."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.told = Rentals()
        self.run(self.told.pay_in("50"))
        self.names: list[str] = []
        self.settled: dict[str, int] = {}

    def teardown(self) -> None:
        self.loop.close()

    def run(self, story: Any) -> Any:
        return self.loop.run_until_complete(story)

    @rule(minutes=st.integers(1, 200))
    def rents(self, minutes: int) -> None:
        if self.run(self.told.heard(rent, Ask(minutes=minutes), RENTER)) == "ok":
            self.names = sorted(
                s.removeprefix("rental/") for s in self.told.store.states if s.startswith("rental/")
            )

    @precondition(lambda self: self.names)
    @rule(
        data=st.data(),
        step=st.sampled_from([activate, extend, give_back, revoke, expire]),
        minutes=st.integers(1, 60),
    )
    def steps(self, data: st.DataObject, step: Any, minutes: int) -> None:
        name = data.draw(st.sampled_from(self.names))
        before = self.told.rental(name)
        heard = self.run(self.told.ask(step, name, minutes))
        after = self.told.rental(name)
        if before["status"] in OPEN and after["status"] not in OPEN:
            assert name not in self.settled, "a rental was settled twice"
            self.settled[name] = Money(**after["charged"]).nano
            self._check_charge(before, after)
        if before["status"] not in OPEN:
            assert after == before
            assert heard in ("rental_not_open", "ok")

    def _check_charge(self, before: Any, after: Any) -> None:
        used = 0.0
        if before["activated_at"]:
            until = min(self.told.now, before["expires_at"])
            used = (moment_of(until) - moment_of(before["activated_at"])).total_seconds()
        assert after["used_s"] - 1 < used <= after["used_s"]
        assert self.settled[after["id"]] == cost_nano(TERMS, after["used_s"])

    @rule(seconds=st.one_of(st.integers(0, 600), st.integers(0, 10**6), st.floats(0, 10)))
    def waits(self, seconds: float) -> None:
        self.told.wait(seconds)

    @invariant()
    def the_books_balance(self) -> None:
        book = self.told.store.book
        charged = sum(self.settled.values())
        fees = sum(fee_nano(SALE, nano) for nano in self.settled.values())
        held = sum(
            Money(**self.told.rental(name)["reserved"]).nano
            for name in self.names
            if name not in self.settled
        )
        assert self.told.wallet("acme") == (amount("50") - charged, held)
        assert self.told.earnings("maker") == (charged - fees, 0)
        assert all(a.balance_nano >= a.held_nano >= 0 for a in book.accounts.values())
        open_holds = sum(h.amount_nano for h in book.holds.values() if h.status == "pending")
        assert open_holds == held


TestRentalLives = RentalLives.TestCase
TestRentalLives.settings = settings(max_examples=40, stateful_step_count=40)
