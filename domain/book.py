"""Double entry: accounts, transfers and holds, evaluated one after another.

The book is what the commit consults: entries travel inside the events that cause them (member `money`)
and are applied in log order, so no race can overdraw an account or settle a hold twice. It holds three rules:

- the postings of a transfer sum to zero (debits positive, credits negative) in one currency;
- `balance - held` of an account without overdraft never falls below zero;
- a hold is posted, voided or expired exactly once, and never for more than it reserved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from domain.errors import (
    AccountExistsError,
    AccountNotFoundError,
    AmountInvalidError,
    CurrencyMismatchError,
    HoldExceededError,
    HoldExistsError,
    HoldNotFoundError,
    HoldSettledError,
    InsufficientFundsError,
    UnbalancedError,
)
from domain.values import Money, parse_nano, print_nano


class Posting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One leg of a transfer: a debit is positive, a credit negative."""

    account: str
    amount: str


class Open(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="open"):
    """Open an account."""

    account: str
    currency: str
    side: Literal["debit", "credit"]
    overdraft: bool


class Transfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="transfer"):
    """Move money at once."""

    currency: str
    postings: list[Posting]


class Hold(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="hold"):
    """Reserve a part of an account's balance."""

    hold: str
    account: str
    amount: str
    currency: str


class Post(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="post"):
    """Settle a hold by moving money out of its account; what the legs leave over is released."""

    hold: str
    currency: str
    postings: list[Posting]


class Void(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="void"):
    """Release a hold without moving money."""

    hold: str


class Expire(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="expire"):
    """Release a hold whose time has run out; whoever writes the event has looked at the clock."""

    hold: str


Entry = Open | Transfer | Hold | Post | Void | Expire


class Account(NamedTuple):
    """The state of an account.

    Units: balance_nano and held_nano in nano-units, positive on the account's normal side.
    """

    currency: str
    side: str
    overdraft: bool
    balance_nano: int = 0
    held_nano: int = 0

    @property
    def available_nano(self) -> int:
        return self.balance_nano - self.held_nano


class HoldState(NamedTuple):
    """The state of a hold; `status` is pending, posted, void or expired."""

    account: str
    amount_nano: int
    currency: str
    status: str


class Move(NamedTuple):
    """What one entry did to one account, as the postings table keeps it."""

    account: str
    amount_nano: int
    hold: str | None
    balance_nano: int
    held_nano: int


def names_of(entries: Iterable[Entry]) -> tuple[set[str], set[str]]:
    """List the accounts and holds that entries touch by name."""
    accounts: set[str] = set()
    holds: set[str] = set()
    for entry in entries:
        if isinstance(entry, Open | Hold):
            accounts.add(entry.account)
        if isinstance(entry, Transfer | Post):
            accounts.update(p.account for p in entry.postings)
        if isinstance(entry, Hold | Post | Void | Expire):
            holds.add(entry.hold)
    return accounts, holds


class Book:
    """Accounts and holds in memory, changed only by whole groups of entries.

    The caller puts in what it knows (`accounts`, `holds`); names that are absent do not exist.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.holds: dict[str, HoldState] = {}
        self._undo: list[tuple[dict[str, Any], str, Any]] = []

    def apply(self, entries: Sequence[Entry]) -> list[list[Move]]:
        """Apply a group as one unit, or refuse it and change nothing.

        Cost:   O(legs).
        Errors: account_exists, account_not_found, currency_mismatch, hold_already_settled, hold_exceeded,
                hold_exists, hold_not_found, insufficient_funds, invalid_amount, unbalanced_postings.
        """
        self._undo.clear()
        try:
            return [self._apply(entry) for entry in entries]
        except Exception:
            for table, name, before in reversed(self._undo):
                if before is None:
                    del table[name]
                else:
                    table[name] = before
            raise

    def _apply(self, entry: Entry) -> list[Move]:
        match entry:
            case Transfer():
                return self._transfer(entry.postings, entry.currency, None)
            case Hold():
                return self._hold(entry)
            case Post():
                return self._post(entry)
            case Void():
                return [self._settle(entry.hold, "void")[1]]
            case Expire():
                return [self._settle(entry.hold, "expired")[1]]
            case Open():
                return self._open(entry)

    def _open(self, entry: Open) -> list[Move]:
        if entry.account in self.accounts:
            raise AccountExistsError(account=entry.account)
        self._put(self.accounts, entry.account, Account(entry.currency, entry.side, entry.overdraft))
        return [Move(entry.account, 0, None, 0, 0)]

    def _transfer(self, postings: Sequence[Posting], currency: str, hold: str | None) -> list[Move]:
        amounts = [parse_nano(p.amount) for p in postings]
        if sum(amounts) or not postings or not all(amounts):
            raise UnbalancedError(sum=str(sum(amounts)))
        moves = [self._move(p.account, a, currency, hold) for p, a in zip(postings, amounts, strict=True)]
        # Checked after the last leg: an account may appear in two legs of one transfer.
        for posting in postings:
            self._refuse_overdraft(posting.account)
        return moves

    def _move(self, name: str, amount_nano: int, currency: str, hold: str | None) -> Move:
        account = self._account(name, currency)
        change = amount_nano if account.side == "debit" else -amount_nano
        after = account._replace(balance_nano=account.balance_nano + change)
        self._put(self.accounts, name, after)
        return Move(name, amount_nano, hold, after.balance_nano, after.held_nano)

    def _hold(self, entry: Hold) -> list[Move]:
        amount = parse_nano(entry.amount)
        if amount <= 0:
            raise AmountInvalidError("a hold reserves more than nothing", got=entry.amount)
        if entry.hold in self.holds:
            raise HoldExistsError(hold=entry.hold)
        account = self._account(entry.account, entry.currency)
        after = account._replace(held_nano=account.held_nano + amount)
        self._put(self.accounts, entry.account, after)
        self._refuse_overdraft(entry.account)
        self._put(self.holds, entry.hold, HoldState(entry.account, amount, entry.currency, "pending"))
        return [Move(entry.account, 0, entry.hold, after.balance_nano, after.held_nano)]

    def _post(self, entry: Post) -> list[Move]:
        hold, released = self._settle(entry.hold, "posted")
        if hold.currency != entry.currency:
            raise CurrencyMismatchError(hold=hold.currency, legs=entry.currency)
        side = self.accounts[hold.account].side
        paid = sum(parse_nano(p.amount) for p in entry.postings if p.account == hold.account)
        if (paid if side == "credit" else -paid) > hold.amount_nano:
            raise HoldExceededError(hold=entry.hold, held=Money.of(hold.amount_nano, hold.currency).amount)
        return [released, *self._transfer(entry.postings, entry.currency, entry.hold)]

    def _settle(self, name: str, status: str) -> tuple[HoldState, Move]:
        hold = self.holds.get(name)
        if hold is None:
            raise HoldNotFoundError(hold=name)
        if hold.status != "pending":
            raise HoldSettledError(hold=name, status=hold.status)
        account = self._account(hold.account, hold.currency)
        after = account._replace(held_nano=account.held_nano - hold.amount_nano)
        self._put(self.accounts, hold.account, after)
        self._put(self.holds, name, hold._replace(status=status))
        return hold, Move(hold.account, 0, name, after.balance_nano, after.held_nano)

    def _account(self, name: str, currency: str) -> Account:
        account = self.accounts.get(name)
        if account is None:
            raise AccountNotFoundError(account=name)
        if account.currency != currency:
            raise CurrencyMismatchError(account=name, has=account.currency, asked=currency)
        return account

    def _refuse_overdraft(self, name: str) -> None:
        account = self.accounts[name]
        if not account.overdraft and account.balance_nano < account.held_nano:
            raise InsufficientFundsError(
                account=name,
                currency=account.currency,
                short_of=print_nano(account.held_nano - account.balance_nano, account.currency),
            )

    def _put(self, table: dict[str, Any], name: str, value: Any) -> None:
        self._undo.append((table, name, table.get(name)))
        table[name] = value


# --------------------------------------------------------------------------- short forms for deciders


def payment(payer: str, payee: str, money: Money) -> Transfer:
    """Write the transfer of a sum from one credit-normal account to another."""
    return Transfer(money.currency, [Posting(payer, money.amount), Posting(payee, "-" + money.amount)])


def settlement(hold: str, payer: str, shares: Sequence[tuple[str, Money]]) -> Post:
    """Write the posting of a hold that pays each (account, sum); empty sums are left out."""
    paid = [(account, money) for account, money in shares if money.nano]
    total = sum(money.nano for _, money in paid)
    currency = shares[0][1].currency
    legs = [Posting(payer, print_nano(total, currency))]
    legs += [Posting(account, "-" + money.amount) for account, money in paid]
    return Post(hold, currency, legs)
