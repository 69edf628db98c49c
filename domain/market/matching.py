"""Match what a buyer wants with what sellers offer: filter, score, choose, explain.

The same function serves a match and a preview. It is a pure function of its arguments, independent of the order
of the candidates, and its result holds integers and strings only, so it can become part of a record as it is.

An offer is compatible if nothing at all speaks against it, its own price included. Scores are shares of one:
integers in parts per million (ppm) inside, decimal strings with six digits ("0.607000") in the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import msgspec
import numpy as np

from domain.errors import InvalidFieldError, MaxOffersInvalidError
from domain.market.candidates import Candidate, Columns, MatchPolicy, Numbers, Want, columns_of, whole_numbers
from domain.market.knapsack import Choice, Limits, choose
from domain.market.proposals import Proposal, propose
from domain.market.standing import PPM, beta_bounds_ppm, ppm_text
from domain.values import Money

OFFERS_MAX = 25
TOP_RANKED_MAX = 5

# What a record can hold: with ids of 128 characters and every reason on every offer these stay below 60 kB.
PER_OFFER_MAX = 100

REASONS = (
    "offer_not_active",
    "offer_expired",
    "task_not_supported",
    "modality_mismatch",
    "quality_below_threshold",
    "currency_mismatch",
    "self_dealing",
    "budget_rejected",
)
_BIT = {reason: 1 << place for place, reason in enumerate(REASONS)}
_REASONS_OF = [tuple(one for one in REASONS if code & _BIT[one]) for code in range(1 << len(REASONS))]


# --------------------------------------------------------------------------- what comes out


class ScoreBreakdown(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The three parts of a score and their sum, as decimal strings with six digits.

    The total is at least 0.000001: a compatible offer is always worth more than none.
    """

    quality_component: str
    cost_component: str
    trust_component: str
    total: str


class SelectedOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An offer that was chosen, with all that its score rests on."""

    offer_id: str
    version: int
    seller: str
    price_per_round: Money
    min_rounds: int
    quality_score: str
    declared_quality: str
    trust_score: str
    successes: int
    failures: int
    score_breakdown: ScoreBreakdown


class RankedOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A compatible offer and its score, chosen or not."""

    offer_id: str
    score_breakdown: ScoreBreakdown


class RejectedOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An offer that could not be chosen, and everything that spoke against it."""

    offer_id: str
    version: int
    reasons: tuple[str, ...]


class PriceBounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The lowest and highest price among the compatible offers, which the cost component is relative to."""

    lowest: Money
    highest: Money


class Diagnostics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a match came out as it did.

    per_offer names rejected offers only, those with the fewest reasons first, at most PER_OFFER_MAX;
    per_offer_truncated counts the others. would_match is empty where there is a match.
    """

    offers_evaluated: int
    compatible_offers: int
    budget_rejected: int
    rejection_reasons: dict[str, int]
    top_ranked_offers: tuple[RankedOffer, ...]
    per_offer: tuple[RejectedOffer, ...]
    per_offer_truncated: int
    would_match: tuple[Proposal, ...]
    price_bounds: PriceBounds | None
    optimal: bool
    upper_bound: str
    gap: str
    method: str
    policy_digest: str
    as_of_position: int | None


class MatchResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The chosen offers, best first, and the account of how they were chosen."""

    selected: tuple[SelectedOffer, ...]
    total_price: Money
    score_total: str
    diagnostics: Diagnostics

    def as_data(self) -> dict[str, Any]:
        """Give the result as a record holds it: objects, lists, strings and integers."""
        data: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return data


# --------------------------------------------------------------------------- the match


class _Scores(msgspec.Struct):
    """The compatible offers: `at` leads to the columns, the rest are ppm, prices in units of their divisor."""

    at: Numbers
    price: Numbers
    unit: int
    quality: Numbers
    cost: Numbers
    trust: Numbers
    trust_bound: list[int]
    total: Numbers


def match(
    want: Want,
    candidates: Sequence[Candidate],
    policy: MatchPolicy,
    now_text: str,
    as_of_position: int | None = None,
) -> MatchResult:
    """Choose the set of offers with the highest total score within the budget and the limits on counts.

    Of sets with equal totals the cheapest is chosen, of those the one with the smallest sorted ids.

    Cost:   O(n log n) and then what knapsack says; 10,000 candidates take tens of milliseconds.
    Errors: invalid_max_offers, invalid_field.
    """
    _check(want, policy)
    columns = columns_of(candidates)
    reasons = _reasons(want, columns, policy, now_text)
    scores = _scores(columns, np.flatnonzero(reasons == 0), policy, want.budget)
    choice = _choice(want, columns, scores, policy)
    picks = sorted(choice.picks, key=lambda pick: (-int(scores.total[pick]), int(scores.price[pick]), pick))
    return MatchResult(
        selected=tuple(_selected(columns, scores, pick) for pick in picks),
        total_price=Money.of(choice.price * scores.unit, want.currency),
        score_total=ppm_text(choice.score),
        diagnostics=_diagnostics(want, columns, reasons, scores, choice, policy, now_text, as_of_position),
    )


def _check(want: Want, policy: MatchPolicy) -> None:
    if not 1 <= want.max_offers <= OFFERS_MAX:
        raise MaxOffersInvalidError(f"max_offers lies in 1..{OFFERS_MAX}", got=want.max_offers)
    if want.max_per_seller is not None and want.max_per_seller < 1:
        raise InvalidFieldError("max_per_seller is at least 1", got=want.max_per_seller)
    if want.budget is not None and want.budget.currency != want.currency:
        raise InvalidFieldError("the budget is in the currency of the intent", got=want.budget.currency)
    weights = (policy.w_quality, policy.w_cost, policy.w_trust)
    if min(weights) < 0 or sum(weights) != PPM:
        raise InvalidFieldError("the weights of a policy are not negative and add up to 1,000,000 ppm")


def _reasons(want: Want, columns: Columns, policy: MatchPolicy, now: str) -> Numbers:
    """Collect everything that speaks against each offer, one bit per reason."""
    alive_until = _alive_until(want, policy, now)
    modalities = set(want.required_modalities) or set(columns.modality)
    other_currency = np.array([one != want.currency for one in columns.currency], dtype=bool)
    masks = {
        "offer_not_active": [one != "active" for one in columns.status],
        "offer_expired": [
            one is not None and (one <= now or one < alive_until) for one in columns.expires_at
        ],
        "task_not_supported": [len(one) > 0 and want.task_type not in one for one in columns.allowed_tasks],
        "modality_mismatch": [one not in modalities for one in columns.modality],
        "quality_below_threshold": columns.threshold < want.min_quality_ppm,
        "currency_mismatch": other_currency,
        "self_dealing": [one == want.owner for one in columns.seller],
    }
    if want.budget is not None:
        masks["budget_rejected"] = ~other_currency & (columns.nano > want.budget.nano).astype(bool)
    codes = np.zeros(len(columns.offers), dtype=np.int64)
    for reason, mask in masks.items():
        codes |= np.where(np.asarray(mask, dtype=bool), _BIT[reason], 0)
    return codes


def _alive_until(want: Want, policy: MatchPolicy, now: str) -> str:
    if policy.offers_outlive_deadline and want.deadline is not None:
        return max(want.deadline, now)
    return now


def _scores(columns: Columns, at: Numbers, policy: MatchPolicy, budget: Money | None) -> _Scores:
    """Score the compatible offers; each component is rounded to the nearest ppm, halves up."""
    places = at.tolist()
    unit = gcd(*columns.nano[at].tolist(), budget.nano if budget else 0) or 1
    price = whole_numbers((columns.nano[at] // unit).tolist())
    histories = [(columns.successes[place], columns.failures[place]) for place in places]
    bounds = beta_bounds_ppm(histories)
    trust_bound = [bounds[history] for history in histories]
    quality = _weighed(policy.w_quality, columns.quality[at])
    cost = _weighed(policy.w_cost, _cost_norms(price))
    trust = _weighed(policy.w_trust, np.array(trust_bound, dtype=np.int64))
    total = np.maximum(quality + cost + trust, 1)
    return _Scores(at, price, unit, quality, cost, trust, trust_bound, total)


def _weighed(weight: int, ppm: Numbers) -> Numbers:
    weighed: Numbers = (weight * ppm + PPM // 2) // PPM
    return weighed


def _cost_norms(price: Numbers) -> Numbers:
    """Place each price between the highest (0) and the lowest (1,000,000), rounded down; all equal give the latter.

    Exact on integers, so the unit of money cancels.
    """
    if not len(price) or price.min() == price.max():
        return np.full(len(price), PPM, dtype=np.int64)
    span = int(price.max()) - int(price.min())
    saved = price.max() - price
    if span >= 2**62 // PPM:
        saved = saved.astype(object)
    norms: Numbers = saved * PPM // span
    return norms.astype(np.int64)


def _choice(want: Want, columns: Columns, scores: _Scores, policy: MatchPolicy) -> Choice:
    budget = None if want.budget is None else want.budget.nano // scores.unit
    limits = Limits(budget, want.max_offers, want.max_per_seller, policy.nodes_max, policy.states_max)
    sellers = None
    if want.max_per_seller is not None:
        number: dict[str, int] = {}
        numbered = [number.setdefault(columns.seller[at], len(number)) for at in scores.at.tolist()]
        sellers = np.array(numbered, dtype=np.int64)
    return choose(scores.total, scores.price, sellers, limits)


# --------------------------------------------------------------------------- the account


def _breakdown(scores: _Scores, pick: int) -> ScoreBreakdown:
    parts = (scores.quality, scores.cost, scores.trust, scores.total)
    return ScoreBreakdown(*(ppm_text(int(part[pick])) for part in parts))


def _selected(columns: Columns, scores: _Scores, pick: int) -> SelectedOffer:
    offer = columns.offers[int(scores.at[pick])]
    return SelectedOffer(
        offer_id=offer.offer_id,
        version=offer.version,
        seller=offer.seller,
        price_per_round=offer.price,
        min_rounds=offer.min_rounds,
        quality_score=ppm_text(offer.quality_ppm),
        declared_quality=offer.declared_quality,
        trust_score=ppm_text(scores.trust_bound[pick]),
        successes=offer.successes,
        failures=offer.failures,
        score_breakdown=_breakdown(scores, pick),
    )


def _diagnostics(
    want: Want,
    columns: Columns,
    reasons: Numbers,
    scores: _Scores,
    choice: Choice,
    policy: MatchPolicy,
    now: str,
    as_of_position: int | None,
) -> Diagnostics:
    counts = {reason: int(np.count_nonzero(reasons & bit)) for reason, bit in _BIT.items()}
    rejected_count = len(columns.offers) - len(scores.at)
    return Diagnostics(
        offers_evaluated=len(columns.offers),
        compatible_offers=len(scores.at),
        budget_rejected=counts["budget_rejected"],
        rejection_reasons={reason: count for reason, count in counts.items() if count},
        top_ranked_offers=_top_ranked(columns, scores),
        per_offer=_nearest_misses(columns, reasons),
        per_offer_truncated=max(rejected_count - PER_OFFER_MAX, 0),
        would_match=() if choice.picks else _proposals(want, columns, reasons, now),
        price_bounds=_price_bounds(scores, want.currency),
        optimal=choice.optimal,
        upper_bound=ppm_text(choice.upper_bound),
        gap=ppm_text(choice.upper_bound - choice.score),
        method=choice.method,
        policy_digest=policy.digest,
        as_of_position=as_of_position,
    )


def _top_ranked(columns: Columns, scores: _Scores) -> tuple[RankedOffer, ...]:
    front = np.argsort(-scores.total, kind="stable")
    if len(front) > TOP_RANKED_MAX:
        front = np.flatnonzero(scores.total >= scores.total[front[TOP_RANKED_MAX - 1]])
    ranked = sorted(
        front.tolist(), key=lambda pick: (-int(scores.total[pick]), int(scores.price[pick]), pick)
    )
    return tuple(
        RankedOffer(columns.offers[int(scores.at[pick])].offer_id, _breakdown(scores, pick))
        for pick in ranked[:TOP_RANKED_MAX]
    )


def _nearest_misses(columns: Columns, reasons: Numbers) -> tuple[RejectedOffer, ...]:
    rejected = np.flatnonzero(reasons)
    nearest = rejected[np.argsort(np.bitwise_count(reasons[rejected]), kind="stable")][:PER_OFFER_MAX]
    return tuple(
        RejectedOffer(columns.offers[at].offer_id, columns.offers[at].version, _REASONS_OF[reasons[at]])
        for at in nearest.tolist()
    )


def _price_bounds(scores: _Scores, currency: str) -> PriceBounds | None:
    if not len(scores.price):
        return None
    lowest, highest = int(scores.price.min()), int(scores.price.max())
    return PriceBounds(Money.of(lowest * scores.unit, currency), Money.of(highest * scores.unit, currency))


def _proposals(want: Want, columns: Columns, reasons: Numbers, now: str) -> tuple[Proposal, ...]:
    def only(reason: str) -> list[int]:
        return np.flatnonzero(reasons == _BIT[reason]).tolist()

    return propose(want, columns, only, now)
