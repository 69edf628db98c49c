"""Payouts: what sellers earned leaves the platform. Reserved when it is asked for, paid or given back once.

requested -> paid | failed
"""

from __future__ import annotations

from pydantic import Field

from domain.billing.accounts import PLATFORM, account_name, ensure
from domain.book import Hold, Void, settlement
from domain.errors import AmountInvalidError, PayoutNotFoundError, PayoutSettledError
from domain.fields import Command, Id, Reason
from domain.ledger import Case, allow
from domain.log.records import Aggregate, MoneyEvent, Record
from domain.values import Money


class Payout(Aggregate):
    """Earnings on their way to a tenant's bank. They leave once, or come back once."""

    KIND = "payout"

    amount: Money | None = None
    destination: str = ""
    hold: str = ""
    # The account the hold is on.
    account: str = ""
    status: str = "requested"
    reference: str | None = None
    reason: str | None = None

    class Requested(MoneyEvent, frozen=True):
        """A tenant asked for its money, which was reserved."""

        TOPIC = "payout.requested"

        amount: Money
        destination: str

        def apply(self, payout: Payout, record: Record) -> None:
            payout.amount = self.amount
            payout.destination = self.destination
            held = next(entry for entry in self.money if isinstance(entry, Hold))
            payout.hold, payout.account = held.hold, held.account

    class Paid(MoneyEvent, frozen=True):
        """The money left the platform."""

        TOPIC = "payout.paid"

        amount: Money
        reference: str

        def apply(self, payout: Payout, record: Record) -> None:
            payout.status, payout.reference = "paid", self.reference

    class Failed(MoneyEvent, frozen=True):
        """The money did not leave, and is the tenant's again."""

        TOPIC = "payout.failed"

        amount: Money
        reason: str

        def apply(self, payout: Payout, record: Record) -> None:
            payout.status, payout.reason = "failed", self.reason

    def status_key(self) -> str:
        return self.status


class RequestPayout(Command):
    """Ask for money of one's earnings; the destination is a name the tenant agreed on with the platform, no number."""

    amount: Money
    destination: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")


class ConfirmPayout(Command):
    """Say that the money left, by the bank's reference."""

    payout_id: Id
    reference: str = Field(min_length=1, max_length=128, pattern=r"^[!-~]+$")


class FailPayout(Command):
    """Say that the money did not leave, and why."""

    payout_id: Id
    reason: Reason


@allow("provider", "owner", "billing")
def request_payout(case: Case, command: RequestPayout) -> Payout:
    """Reserve earnings of the caller's tenant for a payout.

    Errors: account_not_found, insufficient_funds, invalid_amount.
    """
    if command.amount.nano <= 0:
        raise AmountInvalidError("a payout is more than nothing", got=command.amount.amount)
    name, currency = case.new_id("payout"), command.amount.currency
    earnings = account_name("earnings", case.caller.tenant, currency)
    held = Hold(name, earnings, command.amount.amount, currency)
    requested = Payout.Requested(amount=command.amount, destination=command.destination, money=[held])
    return case.create(Payout, name, requested)


@allow("billing", "operator")
def confirm_payout(case: Case, command: ConfirmPayout) -> Payout:
    """Take the money out, through the platform's cash account.

    Errors: payout_not_found, payout_settled.
    """
    payout = _open(case, command.payout_id)
    assert payout.amount is not None
    currency = payout.amount.currency
    cash = ensure(case, "cash", PLATFORM, currency)
    paid = settlement(payout.hold, payout.account, [(cash, payout.amount)])
    return case.emit(payout, Payout.Paid(amount=payout.amount, reference=command.reference, money=[paid]))


@allow("billing", "operator")
def fail_payout(case: Case, command: FailPayout) -> Payout:
    """Give the money back to the tenant's earnings.

    Errors: payout_not_found, payout_settled.
    """
    payout = _open(case, command.payout_id)
    assert payout.amount is not None
    failed = Payout.Failed(amount=payout.amount, reason=command.reason, money=[Void(payout.hold)])
    return case.emit(payout, failed)


def _open(case: Case, name: str) -> Payout:
    payout = case.get(Payout, name, PayoutNotFoundError)
    if payout.status != "requested":
        raise PayoutSettledError(status=payout.status)
    return payout
