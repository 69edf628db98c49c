"""Days of commerce on a real log: rentals, subscriptions, purchases, usage and its corrections, bills and what follows.

The plain reading at the end knows nothing of projections: records are decoded with `json`, amounts with `decimal`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import psycopg

from domain.billing.credit_notes import CreditInvoice, credit_invoice
from domain.billing.customers import Enroll, RedeemCoupon, enroll, redeem_coupon
from domain.billing.grants import GrantCredit, GrantStep, expire_grant, grant
from domain.billing.payouts import (
    ConfirmPayout,
    FailPayout,
    RequestPayout,
    confirm_payout,
    fail_payout,
    request_payout,
)
from domain.billing.price_books import PublishPrices, publish_prices
from domain.billing.usage import CorrectUsage, MeterUsage, correct_usage, meter_usage, usage_name
from domain.fields import Command
from domain.ledger import Caller, Case, allow
from domain.rental.purchases import Purchase, make_purchase, refund_purchase, settle_purchase
from domain.rental.subscriptions import (
    Plan,
    Subscription,
    cancel_at_end,
    change_subscription,
    fail_renewal,
    renew_subscription,
    start_subscription,
)
from domain.values import Money, moment_text
from ops.clock import Clock
from projections.billing_run import BillingRun, Tally
from projections.warehouse import PROJECTIONS
from tests.real.clickhouse.reconciled import TELLER, TENANTS, World
from tests.unit.billing.billing_maker import CHARGES
from tests.unit.rental import rental_maker
from tests.unit.rental.rental_maker import SALE, Ask

SELLER = Caller("mia", SALE.seller, frozenset({"provider", "owner"}))


class Step(Command):
    """What a test asks of a sale."""

    name: str = ""
    amount: str = ""


def _plan(amount: str) -> Plan:
    return Plan(SALE, Money.parse(amount, "USD"), "day", "UTC", "2026-01-01")


@allow()
def subscribe(case: Case, command: Step) -> Subscription:
    """Subscribe for a price a day."""
    return start_subscription(case, _plan(command.amount))


@allow()
def change(case: Case, command: Step) -> Subscription:
    """Change the price."""
    return change_subscription(case, case.get(Subscription, command.name), _plan(command.amount))


@allow()
def renew(case: Case, command: Step) -> Subscription:
    """Renew it, or end what is not renewed."""
    return renew_subscription(case, command.name)


@allow()
def fail(case: Case, command: Step) -> Subscription:
    """Say that it could not be paid."""
    return fail_renewal(case, command.name, "insufficient_funds")


@allow()
def cancel(case: Case, command: Step) -> Subscription:
    """Let it run out."""
    return cancel_at_end(case, case.get(Subscription, command.name))


@allow()
def buy(case: Case, command: Step) -> Purchase:
    """Buy for good."""
    return make_purchase(case, SALE, Money.parse(command.amount, "USD"))


@allow()
def settle(case: Case, command: Step) -> Purchase:
    """Pay the seller when it is time."""
    return settle_purchase(case, command.name)


@allow()
def give_back(case: Case, command: Step) -> Purchase:
    """Give it back."""
    return refund_purchase(case, case.get(Purchase, command.name), "returned")


class Time:
    """A clock that the test lets run ahead."""

    def __init__(self) -> None:
        self._ahead = timedelta()
        self.clock = Clock(lambda: time.time_ns() + int(self._ahead.total_seconds()) * 10**9)

    @property
    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=int(self._ahead.total_seconds()))

    def go(self, **passed: float) -> None:
        """Let time pass."""
        self._ahead += timedelta(**passed)

    def next_day(self, hours: int = 1) -> None:
        """Let time pass until so many hours after the next midnight."""
        midnight = (self.now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        self.go(seconds=int((midnight - self.now).total_seconds()) + 1, hours=hours)


class Shop:
    """What is done in a world, by whom it is done."""

    def __init__(self, told: World, clock: Time) -> None:
        self.told = told
        self.time = clock
        self.sent = 0

    async def act(
        self, use_case: Callable[..., Any], command: Any, tenant: str = "", **more: Any
    ) -> dict[str, Any]:
        """Do something as a tenant, or as the platform; give the answer."""
        caller = Caller("olga", tenant, frozenset({"owner"})) if tenant else TELLER
        if tenant == SELLER.tenant:
            caller = SELLER
        answer = await self.told.runtime.ledger.act(use_case, command, caller, **more)
        found: dict[str, Any] = msgspec.json.decode(answer.body)
        return found

    # ------------------------------------------------------------------ billing

    async def enroll_all(self) -> None:
        """Publish prices, and make every tenant but the last a customer by the day, with money."""
        prices = {"book": "standard", "currency": "USD", "charges": CHARGES}
        await self.act(publish_prices, PublishPrices.model_validate(prices))
        self.time.next_day()
        await self.told.open_wallets()
        taxes: list[Any] = [{"name": "VAT", "share": "0.19"}]
        for tenant in TENANTS[:3]:
            plan = {
                "tenant": tenant,
                "book": "platform.standard",
                "every": "day",
                "grace_s": 0,
                "taxes": taxes,
            }
            await self.act(enroll, Enroll.model_validate(plan))
        coupon = {"tenant": "bolt", "code": "SPRING", "share": "0.1", "periods": 1}
        await self.act(redeem_coupon, RedeemCoupon.model_validate(coupon))

    async def use(self, count: int, **said: Any) -> list[str]:
        """Use models of several kinds, some for the persona; give the names of the readings."""
        readings: list[dict[str, Any]] = []
        for n in range(self.sent, self.sent + count):
            tenant = TENANTS[n % 4]
            readings.append(
                {
                    "source": "gateway", "event_id": f"e-{n}", "occurred_at": moment_text(self.time.now),
                    "provider": f"p{n % 2}", "model": f"m{n % 3}", "tokens_in": 400 + n, "tokens_out": 7 * n,
                    "tenant": tenant,
                    "latency_ms": None if n % 5 == 0 else 7 * n, "status": "error" if n % 11 == 0 else "ok",
                    "persona_id": SALE.persona_id if n % 3 == 0 else None,
                    "cost": None if n % 4 == 0 else {"amount": f"0.00{n % 9 + 1}", "currency": "USD"},
                } | said
            )  # fmt: skip
        self.sent += count
        taken = await self.act(meter_usage, MeterUsage.model_validate({"readings": readings}))
        assert taken["inserted"] == count, taken
        return [usage_name(r["tenant"], r["source"], r["event_id"]) for r in readings]

    async def correct(self, name: str, replaces: int = 1, **said: Any) -> None:
        """Put a reading right."""
        command = {"usage_id": name, "replaces": replaces, "reason": "counted wrongly"} | said
        await self.act(correct_usage, CorrectUsage.model_validate(command))

    async def bill(self) -> Tally:
        """Run billing."""
        return await BillingRun(self.told.runtime).run()

    # ------------------------------------------------------------------ sales

    async def sell(self) -> dict[str, str]:
        """Rent, subscribe and buy in every way; give the names of what goes on."""
        ended = await self.act(rental_maker.rent, Ask(minutes=30), "acme")
        await self.act(rental_maker.activate, Ask(rental_id=ended["id"]), "acme")
        await self.act(rental_maker.extend, Ask(rental_id=ended["id"], minutes=15), "acme")
        self.time.go(minutes=12)
        await self.act(rental_maker.give_back, Ask(rental_id=ended["id"]), "acme")
        cancelled = await self.act(rental_maker.rent, Ask(minutes=5), "bolt")
        await self.act(rental_maker.give_back, Ask(rental_id=cancelled["id"]), "bolt")
        running = await self.act(rental_maker.rent, Ask(minutes=60), "bolt")
        await self.act(rental_maker.activate, Ask(rental_id=running["id"]), "bolt")
        kept = await self.act(subscribe, Step(amount="4"), "acme")
        left = await self.act(subscribe, Step(amount="2"), "cube")
        failing = await self.act(subscribe, Step(amount="3"), "bolt")
        self.time.go(minutes=5)
        await self.act(change, Step(name=kept["id"], amount="6"), "acme")
        await self.act(cancel, Step(name=left["id"]), "cube")
        bought = await self.act(buy, Step(amount="25"), "dune")
        returned = await self.act(buy, Step(amount="25"), "dune")
        await self.act(give_back, Step(name=returned["id"]), "dune")
        names = {"running": running, "kept": kept, "left": left, "failing": failing, "bought": bought}
        return {key: made["id"] for key, made in names.items()}

    async def go_on(self, names: dict[str, str]) -> None:
        """Let the night pass over what goes on."""
        await self.act(rental_maker.expire, Ask(rental_id=names["running"]))
        for name in ("kept", "left"):
            await self.act(renew, Step(name=names[name]))
        await self.act(fail, Step(name=names["failing"]))

    async def pay_out(self) -> None:
        """Ask for what was earned: one payout leaves, one comes back, one waits."""
        made = []
        for amount in ("0.75", "0.25", "0.10"):
            wish = RequestPayout(amount=Money.parse(amount, "USD"), destination="main account")
            made.append((await self.act(request_payout, wish, SELLER.tenant))["id"])
        await self.act(confirm_payout, ConfirmPayout(payout_id=made[0], reference="bank-1"))
        await self.act(fail_payout, FailPayout(payout_id=made[1], reason="the account is closed"))

    async def give(self, tenant: str, amount: str, **how: Any) -> str:
        """Give credit."""
        wish = GrantCredit.model_validate(
            {"tenant": tenant, "amount": {"amount": amount, "currency": "USD"}} | how
        )
        return str((await self.act(grant, wish))["id"])

    async def take_back(self, invoice: str, amount: str, target: str) -> None:
        """Write a credit note."""
        note = {"invoice_id": invoice, "amount": {"amount": amount, "currency": "USD"}, "target": target}
        await self.act(credit_invoice, CreditInvoice.model_validate(note | {"reason": "an outage"}))


async def days_of_commerce(shop: Shop) -> None:
    """Play it all, and let every follower go to the end of the log."""
    await shop.enroll_all()
    promotion = {"source": "promotion", "expires_at": moment_text(shop.time.now + timedelta(hours=30))}
    gone = await shop.give("cube", "100", **promotion)
    await shop.give("acme", "3.50")
    readings = await shop.use(48)
    names = await shop.sell()
    shop.time.next_day()
    await shop.go_on(names)
    tally = await shop.bill()
    assert tally[:5] == (3, 0, 0, 2, 0), tally
    await shop.pay_out()
    await _put_right(shop, readings)
    shop.time.next_day()
    await shop.act(expire_grant, GrantStep(grant_id=gone))
    tally = await shop.bill()
    assert tally.corrected >= 2, tally
    shop.time.go(days=15)
    await shop.act(settle, Step(name=names["bought"]))
    await shop.act(fail, Step(name=names["failing"]))
    await shop.bill()
    await shop.take_back("inv-acme-000001", "1.19", "credits")
    await shop.take_back("inv-bolt-000001", "0.50", "wallet")
    await shop.told.follow(PROJECTIONS)


async def _put_right(shop: Shop, readings: list[str]) -> None:
    """Correct readings in every way: counts, twice, taken back, another model, another month, and a late one."""
    long_ago = moment_text(shop.time.now - timedelta(days=40))
    await shop.correct(readings[0], tokens_in=1)
    await shop.correct(readings[0], 2, tokens_in=2_000_000)
    await shop.correct(readings[4], tokens_in=0, tokens_out=0, requests=0, cost=None)
    await shop.correct(readings[8], model="m9", latency_ms=10_000_000)
    await shop.correct(readings[1], occurred_at=long_ago, cost={"amount": "1.25", "currency": "EUR"})
    await shop.correct(readings[3], latency_ms=None, status="error")
    await shop.use(
        1, occurred_at=moment_text(shop.time.now - timedelta(days=1)), tokens_in=90_000, model="m1"
    )


# --------------------------------------------------------------------------- the log, read plainly


class Books:
    """A log of commerce, read with the standard library only."""

    def __init__(self, url: str) -> None:
        with psycopg.connect(url) as connection:
            found = connection.execute("SELECT record FROM events ORDER BY position").fetchall()
        self.records: list[dict[str, Any]] = [json.loads(bytes(record)) for (record,) in found]

    def of(self, *types: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Give the records of some types, with their positions."""
        return ((at, record) for at, record in enumerate(self.records) if record["type"] in types)

    def readings(self, before: int | None = None) -> dict[str, dict[str, Any]]:
        """Give what every reading says as known before a position: the latest version of each stream."""
        held: dict[str, dict[str, Any]] = {}
        for at, record in self.of("usage.metered", "usage.corrected"):
            if before is None or at < before:
                known = held.get(record["stream"], {})
                more = {"tenant": record["tenant"], "position": at, "version": record["version"]}
                held[record["stream"]] = known | record["data"] | more
        return held


def amount_of(money: dict[str, str] | None) -> Decimal:
    """Read money; none is nothing."""
    return Decimal(money["amount"]) if money else Decimal(0)
