"""A platform in memory with all of commerce on it: customers in zones whose clocks change, and a persona to rent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from domain.billing.customers import Customer
from domain.billing.grants import GrantStep, expire_grant
from domain.billing.invoices import (
    CorrectInvoice,
    Counted,
    FailPayment,
    Invoice,
    InvoiceStep,
    IssueInvoice,
    correct_invoice,
    fail_payment,
    issue_invoice,
    pay_invoice,
)
from domain.billing.metering import Used
from domain.billing.price_books import PriceBook
from domain.errors import LedgerError
from domain.ledger import Caller, UseCase
from domain.log.records import Aggregate
from domain.persona import offboarding, renting
from domain.persona.offboarding import FailRenewal
from domain.rental.purchases import Purchase
from domain.rental.rentals import Rental
from domain.rental.subscriptions import Subscription
from domain.values import moment_of, moment_text
from tests.unit.billing.auditor import Auditor
from tests.unit.persona.renting_maker import CLOCK, Shop

# Where the clocks change by an hour, by half an hour, at midnight, not at all any more, and twice for Ramadan.
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Africa/Casablanca",
    "Asia/Beirut", "America/Havana", "Atlantic/Azores",
)  # fmt: skip
# What each tenant is billed in.
TENANTS = {"renters": "USD", "tokyo": "JPY", "kuwait": "KWD"}
KINDS: dict[str, type[Any]] = {"rental": Rental, "subscription": Subscription, "purchase": Purchase}


def priced(model: str, amount: str, currency: str, minutes: int | None = None) -> dict[str, Any]:
    """Write a way to pay for the persona."""
    return {
        "model": model,
        "price": {"amount": amount, "currency": currency},
        "billing_period_minutes": minutes,
    }


OFFERS = (
    priced("rental", "0.02", "USD", 1),
    priced("rental", "0.50", "USD", 60),
    priced("rental", "37", "JPY", 45),
    priced("subscription", "31.00", "USD", 43_200),
    priced("subscription", "1.10", "USD", 1_440),
    priced("subscription", "7.777", "KWD", 10_080),
    priced("purchase", "80.00", "USD"),
    priced("purchase", "20.125", "KWD"),
)


@lru_cache
def changes_of(zone: str) -> list[datetime]:
    """List when the clocks of a zone are changed, to the hour and half hour, in the years of these tests."""
    there, at = ZoneInfo(zone), datetime(2026, 1, 1, tzinfo=UTC)
    halves = [at + timedelta(minutes=30 * n) for n in range(3 * 366 * 48)]
    return [
        b for a, b in pairwise(halves) if a.astimezone(there).utcoffset() != b.astimezone(there).utcoffset()
    ]


class Commerce(Shop):
    """A shop whose renters are customers too; it counts usage and runs billing as the services do."""

    def __init__(self) -> None:
        super().__init__()
        self.auditor = Auditor()

    @classmethod
    async def begun_with_offers(cls) -> Commerce:
        """Put the persona on show in many currencies."""
        world = await cls.begun()
        assert isinstance(world, Commerce)
        world.capsule = await world.priced(*OFFERS)
        return world

    def audit(self) -> None:
        """Have the auditor read on, and check everything."""
        self.auditor.see([logged.row for logged in self.store.logged])
        self.auditor.check()
        assert {name: value for name, value in self._book().items() if any(value)} == {
            name: value for name in self.auditor.balances if any(value := self._audited(name))
        }

    def _book(self) -> dict[str, tuple[int, int]]:
        """Give what the ledger's own book says."""
        return {name: (a.balance_nano, a.held_nano) for name, a in self.store.book.accounts.items()}

    def _audited(self, name: str) -> tuple[int, int]:
        held = self.auditor.held[name]
        return int(self.auditor.balance(name) * 10**9), int(held * 10**9)

    async def says_of(self, use_case: UseCase, command: Any, caller: Caller) -> str:
        """Carry out a command; give "ok", or the code of its refusal, which must have written nothing."""
        size = len(self.store.logged)
        heard = await self.code(use_case, command, caller)
        assert heard == "ok" or len(self.store.logged) == size, "a refusal was written down"
        return heard

    # ------------------------------------------------------------------ what is there

    def all_of(self, cls: type[Aggregate]) -> list[Any]:
        """Read all aggregates of a class."""
        found = [state.state for state in self.store.states.values() if state.kind == cls.KIND]
        return [msgspec.json.decode(state, type=cls) for state in found]

    def one(self, cls: type[Any], name: str) -> Any:
        """Read an aggregate."""
        return msgspec.json.decode(self.store.states[f"{cls.KIND}/{name}"].state, type=cls)

    # ------------------------------------------------------------------ what a database would do

    def count(self, tenant: str, cuts: Sequence[tuple[str, str]]) -> Counted:
        """Sum up what is known now, part by part, as one query does (ops.usage_totals)."""
        self.auditor.see([logged.row for logged in self.store.logged])
        return Counted(self.auditor.size, [(a, b, self._used(tenant, a, b)) for a, b in cuts])

    def _used(self, tenant: str, start: str, end: str) -> list[Used]:
        groups: dict[tuple[str, str, str], list[Any]] = {}
        for version in self.auditor.known(tenant, start, end, self.auditor.size).values():
            data = version.data
            name = (data["provider"], data["model"], data["persona_id"] or "")
            groups.setdefault(name, []).append(version)
        return [_summed(name, versions) for name, versions in sorted(groups.items())]

    def cuts(self, tenant: str) -> list[tuple[str, str]]:
        """Cut a customer's next period where versions of its book change."""
        customer = self.one(Customer, tenant)
        period = customer.next_period()
        book = self.one(PriceBook, customer.agreed.book)
        return [(a, b) for a, b, _ in book.between(moment_text(period.start), moment_text(period.end))]

    # ------------------------------------------------------------------ the billing run

    async def run_billing(self) -> None:
        """Bill, correct and collect, as projections.billing_run does."""
        for customer in self.all_of(Customer):
            while await self.bill(customer.id) == "ok":
                pass
        for name in self.ready_for_correction():
            assert await self.correct(name) in ("ok", "too_many_grants")
        for invoice in self.all_of(Invoice):
            if (deadline := invoice.deadline_key()) is not None and deadline <= self.now:
                await self.collect(invoice.id)

    async def bill(self, tenant: str) -> str:
        """Bill a customer's next period; give "ok" or the code of the refusal."""
        given = {"counted": self.count(tenant, self.cuts(tenant))}
        return await self._gathered(issue_invoice, IssueInvoice(tenant=tenant), given)

    async def correct(self, name: str) -> str:
        """Correct a document; give "ok" or the code of the refusal."""
        invoice = self.one(Invoice, name)
        given = {"counted": self.count(invoice.tenant, [(one.start, one.end) for one in invoice.sheets])}
        return await self._gathered(correct_invoice, CorrectInvoice(invoice_id=name), given)

    async def collect(self, name: str) -> str:
        """Take what is due, or write down that it could not be taken."""
        heard = await self.says_of(pay_invoice, InvoiceStep(invoice_id=name), CLOCK)
        if heard in ("insufficient_funds", "account_not_found"):
            return await self.says_of(fail_payment, FailPayment(invoice_id=name, reason=heard), CLOCK)
        return heard

    async def _gathered(self, use_case: UseCase, command: Any, given: dict[str, Any]) -> str:
        async def gather() -> dict[str, Any]:
            return given

        size = len(self.store.logged)
        try:
            await self.ledger.act(use_case, command, CLOCK, gather=gather)
        except LedgerError as refusal:
            assert len(self.store.logged) == size, "a refusal was written down"
            return refusal.code
        return "ok"

    def late(self, tenant: str) -> list[str]:
        """Name the documents for which something came after them."""
        self.auditor.see([logged.row for logged in self.store.logged])
        return self.auditor.late(tenant)

    def ready_for_correction(self) -> list[str]:
        """Name the documents for which something came after them, once it has waited for its grace."""
        found = []
        for customer in self.all_of(Customer):
            for name in self.late(customer.id):
                position = self._first_after(customer.id, self.one(Invoice, name).known_at)
                at = msgspec.json.decode(self.store.logged[position].row.record)["at"]
                if moment_text(moment_of(at) + timedelta(seconds=customer.agreed.grace_s)) <= self.now:
                    found.append(name)
        return found

    def _first_after(self, tenant: str, known_at: int) -> int:
        """Find the first reading of a tenant since a position."""
        rows = enumerate(logged.row for logged in self.store.logged[known_at:])
        return known_at + next(n for n, row in rows if row.tenant == tenant and row.type.startswith("usage."))

    # ------------------------------------------------------------------ the timers

    async def timers_look(self) -> None:
        """Do what has become due, as projections.timers does; nothing of it may be refused in the end."""
        for kind, cls in KINDS.items():
            for use in self.all_of(cls):
                if (deadline := use.deadline_key()) is not None and deadline <= self.now:
                    await self._step(kind, use.id)
        for state in [s for s in self.store.states.values() if s.kind == "grant"]:
            if state.deadline is not None and state.deadline <= self.now:
                assert await self.says_of(expire_grant, GrantStep(grant_id=state.id), CLOCK) == "ok"

    async def _step(self, kind: str, name: str) -> None:
        if kind == "rental":
            heard = await self.says_of(offboarding.expire, renting.RentalStep(rental_id=name), CLOCK)
        elif kind == "purchase":
            heard = await self.says_of(offboarding.settle, renting.PurchaseStep(purchase_id=name), CLOCK)
        else:
            step = renting.SubscriptionStep(subscription_id=name)
            heard = await self.says_of(offboarding.renew, step, CLOCK)
            if heard != "ok":
                failed = FailRenewal(subscription_id=name, reason=heard)
                heard = await self.says_of(offboarding.fail, failed, CLOCK)
        assert heard == "ok"

    async def watch_looks(self) -> None:
        """End what runs on a stopped capsule, as projections.revocations does."""
        for kind, cls in KINDS.items():
            for use in self.all_of(cls):
                command = offboarding.StopUse.model_validate({"kind": kind, "id": use.id})
                assert await self.says_of(offboarding.stop_use, command, CLOCK) == "ok"


def _summed(name: tuple[str, str, str], versions: Sequence[Any]) -> Used:
    provider, model, persona_id = name
    sums = {
        meter: sum(version.data[meter] or 0 for version in versions)
        for meter in ("tokens_in", "tokens_out", "cached_tokens", "requests")
    }
    positions = [version.position for version in versions]
    return Used(
        provider=provider,
        model=model,
        persona_id=persona_id or None,
        events=len(versions),
        first=min(positions),
        last=max(positions),
        fingerprint=f"{sum(version.mark for version in versions) % 2**64:016x}",
        **sums,
    )
