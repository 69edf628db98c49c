"""Chance that is the same everywhere: numbers drawn from SHAKE-256 over a seed and the name of what they are for.

Generators of libraries may change their streams between versions; a hash function may not. Each draw names its purpose,
so a case that is added or left out changes none of the others.
"""

from __future__ import annotations

from hashlib import shake_256

import numpy as np
import numpy.typing as npt

_WORD_BYTES = 4
_WORD_VALUES = 1 << 32


class Draws:
    """A stream of numbers for one purpose."""

    def __init__(self, seed: str, *purpose: str) -> None:
        self._label = b"soma/evaluation-draws/v1\0" + "\0".join((seed, *purpose)).encode(
            "utf-8", "surrogatepass"
        )
        self._block = b""
        self._used = 0
        self._number = 0

    def below(self, bound: int) -> int:
        """Draw a number from 0 up to, and without, a bound, each equally likely.

        Units: 1 <= bound <= 2**32. Words that would favour small numbers are thrown away.
        """
        unfair_from = _WORD_VALUES - _WORD_VALUES % bound
        while (word := self._word()) >= unfair_from:
            pass
        return word % bound

    def chosen(self, count: int, size: int) -> list[int]:
        """Draw distinct numbers below a size, in rising order; all of them where there are no more.

        Source: Floyd's sampling, Bentley and Floyd 1987.
        """
        if count >= size:
            return list(range(size))
        taken: set[int] = set()
        for top in range(size - count, size):
            drawn = self.below(top + 1)
            taken.add(top if drawn in taken else drawn)
        return sorted(taken)

    def table(self, rows: int, columns: int) -> npt.NDArray[np.uint32]:
        """Draw a table of words, each from 0 to 2**32 - 1.

        Shapes: returns (rows, columns).
        """
        data = shake_256(self._label + b"\0table").digest(rows * columns * _WORD_BYTES)
        return np.frombuffer(data, dtype="<u4").reshape(rows, columns)

    def _word(self) -> int:
        if self._used == len(self._block):
            self._block = shake_256(self._label + b"\0" + str(self._number).encode()).digest(64 * _WORD_BYTES)
            self._number, self._used = self._number + 1, 0
        word = self._block[self._used : self._used + _WORD_BYTES]
        self._used += _WORD_BYTES
        return int.from_bytes(word, "little")
