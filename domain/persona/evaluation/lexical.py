"""Search by words: BM25 over the texts of a memory, with scores that are the same bits on every machine.

Logarithms are taken by the decimal module; all else is elementwise IEEE 754 arithmetic, added in a stated order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from domain.memory.words import words_of
from domain.persona.evaluation.statistics import arithmetic

K1 = 1.2
B = 0.75

Scores = npt.NDArray[np.float64]


class LexicalIndex:
    """The words of texts, ready to be searched.

    Cost: building is linear in the words; a search in the postings of its words.
    Source: Robertson and Zaragoza 2009, section 3.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        postings: dict[str, tuple[list[int], list[int]]] = {}
        lengths = np.zeros(len(texts))
        for row, text in enumerate(texts):
            words = words_of(text)
            lengths[row] = len(words)
            for word, count in Counter(words).items():
                rows, counts = postings.setdefault(word, ([], []))
                rows.append(row)
                counts.append(count)
        self.count = len(texts)
        mean = max(float(lengths.sum()), 1.0) / max(self.count, 1)
        self._norms = K1 * (1.0 - B + B * lengths / mean)
        self._postings = postings
        self._weights: dict[int, float] = {}
        self.vocabulary = sorted(postings)

    def scores(self, query: str) -> Scores:
        """Score every text against a query; 0 where they share no word.

        Shapes: returns (count,).
        """
        total = np.zeros(self.count)
        for word in sorted(set(words_of(query)) & self._postings.keys()):
            rows, counts = self._postings[word]
            at, often = np.array(rows), np.array(counts, dtype=np.float64)
            total[at] += self._weight(len(rows)) * (often * (K1 + 1.0) / (often + self._norms[at]))
        return total

    def _weight(self, having: int) -> float:
        """Weigh a word by how few texts have it."""
        found = self._weights.get(having)
        if found is None:
            context = arithmetic()
            odds = context.divide(Decimal(2 * (self.count - having) + 1), Decimal(2 * having + 1))
            found = self._weights[having] = float(context.ln(context.add(odds, Decimal(1))))
        return found
