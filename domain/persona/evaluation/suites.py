"""The published suites: what is asked of every persona, with which seed, and what it must reach.

A suite is a document with an address. A suite never changes: another one has another version, and what was measured
under the old one keeps naming it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from domain.canonical import sealed
from domain.errors import EvaluationSuiteError

CONTEXT = "soma/evaluation-suite/v1"


class Recall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How requests are put to a memory, and how many items answer one."""

    depth: int
    fusion_constant: int
    folds: int
    block_cases_min: int


class KnownItems(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Requests made of the memory itself: some words of an item, and now and then a word of another.

    Units: noise in percent of the words.
    """

    cases_max: int
    words: int
    noise_percent: int


class Neighbours(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Requests made of the vectors: an item's own, moved away from it.

    Units: noise in percent of the vector's length.
    """

    cases_max: int
    noise_percent: int


class Declared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Requests that the author wrote, with the items that answer them."""

    cases_max: int


class Prompts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a prompt may not exceed.

    Units: tokens by the house's rule.
    """

    tokens_max: int


class Guard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How utility is reckoned beyond the constitution's weights, and what the guard must come to.

    The margin is that of the mean utility over the constitution's bar, at the lower end of its interval. Latency is
    modelled from the work, since a measured one is never the same twice; measured ones are told beside the report.
    """

    tokens_per_s: int
    components_per_s: int
    accepted_min: str
    margin_min: str


class Threshold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The least mean of a metric; where there is no such metric, nothing is asked."""

    metric: str
    at_least: str


class Suite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A suite, as published."""

    schema: str
    name: str
    version: int
    seed: str
    summary: str
    recall: Recall
    known_items: KnownItems
    neighbours: Neighbours
    declared: Declared
    prompts: Prompts
    guard: Guard
    thresholds: list[Threshold]

    def document(self) -> dict[str, Any]:
        """Give the suite as plain values."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @property
    def address(self) -> str:
        return sealed(CONTEXT, self.document())[1]


BASELINE = Suite(
    schema="soma/evaluation_suite/1",
    name="baseline",
    version=1,
    seed="soma/baseline/1",
    summary="Known-item search by words and by vectors, the author's own cases, prompts, tools, and the utility guard.",
    recall=Recall(depth=5, fusion_constant=60, folds=5, block_cases_min=20),
    known_items=KnownItems(cases_max=200, words=5, noise_percent=20),
    neighbours=Neighbours(cases_max=200, noise_percent=75),
    declared=Declared(cases_max=500),
    prompts=Prompts(tokens_max=32_000),
    guard=Guard(
        tokens_per_s=2_000, components_per_s=100_000_000, accepted_min="0.800000", margin_min="0.000000"
    ),
    thresholds=[
        Threshold("memory.has_text", "1.000000"),
        Threshold("memory.has_direction", "0.990000"),
        Threshold("memory.is_distinct", "0.900000"),
        Threshold("known_items.recall_at_5", "0.500000"),
        Threshold("neighbours.recall_at_5", "0.500000"),
        Threshold("declared.recall_at_5", "0.500000"),
        Threshold("prompts.sound", "1.000000"),
        Threshold("tools.agreement", "1.000000"),
    ],
)

SUITES = {BASELINE.name: BASELINE}


def suite_of(name: str) -> Suite:
    """Find a published suite.

    Errors: evaluation_suite_invalid.
    """
    found = SUITES.get(name)
    if found is None:
        raise EvaluationSuiteError("there is no suite of this name", name=name[:100], known=sorted(SUITES))
    return found
