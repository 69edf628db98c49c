"""An embedding without a model: hashed words and character n-grams, the same bytes on every machine.

It needs no download and no training and knows no meaning: texts are near when they share words or parts of words. Sums
are taken in whole numbers; the only rounding is one root, one division and one cast, which IEEE 754 fixes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from domain.memory.words import words_of

MODEL = "soma/hashed-ngrams-384/1"
DIMENSION = 384

_GRAMS = (3, 4)
# A whole word says more than one of its parts.
_WORD_WEIGHT = 3
_ROOT_SCALE = 1_000_000

Vectors = npt.NDArray[np.float32]


def embed(texts: Sequence[str]) -> Vectors:
    """Turn texts into vectors of length 1, or of length 0 where there is no word.

    Shapes: n texts; returns (n, 384).
    Source: feature hashing with signs, Weinberger et al. 2009; subword n-grams as in Bojanowski et al. 2017.
    """
    rows = np.zeros((len(texts), DIMENSION), dtype=np.float32)
    places: dict[str, tuple[int, int]] = {}
    for row, text in zip(rows, texts, strict=True):
        sums = _sums(text, places)
        length = math.sqrt(sum(value * value for value in sums))
        if length:
            row[:] = np.array(sums, dtype=np.float64) / length
    return rows


def _sums(text: str, places: dict[str, tuple[int, int]]) -> list[int]:
    sums = [0] * DIMENSION
    for feature, count in Counter(_features(text)).items():
        place = places.get(feature)
        if place is None:
            place = places[feature] = _place(feature)
        weight = _WORD_WEIGHT if feature[0] == "=" else 1
        # The root tames words that are repeated; isqrt keeps it a whole number.
        sums[place[0]] += place[1] * weight * math.isqrt(count * _ROOT_SCALE)
    return sums


def _features(text: str) -> Iterator[str]:
    for word in words_of(text):
        yield "=" + word
        bounded = f"<{word}>"
        for size in _GRAMS:
            yield from (bounded[at : at + size] for at in range(len(bounded) - size + 1))


def _place(feature: str) -> tuple[int, int]:
    number = int.from_bytes(blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    return (number >> 1) % DIMENSION, 1 if number & 1 else -1
