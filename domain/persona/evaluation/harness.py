"""The harness: a subject, a suite and a constitution in, the compared part of a report out.

    memory -> requests -> what is recalled -> chances by other folds -> guard -> scores, intervals -> passed or why not

Everything here is a function of its arguments. An evaluator that fails is a result, and what cannot be reckoned does
not pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from domain.errors import LedgerError
from domain.persona.evaluation import evaluators, guarded
from domain.persona.evaluation.guard import Weights
from domain.persona.evaluation.guarded import Answered, Costs, Judged
from domain.persona.evaluation.outcomes import Measured, Outcome, failed
from domain.persona.evaluation.report import Calibration, Compared, SuiteRef, UtilitySum
from domain.persona.evaluation.requests import Request, declared, digest_of, known_items
from domain.persona.evaluation.retrieval import Recalled, Retriever
from domain.persona.evaluation.statistics import (
    MILLION,
    Interval,
    bootstrap,
    decimal_text,
    mean_micros,
    micro_text,
    wilson,
)
from domain.persona.evaluation.subject import Subject
from domain.persona.evaluation.suites import Suite
from domain.persona.tokens import token_count

Timed = Callable[[Callable[[], Recalled]], Recalled]


class Constitution(NamedTuple):
    """The constitution in force, as far as an evaluation reads it."""

    address: str
    utility: Mapping[str, Any]


def evaluate(
    subject: Subject, suite: Suite, constitution: Constitution | None, timed: Timed = lambda recall: recall()
) -> Compared:
    """Run a suite on a subject.

    `timed` is called around each recall; it may measure, and must give back what it is given.
    Cost: seconds for 10,000 items; linear in items times dimension, and in the words of the texts.
    """
    retriever = Retriever(subject.memory, suite.recall)
    weights, parts = _weights(constitution)
    parts += _looked_at(subject, suite, retriever)
    cases, failures = _asked(subject, suite, retriever, timed)
    parts += failures
    judged = guarded.judged(cases, weights, subject.scopes, suite)
    parts += [guarded.measured(name, judged, suite.recall.depth) for name in ("known_items", "declared")]
    return _summed_up(subject, suite, constitution, retriever.channels, parts, judged)


def _weights(constitution: Constitution | None) -> tuple[Weights | None, list[Measured]]:
    if constitution is None:
        return None, [
            failed("guard", "there is no constitution, and without its weights nothing is accepted")
        ]
    try:
        return Weights.of(constitution.utility), []
    except LedgerError as refusal:
        return None, [failed("guard", refusal.message)]


def _looked_at(subject: Subject, suite: Suite, retriever: Retriever) -> list[Measured]:
    depth, memory = suite.recall.depth, subject.memory
    looks: dict[str, Callable[[], Measured]] = {
        "memory": lambda: evaluators.memory_soundness(memory),
        "neighbours": lambda: evaluators.neighbours(
            memory, retriever.vectors, suite.seed, suite.neighbours, depth
        ),
        "prompts": lambda: evaluators.prompts_soundness(subject.prompts, suite.prompts.tokens_max),
        "tools": lambda: evaluators.tools_agreement(subject),
    }
    return [_tried(name, look) for name, look in looks.items()]


def _tried(name: str, look: Callable[[], Measured]) -> Measured:
    try:
        return look()
    except LedgerError as refusal:
        return failed(name, refusal.message)
    except (ArithmeticError, LookupError, TypeError, ValueError) as bug:
        return failed(name, f"the evaluator broke down: {type(bug).__name__}")


def _asked(
    subject: Subject, suite: Suite, retriever: Retriever, timed: Timed
) -> tuple[list[Answered], list[Measured]]:
    memory = subject.memory
    prompt_tokens = sum(token_count(part.data.decode(errors="replace")) for part in subject.prompts)
    costs = Costs(suite, prompt_tokens, memory.texts, memory.vectors.size)
    sources: dict[str, Callable[[], list[Request]]] = {
        "known_items": lambda: known_items(memory, retriever.words.vocabulary, suite.seed, suite.known_items),
        "declared": lambda: declared(subject.cases, memory, suite.declared.cases_max),
    }
    found: list[Answered] = []
    failures = []
    for name, source in sources.items():
        try:
            found += guarded.answered(name, source(), retriever, costs, timed)
        except LedgerError as refusal:
            failures.append(failed(name, refusal.message))
    return found, failures


# --------------------------------------------------------------------------- summing up


def _summed_up(
    subject: Subject,
    suite: Suite,
    constitution: Constitution | None,
    channels: list[str],
    parts: Sequence[Measured],
    judged: Sequence[Judged],
) -> Compared:
    outcomes = sorted((outcome for part in parts for outcome in part.outcomes), key=lambda one: one.id)
    metrics: dict[str, Interval] = {}
    for part in parts:
        metrics.update(part.metrics(suite.seed))
    utility = _utility(judged, suite)
    why = [*_broken(outcomes), *_below(metrics, suite), *_not_worth_it(utility, suite)]
    return Compared(
        suite=SuiteRef(suite.name, suite.version, suite.address),
        subject=subject.address,
        constitution=None if constitution is None else constitution.address,
        seed=suite.seed,
        dataset=digest_of([[one.id, one.input_digest] for one in outcomes]),
        n=len(outcomes),
        channels=channels,
        metrics=metrics,
        utility=utility,
        calibration=_calibration(judged),
        reward_gated_count=sum(case.gated is not None for case in judged),
        failure_count=sum(one.failure is not None for one in outcomes),
        passed=not why,
        why=why,
        cases=outcomes,
    )


def _utility(judged: Sequence[Judged], suite: Suite) -> UtilitySum:
    accepted = sum(case.verdict.accepted for case in judged)
    values = [_micros(case.verdict.utility) for case in judged if case.verdict.utility is not None]
    bound = judged[0].verdict.bound if judged else None
    pass_rate = wilson(accepted, len(judged)) if judged else None
    if bound is None or not values:
        return UtilitySum(pass_rate, None, bound, None, accepted, len(judged) - accepted)
    margins = [value - _micros(bound) for value in values]
    margin = bootstrap(margins, suite.seed, "guard.margin")
    return UtilitySum(
        pass_rate, decimal_text(mean_micros(values)), bound, margin, accepted, len(judged) - accepted
    )


def _calibration(judged: Sequence[Judged]) -> Calibration | None:
    if not judged:
        return None
    chances = [case.p_micros for case in judged]
    right = [MILLION * case.answered.is_right for case in judged]
    squares = [(p - hit) ** 2 for p, hit in zip(chances, right, strict=True)]
    return Calibration(
        decimal_text(mean_micros(chances)),
        decimal_text(mean_micros(right)),
        micro_text(sum(squares) // (MILLION * len(squares))),
        len(judged),
    )


def _broken(outcomes: Sequence[Outcome]) -> list[str]:
    # A failed case of prompts and tools lowers its metric, whose threshold then speaks; what has no scores has none.
    return [f"{one.evaluator} failed: {one.failure}" for one in outcomes if one.failure and not one.scores]


def _below(metrics: Mapping[str, Interval], suite: Suite) -> list[str]:
    return [
        f"{threshold.metric} is {metrics[threshold.metric].mean}, and {threshold.at_least} is asked for"
        for threshold in suite.thresholds
        if threshold.metric in metrics
        and Decimal(metrics[threshold.metric].mean) < Decimal(threshold.at_least)
    ]


def _not_worth_it(utility: UtilitySum, suite: Suite) -> list[str]:
    guard = suite.guard
    if utility.pass_rate is None or utility.margin is None:
        return ["the utility of no request could be reckoned"]
    why = []
    if Decimal(utility.pass_rate.value) < Decimal(guard.accepted_min):
        why.append(f"the guard accepts {utility.pass_rate.value}, and {guard.accepted_min} is asked for")
    if Decimal(utility.margin.ci95[0]) < Decimal(guard.margin_min):
        why.append(
            f"the margin may be as low as {utility.margin.ci95[0]}, and {guard.margin_min} is asked for"
        )
    return why


def _micros(text: str) -> int:
    return int(Decimal(text).scaleb(6))
