"""Arithmetic that gives the same bits on every machine: a round is replayed by strangers.

IEEE 754 rounds +, -, *, / and square root the same way everywhere, so elementwise numpy is safe. Three things
are not: BLAS products and library reductions (their order depends on threads, processor and version) and the
exponential and logarithm (their last bit depends on the vector unit). This module therefore fixes the order
of every sum itself, in halves, and builds the two functions out of the safe operations. Nothing here calls
BLAS.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# ln 2 in two parts; the first ends in zero bits, so its product with a small integer is exact (as in fdlibm).
_LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_LOG2_E = float.fromhex("0x1.71547652b82fep+0")
_EXP_TERMS = tuple(1.0 / math.factorial(power) for power in range(14))
_EXP_ARGUMENT_MAX = 700.0
_LOG_TERMS = tuple(1.0 / (2 * power + 1) for power in range(17))


def folded_sum(values: Array) -> Array:
    """Sum over the first axis by adding the second half to the first until one entry is left.

    Shapes: values (n, ...), n >= 0. Returns (...).
    Cost:   O(n) additions; the rounding error grows with log2 n.
    """
    count = values.shape[0]
    if count == 0:
        return np.zeros(values.shape[1:])
    while count > 1:
        half = count // 2
        folded = values[:half] + values[half : 2 * half]
        if count % 2:
            folded[0] += values[count - 1]
        values, count = folded, half
    return np.array(values[0])


def norm(values: Array) -> float:
    """Measure the Euclidean length of a vector.

    Shapes: values (n,).
    """
    return math.sqrt(float(folded_sum(values * values)))


def exponential(values: Array) -> Array:
    """Raise e to each value, within two units in the last place; beyond +-700 the argument is cut there.

    Shapes: values (n,). Returns (n,).
    Source: argument reduction of Cody and Waite 1980, chapter 6; Taylor polynomial of degree 13 on +-ln(2)/2.
    """
    cut = np.clip(values, -_EXP_ARGUMENT_MAX, _EXP_ARGUMENT_MAX)
    power = np.rint(cut * _LOG2_E)
    rest = (cut - power * _LN2_HIGH) - power * _LN2_LOW
    result = np.full_like(rest, _EXP_TERMS[-1])
    for term in reversed(_EXP_TERMS[:-1]):
        result *= rest
        result += term
    return np.ldexp(result, power.astype(np.int32))


def sigmoid(logits: Array) -> Array:
    """Turn log-odds into probabilities, without overflow at either end.

    Shapes: logits (n,). Returns (n,), each in (0, 1].
    """
    small = exponential(-np.abs(logits))
    share = small / (1.0 + small)
    return np.where(logits >= 0.0, 1.0 - share, share)


def log_losses(logits: Array, signs: Array) -> Array:
    """Give each row's negative log-likelihood in nats, log(1 + exp(-sign * logit)).

    Shapes: logits (n,), signs (n,) of +1 and -1. Returns (n,).
    Source: log(1 + t) = 2 artanh(t / (2 + t)), seventeen terms of the series, t in (0, 1].
    """
    margins = signs * logits
    small = exponential(-np.abs(margins))
    ratio = small / (2.0 + small)
    square = ratio * ratio
    series = np.full_like(square, _LOG_TERMS[-1])
    for term in reversed(_LOG_TERMS[:-1]):
        series *= square
        series += term
    return 2.0 * ratio * series + np.maximum(-margins, 0.0)


def decimal_text(value: float, digits: int = 6) -> str:
    """Print a number for a record, which holds no floats: a plain decimal, correctly rounded, never -0.

    Units:  digits is the count of decimals, 0..17.
    """
    if not math.isfinite(value):
        raise ValueError("a record cannot hold NaN or infinity")
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text
