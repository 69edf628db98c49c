"""Claims: somebody says that a capsule infringes a right of theirs, and operators decide.

    open -> under_review -> upheld (the capsule is revoked) | rejected
    withdrawn by who opened it, as long as it is not decided

Who opens a claim may ask that the capsule be suspended meanwhile; whether it is, operators say when they take it up. A
suspension outlives the claim: putting a capsule back is a decision of its own, by somebody else, through every gate of
publication.
"""

from __future__ import annotations

from typing import Any

import msgspec
from pydantic import Field

from domain.errors import CapsuleNotFoundError, ClaimNotFoundError, ForbiddenError, StatusTransitionError
from domain.fields import Command, JsonObject, Reason
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record
from domain.persona.capsules import Capsule, Rentals, get_capsule, may_read
from domain.persona.personas import AUTHORS
from domain.persona.standing import revoke, suspend

OPEN = frozenset({"open", "under_review"})


class Claim(Aggregate):
    """A claim against a capsule: open, under review, then upheld, rejected or withdrawn, each of them final."""

    KIND = "claim"

    capsule: str = ""
    persona_id: str = ""
    claimant: str = ""
    reporter: str = ""
    right: str = ""
    reason: str = ""
    evidence: dict[str, Any] = msgspec.field(default_factory=dict)
    asks_suspension: bool = False
    status: str = "open"
    resolution: str = ""
    parties: list[str] = msgspec.field(default_factory=list)

    class Opened(Event, frozen=True):
        """A tenant claimed a right against a capsule."""

        TOPIC = "claim.opened"

        capsule: str
        persona_id: str
        claimant: str
        reporter: str
        right: str
        reason: str
        evidence: dict[str, Any]
        asks_suspension: bool
        parties: list[str]

        def apply(self, claim: Claim, record: Record) -> None:
            for name in self.__struct_fields__:
                setattr(claim, name, getattr(self, name))

    class ReviewStarted(Event, frozen=True):
        """An operator took the claim up."""

        TOPIC = "claim.review_started"

        suspended: bool

        def apply(self, claim: Claim, record: Record) -> None:
            claim.status = "under_review"

    class Upheld(Event, frozen=True):
        """The claim was found right, and the capsule was revoked."""

        TOPIC = "claim.upheld"

        resolution: str

        def apply(self, claim: Claim, record: Record) -> None:
            claim.status, claim.resolution = "upheld", self.resolution

    class Rejected(Event, frozen=True):
        """The claim was found groundless."""

        TOPIC = "claim.rejected"

        resolution: str

        def apply(self, claim: Claim, record: Record) -> None:
            claim.status, claim.resolution = "rejected", self.resolution

    class Withdrawn(Event, frozen=True):
        """Who opened the claim took it back."""

        TOPIC = "claim.withdrawn"

        reason: str

        def apply(self, claim: Claim, record: Record) -> None:
            claim.status, claim.resolution = "withdrawn", self.reason

    def status_key(self) -> str:
        return self.status

    def owner_key(self) -> str:
        return self.persona_id

    def party_keys(self) -> list[str]:
        return self.parties


class OpenClaim(Command):
    """Claim a right against a published capsule."""

    capsule_id: str
    right: str = Field(min_length=1, max_length=200, examples=["copyright in the training texts"])
    reason: Reason
    evidence: JsonObject = {}
    asks_suspension: bool = False


class ReviewClaim(Command):
    """Take a claim up; with `suspend` the capsule is suspended until somebody reinstates it."""

    claim_id: str
    suspend: bool = False
    rentals: Rentals = "let_run"


class UpholdClaim(Command):
    """Find a claim right: the capsule is revoked."""

    claim_id: str
    resolution: Reason
    rentals: Rentals = "end"


class RejectClaim(Command):
    """Find a claim groundless."""

    claim_id: str
    resolution: Reason


class WithdrawClaim(Command):
    """Take a claim back."""

    claim_id: str
    reason: str = Field("", max_length=1_000)


@allow(*AUTHORS)
def open_claim(case: Case, command: OpenClaim) -> Claim:
    """Claim a right against another tenant's capsule that is, or was, on show.

    Errors: capsule_not_found, forbidden, invalid_status_transition.
    """
    capsule = get_capsule(case, command.capsule_id)
    if capsule.published_at is None:
        if may_read(case.caller, capsule):
            raise StatusTransitionError(current_status=capsule.status, next_status="claimed")
        raise CapsuleNotFoundError(id=command.capsule_id[:160])
    if capsule.tenant == case.caller.tenant:
        raise ForbiddenError("nobody claims a right against themselves", tenant=capsule.tenant)
    opened = Claim.Opened(
        capsule=capsule.address,
        persona_id=capsule.persona_id,
        claimant=case.caller.tenant,
        reporter=case.caller.subject,
        right=command.right,
        reason=command.reason,
        evidence=command.evidence,
        asks_suspension=command.asks_suspension,
        parties=sorted({case.caller.tenant, capsule.tenant, "platform"}),
    )
    claim = case.create(Claim, case.new_id("claim"), opened)
    case.emit(capsule, Capsule.Claimed(claim_id=claim.id, is_open=True))
    return claim


@allow("operator")
def review_claim(case: Case, command: ReviewClaim) -> Claim:
    """Take a claim up, and suspend the capsule where that was found to be needed.

    Errors: claim_not_found, forbidden, invalid_status_transition, persona_not_found, version_mismatch.
    """
    claim, capsule = _to_decide(case, command.claim_id)
    if claim.status != "open":
        raise StatusTransitionError(current_status=claim.status, next_status="under_review")
    if command.suspend:
        suspend(case, capsule, f"claim {claim.id}", command.rentals, claim.id)
    return case.emit(claim, Claim.ReviewStarted(suspended=command.suspend))


@allow("operator")
def uphold_claim(case: Case, command: UpholdClaim) -> Claim:
    """Find a claim right; the capsule is revoked in the same commit, if it was not before.

    Errors: claim_not_found, forbidden, invalid_status_transition, version_mismatch.
    """
    claim, capsule = _to_decide(case, command.claim_id)
    _check_step(claim, {"under_review"}, "upheld")
    case.emit(claim, Claim.Upheld(resolution=command.resolution))
    case.emit(capsule, Capsule.Claimed(claim_id=claim.id, is_open=False))
    if capsule.status != "revoked":
        revoke(case, capsule, command.resolution, command.rentals, claim.id)
    return claim


@allow("operator")
def reject_claim(case: Case, command: RejectClaim) -> Claim:
    """Find a claim groundless; a suspended capsule waits for its reinstatement.

    Errors: claim_not_found, forbidden, invalid_status_transition, version_mismatch.
    """
    claim, capsule = _to_decide(case, command.claim_id)
    _check_step(claim, {"under_review"}, "rejected")
    case.emit(claim, Claim.Rejected(resolution=command.resolution))
    case.emit(capsule, Capsule.Claimed(claim_id=claim.id, is_open=False))
    return claim


@allow(*AUTHORS)
def withdraw_claim(case: Case, command: WithdrawClaim) -> Claim:
    """Take a claim back before it is decided; only the tenant that opened it may.

    Errors: claim_not_found, invalid_status_transition, version_mismatch.
    """
    claim = case.get(Claim, command.claim_id, ClaimNotFoundError)
    if claim.claimant != case.caller.tenant:
        raise ClaimNotFoundError(id=claim.id)
    case.match_version(claim)
    _check_step(claim, OPEN, "withdrawn")
    case.emit(claim, Claim.Withdrawn(reason=command.reason))
    case.emit(get_capsule(case, claim.capsule), Capsule.Claimed(claim_id=claim.id, is_open=False))
    return claim


def _to_decide(case: Case, claim_id: str) -> tuple[Claim, Capsule]:
    """Read a claim for an operator who is to decide it, and so belongs to neither side of it."""
    claim = case.get(Claim, claim_id, ClaimNotFoundError)
    case.match_version(claim)
    capsule = get_capsule(case, claim.capsule)
    if case.caller.tenant in (claim.claimant, capsule.tenant):
        raise ForbiddenError("a party of the claim does not decide over it", parties=claim.parties)
    return claim, capsule


def _check_step(claim: Claim, allowed: frozenset[str] | set[str], status: str) -> None:
    if claim.status not in allowed:
        raise StatusTransitionError(current_status=claim.status, next_status=status)
