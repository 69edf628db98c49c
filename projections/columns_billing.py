"""Ledger entries, accounts and holds in columns: what the `money` of records says, leg by leg.

Legs are counted as the book counts its moves, so (position, leg) names the same move here and in PostgreSQL: opening
an account is one, each posting is one, and placing or ending a hold is one before the postings it pays out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
import pyarrow as pa

from domain.book import Entry, Expire, Hold, Open, Post, Posting, Transfer, Void
from domain.errors import AmountInvalidError
from projections.columns import (
    ADDRESS,
    DECIMAL,
    MOMENT,
    TEXT,
    U64,
    Reading,
    Rows,
    Shape,
    Tables,
    decimals,
    nano_of,
    schema_of,
    table,
)


class Moved(msgspec.Struct, gc=False):
    """The part of an event's data that moves money; most of them have none."""

    money: list[Entry] = []


BILLING_ROWS: Reading[Moved] = Reading(Moved, Moved())

ENTRIES = Shape(
    "entries",
    schema_of(
        position=U64,
        leg=pa.uint32(),
        address=ADDRESS,
        at=MOMENT,
        day=pa.date32(),
        tenant=TEXT,
        account=TEXT,
        purpose=TEXT,
        currency=TEXT,
        amount=DECIMAL,
        op=TEXT,
        hold=TEXT,
        type=TEXT,
        stream=TEXT,
        record_tenant=TEXT,
        actor=TEXT,
    ),
    month="day",
)
ACCOUNTS = Shape(
    "accounts",
    schema_of(
        account=TEXT,
        tenant=TEXT,
        purpose=TEXT,
        currency=TEXT,
        side=TEXT,
        overdraft=pa.bool_(),
        position=U64,
        leg=pa.uint32(),
        address=ADDRESS,
        at=MOMENT,
    ),
)
HOLDS = Shape(
    "holds",
    schema_of(
        hold=TEXT,
        position=U64,
        leg=pa.uint32(),
        address=ADDRESS,
        at=MOMENT,
        op=TEXT,
        account=TEXT,
        tenant=TEXT,
        currency=TEXT,
        amount=DECIMAL,
        type=TEXT,
        stream=TEXT,
    ),
)


@lru_cache(65_536)
def owner_of(account: str) -> tuple[str, str]:
    """Read purpose and tenant out of an account's name, such as `wallet.acme.USD`; other names belong to nobody."""
    parts = account.split(".")
    return (parts[0], parts[1]) if len(parts) == 3 else ("", "")


class _Legs:
    """The legs of a batch, collected column by column."""

    def __init__(self) -> None:
        # Postings: place in the batch, leg, account, nano-units, currency, op and hold.
        self.entries: list[tuple[int, int, str, int, str, str, str]] = []
        # What was opened: place and leg, then account, currency, side and whether it may be overdrawn.
        self.accounts: list[tuple[int, int, str, str, str, bool]] = []
        # Steps of holds: place and leg, then hold, op, account, currency and nano-units.
        self.holds: list[tuple[int, int, str, str, str, str, int]] = []

    def add(self, place: int, money: list[Entry]) -> None:
        """Add what one record moves, or nothing of it.

        Errors: invalid_amount.
        """
        kept = len(self.entries), len(self.accounts), len(self.holds)
        try:
            leg = 0
            for entry in money:
                leg = self._add(place, leg, entry)
        except AmountInvalidError:
            del self.entries[kept[0] :], self.accounts[kept[1] :], self.holds[kept[2] :]
            raise

    def _add(self, place: int, leg: int, entry: Entry) -> int:
        match entry:
            case Transfer():
                return self._post(place, leg, entry.postings, entry.currency, "transfer", "")
            case Post():
                moved = sum(max(0, nano_of(p.amount)) for p in entry.postings)
                self.holds.append((place, leg, entry.hold, "post", "", entry.currency, moved))
                return self._post(place, leg + 1, entry.postings, entry.currency, "post", entry.hold)
            case Hold():
                nano = nano_of(entry.amount)
                self.holds.append((place, leg, entry.hold, "hold", entry.account, entry.currency, nano))
            case Void():
                self.holds.append((place, leg, entry.hold, "void", "", "", 0))
            case Expire():
                self.holds.append((place, leg, entry.hold, "expire", "", "", 0))
            case Open():
                self.accounts.append((place, leg, entry.account, entry.currency, entry.side, entry.overdraft))
        return leg + 1

    def _post(self, place: int, leg: int, postings: list[Posting], currency: str, op: str, hold: str) -> int:
        for posting in postings:
            self.entries.append((place, leg, posting.account, nano_of(posting.amount), currency, op, hold))
            leg += 1
        return leg


def billing(rows: Rows[Moved]) -> Tables:
    """Tell the money of a batch; a record whose amounts cannot be kept is named and left out whole."""
    legs = _Legs()
    for place, envelope in enumerate(rows.envelopes):
        if envelope.data.money:
            try:
                legs.add(place, envelope.data.money)
            except AmountInvalidError as error:
                rows.refuse(place, error)
    return {
        "entries": _entries(rows, legs.entries),
        "accounts": _accounts(rows, legs.accounts),
        "holds": _holds(rows, legs.holds),
    }


def _turned(found: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Turn rows into columns; zip would make an iterator of each row first."""
    return [[row[place] for row in found] for place in range(width)]


def _entries(rows: Rows[Moved], found: list[tuple[int, int, str, int, str, str, str]]) -> pa.Table:
    places, leg, account, nano, currency, op, hold = _turned(found, 7)
    owners = [owner_of(name) for name in account]
    columns: dict[str, Any] = rows.pick(places, "position", "address", "at", "day", "type", "stream", "actor")
    columns |= {
        "leg": leg,
        "tenant": [tenant for _, tenant in owners],
        "account": account,
        "purpose": [purpose for purpose, _ in owners],
        "currency": currency,
        "amount": decimals(nano),
        "op": op,
        "hold": hold,
        "record_tenant": rows.pick(places, "tenant")["tenant"],
    }
    return table(ENTRIES, columns)


def _accounts(rows: Rows[Moved], found: list[tuple[int, int, str, str, str, bool]]) -> pa.Table:
    places, leg, account, currency, side, overdraft = _turned(found, 6)
    owners = [owner_of(name) for name in account]
    columns: dict[str, Any] = rows.pick(places, "position", "address", "at")
    columns |= {
        "account": account,
        "tenant": [tenant for _, tenant in owners],
        "purpose": [purpose for purpose, _ in owners],
        "currency": currency,
        "side": side,
        "overdraft": overdraft,
        "leg": leg,
    }
    return table(ACCOUNTS, columns)


def _holds(rows: Rows[Moved], found: list[tuple[int, int, str, str, str, str, int]]) -> pa.Table:
    places, leg, hold, op, account, currency, nano = _turned(found, 7)
    columns: dict[str, Any] = rows.pick(places, "position", "address", "at", "type", "stream")
    columns |= {
        "hold": hold,
        "leg": leg,
        "op": op,
        "account": account,
        "tenant": [owner_of(name)[1] for name in account],
        "currency": currency,
        "amount": decimals(nano),
    }
    return table(HOLDS, columns)
