"""Putting requests to a memory: by words, and by vectors where the memory's embedding can be made here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from domain.memory import ngrams
from domain.persona.evaluation.lexical import LexicalIndex
from domain.persona.evaluation.requests import Request
from domain.persona.evaluation.subject import Memory
from domain.persona.evaluation.suites import Recall
from domain.persona.evaluation.vectors import VectorIndex

MILLION = 1_000_000

Embedder = Callable[[Sequence[str]], npt.NDArray[np.float32]]
EMBEDDERS: dict[str, Embedder] = {ngrams.MODEL: ngrams.embed}


class Recalled(NamedTuple):
    """What a memory gave to a request.

    rank is that of the first relevant item, counted from 1, or 0 where none was found at all.
    Units: gap in millionths of the best score.
    """

    rows: list[int]
    rank: int
    gap: int


class Retriever:
    """A memory, ready to be asked."""

    def __init__(self, memory: Memory, how: Recall) -> None:
        self._how = how
        self.words = LexicalIndex(memory.texts)
        self.vectors = VectorIndex(memory.vectors, memory.metric)
        embedder = EMBEDDERS.get(memory.embedding_model)
        fits = embedder is not None and self.vectors.dimension == ngrams.DIMENSION
        self._embedder = embedder if fits else None

    @property
    def channels(self) -> list[str]:
        return ["words", "vectors"] if self._embedder is not None else ["words"]

    def recall(self, request: Request) -> Recalled:
        """Give the items that answer a request, the best first."""
        scores = self.words.scores(request.query)
        ranked = ranking(scores)
        if self._embedder is not None:
            queries = self.vectors.whole(self._embedder([request.query]))
            ranked = self._fused(ranked, ranking(self.vectors.scores(queries)[0], above=-np.inf))
        rank = next((at for at, row in enumerate(ranked.tolist(), 1) if row in request.relevant), 0)
        return Recalled(ranked[: self._how.depth].tolist(), rank, self._gap(scores))

    def _fused(self, *rankings: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Merge rankings by the reciprocals of their ranks.

        Source: Cormack, Clarke and Buettcher 2009.
        """
        total = np.zeros(self.words.count)
        for ranked in rankings:
            total[ranked] += 1.0 / (self._how.fusion_constant + np.arange(1, ranked.size + 1))
        return ranking(total)

    def _gap(self, scores: npt.NDArray[np.float64]) -> int:
        """Tell how far the best text stands out from the first that is left out."""
        depth = self._how.depth
        best = float(scores.max(initial=0.0))
        if best <= 0.0:
            return 0
        beyond = float(np.partition(scores, -depth - 1)[-depth - 1]) if scores.size > depth else 0.0
        return int((best - beyond) / best * MILLION)


def ranking(scores: npt.NDArray[np.float64], above: float = 0.0) -> npt.NDArray[np.intp]:
    """Order rows by falling score, equal ones as they come; only those with a score above the least are in it.

    Shapes: scores (n,). Returns (at most n,).
    """
    order = np.argsort(-scores, kind="stable")
    found: npt.NDArray[np.intp] = order[: np.count_nonzero(scores > above)]
    return found
