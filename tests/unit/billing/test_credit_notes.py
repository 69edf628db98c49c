"""Credit notes and payouts: never more than was billed, tax to the last cent, each once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.billing.credit_notes import CreditInvoice, credit_invoice
from domain.billing.grants import GrantCredit, grant
from domain.billing.payouts import (
    ConfirmPayout,
    FailPayout,
    RequestPayout,
    confirm_payout,
    fail_payout,
    request_payout,
)
from domain.ledger import Caller
from domain.values import Money
from tests.unit.billing.billing_maker import Billed
from tests.unit.billing.earning import Earn, earn
from tests.unit.billing.test_invoices import FEBRUARY, play
from tests.unit.market.market_maker import OPERATOR, usd

ACME = Caller("olivia", "acme", frozenset(["owner"]))
CENT = usd("0.01").nano


async def credit(told: Billed, invoice: str, amount: str, target: Any = "credits") -> Any:
    """Credit a part of an invoice."""
    command = CreditInvoice(invoice_id=invoice, amount=usd(amount), target=target, reason="goodwill")
    return await told.do(credit_invoice, command, OPERATOR)


def test_no_more_comes_back_into_the_wallet_than_came_from_it():
    async def run() -> None:
        told = Billed()
        await told.begin()
        for source, amount in (("promotion", "4"), ("paid", "1")):
            await told.do(grant, GrantCredit(tenant="acme", amount=usd(amount), source=source), OPERATOR)
        told.go_to(FEBRUARY)
        invoice = await told.bill()
        await told.pay(invoice["id"])
        due, total = told.loaded_nano(invoice["due"]), told.loaded_nano(invoice["owed"])
        assert 0 < due == total - usd("5").nano
        everything = str(Money.of(total, "USD").amount)
        assert await told.code(credit(told, invoice["id"], everything, "wallet")) == "credit_too_large"
        before = told.balance("wallet.acme.USD")
        bought = due + usd("1").nano
        await credit(told, invoice["id"], str(Money.of(bought, "USD").amount), "wallet")
        assert told.balance("wallet.acme.USD") == before + bought
        assert await told.code(credit(told, invoice["id"], "0.01", "wallet")) == "credit_too_large"
        await credit(told, invoice["id"], "4", "credits")
        assert told.balance("wallet.acme.USD") == before + bought
        assert told.balance("credits.acme.USD") == usd("4").nano

    asyncio.run(run())


@given(st.lists(st.integers(1, 600), min_size=1, max_size=8), st.booleans())
def test_credits_in_any_steps_give_back_the_invoice_and_its_tax_exactly(steps, paid):
    async def story(told: Billed) -> None:
        told.go_to(FEBRUARY)
        invoice = await told.bill()
        name, total = invoice["id"], told.loaded_nano(invoice["owed"])
        if paid:
            await told.pay(name)
        given_back = 0
        for step in [*(s * CENT for s in steps), total]:
            step = min(step, total - given_back)
            if step:
                await credit(told, name, str(usd("0").of(step, "USD").amount))
                given_back += step
        assert given_back == total
        assert told.balance("revenue.platform.USD") == told.balance("tax.platform.USD") == 0
        assert told.balance("receivable.acme.USD") == 0
        assert told.balance("credits.acme.USD") == (total if paid else 0)
        assert await told.code(credit(told, name, "0.01")) == "credit_too_large"

    async def run() -> None:
        told = Billed()
        await told.begin(taxes=[{"name": "vat", "share": "0.19"}])
        await story(told)

    asyncio.run(run())


def test_what_is_still_due_goes_down_first_and_the_rest_comes_back():
    async def story(told: Billed) -> None:
        told.go_to(FEBRUARY)
        first = (await told.bill())["id"]
        await told.pay(first)
        note = await credit(told, first, "4", "wallet")
        assert (note["off_due"]["amount"], note["returned"]["amount"]) == ("0.00", "4.00")
        assert told.balance("wallet.acme.USD") == usd("994").nano

    play(story)


@pytest.mark.parametrize("credited_first", [True, False])
@pytest.mark.parametrize("paid", [True, False])
def test_what_was_credited_is_not_given_back_again_by_a_correction_nor_the_other_way_round(
    credited_first, paid
):
    async def story(told: Billed) -> None:
        told.use(0, 1_000_000)
        told.go_to(FEBRUARY)
        first = await told.bill()
        name, total = first["id"], first["owed"]["amount"]
        if paid:
            await told.pay(name)
        if credited_first:
            await credit(told, name, total)
        told.readings[0] = told.readings[0]._replace(tokens_out=0)
        later = await told.correct(name)
        if not credited_first:
            assert await told.code(credit(told, name, total)) == "credit_too_large"
            await credit(told, name, "12.50")
        # Of 48.20 with its tax 12.50 are for the base fee and the call; everything was taken back, and no more.
        assert (total, later["owed"]["amount"]) == ("48.20", "0.00" if credited_first else "-35.70")
        given_back = told.balance("credits.acme.USD") - told.balance("receivable.acme.USD")
        assert given_back == (told.loaded_nano(first["owed"]) if paid else 0)
        assert told.balance("revenue.platform.USD") == told.balance("tax.platform.USD") == 0
        told.readings[0] = told.readings[0]._replace(tokens_out=1_000_000, tokens_in=1)
        again = await told.correct(later["id"])
        assert again["owed"]["amount"] == ("0.00" if credited_first else "35.70")

    async def run() -> None:
        told = Billed()
        await told.begin(taxes=[{"name": "vat", "share": "0.19"}])
        await story(told)

    asyncio.run(run())


def test_an_unpayable_amount_or_another_currency_is_refused():
    async def story(told: Billed) -> None:
        told.go_to(FEBRUARY)
        name = (await told.bill())["id"]
        assert await told.code(credit(told, name, "0.001")) == "invalid_amount"
        euro = CreditInvoice(invoice_id=name, amount=usd("1").parse("1", "EUR"), reason="x")
        assert await told.code(told.do(credit_invoice, euro, OPERATOR)) == "currency_mismatch"

    play(story)


def test_a_payout_leaves_once_or_comes_back_once():
    async def story(told: Billed) -> None:
        ask = RequestPayout(amount=usd("600"), destination="main account")
        # What is in the wallet was paid in to be spent; only earnings are paid out.
        assert await told.code(told.do(request_payout, ask, ACME)) == "account_not_found"
        await told.do(earn, Earn(tenant="acme", amount=usd("1000")), OPERATOR)
        paid_in = told.balance("cash.platform.USD")
        first = (await told.do(request_payout, ask, ACME))["id"]
        assert await told.code(told.do(request_payout, ask, ACME)) == "insufficient_funds"
        fail = FailPayout(payout_id=first, reason="no such account")
        await told.do(fail_payout, fail, OPERATOR)
        second = (await told.do(request_payout, ask, ACME))["id"]
        confirm = ConfirmPayout(payout_id=second, reference="bank-1")
        await told.do(confirm_payout, confirm, OPERATOR)
        for again in ((confirm_payout, confirm), (fail_payout, FailPayout(payout_id=first, reason="x"))):
            assert await told.code(told.do(*again, OPERATOR)) == "payout_settled"
        assert told.balance("earnings.acme.USD") == usd("400").nano
        assert told.balance("wallet.acme.USD") == usd("1000").nano
        # The cash was booked as paid in, and a payout takes from it.
        assert paid_in - told.balance("cash.platform.USD") == usd("600").nano

    play(story)
