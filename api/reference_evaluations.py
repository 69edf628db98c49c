"""The page about evaluations: the published suite as it runs, and where its document is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from domain.persona.evaluation.guard import BOUNDS
from domain.persona.evaluation.report import SCHEMA
from domain.persona.evaluation.requests import CASES_SCHEMA
from domain.persona.evaluation.suites import BASELINE, Suite

EVALUATORS = (
    ("memory", "every item", "it has words (`has_text`), a vector (`has_direction`), no twin (`is_distinct`)"),
    ("neighbours", "items drawn by lot", "an item is found by its own vector, moved away from itself"),
    ("known_items", "items drawn by lot", "an item is found by some of its own words, a foreign one among them"),
    ("declared", f"the author's cases (`{CASES_SCHEMA}`)", "an item that answers is among those recalled"),
    ("prompts", "every prompt", "it is text, not empty, not too long, and shows all that it says (`sound`)"),
    ("tools", "every tool", "it is described as it is declared, and reaches no further (`agreement`)"),
)  # fmt: skip
SCORES = (
    ("recall_at_1", "the first item recalled is right"),
    ("recall_at_5", "a right item is among the first five, which is what the model would read"),
    ("reciprocal_rank", "1 over the rank of the first right item, 0 beyond rank 10"),
    ("gain_at_10", "1 over the logarithm (base 2) of that rank plus 1, 0 beyond rank 10"),
    ("reward", "as recall_at_5, but 0 where the guard or the scope of a tool holds the request back"),
)
PAGE = """\
The suite `{suite.name}`, version {suite.version}: {suite.summary}

The same as a machine reads it: [baseline_suite.json](baseline_suite.json), served as `/v1/evaluations/suites/baseline`.
Its address, which every report names:

    {suite.address}

How it is reckoned, and why that is the same to the last byte on every machine:
[decision 0029](../decisions/0029-evaluations-are-whole-numbers.md). Personas to try it on:
[examples](../examples/persona_capsules/README.md).

## Evaluators

{evaluators}

At most {known.cases_max} known items, each asked for in {known.words} words, {known.noise_percent} % of them foreign;
at most {near.cases_max} neighbours, moved by {near.noise_percent} % of a vector's length;
at most {suite.declared.cases_max} declared cases.
Seed: `{suite.seed}`.

## Scores

{scores}

Each metric has a mean, a 95 % interval and a count: Wilson's interval for shares, a percentile bootstrap for the rest.

## Thresholds

{thresholds}

## The guard

A request is worth U = lam ln p - mu c - nu l, and is accepted where U >= U0 = lam ln p_min - mu c_max - nu l_max.
The six weights are the constitution's. p is estimated by the service, from the cases of other folds; c is in thousands
of tokens read; l is in seconds, modelled at {guard.tokens_per_s:,} tokens
and {guard.components_per_s:,} components of vectors a second.

{weights}

A suite passes where no evaluator failed, every threshold is met, the guard accepts a share of {guard.accepted_min}
or more, and the mean of U - U0 is {guard.margin_min} or more at the lower end of its interval.
What cannot be reckoned is refused.

## The report

`{report}`: `compared` is what two runs must agree in, `address` is its address, `host` is what only one run knows:
times and versions. A capsule may carry its report as a part; its inspection runs the suite again and does not pass
where the address differs. A manifest may name single results as
`soma/{suite.name}/{suite.version}:known_items.recall_at_5`; they are held against the measured ones too.
"""


def suite_json(suite: Suite = BASELINE) -> str:
    """Print a suite as the document whose address reports name."""
    return json.dumps(suite.document(), indent=1, ensure_ascii=False) + "\n"


def evaluations_text(suite: Suite = BASELINE) -> str:
    """Print what the suite asks, how it scores, and what it must come to."""
    return PAGE.format(
        suite=suite,
        known=suite.known_items,
        near=suite.neighbours,
        guard=suite.guard,
        report=SCHEMA,
        evaluators=_table(("Evaluator", "Cases", "Right is"), EVALUATORS),
        scores=_table(("Score", "Meaning"), ((f"`{name}`", meaning) for name, meaning in SCORES)),
        thresholds=_table(("Metric", "At least"), ((f"`{t.metric}`", t.at_least) for t in suite.thresholds)),
        weights=_table(("Weight", "From", "To"), ((f"`{name}`", *ends) for name, ends in BOUNDS.items())),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
