"""Earnings for tests that need some and are not about how they came: money of the platform's cash, paid to a seller."""

from __future__ import annotations

from domain.billing.accounts import PLATFORM, Payment, ensure
from domain.book import payment
from domain.fields import Command
from domain.ledger import Caller, Case, allow
from domain.values import Money, Tenant

TELLER = Caller("tess", "platform", frozenset({"operator"}))


class Earn(Command):
    """Say who earns how much."""

    tenant: Tenant
    amount: Money


@allow("operator")
def earn(case: Case, command: Earn) -> Payment:
    """Pay a tenant as if it had sold something."""
    cash = ensure(case, "cash", PLATFORM, command.amount.currency)
    earnings = ensure(case, "earnings", command.tenant, command.amount.currency)
    posted = Payment.Posted(
        source=cash,
        target=earnings,
        amount=command.amount,
        memo="for a test",
        money=[payment(cash, earnings, command.amount)],
    )
    return case.create(Payment, case.new_id("transfer"), posted)
