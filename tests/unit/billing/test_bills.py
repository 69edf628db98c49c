"""Bills: every column adds up, nothing is negative, and an independent computation comes to the same."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from domain.billing.bills import Bill, Coupon, Credit, Tax, Terms, bill
from domain.billing.prices import PerUnit
from domain.billing.rating import Charge, minor_nano, rate, read_exact
from domain.errors import CurrencyMismatchError
from domain.values import NANO, Money
from tests.unit.billing.price_maker import prices, quantities

NOW = "2026-11-01T00:00:00.000000Z"
LATER = "2027-01-01T00:00:00.000000Z"
money = st.integers(0, 10**13).map(lambda nano: Money.of(nano, "USD"))
shares = st.integers(0, 1000).map(lambda n: "1" if n == 1000 else f"0.{n:03d}")
ids = st.sampled_from(["a", "b", "c", "d"])
coupons = st.one_of(
    st.builds(Coupon, ids, share=shares, charges=st.none() | st.lists(ids, max_size=3)),
    st.builds(Coupon, ids, amount=money, charges=st.none() | st.lists(ids, max_size=3)),
)
grants = st.builds(
    Credit, st.uuids().map(str), money, st.just(NOW), st.sampled_from([None, NOW, LATER]), st.integers(0, 3)
)


@st.composite
def bills(draw: st.DrawFn) -> tuple[list, Terms, Bill]:
    """Draw lines and terms, and make the bill."""
    rated = [
        rate(Charge(draw(ids), "requests", draw(prices)), draw(quantities), "USD")
        for _ in range(draw(st.integers(0, 4)))
    ]
    # What is more than can be written as money is refused, and is no bill.
    assume(all(one.exact_nano < 10**22 for one in rated))
    terms = Terms(
        currency="USD",
        commitment=draw(st.none() | st.integers(0, 10**6).map(str)),
        coupons=draw(st.lists(coupons, max_size=3)),
        taxes=draw(st.lists(st.builds(Tax, ids, shares), max_size=2)),
        credits=draw(st.lists(grants, max_size=4)),
        carried=draw(st.sampled_from(["0", "0.004", "-0.004", "1/300", "-1/300"])),
    )
    return rated, terms, bill(rated, terms, NOW)


@given(bills())
def test_every_column_adds_up_as_a_reader_adds_it_up(drawn):
    _, _, made = drawn
    nano = {name: getattr(made, name).nano for name in ("subtotal", "net", "total", "rounding", "due")}
    assert nano["subtotal"] == sum(line.amount.nano for line in made.lines)
    assert nano["net"] == nano["subtotal"] - sum(item.amount.nano for item in made.discounts)
    assert nano["total"] == nano["net"] + sum(item.amount.nano for item in made.taxes)
    assert nano["due"] == nano["total"] + nano["rounding"] - sum(item.amount.nano for item in made.credits)
    assert all(amount % minor_nano("USD") == 0 for amount in nano.values())
    assert min(nano["net"], nano["total"], nano["due"]) >= 0


@given(bills())
def test_what_is_carried_is_what_was_not_billed(drawn):
    rated, terms, made = drawn
    lines = sum((one.exact_nano for one in rated), Fraction(0))
    commitment = max(Fraction(0), Fraction(terms.commitment or 0) * NANO - lines)
    owed = lines + commitment + read_exact(terms.carried) * NANO
    billed = made.subtotal.nano + made.rounding.nano
    assert owed - billed == read_exact(made.carried) * NANO
    assert abs(read_exact(made.carried)) < Fraction(minor_nano("USD") * 2, NANO)


@given(bills())
def test_a_customer_pays_at_least_the_commitment_before_coupons(drawn):
    rated, terms, made = drawn
    if terms.commitment is not None:
        slack = (len(rated) + 1) * minor_nano("USD")
        assert made.subtotal.nano + slack >= Fraction(terms.commitment) * NANO


@given(bills())
def test_credits_are_burned_in_order_never_expired_ones_and_never_more_than_is_there(drawn):
    _, terms, made = drawn
    there = {credit.id: credit for credit in terms.credits}
    burned = [there[item.name] for item in made.credits]
    assert all(item.amount.nano <= there[item.name].amount.nano for item in made.credits)
    assert all(credit.expires_at is None or credit.expires_at > NOW for credit in burned)
    keys = [(c.priority, c.expires_at or "9999", c.id) for c in burned]
    assert keys == sorted(keys)
    if made.due.nano:
        cent = minor_nano("USD")
        usable = [c for c in terms.credits if c.expires_at in (None, LATER)]
        spent = {item.name: item.amount.nano for item in made.credits}
        assert all(c.amount.nano - spent.get(c.id, 0) < cent for c in usable)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**9 - 1)), max_size=5), shares, shares)
def test_decimal_arithmetic_by_hand_comes_to_the_same(lines, off, tax):
    rated = [
        rate(Charge("c", "requests", PerUnit(f"0.{price:09d}")), Fraction(quantity), "USD")
        for quantity, price in lines
    ]
    made = bill(rated, Terms("USD", coupons=[Coupon("x", share=off)], taxes=[Tax("vat", tax)]), NOW)
    cent = Decimal("0.01")
    exact = [Decimal(quantity) * Decimal(price) / NANO for quantity, price in lines]
    rounded = [amount.quantize(cent, ROUND_HALF_EVEN) for amount in exact]
    net = sum(rounded) - (sum(rounded) * Decimal(off)).quantize(cent, ROUND_HALF_EVEN)
    total = net + (net * Decimal(tax)).quantize(cent, ROUND_HALF_EVEN)
    assert Decimal(made.total.amount) == total


def test_a_bill_has_one_currency():
    rated = [rate(Charge("c", "requests", PerUnit("1")), Fraction(1), "EUR")]
    with pytest.raises(CurrencyMismatchError):
        bill(rated, Terms("USD"), NOW)


def test_a_coupon_for_one_charge_leaves_the_others_alone():
    rated = [rate(Charge(name, "requests", PerUnit("1")), Fraction(10), "USD") for name in ("a", "b")]
    half = Coupon("half", share="0.5", charges=["a"])
    much = Coupon("much", amount=Money.of(99 * NANO, "USD"), charges=["a"])
    terms = Terms("USD", coupons=[half, much])
    made = bill(rated, terms, NOW)
    assert [item.amount.amount for item in made.discounts] == ["5.00", "5.00"]
    assert made.net.amount == "10.00"
