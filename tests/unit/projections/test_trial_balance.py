"""The trial balance: what lies where, by currency and purpose, and the same for the same balances."""

from __future__ import annotations

from decimal import Decimal
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from domain.billing.accounts import EITHER_SIDE, SIDES
from ops.balances import Balance
from projections.trial_balance import trial_balance

tenants, currencies = st.sampled_from(["acme", "bolt", "platform"]), st.sampled_from(["EUR", "JPY", "USD"])
names = st.tuples(st.sampled_from(sorted(SIDES)), tenants, currencies)
nanos = st.integers(0, 10**15)


@st.composite
def books(draw: Any) -> list[Balance]:
    """Make balances of some accounts, some of them on the other side of zero where they may be."""
    found = []
    for purpose, tenant, currency in sorted(draw(st.sets(names, max_size=12))):
        balance = draw(nanos) * (draw(st.sampled_from([1, -1])) if purpose in EITHER_SIDE else 1)
        held = draw(st.integers(0, balance)) if balance > 0 else 0
        account = f"{purpose}.{tenant}.{currency}"
        found.append(Balance(account, currency, SIDES[purpose], purpose in EITHER_SIDE, balance, held))
    return found


@given(books(), st.randoms())
def test_the_purposes_of_a_side_add_up_to_it_whatever_the_order(found: list[Balance], chance: Random) -> None:
    told = trial_balance(found, 7)
    shuffled = list(found)
    chance.shuffle(shuffled)
    assert trial_balance(shuffled, 7) == told
    assert [row["currency"] for row in told["currencies"]] == sorted({b.currency for b in found})
    for row in told["currencies"]:
        accounts = row["accounts"]
        for side, total in (("debit", row["debits"]), ("credit", row["credits"])):
            assert sum(Decimal(one["balance"]) for one in accounts if one["side"] == side) == Decimal(total)
        assert row["balanced"] is (Decimal(row["debits"]) == Decimal(row["credits"]))
        assert sum(Decimal(one["held"]) for one in accounts) == Decimal(row["held"])
        assert sum(one["account_count"] for one in accounts) == sum(
            b.currency == row["currency"] for b in found
        )
        wallets = [one for one in accounts if one["purpose"] == "wallet"]
        assert Decimal(row["escrow"]) == sum((Decimal(one["held"]) for one in wallets), Decimal())
    assert told["balanced"] is all(row["balanced"] for row in told["currencies"])


def test_an_account_that_has_more_on_its_other_side_counts_as_less_there() -> None:
    found = [
        Balance("cash.platform.USD", "USD", "debit", False, 5 * 10**9, 0),
        Balance("revenue.platform.USD", "USD", "credit", True, -2 * 10**9, 0),
        Balance("wallet.acme.USD", "USD", "credit", False, 7 * 10**9, 10**9),
    ]
    told = trial_balance(found, 3)
    (row,) = told["currencies"]
    assert (row["debits"], row["credits"], row["escrow"], row["balanced"]) == ("5.00", "5.00", "1.00", True)
    assert {one["purpose"]: one["balance"] for one in row["accounts"]}["revenue"] == "-2.00"
    assert told["size"] == 3


def test_books_that_do_not_balance_are_told_to_be_so() -> None:
    found = [Balance("cash.platform.USD", "USD", "debit", False, 1, 0)]
    assert trial_balance(found, 1)["balanced"] is False
    assert trial_balance([], 0) == {"size": 0, "balanced": True, "currencies": []}
