"""Votes and signatures on capsules, and what they mean for the capsule and its persona, in one commit.

Trust decides which vote and which signature counts; it knows nothing of personas. Here the persona's row follows, and a
published capsule loses its trust when a key is revoked and too few signatures are left, and gets it back with new ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from domain.errors import SelfReviewError, SignatureRefusedError
from domain.fields import Command
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record
from domain.persona.capsules import Capsule, CapsuleStep, get_capsule, persona_of
from domain.persona.imports import CapsuleImport
from domain.persona.listings import relist
from domain.persona.manifest import capsule_id
from domain.persona.personas import Persona, note_review
from domain.persona.transfers import CapsuleExport
from domain.trust.pinned import PUBLICATION
from domain.trust.reviews import DecideReview, Review, ReviewStep, decide_review, expire_review
from domain.trust.signatures import Signing, SubmitSignature, complete_signing, submit_signature, verification
from domain.trust.verification import SignedBy


@allow("reviewer", "operator")
def decide(case: Case, command: DecideReview) -> Review:
    """Cast a vote on a capsule, or override the others; the persona shows what the review came to.

    Errors: already_reviewed, forbidden, review_closed, review_not_found, review_notes_missing, self_review,
            version_mismatch.
    """
    capsule = case.find(Capsule, capsule_id(command.capsule))
    if capsule is not None and case.caller.subject in _makers(case, capsule):
        raise SelfReviewError(subject=case.caller.subject)
    return _followed(case, decide_review(case, command))


@allow("service")
def expire(case: Case, command: ReviewStep) -> Review:
    """Write down that the time of a review has run out; asking again changes nothing.

    Errors: review_not_found.
    """
    return _followed(case, expire_review(case, command))


@allow("signer")
def sign(case: Case, command: SubmitSignature) -> Signing:
    """Take in an envelope for a capsule; a published one that had lost its trust gets it back with enough of them.

    Errors: invalid_status_transition, malformed_envelope, payload_type_unknown, signature_refused,
            signature_repeated, signing_not_found.
    """
    signing: Signing = submit_signature(case, command)
    capsule = case.find(Capsule, signing.id)
    if capsule is not None:
        _check_strangers(signing.kept[-1].signed, _makers(case, capsule))
        settle_trust(case, capsule)
    return signing


def _makers(case: Case, capsule: Capsule) -> set[str]:
    """Name those who made a capsule or submitted it, whomever its manifest names as owners."""
    made: CapsuleExport | CapsuleImport | None = None
    if capsule.made_by:
        kind: type[CapsuleExport | CapsuleImport] = (
            CapsuleExport if capsule.origin == "export" else CapsuleImport
        )
        made = case.find(kind, capsule.made_by)
    return {*capsule.submitters, *([made.requested_by] if made is not None else [])}


def _check_strangers(signed: Sequence[SignedBy], makers: set[str]) -> None:
    """Refuse signatures of those who gain by them.

    Errors: signature_refused.
    """
    for one in signed:
        if one.subject in makers:
            raise SignatureRefusedError(
                "the signature does not count: self_signed",
                public_key=one.public_key,
                name=one.name,
                reason="self_signed",
            )


@allow("service")
def reverify_trust(case: Case, command: CapsuleStep) -> Capsule:
    """Hold a published capsule's signatures against the keys that are revoked by now.

    Errors: capsule_not_found, persona_not_found, signer_policy_missing.
    """
    capsule = get_capsule(case, command.capsule_id)
    settle_trust(case, capsule)
    return capsule


def settle_trust(case: Case, capsule: Capsule) -> None:
    """Write down where the trust in a published or suspended capsule changed.

    Errors: persona_not_found, signer_policy_missing.
    """
    if capsule.status not in ("published", "suspended"):
        return
    found = verification(case, capsule.address)
    signed = [signer.name for signer in found.signed]
    if found.verified and capsule.trust != "verified":
        complete_signing(case, capsule.address)
        case.emit(capsule, Capsule.TrustRestored(threshold=found.threshold, signed=signed))
    elif not found.verified and capsule.trust == "verified":
        lost = Capsule.TrustLost(threshold=found.threshold, signed=signed, missing=found.missing)
        case.emit(capsule, lost)
    else:
        return
    relist(case, persona_of(case, capsule), capsule)


def _followed(case: Case, review: Review) -> Review:
    capsule = case.find(Capsule, review.id)
    persona = case.find(Persona, capsule.persona_id) if capsule is not None else None
    if capsule is not None and persona is not None:
        note_review(case, persona, capsule.persona_version, review.status)
    return review


# --------------------------------------------------------------------------- looking at all of them


class TrustSweep(Aggregate):
    """How far the published capsules were held against the revocations of a signer policy. One per policy.

    Units: policy_version is the version of the policy's stream, so a revocation after it is one not looked at yet.
    """

    KIND = "trust_sweep"

    policy_version: int = 0
    capsules: int = 0
    lost: int = 0

    class Swept(Event, frozen=True):
        """Every published capsule was looked at, knowing the policy as it was at a version of its stream."""

        TOPIC = "trust_sweep.swept"

        policy_version: int
        capsules: int
        lost: int

        def apply(self, sweep: TrustSweep, record: Record) -> None:
            for name in self.__struct_fields__:
                setattr(sweep, name, getattr(self, name))


class NoteSweep(Command):
    """Tell that all published capsules were looked at."""

    policy: str = PUBLICATION
    policy_version: int
    capsules: int
    lost: int


@allow("service")
def note_sweep(case: Case, command: NoteSweep) -> TrustSweep:
    """Write down how far a sweep came; an older one than is known changes nothing."""
    swept = TrustSweep.Swept(
        policy_version=command.policy_version, capsules=command.capsules, lost=command.lost
    )
    known = case.find(TrustSweep, command.policy)
    if known is None:
        return case.create(TrustSweep, command.policy, swept, tenant="platform")
    return case.emit(known, swept) if command.policy_version > known.policy_version else known
