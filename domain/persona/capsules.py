"""Capsules: sealed versions of personas, from their export to the end of their use.

    exported | imported -> submitted -> inspected -> published <-> suspended
    withdrawn (by its tenant) and revoked (by operators) are final, and can follow on any of these

A capsule is named by its address, so what was inspected, approved and signed is these bytes and no others. What leads
to `published` is in `publication`; what becomes of it afterwards is in `standing`.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from domain.errors import (
    CapsuleNotFoundError,
    CapsuleRevokedError,
    CapsuleSuspendedError,
    ConstitutionMismatchError,
    PersonaNotFoundError,
    SelfReviewError,
    StatusTransitionError,
    ThresholdNotMetError,
)
from domain.fields import Command
from domain.ledger import Caller, Case, allow
from domain.log.records import Aggregate, Event, Record, encode_state
from domain.persona.attempts import KeptRefusal, recordable, told
from domain.persona.facts import owners_of
from domain.persona.manifest import capsule_id
from domain.persona.personas import AUTHORS, Persona, note_review, note_version
from domain.persona.tokens import TokenEstimate
from domain.trust.constitutions import check_constitution
from domain.trust.judgements import Judgement
from domain.trust.moderation.findings import Finding
from domain.trust.reviews import Review, open_review
from domain.trust.signatures import open_signing
from domain.trust.signers import policy_in_force

FINDINGS_BYTES_MAX = 24_576
EVALUATION_BYTES_MAX = 24_576
FINAL = frozenset({"withdrawn", "revoked"})
# A review that is none of these goes on; any other one has to be opened anew.
LIVE_REVIEWS = frozenset({"pending", "approved"})

Rentals = Literal["end", "let_run"]
Purpose = Literal["import", "rent", "activate"]
_HEX = re.compile(r"[0-9a-f]{128}", re.ASCII)


class Scan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a scan came to, by which rules and where; the findings may be cut, their count never is."""

    verdict: str
    scanner: str
    rules_digest: str
    finding_count: int
    counts: dict[str, int]
    findings: list[Finding]


class Capsule(Aggregate):
    """One sealed version of a persona.

    It is published only out of `inspected`, or back out of `suspended`, and each time everything that publication needs
    holds at that moment. Once withdrawn or revoked it stays so.
    """

    KIND = "capsule"

    address: str = ""
    persona_id: str = ""
    persona_version: str = ""
    manifest: dict[str, Any] = msgspec.field(default_factory=dict)
    origin: str = "export"
    made_by: str = ""
    archive: str = ""
    archive_bytes: int = 0
    token_estimate: TokenEstimate | None = None
    status: str = "exported"
    submitted_by: str | None = None
    submitters: list[str] = msgspec.field(default_factory=list)
    submitted_at: str | None = None
    scan: Scan | None = None
    evaluation: dict[str, Any] | None = None
    inspection_failure: KeptRefusal | None = None
    is_override: bool = False
    published_at: str | None = None
    trust: str = "none"
    degraded: list[str] = msgspec.field(default_factory=list)
    suspended_by: str | None = None
    # Since when it is suspended or revoked; what runs on it is over from then on where `rentals` says so.
    stopped_at: str | None = None
    reason: str = ""
    rentals: str = "let_run"
    claims: list[str] = msgspec.field(default_factory=list)

    class Exported(Event, frozen=True):
        """A persona was sealed: its archive is in the vault, and its manifest is here."""

        TOPIC = "capsule.exported"

        persona_id: str
        version: str
        capsule: str
        manifest: dict[str, Any]
        archive: str
        archive_bytes: int
        token_estimate: TokenEstimate | None
        export_id: str

        def apply(self, capsule: Capsule, record: Record) -> None:
            _begin(capsule, self)
            capsule.made_by = self.export_id

    class Imported(Event, frozen=True):
        """A capsule that was sealed elsewhere came into this log."""

        TOPIC = "capsule.imported"

        persona_id: str
        version: str
        capsule: str
        manifest: dict[str, Any]
        archive: str
        archive_bytes: int
        token_estimate: TokenEstimate | None
        import_id: str

        def apply(self, capsule: Capsule, record: Record) -> None:
            _begin(capsule, self)
            capsule.origin, capsule.status, capsule.made_by = "import", "imported", self.import_id

    class Submitted(Event, frozen=True):
        """An author asked for inspection, review and signatures; signers sign under this policy and constitution."""

        TOPIC = "capsule.submitted"

        persona_id: str
        version: str
        policy: str
        constitution: str

        def apply(self, capsule: Capsule, record: Record) -> None:
            capsule.status = "submitted"
            capsule.submitted_by, capsule.submitted_at = record.actor, record.at
            capsule.submitters = sorted({*capsule.submitters, record.actor})
            capsule.scan = capsule.evaluation = capsule.inspection_failure = None

    class Scanned(Event, frozen=True):
        """The parts were scanned; findings say where, and never what."""

        TOPIC = "capsule.scanned"

        verdict: str
        scanner: str
        rules_digest: str
        finding_count: int
        counts: dict[str, int]
        findings: list[Finding]

        def apply(self, capsule: Capsule, record: Record) -> None:
            capsule.scan = Scan(**{name: getattr(self, name) for name in self.__struct_fields__})
            capsule.status = "inspected"

    class Evaluated(Event, frozen=True):
        """The persona was evaluated; the report is in the vault under its address."""

        TOPIC = "capsule.evaluated"

        passed: bool
        report: str | None
        evaluation: dict[str, Any]

        def apply(self, capsule: Capsule, record: Record) -> None:
            capsule.evaluation = self.evaluation | {"passed": self.passed, "report": self.report}
            capsule.status = "inspected"

    class InspectionFailed(Event, frozen=True):
        """The parts could not be inspected; it counts as not passed until it is submitted again."""

        TOPIC = "capsule.inspection_failed"

        code: str
        detail: str

        def apply(self, capsule: Capsule, record: Record) -> None:
            capsule.inspection_failure = KeptRefusal(self.code, self.detail, {})
            capsule.status = "inspected"

    class Published(Event, frozen=True):
        """Policy, approvals and signatures were all there, and the persona's version is on show."""

        TOPIC = "capsule.published"

        persona_id: str
        version: str
        capsule: str
        policy: str
        constitution: str
        threshold: int
        signed: list[str]
        approved_by: list[str]
        is_override: bool
        judgement: Judgement

        def apply(self, capsule: Capsule, record: Record) -> None:
            capsule.status = "published"
            capsule.trust = "verified"
            capsule.is_override = self.is_override
            capsule.published_at = record.at

    class Suspended(Event, frozen=True):
        """New rentals stopped at once, until somebody else reinstates the capsule."""

        TOPIC = "capsule.suspended"

        persona_id: str
        version: str
        reason: str
        rentals: str
        claim_id: str | None

        def apply(self, capsule: Capsule, record: Record) -> None:
            capsule.status = "suspended"
            capsule.suspended_by = record.actor
            capsule.stopped_at = record.at
            capsule.reason, capsule.rentals = self.reason, self.rentals

    class Reinstated(Event, frozen=True):
        """The capsule is published again; everything that publication needs was there at this moment too."""

        TOPIC = "capsule.reinstated"

        persona_id: str
        version: str
        reason: str
        policy: str
        constitution: str
        threshold: int
        signed: list[str]
        approved_by: list[str]
        judgement: Judgement

        def apply(self, capsule: Capsule, record: Record) -> None:
            capsule.status = "published"
            capsule.trust = "verified"
            capsule.suspended_by = capsule.stopped_at = None
            capsule.reason = ""

    class Revoked(Event, frozen=True):
        """Operators ended the capsule for good: it is not imported, published, rented or activated any more."""

        TOPIC = "capsule.revoked"

        persona_id: str
        version: str
        reason: str
        rentals: str
        claim_id: str | None

        def apply(self, capsule: Capsule, record: Record) -> None:
            # What a suspension ended before was over from that one on.
            if capsule.stopped_at is None or capsule.rentals != "end":
                capsule.stopped_at = record.at
            capsule.status = "revoked"
            capsule.reason, capsule.rentals = self.reason, self.rentals

    class Withdrawn(Event, frozen=True):
        """Its tenant took the capsule back; rentals that run go on."""

        TOPIC = "capsule.withdrawn"

        persona_id: str
        version: str
        reason: str

        def apply(self, capsule: Capsule, record: Record) -> None:
            capsule.status = "withdrawn"
            capsule.reason = self.reason

    class Degraded(Event, frozen=True):
        """Something about the capsule is worse than it was published."""

        TOPIC = "capsule.degraded"

        mark: str
        detail: str

        def apply(self, capsule: Capsule, record: Record) -> None:
            capsule.degraded = sorted({*capsule.degraded, self.mark})

    class Recovered(Event, frozen=True):
        """What a mark said does not hold any more."""

        TOPIC = "capsule.recovered"

        mark: str

        def apply(self, capsule: Capsule, record: Record) -> None:
            capsule.degraded = [mark for mark in capsule.degraded if mark != self.mark]

    class TrustLost(Event, frozen=True):
        """A key was revoked, and the signatures that are left are fewer than the threshold."""

        TOPIC = "capsule.trust_lost"

        threshold: int
        signed: list[str]
        missing: list[str]

        def apply(self, capsule: Capsule, record: Record) -> None:
            capsule.trust = "needs_signatures"

    class TrustRestored(Event, frozen=True):
        """Enough signatures that count are there again."""

        TOPIC = "capsule.trust_restored"

        threshold: int
        signed: list[str]

        def apply(self, capsule: Capsule, record: Record) -> None:
            capsule.trust = "verified"

    class Claimed(Event, frozen=True):
        """Somebody said that the capsule infringes a right of theirs, or that dispute was settled."""

        TOPIC = "capsule.claimed"

        claim_id: str
        is_open: bool

        def apply(self, capsule: Capsule, record: Record) -> None:
            left = [claim for claim in capsule.claims if claim != self.claim_id]
            capsule.claims = [*left, self.claim_id] if self.is_open else left

    def status_key(self) -> str:
        return self.status

    def owner_key(self) -> str:
        return self.persona_id

    def party_keys(self) -> list[str] | None:
        return ["platform"] if self.submitted_at is not None else None


def _begin(capsule: Capsule, sealed: Capsule.Exported | Capsule.Imported) -> None:
    capsule.address = sealed.capsule
    capsule.persona_id = sealed.persona_id
    capsule.persona_version = sealed.version
    capsule.manifest = sealed.manifest
    capsule.archive = sealed.archive
    capsule.archive_bytes = sealed.archive_bytes
    capsule.token_estimate = sealed.token_estimate


# --------------------------------------------------------------------------- commands


class CapsuleStep(Command):
    """Name a capsule, by its address or the 128 digits of it."""

    capsule_id: str


class SubmitCapsule(CapsuleStep):
    """Ask for a capsule's inspection, review and signatures."""


class RecordInspection(CapsuleStep):
    """Tell what inspecting a capsule came to: a scan and an evaluation, or why there are none."""

    scan: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    failure: dict[str, Any] | None = None


@allow(*AUTHORS)
def submit_capsule(case: Case, command: SubmitCapsule) -> Capsule:
    """Submit a capsule; it may be submitted again where its review expired or its inspection failed.

    Errors: capsule_not_found, capsule_revoked, capsule_suspended, capsule_version_taken,
            constitution_mismatch, constitution_missing, invalid_status_transition, persona_not_found, review_closed,
            self_review, signer_policy_missing, version_mismatch.
    """
    capsule = own_capsule(case, command.capsule_id)
    case.match_version(capsule)
    review = case.find(Review, capsule.id)
    _check_submittable(capsule, review)
    if review is not None and any(one.reviewer == case.caller.subject for one in review.decisions):
        raise SelfReviewError("who voted on a capsule does not submit it", subject=case.caller.subject)
    persona = persona_of(case, capsule)
    constitution = check_constitution(case, capsule.manifest["governance"]["constitution"])
    policy = policy_in_force(case)
    owners = [*owners_of(capsule.manifest), *capsule.submitters]
    if review is None or review.status not in LIVE_REVIEWS:
        review = open_review(case, capsule.address, policy, owners, capsule.tenant)
    open_signing(case, capsule.address, policy, constitution.address, owners, capsule.tenant)
    case.emit(
        capsule,
        Capsule.Submitted(
            persona_id=persona.id,
            version=capsule.persona_version,
            policy=policy.address,
            constitution=constitution.address,
        ),
    )
    note_version(case, persona, capsule.persona_version, capsule.address, capsule.status)
    note_review(case, persona, capsule.persona_version, review.status, submitting=True)
    return capsule


@allow("service")
def record_inspection(case: Case, command: RecordInspection) -> Capsule:
    """Write down what the inspection of a submitted capsule came to; telling it twice changes nothing.

    Errors: capsule_not_found, persona_not_found.
    """
    capsule = get_capsule(case, command.capsule_id)
    if capsule.status != "submitted":
        return capsule
    if command.failure is not None or command.scan is None or command.evaluation is None:
        why = command.failure or {}
        kept = told(str(why.get("code", "not_inspected")), str(why.get("detail", "nothing was told")), {})
        case.emit(capsule, Capsule.InspectionFailed(code=kept.code, detail=kept.detail))
    else:
        case.emit(capsule, _scanned(command.scan))
        case.emit(capsule, _evaluated(command.evaluation))
    note_version(case, persona_of(case, capsule), capsule.persona_version, capsule.address, capsule.status)
    return capsule


def _check_submittable(capsule: Capsule, review: Review | None) -> None:
    check_not_ended(capsule)
    waits = capsule.status in ("submitted", "inspected")
    stuck = capsule.inspection_failure is not None or (
        review is not None and review.status not in LIVE_REVIEWS
    )
    if capsule.status not in ("exported", "imported") and not (waits and stuck):
        raise StatusTransitionError(current_status=capsule.status, next_status="submitted")


def _scanned(scan: dict[str, Any]) -> Capsule.Scanned:
    verdict = scan.get("verdict")
    return Capsule.Scanned(
        # A verdict that is not known is no reason to publish.
        verdict=verdict if verdict in ("pass", "warn") else "block",
        scanner=str(scan.get("scanner", "")),
        rules_digest=str(scan.get("rules_digest", "")),
        finding_count=int(scan.get("finding_count", 0)),
        counts={str(name): int(count) for name, count in dict(scan.get("counts") or {}).items()},
        findings=_first_fitting(msgspec.convert(scan.get("findings") or [], list[Finding])),
    )


def _first_fitting(findings: list[Finding]) -> list[Finding]:
    """Keep as many findings as one record can hold beside the rest."""
    kept: list[Finding] = []
    size = 0
    for finding in findings:
        size += len(encode_state(finding)) + 1
        if size > FINDINGS_BYTES_MAX:
            break
        kept.append(finding)
    return kept


def _evaluated(evaluation: dict[str, Any]) -> Capsule.Evaluated:
    rest = recordable({name: value for name, value in evaluation.items() if name not in ("passed", "report")})
    if len(encode_state(rest)) > EVALUATION_BYTES_MAX:
        rest = {"note": "the evaluation is too long to be kept in the log; its report is in the vault"}
    passed = evaluation.get("passed") is True and evaluation.get("named_report") != "differs"
    return Capsule.Evaluated(passed=passed, report=evaluation.get("report"), evaluation=rest)


# --------------------------------------------------------------------------- reading and showing


def get_capsule(case: Case, name: str) -> Capsule:
    """Read a capsule by its address or its id.

    Errors: capsule_not_found.
    """
    return case.get(Capsule, _id(name), CapsuleNotFoundError)


def own_capsule(case: Case, name: str) -> Capsule:
    """Read a capsule of the caller's tenant.

    Errors: capsule_not_found.
    """
    return case.get_own(Capsule, _id(name), CapsuleNotFoundError)


def read_capsule(case: Case, name: str) -> Capsule:
    """Read a capsule that the caller may see before it is published.

    Errors: capsule_not_found.
    """
    capsule = get_capsule(case, name)
    if not may_read(case.caller, capsule):
        raise CapsuleNotFoundError(id=name[:160])
    return capsule


def may_read(who: Caller, capsule: Capsule) -> bool:
    """Say whether somebody may see a capsule that is not published: its tenant, the platform once it is submitted."""
    if who.tenant == capsule.tenant or who.roles & {"operator", "auditor"}:
        return True
    return who.tenant in (capsule.party_keys() or [])


def _id(name: str) -> str:
    digits = capsule_id(name)
    if not _HEX.fullmatch(digits):
        raise CapsuleNotFoundError(id=name[:160])
    return digits


def persona_of(case: Case, capsule: Capsule) -> Persona:
    """Read the persona a capsule is a version of; it must be the same tenant's.

    Errors: persona_not_found.
    """
    persona = case.get(Persona, capsule.persona_id, PersonaNotFoundError)
    if persona.tenant != capsule.tenant:
        raise PersonaNotFoundError("the persona of this id is another tenant's", id=capsule.persona_id)
    return persona


def check_not_ended(capsule: Capsule) -> None:
    """Refuse a capsule that was ended for good, or is suspended.

    Errors: capsule_revoked, capsule_suspended, invalid_status_transition.
    """
    if capsule.status == "revoked":
        raise CapsuleRevokedError(capsule=capsule.address, reason=capsule.reason)
    if capsule.status == "suspended":
        raise CapsuleSuspendedError(capsule=capsule.address, reason=capsule.reason)
    if capsule.status == "withdrawn":
        raise StatusTransitionError(
            "the capsule was withdrawn", current_status="withdrawn", next_status="used"
        )


def check_usable(capsule: Capsule, purpose: Purpose, in_force: str | None) -> None:
    """Refuse to use a capsule that is not in good standing here, under the constitution in force.

    To be imported it must not have been ended; to be rented or activated it must be published and verified.
    Errors: capsule_revoked, capsule_suspended, constitution_mismatch, invalid_status_transition, threshold_not_met.
    """
    check_not_ended(capsule)
    named = capsule.manifest["governance"]["constitution"]
    if named != in_force:
        raise ConstitutionMismatchError(expected=in_force, found=named)
    if purpose == "import":
        return
    if capsule.status != "published":
        raise StatusTransitionError(
            "the capsule is not published", current_status=capsule.status, next_status=purpose
        )
    if capsule.trust != "verified":
        raise ThresholdNotMetError(
            "a key was revoked, and the signatures left are too few", capsule=capsule.address
        )
