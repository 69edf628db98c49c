"""A quote is the invoice before it is owed; and what a book costs can be asked without being a customer."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.billing.customers import Customer, RedeemCoupon, redeem_coupon
from domain.billing.price_books import PriceBook
from domain.billing.quotes import AskQuote, quote
from domain.errors import LedgerError
from domain.ledger import Caller
from domain.values import moment_of, moment_text
from tests.unit.billing.billing_maker import BOOK, CHARGES, Billed
from tests.unit.market.market_maker import OPERATOR, OWNER, STRANGER

JANUARY = "2026-01-01T00:00:00.000000Z"


async def ask(told: Billed, caller: Caller = OWNER, counted: Any = None, **members: Any) -> Any:
    """Ask for a quote."""

    async def gather() -> dict[str, Any]:
        return {} if counted is None else {"counted": counted}

    command = AskQuote.model_validate(members)
    return msgspec.json.decode((await told.ledger.act(quote, command, caller, gather=gather)).body)


async def code(doing: Any) -> str:
    """Give "ok", or the code of a refusal."""
    try:
        await doing
    except LedgerError as refusal:
        return refusal.code
    return "ok"


def cuts(told: Billed) -> list[tuple[str, str]]:
    """Cut the customer's next period."""
    period = told.loaded(Customer, "acme").next_period()
    pieces = told.loaded(PriceBook, BOOK).between(moment_text(period.start), moment_text(period.end))
    return [(start, end) for start, end, _ in pieces]


usage = st.lists(
    st.tuples(
        st.integers(0, 30 * 86_400),
        st.sampled_from(["m1", "m2"]),
        st.integers(0, 10**6),
        st.integers(0, 10**5),
    ),
    max_size=6,
)


@settings(max_examples=40)
@given(usage, st.sampled_from([None, 9, 16]), st.sampled_from([None, "0.3"]), st.sampled_from([None, "40"]))
def test_for_the_same_usage_it_is_the_invoice(
    used: list[tuple[int, str, int, int]], change_day: int | None, share: str | None, commitment: str | None
) -> None:
    async def run() -> None:
        told = Billed()
        await told.begin(taxes=[{"name": "VAT", "share": "0.19"}], commitment=commitment)
        if change_day is not None:
            await told.publish(CHARGES[:2], at=f"2026-01-{change_day:02d}T12:00:00.000000Z")
        if share is not None:
            coupon = RedeemCoupon(tenant="acme", code="off", share=share, periods=1)
            await told.do(redeem_coupon, coupon, OPERATOR)
        supposed = []
        for second, model, tokens_in, tokens_out in used:
            at = moment_text(moment_of(JANUARY) + timedelta(seconds=second))
            told.use(tokens_in, tokens_out, model=model, at=at)
            named = {"provider": "p", "model": model, "at": at, "requests": 1}
            supposed.append(named | {"tokens_in": tokens_in, "tokens_out": tokens_out})
        by_hand = await ask(told, tenant="acme", usage=supposed)
        by_log = await ask(told, counted=told.count(cuts(told)), tenant="acme")
        told.go_to(moment_of("2026-02-01T02:00:00.000000Z"))
        made = await told.bill()
        assert by_hand["bill"] == by_log["bill"] == made["bill"]
        assert by_log["evidence"] == made["evidence"]

    asyncio.run(run())


def test_a_book_is_quoted_for_a_stretch_of_time_cut_where_versions_change() -> None:
    async def run() -> None:
        told = Billed()
        await told.begin()
        await told.publish(
            [CHARGES[0] | {"price": {"model": "flat", "price": "30"}}], at="2026-01-16T00:00:00.000000Z"
        )
        whole = await ask(told, book=BOOK, start=JANUARY, end="2026-01-31T00:00:00Z")
        assert [line["amount"]["amount"] for line in whole["bill"]["lines"]] == ["5.00", "15.00"]
        now = await ask(told, STRANGER, book=BOOK)
        assert [line["amount"]["amount"] for line in now["bill"]["lines"]] == ["10.00"]
        assert now["sheets"][0]["share"] == "1"

    asyncio.run(run())


def test_others_are_not_quoted_for_and_nothing_is_written() -> None:
    async def run() -> None:
        told = Billed()
        await told.begin()
        size = len(told.store.logged)
        assert await code(ask(told, STRANGER, tenant="acme")) == "customer_not_found"
        assert await code(ask(told, OPERATOR, tenant="acme")) == "ok"
        assert await code(ask(told, OPERATOR, tenant="acme", book=BOOK)) == "invalid_field"
        assert await code(ask(told, OPERATOR)) == "invalid_field"
        early = {"provider": "p", "model": "m", "at": "2025-12-31T23:59:59.999999Z"}
        assert await code(ask(told, OPERATOR, tenant="acme", usage=[early])) == "invalid_field"
        assert await code(ask(told, book=BOOK, start="2025-01-01T00:00:00Z")) == "price_not_in_force"
        assert await code(ask(told, book=BOOK, start=JANUARY, end="2025-01-01T00:00:00Z")) == "invalid_field"
        assert len(told.store.logged) == size

    asyncio.run(run())
