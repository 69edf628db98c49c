"""The report of an evaluation: one part that is compared to the last byte, and beside it what only this run knows.

The compared part names the suite, the subject and the constitution, and says nothing of machines or moments; whoever
runs the suite again on the same subject gets the same bytes. Times and versions are in the other part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from domain.canonical import encode_record, is_canonical, read_json, sealed
from domain.errors import EvaluationSuiteError, LedgerError
from domain.persona.evaluation.outcomes import Outcome
from domain.persona.evaluation.statistics import Interval, Rate, sign_test

SCHEMA = "soma/evaluation_report/1"
CONTEXT = "soma/evaluation-report/v1"
REPORT_BYTES_MAX = 8 * 1024 * 1024
WHY_MAX = 20


class SuiteRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The suite that was run."""

    name: str
    version: int
    digest: str


class UtilitySum(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the guard made of all requests.

    value is the mean utility, bound the constitution's bar, margin their difference; null where nothing could be
    reckoned.
    """

    pass_rate: Rate | None
    value: str | None
    bound: str | None
    margin: Interval | None
    accepted: int
    refused: int


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How good the estimates of being right were: the mean estimate, the share that was right, the Brier score."""

    estimated: str
    right: str
    brier: str
    n: int


class Compared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What two runs must agree in."""

    suite: SuiteRef
    subject: str
    constitution: str | None
    seed: str
    dataset: str
    n: int
    channels: list[str]
    metrics: dict[str, Interval]
    utility: UtilitySum
    calibration: Calibration | None
    reward_gated_count: int
    failure_count: int
    passed: bool
    why: list[str]
    cases: list[Outcome]

    def document(self) -> dict[str, Any]:
        """Give the compared part as plain values."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @property
    def address(self) -> str:
        return sealed(CONTEXT, self.document())[1]


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A report as it is stored: the address is that of the compared part."""

    schema: str
    address: str
    compared: Compared
    host: dict[str, str]


def written(compared: Compared, host: dict[str, str]) -> bytes:
    """Write a report in canonical form."""
    report = Report(SCHEMA, compared.address, compared, host)
    return encode_record(msgspec.to_builtins(report))


def is_report(data: bytes) -> bool:
    """Tell whether bytes call themselves a report of this schema."""
    try:
        read = read_json(data)
    except LedgerError:
        return False
    return isinstance(read, dict) and read.get("schema") == SCHEMA


def read_report(data: bytes) -> Report:
    """Read a report, and see that it is what its address says.

    Errors: evaluation_suite_invalid.
    """
    if len(data) > REPORT_BYTES_MAX or not is_canonical(data):
        raise EvaluationSuiteError("a report is canonical JSON of 8 MiB at most", bytes=len(data))
    try:
        report = msgspec.json.decode(data, type=Report)
    except msgspec.ValidationError as error:
        raise EvaluationSuiteError(f"the report cannot be read: {error}") from error
    if report.schema != SCHEMA or report.compared.address != report.address:
        raise EvaluationSuiteError(
            "the report's compared part is not what its address says",
            expected=report.address,
            found=report.compared.address,
        )
    return report


# --------------------------------------------------------------------------- in short, and side by side


def summary_of(compared: Compared) -> dict[str, Any]:
    """Give what an event says of an evaluation: everything but the cases."""
    plain = compared.document()
    kept = (
        "suite",
        "subject",
        "constitution",
        "metrics",
        "utility",
        "reward_gated_count",
        "failure_count",
        "passed",
    )
    return {
        "compared": compared.address,
        **{name: plain[name] for name in kept},
        "why": [text[:200] for text in compared.why[:WHY_MAX]],
    }


class Pairing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Two reports, case by case: whom the guard accepts now and did not before, and the other way round.

    lost names the first cases that were lost; p_value is that of a sign test.
    """

    baseline: str
    candidate: str
    paired: int
    gained: int
    lost: int
    p_value: str
    lost_cases: list[str]
    regressed: bool


def paired(baseline: Compared, candidate: Compared) -> Pairing:
    """Compare two reports over the cases they share: same name, same input.

    Source: McNemar 1947, in its exact form.
    """
    before = {(case.id, case.input_digest): _accepted(case) for case in _requests(baseline.cases)}
    both = [
        (case.id, before[key], _accepted(case))
        for case in _requests(candidate.cases)
        if (key := (case.id, case.input_digest)) in before
    ]
    lost = [name for name, was, now in both if was and not now]
    gained = sum(now and not was for _, was, now in both)
    return Pairing(
        baseline.address,
        candidate.address,
        len(both),
        gained,
        len(lost),
        sign_test(gained, len(lost)),
        lost[:WHY_MAX],
        bool(lost),
    )


def _requests(cases: Sequence[Outcome]) -> list[Outcome]:
    return [case for case in cases if case.utility is not None]


def _accepted(case: Outcome) -> bool:
    return case.utility is not None and case.utility.accepted
