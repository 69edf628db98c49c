"""All of commerce in any order: an auditor who computes everything again from the log's bytes finds no difference."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from functools import partial
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from domain.billing.accounts import (
    Deposit,
    TransferEarnings,
    TransferMoney,
    Withdraw,
    deposit,
    transfer,
    transfer_earnings,
    withdraw,
)
from domain.billing.credit_notes import CreditInvoice, credit_invoice
from domain.billing.customers import Customer, Enroll, RedeemCoupon, enroll, redeem_coupon, replan
from domain.billing.grants import GrantCredit, grant
from domain.billing.invoices import FailPayment, Invoice, InvoiceStep, fail_payment, pay_invoice
from domain.billing.payouts import (
    ConfirmPayout,
    FailPayout,
    Payout,
    RequestPayout,
    confirm_payout,
    fail_payout,
    request_payout,
)
from domain.billing.price_books import PublishPrices, publish_prices
from domain.billing.quotes import AskQuote, quote
from domain.billing.usage import CorrectUsage, MeterUsage, Usage, correct_usage, meter_usage
from domain.ledger import Caller, UseCase
from domain.persona import publication, renting, standing
from domain.rental.rentals import Rental
from domain.values import Money, moment_of, moment_text
from tests.unit.billing.commerce_world import OFFERS, TENANTS, ZONES, Commerce, changes_of
from tests.unit.persona.persona_world import AUTHOR, OPERATOR, OTHER_OPERATOR, PERSONA
from tests.unit.persona.renting_maker import CLOCK, TELLER

CALLERS = {tenant: Caller("rick", tenant, frozenset(["owner"])) for tenant in TENANTS}
BOOKS = ("small", "large")
# One of them can hardly pay.
PAID_IN = {"renters": "1000000000", "tokyo": "2000", "kuwait": "50000000"}
HOUR_S, DAY_S = 3_600, 86_400
TICK = timedelta(microseconds=1)
MODELS, PROVIDERS, PERSONAS = ("m1", "m2", "m3"), ("p", "q"), (None, PERSONA)

# --------------------------------------------------------------------------- what is drawn

tenants = st.sampled_from(sorted(TENANTS))
prices = st.sampled_from(["0.01", "1", "3.005", "0.000000001", "17.3", "250", "0"])
pers = st.sampled_from(["1", "1000", "0.3", "1000000"])
bounds = st.sampled_from([None, None, None, "0.005", "12.5", "400"])


@st.composite
def tiers(draw: st.DrawFn) -> list[dict[str, str | None]]:
    """Draw a scale."""
    tops = sorted(draw(st.sets(st.sampled_from([1, 10, 999, 1_000, 250_000]), max_size=3)))
    return [
        {
            "price": draw(prices),
            "up_to": None if top is None else str(top),
            "flat": draw(st.sampled_from(["0", "2.5"])),
        }
        for top in [*tops, None]
    ]


models = st.one_of(
    st.builds(lambda p: {"model": "flat", "price": p}, prices),
    st.builds(lambda p, u: {"model": "per_unit", "price": p, "per": u}, prices, pers),
    st.builds(lambda t, u: {"model": "graduated", "tiers": t, "per": u}, tiers(), pers),
    st.builds(lambda t, u: {"model": "volume", "tiers": t, "per": u}, tiers(), pers),
    st.builds(lambda p, s: {"model": "package", "price": p, "size": s}, prices, pers),
    st.builds(
        lambda p, m: {"model": "per_minute", "price": p, "minutes_min": m},
        prices,
        st.sampled_from(["0", "5"]),
    ),
    st.builds(lambda s: {"model": "percentage", "share": s}, st.sampled_from(["0", "0.03", "1"])),
)
METERS_OF = {"flat": ["period"], "per_minute": ["seconds"], "percentage": ["amount"]}
COUNTED = ["tokens_in", "tokens_out", "cached_tokens", "requests"]


@st.composite
def charges(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw the charges of a version."""
    found = []
    for number, price in enumerate(draw(st.lists(models, min_size=1, max_size=5))):
        low, high = draw(bounds), draw(bounds)
        if low is not None and high is not None and float(low) > float(high):
            low, high = high, low
        match = {
            "model": draw(st.sampled_from([None, *MODELS])),
            "persona_id": draw(st.sampled_from(PERSONAS)),
        }
        found.append(
            {
                "id": f"c{number}",
                "meter": draw(st.sampled_from(METERS_OF.get(price["model"], COUNTED))),
                "price": price,
                "match": {k: v for k, v in match.items() if v is not None},
                "free": draw(st.sampled_from(["0", "0", "100", "1000.5"])),
                "minimum": low,
                "maximum": high,
                "prorate": draw(st.booleans()),
            }
        )
    return found


counts = st.sampled_from([1_001, 7_654_321, 1, 9, 10, 11, 999, 1_000, 250_000, 0])
# How long ago something happened; the last are for periods that may be closed.
backs = st.sampled_from([0, 1, HOUR_S, DAY_S, 3 * DAY_S, 20 * DAY_S, 45 * DAY_S])
taxes = st.lists(
    st.builds(
        lambda n, s: {"name": n, "share": s},
        st.sampled_from(["VAT", "city"]),
        st.sampled_from(["0.19", "0.005"]),
    ),
    max_size=2,
    unique_by=lambda tax: tax["name"],
)


class CommerceMachine(RuleBasedStateMachine):
    """Customers, sellers, clerks, timers, a billing run and clocks, in any order."""

    commands = 0

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.sent: list[dict[str, Any]] = []
        self.stops = 0

    def teardown(self) -> None:
        self.loop.close()

    def run(self, story: Any) -> Any:
        return self.loop.run_until_complete(story)

    def ask(self, use_case: UseCase, command: Any, caller: Caller = TELLER) -> str:
        """Ask for something; a refusal writes nothing, and nothing else than a refusal comes in its way."""
        type(self).commands += 1
        return str(self.run(self.world.says_of(use_case, command, caller)))

    def pick(self, data: st.DataObject, kind: str, *statuses: str) -> str:
        """Choose one of a kind, rather one in a status of these; one that is not there, where there is none."""
        states = [state for state in self.world.store.states.values() if state.kind == kind]
        names = [state.id for state in states if state.status in statuses] or [state.id for state in states]
        return str(data.draw(st.sampled_from(names[::-1] or ["none"])))

    def ago(self, seconds: float) -> str:
        return moment_text(moment_of(self.world.now) - timedelta(seconds=seconds))

    @initialize(data=st.data(), first=charges(), second=charges())
    def opens(self, data: st.DataObject, first: Any, second: Any) -> None:
        self.world: Commerce = self.run(Commerce.begun_with_offers())
        for tenant, currency in TENANTS.items():
            self.publishes(tenant, first, "small", 0, None)
            self.publishes(tenant, second, "large", 0, "25")
            for one in {currency, "USD"}:
                self.ask(deposit, Deposit(tenant=tenant, amount=Money.parse(PAID_IN[tenant], one)))
            self.enrolls(data, tenant)
        for tenant in TENANTS:
            self.measures(data, tenant)
        if data.draw(st.sampled_from([True, True, False])):
            self.world.wait(data.draw(st.sampled_from([32, 60])) * DAY_S)
            self.billing_runs()

    # ------------------------------------------------------------------ prices and plans

    @rule(
        tenant=tenants,
        sheet=charges(),
        book=st.sampled_from(BOOKS),
        ahead_s=st.sampled_from([0, 1, HOUR_S, 10 * DAY_S, 33 * DAY_S]),
        least=st.sampled_from([None, "25", "0.000000001", "700"]),
    )
    def publishes(self, tenant: str, sheet: Any, book: str, ahead_s: int, least: str | None) -> None:
        command = {
            "book": f"{book}-{tenant}", "currency": TENANTS[tenant], "charges": sheet, "commitment": least,
            "effective_from": self.ago(-ahead_s) if ahead_s else None,
        }  # fmt: skip
        assert self.ask(publish_prices, PublishPrices.model_validate(command)) == "ok"

    @rule(data=st.data(), tenant=tenants)
    def enrolls(self, data: st.DataObject, tenant: str) -> None:
        day = data.draw(st.sampled_from(["2025-12-31", "2026-01-15", "2026-02-28", "2024-02-29", None]))
        command = Enroll.model_validate(
            {
                "tenant": tenant,
                "book": f"platform.{data.draw(st.sampled_from(BOOKS))}-{tenant}",
                "zone": data.draw(st.sampled_from(ZONES)),
                "every": data.draw(
                    st.sampled_from(["month", "month", "month", "week", "week", "year", "day"])
                ),
                "anchor": day,
                "taxes": data.draw(taxes),
                "grace_s": data.draw(st.sampled_from([0, 0, HOUR_S, 2 * DAY_S])),
            }
        )
        is_customer = f"customer/{tenant}" in self.world.store.states
        assert self.ask(replan if is_customer else enroll, command) == "ok"

    @rule(
        tenant=tenants,
        code=st.sampled_from(["half", "ten", "all"]),
        share=st.sampled_from([None, "0.5", "0.333333", "1"]),
        periods=st.sampled_from([None, 1, 2]),
        only=st.sampled_from([None, ["c0"], ["c1", "commitment"]]),
    )
    def redeems(self, tenant: str, code: str, share: str | None, periods: int | None, only: Any) -> None:
        amount = None if share else Money.parse("10.555", TENANTS[tenant])
        command = RedeemCoupon(
            tenant=tenant, code=code, share=share, amount=amount, periods=periods, charges=only
        )
        assert self.ask(redeem_coupon, command) in ("ok", "coupon_invalid")

    # ------------------------------------------------------------------ usage

    @rule(data=st.data(), tenant=tenants)
    def measures(self, data: st.DataObject, tenant: str) -> None:
        readings = [self._reading(data, tenant) for _ in range(data.draw(st.integers(1, 4)))]
        self._send(readings)
        self.sent += readings

    def _reading(self, data: st.DataObject, tenant: str) -> dict[str, Any]:
        return {
            "source": "gateway",
            "event_id": f"e{len(self.sent)}-{data.draw(st.integers(0, 10**6))}",
            "occurred_at": self._some_time(data, tenant),
            "provider": data.draw(st.sampled_from(PROVIDERS)),
            "model": data.draw(st.sampled_from(MODELS)),
            "persona_id": data.draw(st.sampled_from(PERSONAS)),
            "tokens_in": data.draw(counts),
            "tokens_out": data.draw(counts),
            "cached_tokens": data.draw(st.one_of(st.none(), counts)),
            "requests": data.draw(st.sampled_from([1, 1, 10, 1_001])),
            "tenant": tenant,
        }

    def _some_time(self, data: st.DataObject, tenant: str) -> str:
        """Choose a moment: lately, long ago, or just beside the edge of a period."""
        edges = [document.period_end for document in self.world.all_of(Invoice) if document.tenant == tenant]
        if edges and data.draw(st.booleans()):
            edge = moment_of(data.draw(st.sampled_from(edges)))
            return moment_text(edge + data.draw(st.sampled_from([-TICK, 0 * TICK, TICK])))
        return self.ago(data.draw(backs))

    def _send(self, readings: list[dict[str, Any]]) -> None:
        assert self.ask(meter_usage, MeterUsage.model_validate({"readings": readings}), CLOCK) == "ok"

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def measures_again(self, data: st.DataObject) -> None:
        size = len(self.world.store.logged)
        one = data.draw(st.sampled_from(self.sent))
        self._send([one, one, one | {"requests": one["requests"] + 1}])
        assert len(self.world.store.logged) == size, "a duplicate was counted"

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), change=st.sampled_from(["nothing", "counts", "model", "time", "all of it"]))
    def corrects_usage(self, data: st.DataObject, change: str) -> None:
        self._put_right(data, self.world.one(Usage, self.pick(data, "usage")), change)

    def _put_right(self, data: st.DataObject, usage: Usage, change: str) -> None:
        given: dict[str, Any] = {
            "nothing": lambda: {"requests": usage.requests},
            "counts": lambda: {
                "tokens_in": data.draw(counts),
                "cached_tokens": data.draw(st.sampled_from([None, 5])),
            },
            "model": lambda: {"model": data.draw(st.sampled_from(MODELS)), "persona_id": None},
            "time": lambda: {"occurred_at": self._some_time(data, usage.tenant)},
            "all of it": lambda: dict.fromkeys(("tokens_in", "tokens_out", "cached_tokens", "requests"), 0),
        }[change]()
        command = {"usage_id": usage.id, "replaces": usage.version, "reason": "it was wrong", **given}
        assert self.ask(correct_usage, CorrectUsage.model_validate(command), CLOCK) == "ok"

    # ------------------------------------------------------------------ invoices

    @rule()
    def billing_runs(self) -> None:
        self.run(self.world.run_billing())
        size = len(self.world.store.logged)
        self.run(self.world.run_billing())
        assert len(self.world.store.logged) == size, "billing again changed something"
        if not any(self.world.auditor.late(tenant) for tenant in TENANTS):
            self.world.auditor.check_all_billed()

    @rule(tenant=tenants, with_coupon=st.booleans())
    def is_quoted_and_billed(self, tenant: str, with_coupon: bool) -> None:
        world = self.world
        by_log = self._quoted(tenant, counted=True)
        by_hand = self._quoted(tenant, counted=False)
        heard = self.run(world.bill(tenant))
        assert heard in ("ok", "period_open")
        assert by_log["bill"] == by_hand["bill"]
        if heard == "ok":
            made = max((d for d in world.all_of(Invoice) if d.tenant == tenant), key=lambda d: d.number)
            assert msgspec.to_builtins(made.bill) == by_log["bill"]
            assert msgspec.to_builtins(made.evidence) == by_log["evidence"]

    def _quoted(self, tenant: str, *, counted: bool) -> Any:
        """Ask what the next period comes to: as the log has it, or for the same usage told by hand."""
        world, cuts = self.world, self.world.cuts(tenant)
        members: dict[str, Any] = {"tenant": tenant}
        found = world.count(tenant, cuts)
        if not counted:
            members["usage"] = [
                {name: getattr(used, name) for name in (*COUNTED, "provider", "model", "persona_id")}
                | {"at": start}
                for start, _, part in found.parts
                for used in part
            ]

        async def gather() -> dict[str, Any]:
            return {"counted": found} if counted else {}

        type(self).commands += 1
        asked = world.ledger.act(quote, AskQuote.model_validate(members), CALLERS[tenant], gather=gather)
        return msgspec.json.decode(self.run(asked).body)

    @precondition(lambda self: self.world.all_of(Invoice))
    @rule(
        data=st.data(),
        how=st.sampled_from(["taken back", "late", "counts", "time", "all of it"]),
        credited=st.sampled_from([0, 50, 100]),
    )
    def changes_a_closed_period(self, data: st.DataObject, how: str, credited: int) -> None:
        """Have something come for a period that was billed, and maybe credited; it is corrected, and only once."""
        last, usage = self._billed_usage(data)
        if credited:
            self._credit(data.draw(st.sampled_from([last.id, last.corrects or last.id])), credited, "credits")
        if how == "late" or usage is None:
            self._send([self._reading(data, last.tenant) | {"occurred_at": last.period_start}])
        else:
            self._put_right(data, usage, "all of it" if how == "taken back" else how)
        self._correct_all(last.tenant)

    def _billed_usage(self, data: st.DataObject) -> tuple[Invoice, Usage | None]:
        """Choose the last document of a period and a reading in it, if there is one in any."""
        lasts = [one for one in self.world.all_of(Invoice) if one.corrected_by is None]
        pairs = [
            (last, usage) for last in lasts for usage in self.world.all_of(Usage)
            if usage.tenant == last.tenant and last.period_start <= usage.occurred_at < last.period_end
        ]  # fmt: skip
        found: tuple[Invoice, Usage | None] = data.draw(
            st.sampled_from(pairs or [(one, None) for one in lasts])
        )
        return found

    def _correct_all(self, tenant: str) -> None:
        """Correct every period that needs it; doing so again is refused, and writes nothing."""
        for name in self.world.late(tenant):
            heard = self.run(self.world.correct(name))
            assert heard in ("ok", "too_many_grants")
            assert self.run(self.world.correct(name)) in ("nothing_to_correct", "too_many_grants")

    @rule(data=st.data(), step=st.sampled_from(["correct", "pay", "fail", "collect"]))
    def steps_on_an_invoice(self, data: st.DataObject, step: str) -> None:
        name = self.pick(data, "invoice")
        if name == "none":
            return
        if step == "correct":
            assert self.run(self.world.correct(name)) in ("ok", "nothing_to_correct", "too_many_grants")
        elif step == "pay":
            self.ask(pay_invoice, InvoiceStep(invoice_id=name), CLOCK)
        elif step == "fail":
            self.ask(fail_payment, FailPayment(invoice_id=name, reason="no money"), CLOCK)
        else:
            self.run(self.world.collect(name))

    @rule(data=st.data(), part=st.sampled_from([1, 3, 100]), to=st.sampled_from(["credits", "wallet"]))
    def credits_an_invoice(self, data: st.DataObject, part: int, to: Any) -> None:
        name = self.pick(data, "invoice")
        if name != "none":
            self._credit(name, part, to)

    def _credit(self, name: str, part: int, to: Any) -> None:
        """Credit a part of a document. Units: part in hundredths."""
        invoice = self.world.one(Invoice, name)
        digits = {"USD": 2, "JPY": 0, "KWD": 3}[invoice.owed.currency]
        minor = 10 ** (9 - digits)
        amount = Money.of(
            max(minor, abs(invoice.owed.nano) * part // 100 // minor * minor), invoice.owed.currency
        )
        command = CreditInvoice(invoice_id=name, amount=amount, target=to, reason="goodwill")
        assert self.ask(credit_invoice, command) in ("ok", "credit_too_large", "too_many_grants")

    @rule(
        tenant=tenants,
        amount=st.sampled_from(["0.000000001", "3", "12.345", "100"]),
        source=st.sampled_from(["paid", "promotion"]),
        priority=st.sampled_from([0, 5]),
        lasts_s=st.sampled_from([None, 1, DAY_S, 30 * DAY_S]),
    )
    def gives_credit(self, tenant: str, amount: str, source: Any, priority: int, lasts_s: int | None) -> None:
        command = GrantCredit(
            tenant=tenant, amount=Money.parse(amount, TENANTS[tenant]), source=source, priority=priority,
            expires_at=None if lasts_s is None else self.ago(-lasts_s),
        )  # fmt: skip
        assert self.ask(grant, command) in ("ok", "insufficient_funds", "too_many_grants")

    # ------------------------------------------------------------------ wallets and earnings

    @rule(
        tenant=tenants,
        how=st.sampled_from(["deposit", "withdraw", "transfer"]),
        amount=st.sampled_from(["0", "5", "333.333333333", "3000"]),
        currency=st.sampled_from(["own", "USD"]),
    )
    def moves_money(self, tenant: str, how: str, amount: str, currency: str) -> None:
        money = Money.parse(amount, TENANTS[tenant] if currency == "own" else currency)
        if how == "deposit":
            heard = self.ask(deposit, Deposit(tenant=tenant, amount=money))
        elif how == "withdraw":
            heard = self.ask(withdraw, Withdraw(tenant=tenant, amount=money))
        else:
            heard = self.ask(transfer, TransferMoney(to_tenant="renters", amount=money), CALLERS[tenant])
        assert heard in ("ok", "insufficient_funds", "invalid_amount", "account_not_found", "same_account")

    @rule(
        data=st.data(),
        step=st.sampled_from(["ask", "ask for all", "confirm", "fail", "to the wallet"]),
        currency=st.sampled_from(["USD", "JPY", "KWD"]),
    )
    def seller_is_paid_out(self, data: st.DataObject, step: str, currency: str) -> None:
        name = self.pick(data, Payout.KIND, "requested")
        account = self.world.store.book.accounts.get(f"earnings.acme.{currency}")
        everything = Money.of(account.available_nano if account else 0, currency)
        some = everything if step == "ask for all" else Money.parse("1", currency)
        steps: dict[str, Any] = {
            "confirm": (confirm_payout, ConfirmPayout(payout_id=name, reference="bank-1"), TELLER),
            "fail": (fail_payout, FailPayout(payout_id=name, reason="no such account"), TELLER),
            "to the wallet": (transfer_earnings, TransferEarnings(amount=some), AUTHOR),
        }
        asked = (request_payout, RequestPayout(amount=some, destination="bank"), AUTHOR)
        before = everything.nano
        if self.ask(*steps.get(step, asked)) == "ok" and step.startswith("ask"):
            assert some.nano <= before

    # ------------------------------------------------------------------ renting, subscribing, buying

    @rule(
        tenant=tenants,
        offer=st.sampled_from(OFFERS),
        minutes=st.sampled_from([1, 45, 46, 600, 3_000]),
        at_once=st.booleans(),
    )
    def takes_an_offer(self, tenant: str, offer: Any, minutes: int, at_once: bool) -> None:
        wish = {
            "persona_id": PERSONA,
            "currency": offer["price"]["currency"],
            "billing_period_minutes": offer["billing_period_minutes"],
        }
        if offer["model"] == "rental":
            command = renting.RentPersona(minutes=minutes, **wish)
            if self.ask(renting.rent, command, CALLERS[tenant]) == "ok" and at_once:
                latest = [state.id for state in self.world.store.states.values() if state.kind == "rental"][
                    -1
                ]
                self.ask(renting.activate, renting.ActivateRental(rental_id=latest), CALLERS[tenant])
        elif offer["model"] == "subscription":
            self.ask(renting.subscribe, renting.SubscribePersona(**wish), CALLERS[tenant])
        else:
            self.ask(renting.purchase, renting.PurchasePersona(**wish), CALLERS[tenant])

    @rule(tenant=tenants, zone=st.sampled_from(ZONES), day=st.sampled_from(["2025-12-31", "2026-01-07"]))
    def subscribes_in_a_zone(self, tenant: str, zone: str, day: str) -> None:
        command = renting.SubscribePersona(
            persona_id=PERSONA, currency="USD", billing_period_minutes=43_200, zone=zone, anchor=day
        )
        self.ask(renting.subscribe, command, CALLERS[tenant])

    @rule(
        data=st.data(),
        step=st.sampled_from(["activate", "extend", "end"]),
        minutes=st.sampled_from([1, 60, 100]),
    )
    def steps_on_a_rental(self, data: st.DataObject, step: str, minutes: int) -> None:
        name = self.pick(data, "rental", "requested" if step == "activate" else "active")
        caller = self._owner("rental", name)
        if step == "activate":
            self.ask(renting.activate, renting.ActivateRental(rental_id=name), caller)
        elif step == "extend":
            self.ask(renting.extend, renting.ExtendRental(rental_id=name, minutes=minutes), caller)
        else:
            self.ask(renting.end, renting.RentalStep(rental_id=name), caller)

    @rule(data=st.data(), step=st.sampled_from(["now", "period_end", "resume", "change"]))
    def steps_on_a_subscription(self, data: st.DataObject, step: Any) -> None:
        name = self.pick(data, "subscription", "active", "past_due")
        caller = self._owner("subscription", name)
        if step == "resume":
            self.ask(renting.resume, renting.SubscriptionStep(subscription_id=name), caller)
        elif step == "change":
            self.ask(renting.change_plan, renting.ChangePlan(subscription_id=name), caller)
        else:
            self.ask(renting.cancel, renting.CancelSubscription(subscription_id=name, when=step), caller)

    @rule(data=st.data())
    def gives_a_purchase_back(self, data: st.DataObject) -> None:
        name = self.pick(data, "purchase", "held")
        self.ask(renting.give_back, renting.PurchaseStep(purchase_id=name), self._owner("purchase", name))

    def _owner(self, kind: str, name: str) -> Caller:
        state = self.world.store.states.get(f"{kind}/{name}")
        return CALLERS[state.tenant if state else "renters"]

    @precondition(lambda self: self.stops < 2 and len(self.world.all_of(Rental)) > 1)
    @rule(how=st.sampled_from(["suspend", "revoke"]), rentals=st.sampled_from(["end", "let_run"]))
    def stops_the_capsule(self, how: str, rentals: Any) -> None:
        self.stops += 1
        named = {"capsule_id": self.world.capsule.address, "reason": "it misled people", "rentals": rentals}
        if how == "suspend":
            self.ask(standing.suspend_capsule, standing.SuspendCapsule(**named), OPERATOR)
        else:
            self.ask(standing.revoke_capsule, standing.RevokeCapsule(**named), OPERATOR)

    @precondition(lambda self: self.stops)
    @rule()
    def reinstates_the_capsule(self) -> None:
        command = publication.ReinstateCapsule(capsule_id=self.world.capsule.address, reason="it was nothing")
        self.ask(publication.reinstate_capsule, command, OTHER_OPERATOR)

    # ------------------------------------------------------------------ time

    @rule(
        seconds=st.sampled_from([0.000001, 1, 61, HOUR_S, DAY_S, 8 * DAY_S, 15 * DAY_S, 31 * DAY_S]),
        looks=st.booleans(),
    )
    def time_passes(self, seconds: float, looks: bool) -> None:
        self.world.wait(seconds)
        self._looks(looks)

    @rule(
        data=st.data(),
        tenant=tenants,
        to=st.sampled_from(["period", "grace", "grace", "clocks"]),
        beside=st.sampled_from([-TICK, 0 * TICK, TICK]),
        looks=st.booleans(),
    )
    def time_passes_to_an_edge(
        self, data: st.DataObject, tenant: str, to: str, beside: timedelta, looks: bool
    ) -> None:
        customer, now = self.world.one(Customer, tenant), moment_of(self.world.now)
        edges = {
            "period": partial(lambda: [customer.next_period().end]),
            "grace": partial(lambda: [moment_of(customer.ready_at)]),
            "clocks": partial(lambda: [at for at in changes_of(customer.agreed.zone) if at > now][:1]),
        }[to]()
        for edge in edges:
            if now < edge + beside < now + timedelta(days=200):
                self.world.now = moment_text(edge + beside)
        self._looks(looks)

    def _looks(self, looks: bool) -> None:
        if looks:
            self.run(self.world.timers_look())
            self.run(self.world.watch_looks())

    # ------------------------------------------------------------------ what always holds

    @invariant()
    def an_auditor_finds_nothing(self) -> None:
        if hasattr(self, "world"):
            self.world.audit()


IS_THOROUGH = os.environ.get("SOMA_TEST_PROFILE") == "thorough"


class TestCommerceMachine(CommerceMachine.TestCase):  # type: ignore[name-defined,misc]
    """Fifty lives of forty steps, or two thousand of sixty where there is time."""

    settings = settings(
        max_examples=2_000 if IS_THOROUGH else 50,
        stateful_step_count=60 if IS_THOROUGH else 40,
        deadline=None,
    )
