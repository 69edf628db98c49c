"""Reviews: people approve a capsule by its address, or reject it, before a deadline.

Nobody reviews what they own or have submitted, and one person has one vote. One rejection rejects, for good: a capsule
with other content has another address and its own review. An operator may override, with notes; that settles the review
alone and is told wherever the review is.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

import msgspec
from pydantic import Field

from domain.errors import (
    AlreadyReviewedError,
    ForbiddenError,
    NotApprovedError,
    ReviewClosedError,
    ReviewNotesError,
    ReviewNotFoundError,
    SelfReviewError,
)
from domain.fields import Command
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record
from domain.trust.pinned import PolicyVersion
from domain.trust.signatures import capsule_address, capsule_key
from domain.trust.signers import policy_in_force
from domain.values import moment_of, moment_text


class Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one person decided."""

    reviewer: str
    decision: str
    notes: str
    is_override: bool
    at: str


class Review(Aggregate):
    """The review of one capsule. The id is the hex digits of the capsule's address.

    It is pending, approved, rejected, expired or closed. Only an expired one is opened again, and closed is final.
    """

    KIND = "review"

    capsule: str = ""
    submitted_by: str = ""
    owners: list[str] = msgspec.field(default_factory=list)
    policy: str = ""
    required: int = 1
    due_at: str = ""
    opened_at: str = ""
    decisions: list[Decision] = msgspec.field(default_factory=list)
    status: str = "pending"
    override: bool = False
    closed_reason: str = ""

    class Opened(Event, frozen=True):
        """A capsule waits for reviewers; decisions of an earlier round count no more."""

        TOPIC = "review.opened"

        capsule: str
        submitted_by: str
        owners: list[str]
        policy: str
        required: int
        due_at: str

        def apply(self, review: Review, record: Record) -> None:
            for name in self.__struct_fields__:
                setattr(review, name, getattr(self, name))
            review.opened_at, review.decisions = record.at, []
            review.status, review.override = "pending", False

    class Decided(Event, frozen=True):
        """Somebody approved or rejected, and what the review came to by it."""

        TOPIC = "review.decided"

        reviewer: str
        decision: str
        notes: str
        is_override: bool
        status: str

        def apply(self, review: Review, record: Record) -> None:
            made = Decision(self.reviewer, self.decision, self.notes, self.is_override, record.at)
            review.decisions = [*review.decisions, made]
            review.status = self.status
            review.override = self.is_override

    class Expired(Event, frozen=True):
        """Too few decided in time."""

        TOPIC = "review.expired"

        def apply(self, review: Review, record: Record) -> None:
            review.status = "expired"

    class Closed(Event, frozen=True):
        """There is nothing to review any more."""

        TOPIC = "review.closed"

        reason: str

        def apply(self, review: Review, record: Record) -> None:
            review.status, review.closed_reason = "closed", self.reason

    def status_key(self) -> str:
        return self.status

    def owner_key(self) -> str | None:
        return self.submitted_by

    def deadline_key(self) -> str | None:
        return self.due_at if self.status == "pending" else None

    def party_keys(self) -> list[str] | None:
        return ["platform"]

    @property
    def approvals(self) -> list[str]:
        """Name those who approved."""
        return [one.reviewer for one in self.decisions if one.decision == "approve"]

    @property
    def notes(self) -> list[str]:
        """List what reviewers noted."""
        return [one.notes for one in self.decisions if one.notes]

    def is_overdue(self, now: str) -> bool:
        """Say whether its time is over, whether that was written down yet or not."""
        return self.status == "expired" or (self.status == "pending" and now >= self.due_at)


# --------------------------------------------------------------------------- what is asked


class DecideReview(Command):
    """Approve a capsule or reject it; an override needs notes that say why."""

    capsule: str
    decision: Literal["approve", "reject"]
    notes: str = Field("", max_length=2_000)
    is_override: bool = False


class ReviewStep(Command):
    """Name a review whose status is to change."""

    capsule: str


@allow("reviewer", "operator")
def decide_review(case: Case, command: DecideReview) -> Review:
    """Cast a vote on a capsule, or override the others.

    Errors: already_reviewed, forbidden, review_closed, review_not_found, review_notes_missing, self_review,
            version_mismatch.
    """
    review = _visible(case, command.capsule)
    _check_person(case, review, command.is_override)
    case.match_version(review)
    _check_open(case, review, command)
    decided = Review.Decided(
        reviewer=case.caller.subject,
        decision=command.decision,
        notes=command.notes,
        is_override=command.is_override,
        status=_status(review, command, approvals_needed(case, review)),
    )
    return case.emit(review, decided)


@allow("service")
def expire_review(case: Case, command: ReviewStep) -> Review:
    """Write down that the time of a review has run out; asking again changes nothing.

    Errors: review_not_found.
    """
    review = case.get(Review, capsule_key(command.capsule), ReviewNotFoundError)
    due = review.status == "pending" and case.now >= review.due_at
    return case.emit(review, Review.Expired()) if due else review


def _check_person(case: Case, review: Review, is_override: bool) -> None:
    needed = "operator" if is_override else "reviewer"
    if needed not in case.caller.roles:
        raise ForbiddenError(f"this needs the role {needed}", roles=[needed])
    if case.caller.subject in (*review.owners, review.submitted_by):
        raise SelfReviewError(subject=case.caller.subject)


def _check_open(case: Case, review: Review, command: DecideReview) -> None:
    if command.is_override:
        if review.status == "closed":
            raise ReviewClosedError(status=review.status)
        if not command.notes.strip():
            raise ReviewNotesError
        if review.override and review.status == _status(review, command, review.required):
            raise AlreadyReviewedError(reviewer=review.decisions[-1].reviewer)
        return
    if any(one.reviewer == case.caller.subject for one in review.decisions):
        raise AlreadyReviewedError(reviewer=case.caller.subject)
    if review.is_overdue(case.now) or not (review.status == "pending" or _is_short(case, review)):
        raise ReviewClosedError(
            due_at=review.due_at, status="expired" if review.is_overdue(case.now) else review.status
        )


def _status(review: Review, command: DecideReview, needed: int) -> str:
    if command.decision == "reject":
        return "rejected"
    enough = command.is_override or len(review.approvals) + 1 >= needed
    # One that was approved does not wait again, for its time may be over; whether it suffices, `approved` says.
    return "approved" if enough or review.status == "approved" else "pending"


def _is_short(case: Case, review: Review) -> bool:
    """Say whether a review that was approved has fewer approvals than the policy asks for by now."""
    if review.status != "approved" or review.override:
        return False
    return len(review.approvals) < approvals_needed(case, review)


# --------------------------------------------------------------------------- what others ask


def open_review(
    case: Case, capsule: str, policy: PolicyVersion, owners: Sequence[str], tenant: str
) -> Review:
    """Ask that a capsule be reviewed; one that is pending or approved stays as it is.

    Errors: review_closed.
    """
    terms = policy.document
    opened = Review.Opened(
        capsule=capsule_address(capsule),
        submitted_by=case.caller.subject,
        owners=sorted(set(owners)),
        policy=policy.address,
        required=terms.approvals_required,
        due_at=moment_text(moment_of(case.now) + timedelta(seconds=terms.review_sla_s)),
    )
    review = case.find(Review, capsule_key(capsule))
    if review is None:
        return case.create(Review, capsule_key(capsule), opened, tenant=tenant)
    if review.is_overdue(case.now):
        if review.status == "pending":
            case.emit(review, Review.Expired())
        return case.emit(review, opened)
    if review.status in ("rejected", "closed"):
        raise ReviewClosedError("this very capsule was reviewed before", status=review.status)
    return review


def approvals_needed(case: Case, review: Review) -> int:
    """Say how many approvals a capsule needs now: those asked for when it was submitted, or more by a later policy.

    Errors: signer_policy_missing.
    """
    return max(review.required, policy_in_force(case).document.approvals_required)


def approved(case: Case, capsule: str) -> Review:
    """Give the review of a capsule that was approved, by as many as the policy in force asks for.

    Errors: not_approved.
    """
    review = case.find(Review, capsule_key(capsule))
    if review is None:
        raise NotApprovedError(status="none", approvals=0)
    if review.status != "approved":
        raise NotApprovedError(
            f"the review is {'expired' if review.is_overdue(case.now) else review.status}",
            status=review.status,
            approvals=len(review.approvals),
            required=review.required,
        )
    if _is_short(case, review):
        raise NotApprovedError(
            "the policy asks for more approvals by now",
            status=review.status,
            approvals=len(review.approvals),
            required=approvals_needed(case, review),
        )
    return review


def close_review(case: Case, capsule: str, reason: str) -> Review | None:
    """End the review of a capsule that is withdrawn or revoked; where there is none, nothing happens."""
    review = case.find(Review, capsule_key(capsule))
    if review is None or review.status == "closed":
        return review
    return case.emit(review, Review.Closed(reason=reason))


def _visible(case: Case, capsule: str) -> Review:
    """Read a review that the caller may see: its tenant's, or any of them from the platform."""
    review = case.get(Review, capsule_key(capsule), ReviewNotFoundError)
    if case.caller.tenant not in (review.tenant, "platform"):
        raise ReviewNotFoundError(id=review.id)
    return review
