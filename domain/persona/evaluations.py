"""Evaluations that authors ask for, before they seal a persona: the report is to be named in the manifest.

    requested -> completed | failed

An evaluation is of a manifest's parts as they are then; the report it ends with is an artifact of the tenant. Nothing
is decided by it: a capsule that is submitted is evaluated again.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from pydantic import Field, StringConstraints

from domain.canonical import encode_record
from domain.errors import ArtifactMismatchError, EvaluationNotFoundError, InvalidError
from domain.fields import Command, Id
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record
from domain.persona.artifacts import Address, get_artifact, own_artifact
from domain.persona.evaluation.subject import ROLES, subject_address
from domain.persona.evaluation.suites import BASELINE, suite_of
from domain.persona.manifest import PersonaManifest, parse_manifest
from domain.persona.personas import AUTHORS
from domain.trust.constitutions import check_constitution

SUMMARY_BYTES_MAX = 24_576
DETAIL_CHARS_MAX = 1_000


class EvaluationRun(Aggregate):
    """One run of a suite on the parts of a manifest. It ends once, with a report or with why there is none."""

    KIND = "evaluation"
    LASTING = False

    persona_id: str = ""
    persona_version: str = ""
    suite: str = ""
    subject: str = ""
    constitution: str = ""
    manifest: dict[str, Any] = msgspec.field(default_factory=dict)
    status: str = "requested"
    passed: bool | None = None
    report: str | None = None
    report_bytes: int | None = None
    evaluation: dict[str, Any] | None = None
    code: str | None = None
    detail: str | None = None

    class Requested(Event, frozen=True):
        """An author asked for an evaluation."""

        TOPIC = "evaluation.requested"

        persona_id: str
        version: str
        suite: str
        subject: str
        constitution: str
        manifest: dict[str, Any]

        def apply(self, evaluation: EvaluationRun, record: Record) -> None:
            evaluation.persona_id, evaluation.persona_version = self.persona_id, self.version
            evaluation.suite, evaluation.subject = self.suite, self.subject
            evaluation.constitution, evaluation.manifest = self.constitution, self.manifest

    class Completed(Event, frozen=True):
        """The suite was run; the report is in the vault under its address."""

        TOPIC = "evaluation.completed"

        passed: bool
        report: str
        report_bytes: int
        evaluation: dict[str, Any]

        def apply(self, evaluation: EvaluationRun, record: Record) -> None:
            evaluation.status = "completed"
            evaluation.passed, evaluation.evaluation = self.passed, self.evaluation
            evaluation.report, evaluation.report_bytes = self.report, self.report_bytes

    class Failed(Event, frozen=True):
        """The suite could not be run."""

        TOPIC = "evaluation.failed"

        code: str
        detail: str

        def apply(self, evaluation: EvaluationRun, record: Record) -> None:
            evaluation.status = "failed"
            evaluation.code, evaluation.detail = self.code, self.detail

    def status_key(self) -> str:
        return self.status

    def owner_key(self) -> str:
        return self.persona_id


class RequestEvaluation(Command):
    """Ask for an evaluation of a manifest's parts; they are artifacts of the tenant already."""

    manifest: dict[str, Any]
    suite: Annotated[str, StringConstraints(max_length=100)] = BASELINE.name


class EvaluationStep(Command):
    """Name an evaluation."""

    evaluation_id: Id


class CompleteEvaluation(EvaluationStep):
    """Tell what an evaluation came to; the report is in the vault."""

    passed: bool
    report: Address
    report_bytes: int = Field(ge=1)
    evaluation: dict[str, Any]


class FailEvaluation(EvaluationStep):
    """Tell why an evaluation could not be carried out."""

    code: str = Field(max_length=100)
    detail: str


@allow(*AUTHORS)
def request_evaluation(case: Case, command: RequestEvaluation) -> EvaluationRun:
    """Ask for an evaluation.

    Errors: artifact_mismatch, artifact_not_found, constitution_mismatch, constitution_missing,
            evaluation_suite_invalid, manifest_invalid.
    """
    manifest = parse_manifest(command.manifest)
    suite = suite_of(command.suite)
    constitution = check_constitution(case, manifest.governance.constitution)
    _check_parts(case, manifest)
    requested = EvaluationRun.Requested(
        persona_id=manifest.metadata.persona_id,
        version=manifest.metadata.version,
        suite=suite.name,
        subject=subject_address(manifest),
        constitution=constitution.address,
        manifest=manifest.document(),
    )
    return case.create(EvaluationRun, case.new_id("evaluation"), requested)


@allow("service")
def complete_evaluation(case: Case, command: CompleteEvaluation) -> EvaluationRun:
    """Write down what an evaluation came to, and have its tenant hold the report; telling it twice changes nothing.

    Errors: evaluation_not_found.
    """
    evaluation = case.get(EvaluationRun, command.evaluation_id, EvaluationNotFoundError)
    if evaluation.status != "requested":
        return evaluation
    own_artifact(case, evaluation.tenant, command.report, command.report_bytes, "evaluation")
    completed = EvaluationRun.Completed(
        passed=command.passed,
        report=command.report,
        report_bytes=command.report_bytes,
        evaluation=_fitting(command.evaluation),
    )
    return case.emit(evaluation, completed)


@allow("service")
def fail_evaluation(case: Case, command: FailEvaluation) -> EvaluationRun:
    """Write down why an evaluation could not be carried out; telling it twice changes nothing.

    Errors: evaluation_not_found.
    """
    evaluation = case.get(EvaluationRun, command.evaluation_id, EvaluationNotFoundError)
    if evaluation.status != "requested":
        return evaluation
    failed = EvaluationRun.Failed(code=command.code, detail=command.detail[:DETAIL_CHARS_MAX])
    return case.emit(evaluation, failed)


def _check_parts(case: Case, manifest: PersonaManifest) -> None:
    """See that the tenant holds what the evaluation reads, in the sizes the manifest says."""
    for part in manifest.parts:
        if part.role not in ROLES:
            continue
        artifact = get_artifact(case, case.caller.tenant, part.digest)
        if artifact.size_bytes != part.bytes:
            raise ArtifactMismatchError(
                f"{part.name} has {artifact.size_bytes} bytes, and the manifest says {part.bytes}",
                part=part.name,
                expected=part.bytes,
                found=artifact.size_bytes,
            )


def _fitting(summary: dict[str, Any]) -> dict[str, Any]:
    if len(encode_record(summary)) > SUMMARY_BYTES_MAX:
        raise InvalidError("the summary of an evaluation does not fit into a record")
    return summary
