"""Search by vectors, exactly: components become whole numbers, and their products are then exact in any order.

A matrix product of a library adds in an order of its own, which depends on the processor and the number of threads, and
rounds at each step. Whole numbers below 2**53 are never rounded, so the fast product gives the one exact result. What
is left are one root and one division per score, which IEEE 754 fixes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int16]
Rows = npt.NDArray[np.float64]

METRICS = ("cosine", "dot", "euclidean")
# With components below 2**14, and up to 2**15 in a query, a product of 8,192 of them is below 2**42.
BITS = 14
DIMENSION_MAX = 8_192
_BLOCK_ROWS = 4_096
_QUERY_MAX = 2.0 ** (BITS + 1) - 1


class VectorIndex:
    """The vectors of a memory as whole numbers, ready to be searched."""

    def __init__(self, vectors: npt.NDArray[np.float32], metric: str) -> None:
        self.metric = metric
        self.count, self.dimension = vectors.shape
        # The length of a vector does not matter to a cosine, so each may be scaled by a power of two of its own.
        self._whole = None if metric == "cosine" else _scale(np.abs(vectors).max(initial=0.0))
        self._ints = np.empty(vectors.shape, dtype=np.int16)
        self.squares = np.zeros(self.count)
        for part in _parts(self.count):
            block = vectors[part].astype(np.float64)
            block = self.whole(block)
            self._ints[part] = block
            self.squares[part] = (block * block).sum(axis=1)

    def row(self, at: int) -> Ints:
        """Give the whole numbers of one vector."""
        found: Ints = self._ints[at]
        return found

    def whole(self, vectors: npt.NDArray[np.floating]) -> Rows:
        """Turn vectors into whole numbers, on the scale on which they are compared.

        Shapes: vectors (m, dimension). Returns the same.
        """
        wide = np.asarray(vectors, dtype=np.float64)
        scale = self._whole
        if scale is None:
            scale = _scale(np.abs(wide).max(axis=1, initial=0.0))[:, None]
        return np.clip(np.rint(np.ldexp(wide, scale)), -_QUERY_MAX, _QUERY_MAX)

    def scores(self, queries: Rows) -> Rows:
        """Score every vector against queries of whole numbers: more is nearer, and a vector of zeros is near to none.

        Shapes: queries (m, dimension). Returns (m, count).
        Units:  components of queries below 2**15 in size.
        """
        scores = np.empty((queries.shape[0], self.count))
        for part in _parts(self.count):
            products = queries @ self._ints[part].astype(np.float64).T
            scores[:, part] = self._measured(products, self.squares[part])
        return scores

    def _measured(self, products: Rows, squares: Rows) -> Rows:
        if self.metric == "dot":
            return products
        if self.metric == "euclidean":
            # The query's own square is the same for all and left out.
            return 2.0 * products - squares
        lengths = np.sqrt(squares)
        return np.where(lengths > 0.0, products / np.where(lengths > 0.0, lengths, 1.0), -np.inf)


def _parts(count: int) -> Iterator[slice]:
    return (slice(at, min(at + _BLOCK_ROWS, count)) for at in range(0, count, _BLOCK_ROWS))


def _scale(largest: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Give the power of two that brings a largest component just below 2**14; it changes no digit."""
    _, power = np.frexp(np.asarray(largest, dtype=np.float64))
    return np.asarray(BITS - power, dtype=np.int32)
