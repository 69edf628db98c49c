"""Everything that moves money or is about billing, done once on a real log whose clock the test moves on."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import msgspec

from domain.billing.accounts import Deposit, TransferEarnings, deposit, transfer_earnings
from domain.billing.credit_notes import CreditInvoice, credit_invoice
from domain.billing.customers import Enroll, RedeemCoupon, enroll, redeem_coupon, replan
from domain.billing.grants import GrantCredit, GrantStep, expire_grant, grant
from domain.billing.invoices import (
    CorrectInvoice,
    FailPayment,
    InvoiceStep,
    IssueInvoice,
    correct_invoice,
    fail_payment,
    issue_invoice,
    pay_invoice,
)
from domain.billing.payouts import (
    ConfirmPayout,
    FailPayout,
    RequestPayout,
    confirm_payout,
    fail_payout,
    request_payout,
)
from domain.billing.price_books import PublishPrices, publish_prices
from domain.billing.usage import CorrectUsage, MeterUsage, correct_usage, meter_usage
from domain.ledger import Caller
from domain.values import moment_text
from ops.clock import Clock
from ops.runtime import Runtime
from projections.billing_counts import NOTHING, count_again, count_next
from tests.unit.billing.billing_maker import BOOK, CHARGES
from tests.unit.market.market_maker import usd
from tests.unit.rental import rental_maker as renting
from tests.unit.rental import test_subscriptions as subscribing

DESK = Caller("ola", "platform", frozenset({"operator"}))
RUN = Caller("billing-run", "platform", frozenset({"service"}))
BUYER = Caller("olivia", "acme", frozenset({"owner", "billing"}))
METER = Caller("gateway", "acme", frozenset({"service"}))
MAKER = Caller("mia", "maker", frozenset({"provider"}))


class Trade:
    """Plays the commerce of one customer and one seller, from prices to payouts."""

    def __init__(self) -> None:
        self.ahead = timedelta()
        self.clock = Clock(lambda: time.time_ns() + int(self.ahead.total_seconds() * 10**9))

    @property
    def now(self) -> datetime:
        """Give the moment it is in the story."""
        return datetime.now(UTC) + self.ahead

    async def play(self, runtime: Runtime) -> None:
        """Do all of it."""
        self.runtime = runtime
        await self.do(deposit, Deposit(tenant="acme", amount=usd("1000")), DESK)
        await self.rent_and_buy()
        await self.pay_out()
        await self.bill()

    async def do(self, use_case: Any, command: Any, caller: Caller, **given: Any) -> Any:
        """Carry out a command, with what its use case is to be given; give its answer."""

        async def gather() -> dict[str, Any]:
            return given

        answer = await self.runtime.ledger.act(use_case, command, caller, gather=gather if given else None)
        return msgspec.json.decode(answer.body)

    # ------------------------------------------------------------------ what is sold

    async def rent_and_buy(self) -> None:
        """Rent, extend and give back; subscribe, change, renew and end; buy, give back and keep."""
        rental = renting.Ask(rental_id=(await self.do(renting.rent, renting.Ask(minutes=30), BUYER))["id"])
        await self.do(renting.activate, rental, BUYER)
        longer = renting.Ask(rental_id=rental.rental_id, minutes=10)
        await self.do(renting.extend, longer, BUYER)
        unused = await self.do(renting.rent, renting.Ask(minutes=5), BUYER)
        subscription = await self.named(subscribing.subscribe)
        kept, returned = await self.named(subscribing.buy), await self.named(subscribing.buy)
        await self.do(subscribing.give_back, returned, BUYER)
        self.ahead += timedelta(minutes=12)
        await self.do(renting.give_back, rental, BUYER)
        await self.do(renting.give_back, renting.Ask(rental_id=unused["id"]), BUYER)
        await self.do(subscribing.upgrade, subscription, BUYER)
        await self.do(subscribing.cancel, subscription, BUYER)
        await self.do(subscribing.resume, subscription, BUYER)
        self.ahead += timedelta(days=32)
        await self.do(subscribing.settle, kept, RUN)
        await self.do(subscribing.renew, subscription, RUN)
        await self.do(subscribing.stop, subscription, BUYER)

    async def named(self, use_case: Any) -> subscribing.Name:
        """Begin something, and name it."""
        return subscribing.Name(id=(await self.do(use_case, subscribing.Name(), BUYER))["id"])

    async def pay_out(self) -> None:
        """Spend a part of what was earned, have a part paid out, and a part come back."""
        await self.do(transfer_earnings, TransferEarnings(amount=usd("1")), MAKER)
        ask = RequestPayout(amount=usd("2"), destination="house bank")
        paid, failed = [(await self.do(request_payout, ask, MAKER))["id"] for _ in range(2)]
        await self.do(confirm_payout, ConfirmPayout(payout_id=paid, reference="bank-1"), DESK)
        await self.do(fail_payout, FailPayout(payout_id=failed, reason="no such account"), DESK)

    # ------------------------------------------------------------------ what is billed

    async def bill(self) -> None:
        """Bill a day, be paid, credit a part, and enter what came too late."""
        book = {"book": "standard", "currency": "USD", "charges": CHARGES}
        await self.do(publish_prices, PublishPrices.model_validate(book), DESK)
        await self.tomorrow()
        await self.do(enroll, Enroll(tenant="acme", book=BOOK, every="day", grace_s=0), DESK)
        await self.do(replan, Enroll(tenant="acme", book=BOOK, every="day", grace_s=0), DESK)
        await self.do(redeem_coupon, RedeemCoupon(tenant="acme", code="tenth", share="0.1"), DESK)
        await self.do(grant, GrantCredit(tenant="acme", amount=usd("3")), DESK)
        soon = moment_text(self.now + timedelta(hours=1))
        gone = GrantCredit(tenant="acme", amount=usd("1"), source="promotion", expires_at=soon, priority=9)
        lost = (await self.do(grant, gone, DESK))["id"]
        used = moment_text(self.now)
        await self.meter(used, tokens_out=4_000)
        self.ahead += timedelta(hours=2)
        await self.do(expire_grant, GrantStep(grant_id=lost), RUN)
        await self.tomorrow()
        counted = (await count_next(self.runtime.reader, ["acme"])).get("acme", NOTHING)
        invoice = await self.do(issue_invoice, IssueInvoice(tenant="acme"), RUN, counted=counted)
        name = invoice["id"]
        await self.do(fail_payment, FailPayment(invoice_id=name, reason="insufficient_funds"), RUN)
        await self.do(pay_invoice, InvoiceStep(invoice_id=name), RUN)
        note = CreditInvoice(invoice_id=name, amount=usd("1"), target="wallet", reason="an outage")
        await self.do(credit_invoice, note, DESK)
        await self.correct(name, used)

    async def correct(self, invoice: str, used: str) -> None:
        """Put a reading right and send one more, of a time that was billed; correct the invoice."""
        (reading,) = await self.runtime.reader.usage("acme", before=None, limit=10)
        wrong = CorrectUsage(usage_id=reading["id"], replaces=1, reason="counted twice", tokens_out=2_000)
        await self.do(correct_usage, wrong, METER)
        await self.meter(used, tokens_in=9_000)
        load = await self.runtime.reader.load([f"invoice/{invoice}"])
        counted = await count_again(self.runtime.reader, load[f"invoice/{invoice}"].aggregate)  # type: ignore[arg-type]
        await self.do(correct_invoice, CorrectInvoice(invoice_id=invoice), RUN, counted=counted)

    async def meter(self, occurred_at: str, **tokens: int) -> None:
        """Send a reading."""
        said = {"source": "gateway", "event_id": uuid4().hex, "occurred_at": occurred_at, "provider": "p"}
        reading = said | {"model": "m1", "tokens_in": 0, "tokens_out": 0} | tokens
        await self.do(meter_usage, MeterUsage.model_validate({"readings": [reading]}), METER)

    async def tomorrow(self) -> None:
        """Let time pass until an hour after the next midnight."""
        midnight = (self.now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        self.ahead += midnight - self.now + timedelta(hours=1)
