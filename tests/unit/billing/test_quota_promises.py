"""Two promises of quotas, whatever happens in whatever order: spent is what a quote says, and a hard limit holds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from domain.billing.accounts import Deposit, deposit
from domain.billing.customers import Enroll, enroll, replan
from domain.billing.limits import Scope
from domain.billing.usage import Usage
from domain.errors import LedgerError
from domain.values import moment_of, moment_text
from tests.unit.billing.billing_maker import BOOK
from tests.unit.billing.quota_maker import (
    COUNTS,
    MINUTES_AGO,
    MODELS,
    PERSONAS,
    RENTALS,
    Limited,
    charges,
    commitments,
    limit,
    nano,
)
from tests.unit.market.market_maker import OPERATOR, usd

ZONES = st.sampled_from(["UTC", "America/New_York", "Europe/Berlin"])
EVERY = st.sampled_from(["day", "week", "month"])
SCOPES: dict[str, dict[str, str]] = {
    "all": {}, "m1": {"model": "m1"}, "q": {"provider": "q"}, "p1": {"persona_id": "p1"}, "r1": {"rental_id": "r1"},
}  # fmt: skip
# A week before clocks change in both zones that change theirs.
STARTS = st.sampled_from(
    ["2026-03-04T22:00:00.000000Z", "2026-10-22T13:00:00.000000Z", "2026-01-30T23:30:00.000000Z"]
)


class _Machine(RuleBasedStateMachine):
    """A customer with limits; each step runs to its end on a loop of the machine's own."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = Limited()

    def run(self, doing: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(doing)

    def tried(self, doing: Awaitable[Any]) -> Any:
        """Do something that may be refused; None if it was."""
        try:
            return self.run(doing)
        except LedgerError:
            return None

    def teardown(self) -> None:
        self.loop.close()

    async def open(self, now: str, book: Any, commitment: str | None, **plan: Any) -> None:
        self.world.now = now
        await self.world.publish(msgspec.to_builtins(book), commitment)
        await self.world.do(enroll, Enroll(tenant="acme", book=BOOK, **plan), OPERATOR)
        await self.world.do(deposit, Deposit(tenant="acme", amount=usd("1000000")), OPERATOR)
        self.world.wait(minutes=1)


class SpentIsWhatAQuoteSays(_Machine):
    """Readings early, late and corrected, prices and plans that change, and clocks that do: one number all along."""

    @initialize(
        now=STARTS,
        book=charges(),
        commitment=commitments,
        zone=ZONES,
        every=EVERY,
        prepaid=st.booleans(),
        prompt=st.booleans(),
    )
    def begin(
        self, now: str, book: Any, commitment: str | None, zone: str, every: str, prepaid: bool, prompt: bool
    ) -> None:
        self.run(self.open(now, book, commitment, zone=zone, every=every, grace_s=0))
        self.prepaid, self.prompt = prepaid, prompt
        self.set(["all", "m1"], True)
        self.run(self.world.meter({"tokens_in": 700, "persona_id": "p1"}, {"tokens_in": 40, "model": "m2"}))

    @rule(names=st.lists(st.sampled_from(sorted(SCOPES)), min_size=1, unique=True), fees=st.booleans())
    def set(self, names: list[str], fees: bool) -> None:
        limits = [limit(name, "25", mode="soft", fees=fees, **SCOPES[name]) for name in names]
        self.run(self.world.set_limits(*limits, prepaid=self.prepaid))

    @rule(
        many=st.lists(
            st.tuples(MODELS, PERSONAS, RENTALS, COUNTS, COUNTS, MINUTES_AGO), min_size=1, max_size=4
        ),
        provider=st.sampled_from(["p", "q"]),
    )
    def meter(self, many: list[tuple[Any, ...]], provider: str) -> None:
        now = moment_of(self.world.now)
        self.run(
            self.world.meter(
                *(
                    {
                        "model": model, "provider": provider, "persona_id": persona, "rental_id": rental,
                        "tokens_in": tokens_in, "tokens_out": tokens_out,
                        "occurred_at": moment_text(now + timedelta(minutes=-minutes)),
                    }
                    for model, persona, rental, tokens_in, tokens_out, minutes in many
                )
            )
        )  # fmt: skip

    @rule(which=st.integers(0, 10**6))
    def send_again(self, which: int) -> None:
        if usages := self.world.usages():
            one = usages[which % len(usages)].as_taken or usages[which % len(usages)]
            kept = {
                n: getattr(one, n) for n in ("occurred_at", "provider", "model", "tokens_in", "tokens_out")
            }
            kept |= {n: getattr(one, n) for n in ("rental_id", "persona_id") if getattr(one, n) is not None}
            event_id = usages[which % len(usages)].event_id
            size = len(self.world.store.logged)
            self.run(self.world.meter(kept | {"event_id": event_id}))
            assert len(self.world.store.logged) == size, "a duplicate was counted"

    @rule(which=st.integers(0, 10**6), tokens=COUNTS, model=MODELS, minutes=MINUTES_AGO)
    def put_right(self, which: int, tokens: int, model: str, minutes: int) -> None:
        if usages := self.world.usages():
            moment = moment_text(moment_of(self.world.now) - timedelta(minutes=minutes))
            one: Usage = usages[which % len(usages)]
            self.run(self.world.put_right(one, tokens_in=tokens, model=model, occurred_at=moment))

    @rule(model=MODELS, tokens=COUNTS, used=COUNTS, ttl_s=st.sampled_from([60, 86_400]))
    def reserve_and_use(self, model: str, tokens: int, used: int, ttl_s: int) -> None:
        made = self.tried(self.world.reserve(model=model, tokens_in=tokens, ttl_s=ttl_s))
        if made is not None and used % 3:
            name = made["reservation"]["id"]
            self.run(self.world.meter({"model": model, "tokens_in": used, "reservation_id": name}))

    @rule(book=charges(), commitment=commitments, minutes=st.integers(-5, 3_000))
    def change_prices(self, book: Any, commitment: str | None, minutes: int) -> None:
        at = None if minutes < 0 else moment_text(moment_of(self.world.now) + timedelta(minutes=minutes))
        self.run(self.world.publish(msgspec.to_builtins(book), commitment, at))

    @rule(zone=ZONES, every=EVERY)
    def change_plan(self, zone: str, every: Any) -> None:
        self.run(
            self.world.do(
                replan, Enroll(tenant="acme", book=BOOK, zone=zone, every=every, grace_s=0), OPERATOR
            )
        )

    @rule(minutes=st.one_of(st.integers(1, 60), st.integers(60, 5_000)))
    def wait(self, minutes: int) -> None:
        self.world.wait(minutes=minutes)

    @rule()
    def bill(self) -> None:
        self.run(self.world.bill_due())

    @invariant()
    def spent_is_what_a_quote_says(self) -> None:
        self.run(self.world.tend())
        self.run(self.world.count_past())
        shown = self.run(self.world.shown())
        assert shown["is_counted"]
        if self.prompt:
            self.run(self.world.bill_due())
        if not self.world.in_next_period:
            return  # the period before is not billed yet, and it is that one which is quoted
        for one in shown["limits"]:
            scope = Scope(**{name: value for name, value in one["scope"].items() if value is not None})
            said = self.run(self.world.quoted(scope))
            owed = (
                self.run(self.world.quoted(Scope(model="nothing-of-this-name"))) if not one["fees"] else "0"
            )
            assert nano(one["spent"]) == usd(said).nano - usd(owed).nano, one["id"]

    @invariant()
    def no_hold_is_left_behind_and_no_money_is_made(self) -> None:
        book = self.world.store.book
        held = {name for name, hold in book.holds.items() if hold.status == "pending"}
        assert held == {one.id for one in self.world.quota.reservations if one.hold is not None}
        sides = [a.balance_nano if a.side == "debit" else -a.balance_nano for a in book.accounts.values()]
        assert sum(sides) == 0


class AHardLimitHolds(_Machine):
    """Reservations made, used, let go and left to expire in any order, by any price: never more than the limit."""

    @initialize(
        now=STARTS,
        book=charges(),
        commitment=commitments,
        sums=st.lists(st.sampled_from([1, 3, 8, 40]), min_size=3, max_size=3),
    )
    def begin(self, now: str, book: Any, commitment: str | None, sums: list[int]) -> None:
        self.run(self.open(now, book, commitment, every="day"))
        limits = [
            limit(name, str(amount), **SCOPES[name])
            for name, amount in zip(["all", "m1", "p1"], sums, strict=True)
        ]
        self.run(self.world.set_limits(*limits))
        # Only what is used under a reservation that has not ended is bound to the limit.
        self.left: dict[str, dict[str, Any]] = {}

    @rule(
        model=MODELS,
        persona=PERSONAS,
        tokens_in=COUNTS,
        tokens_out=COUNTS,
        requests=st.integers(0, 300),
        ttl_s=st.sampled_from([60, 600]),
    )
    def reserve(self, model: str, persona: str | None, ttl_s: int, **counts: int) -> None:
        # Until no more fits, so that the limit is reached and not only approached.
        for _ in range(8):
            made = self.tried(self.world.reserve(model=model, persona_id=persona, ttl_s=ttl_s, **counts))
            if made is None:
                break
            self.left[made["reservation"]["id"]] = made["reservation"]

    @precondition(lambda self: self.left)
    @rule(which=st.integers(0, 10**6), share=st.integers(0, 100), calls=st.integers(0, 100))
    def use(self, which: int, share: int, calls: int) -> None:
        name = sorted(self.left)[which % len(self.left)]
        one = self.left.pop(name)
        if one["expires_at"] <= self.world.now or not one["requests"]:
            return
        reading = {n: one[n] for n in ("provider", "model", "persona_id")}
        counts = {n: one[n] * share // 100 for n in ("tokens_in", "tokens_out")}
        requests = max(1, one["requests"] * calls // 100)
        self.run(self.world.meter(reading | counts | {"requests": requests, "reservation_id": name}))

    @precondition(lambda self: self.left)
    @rule(which=st.integers(0, 10**6))
    def release(self, which: int) -> None:
        name = sorted(self.left)[which % len(self.left)]
        self.left.pop(name)
        self.tried(self.world.release(name))

    @rule(seconds=st.integers(1, 300))
    def wait(self, seconds: int) -> None:
        self.world.wait(seconds=seconds)

    @rule()
    def tend(self) -> None:
        self.run(self.world.tend())

    @invariant()
    def no_limit_is_passed(self) -> None:
        shown = self.run(self.world.shown())
        for one in shown["limits"]:
            taken = nano(one["spent"]) + nano(one["reserved"])
            assert nano(one["left"]) == max(0, nano(one["amount"]) - taken)
            scope = Scope(**{name: value for name, value in one["scope"].items() if value is not None})
            is_used = any(scope.covers(row) for row in self.world.quota.rows) or nano(one["reserved"])
            # Fees alone may be more than a limit; then nothing can be reserved under it.
            assert not is_used or taken <= nano(one["amount"]), one


class TestSpentIsWhatAQuoteSays(SpentIsWhatAQuoteSays.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


class TestAHardLimitHolds(AHardLimitHolds.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
