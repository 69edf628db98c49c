"""Invoices: periods billed once, late usage in documents of its own, and books that balance through all of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from domain.billing.customers import Customer, Enroll, RedeemCoupon, redeem_coupon, replan
from domain.billing.grants import GrantStep, expire_grant
from domain.billing.invoices import FailPayment, Invoice, fail_payment
from domain.billing.price_books import PublishPrices, publish_prices
from domain.values import Money, moment_of, moment_text
from tests.unit.billing.billing_maker import BOOK, CHARGES, Billed
from tests.unit.market.market_maker import OPERATOR, SERVICE, usd


def play(story: Any, **plan: Any) -> None:
    """Play a story with a customer of its own."""

    async def run() -> None:
        told = Billed()
        await told.begin(**plan)
        await story(told)

    asyncio.run(run())


FEBRUARY = datetime(2026, 2, 1, 1, tzinfo=UTC)


class TestABill:
    def test_says_what_was_used_in_the_period_and_where_it_comes_from(self):
        async def story(told: Billed) -> None:
            told.use(150_500, 2_000)
            told.use(1_000, 0, model="other")
            told.go_to(FEBRUARY)
            made = await told.bill()
            amounts = {line["charge"]: line["amount"]["amount"] for line in made["bill"]["lines"]}
            # 100,000 at 0.01 and 50,000 at 0.007 a thousand; 500 are free; two calls begin one package.
            assert amounts == {"base": "10.00", "in": "1.35", "out": "0.06", "calls": "0.50"}
            assert made["due"]["amount"] == "11.91"
            assert [e and e["events"] for e in made["evidence"]] == [None, 1, 2, 2]
            assert told.balance("receivable.acme.USD") == usd("11.91").nano

        play(story)

    def test_is_made_once_for_a_period_and_not_before_its_grace_has_passed(self):
        async def story(told: Billed) -> None:
            told.go_to(FEBRUARY - timedelta(seconds=1))
            assert await told.code(told.bill()) == "period_open"
            told.go_to(FEBRUARY)
            assert await told.code(told.bill()) == "ok"
            assert await told.code(told.bill()) == "period_open"

        play(story)

    def test_of_two_versions_has_lines_of_both_each_with_its_share(self):
        async def story(told: Billed) -> None:
            middle = "2026-01-16T12:00:00.000000Z"
            await told.publish([CHARGES[0] | {"price": {"model": "flat", "price": "20"}}], at=middle)
            told.go_to(FEBRUARY)
            lines = (await told.bill())["bill"]["lines"]
            assert [line["amount"]["amount"] for line in lines] == ["5.00", "10.00"]

        play(story)

    def test_lifts_a_small_period_to_the_commitment(self):
        async def story(told: Billed) -> None:
            told.go_to(FEBRUARY)
            made = await told.bill()
            assert [line["charge"] for line in made["bill"]["lines"]] == ["base", "commitment"]
            assert made["due"]["amount"] == "25.00"

        play(story, commitment="25")

    def test_of_a_local_month_ends_at_local_midnight(self):
        async def story(told: Billed) -> None:
            told.use(0, 1_000_000, at="2026-01-31T22:59:59.999999Z")
            told.use(0, 5_000_000, at="2026-01-31T23:00:00.000000Z")
            told.go_to(FEBRUARY)
            made = await told.bill()
            assert made["period_end"] == "2026-01-31T23:00:00.000000Z"
            amounts = {line["charge"]: line["amount"]["amount"] for line in made["bill"]["lines"]}
            assert amounts["out"] == "30.00"

        play(story, zone="Europe/Berlin", anchor="2026-01-01")

    def test_is_made_however_many_models_are_named_that_have_no_price(self):
        async def story(told: Billed) -> None:
            await told.publish([CHARGES[0], CHARGES[1]], at=told.now)
            for number in range(400):
                told.use(7, 0, model=f"unheard-of-{number:03d}")
            told.use(1_000_500, 0)
            told.go_to(FEBRUARY)
            made = await told.bill()
            lines = [
                (line["charge"], line["quantity"], line["amount"]["amount"]) for line in made["bill"]["lines"]
            ]
            assert lines == [("base", "1", "10.00"), ("in", "1000500", "7.30"), ("unpriced", "400", "0.00")]
            assert [e and e["events"] for e in made["evidence"]] == [None, 1, 400]
            told.use(0, 0, model="unheard-of-400", at="2026-01-15T00:00:00.000000Z")
            assert (await told.correct(made["id"]))["evidence"][2]["events"] == 401

        play(story)


class TestWhatComesLater:
    def test_late_usage_is_a_correction_that_keeps_the_period(self):
        async def story(told: Billed) -> None:
            told.use(0, 100_000)
            told.go_to(FEBRUARY)
            first = await told.bill()
            told.use(0, 200_000, at="2026-01-15T00:00:00.000000Z")
            later = await told.correct(first["id"])
            assert (later["kind"], later["corrects"]) == ("correction", first["id"])
            assert (later["period_start"], later["period_end"]) == (
                first["period_start"],
                first["period_end"],
            )
            assert (later["owed"]["amount"], later["due"]["amount"]) == ("6.00", "6.00")
            assert told.state("invoice", first["id"])["bill"] == first["bill"]

        play(story)

    def test_a_correction_with_nothing_new_is_refused_and_writes_nothing(self):
        async def story(told: Billed) -> None:
            told.go_to(FEBRUARY)
            first = await told.bill()
            size = len(told.store.logged)
            assert await told.code(told.correct(first["id"])) == "nothing_to_correct"
            assert len(told.store.logged) == size

        play(story)

    def test_only_the_last_document_of_a_period_is_corrected(self):
        async def story(told: Billed) -> None:
            told.go_to(FEBRUARY)
            first = await told.bill()
            told.use(0, 200_000, at="2026-01-15T00:00:00.000000Z")
            await told.correct(first["id"])
            assert await told.code(told.correct(first["id"])) == "nothing_to_correct"

        play(story)

    def test_usage_that_is_taken_back_becomes_credit_which_the_next_invoice_burns(self):
        async def story(told: Billed) -> None:
            told.use(0, 1_000_000)
            told.go_to(FEBRUARY)
            first = await told.bill()
            await told.pay(first["id"])
            told.readings[0] = told.readings[0]._replace(tokens_out=500_000)
            back = await told.correct(first["id"])
            assert (back["owed"]["amount"], back["due"]["amount"], back["status"]) == (
                "-15.00",
                "0.00",
                "paid",
            )
            assert told.balance("credits.acme.USD") == usd("15").nano
            told.go_to(datetime(2026, 3, 1, 1, tzinfo=UTC))
            march = await told.bill()
            assert (march["bill"]["total"]["amount"], march["due"]["amount"]) == ("10.00", "0.00")
            assert told.balance("credits.acme.USD") == usd("5").nano

        play(story)


class TestPaying:
    def test_what_is_due_is_paid_once(self):
        async def story(told: Billed) -> None:
            told.go_to(FEBRUARY)
            made = await told.bill()
            assert (await told.pay(made["id"]))["status"] == "paid"
            assert await told.code(told.pay(made["id"])) == "invoice_settled"
            assert told.balance("receivable.acme.USD") == 0
            assert told.balance("wallet.acme.USD") == usd("990").nano

        play(story)

    def test_a_payment_that_fails_is_tried_again_and_then_overdue_and_can_still_be_paid(self):
        async def story(told: Billed) -> None:
            told.use(0, 10**9)
            told.go_to(FEBRUARY)
            name = (await told.bill())["id"]
            assert await told.code(told.pay(name)) == "insufficient_funds"
            failed = FailPayment(invoice_id=name, reason="insufficient_funds")
            states = []
            for _ in range(4):
                states.append(await told.do(fail_payment, failed, SERVICE))
                size = len(told.store.logged)
                assert await told.do(fail_payment, failed, SERVICE) == states[-1]
                assert len(told.store.logged) == size, "it fails once each time it is tried"
                told.now = states[-1]["next_attempt_at"] or told.now
            assert [state["status"] for state in states] == ["issued", "issued", "issued", "overdue"]
            assert states[0]["next_attempt_at"] == moment_text(FEBRUARY + timedelta(days=1))

        play(story)

    def test_credit_is_burned_first_by_priority_then_by_what_expires_first(self):
        async def story(told: Billed) -> None:
            late = await told.give("4", expires_at="2027-01-01T00:00:00Z")
            soon = await told.give("3", expires_at="2026-06-01T00:00:00Z", source="promotion")
            urgent = await told.give("2", priority=0)
            gone = await told.give("50", expires_at="2026-01-20T00:00:00Z")
            told.go_to(FEBRUARY)
            made = await told.bill()
            order = [item["name"] for item in made["bill"]["credits"]]
            assert order == [soon["id"], late["id"], urgent["id"]]
            assert (made["due"]["amount"], gone["id"] in order) == ("1.00", False)

        play(story)

    def test_expired_credit_goes_where_it_belongs(self):
        async def story(told: Billed) -> None:
            paid = await told.give("4", expires_at="2026-01-20T00:00:00Z")
            given = await told.give("3", expires_at="2026-01-20T00:00:00Z", source="promotion")
            told.go_to(FEBRUARY)
            for one in (paid, given, paid):
                await told.do(expire_grant, GrantStep(grant_id=one["id"]), SERVICE)
            assert told.balance("credits.acme.USD") == 0
            assert told.balance("revenue.platform.USD") == usd("4").nano
            assert told.balance("promotions.platform.USD") == 0

        play(story)

    def test_a_coupon_is_for_its_periods_only(self):
        async def story(told: Billed) -> None:
            half = RedeemCoupon(tenant="acme", code="half", share="0.5", periods=1)
            await told.do(redeem_coupon, half, OPERATOR)
            assert await told.code(told.do(redeem_coupon, half, OPERATOR)) == "coupon_invalid"
            told.go_to(FEBRUARY)
            assert (await told.bill())["due"]["amount"] == "5.00"
            told.go_to(datetime(2026, 3, 1, 1, tzinfo=UTC))
            assert (await told.bill())["due"]["amount"] == "10.00"

        play(story)


def test_another_zone_counts_from_the_next_period_and_no_hour_is_billed_twice_or_never():
    async def story(told: Billed) -> None:
        tokyo = Enroll(tenant="acme", book=BOOK, zone="Asia/Tokyo", anchor="2026-01-01")
        await told.do(replan, tokyo, OPERATOR)
        ends = []
        for month in (2, 3, 4):
            told.go_to(datetime(2026, month, 1, 1, tzinfo=UTC))
            made = await told.bill()
            ends.append((made["period_start"], made["period_end"]))
        assert all(before[1] == after[0] for before, after in pairwise(ends))
        assert ends[1] == ("2026-02-01T00:00:00.000000Z", "2026-02-28T15:00:00.000000Z")

    play(story)


def test_a_plan_whose_prices_begin_after_it_does_is_refused_since_nothing_could_be_billed() -> None:
    async def story(told: Billed) -> None:
        for book, day in (("soon", "2026-02-01"), ("late", "2026-02-02")):
            prices = {
                "book": book,
                "currency": "USD",
                "charges": CHARGES[:1],
                "effective_from": f"{day}T00:00:00Z",
            }
            await told.do(publish_prices, PublishPrices.model_validate(prices), OPERATOR)
        late, soon = (Enroll(tenant="acme", book=f"platform.{name}") for name in ("late", "soon"))
        assert await told.code(told.do(replan, late, OPERATOR)) == "price_not_in_force"
        await told.do(replan, soon, OPERATOR)
        told.go_to(datetime(2026, 3, 1, 1, tzinfo=UTC))
        assert [await told.code(told.bill()) for _ in range(3)] == ["ok", "ok", "period_open"]

    play(story)


def test_prices_of_the_end_of_time_or_with_a_novel_for_a_name_are_none() -> None:
    async def story(told: Billed) -> None:
        assert await told.code(told.publish(CHARGES, at="9999-12-31T00:00:00Z")) == "price_book_invalid"
        novel = CHARGES[0] | {"description": "x" * 501}
        assert await told.code(told.publish([novel])) == "price_book_invalid"

    play(story)


# --------------------------------------------------------------------------- random years


class Billing(RuleBasedStateMachine):
    """Random usage on time, late and taken back; periods billed, corrected and paid in any order.

    The oracle adds up the readings itself, in decimals, and never looks at lines, carried parts or postings.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.told = Billed()

    @initialize(zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]))
    def begins(self, zone: str) -> None:
        self.run(self.told.begin(zone=zone, anchor="2026-01-31"))
        self.start = self.told.loaded(Customer, "acme").billed_to

    def teardown(self) -> None:
        self.loop.close()

    def run(self, story: Any) -> Any:
        return self.loop.run_until_complete(story)

    def invoices(self) -> list[Invoice]:
        names = [s.removeprefix("invoice/") for s in self.told.store.states if s.startswith("invoice/")]
        return [self.told.loaded(Invoice, name) for name in names]

    @rule(
        tokens_in=st.integers(0, 400_000), tokens_out=st.integers(0, 99_999), back_s=st.integers(0, 5_000_000)
    )
    def uses(self, tokens_in: int, tokens_out: int, back_s: int) -> None:
        at = max(self.start, moment_text(moment_of(self.told.now) - timedelta(seconds=back_s)))
        self.told.use(tokens_in, tokens_out, at=at)

    @precondition(lambda self: self.told.readings)
    @rule(data=st.data())
    def takes_back(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.told.readings) - 1))
        self.told.readings[index] = self.told.readings[index]._replace(tokens_out=0)

    @rule(days=st.integers(0, 45))
    def waits(self, days: int) -> None:
        self.told.wait(days=days)

    @rule()
    def bills(self) -> None:
        assert self.run(self.told.code(self.told.bill())) in ("ok", "period_open")

    @precondition(lambda self: self.invoices())
    @rule(data=st.data())
    def corrects(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([invoice.id for invoice in self.invoices()]))
        assert self.run(self.told.code(self.told.correct(one))) in ("ok", "nothing_to_correct")

    @precondition(lambda self: self.invoices())
    @rule(data=st.data())
    def pays(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([invoice.id for invoice in self.invoices()]))
        assert self.run(self.told.code(self.told.pay(one))) in ("ok", "invoice_settled", "insufficient_funds")

    @rule(amount=st.integers(1, 30), source=st.sampled_from(["paid", "promotion"]))
    def gives(self, amount: int, source: str) -> None:
        assert self.run(self.told.code(self.told.give(str(amount), source=source))) in (
            "ok",
            "insufficient_funds",
        )

    @invariant()
    def the_books_say_what_the_documents_say(self) -> None:
        documents, nano = self.invoices(), self.told.balance
        owed = sum(d.owed.nano for d in documents)
        open_due = sum(d.due.nano for d in documents)
        assert nano("receivable.acme.USD") == open_due
        earned = nano("revenue.platform.USD") + nano("tax.platform.USD") + nano("rounding.platform.USD")
        assert earned == owed
        left = sum(
            Money(**self.told.state("grant", s.removeprefix("grant/"))["left"]).nano
            for s in self.told.store.states
            if s.startswith("grant/")
        )
        assert nano("credits.acme.USD") == left
        assert all(a.overdraft or a.balance_nano >= 0 for a in self.told.store.book.accounts.values())

    @invariant()
    def every_period_comes_to_what_its_readings_cost(self) -> None:
        last: dict[str, Invoice] = {}
        total: dict[str, int] = {}
        for document in sorted(self.invoices(), key=lambda d: d.number):
            last[document.period_start] = document
            total[document.period_start] = total.get(document.period_start, 0) + document.owed.nano
        for start, document in last.items():
            rounding = sum(
                d.made.rounding.nano
                for d in self.invoices()
                if d.period_start == start and d.kind == "invoice"
            )
            assert total[start] - rounding == document.made.total.nano

    @invariant()
    def a_fresh_correction_agrees_with_the_oracle(self) -> None:
        for document in self.invoices():
            if document.corrected_by is None and document.known_at == len(self.told.readings):
                if self.run(self.told.code(self.told.correct(document.id))) == "nothing_to_correct":
                    assert Decimal(document.made.total.amount) == self._by_hand(document)

    def _by_hand(self, document: Invoice) -> Decimal:
        """Price a period in decimals: 10.00 prorated, tokens in over two tiers, tokens out, packages of calls."""
        mine = [r for r in self.told.readings if document.period_start <= r.occurred_at < document.period_end]
        share = Fraction(document.sheets[0].share)
        tokens_in = max(Fraction(0), sum(r.tokens_in for r in mine) - 500 * share)
        low = min(tokens_in, Fraction(100_000))
        exact = [
            10 * share,
            low / 1000 * Fraction("0.01") + (tokens_in - low) / 1000 * Fraction("0.007"),
            sum(r.tokens_out for r in mine) * Fraction("0.03") / 1000,
            Fraction(int((Decimal(len(mine)) / 100).to_integral_value(ROUND_CEILING))) / 2,
        ]
        return sum(
            (
                (Decimal(e.numerator) / Decimal(e.denominator)).quantize(Decimal("0.01"), ROUND_HALF_EVEN)
                for e in map(Fraction, exact)
            ),
            Decimal("0.00"),
        )


TestBilling = Billing.TestCase
TestBilling.settings = settings(max_examples=150, stateful_step_count=50)
