"""The figures of the business are counted from what was committed, and from nothing else."""

from __future__ import annotations

import pytest

from domain.book import Hold, Post, Posting, Transfer
from domain.commits import Commit
from domain.ledger import Row
from ops.tallies import business_committed, purpose_of
from ops.telemetry import REGISTRY

ADDRESS = bytes(64)


def figure(name: str, **labels: str) -> float:
    """Read a counter; one that nobody has touched stands at zero."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


def booked(purpose: str, side: str) -> float:
    """Read how much was booked in Czech crowns, which no other test uses."""
    return figure("soma_money_booked_total", purpose=purpose, side=side, currency="CZK")


def commit(*types: str, entries: tuple[Hold | Post | Transfer, ...] = ()) -> Commit:
    """Make a commit of records of these types, the first of which moves the money."""
    rows = [Row(f"x/{n}", 1, name, "acme", ADDRESS, bytes(32), b"{}") for n, name in enumerate(types)]
    return Commit(rows, [(0, entries)] if entries else [])


def test_records_are_counted_by_type_and_readings_are_not() -> None:
    types = ("credit_note.issued", "rental.ended", "usage.metered")
    before = [figure("soma_business_records_total", type=name) for name in types]
    business_committed(
        [commit("credit_note.issued", "usage.metered"), commit("rental.ended", "rental.ended")]
    )
    after = [figure("soma_business_records_total", type=name) for name in types]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 2, 0]


def test_money_is_counted_where_it_is_booked_and_a_hold_books_nothing() -> None:
    sides = [("wallet", "debit"), ("earnings", "credit"), ("fees", "credit"), ("wallet", "credit")]
    before = [booked(*side) for side in sides]
    legs = [
        Posting("wallet.acme.CZK", "12.5"), Posting("earnings.bolt.CZK", "-12"), Posting("fees.platform.CZK", "-0.5"),
    ]  # fmt: skip
    hold = Hold("h", "wallet.acme.CZK", "99", "CZK")
    business_committed([commit("rental.ended", entries=(hold, Post("h", "CZK", legs)))])
    business_committed([commit("transfer.posted", entries=(Transfer("CZK", legs),))])
    assert [booked(*side) - was for side, was in zip(sides, before, strict=True)] == [25.0, 24.0, 1.0, 0.0]


@pytest.mark.parametrize("account", ["", "x.y.z", "WALLET.acme.USD", "wallets", "\0"])
def test_a_name_no_release_has_opened_makes_no_label_of_its_own(account: str) -> None:
    assert purpose_of(account) == "other"
    assert purpose_of("earnings.acme.USD") == "earnings"
