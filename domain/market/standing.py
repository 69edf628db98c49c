"""Turn a seller's history into two numbers a match can score: trust, and quality by evidence.

Both are lower bounds, so a seller without history stands low but is not shut out, and both are exact: the
quantile of the library is only a first guess, settled by integer arithmetic wherever rounding could turn on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from scipy.special import betaincinv

PPM = 1_000_000

# The bound is wrong in one case of twenty: the 5 % quantile.
TAIL_PERCENT = 5

# Scores older than this many accepted updates no longer speak for the data a seller offers today.
SCORE_WINDOW = 20

# A guess this close to a rounding boundary (in ppm) is decided exactly. The library is good to 1e-7 ppm.
_DOUBT_PPM = 1e-4

# Beyond this many trials the exact sum costs more than a doubt of one ppm is worth.
_EXACT_TRIALS_MAX = 20_000


class ValidationScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The share of held-out reference rows that one accepted update got right.

    Units:  score_ppm in 0..1,000,000; rows counts the reference rows it was judged on.
    """

    score_ppm: int
    rows: int


class Standing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a seller's history says, with the counts it was computed from."""

    successes: int
    failures: int
    trust_ppm: int
    quality_ppm: int
    scores_used: int


def trust_ppm(successes: int, failures: int) -> int:
    """Bound from below the chance that a seller's next round succeeds.

    Units:  parts per million, rounded to nearest; the 5 % quantile of Beta(1 + successes, 1 + failures).
    Source: Gelman et al., Bayesian Data Analysis, section 2.4 (uniform prior).
    """
    return beta_bounds_ppm([(successes, failures)])[successes, failures]


def quality_ppm(scores: Sequence[ValidationScore]) -> int:
    """Bound from below the quality that a seller's accepted updates, oldest first, have shown.

    The mean of the last scores is weighed as if it came from one pass over the smallest reference set among
    them: every update is judged on the same held rows, so more updates do not make more evidence.

    Units:  parts per million; without any score the bound of an empty history, 50,000.
    """
    recent = scores[-SCORE_WINDOW:]
    if any(not 0 <= one.score_ppm <= PPM or one.rows < 1 for one in recent):
        raise ValueError("a validation score lies in 0..1,000,000 ppm and was judged on at least one row")
    if not recent:
        return trust_ppm(0, 0)
    rows = min(one.rows for one in recent)
    right = rows * sum(one.score_ppm for one in recent) // (PPM * len(recent))
    return trust_ppm(right, rows - right)


def standing(successes: int, failures: int, scores: Sequence[ValidationScore] = ()) -> Standing:
    """Sum up a seller's history."""
    return Standing(
        successes=successes,
        failures=failures,
        trust_ppm=trust_ppm(successes, failures),
        quality_ppm=quality_ppm(scores),
        scores_used=len(scores[-SCORE_WINDOW:]),
    )


def beta_bounds_ppm(histories: Iterable[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Compute the trust of many histories (successes, failures) at once.

    Cost:   one vectorised quantile over the distinct histories, about 2 microseconds each.
    """
    distinct = list(dict.fromkeys(histories))
    if not distinct:
        return {}
    counts = np.array(distinct, dtype=np.int64)
    if counts.min() < 0:
        raise ValueError("a history cannot hold a negative count")
    guesses = betaincinv(1.0 + counts[:, 0], 1.0 + counts[:, 1], TAIL_PERCENT / 100) * PPM
    floors = np.floor(guesses)
    doubtful = np.abs(guesses - floors - 0.5) < _DOUBT_PPM
    rounded = np.floor(guesses + 0.5).astype(np.int64).tolist()
    for index in np.flatnonzero(doubtful).tolist():
        rounded[index] = _rounded_exactly(*distinct[index], int(floors[index]), rounded[index])
    return dict(zip(distinct, rounded, strict=True))


def _rounded_exactly(successes: int, failures: int, floor_ppm: int, otherwise_ppm: int) -> int:
    if successes + failures > _EXACT_TRIALS_MAX:
        return otherwise_ppm
    below = beta_cdf_reaches_tail(successes, failures, 2 * floor_ppm + 1, 2 * PPM)
    return floor_ppm if below else floor_ppm + 1


def beta_cdf_reaches_tail(successes: int, failures: int, x: int, scale: int) -> bool:
    """Tell, in integers alone, whether the quantile of Beta(1 + successes, 1 + failures) is at most x / scale.

    Units:  0 <= x < scale.
    Cost:   successes + failures big-integer steps.
    Source: the incomplete beta function as a binomial tail, NIST DLMF 8.17.5.
    """
    trials = successes + failures + 1
    rest = scale - x
    term = rest**trials
    tail = 0
    for done in range(1, trials + 1):
        term = term * (trials - done + 1) * x // (done * rest)
        tail += term if done > successes else 0
    return bool(100 * tail >= TAIL_PERCENT * scale**trials)


def ppm_text(ppm: int) -> str:
    """Print parts per million as a decimal string with six digits."""
    return f"{ppm // PPM}.{ppm % PPM:06d}"


def ppm_of(text: str) -> int:
    """Read what `ppm_text` wrote."""
    whole, part = text.split(".")
    return int(whole) * PPM + int(part)
