"""Prices: what each model charges, at its edges, and the laws all of them keep."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.billing.prices import (
    Flat,
    Graduated,
    Package,
    Percentage,
    PerMinute,
    PerUnit,
    Price,
    Tier,
    Volume,
    check_price,
    decimal_of,
    nano_of,
    steps_of,
    total_of,
)
from domain.errors import PriceBookInvalidError
from tests.unit.billing.price_maker import prices, quantities, scales, sizes

NANO = 10**9
SCALE = [Tier("2", "100", "1"), Tier("1.5", "200"), Tier("1", None, "10")]


def cost(price: Price, quantity: int | str | Fraction) -> Fraction:
    """Give what a quantity costs, in units of the currency."""
    return total_of(steps_of(price, Fraction(quantity))) / NANO


class TestModels:
    @pytest.mark.parametrize(
        ("price", "quantity", "amount"),
        [
            (Flat("9.99"), 1, "9.99"),
            (Flat("9.99"), "1/3", "3.33"),
            (Flat("9.99"), 0, "0"),
            (PerUnit("0.25"), 4, "1"),
            (PerUnit("3", per="1000000"), 1, "0.000003"),
            (PerUnit("1", per="3"), 1, "1/3"),
            (Graduated(SCALE), 0, "0"),
            (Graduated(SCALE), 100, "201"),
            (Graduated(SCALE), 101, "202.5"),
            (Graduated(SCALE), 200, "351"),
            (Graduated(SCALE), 201, "362"),
            (Volume(SCALE), 0, "0"),
            (Volume(SCALE), 100, "201"),
            (Volume(SCALE), 101, "151.5"),
            (Volume(SCALE), 201, "211"),
            (Package("5", "100"), 0, "0"),
            (Package("5", "100"), 1, "5"),
            (Package("5", "100"), 100, "5"),
            (Package("5", "100"), 101, "10"),
            (PerMinute("0.10"), 0, "0"),
            (PerMinute("0.10"), 1, "0.1"),
            (PerMinute("0.10"), 60, "0.1"),
            (PerMinute("0.10"), 61, "0.2"),
            (PerMinute("0.60", "exact"), 1, "0.01"),
            (PerMinute("0.10", "up", "5"), 61, "0.5"),
            (PerMinute("0.10", "up", "5"), 0, "0"),
            (Percentage("0.025"), 200, "5"),
            (Percentage("0.025", "1"), 10, "1"),
            (Percentage("0.025", "1", "4"), 1000, "4"),
            (Percentage("0.025", "1"), 0, "0"),
        ],
    )
    def test_a_quantity_costs_what_its_model_says(self, price, quantity, amount):
        check_price(price, "price")
        assert cost(price, quantity) == Fraction(amount)

    def test_a_volume_price_has_a_cliff_and_a_graduated_one_has_none(self):
        assert cost(Volume(SCALE), 101) < cost(Volume(SCALE), 100)
        assert cost(Graduated(SCALE), 101) > cost(Graduated(SCALE), 100)


class TestLaws:
    @given(prices, quantities)
    def test_every_price_that_can_be_drawn_is_one_and_never_negative(self, price, quantity):
        check_price(price, "price")
        assert all(step.nano >= 0 for step in steps_of(price, quantity))

    @given(prices)
    def test_nothing_costs_nothing(self, price):
        assert cost(price, 0) == 0

    @given(prices.filter(lambda p: not isinstance(p, Volume)), quantities, quantities)
    def test_more_never_costs_less_but_for_volume(self, price, one, other):
        assert cost(price, min(one, other)) <= cost(price, max(one, other))

    @given(scales(), sizes, quantities, quantities)
    def test_a_graduated_price_is_the_sum_over_any_cut(self, tiers, per, one, other):
        """Charging a part now and the rest later is charging the whole."""
        price = Graduated([Tier(t.price, t.up_to) for t in tiers], per)
        whole = cost(price, one + other)
        assert cost(price, one) + (cost(price, one + other) - cost(price, one)) == whole
        assert whole == _graduated_by_hand(price, one + other)

    @given(scales(), sizes, quantities)
    def test_a_volume_price_is_that_of_one_tier(self, tiers, per, quantity):
        price = Volume(tiers, per)
        if quantity:
            tier = next(t for t in tiers if t.up_to is None or quantity <= Fraction(t.up_to))
            assert cost(price, quantity) == quantity / Fraction(per) * Fraction(tier.price) + Fraction(
                tier.flat
            )

    @given(st.integers(1, 10**6), st.integers(0, 10**9))
    def test_packages_hold_what_they_are_paid_for(self, size, quantity):
        count = cost(Package("1", str(size)), quantity)
        assert count == ceil(Fraction(quantity, size))
        assert (count - 1) * size < quantity <= count * size or quantity == 0

    @given(st.integers(0, 10**9))
    def test_started_minutes_are_at_most_one_more_than_exact_ones(self, seconds):
        up, exact = cost(PerMinute("1"), seconds), cost(PerMinute("1", "exact"), seconds)
        assert exact <= up < exact + 1


def _graduated_by_hand(price: Graduated, quantity: Fraction) -> Fraction:
    """Charge unit by unit, in bulk: the length of the overlap of the quantity with each tier."""
    total, below = Fraction(0), Fraction(0)
    for tier in price.tiers:
        top = quantity if tier.up_to is None else Fraction(tier.up_to)
        total += max(Fraction(0), min(quantity, top) - below) / Fraction(price.per) * Fraction(tier.price)
        below = top
    return total


class TestBadPrices:
    @pytest.mark.parametrize(
        ("price", "where"),
        [
            (Flat("-1"), "p.price"),
            (Flat("NaN"), "p.price"),
            (Flat("1e3"), "p.price"),
            (Flat("0.0000000001"), "p.price"),
            (PerUnit("1", "0"), "p.per"),
            (PerUnit("1", "-1"), "p.per"),
            (Package("1", "0"), "p.size"),
            (Graduated([]), "p.tiers"),
            (Graduated([Tier("1", "5")]), "p.tiers[0]"),
            (Graduated([Tier("1"), Tier("1")]), "p.tiers[0]"),
            (Graduated([Tier("1", "5"), Tier("1", "5"), Tier("1")]), "p.tiers[1]"),
            (Graduated([Tier("1", "5"), Tier("1", "4"), Tier("1")]), "p.tiers[1]"),
            (Volume([Tier("-1")]), "p.tiers[0].price"),
            (Volume([Tier("1", None, "-1")]), "p.tiers[0].flat"),
            (Volume([Tier("1", "0"), Tier("1")]), "p.tiers[0].up_to"),
            (Volume([Tier("1", str(n)) for n in range(1, 101)] + [Tier("1")]), "p.tiers"),
            (Percentage("1.1"), "p.share"),
            (Percentage("0.1", "5", "4"), "p.fee_max"),
            (PerMinute("1", "up", "-1"), "p.minutes_min"),
        ],
    )
    def test_what_is_no_price_is_refused_and_named(self, price, where):
        with pytest.raises(PriceBookInvalidError) as refused:
            check_price(price, "p")
        assert refused.value.facts["where"] == where

    def test_decimals_are_read_exactly(self):
        assert decimal_of("0.1") == Fraction(1, 10)
        assert nano_of("0.000000001") == 1
