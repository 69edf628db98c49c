"""Statements: what happened to an account, or to what a customer owes, as it was known at a position.

A statement is a canonical document. It is made of records before its position and of nothing else - no clock, no
setting, no later record - so whoever asks again, ever, is given the same bytes, and its address says so.
A period is cut in the order of the log: it begins with the first movement recorded at `from` or later, and ends before
the first recorded at `to` or later. So statements that touch never count a movement twice, even where two clocks of the
ledger disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from domain.book import Entry, Post, Transfer
from domain.canonical import sealed
from domain.log.records import address_text
from domain.values import parse_nano, print_nano

ACCOUNT_CONTEXT = "soma/account_statement/v1"
CUSTOMER_CONTEXT = "soma/customer_statement/v1"
ACCOUNT_SCHEMA = "soma/account_statement/1"
CUSTOMER_SCHEMA = "soma/customer_statement/1"
MOVEMENTS_MAX = 10_000


class Frame(NamedTuple):
    """What a statement is about in time.

    Units: as_of is the last position that counts; start and end are moments in UTC, None for everything before or
           after; zone is the one its reader thinks in.
    """

    as_of: int
    start: str | None
    end: str | None
    zone: str

    @property
    def shown(self) -> dict[str, Any]:
        return {"as_of": self.as_of, "from": self.start, "to": self.end, "zone": self.zone}


class Told(NamedTuple):
    """The record behind a movement."""

    position: int
    address: bytes
    at: str
    type: str
    stream: str
    money: Sequence[Entry]
    facts: dict[str, Any]


class Standing(NamedTuple):
    """An account at a place of the log. Units: nano-units, positive on its normal side."""

    balance_nano: int
    held_nano: int


class Movement(NamedTuple):
    """What one leg did to an account. Units: nano-units; a debit is positive."""

    told: Told
    leg: int
    amount_nano: int
    hold: str | None
    after: Standing


class Sums(NamedTuple):
    """What movements add up to. Units: nano-units, none negative."""

    movement_count: int
    debits_nano: int
    credits_nano: int


class Subject(NamedTuple):
    """The account a statement is about."""

    account: str
    currency: str
    side: str


def account_statement(
    subject: Subject,
    frame: Frame,
    opening: Standing,
    closing: Standing,
    sums: Sums,
    movements: Iterable[Movement],
) -> dict[str, Any]:
    """Write an account's statement; every movement in the order of the log, with what stood after it."""
    sign = 1 if subject.side == "debit" else -1
    change = sign * (sums.debits_nano - sums.credits_nano)
    assert opening.balance_nano + change == closing.balance_nano, "a statement adds up"
    currency = subject.currency
    return {
        "schema": ACCOUNT_SCHEMA,
        **subject._asdict(),
        **frame.shown,
        "opening": _standing(opening, currency),
        "closing": _standing(closing, currency),
        "debits": print_nano(sums.debits_nano, currency),
        "credits": print_nano(sums.credits_nano, currency),
        "movement_count": sums.movement_count,
        "movements": [movement_row(one, subject) for one in movements],
    }


def _standing(standing: Standing, currency: str) -> dict[str, str]:
    return {
        "balance": print_nano(standing.balance_nano, currency),
        "held": print_nano(standing.held_nano, currency),
    }


def movement_row(movement: Movement, subject: Subject) -> dict[str, Any]:
    """Show a movement as statements and their tables do."""
    told, currency = movement.told, subject.currency
    return {
        "position": told.position,
        "leg": movement.leg,
        "at": told.at,
        "type": told.type,
        "stream": told.stream,
        "address": address_text(told.address),
        "amount": print_nano(movement.amount_nano, currency),
        "hold": movement.hold,
        "counter": counter_accounts(told.money, movement.leg),
        **_standing(movement.after, currency),
    }


def counter_accounts(money: Sequence[Entry], leg: int) -> list[str]:
    """Name the accounts on the other side of a leg; a reservation moves nothing, so it has none.

    Only the other side is named: of those who share a payment with somebody, no one learns who the others are.
    """
    count = 0
    for entry in money:
        amounts = [0] * _first_legs(entry)
        postings = entry.postings if isinstance(entry, Transfer | Post) else []
        amounts += [parse_nano(posting.amount) for posting in postings]
        if leg < count + len(amounts):
            mine = amounts[leg - count]
            others = (p.account for p in postings if mine * parse_nano(p.amount) < 0)
            return list(dict.fromkeys(others))
        count += len(amounts)
    return []


def _first_legs(entry: Entry) -> int:
    """Count the legs an entry has before its postings: opening, reserving and releasing are one each."""
    return 0 if isinstance(entry, Transfer) else 1


def seal_account(document: dict[str, Any]) -> tuple[bytes, str]:
    """Give the bytes of an account's statement, and their address."""
    return sealed(ACCOUNT_CONTEXT, document)


# --------------------------------------------------------------------------- customers


class Owing(NamedTuple):
    """What a customer owes, and what it has paid before. Units: nano-units."""

    owed_nano: int
    credit_nano: int


class Event(NamedTuple):
    """A record that changed what a customer owes or has as credit; an invoice of nothing changes neither."""

    told: Told
    change: Owing


KINDS = {
    "credit_note.issued": "credit_note",
    "invoice.paid": "payment",
    "grant.granted": "credit_given",
    "grant.burned": "credit_used",
    "grant.expired": "credit_expired",
}


def kind_of(told: Told) -> str:
    """Name what happened as a customer would: invoice, correction, credit_note, payment, credit_..., or other."""
    if told.type == "invoice.issued":
        return str(told.facts.get("kind", "invoice"))
    return KINDS.get(told.type, "other")


def event_row(event: Event, after: Owing, currency: str) -> dict[str, Any]:
    """Show an event of a customer as statements and their tables do."""
    told = event.told
    name = told.stream.partition("/")[2]
    return {
        "position": told.position,
        "at": told.at,
        "kind": kind_of(told),
        "document": told.facts.get("number") or _number(told.facts.get("invoice") or name),
        "id": name,
        "address": address_text(told.address),
        "amount": told.facts.get("amount"),
        "period_start": told.facts.get("period_start"),
        "period_end": told.facts.get("period_end"),
        "owed_change": print_nano(event.change.owed_nano, currency),
        "credit_change": print_nano(event.change.credit_nano, currency),
        "owed": print_nano(after.owed_nano, currency),
        "credit": print_nano(after.credit_nano, currency),
    }


def _number(name: str) -> str:
    """Give the number of an invoice by its id; anything else keeps its own."""
    return "INV-" + name.removeprefix("inv-") if name.startswith("inv-") else name


def running(opening: Owing, events: Iterable[Event]) -> Iterator[tuple[Event, Owing]]:
    """Give each event with what stands after it."""
    owed, credit = opening
    for event in events:
        owed += event.change.owed_nano
        credit += event.change.credit_nano
        yield event, Owing(owed, credit)


def currency_part(currency: str, opening: Owing, closing: Owing, events: Sequence[Event]) -> dict[str, Any]:
    """Write the part of a customer's statement that is in one currency."""
    steps = list(running(opening, events))
    assert (steps[-1][1] if steps else opening) == closing, "a statement adds up"
    rows = [event_row(event, after, currency) for event, after in steps]
    return {
        "currency": currency,
        "opening": _owing(opening, currency),
        "closing": _owing(closing, currency),
        "totals": _by_kind(events, currency),
        "movement_count": len(rows),
        "movements": rows,
    }


def _owing(owing: Owing, currency: str) -> dict[str, str]:
    return {
        "owed": print_nano(owing.owed_nano, currency),
        "credit": print_nano(owing.credit_nano, currency),
    }


def _by_kind(events: Iterable[Event], currency: str) -> list[dict[str, Any]]:
    sums: dict[str, tuple[int, int, int]] = {}
    for event in events:
        kind = kind_of(event.told)
        count, owed, credit = sums.get(kind, (0, 0, 0))
        sums[kind] = (count + 1, owed + event.change.owed_nano, credit + event.change.credit_nano)
    return [
        {"kind": kind, "count": count, **_owing(Owing(owed, credit), currency)}
        for kind, (count, owed, credit) in sorted(sums.items())
    ]


def customer_statement(tenant: str, frame: Frame, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write a customer's statement, currency by currency."""
    return {"schema": CUSTOMER_SCHEMA, "tenant": tenant, **frame.shown, "currencies": list(parts)}


def seal_customer(document: dict[str, Any]) -> tuple[bytes, str]:
    """Give the bytes of a customer's statement, and their address."""
    return sealed(CUSTOMER_CONTEXT, document)
