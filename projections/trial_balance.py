"""The trial balance: every account by currency and purpose, and whether debits equal credits.

It is a pure function of the balances as of one size of the log, so the same size gives the same answer for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from domain.values import print_nano
from ops.balances import Balance
from projections.columns_billing import owner_of

# What is reserved on wallets: for contracts, rentals, subscriptions, purchases and quotas.
ESCROWED = "wallet"


def trial_balance(balances: Iterable[Balance], size: int) -> dict[str, Any]:
    """Sum up accounts: by currency, and in it by purpose and side.

    `balance` is positive on its side, as everywhere; what an account has on the other side counts as less on its own.
    """
    found: dict[str, dict[tuple[str, str], list[Balance]]] = {}
    for one in balances:
        purpose, _ = owner_of(one.account)
        found.setdefault(one.currency, {}).setdefault((purpose, one.side), []).append(one)
    rows = [_currency(currency, found[currency]) for currency in sorted(found)]
    return {"size": size, "balanced": all(row["balanced"] for row in rows), "currencies": rows}


def _currency(currency: str, purposes: dict[tuple[str, str], list[Balance]]) -> dict[str, Any]:
    every = [one for accounts in purposes.values() for one in accounts]
    sums = {side: sum(b.balance_nano for b in every if b.side == side) for side in ("debit", "credit")}
    escrow = sum(b.held_nano for b in every if owner_of(b.account)[0] == ESCROWED)
    return {
        "currency": currency,
        "debits": print_nano(sums["debit"], currency),
        "credits": print_nano(sums["credit"], currency),
        "held": print_nano(sum(b.held_nano for b in every), currency),
        "escrow": print_nano(escrow, currency),
        "balanced": sums["debit"] == sums["credit"],
        "accounts": [
            _purpose(purpose, side, currency, purposes[purpose, side]) for purpose, side in sorted(purposes)
        ],
    }


def _purpose(purpose: str, side: str, currency: str, accounts: list[Balance]) -> dict[str, Any]:
    balance = sum(b.balance_nano for b in accounts)
    held = sum(b.held_nano for b in accounts)
    return {
        "purpose": purpose,
        "side": side,
        "account_count": len(accounts),
        "balance": print_nano(balance, currency),
        "held": print_nano(held, currency),
        "available": print_nano(balance - held, currency),
    }
