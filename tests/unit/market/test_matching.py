"""A match picks the best compatible offers, says why, and says what would have matched."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import msgspec
import pytest

from domain.canonical import encode_record, is_canonical
from domain.errors import InvalidFieldError, MaxOffersInvalidError
from domain.market.candidates import Candidate, MatchPolicy, Want
from domain.market.matching import PER_OFFER_MAX, REASONS, MatchResult, match
from domain.market.proposals import adopted
from domain.market.standing import ppm_of, ppm_text, trust_ppm
from domain.values import Money

NOW = "2030-01-01T00:00:00.000000Z"
LATER = "2030-01-02T00:00:00.000000Z"
LATEST = "2030-01-03T00:00:00.000000Z"
PAST = "2029-12-31T00:00:00.000000Z"
POLICY = MatchPolicy()
REPOSITORY = Path(__file__).resolve().parents[3]


def an_offer(offer_id: str = "offer-1", **changes) -> Candidate:
    price = changes.pop("price", "10.00")
    return msgspec.structs.replace(
        Candidate(
            offer_id=offer_id,
            version=1,
            seller=f"seller-{offer_id}",
            price=price if isinstance(price, Money) else Money(price, "USD"),
            allowed_tasks=("classification",),
            modality="tabular",
            status="active",
            expires_at=None,
            quality_ppm=800_000,
            declared_quality="0.99",
            successes=5,
            failures=0,
        ),
        **changes,
    )


def a_want(budget: str | None = "100.00", **changes) -> Want:
    return msgspec.structs.replace(
        Want(
            owner="buyer",
            task_type="classification",
            required_modalities=("tabular",),
            min_quality_ppm=500_000,
            budget=None if budget is None else Money(budget, "USD"),
            currency="USD",
        ),
        **changes,
    )


def matched(want: Want, *offers: Candidate, policy: MatchPolicy = POLICY) -> MatchResult:
    return match(want, offers, policy, NOW, 17)


def ids(result: MatchResult) -> list[str]:
    return sorted(one.offer_id for one in result.selected)


def a_market(dice: random.Random, size: int) -> list[Candidate]:
    """Draw offers of which about half are compatible with the usual want."""
    return [
        an_offer(
            f"offer-{at:02d}",
            version=dice.randint(1, 3),
            seller=dice.choice(["s1", "s2", "s3", "s4", "s5", "buyer"]),
            price=Money.of(dice.randint(0, 6_000) * 10**7, dice.choice(["USD"] * 9 + ["EUR"])),
            allowed_tasks=dice.choice([(), ("classification",), ("classification", "ranking"), ("ranking",)]),
            modality=dice.choice(["tabular"] * 5 + ["text", "image"]),
            status=dice.choice(["active"] * 6 + ["paused"]),
            expires_at=dice.choice([None, None, None, PAST, LATER, LATEST]),
            quality_ppm=dice.randint(400_000, 1_000_000),
            successes=dice.randint(0, 30),
            failures=dice.randint(0, 4),
        )
        for at in range(size)
    ]


def a_drawn_want(dice: random.Random) -> Want:
    return a_want(
        dice.choice([None, "0.00", "20.00", "60.00", "120.00"]),
        max_offers=dice.randint(1, 5),
        max_per_seller=dice.choice([None, None, 1, 2]),
        deadline=dice.choice([None, LATER, LATEST]),
        min_quality_ppm=dice.choice([0, 500_000, 900_000]),
        required_modalities=dice.choice([(), ("tabular",), ("audio",)]),
        task_type=dice.choice(["classification", "classification", "generation"]),
    )


class TestTheChoice:
    def test_three_middling_offers_beat_one_excellent_and_dear_one(self):
        dear = an_offer("dear", price="90.00", quality_ppm=950_000)
        cheap = [an_offer(f"cheap-{at}", price="30.00", quality_ppm=800_000) for at in range(3)]
        assert ids(matched(a_want("100.00"), dear, *cheap)) == ["cheap-0", "cheap-1", "cheap-2"]

    def test_it_equals_every_combination_tried_in_turn(self):
        dice = random.Random(11)
        for _ in range(400):
            offers, want = a_market(dice, dice.randint(0, 10)), a_drawn_want(dice)
            result = matched(want, *offers)
            assert result.diagnostics.optimal
            assert _best_by_combinations(want, offers, result) == (
                ppm_of(result.score_total),
                -result.total_price.nano,
                ids(result),
            )

    def test_equal_scores_go_to_the_lower_price_and_then_to_the_smaller_ids(self):
        policy = MatchPolicy(w_quality=1_000_000, w_cost=0, w_trust=0)
        offers = [an_offer("b", price="5.00"), an_offer("c", price="4.00"), an_offer("a", price="4.00")]
        assert ids(matched(a_want(max_offers=1), *offers, policy=policy)) == ["a"]

    def test_an_offer_that_scores_nothing_is_still_better_than_no_match(self):
        policy = MatchPolicy(w_quality=1_000_000, w_cost=0, w_trust=0)
        result = matched(a_want(min_quality_ppm=0), an_offer(quality_ppm=0), policy=policy)
        assert ids(result) == ["offer-1"]
        assert result.score_total == "0.000001"

    def test_no_budget_is_unlimited_and_a_budget_of_zero_buys_what_is_free(self):
        offers = [an_offer("dear", price="999999999.00"), an_offer("free", price="0.00")]
        assert ids(matched(a_want(None), *offers)) == ["dear", "free"]
        assert ids(matched(a_want("0.00"), *offers)) == ["free"]

    def test_a_cap_per_seller_is_kept(self):
        offers = [an_offer(f"o{at}", seller="one") for at in range(3)] + [an_offer("p", quality_ppm=600_000)]
        assert ids(matched(a_want(max_per_seller=1), *offers)) == ["o0", "p"]

    def test_prices_beyond_native_integers_are_compared_exactly(self):
        top = 10**21
        offers = [an_offer(f"o{at}", price=Money.of(top - at, "USD")) for at in range(4)]
        want = a_want("1000000000000.00", max_offers=2)
        assert ids(matched(want, *offers)) == ["o3"]
        assert ids(matched(want, *offers, an_offer("p", price="0.000000001"))) == ["o3", "p"]
        assert ids(matched(a_want(None, max_offers=2), *offers)) == ["o2", "o3"]

    def test_declared_quality_is_shown_and_never_scored(self):
        modest, boastful = (matched(a_want(), an_offer(declared_quality=said)) for said in ("0.10", "1.00"))
        assert modest.score_total == boastful.score_total
        assert boastful.selected[0].declared_quality == "1.00"


def _best_by_combinations(want: Want, offers: list[Candidate], result: MatchResult):
    """Score the compatible offers in plain arithmetic and try every set."""
    rejected = {one.offer_id for one in result.diagnostics.per_offer}
    compatible = sorted((one for one in offers if one.offer_id not in rejected), key=lambda one: one.offer_id)
    prices = [one.price.nano for one in compatible]
    totals = {one.offer_id: _plain_total(one, min(prices), max(prices)) for one in compatible}
    best = (0, 0, [])
    for size in range(1, want.max_offers + 1):
        for group in combinations(compatible, size):
            price = sum(one.price.nano for one in group)
            sellers = [one.seller for one in group]
            if want.budget is not None and price > want.budget.nano:
                continue
            if want.max_per_seller and max(map(sellers.count, sellers)) > want.max_per_seller:
                continue
            names = [one.offer_id for one in group]
            merit = (sum(totals[name] for name in names), -price)
            if merit > best[:2] or (merit == best[:2] and names < best[2]):
                best = (*merit, names)
    return best


def _plain_total(offer: Candidate, low: int, high: int) -> int:
    cost = 1_000_000 if low == high else (high - offer.price.nano) * 1_000_000 // (high - low)
    trust = trust_ppm(offer.successes, offer.failures)
    parts = ((500_000, offer.quality_ppm), (300_000, cost), (200_000, trust))
    return max(1, sum((weight * value + 500_000) // 1_000_000 for weight, value in parts))


class TestTheReasons:
    @pytest.mark.parametrize(
        ("reason", "changes"),
        [
            ("offer_not_active", {"status": "paused"}),
            ("offer_expired", {"expires_at": PAST}),
            ("offer_expired", {"expires_at": NOW}),
            ("task_not_supported", {"allowed_tasks": ("ranking",)}),
            ("modality_mismatch", {"modality": "image"}),
            ("quality_below_threshold", {"quality_ppm": 499_999}),
            ("currency_mismatch", {"price": Money("10.00", "EUR")}),
            ("self_dealing", {"seller": "buyer"}),
            ("budget_rejected", {"price": "100.01"}),
        ],
    )
    def test_each_reason_alone_rejects_an_offer(self, reason, changes):
        diagnostics = matched(a_want(), an_offer(**changes)).diagnostics
        assert diagnostics.per_offer[0].reasons == (reason,)
        assert diagnostics.rejection_reasons == {reason: 1}
        assert diagnostics.compatible_offers == 0

    def test_all_reasons_of_an_offer_are_given_and_counted(self):
        worst = an_offer(
            status="paused",
            expires_at=PAST,
            allowed_tasks=("x",),
            modality="y",
            quality_ppm=0,
            seller="buyer",
            price="101.00",
        )
        diagnostics = matched(a_want(), worst, an_offer("offer-2", status="paused")).diagnostics
        expected = tuple(one for one in REASONS if one != "currency_mismatch")
        assert diagnostics.per_offer[1].reasons == expected
        assert diagnostics.rejection_reasons == dict.fromkeys(expected, 1) | {"offer_not_active": 2}
        assert diagnostics.budget_rejected == 1

    def test_an_offer_in_another_currency_is_not_held_against_the_budget(self):
        foreign = an_offer(price=Money("5000.00", "EUR"))
        assert matched(a_want(), foreign).diagnostics.per_offer[0].reasons == ("currency_mismatch",)

    def test_an_offer_without_named_tasks_takes_every_task(self):
        assert ids(matched(a_want(), an_offer(allowed_tasks=()))) == ["offer-1"]

    def test_an_offer_that_ends_before_the_deadline_is_refused_only_where_the_policy_says_so(self):
        want, offer = a_want(deadline=LATEST), an_offer(expires_at=LATER)
        assert ids(matched(want, offer)) == ["offer-1"]
        strict = matched(want, offer, policy=MatchPolicy(offers_outlive_deadline=True))
        assert strict.diagnostics.rejection_reasons == {"offer_expired": 1}

    def test_the_breakdown_adds_up_to_the_total(self):
        dice = random.Random(2)
        for _ in range(50):
            for one in matched(a_want(), *a_market(dice, 12)).diagnostics.top_ranked_offers:
                parts = one.score_breakdown
                shares = (parts.quality_component, parts.cost_component, parts.trust_component)
                assert sum(map(ppm_of, shares)) == ppm_of(parts.total)


class TestWhatWouldHaveMatched:
    def test_every_proposal_makes_a_match_when_it_is_adopted(self):
        dice, seen = random.Random(4), set()
        for _ in range(1_500):
            offers, want = a_market(dice, dice.randint(1, 5)), a_drawn_want(dice)
            policy = MatchPolicy(offers_outlive_deadline=dice.random() < 0.5)
            result = matched(want, *offers, policy=policy)
            assert not (result.selected and result.diagnostics.would_match)
            for proposal in result.diagnostics.would_match:
                seen.add(proposal.change)
                changed = adopted(want, proposal)
                assert changed
                accepted = set()
                for one in changed:
                    again = matched(one, *offers, policy=policy)
                    assert again.selected
                    rejected = {each.offer_id for each in again.diagnostics.per_offer}
                    accepted |= {offer.offer_id for offer in offers} - rejected
                assert set(proposal.offers) <= accepted
        assert seen == {"budget", "min_quality", "required_modalities", "task_type", "deadline"}

    def test_the_proposed_budget_is_the_cheapest_price_and_not_a_cent_less_would_do(self):
        offers = [an_offer("a", price="120.50"), an_offer("b", price="130.00")]
        proposal = matched(a_want(), *offers).diagnostics.would_match[0]
        assert (proposal.change, proposal.at_least, proposal.offers) == ("budget", "120.50", ("a",))
        assert not matched(a_want("120.49"), *offers).selected

    def test_an_offer_with_two_reasons_proposes_nothing(self):
        assert matched(a_want(), an_offer(status="paused", quality_ppm=0)).diagnostics.would_match == ()


class TestWhatChangesNothing:
    def test_the_order_of_the_candidates_changes_nothing(self):
        dice = random.Random(5)
        for _ in range(150):
            offers, want = a_market(dice, 12), a_drawn_want(dice)
            before = matched(want, *offers)
            dice.shuffle(offers)
            assert matched(want, *offers) == before

    def test_multiplying_all_money_changes_the_prices_alone(self):
        dice = random.Random(6)
        for _ in range(150):
            offers, want, factor = (
                a_market(dice, 12),
                a_drawn_want(dice),
                dice.choice([2, 7, 1_000, 10**6 + 3]),
            )
            dearer = [
                msgspec.structs.replace(one, price=Money.of(one.price.nano * factor, one.price.currency))
                for one in offers
            ]
            budget = want.budget and Money.of(want.budget.nano * factor, "USD")
            before = matched(want, *offers)
            after = matched(msgspec.structs.replace(want, budget=budget), *dearer)
            assert ids(after) == ids(before)
            assert after.score_total == before.score_total
            assert after.total_price.nano == before.total_price.nano * factor
            assert after.diagnostics.top_ranked_offers == before.diagnostics.top_ranked_offers

    def test_another_incompatible_offer_changes_nothing_but_the_account(self):
        dice = random.Random(7)
        for _ in range(150):
            offers, want = a_market(dice, 10), a_drawn_want(dice)
            before = matched(want, *offers)
            odd = an_offer("offer-zz", status="retired", price="0.01", quality_ppm=1_000_000)
            after = matched(want, *offers, odd)
            assert after.selected == before.selected
            assert after.diagnostics.price_bounds == before.diagnostics.price_bounds
            assert after.diagnostics.top_ranked_offers == before.diagnostics.top_ranked_offers

    def test_two_processes_with_different_hash_seeds_write_the_same_bytes(self):
        script = (
            "import random, sys; sys.path.insert(0, 'tests/unit/market')\n"
            "from test_matching import *\n"
            "dice = random.Random(8)\n"
            "for _ in range(20):\n"
            "    result = matched(a_drawn_want(dice), *a_market(dice, 40))\n"
            "    sys.stdout.write(msgspec.json.encode(result).decode())\n"
        )
        written = [_run(script, seed) for seed in ("1", "2", "random")]
        assert written[0] == written[1] == written[2]
        assert len(written[0]) > 10_000


def _run(script: str, seed: str) -> bytes:
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, env=environment, capture_output=True, check=True
    )
    return done.stdout


def _no_float(value: object) -> None:
    assert not isinstance(value, float)
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for one in value:
            _no_float(one)


class TestTheRecord:
    def test_the_result_holds_no_float_and_has_a_canonical_form(self):
        dice = random.Random(9)
        for _ in range(50):
            plain = matched(a_drawn_want(dice), *a_market(dice, 10)).as_data()
            _no_float(plain)
            assert is_canonical(encode_record(plain))

    def test_the_largest_result_fits_a_record(self):
        wordy = "x" * 110
        good = [
            an_offer(
                f"{wordy}-good-{at:04d}",
                seller="s" * 60 + f"{at:03d}",
                price=f"{10**11 + at}.123456789",
                min_rounds=9999,
            )
            for at in range(200)
        ]
        bad = [
            an_offer(
                f"{wordy}-bad-{at:05d}",
                status="paused",
                expires_at=PAST,
                allowed_tasks=("x",),
                modality=f"{wordy}{at}",
                quality_ppm=0,
                seller="buyer",
                price="999999999999.123456789",
                version=10**6 + at,
            )
            for at in range(1_000)
        ]
        want = a_want("999999999999.00", max_offers=25)
        for offers in ([*good, *bad], bad):
            size = len(msgspec.json.encode(matched(want, *offers)))
            assert size < 60_000
        diagnostics = matched(want, *good, *bad).diagnostics
        assert len(diagnostics.per_offer) == PER_OFFER_MAX
        assert diagnostics.per_offer_truncated == 900

    def test_the_account_names_the_policy_and_the_position(self):
        diagnostics = matched(a_want(), an_offer()).diagnostics
        assert diagnostics.policy_digest == POLICY.digest
        assert diagnostics.as_of_position == 17
        assert len(POLICY.digest) == len("sha3-512:") + 128
        assert MatchPolicy(nodes_max=5).digest != POLICY.digest

    def test_a_search_cut_short_says_how_far_the_best_could_be(self):
        dice = random.Random(10)
        short, gaps = MatchPolicy(nodes_max=0, states_max=0), 0
        for _ in range(100):
            offers, want = a_market(dice, 14), a_want("60.00", max_offers=4)
            cut, full = matched(want, *offers, policy=short), matched(want, *offers)
            assert ppm_of(cut.score_total) <= ppm_of(full.score_total) <= ppm_of(cut.diagnostics.upper_bound)
            gap = ppm_of(cut.diagnostics.upper_bound) - ppm_of(cut.score_total)
            assert cut.diagnostics.gap == ppm_text(gap)
            assert cut.diagnostics.optimal == (gap == 0)
            gaps += gap > 0
        assert gaps

    def test_an_empty_market_has_an_account_too(self):
        result = matched(a_want())
        assert (result.selected, result.score_total, result.total_price) == (
            (),
            "0.000000",
            Money("0.00", "USD"),
        )
        assert result.diagnostics.price_bounds is None


class TestRefusals:
    @pytest.mark.parametrize("count", [0, 26, -1])
    def test_a_count_of_offers_outside_its_range_is_refused(self, count):
        with pytest.raises(MaxOffersInvalidError):
            matched(a_want(max_offers=count))

    def test_weights_that_do_not_add_up_are_refused(self):
        with pytest.raises(InvalidFieldError):
            matched(a_want(), policy=MatchPolicy(w_cost=300_001))

    def test_a_budget_in_another_currency_is_refused(self):
        with pytest.raises(InvalidFieldError):
            matched(a_want("100.00", currency="EUR"))

    def test_one_offer_cannot_be_a_candidate_twice(self):
        with pytest.raises(ValueError, match="once"):
            matched(a_want(), an_offer(), an_offer())
