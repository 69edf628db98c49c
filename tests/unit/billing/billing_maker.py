"""A billed customer on a log in memory: prices, usage by hand, and the counting that a database would do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha3_512
from typing import Any, NamedTuple

import msgspec

from domain.billing.accounts import Deposit, deposit
from domain.billing.customers import Customer, Enroll, enroll
from domain.billing.grants import GrantCredit, grant
from domain.billing.invoices import (
    CorrectInvoice,
    Counted,
    Invoice,
    InvoiceStep,
    IssueInvoice,
    correct_invoice,
    issue_invoice,
    pay_invoice,
)
from domain.billing.metering import Evidence, Used, together
from domain.billing.price_books import PriceBook, PublishPrices, publish_prices
from domain.errors import LedgerError
from domain.values import Money, moment_of, moment_text
from tests.unit.market.market_maker import OPERATOR, SERVICE, Market, usd

BOOK = "platform.standard"
CHARGES: list[dict[str, Any]] = [
    {"id": "base", "meter": "period", "price": {"model": "flat", "price": "10"}, "description": "Base fee"},
    {
        "id": "in",
        "meter": "tokens_in",
        "price": {
            "model": "graduated",
            "per": "1000",
            "tiers": [{"price": "0.01", "up_to": "100000"}, {"price": "0.007"}],
        },
        "match": {"model": "m1"},
        "free": "500",
    },
    {"id": "out", "meter": "tokens_out", "price": {"model": "per_unit", "price": "0.03", "per": "1000"}},
    {"id": "calls", "meter": "requests", "price": {"model": "package", "price": "0.5", "size": "100"}},
]


class Reading(NamedTuple):
    """A reading as the log would hold it: when it happened, and at which position it came in."""

    position: int
    occurred_at: str
    model: str
    tokens_in: int
    tokens_out: int


class Billed(Market):
    """A market with a customer, whose usage is kept in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.readings: list[Reading] = []

    async def begin(self, zone: str = "UTC", **plan: Any) -> None:
        """Publish prices, enroll the customer, and put money into its wallet."""
        await self.publish(CHARGES, plan.pop("commitment", None))
        await self.do(enroll, Enroll(tenant="acme", book=BOOK, zone=zone, **plan), OPERATOR)
        await self.do(deposit, Deposit(tenant="acme", amount=usd("1000")), OPERATOR)

    async def publish(
        self, charges: Sequence[Any], commitment: str | None = None, at: str | None = None
    ) -> Any:
        """Publish a version of the book."""
        command = PublishPrices.model_validate(
            {
                "book": "standard",
                "currency": "USD",
                "charges": charges,
                "commitment": commitment,
                "effective_from": at,
            }
        )
        return await self.do(publish_prices, command, OPERATOR)

    def use(self, tokens_in: int, tokens_out: int = 0, model: str = "m1", at: str | None = None) -> None:
        """Use something, now or at an earlier time."""
        self.readings.append(Reading(len(self.readings), at or self.now, model, tokens_in, tokens_out))

    # ------------------------------------------------------------------ what a database would do

    def count(self, cuts: Sequence[tuple[str, str]]) -> Counted:
        """Sum up what is known now, part by part."""
        return Counted(len(self.readings), [(start, end, self._used(start, end)) for start, end in cuts])

    def _used(self, start: str, end: str) -> list[Used]:
        found: dict[str, list[Reading]] = {}
        for reading in self.readings:
            if start <= reading.occurred_at < end:
                found.setdefault(reading.model, []).append(reading)
        return [_sum(model, readings) for model, readings in sorted(found.items())]

    # ------------------------------------------------------------------ billing

    async def bill(self) -> Any:
        """Bill the next period."""
        customer = self.loaded(Customer, "acme")
        period = customer.next_period()
        book = self.loaded(PriceBook, BOOK)
        cuts = [(a, b) for a, b, _ in book.between(moment_text(period.start), moment_text(period.end))]
        return await self.do(issue_invoice, IssueInvoice(tenant="acme"), SERVICE, counted=self.count(cuts))

    async def correct(self, name: str) -> Any:
        """Correct an invoice."""
        invoice = self.loaded(Invoice, name)
        counted = self.count([(one.start, one.end) for one in invoice.sheets])
        return await self.do(correct_invoice, CorrectInvoice(invoice_id=name), SERVICE, counted=counted)

    async def pay(self, name: str) -> Any:
        """Pay an invoice."""
        return await self.do(pay_invoice, InvoiceStep(invoice_id=name), SERVICE)

    async def give(self, amount: str, **how: Any) -> Any:
        """Give the customer credit."""
        return await self.do(grant, GrantCredit(tenant="acme", amount=usd(amount), **how), OPERATOR)

    async def code(self, doing: Any) -> str:
        """Give "ok", or the code of a refusal."""
        try:
            await doing
        except LedgerError as refusal:
            return refusal.code
        return "ok"

    def loaded(self, cls: type[Any], name: str) -> Any:
        """Read an aggregate as its class."""
        return msgspec.json.decode(self.store.states[f"{cls.KIND}/{name}"].state, type=cls)

    @staticmethod
    def loaded_nano(money: dict[str, str]) -> int:
        """Read money of an answer as nano-units."""
        return Money(**money).nano

    def balance(self, account: str) -> int:
        """Give a balance, in nano-units; an account nobody opened holds nothing."""
        found = self.store.book.accounts.get(account)
        return found.balance_nano if found else 0

    def wait(self, **time: float) -> None:
        """Let time pass."""
        self.now = moment_text(moment_of(self.now) + timedelta(**time))

    def go_to(self, moment: datetime) -> None:
        """Let time pass until a moment."""
        self.now = max(self.now, moment_text(moment))


def _sum(model: str, readings: Sequence[Reading]) -> Used:
    evidence: Evidence | None = None
    for r in readings:
        mark = sha3_512(repr(r).encode()).digest()[:8].hex()
        evidence = together(evidence, Evidence(1, r.position, r.position, mark))
    assert evidence is not None
    return Used(
        "p", model, None, sum(r.tokens_in for r in readings), sum(r.tokens_out for r in readings), 0, len(readings),
        evidence.events, evidence.first, evidence.last, evidence.fingerprint,
    )  # fmt: skip
