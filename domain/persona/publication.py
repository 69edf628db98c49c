"""Publication: the one way onto the market, and everything that must be there at that moment.

    inspected, with a scan that does not block or an override     else not_inspected, scan_blocked
    an evaluation that passed its guard                           else evaluation_failed
    the approvals the signer policy asks for                      else not_approved
    signatures of so many pinned keys as the threshold says       else threshold_not_met
    the constitution in force is the one the capsule names        else constitution_mismatch
    the policy soma.publish, asked about exactly this state       else policy_denied, policy_unavailable

Reinstating a suspended capsule publishes it again and passes the same gates. The gates are read in one place, so what
`preflight` answers is what `publish_capsule` would do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from domain.errors import (
    CapsuleRevokedError,
    CapsuleSuspendedError,
    EvaluationFailedError,
    ForbiddenError,
    LedgerError,
    NotInspectedError,
    PolicyDeniedError,
    ScanBlockedError,
    StatusTransitionError,
)
from domain.fields import Reason
from domain.ledger import Case, allow
from domain.persona.attempts import KeptRefusal, problem_of
from domain.persona.capsules import Capsule, CapsuleStep, Scan, own_capsule, persona_of, read_capsule
from domain.persona.facts import asker, capsule_facts, constitution_in_force, signature_facts
from domain.persona.listings import relist
from domain.persona.personas import AUTHORS
from domain.trust.constitutions import check_constitution
from domain.trust.judgements import Judgement, Judgements, check_allowed, judged
from domain.trust.questions import (
    ApprovalFacts,
    Asker,
    EvaluationFacts,
    ScanCounts,
    ScanFacts,
    publish_question,
    tools_named,
)
from domain.trust.reviews import Review, approvals_needed, approved
from domain.trust.signatures import Signing, Verification, check_verified, complete_signing, verification
from domain.trust.signers import policy_in_force

PACKAGE = "soma.publish"
T = TypeVar("T")


class Gates(NamedTuple):
    """What stands between a capsule and its publication: the refusals, and what the policy is asked."""

    refusals: list[LedgerError]
    question: dict[str, Any]
    verification: Verification
    review: Review | None


class Preflight(msgspec.Struct):
    """What publishing would come to now; `missing` names everything that is not there yet."""

    capsule: str
    status: str
    publishable: bool
    missing: list[KeptRefusal]
    verification: Verification
    approvals_given: int
    approvals_required: int
    judgement: Judgement


class PublishCapsule(CapsuleStep):
    """Publish a capsule."""


class ReinstateCapsule(CapsuleStep):
    """Publish a suspended capsule again; by somebody else than who suspended it."""

    reason: Reason


@allow(*AUTHORS)
def publish_capsule(case: Case, command: PublishCapsule, *, judgements: Judgements) -> Capsule:
    """Publish a capsule for which everything is there.

    Errors: capsule_not_found, capsule_revoked, capsule_suspended, constitution_mismatch, constitution_missing,
            evaluation_failed, invalid_status_transition, not_approved, not_inspected, persona_not_found,
            policy_denied, scan_blocked, signer_policy_missing, threshold_not_met, version_mismatch.
    """
    capsule = own_capsule(case, command.capsule_id)
    case.match_version(capsule)
    gates, judgement = _pass(case, capsule, "inspected", judgements)
    complete_signing(case, capsule.address)
    review = gates.review
    assert review is not None, "the gates let nothing through without a review"
    published = Capsule.Published(
        capsule=capsule.address, is_override=review.override, **_grounds(case, capsule, gates, judgement)
    )
    case.emit(capsule, published)
    relist(case, persona_of(case, capsule), capsule)
    return capsule


@allow("operator")
def reinstate_capsule(case: Case, command: ReinstateCapsule, *, judgements: Judgements) -> Capsule:
    """Publish a suspended capsule again, through the same gates.

    Errors: capsule_not_found, capsule_revoked, constitution_mismatch, constitution_missing, evaluation_failed,
            forbidden, invalid_status_transition, not_approved, not_inspected, persona_not_found, policy_denied,
            scan_blocked, signer_policy_missing, threshold_not_met, version_mismatch.
    """
    capsule = own_capsule(case, command.capsule_id)
    case.match_version(capsule)
    if capsule.suspended_by == case.caller.subject:
        raise ForbiddenError(
            "who suspended a capsule does not reinstate it", suspended_by=capsule.suspended_by
        )
    if capsule.claims and case.caller.tenant == capsule.tenant:
        raise ForbiddenError(
            "a party of an open claim does not reinstate the capsule", claims=capsule.claims[:20]
        )
    gates, judgement = _pass(case, capsule, "suspended", judgements)
    complete_signing(case, capsule.address)
    grounds = _grounds(case, capsule, gates, judgement)
    case.emit(capsule, Capsule.Reinstated(reason=command.reason, **grounds))
    relist(case, persona_of(case, capsule), capsule)
    return capsule


@allow("owner", "provider", "operator", "reviewer", "signer", "auditor")
def preflight(case: Case, command: CapsuleStep, *, judgements: Judgements) -> Preflight:
    """Say what publishing would come to, and everything that is missing; nothing is written.

    For those who may not publish it themselves, the policy is asked as if who submitted it did.
    Errors: capsule_not_found, signer_policy_missing.
    """
    capsule = read_capsule(case, command.capsule_id)
    gates = read_gates(case, capsule, "suspended" if capsule.status == "suspended" else "inspected")
    judgement = judged(judgements, PACKAGE, gates.question)
    missing = [problem_of(refusal) for refusal in gates.refusals]
    try:
        check_allowed(judgement)
    except PolicyDeniedError as denied:
        missing.append(problem_of(denied))
    asked = gates.question["approvals"]
    return Preflight(
        capsule=capsule.address,
        status=capsule.status,
        publishable=not missing,
        missing=missing,
        verification=gates.verification,
        approvals_given=asked["given"],
        approvals_required=asked["required"],
        judgement=judgement,
    )


def read_gates(case: Case, capsule: Capsule, status: str) -> Gates:
    """Look at every gate, and go on where one is closed, so that all that is missing is known at once.

    Errors: signer_policy_missing.
    """
    refusals: list[LedgerError] = []
    held = _held(refusals, approved, case, capsule.address)
    review = held or case.find(Review, capsule.id)
    is_override = held is not None and held.override
    checked = verification(case, capsule.address)
    _held(refusals, _check_status, capsule, status)
    _held(refusals, _check_scan, capsule, is_override)
    _held(refusals, _check_evaluation, capsule)
    _held(refusals, check_verified, checked)
    _held(refusals, check_constitution, case, capsule.manifest["governance"]["constitution"])
    _held(refusals, persona_of, case, capsule)
    return Gates(refusals, _question(case, capsule, review, checked), checked, review)


def _held(refusals: list[LedgerError], check: Callable[..., T], *what: Any) -> T | None:
    try:
        return check(*what)
    except LedgerError as refusal:
        refusals.append(refusal)
        return None


def _pass(case: Case, capsule: Capsule, status: str, judgements: Judgements) -> tuple[Gates, Judgement]:
    """Pass every gate, or raise what a closed one says; the policy is asked last, of a state that may do."""
    gates = read_gates(case, capsule, status)
    for refusal in sorted(gates.refusals, key=_comes_first):
        raise refusal
    return gates, check_allowed(judged(judgements, PACKAGE, gates.question))


def _comes_first(refusal: LedgerError) -> bool:
    """Put what a capsule is before what it lacks."""
    return not isinstance(
        refusal, CapsuleRevokedError | CapsuleSuspendedError | StatusTransitionError | NotInspectedError
    )


def _check_status(capsule: Capsule, status: str) -> None:
    if capsule.status == status:
        return
    if capsule.status == "revoked":
        raise CapsuleRevokedError(capsule=capsule.address, reason=capsule.reason)
    if capsule.status == "suspended":
        raise CapsuleSuspendedError(capsule=capsule.address, reason=capsule.reason)
    if capsule.status == "submitted":
        raise NotInspectedError("the capsule waits for its inspection", capsule=capsule.address)
    raise StatusTransitionError(current_status=capsule.status, next_status="published")


def _check_scan(capsule: Capsule, is_override: bool) -> None:
    if capsule.scan is None:
        why = capsule.inspection_failure
        raise NotInspectedError(
            f"the inspection failed: {why.detail}" if why else "the capsule was not scanned",
            capsule=capsule.address,
        )
    if capsule.scan.verdict == "block" and not is_override:
        raise ScanBlockedError(
            finding_count=capsule.scan.finding_count, findings=msgspec.to_builtins(capsule.scan.findings[:20])
        )


def _check_evaluation(capsule: Capsule) -> None:
    if capsule.evaluation is None:
        raise NotInspectedError("the capsule was not evaluated", capsule=capsule.address)
    if not capsule.evaluation["passed"]:
        raise EvaluationFailedError(
            report=capsule.evaluation["report"], why=capsule.evaluation.get("why", [])
        )


def _question(case: Case, capsule: Capsule, review: Review | None, checked: Verification) -> dict[str, Any]:
    scan, evaluation = capsule.scan, capsule.evaluation or {}
    counts = scan.counts if scan else {}
    facts = capsule_facts(capsule.manifest, capsule.address, capsule.tenant, capsule.status)
    return publish_question(
        who=_publisher(case, capsule),
        capsule=facts,
        in_force=constitution_in_force(case),
        scan=ScanFacts(
            verdict=_verdict(scan),
            counts=ScanCounts(pass_=0, warn=counts.get("warn", 0), block=counts.get("block", 0)),
        ),
        evaluation=EvaluationFacts(passed=evaluation.get("passed", False)),
        approvals=_approvals(case, review, [tool.tool for tool in facts.tools]),
        signatures=signature_facts(checked),
        now=case.now,
        action="reinstate" if capsule.status == "suspended" else "publish",
    )


def _publisher(case: Case, capsule: Capsule) -> Asker:
    """Name who publishes: the caller; and where somebody else only looks, who submitted it, as an owner."""
    who = case.caller
    if "operator" in who.roles or (who.tenant == capsule.tenant and who.roles & set(AUTHORS)):
        return asker(case)
    return Asker.of(capsule.submitted_by or "nobody", capsule.tenant, ["owner"])


def _verdict(scan: Scan | None) -> Literal["none", "pass", "warn", "block"]:
    if scan is None:
        return "none"
    return "pass" if scan.verdict == "pass" else "warn" if scan.verdict == "warn" else "block"


def _approvals(case: Case, review: Review | None, tools: list[str]) -> ApprovalFacts:
    if review is None:
        return ApprovalFacts(
            required=policy_in_force(case).document.approvals_required, given=0, override=False
        )
    given = [one for one in review.decisions if one.decision == "approve"]
    return ApprovalFacts(
        required=approvals_needed(case, review),
        given=len(given),
        override=review.override,
        tools_named=tools_named([one.notes for one in given], tools),
    )


def _grounds(case: Case, capsule: Capsule, gates: Gates, judgement: Judgement) -> dict[str, Any]:
    """Say on what grounds a capsule is published, so that the event says it to whoever reads the log."""
    signing = case.get(Signing, capsule.id)
    return {
        "persona_id": capsule.persona_id,
        "version": capsule.persona_version,
        "policy": signing.policy,
        "constitution": capsule.manifest["governance"]["constitution"],
        "threshold": gates.verification.threshold,
        "signed": [signer.name for signer in gates.verification.signed],
        "approved_by": gates.review.approvals if gates.review is not None else [],
        "judgement": judgement,
    }
