"""Settling: what was reserved on a renter's wallet is paid to seller and platform, each hold exactly once."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from domain.billing.accounts import PLATFORM, account_name, ensure
from domain.billing.prices import decimal_of
from domain.billing.rating import round_nano
from domain.book import Entry, Expire, Hold, Void, settlement
from domain.ledger import Case
from domain.values import Money


class Sale(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is sold, by whom, and what part of its price is the platform's.

    Units: fee from 0 to 1.
    """

    persona_id: str
    capsule: str
    seller: str
    currency: str
    fee: str


class Reserved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A hold on the renter's wallet."""

    hold: str
    amount: Money


def fee_nano(sale: Sale, charged_nano: int) -> int:
    """Give the platform's part of what was charged; the seller has the rest.

    Units: nano-units, whole minor units of the currency.
    """
    return round_nano(charged_nano * decimal_of(sale.fee), sale.currency)


def hold_on(name: str, renter: str, amount: Money) -> list[Entry]:
    """Reserve an amount on a renter's wallet; nothing needs no hold."""
    wallet = account_name("wallet", renter, amount.currency)
    return [Hold(name, wallet, amount.amount, amount.currency)] if amount.nano else []


def held_by(money: Sequence[Entry]) -> list[Reserved]:
    """List the holds that entries place."""
    return [Reserved(e.hold, Money(e.amount, e.currency)) for e in money if isinstance(e, Hold)]


def settle(
    case: Case, sale: Sale, renter: str, holds: Sequence[Reserved], charged: int, *, expired: bool = False
) -> list[Entry]:
    """Pay what is charged out of holds, the earlier ones first, and release what nothing is taken from.

    Units: charged in nano-units, at most what the holds reserve.
    """
    assert 0 <= charged <= sum(part.amount.nano for part in holds), "holds cover what is charged"
    payer = account_name("wallet", renter, sale.currency)
    payees = _payees(case, sale, charged) if charged else []
    entries: list[Entry] = []
    for part in holds:
        paid = min(charged, part.amount.nano)
        charged -= paid
        if paid:
            shares, payees = _split(payees, paid, sale.currency)
            entries.append(settlement(part.hold, payer, shares))
        else:
            entries.append(Expire(part.hold) if expired else Void(part.hold))
    return entries


def _payees(case: Case, sale: Sale, charged: int) -> list[tuple[str, int]]:
    fee = fee_nano(sale, charged)
    return [
        (ensure(case, "earnings", sale.seller, sale.currency), charged - fee),
        (ensure(case, "fees", PLATFORM, sale.currency), fee),
    ]


def _split(
    payees: Sequence[tuple[str, int]], nano: int, currency: str
) -> tuple[list[tuple[str, Money]], list[tuple[str, int]]]:
    """Pay payees in their order out of an amount; give the payments, and what is still owed to whom."""
    shares, left = [], []
    for account, owed in payees:
        part = min(owed, nano)
        nano -= part
        shares.append((account, Money.of(part, currency)))
        left.append((account, owed - part))
    return shares, left
