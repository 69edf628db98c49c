"""Accounts and plain transfers: wallets and earnings of tenants, and the platform's cash, fees and other sides.

An account's name says whose it is: `wallet.acme.USD`, `cash.platform.USD`. Balances live in the book the commit keeps;
an aggregate here is only the fact that the account is open. What a tenant sells is paid into its earnings, what it
spends comes from its wallet; what was earned leaves by a payout or becomes spendable by a transfer to the own wallet.
"""

from __future__ import annotations

from typing import Literal

from domain.book import Open, payment
from domain.errors import AccountNotFoundError, AmountInvalidError, ForbiddenError, SameAccountError
from domain.fields import Command
from domain.ledger import Case, allow
from domain.log.records import Aggregate, MoneyEvent, Record
from domain.values import Money, Tenant

PLATFORM = "platform"
SIDES: dict[str, Literal["debit", "credit"]] = {
    "wallet": "credit",
    # What a tenant was paid for what it sells.
    "earnings": "credit",
    "cash": "debit",
    "fees": "credit",
    # What customers owe, and what they have paid before.
    "receivable": "debit",
    "credits": "credit",
    # What the platform earned, collects for the state, gave away, and gained or lost by rounding.
    "revenue": "credit",
    "tax": "credit",
    "promotions": "debit",
    "rounding": "credit",
}
# Accounts that may be on either side of zero.
EITHER_SIDE = frozenset({"revenue", "tax", "promotions", "rounding"})


class Account(Aggregate):
    """An account that is open."""

    KIND = "account"

    purpose: str = ""
    currency: str = ""
    side: str = ""
    status: str = "open"

    class Opened(MoneyEvent, frozen=True):
        """An account was opened."""

        TOPIC = "account.opened"

        purpose: str
        currency: str
        side: str

        def apply(self, account: Account, record: Record) -> None:
            account.purpose = self.purpose
            account.currency = self.currency
            account.side = self.side

    def status_key(self) -> str:
        return self.status

    def owner_key(self) -> str:
        return self.purpose


class Payment(Aggregate):
    """A transfer that was made; it is one event and never changes."""

    KIND = "transfer"

    source: str = ""
    target: str = ""
    amount: Money | None = None
    memo: str = ""
    status: str = "posted"

    class Posted(MoneyEvent, frozen=True):
        """Money was moved from one account to another."""

        TOPIC = "transfer.posted"

        source: str
        target: str
        amount: Money
        memo: str

        def apply(self, payment: Payment, record: Record) -> None:
            payment.source = self.source
            payment.target = self.target
            payment.amount = self.amount
            payment.memo = self.memo

    def status_key(self) -> str:
        return self.status


def account_name(purpose: str, tenant: str, currency: str) -> str:
    """Name an account."""
    return f"{purpose}.{tenant}.{currency}"


def ensure(case: Case, purpose: str, tenant: str, currency: str) -> str:
    """Open an account unless it is open; give its name."""
    name = account_name(purpose, tenant, currency)
    if case.find(Account, name) is None:
        side = SIDES[purpose]
        entry = Open(account=name, currency=currency, side=side, overdraft=purpose in EITHER_SIDE)
        opened = Account.Opened(purpose=purpose, currency=currency, side=side, money=[entry])
        case.create(Account, name, opened, tenant=tenant)
    return name


# --------------------------------------------------------------------------- commands


class OpenAccount(Command):
    """Open the caller's wallet in a currency."""

    currency: str


class Deposit(Command):
    """Credit a tenant's wallet with money that reached the platform's cash account."""

    tenant: Tenant
    amount: Money
    memo: str = ""


class Withdraw(Command):
    """Pay money out of a tenant's wallet through the platform's cash account."""

    tenant: Tenant
    amount: Money
    memo: str = ""


class TransferMoney(Command):
    """Move money from the caller's wallet to another tenant's."""

    to_tenant: Tenant
    amount: Money
    memo: str = ""


class TransferEarnings(Command):
    """Move a part of what the caller's tenant earned into its wallet."""

    amount: Money
    memo: str = ""


@allow("provider", "owner", "operator", "billing")
def open_wallet(case: Case, command: OpenAccount) -> Account:
    """Open the caller's wallet; opening an open one changes nothing.

    Errors: invalid_currency.
    """
    money = Money.parse("0", command.currency)
    return case.get(Account, ensure(case, "wallet", case.caller.tenant, money.currency))


@allow("operator", "billing")
def deposit(case: Case, command: Deposit) -> Payment:
    """Take money in.

    Errors: invalid_amount.
    """
    cash = ensure(case, "cash", PLATFORM, command.amount.currency)
    wallet = ensure(case, "wallet", command.tenant, command.amount.currency)
    return _pay(case, cash, wallet, command.amount, command.memo)


@allow("operator", "billing")
def withdraw(case: Case, command: Withdraw) -> Payment:
    """Pay money out.

    Errors: account_not_found, insufficient_funds, invalid_amount.
    """
    cash = ensure(case, "cash", PLATFORM, command.amount.currency)
    wallet = account_name("wallet", command.tenant, command.amount.currency)
    return _pay(case, wallet, cash, command.amount, command.memo)


@allow("provider", "owner", "billing")
def transfer(case: Case, command: TransferMoney) -> Payment:
    """Move money to another tenant.

    Errors: account_not_found, forbidden, insufficient_funds, invalid_amount, same_account.
    """
    currency = command.amount.currency
    if command.to_tenant == PLATFORM:
        raise ForbiddenError("money reaches the platform by fees and withdrawals only")
    source = account_name("wallet", case.caller.tenant, currency)
    target = account_name("wallet", command.to_tenant, currency)
    if source == target:
        raise SameAccountError
    return _pay(case, source, target, command.amount, command.memo)


@allow("provider", "owner", "billing")
def transfer_earnings(case: Case, command: TransferEarnings) -> Payment:
    """Make earnings spendable: they move into the wallet of the same tenant, which is opened if need be.

    Errors: account_not_found, insufficient_funds, invalid_amount.
    """
    tenant, currency = case.caller.tenant, command.amount.currency
    source = account_name("earnings", tenant, currency)
    if case.find(Account, source) is None:
        raise AccountNotFoundError("nothing was earned in this currency yet", account=source)
    wallet = ensure(case, "wallet", tenant, currency)
    return _pay(case, source, wallet, command.amount, command.memo)


def _pay(case: Case, source: str, target: str, amount: Money, memo: str) -> Payment:
    if amount.nano <= 0:
        raise AmountInvalidError("a transfer moves more than nothing", got=amount.amount)
    name = case.new_id("transfer")
    # A debit takes from a wallet and adds to cash; so money in and money out are the same pair of legs.
    entry = payment(source, target, amount)
    posted = Payment.Posted(source=source, target=target, amount=amount, memo=memo, money=[entry])
    return case.create(Payment, name, posted)
