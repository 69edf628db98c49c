"""Prices and charges at random, and plain ones by hand."""

from __future__ import annotations

from fractions import Fraction

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
)

amounts = st.integers(0, 10**15).map(lambda nano: f"{nano // 10**9}.{nano % 10**9:09d}")
sizes = st.sampled_from(["1", "3", "0.5", "1000", "1000000"])
quantities = st.one_of(
    st.integers(0, 10**12).map(Fraction), st.fractions(0, 10**6, max_denominator=10**6), st.just(Fraction(0))
)


@st.composite
def scales(draw: st.DrawFn) -> list[Tier]:
    """Draw tiers whose bounds grow and whose last is open."""
    tops = sorted(draw(st.sets(st.integers(1, 10**7), max_size=5)))
    return [
        Tier(draw(amounts), None if top is None else str(top), draw(st.sampled_from(["0", "1", "2.5"])))
        for top in [*tops, None]
    ]


@st.composite
def percentages(draw: st.DrawFn) -> Percentage:
    """Draw a share with bounds that do not cross."""
    low, high = sorted([draw(st.integers(0, 50)), draw(st.integers(0, 50))])
    share = draw(st.integers(0, 10**9))
    return Percentage(
        "1" if share == 10**9 else f"0.{share:09d}",
        str(low),
        draw(st.sampled_from([None, str(high)])),
    )


prices: st.SearchStrategy[Price] = st.one_of(
    st.builds(Flat, amounts),
    st.builds(PerUnit, amounts, sizes),
    st.builds(Graduated, scales(), sizes),
    st.builds(Volume, scales(), sizes),
    st.builds(Package, amounts, sizes),
    st.builds(PerMinute, amounts, st.sampled_from(["up", "exact"]), st.sampled_from(["0", "5", "0.5"])),
    percentages(),
)
