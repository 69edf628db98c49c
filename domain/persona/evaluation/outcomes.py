"""What an evaluation writes down: an outcome for each case, and a figure for each metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from domain.persona.evaluation.statistics import MILLION, Interval, bootstrap, micro_text, wilson


class Utility(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a request was worth to the guard; null where that could not be reckoned.

    Units: c in thousands of tokens, l in seconds of modelled work.
    """

    p: str
    c: str
    l: str  # noqa: E741 - the name it has in the constitution
    value: str | None
    accepted: bool


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What became of one case.

    A reward counts only where the audit allowed the request; one that was held back is `gated`, and stays in the count.
    """

    id: str
    evaluator: str
    scores: dict[str, str]
    input_digest: str | None = None
    output_digest: str | None = None
    utility: Utility | None = None
    gated: str | None = None
    failure: str | None = None


class Measured(msgspec.Struct, frozen=True):
    """What one evaluator found.

    Units: scores of a metric in millionths, one for each case.
    """

    evaluator: str
    outcomes: list[Outcome]
    scores: dict[str, list[int]]

    def metrics(self, seed: str) -> dict[str, Interval]:
        """Sum each metric up; there is none where there was no case."""
        names = {f"{self.evaluator}.{name}": scores for name, scores in self.scores.items() if scores}
        return {name: summed_up(scores, seed, name) for name, scores in names.items()}


def summed_up(scores: Sequence[int], seed: str, name: str) -> Interval:
    """Give mean and interval: that of a rate where every score is 0 or 1, else that of resampled means."""
    if all(score in (0, MILLION) for score in scores):
        rate = wilson(sum(score == MILLION for score in scores), len(scores))
        return Interval(rate.value, rate.ci95, rate.n)
    return bootstrap(scores, seed, name)


def failed(evaluator: str, why: str) -> Measured:
    """Write down that an evaluator failed; that is a result, and it is never left out."""
    return Measured(evaluator, [Outcome(evaluator, evaluator, {}, failure=why)], {})


def scored(scores: dict[str, int]) -> dict[str, str]:
    """Print the scores of a case."""
    return {name: micro_text(score) for name, score in scores.items()}


def columns(rows: Iterable[dict[str, int]]) -> dict[str, list[int]]:
    """Turn the scores of cases into the scores of metrics."""
    found: dict[str, list[int]] = {}
    for row in rows:
        for name, score in row.items():
            found.setdefault(name, []).append(score)
    return found
