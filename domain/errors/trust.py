"""Refusals about signatures, approvals, policies, the constitution and scans."""

from __future__ import annotations

from domain.errors.families import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    Retry,
    UnavailableError,
    UnprocessableError,
)


class EnvelopeMalformedError(InvalidError, code="malformed_envelope"):
    """This is not a DSSE envelope."""


class PayloadTypeError(InvalidError, code="payload_type_unknown"):
    """The envelope's payload type is not the one that is signed here."""


class PublicKeyError(InvalidError, code="public_key_invalid"):
    """A public key is 32 bytes of Ed25519 in base64, canonical and of large order."""


class StatementUnexpectedError(InvalidError, code="statement_unexpected"):
    """What is asked to be signed is not what the signer wants to sign."""


class SignatureRefusedError(UnprocessableError, code="signature_refused"):
    """The signature does not count; `reason` says why."""


class SignatureRepeatedError(ConflictError, code="signature_repeated", retry=Retry.NEVER):
    """This key has signed already."""


class SigningNotFoundError(NotFoundError, code="signing_not_found"):
    """Nobody has asked that this be signed."""


class ThresholdNotMetError(UnprocessableError, code="threshold_not_met"):
    """Too few of the pinned keys have signed; `missing` names whose are missing."""


class SignerPolicyNotFoundError(NotFoundError, code="signer_policy_not_found"):
    """There is no such signer policy."""


class SignerPolicyInvalidError(UnprocessableError, code="signer_policy_invalid"):
    """The signer policy contradicts itself; `why` says how."""


class SignerPolicyMissingError(UnprocessableError, code="signer_policy_missing"):
    """No signer policy was adopted yet; nothing can be signed or published before one is."""


class SignerKeyNotFoundError(NotFoundError, code="signer_key_not_found"):
    """The policy pins no such key."""


class ConstitutionNotFoundError(NotFoundError, code="constitution_not_found"):
    """There is no such constitution, or no such version of it."""


class ConstitutionInvalidError(UnprocessableError, code="constitution_invalid"):
    """This cannot be the next version of the constitution."""


class ConstitutionMissingError(UnprocessableError, code="constitution_missing"):
    """No constitution was adopted yet; nothing can be exported, imported or published before one is."""


class ConstitutionMismatchError(UnprocessableError, code="constitution_mismatch"):
    """The capsule was made under another constitution than the one in force."""


class ReviewNotFoundError(NotFoundError, code="review_not_found"):
    """There is no review of this."""


class ReviewClosedError(ConflictError, code="review_closed"):
    """The review is not pending any more."""


class ReviewNotesError(UnprocessableError, code="review_notes_missing"):
    """An override needs notes that say why."""


class SelfReviewError(ForbiddenError, code="self_review"):
    """Nobody reviews or signs what they own or have submitted."""


class AlreadyReviewedError(ConflictError, code="already_reviewed", retry=Retry.NEVER):
    """One person has one vote, and this one was cast."""


class NotApprovedError(UnprocessableError, code="not_approved"):
    """The approvals that are needed are not there."""


class PolicyDeniedError(UnprocessableError, code="policy_denied"):
    """The policy does not allow this; `reasons` says why."""


class PolicyUnavailableError(UnavailableError, code="policy_unavailable"):
    """The policy cannot be asked, and without its answer nothing is allowed."""


class PolicyNotFoundError(NotFoundError, code="policy_not_found"):
    """There is no policy of this name."""


class ScanBlockedError(UnprocessableError, code="scan_blocked"):
    """The scan found what must not be published; `findings` says where."""
