"""Reading the book: balances now and as of any position, and what happened to an account."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from domain.errors import AccountNotFoundError


class Balance(NamedTuple):
    """An account at a position.

    Units: nano-units of its currency, positive on its normal side.
    """

    account: str
    currency: str
    side: str
    overdraft: bool
    balance_nano: int
    held_nano: int


class BookReader(ABC):
    """Reads accounts and postings for whoever can ask the database."""

    @abstractmethod
    async def _all(self, statement: str, *params: Any) -> list[Any]: ...

    @abstractmethod
    async def _one(self, statement: str, *params: Any) -> Any: ...

    async def balance(self, account: str, size: int | None = None) -> Balance:
        """Read an account's balance now, or as it was in the log of a size.

        Cost:   one index look-up.
        Errors: account_not_found.
        """
        row = await self._one(
            "SELECT account, currency, side, overdraft, balance_nano::text, held_nano::text FROM accounts"
            " WHERE account = %s",
            account,
        )
        if row is not None and size is not None:
            then = await self._one(
                "SELECT balance_nano::text, held_nano::text FROM postings WHERE account = %s AND position < %s"
                " ORDER BY position DESC, leg DESC LIMIT 1",
                account,
                size,
            )
            row = (*row[:4], *then) if then else None
        if row is None:
            raise AccountNotFoundError(account=account)
        return _balance(row)

    async def balances(self, prefix: str | None = None, size: int | None = None) -> list[Balance]:
        """List the balances of all accounts, or of those whose name starts alike, now or in the log of a size.

        Cost: one index look-up for each account where a size is given.
        """
        if size is not None:
            return await self._balances_then(prefix, size)
        rows = await self._all(
            "SELECT account, currency, side, overdraft, balance_nano::text, held_nano::text FROM accounts"
            " WHERE %s::text IS NULL OR starts_with(account, %s) ORDER BY account",
            prefix,
            prefix,
        )
        return [_balance(row) for row in rows]

    async def _balances_then(self, prefix: str | None, size: int) -> list[Balance]:
        """List balances as of a position; an account that was not open yet has no posting before it."""
        rows = await self._all(
            "SELECT a.account, a.currency, a.side, a.overdraft, p.balance_nano::text, p.held_nano::text"
            " FROM accounts a CROSS JOIN LATERAL (SELECT balance_nano, held_nano FROM postings"
            " WHERE account = a.account AND position < %s ORDER BY position DESC, leg DESC LIMIT 1) p"
            " WHERE %s::text IS NULL OR starts_with(a.account, %s) ORDER BY a.account",
            size,
            prefix,
            prefix,
        )
        return [_balance(row) for row in rows]

    async def postings(
        self, account: str, *, before: tuple[int, int] | None, limit: int
    ) -> list[dict[str, Any]]:
        """List what happened to an account, the latest first, before a place (position, leg)."""
        rows = await self._all(
            "SELECT position || '.' || leg, position, leg, amount_nano::text, hold, balance_nano::text,"
            " held_nano::text FROM postings WHERE account = %s AND (position, leg) < (%s, %s)"
            " ORDER BY position DESC, leg DESC LIMIT %s",
            account,
            *(before or (2**62, 0)),
            limit,
        )
        names = ("at", "position", "leg", "amount_nano", "hold", "balance_nano", "held_nano")
        return [dict(zip(names, row, strict=True)) for row in rows]


def _balance(row: Sequence[Any]) -> Balance:
    account, currency, side, overdraft, balance, held = row
    return Balance(account, currency, side, overdraft, int(balance), int(held))
