"""The chosen set is the best one there is, or the answer says by how much it might not be."""

from __future__ import annotations

import functools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.market.knapsack import Choice, Limits, choose


@functools.cache
def all_subsets(size: int) -> np.ndarray:
    return (np.arange(1 << size)[:, None] >> np.arange(size)) & 1


def by_brute_force(scores, prices, sellers, limits: Limits) -> tuple[int, int, tuple[int, ...]]:
    """Look at every set; give the best as (score, price, indices)."""
    subsets = all_subsets(len(scores))
    score = subsets @ np.array(scores, dtype=np.int64)
    price = subsets @ np.array(prices, dtype=object if max(prices, default=0) > 2**50 else np.int64)
    able = subsets.sum(axis=1) <= limits.count_max
    if limits.budget is not None:
        able &= (price <= limits.budget).astype(bool)
    if limits.per_seller_max is not None:
        for seller in set(sellers):
            able &= (
                subsets[:, [at for at, one in enumerate(sellers) if one == seller]].sum(1)
                <= limits.per_seller_max
            )
    left = np.flatnonzero(able)
    left = left[score[left] == score[left].max()]
    left = left[(price[left] == price[left].min()).astype(bool)]
    names = min(tuple(np.flatnonzero(subsets[one]).tolist()) for one in left.tolist())
    return int(score[left[0]]), int(price[left[0]]), names


def chosen(scores, prices, sellers, limits: Limits) -> Choice:
    money = np.array(prices, dtype=object if max(prices, default=0) >= 2**62 else np.int64)
    owners = None if limits.per_seller_max is None else np.array(sellers, dtype=np.int64)
    return choose(np.array(scores, dtype=np.int64), money, owners, limits)


def an_instance(dice: random.Random, size_max: int = 14):
    """Draw an instance of one of several hard kinds: ties, free items, prices that follow scores, huge money."""
    size = dice.randint(0, size_max)
    kind = dice.choice(["plain", "ties", "free", "strong", "huge", "coarse"])
    prices = [dice.randint(1, 1_000) for _ in range(size)]
    scores = [dice.randint(1, 1_000_000) for _ in range(size)]
    if kind == "ties":
        prices, scores = [dice.randint(1, 4) for _ in prices], [dice.randint(1, 4) for _ in prices]
    elif kind == "free":
        prices = [dice.choice([0, 0, 5, 9]) for _ in prices]
    elif kind == "strong":
        scores = [1_000 + 10 * price for price in prices]
    elif kind == "huge":
        prices = [price * 10**17 + dice.randint(0, 9) for price in prices]
    elif kind == "coarse":
        prices, scores = (
            [100 * dice.randint(1, 6) for _ in prices],
            [1_000 * dice.randint(1, 6) for _ in prices],
        )
    budget = dice.choice([None, 0, *[int(sum(prices) * share / 10) for share in (1, 2, 2, 3, 3, 4, 5, 8)]])
    sellers = [dice.randint(0, 3) for _ in prices]
    return scores, prices, sellers, budget, dice.randint(1, 8)


WAYS = {
    "as usual": {},
    "by the table": {"nodes_max": 0},
    "by the search": {"states_max": 0},
}


class TestTheBestSet:
    @pytest.mark.parametrize("way", WAYS)
    def test_it_equals_brute_force_on_thousands_of_generated_cases(self, way):
        dice = random.Random(f"knapsack {way}")
        for _ in range(2_000):
            scores, prices, sellers, budget, count = an_instance(dice)
            limits = Limits(budget, count, **WAYS[way])
            found = chosen(scores, prices, sellers, limits)
            best = by_brute_force(scores, prices, sellers, limits)
            assert found.upper_bound >= best[0]
            if found.method != "branch_and_bound" or way != "by the table":
                assert (found.score, found.price, found.picks) == best
                assert found.optimal

    @pytest.mark.parametrize("way", ["as usual", "by the search"])
    def test_it_keeps_a_cap_per_seller_exactly(self, way):
        dice = random.Random(f"cap {way}")
        for _ in range(1_000):
            scores, prices, sellers, budget, count = an_instance(dice, 11)
            limits = Limits(budget, count, dice.randint(1, 2), **WAYS[way])
            found = chosen(scores, prices, sellers, limits)
            assert (found.score, found.price, found.picks) == by_brute_force(scores, prices, sellers, limits)

    @given(
        st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), max_size=10),
        st.integers(0, 90),
        st.integers(1, 10),
    )
    @settings(max_examples=300, deadline=None)
    def test_small_numbers_full_of_ties_change_nothing(self, items, budget, count):
        scores, prices = [score for score, _ in items], [price for _, price in items]
        for way in WAYS.values():
            limits = Limits(budget, count, **way)
            found = chosen(scores, prices, [0] * len(items), limits)
            if found.method != "branch_and_bound" or way != WAYS["by the table"]:
                assert (found.score, found.price, found.picks) == by_brute_force(scores, prices, [], limits)

    def test_three_middling_offers_beat_one_grand_offer(self):
        found = chosen([678, 610, 610, 609], [90, 30, 30, 30], [0, 1, 2, 3], Limits(100, 3))
        assert (found.picks, found.score, found.price) == ((1, 2, 3), 1829, 90)

    def test_table_and_search_agree_where_brute_force_cannot_follow(self):
        rng = np.random.default_rng(5)
        for size, count, budget in ((400, 6, 2_000), (400, 12, 4_000), (2_000, 5, 900), (300, 25, 5_000)):
            prices = rng.integers(50, 1_000, size)
            scores = rng.integers(1, 900_000, size)
            table = choose(scores, prices, None, Limits(budget, count, nodes_max=0))
            search = choose(scores, prices, None, Limits(budget, count, nodes_max=10**7, states_max=0))
            assert table.picks == search.picks
            assert table.optimal
            assert search.optimal

    def test_scaling_all_money_scales_the_price_alone(self):
        dice = random.Random(3)
        for _ in range(200):
            scores, prices, sellers, budget, count = an_instance(dice, 10)
            before = chosen(scores, prices, sellers, Limits(budget, count))
            scaled = None if budget is None else budget * 7
            after = chosen(scores, [price * 7 for price in prices], sellers, Limits(scaled, count))
            assert (after.picks, after.score, after.price) == (before.picks, before.score, before.price * 7)


class TestTheCertificate:
    @pytest.mark.parametrize("nodes_max", [0, 1, 3, 10, 30])
    @pytest.mark.parametrize("per_seller_max", [None, 1])
    def test_the_gap_holds_under_tiny_limits(self, nodes_max, per_seller_max):
        dice = random.Random(nodes_max)
        open_count = 0
        for _ in range(150):
            scores, prices, sellers, budget, count = an_instance(dice, 12)
            limits = Limits(budget, count, per_seller_max, nodes_max, states_max=dice.choice([0, 0, 200]))
            found = chosen(scores, prices, sellers, limits)
            best, _, _ = by_brute_force(scores, prices, sellers, limits)
            assert found.score <= best <= found.upper_bound
            assert found.score == sum(scores[at] for at in found.picks)
            assert found.price == sum(prices[at] for at in found.picks)
            assert budget is None or found.price <= budget
            assert len(found.picks) <= count
            assert (
                per_seller_max is None
                or max(Counter(sellers[at] for at in found.picks).values(), default=0) <= 1
            )
            assert found.optimal == (found.upper_bound == found.score)
            open_count += not found.optimal
        assert open_count or nodes_max > 3

    def test_a_score_outside_its_range_is_refused(self):
        with pytest.raises(ValueError, match="score"):
            chosen([0], [1], [0], Limits(5, 1))
