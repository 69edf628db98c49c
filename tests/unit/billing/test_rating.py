"""Rating: lines are exact, rounded once, and what rounding takes is never lost."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.billing.prices import Flat, PerUnit, Step
from domain.billing.rating import (
    Charge,
    carry,
    line_of,
    minor_nano,
    print_exact,
    rate,
    read_exact,
    round_nano,
)
from domain.values import CURRENCY_DIGITS
from tests.unit.billing.price_maker import prices, quantities

NANO = 10**9
currencies = st.sampled_from(sorted(CURRENCY_DIGITS))
shares = st.fractions(0, 1, max_denominator=3_600 * 24 * 31)


@given(prices, quantities, currencies, shares)
def test_a_line_is_its_steps_rounded_once(price, quantity, currency, share):
    rated = rate(Charge("c", "requests", price), quantity, currency, share)
    line = rated.line
    assert sum((read_exact(step.amount) for step in line.steps), Fraction(0)) == read_exact(line.exact)
    assert read_exact(line.exact) * NANO == rated.exact_nano
    assert read_exact(line.exact) - Fraction(line.amount.amount) == read_exact(line.rounding)
    assert abs(read_exact(line.rounding)) * 2 <= Fraction(minor_nano(currency), NANO)
    assert line.amount.nano % minor_nano(currency) == 0


@given(st.integers(-(10**20), 10**20), currencies)
def test_rounding_is_half_even_as_decimal_does_it(nano, currency):
    with localcontext() as context:
        context.prec = 60
        step = Decimal(1).scaleb(-CURRENCY_DIGITS[currency])
        expected = (Decimal(nano) / NANO).quantize(step, ROUND_HALF_EVEN)
    assert Fraction(round_nano(Fraction(nano), currency), NANO) == Fraction(expected)


@given(st.lists(st.lists(st.fractions(-1000, 1000), max_size=5), max_size=12), currencies)
def test_what_rounding_took_comes_back_over_the_invoices(months, currency):
    carried, paid, owed = Fraction(0), 0, Fraction(0)
    for month in months:
        steps = [("x", Fraction(1), "0", nano * NANO) for nano in month]
        rated = [line_of("c", "requests", "", Fraction(1), [Step(*s)], currency) for s in steps]
        settled, carried = carry(carried, rated, currency)
        paid += sum(r.line.amount.nano for r in rated) + settled
        owed += sum((r.exact_nano for r in rated), Fraction(0))
        assert abs(carried) * 2 <= minor_nano(currency)
        assert paid + carried == owed


@given(st.fractions())
def test_a_number_is_printed_exactly(value):
    assert read_exact(print_exact(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [("1/4", "0.25"), ("-1/8", "-0.125"), ("1/3", "1/3"), ("10", "10"), ("0", "0"), ("1/1000", "0.001")],
)
def test_a_number_that_ends_is_a_decimal(value, text):
    assert print_exact(Fraction(value)) == text


class TestBounds:
    def test_a_free_allowance_comes_first_and_is_shown(self):
        line = rate(Charge("c", "requests", PerUnit("0.10"), free="30"), Fraction(50), "USD").line
        assert [(s.what, s.quantity, s.amount) for s in line.steps] == [
            ("free", "30", "0"),
            ("unit", "20", "2"),
        ]

    def test_a_minimum_is_a_true_up_and_a_maximum_a_cut(self):
        charge = Charge("c", "requests", PerUnit("1"), minimum="10", maximum="20")
        assert [rate(charge, Fraction(q), "USD").line.amount.amount for q in (0, 5, 15, 25)] == [
            "10.00", "10.00", "15.00", "20.00",
        ]  # fmt: skip

    def test_a_part_of_a_period_has_its_part_of_everything_that_is_for_a_period(self):
        half = Fraction(1, 2)
        assert rate(Charge("c", "period", Flat("30")), Fraction(1), "USD", half).line.amount.amount == "15.00"
        charge = Charge("c", "requests", PerUnit("1"), free="10", minimum="8")
        assert rate(charge, Fraction(7), "USD", half).line.amount.amount == "4.00"
        whole = Charge("c", "period", Flat("30"), prorate=False)
        assert rate(whole, Fraction(1), "USD", half).line.amount.amount == "30.00"

    @given(prices, quantities, st.integers(0, 1000), st.integers(0, 1000))
    def test_a_line_never_leaves_its_bounds(self, price, quantity, one, other):
        low, high = sorted((one, other))
        charge = Charge("c", "requests", price, minimum=str(low), maximum=str(high))
        assert low <= read_exact(rate(charge, quantity, "USD").line.exact) <= high
