"""Whether the reports and scores a manifest names are those that the evaluation gives when it is run again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Literal, NamedTuple

from domain.errors import LedgerError
from domain.persona.evaluation.report import Compared, is_report, read_report
from domain.persona.evaluation.subject import Document
from domain.persona.manifest import Evaluation, PersonaManifest

State = Literal["equal", "none", "differs"]


class Named(NamedTuple):
    """What became of the reports and scores a manifest names."""

    state: State
    why: list[str]


def benchmark_name(compared: Compared, metric: str) -> str:
    """Name a metric of a suite as a manifest's `benchmark`; such a score is held against the measured one."""
    return f"soma/{compared.suite.name}/{compared.suite.version}:{metric}"


def named(manifest: PersonaManifest, reports: Sequence[Document], compared: Compared) -> Named:
    """Hold the reports and scores of a manifest against what was measured.

    Reports of other schemas, and benchmarks of others, are their authors' word and nothing is said of them.
    """
    ours = [report for report in reports if is_report(report.data)]
    why = [fault for report in ours if (fault := _report_fault(report, compared)) is not None]
    why += _score_faults(manifest.evaluations, compared)
    if why:
        return Named("differs", why)
    return Named("equal" if ours else "none", [])


def _report_fault(report: Document, compared: Compared) -> str | None:
    try:
        claimed = read_report(report.data).address
    except LedgerError as refusal:
        return f"{report.name} cannot be used: {refusal.message}"[:200]
    if claimed == compared.address:
        return None
    return f"{report.name} is of {claimed[:25]}, and the evaluation gives {compared.address[:25]}"


def _score_faults(evaluations: Iterable[Evaluation], compared: Compared) -> list[str]:
    measured = {benchmark_name(compared, name): found.mean for name, found in compared.metrics.items()}
    prefix = benchmark_name(compared, "")
    return [
        f"{one.benchmark} is said to be {one.score}, and {measured.get(one.benchmark, 'nothing')} was measured"
        for one in evaluations
        if one.benchmark.startswith(prefix)
        and (one.benchmark not in measured or Decimal(measured[one.benchmark]) != Decimal(one.score))
    ]
