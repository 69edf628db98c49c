"""The arithmetic of evaluations: against closed forms, slow references, and the one exact answer."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from domain.errors import EvaluationSuiteError
from domain.persona.evaluation.calibration import chance, cross_fitted, rising
from domain.persona.evaluation.chance import Draws
from domain.persona.evaluation.guard import Weights, judge
from domain.persona.evaluation.lexical import K1, B, LexicalIndex
from domain.persona.evaluation.retrieval import ranking
from domain.persona.evaluation.statistics import (
    MILLION,
    bootstrap,
    decimal_text,
    micro_text,
    sign_test,
    wilson,
)
from domain.persona.evaluation.vectors import VectorIndex
from tests.unit.persona.evaluation_maker import UTILITY, noise, texts

MICROS = st.integers(0, MILLION)


class TestChance:
    def test_the_same_seed_and_purpose_draw_the_same_numbers_for_ever(self) -> None:
        draws = Draws("seed", "purpose")
        assert [draws.below(1_000) for _ in range(6)] == [13, 904, 525, 108, 870, 859]

    def test_another_purpose_draws_other_numbers(self) -> None:
        drawn = {
            Draws(*label).below(2**32) for label in [("s", "a"), ("s", "b"), ("t", "a"), ("s", "a", "b")]
        }
        assert len(drawn) == 4

    @given(st.integers(0, 300), st.integers(0, 300), st.text(max_size=5))
    def test_what_is_chosen_is_distinct_and_within_bounds(self, count: int, size: int, seed: str) -> None:
        chosen = Draws(seed, "choice").chosen(count, size)
        assert len(chosen) == min(count, size)
        assert chosen == sorted(set(chosen))
        assert all(0 <= one < size for one in chosen)

    def test_every_number_is_about_equally_likely(self) -> None:
        draws = Draws("fair", "dice")
        counts = np.bincount([draws.below(6) for _ in range(6_000)], minlength=6)
        # Five degrees of freedom: 20.5 is exceeded once in a thousand seeds, and this seed is fixed.
        assert ((counts - 1_000) ** 2 / 1_000).sum() < 20.5


class TestIntervals:
    @pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (3, 7), (0, 50), (50, 50), (170, 200)])
    def test_the_interval_of_a_rate_is_wilsons(self, hits: int, count: int) -> None:
        found = wilson(hits, count)
        expected = binomtest(hits, count).proportion_ci(method="wilson")
        assert float(found.ci95[0]) == pytest.approx(expected.low, abs=1e-6)
        assert float(found.ci95[1]) == pytest.approx(expected.high, abs=1e-6)
        assert float(found.value) == pytest.approx(hits / count, abs=1e-6)

    @given(st.lists(st.integers(-MILLION, MILLION), min_size=1, max_size=40))
    def test_the_bootstrap_agrees_with_its_slow_form(self, scores: list[int]) -> None:
        found = bootstrap(scores, "seed", "metric", resamples=80)
        rows = Draws("seed", "bootstrap", "metric").table(80, len(scores)).tolist()
        sums = sorted(sum(scores[word * len(scores) >> 32] for word in row) for row in rows)
        exact = [Fraction(end, len(scores) * MILLION) for end in (sums[2], sums[77])]
        assert found.ci95 == [decimal_text(Decimal(e.numerator) / Decimal(e.denominator)) for e in exact]

    def test_the_bootstrap_holds_the_true_mean_about_as_often_as_it_says(self) -> None:
        held = 0
        for trial in range(200):
            draws = Draws("coverage", str(trial))
            scores = [draws.below(MILLION + 1) for _ in range(40)]
            low, high = bootstrap(scores, "seed", str(trial), resamples=400).ci95
            held += float(low) <= 0.5 <= float(high)
        assert 178 <= held <= 200

    @pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 5), (12, 3), (0, 9), (40, 60)])
    def test_the_sign_test_is_the_binomial_one(self, gained: int, lost: int) -> None:
        expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert float(sign_test(gained, lost)) == pytest.approx(expected, abs=1e-6)

    @given(st.integers(-(10**12), 10**12))
    def test_millionths_are_printed_exactly(self, micros: int) -> None:
        assert Decimal(micro_text(micros)).scaleb(6) == micros


class TestGuard:
    WEIGHTS = Weights.of(UTILITY)

    def test_utility_is_its_formula(self) -> None:
        value = self.WEIGHTS.utility(800_000, 1_500_000, 2_000_000)
        assert value == round((math.log(0.8) - 0.05 * 1.5 - 0.05 * 2) * MILLION)
        assert self.WEIGHTS.bound == round((math.log(0.5) - 0.05 * 8 - 0.05 * 4) * MILLION)

    @given(st.integers(1, MILLION), st.integers(0, 10**8), st.integers(0, 10**8))
    def test_a_request_is_accepted_exactly_where_utility_reaches_the_bar(
        self, p: int, c: int, latency: int
    ) -> None:
        value = self.WEIGHTS.utility(p, c, latency)
        assert value is not None
        assert judge(self.WEIGHTS, p, c, latency).accepted == (value >= self.WEIGHTS.bound)

    def test_what_the_constitution_just_allows_is_accepted_and_a_little_less_is_not(self) -> None:
        assert judge(self.WEIGHTS, 500_000, 8_000_000, 4_000_000).accepted
        assert not judge(self.WEIGHTS, 499_990, 8_000_000, 4_000_000).accepted
        assert not judge(self.WEIGHTS, 500_000, 8_001_000, 4_000_000).accepted

    @pytest.mark.parametrize(
        ("p", "c", "latency"),
        [(None, 0, 0), (0, 0, 0), (-1, 0, 0), (MILLION + 1, 0, 0), (1, -1, 0), (1, 0, -1)],
    )
    def test_what_cannot_be_reckoned_is_refused(self, p: int | None, c: int, latency: int) -> None:
        verdict = judge(self.WEIGHTS, p, c, latency)
        assert not verdict.accepted
        assert verdict.utility is None

    def test_without_weights_nothing_is_accepted(self) -> None:
        assert not judge(None, MILLION, 0, 0).accepted

    @pytest.mark.parametrize(
        ("name", "value"),
        [("lam", "0.09"), ("lam", "5.1"), ("mu", "0"), ("nu", "6"), ("p_min", "0"), ("p_min", "1"), ("c_max", "-1"),
         ("l_max", "NaN"), ("lam", "Infinity"), ("mu", "1e0"), ("nu", 1), ("p_min", ""), ("c_max", None),
         ("lam", " 1")],
    )  # fmt: skip
    def test_weights_out_of_bounds_or_out_of_form_are_refused(self, name: str, value: object) -> None:
        with pytest.raises(EvaluationSuiteError):
            Weights.of({**UTILITY, name: value})

    def test_a_weight_that_is_missing_is_refused(self) -> None:
        for name in UTILITY:
            with pytest.raises(EvaluationSuiteError):
                Weights.of({key: value for key, value in UTILITY.items() if key != name})


class TestCalibration:
    @given(st.lists(st.tuples(MICROS, st.booleans()), max_size=60), st.integers(1, 10))
    def test_blocks_hold_every_case_once_and_their_shares_rise(
        self, known: list[tuple[int, bool]], cases_min: int
    ) -> None:
        blocks = rising(known, cases_min)
        assert sum(block.case_count for block in blocks) == len(known)
        assert sum(block.right for block in blocks) == sum(hit for _, hit in known)
        shares = [Fraction(block.right, block.case_count) for block in blocks]
        assert shares == sorted(set(shares))
        assert all(block.case_count >= cases_min for block in blocks) or len(blocks) <= 1

    @given(
        st.lists(st.tuples(MICROS, st.booleans()), min_size=1, max_size=25, unique_by=lambda case: case[0])
    )
    def test_blocks_of_one_case_and_more_are_the_isotonic_regression(
        self, known: list[tuple[int, bool]]
    ) -> None:
        cases = sorted(known)
        hits = [hit for _, hit in cases]
        # The min-max form: the least over all ends of the greatest mean over all beginnings.
        slow = [
            min(
                max(Fraction(sum(hits[a : b + 1]), b + 1 - a) for a in range(at + 1))
                for b in range(at, len(hits))
            )
            for at in range(len(hits))
        ]
        fast = [
            Fraction(block.right, block.case_count)
            for block in rising(known, 1)
            for _ in range(block.case_count)
        ]
        assert fast == slow

    @given(st.lists(st.tuples(MICROS, st.booleans(), st.integers(0, 4)), min_size=1, max_size=40))
    def test_a_case_never_judges_itself(self, cases: list[tuple[int, bool, int]]) -> None:
        gaps, right, folds = (list(column) for column in zip(*cases, strict=True))
        before = cross_fitted(gaps, right, folds, 5)
        own = [at for at, fold in enumerate(folds) if fold == folds[0]]
        turned = [not hit if at in own else hit for at, hit in enumerate(right)]
        after = cross_fitted(gaps, turned, folds, 5)
        assert [before[at] for at in own] == [after[at] for at in own]
        assert all(0 < p < MILLION for p in before)

    def test_without_other_cases_the_chance_is_one_half(self) -> None:
        assert cross_fitted([700_000], [True], [3], 20) == [500_000]
        assert chance([], 999_999) == 500_000


class TestLexicalIndex:
    def test_scores_are_those_of_the_formula(self) -> None:
        said = [*texts(40), "market market market", "", "Straße"]
        index = LexicalIndex(said)
        words = [sentence.lower().replace(".", "").split() for sentence in said]
        mean = sum(map(len, words)) / len(said)
        for query in ("the market near the river", "number 7", "strasse", "nothing of it"):
            expected = []
            for own in words:
                score = 0.0
                for word in set(query.split()) & set(own):
                    having = sum(word in other for other in words)
                    idf = math.log(1 + (len(said) - having + 0.5) / (having + 0.5))
                    often = own.count(word)
                    score += idf * often * (K1 + 1) / (often + K1 * (1 - B + B * len(own) / mean))
                expected.append(score)
            found = index.scores(query)
            if query == "strasse":
                assert ranking(found).tolist() == [42]
            else:
                assert found == pytest.approx(np.array(expected), abs=1e-12)

    def test_a_memory_without_words_answers_nothing(self) -> None:
        assert LexicalIndex([]).scores("word").shape == (0,)
        assert LexicalIndex(["", "..."]).scores("word").tolist() == [0.0, 0.0]


class TestVectorIndex:
    @pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
    def test_products_are_the_exact_ones_whatever_the_order_of_their_sums(self, metric: str) -> None:
        vectors = noise(300, 50) * np.float32(37.5)
        index = VectorIndex(vectors, metric)
        queries = index.whole(noise(5, 50, seed=4) * np.float32(37.5))
        found = index.scores(queries)
        for query, scores in zip(queries.tolist(), found.tolist(), strict=True):
            for row in range(0, 300, 17):
                own = [int(x) for x in index.row(row)]
                product = sum(int(a) * b for a, b in zip(query, own, strict=True))
                square = sum(b * b for b in own)
                exact = {
                    "dot": product,
                    "euclidean": 2 * product - square,
                    "cosine": product / math.sqrt(square),
                }
                assert scores[row] == exact[metric]

    @pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
    def test_the_order_is_that_of_the_vectors_themselves(self, metric: str) -> None:
        vectors = noise(200, 64)
        index = VectorIndex(vectors, metric)
        wide = vectors.astype(np.float64)
        unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
        exact = {
            "dot": wide @ wide.T,
            "cosine": unit @ unit.T,
            "euclidean": -((wide[:, None, :] - wide[None, :, :]) ** 2).sum(axis=2),
        }[metric]  # fmt: skip
        found = index.scores(index.whole(vectors))
        for row in range(200):
            assert ranking(found[row], -np.inf)[:3].tolist() == ranking(exact[row], -np.inf)[:3].tolist()

    def test_scaling_a_vector_changes_no_cosine(self) -> None:
        vectors = noise(20, 8)
        scaled = vectors * np.float32(2.0) ** np.arange(-60, 60, 6, dtype=np.float32)[:, None]
        plain, stretched = VectorIndex(vectors, "cosine"), VectorIndex(scaled, "cosine")
        assert (plain.scores(plain.whole(vectors)) == stretched.scores(stretched.whole(vectors))).all()

    def test_a_vector_of_zeros_is_near_to_none(self) -> None:
        vectors = np.vstack([np.zeros((1, 4), np.float32), noise(3, 4)])
        index = VectorIndex(vectors, "cosine")
        assert ranking(index.scores(index.whole(-noise(3, 4)))[0], -np.inf).tolist().count(0) == 0
