"""Requests under the guard: what each is worth, whether the audit lets it through, and what it earns.

The chance that an answer is right is estimated here, from the cases of other folds; no caller states it. A request that
the guard or the tool scopes hold back earns nothing, is counted as held back, and stays in every mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from domain.persona.evaluation.calibration import cross_fitted
from domain.persona.evaluation.chance import Draws
from domain.persona.evaluation.evaluators import rank_scores
from domain.persona.evaluation.guard import Verdict, Weights, judge
from domain.persona.evaluation.outcomes import Measured, Outcome, Utility, columns, scored
from domain.persona.evaluation.requests import Request, digest_of
from domain.persona.evaluation.retrieval import Recalled, Retriever
from domain.persona.evaluation.statistics import MILLION, micro_text
from domain.persona.evaluation.suites import Suite
from domain.persona.tokens import token_count

# How far each scope of a tool reaches; another policy's name reaches exactly itself.
_REACH = {"read": 0, "write": 1, "admin": 2}


class Answered(NamedTuple):
    """A request with what the memory gave to it, and what that costs.

    Units: cost in millionths of a thousand tokens, latency in microseconds of modelled work.
    """

    evaluator: str
    request: Request
    recalled: Recalled
    is_right: bool
    cost_micros: int
    latency_micros: int


class Judged(NamedTuple):
    """An answered request with the service's estimate and the guard's verdict.

    Units: p in millionths.
    """

    answered: Answered
    p_micros: int
    verdict: Verdict
    gated: str | None


class Costs:
    """What a request costs: every prompt, the question and the items that are recalled are read by the model."""

    def __init__(self, suite: Suite, prompt_tokens: int, texts: Sequence[str], components: int) -> None:
        self._guard = suite.guard
        self._prompt_tokens = prompt_tokens
        self._texts = texts
        self._search_micros = components * MILLION // self._guard.components_per_s

    def of(self, request: Request, rows: Sequence[int]) -> tuple[int, int]:
        """Reckon cost and latency of a request.

        Units: millionths of a thousand tokens, and microseconds.
        """
        read = sum(token_count(self._texts[row]) for row in rows)
        tokens = self._prompt_tokens + token_count(request.query) + read
        return tokens * (MILLION // 1_000), self._search_micros + tokens * MILLION // self._guard.tokens_per_s


def answered(
    evaluator: str,
    requests: Sequence[Request],
    retriever: Retriever,
    costs: Costs,
    timed: Callable[[Callable[[], Recalled]], Recalled],
) -> list[Answered]:
    """Put requests to a memory."""
    found = []
    for request in requests:
        recalled = timed(lambda request=request: retriever.recall(request))  # type: ignore[misc]
        is_right = not request.relevant.isdisjoint(recalled.rows)
        found.append(Answered(evaluator, request, recalled, is_right, *costs.of(request, recalled.rows)))
    return found


def judged(
    cases: Sequence[Answered], weights: Weights | None, scopes: Mapping[str, str], suite: Suite
) -> list[Judged]:
    """Estimate each case's chance from the others, and have the guard and the scopes speak."""
    chances = cross_fitted(
        [case.recalled.gap for case in cases],
        [case.is_right for case in cases],
        [Draws(suite.seed, "fold", case.request.id).below(suite.recall.folds) for case in cases],
        suite.recall.block_cases_min,
    )
    found = []
    for case, chance in zip(cases, chances, strict=True):
        verdict = judge(weights, chance, case.cost_micros, case.latency_micros)
        why = None if verdict.accepted else "the utility guard"
        found.append(Judged(case, chance, verdict, scope_fault(case.request, scopes) or why))
    return found


def scope_fault(request: Request, scopes: Mapping[str, str]) -> str | None:
    """Say why the manifest's tools do not reach as far as a request needs."""
    if request.tool is None:
        return None
    given, needed = scopes.get(request.tool), request.scope or "read"
    if given is None:
        return "no such tool is declared"
    if given == needed or (given in _REACH and needed in _REACH and _REACH[needed] <= _REACH[given]):
        return None
    return "the tool does not reach that far"


def measured(evaluator: str, cases: Sequence[Judged], depth: int) -> Measured:
    """Score the cases of one evaluator."""
    outcomes, scores = [], []
    for case in cases:
        if case.answered.evaluator != evaluator:
            continue
        of_case = rank_scores(case.answered.recalled.rank, depth)
        of_case["reward"] = 0 if case.gated else MILLION * case.answered.is_right
        scores.append(of_case)
        outcomes.append(_outcome(case, scored(of_case)))
    return Measured(evaluator, outcomes, columns(scores))


def _outcome(case: Judged, scores: dict[str, str]) -> Outcome:
    answered = case.answered
    return Outcome(
        answered.request.id,
        answered.evaluator,
        scores,
        answered.request.digest,
        digest_of(answered.recalled.rows),
        Utility(
            micro_text(case.p_micros),
            micro_text(answered.cost_micros),
            micro_text(answered.latency_micros),
            case.verdict.utility,
            case.verdict.accepted,
        ),
        case.gated,
    )
