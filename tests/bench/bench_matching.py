"""Measure a whole match over 10,000 candidates, and the parts it is made of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from domain.market import matching
from domain.market.candidates import Candidate, MatchPolicy, Want, columns_of
from domain.values import Money, parse_nano

NOW = "2030-01-01T00:00:00.000000Z"
BUDGETS = ("60.00", "250.00", "800.00", "2000.00")
COUNTS = (3, 10, 25)


def candidates(count: int, seed: int = 7) -> list[Candidate]:
    """Draw offers whose price follows their quality with noise, a few of them not eligible."""
    rng = np.random.default_rng(seed)
    quality = rng.integers(300_000, 980_000, count)
    cents = np.maximum(quality // 50 + rng.integers(-4_000, 6_000, count), 100)
    successes, failures = rng.integers(0, 60, count), rng.integers(0, 6, count)
    modality = rng.choice(["tabular", "tabular", "tabular", "text"], count)
    status = rng.choice(["active"] * 9 + ["paused"], count)
    return [
        Candidate(
            offer_id=f"offer-{rng.integers(0, 2**63):016x}",
            version=1,
            seller=f"seller-{int(at) % 500}",
            price=Money(f"{int(cents[at]) // 100}.{int(cents[at]) % 100:02d}", "USD"),
            allowed_tasks=("classification", "regression"),
            modality=str(modality[at]),
            status=str(status[at]),
            expires_at=None,
            quality_ppm=int(quality[at]),
            declared_quality="0.9",
            successes=int(successes[at]),
            failures=int(failures[at]),
        )
        for at in range(count)
    ]


def a_want(budget: str, max_offers: int, max_per_seller: int | None = None) -> Want:
    """Make a want that most of the drawn offers are compatible with."""
    return Want(
        owner="buyer",
        task_type="classification",
        required_modalities=("tabular",),
        min_quality_ppm=350_000,
        budget=Money(budget, "USD"),
        currency="USD",
        max_offers=max_offers,
        max_per_seller=max_per_seller,
    )


def greedy(want: Want, offers: list[Candidate]) -> list[str]:
    """Pick in falling plain score until the budget is spent: what one would write first."""
    left = want.budget.nano if want.budget else 0
    fit = [
        (one.quality_ppm, one.offer_id, parse_nano(one.price.amount))
        for one in offers
        if one.status == "active" and one.modality in want.required_modalities
    ]
    chosen: list[str] = []
    for _, offer_id, price in sorted(fit, reverse=True):
        if len(chosen) < want.max_offers and price <= left:
            left -= price
            chosen.append(offer_id)
    return chosen


def median_ms(act: Callable[[], Any], repeats: int = 5) -> float:
    """Time an action several times and give the median."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        act()
        taken.append((time.perf_counter() - start) * 1e3)
    return statistics.median(taken)


def figures() -> list[dict[str, Any]]:
    """Give the figures of matching: the whole call over usual budgets, its worst budget, and its split.

    Units:  milliseconds; the baseline of every line is the plain greedy sort over the same candidates.
    """
    offers, policy = candidates(10_000), MatchPolicy()
    wants = [a_want(budget, count) for budget in BUDGETS for count in COUNTS]
    capped = [a_want(budget, count, 1) for budget in BUDGETS for count in COUNTS]
    whole = [median_ms(lambda want=want: matching.match(want, offers, policy, NOW)) for want in wants]
    with_cap = [median_ms(lambda want=want: matching.match(want, offers, policy, NOW)) for want in capped]
    plain = statistics.median(median_ms(lambda want=want: greedy(want, offers)) for want in wants)
    lines = [
        ("market.match_10k", statistics.median(whole)),
        ("market.match_10k_slowest", max(whole)),
        ("market.match_10k_capped", statistics.median(with_cap)),
        ("market.match_10k_capped_slowest", max(with_cap)),
        *_split(wants, offers, policy),
    ]
    return [
        {
            "name": name,
            "value": round(value, 3),
            "unit": "ms",
            "baseline": round(plain, 3),
            "ratio": round(value / plain, 3),
            "value_at_most": 50.0 if name == "market.match_10k" else None,
        }
        for name, value in lines
    ]


def _split(wants: list[Want], offers: list[Candidate], policy: MatchPolicy) -> list[tuple[str, float]]:
    parts: dict[str, list[float]] = {"columns": [], "reasons": [], "scores": [], "choice": []}
    for want in wants:
        columns = columns_of(offers)
        reasons = matching._reasons(want, columns, policy, NOW)
        at = np.flatnonzero(reasons == 0)
        scores = matching._scores(columns, at, policy, want.budget)
        parts["columns"].append(median_ms(lambda: columns_of(offers)))
        parts["reasons"].append(
            median_ms(lambda want=want, columns=columns: matching._reasons(want, columns, policy, NOW))
        )
        parts["scores"].append(
            median_ms(
                lambda want=want, columns=columns, at=at: matching._scores(columns, at, policy, want.budget)
            )
        )
        parts["choice"].append(
            median_ms(
                lambda want=want, columns=columns, scores=scores: matching._choice(
                    want, columns, scores, policy
                )
            )
        )
    return [(f"market.match_10k_{part}", statistics.median(taken)) for part, taken in parts.items()]


FIGURES = {"market.match_10k": figures}

if __name__ == "__main__":
    for figure in figures():
        print(*figure.values())
