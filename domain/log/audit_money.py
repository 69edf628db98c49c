"""The money that records move: every entry evaluated again, in the order of the log.

Amounts are exact integers of 10^-9 units of their currency. An account's balance is counted on its
normal side; `held` is what its open holds reserve. After a finding the entry still takes effect as far
as it can be understood, so that one broken promise does not hide behind another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from domain.log.audit_findings import Findings

NANO = 10**9

_AMOUNT = re.compile(r"-?(?:0|[1-9][0-9]{0,18})(?:\.[0-9]{1,9})?", re.ASCII)
_SIDES = {"debit": 1, "credit": -1}
_MEMBERS = {
    "open": frozenset({"op", "account", "currency", "side", "overdraft"}),
    "transfer": frozenset({"op", "postings", "currency"}),
    "hold": frozenset({"op", "hold", "account", "amount", "currency"}),
    "post": frozenset({"op", "hold", "postings", "currency"}),
    "void": frozenset({"op", "hold"}),
    "expire": frozenset({"op", "hold"}),
}
_POSTING = frozenset({"account", "amount"})
_CACHED_AMOUNTS_MAX = 65_536


class _Fault(Exception):
    """An entry that cannot be evaluated: code and sentence."""


def nano_of(text: Any) -> int:
    """Read a decimal string exactly.

    Units:  returns 10^-9 units of the currency.
    """
    if not isinstance(text, str) or not _AMOUNT.fullmatch(text):
        raise _Fault("bad_amount", f"{str(text)[:64]!r} is not a decimal with at most nine decimals")
    whole, _, part = text.lstrip("-").partition(".")
    nano = int(whole) * NANO + int(part.ljust(9, "0"))
    if text[0] == "-":
        if not nano:
            raise _Fault("bad_amount", "zero has no sign")
        return -nano
    return nano


def nano_text(nano: int) -> str:
    """Print nano-units with all nine decimals."""
    whole, part = divmod(abs(nano), NANO)
    return f"{'-' if nano < 0 else ''}{whole}.{part:09d}"


class Account:
    """An account as the entries so far left it.

    Units: balance and held in nano-units; balance on the normal side (side +1 debit, -1 credit).
    """

    __slots__ = ("balance", "currency", "held", "opened", "overdraft", "side")

    def __init__(self, currency: str, side: int, overdraft: bool, opened: bool) -> None:
        self.currency = currency
        self.side = side
        self.overdraft = overdraft
        self.opened = opened
        self.balance = 0
        self.held = 0


class Books:
    """All accounts and holds, and the judge of every entry."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self.accounts: dict[str, Account] = {}
        self.holds: dict[str, tuple[str, int]] = {}
        self._settled: set[str] = set()
        self._amounts: dict[str, int] = {}
        self._holed = False
        self._position = 0
        self._stream: str | None = None

    def hole(self) -> None:
        """Note that entries may be missing here: accounts, holds and balances are no longer all known."""
        self._holed = True

    def take(self, position: int, stream: str, money: Any) -> None:
        """Evaluate the entries of one record in order."""
        self._position, self._stream = position, stream
        if not isinstance(money, list):
            self._find("record_malformed", "'money' is not a list of entries")
            return
        for entry in money:
            try:
                if not self._plain_transfer(entry):
                    self._evaluate(entry)
            except _Fault as fault:
                self._find(*fault.args)

    def rows(self) -> Iterable[tuple[str, str]]:
        """Give the final state as sorted lines, accounts then open holds, for a digest."""
        for name in sorted(self.accounts):
            account = self.accounts[name]
            side = "debit" if account.side > 0 else "credit"
            state = f"{account.currency} {side} {nano_text(account.balance)} {nano_text(account.held)}"
            yield "account " + name, state
        for name in sorted(self.holds):
            account_name, nano = self.holds[name]
            yield "hold " + name, f"{nano_text(nano)} {account_name}"

    # ------------------------------------------------------------------ entries

    def _find(self, code: str, message: str) -> None:
        self._findings.add(code, message, position=self._position, stream=self._stream)

    def _evaluate(self, entry: Any) -> None:
        op = entry.get("op") if isinstance(entry, dict) else None
        members = _MEMBERS.get(op) if isinstance(op, str) else None
        if members is None:
            raise _Fault("record_malformed", f"{str(op)[:64]!r} is not a kind of entry")
        if entry.keys() != members:
            self._check_members(entry, members, f"{op} entry")
        if op == "transfer":
            self._move(entry["postings"], _text(entry, "currency"))
        elif op == "open":
            self._open(entry)
        elif op == "hold":
            self._hold(entry)
        elif op == "post":
            self._post(entry)
        else:
            self._release(_text(entry, "hold"))

    def _plain_transfer(self, entry: Any) -> bool:
        """Apply a transfer with nothing unusual about it; otherwise leave everything as it was."""
        accounts, amounts = self.accounts, self._amounts
        try:
            if entry["op"] != "transfer" or len(entry) != 3:
                return False
            currency, legs, total = entry["currency"], [], 0
            for posting in entry["postings"]:
                account, nano = accounts[posting["account"]], amounts[posting["amount"]]
                if account.currency != currency or len(posting) != 2:
                    return False
                total += nano
                legs.append((account, nano))
        except (KeyError, TypeError):
            return False
        if total or not legs:
            return False
        for account, nano in legs:
            account.balance += account.side * nano
        for account, _ in legs:
            if account.balance < account.held and not account.overdraft:
                for undone, nano in legs:
                    undone.balance -= undone.side * nano
                return False
        return True

    def _check_members(self, value: dict[str, Any], members: frozenset[str], what: str) -> None:
        for key in sorted(value.keys() - members):
            self._find("unexpected_member", f"a {what} has no member {key[:64]!r}")
        for key in sorted(members - value.keys()):
            raise _Fault("record_malformed", f"a {what} lacks {key!r}")

    def _open(self, entry: dict[str, Any]) -> None:
        name, currency = _text(entry, "account"), _text(entry, "currency")
        side = _SIDES.get(_text(entry, "side"))
        if side is None or type(entry["overdraft"]) is not bool:
            raise _Fault("record_malformed", f"account {name!r} has no valid side or overdraft")
        known = self.accounts.get(name)
        if known is not None and known.opened:
            raise _Fault("account_reopened", f"account {name!r} is open already")
        account = Account(currency, side, entry["overdraft"], True)
        if known is not None:
            # It was used before it was opened; what it was used for stays.
            account.balance, account.held = side * known.side * known.balance, known.held
        self.accounts[name] = account

    def _hold(self, entry: dict[str, Any]) -> None:
        name, currency = _text(entry, "hold"), _text(entry, "currency")
        account_name = _text(entry, "account")
        nano = self._nano(entry["amount"])
        if nano <= 0:
            raise _Fault("bad_amount", f"hold {name!r} is not of a positive amount")
        if name in self.holds or name in self._settled:
            raise _Fault("hold_reused", f"hold {name!r} was placed before")
        account = self._account(account_name, currency)
        self.holds[name] = (account_name, nano)
        account.held += nano
        self._check_available(account_name, account)

    def _post(self, entry: dict[str, Any]) -> None:
        name, currency = _text(entry, "hold"), _text(entry, "currency")
        held = self._release(name)
        moved = self._move(entry["postings"], currency)
        if held is None:
            return
        account_name, nano = held
        account = self._account(account_name, currency)
        outflow = -account.side * sum(amount for posted, amount in moved if posted == account_name)
        if outflow > nano:
            message = f"{nano_text(outflow)} leave {account_name!r}, {nano_text(nano)} were held as {name!r}"
            self._find("hold_exceeded", message)

    def _release(self, name: str) -> tuple[str, int] | None:
        """End a hold and free what it reserved; None when there is no such hold."""
        held = self.holds.pop(name, None)
        if held is not None:
            self._settled.add(name)
            self.accounts[held[0]].held -= held[1]
        elif name in self._settled:
            self._find("hold_settled_twice", f"hold {name!r} has ended already")
        elif not self._holed:
            self._find("hold_unknown", f"hold {name!r} was never placed")
        return held

    # ------------------------------------------------------------------ postings

    def _move(self, postings: Any, currency: str) -> list[tuple[str, int]]:
        """Apply postings that belong together; give them as (account, nano-units)."""
        if not isinstance(postings, list):
            raise _Fault("record_malformed", "'postings' is not a list")
        moved = [self._posting(posting) for posting in postings]
        total = 0
        touched = {}
        for name, nano in moved:
            account = self.accounts.get(name)
            if account is None or account.currency != currency:
                account = self._account(name, currency)
            total += nano
            account.balance += account.side * nano
            if not account.overdraft and account.side * nano < 0:
                touched[name] = account
        if total:
            self._find("money_unbalanced", f"the postings sum to {nano_text(total)} {currency[:16]}")
        for name, account in touched.items():
            if account.balance < account.held:
                self._check_available(name, account)
        return moved

    def _posting(self, posting: Any) -> tuple[str, int]:
        if not isinstance(posting, dict):
            raise _Fault("record_malformed", "a posting is not an object")
        if posting.keys() != _POSTING:
            self._check_members(posting, _POSTING, "posting")
        name, amount = posting["account"], posting["amount"]
        if type(name) is not str or not name:
            raise _Fault("record_malformed", "a posting names no account")
        nano = self._amounts.get(amount) if type(amount) is str else None
        return name, self._nano(amount) if nano is None else nano

    def _nano(self, text: Any) -> int:
        nano = nano_of(text)
        if len(self._amounts) >= _CACHED_AMOUNTS_MAX:
            self._amounts.clear()
        self._amounts[text] = nano
        return nano

    def _account(self, name: str, currency: str) -> Account:
        """Find an account; name it once if nobody opened it, and each time the currency is another one."""
        account = self.accounts.get(name)
        if account is None:
            account = self.accounts[name] = Account(currency, 1, True, False)
            if not self._holed:
                self._find("account_unknown", f"account {name!r} was never opened")
        elif account.currency != currency:
            message = f"account {name!r} is in {account.currency[:16]}, the entry in {currency[:16]}"
            self._find("currency_mixed", message)
        return account

    def _check_available(self, name: str, account: Account) -> None:
        if not account.overdraft and account.balance < account.held and not self._holed:
            short = nano_text(account.held - account.balance)
            self._find("account_overdrawn", f"account {name!r} lacks {short} {account.currency[:16]}")


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry[key]
    if type(value) is not str or not value:
        raise _Fault("record_malformed", f"{key!r} is not a text")
    return value
