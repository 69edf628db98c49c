"""Statements: they add up, name the other side of every leg, and are canonical documents with an address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.billing.statements import (
    Event,
    Frame,
    Movement,
    Owing,
    Standing,
    Subject,
    Sums,
    Told,
    account_statement,
    counter_accounts,
    currency_part,
    customer_statement,
    seal_account,
    seal_customer,
)
from domain.book import Book, Expire, Hold, Open, Post, Posting, Transfer, Void
from domain.canonical import is_canonical
from domain.values import print_nano

AT = "2026-03-29T00:30:00.000000Z"
FRAME = Frame(99, None, None, "Europe/Berlin")
nanos = st.integers(-(10**15), 10**15)
texts = st.text(max_size=12).filter(lambda text: "\0" not in text)


def told(position: int = 0, type_: str = "transfer.posted", **facts: str) -> Told:
    return Told(position, bytes(64), AT, type_, f"{type_.split('.', maxsplit=1)[0]}/x", [], facts)


def walk(amounts: list[int], side: str) -> tuple[list[Movement], Sums, Standing]:
    """Make the movements of an account from nothing on."""
    sign, balance, made = 1 if side == "debit" else -1, 0, []
    for position, amount in enumerate(amounts):
        balance += sign * amount
        made.append(Movement(told(position), 0, amount, None, Standing(balance, 0)))
    sums = Sums(len(amounts), sum(a for a in amounts if a > 0), -sum(a for a in amounts if a < 0))
    return made, sums, Standing(balance, 0)


@given(st.lists(nanos, max_size=8), st.sampled_from(["debit", "credit"]))
def test_an_account_adds_up_on_either_side(amounts: list[int], side: str) -> None:
    moved, sums, closing = walk(amounts, side)
    found = account_statement(Subject("a", "USD", side), FRAME, Standing(0, 0), closing, sums, moved)
    assert found["closing"]["balance"] == print_nano(closing.balance_nano, "USD")
    assert [m["balance"] for m in found["movements"]][-1:] == [found["closing"]["balance"]][: len(amounts)]
    with pytest.raises(AssertionError):
        account_statement(Subject("a", "USD", side), FRAME, Standing(1, 0), closing, sums, moved)


@given(st.lists(nanos, max_size=4), texts, st.sampled_from([None, AT]))
def test_a_statement_is_canonical_and_its_address_is_of_every_byte(
    amounts: list[int], name: str, end: str | None
) -> None:
    moved, sums, closing = walk(amounts, "credit")
    frame = FRAME._replace(end=end)
    found = account_statement(Subject(name, "USD", "credit"), frame, Standing(0, 0), closing, sums, moved)
    data, address = seal_account(found)
    assert is_canonical(data)
    assert seal_account(found) == (data, address)
    other, elsewhere = seal_account(found | {"as_of": 100})
    assert (other, elsewhere) != (data, address)
    # The same bytes are another document where they mean another thing.
    assert seal_customer(found)[1] != address


@given(st.lists(st.tuples(nanos, nanos), max_size=6))
def test_a_customer_adds_up(changes: list[tuple[int, int]]) -> None:
    kinds = ("invoice.issued", "grant.burned", "invoice.paid", "something.else")
    events = [Event(told(n, kinds[n % 4]), Owing(*change)) for n, change in enumerate(changes)]
    closing = Owing(7 + sum(a for a, _ in changes), sum(b for _, b in changes))
    part = currency_part("USD", Owing(7, 0), closing, events)
    assert part["closing"]["owed"] == print_nano(closing.owed_nano, "USD")
    assert sum(total["count"] for total in part["totals"]) == len(events)
    assert is_canonical(seal_customer(customer_statement("acme", FRAME, [part]))[0])
    with pytest.raises(AssertionError):
        currency_part("USD", Owing(8, 0), closing, events)


def test_kinds_and_numbers_are_those_a_customer_knows() -> None:
    events = [
        Event(told(1, "invoice.issued", kind="correction", number="INV-a-000002"), Owing(0, 0)),
        Event(told(2, "grant.burned", invoice="inv-a-000001"), Owing(0, 0)),
        Event(told(3, "grant.granted"), Owing(0, 0)),
    ]
    rows = currency_part("USD", Owing(0, 0), Owing(0, 0), events)["movements"]
    assert [(row["kind"], row["document"]) for row in rows] == [
        ("correction", "INV-a-000002"),
        ("credit_used", "INV-a-000001"),
        ("credit_given", "x"),
    ]


def test_the_other_side_is_named_for_every_leg_a_book_makes() -> None:
    money = [
        Open("fees", "USD", "credit", False),
        Transfer("USD", [Posting("cash", "9"), Posting("payer", "-9")]),
        Hold("h1", "payer", "6", "USD"),
        Hold("h2", "payer", "1", "USD"),
        Hold("h3", "payer", "1", "USD"),
        Post(
            "h1",
            "USD",
            [Posting("payer", "6"), Posting("one", "-4"), Posting("two", "-1"), Posting("fees", "-1")],
        ),
        Void("h2"),
        Expire("h3"),
    ]
    book = Book()
    opened = [Open(name, "USD", side, False) for name, side in (("cash", "debit"), ("payer", "credit"))]
    book.apply([*opened, Open("one", "USD", "credit", False), Open("two", "USD", "credit", False)])
    moves = [move for group in book.apply(money) for move in group]
    named = [(move.account, counter_accounts(money, leg)) for leg, move in enumerate(moves)]
    assert named == [
        ("fees", []),
        ("cash", ["payer"]),
        ("payer", ["cash"]),
        ("payer", []),
        ("payer", []),
        ("payer", []),
        ("payer", []),
        ("payer", ["one", "two", "fees"]),
        ("one", ["payer"]),
        ("two", ["payer"]),
        ("fees", ["payer"]),
        ("payer", []),
        ("payer", []),
    ]
    assert counter_accounts(money, len(moves)) == []
