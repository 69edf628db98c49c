"""What becomes of a capsule after its publication: marks, suspension, revocation, and being taken back."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from domain.errors import CapsuleRevokedError, ConflictError, ForbiddenError, StatusTransitionError
from domain.fields import Label, Reason, Text
from domain.ledger import Case, allow
from domain.persona.capsules import (
    Capsule,
    CapsuleStep,
    Rentals,
    get_capsule,
    own_capsule,
    persona_of,
    read_capsule,
)
from domain.persona.listings import relist
from domain.persona.personas import AUTHORS, Persona, note_review, note_version
from domain.trust.reviews import close_review

MARKS_MAX = 32


class MarkDegraded(CapsuleStep):
    """Mark a published capsule; `mark` is a short name for what is worse."""

    mark: Label = Field(examples=["evaluation-regressed"])
    detail: Text = ""


class ClearDegraded(CapsuleStep):
    """Take a mark away."""

    mark: Label


class SuspendCapsule(CapsuleStep):
    """Stop new rentals of a published capsule at once; `rentals` says whether running ones end too."""

    reason: Reason
    rentals: Rentals = "let_run"


class RevokeCapsule(CapsuleStep):
    """End a capsule for good; `rentals` says what becomes of running ones."""

    reason: Reason
    rentals: Rentals


class WithdrawCapsule(CapsuleStep):
    """Take a capsule back; rentals that run go on."""

    reason: str = Field("", max_length=1_000)


@allow("service", "operator")
def mark_degraded(case: Case, command: MarkDegraded) -> Capsule:
    """Mark a published capsule as worse than it was; it stays on show with its marks.

    Programs mark what is their tenant's; those of the platform, and operators, anything.

    Errors: capsule_not_found, conflict, invalid_status_transition, persona_not_found, version_mismatch.
    """
    capsule = read_capsule(case, command.capsule_id)
    case.match_version(capsule)
    if capsule.status != "published":
        raise StatusTransitionError(current_status=capsule.status, next_status="degraded")
    if command.mark not in capsule.degraded:
        if len(capsule.degraded) >= MARKS_MAX:
            raise ConflictError(f"a capsule has {MARKS_MAX} marks at most")
        case.emit(capsule, Capsule.Degraded(mark=command.mark, detail=command.detail))
        relist(case, persona_of(case, capsule), capsule)
    return capsule


@allow("service", "operator")
def clear_degraded(case: Case, command: ClearDegraded) -> Capsule:
    """Take a mark off a capsule; where it has none of that name, nothing changes.

    Errors: capsule_not_found, persona_not_found, version_mismatch.
    """
    capsule = read_capsule(case, command.capsule_id)
    case.match_version(capsule)
    if command.mark in capsule.degraded:
        case.emit(capsule, Capsule.Recovered(mark=command.mark))
        relist(case, persona_of(case, capsule), capsule)
    return capsule


@allow(*AUTHORS)
def suspend_capsule(case: Case, command: SuspendCapsule) -> Capsule:
    """Suspend a published capsule: operators any, authors their own where its kill switch is enabled.

    Errors: capsule_not_found, forbidden, invalid_status_transition, persona_not_found, version_mismatch.
    """
    capsule = own_capsule(case, command.capsule_id)
    case.match_version(capsule)
    if "operator" not in case.caller.roles and not capsule.manifest["governance"]["kill_switch_enabled"]:
        raise ForbiddenError("the manifest does not enable its kill switch", roles=["operator"])
    return suspend(case, capsule, command.reason, command.rentals)


@allow("operator")
def revoke_capsule(case: Case, command: RevokeCapsule) -> Capsule:
    """End a capsule for good, whatever its status was.

    Errors: capsule_not_found, capsule_revoked, version_mismatch.
    """
    capsule = get_capsule(case, command.capsule_id)
    case.match_version(capsule)
    return revoke(case, capsule, command.reason, command.rentals)


@allow(*AUTHORS)
def withdraw_capsule(case: Case, command: WithdrawCapsule) -> Capsule:
    """Take a capsule of one's own back, before or after its publication.

    Errors: capsule_not_found, capsule_revoked, invalid_status_transition, version_mismatch.
    """
    capsule = own_capsule(case, command.capsule_id)
    case.match_version(capsule)
    _check_not_final(capsule, "withdrawn")
    withdrawn = Capsule.Withdrawn(reason=command.reason, **_named(capsule))
    return _end(case, capsule, withdrawn)


def suspend(case: Case, capsule: Capsule, reason: str, rentals: str, claim_id: str | None = None) -> Capsule:
    """Stop new rentals of a capsule.

    Errors: invalid_status_transition, persona_not_found.
    """
    if capsule.status != "published":
        raise StatusTransitionError(current_status=capsule.status, next_status="suspended")
    suspended = Capsule.Suspended(reason=reason, rentals=rentals, claim_id=claim_id, **_named(capsule))
    case.emit(capsule, suspended)
    relist(case, persona_of(case, capsule), capsule)
    return capsule


def revoke(case: Case, capsule: Capsule, reason: str, rentals: str, claim_id: str | None = None) -> Capsule:
    """End a capsule for good.

    Errors: capsule_revoked.
    """
    if capsule.status == "revoked":
        raise CapsuleRevokedError("the capsule was revoked before", capsule=capsule.address)
    revoked = Capsule.Revoked(reason=reason, rentals=rentals, claim_id=claim_id, **_named(capsule))
    return _end(case, capsule, revoked)


def _check_not_final(capsule: Capsule, wish: str) -> None:
    if capsule.status == "revoked":
        raise CapsuleRevokedError(capsule=capsule.address, reason=capsule.reason)
    if capsule.status == "withdrawn":
        raise StatusTransitionError(current_status=capsule.status, next_status=wish)


def _end(case: Case, capsule: Capsule, event: Capsule.Withdrawn | Capsule.Revoked) -> Capsule:
    """End a capsule, its review with it, and what the catalogue shows of it."""
    case.emit(capsule, event)
    review = close_review(case, capsule.address, capsule.status)
    # A capsule from elsewhere may be here without a persona, or beside another tenant's of the same name.
    persona = case.find(Persona, capsule.persona_id)
    if (
        persona is None
        or persona.version_of(capsule.persona_version) is None
        or persona.tenant != capsule.tenant
    ):
        return capsule
    if review is not None:
        note_review(case, persona, capsule.persona_version, review.status)
    if capsule.published_at is not None:
        relist(case, persona, capsule)
    else:
        note_version(case, persona, capsule.persona_version, capsule.address, capsule.status)
    return capsule


def _named(capsule: Capsule) -> dict[str, Any]:
    return {"persona_id": capsule.persona_id, "version": capsule.persona_version}
