"""Metering: everything that was used is counted by one charge a meter, or seen as unpriced."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from domain.billing.metering import METERS, UNPRICED, Used, meter, rate_usage
from domain.billing.prices import PerUnit
from domain.billing.rating import Charge, Match

names = st.sampled_from(["a", "b", "c"])
maybe = st.none() | names
counts = st.integers(0, 1000)
used = st.builds(
    Used, names, names, maybe, counts, counts, counts, counts, st.integers(1, 9), st.just(1), st.just(2),
    st.integers(0, 2**64 - 1).map(lambda n: f"{n:016x}"),
)  # fmt: skip


@st.composite
def sheets(draw: st.DrawFn) -> list[Charge]:
    """Draw charges that overlap as they like."""
    return [
        Charge(
            f"c{n}",
            draw(st.sampled_from(METERS)),
            PerUnit("1"),
            match=Match(draw(maybe), draw(maybe), draw(maybe)),
        )
        for n in range(draw(st.integers(0, 6)))
    ]


@given(sheets(), st.lists(used, max_size=8))
def test_each_meter_of_each_sum_is_counted_by_the_first_charge_that_fits(charges, sums):
    counted, unpriced = meter(charges, sums)
    expected: dict[str, Fraction] = {}
    for one in sums:
        for name in METERS:
            for charge in charges:
                if charge.meter == name and charge.match.fits(one.provider, one.model, one.persona_id):
                    expected[charge.id] = expected.get(charge.id, Fraction(0)) + getattr(one, name)
                    break
    assert {name: found.quantity for name, found in counted.items()} == expected
    assert all(not any(c.match.fits(u.provider, u.model, u.persona_id) for c in charges) for u in unpriced)


@given(sheets(), st.lists(used, max_size=8))
def test_no_record_is_without_a_line(charges, sums):
    lines = rate_usage(charges, sums, "USD", Fraction(1))
    seen = sum(line.evidence.events for line in lines if line.evidence and line.rated.line.charge == UNPRICED)
    _, unpriced = meter(charges, sums)
    assert seen == sum(u.events for u in unpriced)
    assert {line.rated.line.charge for line in lines if line.evidence} >= set(meter(charges, sums)[0])


def test_what_fits_nothing_is_shown_and_costs_nothing():
    one = Used("p", "m", None, 5, 5, 0, 1, 1, 7, 7, "0" * 16)
    (line,) = rate_usage([], [one], "USD", Fraction(1))
    assert (line.rated.line.charge, line.rated.line.amount.amount) == (UNPRICED, "0.00")
    assert "p m" in line.rated.line.description


def test_evidence_is_put_together_whatever_the_order():
    sums = [Used("p", m, None, 1, 0, 0, 1, n, n, n + 5, f"{2**63 + n:016x}") for n, m in enumerate("xyz", 1)]
    charges = [Charge("all", "tokens_in", PerUnit("1"))]
    found = [meter(charges, order)[0]["all"].evidence for order in (sums, sums[::-1])]
    assert found[0] == found[1]
    assert found[0] is not None
    assert (found[0].events, found[0].first, found[0].last) == (6, 1, 8)
    assert int(found[0].fingerprint, 16) == sum(2**63 + n for n in (1, 2, 3)) % 2**64
