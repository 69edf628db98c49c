"""Means, rates and how sure they are, in whole numbers and correctly rounded decimals: the same on every machine.

A score is a whole number of millionths, so that sums are exact in any order. Where a root or a logarithm is needed it
is taken by the decimal module, whose results are correctly rounded by its standard and do not depend on a processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from math import comb

import msgspec
import numpy as np

from domain.persona.evaluation.chance import Draws

MILLION = 1_000_000
RESAMPLES = 2_000
# The 97.5 % point of the normal distribution.
Z_95 = Decimal("1.959963984540054")

_DIGITS = Decimal("0.000001")


class Interval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mean of several cases, and the interval that holds the true one in 95 of 100 repetitions."""

    mean: str
    ci95: list[str]
    n: int


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A share of cases, with its interval."""

    value: str
    ci95: list[str]
    n: int


def arithmetic() -> Context:
    """Give the one context in which decimals are reckoned here, whatever the process has set."""
    return Context(prec=40, rounding=ROUND_HALF_EVEN)


def decimal_text(value: Decimal) -> str:
    """Print a number with six decimals, correctly rounded, never -0."""
    rounded = value.quantize(_DIGITS, context=arithmetic())
    return f"{abs(rounded) if rounded.is_zero() else rounded:f}"


def micro_text(micros: int) -> str:
    """Print a whole number of millionths."""
    sign = "-" if micros < 0 else ""
    return f"{sign}{abs(micros) // MILLION}.{abs(micros) % MILLION:06d}"


def micros_of(value: Decimal) -> int:
    """Round a number to whole millionths."""
    return int(value.quantize(_DIGITS, context=arithmetic()).scaleb(6, context=arithmetic()))


def mean_micros(scores: Sequence[int]) -> Decimal:
    """Give the mean of scores, in units of one."""
    context = arithmetic()
    return context.divide(Decimal(sum(scores)), Decimal(len(scores) * MILLION))


def bootstrap(scores: Sequence[int], seed: str, name: str, resamples: int = RESAMPLES) -> Interval:
    """Give a mean with the percentile interval of means drawn again from the same scores.

    Shapes: scores (n,), n >= 1.
    Units:  scores in millionths, each below 2**40 in size.
    Cost:   O(resamples * n).
    Source: Efron and Tibshirani 1993, section 13.3.
    """
    count = len(scores)
    drawn = Draws(seed, "bootstrap", name).table(resamples, count).astype(np.uint64)
    # The high word of a product with the count: uniform up to one part in 2**32 / n.
    at = ((drawn * np.uint64(count)) >> np.uint64(32)).astype(np.intp)
    sums = np.sort(np.asarray(scores, dtype=np.int64)[at].sum(axis=1))
    cut = resamples // 40
    ends = [int(sums[cut]), int(sums[resamples - 1 - cut])]
    context = arithmetic()
    ci95 = [decimal_text(context.divide(Decimal(end), Decimal(count * MILLION))) for end in ends]
    return Interval(decimal_text(mean_micros(scores)), ci95, count)


def wilson(hits: int, count: int) -> Rate:
    """Give a share with its score interval, which never leaves 0..1 and holds for few cases too.

    Units:  0 <= hits <= count, count >= 1.
    Source: Wilson 1927.
    """
    with localcontext(arithmetic()):
        n, share, square = Decimal(count), Decimal(hits) / Decimal(count), Z_95 * Z_95
        middle = share + square / (2 * n)
        spread = Z_95 * ((share * (1 - share) + square / (4 * n)) / n).sqrt()
        scale = 1 + square / n
        # At the ends the exact value is 0 or 1, and rounding must not leave a trace of it.
        low = Decimal(0) if hits == 0 else (middle - spread) / scale
        high = Decimal(1) if hits == count else (middle + spread) / scale
        return Rate(decimal_text(share), [decimal_text(low), decimal_text(high)], count)


def sign_test(gained: int, lost: int) -> str:
    """Give the probability of a split at least as uneven, were gains and losses equally likely.

    Source: McNemar 1947, in its exact form.
    """
    count = gained + lost
    tail = sum(comb(count, k) for k in range(min(gained, lost) + 1))
    context = arithmetic()
    share = context.divide(Decimal(2 * tail), Decimal(2**count))
    return decimal_text(min(share, Decimal(1)))
