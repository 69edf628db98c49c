"""Trust and quality are lower bounds on what a history shows."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from domain.market.standing import (
    PPM,
    ValidationScore,
    beta_bounds_ppm,
    beta_cdf_reaches_tail,
    quality_ppm,
    standing,
    trust_ppm,
)


class TestTrust:
    @pytest.mark.parametrize(
        ("successes", "failures", "bound"),
        [(0, 0, 50), (5, 0, 607), (10, 0, 762), (50, 0, 943), (10, 1, 661), (10, 5, 452), (50, 5, 821)],
    )
    def test_known_histories_have_the_documented_bounds(self, successes, failures, bound):
        assert round(trust_ppm(successes, failures) / 1000) == bound

    def test_a_new_seller_stands_at_exactly_five_percent(self):
        assert trust_ppm(0, 0) == 50_000

    @given(st.integers(0, 300), st.integers(0, 300))
    @settings(max_examples=200, deadline=None)
    def test_the_rounded_quantile_is_the_nearest_in_exact_arithmetic(self, successes, failures):
        bound = trust_ppm(successes, failures)
        assert beta_cdf_reaches_tail(successes, failures, 2 * bound + 1, 2 * PPM)
        if bound:
            assert not beta_cdf_reaches_tail(successes, failures, 2 * bound - 2, 2 * PPM)

    @given(st.integers(0, 500), st.integers(0, 500))
    @settings(max_examples=100, deadline=None)
    def test_a_success_never_lowers_trust_and_a_failure_never_raises_it(self, successes, failures):
        assert trust_ppm(successes + 1, failures) >= trust_ppm(successes, failures)
        assert trust_ppm(successes, failures + 1) <= trust_ppm(successes, failures)

    @given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 99))
    @settings(max_examples=100, deadline=None)
    def test_the_exact_comparison_agrees_with_a_sum_of_fractions(self, successes, failures, percent):
        chance, trials = Fraction(percent, 100), successes + failures + 1
        tail, term = Fraction(0), (1 - chance) ** trials
        for done in range(1, trials + 1):
            term = term * (trials - done + 1) / done * chance / (1 - chance)
            tail += term if done > successes else 0
        assert beta_cdf_reaches_tail(successes, failures, percent, 100) == (tail >= Fraction(1, 20))

    def test_many_histories_at_once_agree_with_each_alone(self):
        histories = [(s, f) for s in range(0, 40, 3) for f in range(0, 12, 2)]
        together = beta_bounds_ppm(histories + histories)
        assert together == {one: trust_ppm(*one) for one in histories}
        for s, f in histories:
            assert abs(together[s, f] / PPM - beta.ppf(0.05, 1 + s, 1 + f)) < 1e-6

    def test_a_negative_count_is_refused(self):
        with pytest.raises(ValueError, match="negative"):
            trust_ppm(-1, 0)


class TestQuality:
    def test_a_seller_without_scores_stands_where_a_new_seller_does(self):
        assert quality_ppm([]) == trust_ppm(0, 0)

    def test_the_bound_lies_below_the_mean_and_nears_it_with_more_rows(self):
        bounds = [quality_ppm([ValidationScore(900_000, rows)]) for rows in (10, 100, 1_000, 10_000)]
        assert bounds == sorted(bounds)
        assert all(bound < 900_000 for bound in bounds)
        assert bounds[-1] > 890_000

    def test_repeating_a_score_on_the_same_rows_adds_no_evidence(self):
        assert quality_ppm([ValidationScore(900_000, 100)] * 9) == quality_ppm(
            [ValidationScore(900_000, 100)]
        )

    def test_only_the_last_twenty_scores_count(self):
        recent = [ValidationScore(800_000, 50)] * 20
        assert quality_ppm([ValidationScore(0, 50)] * 30 + recent) == quality_ppm(recent)

    @pytest.mark.parametrize(
        "wrong", [ValidationScore(-1, 5), ValidationScore(1_000_001, 5), ValidationScore(5, 0)]
    )
    def test_an_impossible_score_is_refused(self, wrong):
        with pytest.raises(ValueError, match="validation score"):
            quality_ppm([wrong])

    def test_a_standing_shows_the_counts_it_rests_on(self):
        shown = standing(10, 1, [ValidationScore(900_000, 100)] * 25)
        assert (shown.successes, shown.failures, shown.scores_used) == (10, 1, 20)
        assert shown.trust_ppm == trust_ppm(10, 1)
