"""Measure the evaluation of a persona with 10,000 memories, here and by a process of its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from domain.persona.evaluation.harness import Constitution, evaluate
from domain.persona.evaluation.retrieval import Retriever
from domain.persona.evaluation.subject import Subject
from domain.persona.evaluation.suites import BASELINE
from domain.persona.evaluation.vectors import VectorIndex
from ops.evaluation_child import memory_of
from ops.evaluation_run import Part, run_apart
from tests.unit.persona.capsule_maker import Capsule, a_capsule

ITEMS, DIMENSION = 10_000, 384
ROUNDS = 5
IN_FORCE = Constitution(
    "sha3-512:" + "c0" * 64,
    {"lam": "1", "mu": "0.05", "nu": "0.05", "p_min": "0.5", "c_max": "8", "l_max": "4"},
)
# The seed's own figure for an export is 5 minutes; an inspection may not be what makes an author wait.
INSPECTION_S_MAX = 30.0


def median_s(act: Callable[[], Any]) -> float:
    """Time an act some times; give the median."""
    taken = []
    for _ in range(ROUNDS):
        started_s = time.perf_counter()
        act()
        taken.append(time.perf_counter() - started_s)
    return statistics.median(taken)


def figure(name: str, value: float, unit: str, baseline: float, **bar: float) -> dict[str, Any]:
    """Make a figure."""
    ratio = round(value / baseline, 3)
    return {
        "name": name,
        "value": float(f"{value:.4g}"),
        "unit": unit,
        "baseline": float(f"{baseline:.4g}"),
        "ratio": ratio,
    } | bar


def a_subject(capsule: Capsule) -> Subject:
    """Read a capsule as the harness wants it."""
    memory = memory_of(capsule.manifest, capsule.data["memory.parquet"])
    return Subject("sha3-512:" + "5b" * 64, memory, [], [], [], {})


def measure_suite() -> list[dict[str, Any]]:
    """Measure the whole suite, against building the two indexes it cannot do without."""
    subject = a_subject(a_capsule(items=ITEMS, dimension=DIMENSION))
    addresses = {evaluate(subject, BASELINE, IN_FORCE).address for _ in range(2)}
    assert len(addresses) == 1, "two runs differ"
    ours = median_s(lambda: evaluate(subject, BASELINE, IN_FORCE))
    baseline = median_s(lambda: Retriever(subject.memory, BASELINE.recall))
    return [figure("persona.evaluation", ours * 1e3, "ms", baseline * 1e3)]


def measure_inspection() -> list[dict[str, Any]]:
    """Measure evaluation and scan by a process of its own, against the evaluation alone in this one."""
    capsule = a_capsule(items=ITEMS, dimension=DIMENSION)
    subject = a_subject(capsule)

    def apart() -> None:
        parts = [Part(part.name, part.bytes, capsule.open_part(part)) for part in capsule.manifest.parts]
        run_apart(capsule.manifest, BASELINE.name, IN_FORCE, parts, scans=True)

    ours = median_s(apart)
    here = median_s(lambda: evaluate(subject, BASELINE, IN_FORCE))
    return [figure("persona.inspection", ours, "s", here, value_at_most=INSPECTION_S_MAX)]


def measure_exactness() -> list[dict[str, Any]]:
    """Measure the exact product of whole numbers against the plain one of the library."""
    subject = a_subject(a_capsule(items=ITEMS, dimension=DIMENSION))
    index = VectorIndex(subject.memory.vectors, "cosine")
    queries = subject.memory.vectors[:200]
    whole = index.whole(queries)
    vectors = np.ascontiguousarray(subject.memory.vectors.T)
    ours = median_s(lambda: index.scores(whole))
    return [figure("persona.exact_scores", ours * 1e3, "ms", median_s(lambda: queries @ vectors) * 1e3)]


FIGURES: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "persona.evaluation": measure_suite,
    "persona.inspection": measure_inspection,
    "persona.exact_scores": measure_exactness,
}
