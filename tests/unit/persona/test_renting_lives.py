"""Any sequence of commands, timers, revocations and clocks: the money adds up, and nobody is let in who may not be."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from domain.errors import LedgerError
from domain.ledger import UseCase
from domain.persona import offboarding, publication, renting
from domain.persona.capsules import Capsule
from domain.persona.offboarding import FailRenewal, StopUse, Use, entitlement, expiry_of, stopped_since
from domain.rental.purchases import Purchase
from domain.rental.rentals import OPEN, Rental
from domain.rental.subscriptions import Subscription
from tests.unit.persona.persona_world import OTHER_OPERATOR, PERSONA
from tests.unit.persona.renting_maker import BY_MINUTE, CLOCK, MONTHLY, PURCHASE, RENTER, Shop

KINDS: dict[str, type[Use]] = {"rental": Rental, "subscription": Subscription, "purchase": Purchase}
PAID_IN_NANO = 300 * 10**9
DAY_S = 86_400
# What a subscription holds while it lives, a rental while it is open, a purchase while it can be given back.
LIVING = {
    "rental": frozenset(OPEN),
    "subscription": frozenset({"active", "past_due"}),
    "purchase": frozenset({"held"}),
}


class Lives(RuleBasedStateMachine):
    """A renter, a seller, an operator, timers and a watch, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.over: dict[tuple[str, str], Any] = {}
        self.stops = 0

    def teardown(self) -> None:
        self.loop.close()

    def run(self, story: Any) -> Any:
        return self.loop.run_until_complete(story)

    def ask(self, use_case: UseCase, command: Any, caller: Any = RENTER) -> str:
        """Ask for something; nothing but a refusal may come in its way."""
        return str(self.run(self.shop.code(use_case, command, caller)))

    @initialize()
    def opens(self) -> None:
        self.shop: Shop = self.run(Shop.opened(BY_MINUTE, MONTHLY, PURCHASE, amount="300"))
        for made in (
            self.shop.activated(600),
            self.shop.rented(),
            self.shop.subscribed(),
            self.shop.bought(),
        ):
            self.run(made)

    def uses(self) -> list[tuple[str, Use]]:
        """Read all that was ever rented, subscribed to or bought."""
        return [
            (kind, msgspec.json.decode(state.state, type=KINDS[kind]))
            for stream, state in self.shop.store.states.items()
            if (kind := stream.partition("/")[0]) in KINDS
        ]

    @property
    def capsule(self) -> Capsule:
        digits = self.shop.capsule.address.removeprefix("sha3-512:")
        return msgspec.convert(self.shop.state("capsule", digits), Capsule)

    def pick(self, data: st.DataObject, kind: str) -> str:
        """Choose one of a kind; one that is not there, where there is none."""
        return str(data.draw(st.sampled_from([use.id for k, use in self.uses() if k == kind] or ["none"])))

    # ------------------------------------------------------------------ what people do

    @rule(minutes=st.integers(1, 3_000))
    def rents(self, minutes: int) -> None:
        self.ask(renting.rent, renting.RentPersona(persona_id=PERSONA, minutes=minutes))

    @rule(zone=st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu"]), day=st.integers(1, 28))
    def subscribes(self, zone: str, day: int) -> None:
        command = renting.SubscribePersona(persona_id=PERSONA, zone=zone, anchor=f"2026-01-{day:02d}")
        self.ask(renting.subscribe, command)

    @rule()
    def buys(self) -> None:
        self.ask(renting.purchase, renting.PurchasePersona(persona_id=PERSONA))

    @rule(data=st.data(), step=st.sampled_from(["activate", "extend", "end"]), minutes=st.integers(1, 600))
    def steps_on_a_rental(self, data: st.DataObject, step: str, minutes: int) -> None:
        name = self.pick(data, "rental")
        if step == "activate":
            self.ask(renting.activate, renting.ActivateRental(rental_id=name))
        elif step == "extend":
            self.ask(renting.extend, renting.ExtendRental(rental_id=name, minutes=minutes))
        else:
            self.ask(renting.end, renting.RentalStep(rental_id=name))

    @rule(data=st.data(), step=st.sampled_from(["now", "period_end", "resume", "change"]))
    def steps_on_a_subscription(self, data: st.DataObject, step: Any) -> None:
        name = self.pick(data, "subscription")
        if step == "resume":
            self.ask(renting.resume, renting.SubscriptionStep(subscription_id=name))
        elif step == "change":
            self.ask(renting.change_plan, renting.ChangePlan(subscription_id=name))
        else:
            self.ask(renting.cancel, renting.CancelSubscription(subscription_id=name, when=step))

    @rule(data=st.data())
    def gives_a_purchase_back(self, data: st.DataObject) -> None:
        self.ask(renting.give_back, renting.PurchaseStep(purchase_id=self.pick(data, "purchase")))

    @precondition(lambda self: self.stops < 2)
    @rule(how=st.sampled_from(["suspended", "revoked"]), rentals=st.sampled_from(["end", "let_run"]))
    def stops_the_capsule(self, how: str, rentals: str) -> None:
        self.stops += 1
        was = self.capsule.status
        with suppress(LedgerError):
            self.run(getattr(self.shop, how)(rentals))
        assert self.capsule.status == how or was != "published"

    @rule()
    def reinstates_the_capsule(self) -> None:
        command = publication.ReinstateCapsule(capsule_id=self.shop.capsule.address, reason="it was nothing")
        self.ask(publication.reinstate_capsule, command, OTHER_OPERATOR)

    # ------------------------------------------------------------------ what the clock and the watch do

    @rule(
        seconds=st.sampled_from([0.000001, 1, 61, 3_600, DAY_S, 8 * DAY_S, 15 * DAY_S, 31 * DAY_S]),
        looks=st.booleans(),
    )
    def time_passes(self, seconds: float, looks: bool) -> None:
        self.shop.wait(seconds)
        if looks:
            self.timers_look()

    def timers_look(self) -> None:
        for kind, use in self.uses():
            deadline = use.deadline_key()
            if deadline is None or deadline > self.shop.now:
                continue
            if kind == "rental":
                assert self.ask(offboarding.expire, renting.RentalStep(rental_id=use.id), CLOCK) == "ok"
            elif kind == "purchase":
                assert self.ask(offboarding.settle, renting.PurchaseStep(purchase_id=use.id), CLOCK) == "ok"
            else:
                heard = self.ask(offboarding.renew, renting.SubscriptionStep(subscription_id=use.id), CLOCK)
                if heard != "ok":
                    failed = FailRenewal(subscription_id=use.id, reason=heard)
                    assert self.ask(offboarding.fail, failed, CLOCK) == "ok"

    @rule()
    def the_watch_looks(self) -> None:
        for kind, use in self.uses():
            command = StopUse(kind=kind, id=use.id)  # type: ignore[arg-type]
            assert self.ask(offboarding.stop_use, command, CLOCK) == "ok"
        for kind, use in self.uses():
            assert stopped_since(self.capsule, use) is None or use.status not in LIVING[kind]

    # ------------------------------------------------------------------ what always holds

    @invariant()
    def the_money_adds_up(self) -> None:
        if not hasattr(self, "shop"):
            return
        book = self.shop.store.book
        sides = {"debit": 1, "credit": -1}
        assert sum(sides[account.side] * account.balance_nano for account in book.accounts.values()) == 0
        assert all(a.overdraft or a.balance_nano >= a.held_nano >= 0 for a in book.accounts.values())
        pending = sum(hold.amount_nano for hold in book.holds.values() if hold.status == "pending")
        assert pending == sum(_held_nano(kind, use) for kind, use in self.uses())
        seller = book.accounts.get("earnings.acme.USD")
        fees = book.accounts.get("fees.platform.USD")
        earned = (seller.balance_nano if seller else 0) + (fees.balance_nano if fees else 0)
        assert book.accounts["wallet.renters.USD"].balance_nano == PAID_IN_NANO - earned
        assert earned == sum(_charged_nano(use) for _, use in self.uses())

    @invariant()
    def what_is_over_stays_as_it_is(self) -> None:
        if not hasattr(self, "shop"):
            return
        for kind, use in self.uses():
            if use.status not in LIVING[kind]:
                assert self.over.setdefault((kind, use.id), use) == use

    @invariant()
    def nobody_is_let_in_who_may_not_be(self) -> None:
        if not hasattr(self, "shop"):
            return
        capsule, now = self.capsule, self.shop.now
        for kind, use in self.uses():
            found = entitlement(use, capsule, now, use.access_epoch)
            if not found.granted:
                continue
            end = expiry_of(use)
            assert end is None or now < end
            assert use.status in LIVING[kind] or (kind, use.status) == ("purchase", "settled")
            is_stopped = capsule.status in ("revoked", "suspended") and capsule.rentals == "end"
            assert not is_stopped or kind == "purchase"
            assert entitlement(use, capsule, now, use.access_epoch - 1).why == "stale_epoch"


def _held_nano(kind: str, use: Use) -> int:
    """Say what of the wallet something holds."""
    if use.status not in LIVING[kind]:
        return 0
    if isinstance(use, Rental):
        return sum(part.amount.nano for part in use.holds)
    if isinstance(use, Subscription):
        return use.reserved.amount.nano if use.reserved else 0
    return sum(part.amount.nano for part in use.reserved)


def _charged_nano(use: Use) -> int:
    """Say what something has cost, by its own account."""
    if isinstance(use, Rental):
        return use.charged.nano if use.charged else 0
    if isinstance(use, Subscription):
        return use.paid.nano if use.paid else 0
    return use.price.nano if use.price is not None and use.status == "settled" else 0


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
