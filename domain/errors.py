"""Every refusal the ledger can give, one class per stable code.

    LedgerError
    ├── InvalidError            400  a value of the caller's is malformed or out of range
    │   └── one class per field, with the code old clients know
    ├── UnauthorizedError       401
    ├── ForbiddenError          403
    ├── NotFoundError           404  unknown, or another tenant's
    ├── ConflictError           409  true now, may not be later
    ├── UnprocessableError      422  well formed, but it cannot be done
    └── UnavailableError        503  an outside system is away; the same request may be sent again

Three kinds of failure are never mixed: a refusal is a `LedgerError`; an outage is `UnavailableError`;
everything else is a bug and becomes a 500 with a trace id. Keyword facts go to the caller;
`internal` goes to the log only.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar

PROBLEM_BASE = "https://soma-ledger.dev/errors/"


class Retry(StrEnum):
    """What a client may do after a refusal."""

    NEVER = "never"
    AS_IS = "as-is"
    AFTER_READ = "after-read"


REGISTRY: dict[str, type[LedgerError]] = {}

# Codes that once had a class. They are never given a second meaning.
RETIRED: frozenset[str] = frozenset()


class LedgerError(Exception):
    """The ledger refused a request."""

    code: ClassVar[str] = ""
    status: ClassVar[int] = 500
    retry: ClassVar[Retry] = Retry.NEVER

    def __init_subclass__(cls, code: str = "", status: int | None = None, retry: Retry | None = None) -> None:
        super().__init_subclass__()
        if status is not None:
            cls.status = status
        if retry is not None:
            cls.retry = retry
        if not code:
            return
        if code in REGISTRY or code in RETIRED:
            raise TypeError(f"error code {code!r} is taken")
        if not cls.__doc__:
            raise TypeError(f"error class {cls.__name__} needs a docstring: it is the title")
        cls.code = code
        REGISTRY[code] = cls

    def __init__(self, message: str = "", *, internal: str = "", **facts: Any) -> None:
        self.message = message or self.title()
        self.facts = facts
        self.internal = internal
        super().__init__(self.message)

    @classmethod
    def title(cls) -> str:
        """Give the one-line meaning of the code."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    def problem(self) -> dict[str, Any]:
        """Render RFC 9457 members; `error`, `message` and `details` serve clients of the older API.

        Source: RFC 9457, section 3.
        """
        return {
            "type": PROBLEM_BASE + self.code,
            "title": self.title(),
            "status": self.status,
            "detail": self.message,
            "code": self.code,
            "error": self.code,
            "message": self.message,
            "retry": self.retry.value,
            "details": self.facts,
        }

    @staticmethod
    def from_problem(problem: dict[str, Any]) -> LedgerError:
        """Rebuild a refusal from its remembered rendering, so that a repeat hears the same words."""
        error = REGISTRY[problem["code"]](problem["message"])
        error.facts = problem["details"]
        return error


# --------------------------------------------------------------------------- the six families


class InvalidError(LedgerError, code="invalid_request", status=400):
    """The request is malformed."""


class UnauthorizedError(LedgerError, code="unauthorized", status=401):
    """A valid bearer token is required."""


class ForbiddenError(LedgerError, code="forbidden", status=403):
    """The caller's roles do not allow this."""


class NotFoundError(LedgerError, code="not_found", status=404):
    """There is nothing here."""


class ConflictError(LedgerError, code="conflict", status=409, retry=Retry.AFTER_READ):
    """Somebody else changed it first."""


class UnprocessableError(LedgerError, code="unprocessable", status=422):
    """The request is understood but cannot be done."""


class UnavailableError(LedgerError, code="unavailable", status=503, retry=Retry.AS_IS):
    """A part of the system is away for a moment."""


# --------------------------------------------------------------------------- transport


class MethodNotAllowedError(LedgerError, code="method_not_allowed", status=405):
    """The resource does not answer to this method."""


class BodyTooLargeError(LedgerError, code="body_too_large", status=413):
    """The request body is larger than the service accepts."""


class UnsupportedMediaTypeError(LedgerError, code="unsupported_media_type", status=415):
    """The request body must be JSON."""


class HttpsRequiredError(LedgerError, code="https_required", status=426):
    """This service answers over HTTPS only."""


class RateLimitedError(LedgerError, code="rate_limited", status=429, retry=Retry.AS_IS):
    """Too many requests from this caller."""


class OverloadedError(UnavailableError, code="overloaded", status=503):
    """The commit queue is full; try again after the stated delay."""


class ShuttingDownError(UnavailableError, code="shutting_down", status=503):
    """The service is stopping and takes no new commands."""


class MigrationAlteredError(UnavailableError, code="migration_altered", status=503, retry=Retry.NEVER):
    """A migration was edited after it had been applied."""


class MigrationGapError(UnavailableError, code="migration_gap", status=503, retry=Retry.NEVER):
    """The numbers of the migrations do not run from 1 without a gap."""


class MigrationUnknownError(UnavailableError, code="migration_unknown", status=503, retry=Retry.NEVER):
    """The database has a migration this release does not know; it was written by a newer one."""


class MigrationFailedError(UnavailableError, code="migration_failed", status=503, retry=Retry.NEVER):
    """A migration was refused by the database, or its check returned a row; nothing of it was kept."""


class DatabaseStartError(UnavailableError, code="database_start_failed", status=503, retry=Retry.NEVER):
    """The embedded PostgreSQL did not start."""


# --------------------------------------------------------------------------- requests in general


class UnknownFieldError(InvalidError, code="unknown_field"):
    """The body has a field this command does not know."""


class MissingFieldError(InvalidError, code="missing_field"):
    """A required field is absent."""


class InvalidFieldError(InvalidError, code="invalid_field"):
    """A field has a value that is not allowed."""


class InvalidCursorError(InvalidError, code="invalid_cursor"):
    """The page cursor was not issued by this service."""


class InvalidIdempotencyKeyError(InvalidError, code="invalid_idempotency_key"):
    """An idempotency key is 1 to 255 visible ASCII characters."""


class IdempotencyKeyReusedError(UnprocessableError, code="idempotency_key_reused"):
    """The idempotency key was used before with another body."""


class VersionMismatchError(LedgerError, code="version_mismatch", status=412, retry=Retry.AFTER_READ):
    """The resource is no longer at the version named by If-Match."""


class InvalidAsOfError(InvalidError, code="invalid_as_of"):
    """`as_of` is a position in the log or an RFC 3339 time with an offset."""


# --------------------------------------------------------------------------- canonical records


class NotCanonicalError(InvalidError, code="not_canonical"):
    """The value has no canonical form: floats, NaN, lone surrogates and non-string keys are refused."""


class RecordTooLargeError(UnprocessableError, code="record_too_large"):
    """A record may hold 65,535 bytes at most."""


class AmountInvalidError(InvalidError, code="invalid_amount"):
    """An amount is a decimal string with at most nine decimals, within the allowed range."""


class CurrencyUnknownError(InvalidError, code="invalid_currency"):
    """The currency is not an ISO 4217 code known to this ledger."""


# --------------------------------------------------------------------------- the log and its proofs


class PositionNotFoundError(NotFoundError, code="position_not_found"):
    """The log does not reach this position."""


class AddressNotFoundError(NotFoundError, code="address_not_found"):
    """No record has this address."""


class AddressInvalidError(InvalidError, code="invalid_address"):
    """An address is `sha3-512:` and 128 lower-case hex digits."""


class StreamNotFoundError(NotFoundError, code="stream_not_found"):
    """No record belongs to this stream."""


class ObjectNotFoundError(NotFoundError, code="object_not_found"):
    """The object store holds nothing under this address."""


class TileNotFoundError(NotFoundError, code="tile_not_found"):
    """The log has no such tile."""


class TreeSizeInvalidError(InvalidError, code="invalid_tree_size"):
    """The tree size is beyond the log, or the first size exceeds the second."""


class CheckpointNotFoundError(NotFoundError, code="checkpoint_not_found"):
    """No checkpoint was signed at this size."""


class NoteMalformedError(InvalidError, code="malformed_note"):
    """The text is not a signed note."""


class NoteUnverifiedError(UnprocessableError, code="unverified_note"):
    """No known key signed the note, or the signature of a known key is wrong."""


class KeyMalformedError(InvalidError, code="malformed_key"):
    """The text is not a note key of a kind this service knows."""


class ProofMalformedError(InvalidError, code="malformed_proof"):
    """The text is not a transparency log proof."""


class PolicyMalformedError(InvalidError, code="malformed_policy"):
    """The text is not a transparency log policy."""


class QuorumMissingError(UnprocessableError, code="quorum_missing"):
    """The checkpoint lacks cosignatures the policy asks for."""


class BundleMalformedError(InvalidError, code="malformed_bundle"):
    """The bytes are not a bundle of records."""


class CosignatureInvalidError(InvalidError, code="invalid_cosignature"):
    """The cosignature does not verify for a witness this log knows."""


class ProofInvalidError(UnprocessableError, code="invalid_proof"):
    """The proof does not lead to the stated root."""


class WitnessExistsError(ConflictError, code="witness_exists", retry=Retry.NEVER):
    """A witness of this name, or with this key, is known under other words."""


class ExportExistsError(ConflictError, code="export_exists", retry=Retry.NEVER):
    """There is something under the name of the export already; it is never written over."""


class ExportFailedError(UnavailableError, code="export_failed", status=503, retry=Retry.AS_IS):
    """The log could not be read to its end, or the export not be written; nothing was left under its name."""


class LogIdentityError(UnavailableError, code="log_identity_mismatch", status=503, retry=Retry.NEVER):
    """The database belongs to a log with another origin or key."""


class LogDamagedError(UnavailableError, code="log_damaged", status=503, retry=Retry.NEVER):
    """Stored bytes do not hash to what the log committed to."""


# --------------------------------------------------------------------------- money


class AccountNotFoundError(NotFoundError, code="account_not_found"):
    """There is no such account."""


class AccountExistsError(ConflictError, code="account_exists"):
    """The account is open already."""


class InsufficientFundsError(ConflictError, code="insufficient_funds"):
    """The account does not have that much available."""


class CurrencyMismatchError(UnprocessableError, code="currency_mismatch"):
    """Amounts of different currencies cannot be combined."""


class UnbalancedError(UnprocessableError, code="unbalanced_postings"):
    """The postings of a transfer must sum to zero per currency."""


class HoldNotFoundError(NotFoundError, code="hold_not_found"):
    """There is no such hold."""


class HoldExistsError(ConflictError, code="hold_exists"):
    """A hold with this id exists already."""


class HoldSettledError(ConflictError, code="hold_already_settled", retry=Retry.NEVER):
    """The hold was posted, voided or expired before."""


class HoldExceededError(UnprocessableError, code="hold_exceeded"):
    """The legs of a settlement are larger than the hold."""


class TransferNotFoundError(NotFoundError, code="transfer_not_found"):
    """There is no such transfer."""


class SameAccountError(UnprocessableError, code="same_account"):
    """A transfer needs two different accounts."""


# --------------------------------------------------------------------------- market: field codes of the older API


class SellerRequiredError(InvalidError, code="seller_node_id_required"):
    """The offer needs a seller."""


class DatasetFingerprintRequiredError(InvalidError, code="dataset_fingerprint_required"):
    """The offer needs the fingerprint of its dataset."""


class PriceInvalidError(InvalidError, code="invalid_price_per_round"):
    """The price per round is a non-negative amount of money."""


class MinRoundsInvalidError(InvalidError, code="invalid_min_rounds"):
    """`min_rounds` is an integer from 1 to 10,000."""


class SampleCountInvalidError(InvalidError, code="invalid_sample_count"):
    """`sample_count` is an integer from 0 to 10^12."""


class QualityScoreInvalidError(InvalidError, code="invalid_quality_score"):
    """A quality score is a decimal from 0 to 1, written as a string."""


class ExpiresAtInvalidError(InvalidError, code="invalid_expires_at"):
    """`expires_at` is a future RFC 3339 time with an offset, or null."""


class AllowedTasksInvalidError(InvalidError, code="invalid_allowed_tasks"):
    """`allowed_tasks` is a list of at most 32 distinct task names."""


class ModelOwnerRequiredError(InvalidError, code="model_owner_id_required"):
    """The intent needs a model owner."""


class TaskTypeRequiredError(InvalidError, code="task_type_required"):
    """The intent needs a task type."""


class BudgetInvalidError(InvalidError, code="invalid_budget_total"):
    """The budget is a non-negative amount of money, or null for no limit."""


class MinQualityInvalidError(InvalidError, code="invalid_min_quality_score"):
    """The least quality is a decimal from 0 to 1, written as a string."""


class RequiredModalitiesInvalidError(InvalidError, code="invalid_required_modalities"):
    """`required_modalities` is a list of at most 32 distinct modality names."""


class DeadlineInvalidError(InvalidError, code="invalid_deadline_ts"):
    """The deadline is a future RFC 3339 time with an offset."""


class StatusInvalidError(InvalidError, code="invalid_status"):
    """There is no such status."""


class IntentIdRequiredError(InvalidError, code="round_intent_id_required"):
    """The request must name an intent."""


class MaxOffersInvalidError(InvalidError, code="invalid_max_offers"):
    """`max_offers` is an integer from 1 to 25."""


class ContractIdRequiredError(InvalidError, code="contract_id_required"):
    """The request must name a contract."""


class IntentRequiredError(InvalidError, code="intent_required"):
    """A preview needs an intent, by id or in full."""


class DisputeReasonRequiredError(InvalidError, code="dispute_reason_required"):
    """A dispute needs a reason."""


class DisputeStatusInvalidError(InvalidError, code="invalid_dispute_status"):
    """There is no such dispute status."""


class DatasetInvalidError(InvalidError, code="invalid_dataset"):
    """The dataset is not a numeric CSV with a header and a binary target."""


# --------------------------------------------------------------------------- market: refusals


class OfferNotFoundError(NotFoundError, code="offer_not_found"):
    """There is no such offer."""


class IntentNotFoundError(NotFoundError, code="round_intent_not_found"):
    """There is no such intent."""


class ContractNotFoundError(NotFoundError, code="contract_not_found"):
    """There is no such contract."""


class DisputeNotFoundError(NotFoundError, code="dispute_not_found"):
    """There is no such dispute."""


class RoundNotFoundError(NotFoundError, code="round_not_found"):
    """There is no such training round."""


class DatasetNotFoundError(NotFoundError, code="dataset_not_found"):
    """No dataset with this fingerprint was uploaded."""


class IntentNotOpenError(ConflictError, code="round_intent_not_open"):
    """The intent is not open any more."""


class StatusTransitionError(ConflictError, code="invalid_status_transition"):
    """The status cannot change that way."""


class OfferExpiredError(ConflictError, code="offer_expired", retry=Retry.NEVER):
    """The offer has expired."""


class IntentExpiredError(ConflictError, code="intent_expired", retry=Retry.NEVER):
    """The deadline of the intent has passed."""


class ContractReleasedError(ConflictError, code="contract_already_released", retry=Retry.NEVER):
    """The escrow of this contract was released before."""


class ContractRefundedError(ConflictError, code="contract_already_refunded", retry=Retry.NEVER):
    """The escrow of this contract was refunded before."""


class ContractFundedError(ConflictError, code="contract_already_funded", retry=Retry.NEVER):
    """The escrow of this contract was funded before."""


class ContractNotFundedError(ConflictError, code="contract_not_funded"):
    """The contract holds no money yet."""


class RoundNotCompletedError(ConflictError, code="round_not_completed"):
    """The training round of this contract is not completed."""


class RoundBoundError(ConflictError, code="round_already_bound", retry=Retry.NEVER):
    """The contract is bound to a round already."""


class RoundFailedError(ConflictError, code="round_failed", retry=Retry.NEVER):
    """The training round failed; the contract can be refunded."""


class UpdateRejectedError(UnprocessableError, code="update_rejected"):
    """The update of a seller cannot be averaged."""


class RoundObjectInvalidError(UnprocessableError, code="invalid_round_object"):
    """The stored update or model is damaged, or not in its canonical form."""


class AttestationInvalidError(ConflictError, code="attestation_invalid"):
    """The attestation of the round does not match what the sellers delivered."""


class DisputeOpenError(ConflictError, code="dispute_open"):
    """The contract has an open dispute."""


class DisputeClosedError(ConflictError, code="dispute_closed", retry=Retry.NEVER):
    """The dispute is decided already."""


class EscrowAmountError(ConflictError, code="escrow_amount_mismatch"):
    """The money held is not the agreed sum."""


class RefundNotAllowedError(ConflictError, code="refund_not_allowed"):
    """The state of the contract does not allow its money to go this way."""


class SelfDealingError(UnprocessableError, code="self_dealing"):
    """A tenant cannot trade with itself."""


class NoCompatibleOffersError(UnprocessableError, code="no_compatible_offers_found"):
    """No set of offers satisfies the intent."""


class TrainingModeOnError(ConflictError, code="training_mode_enabled"):
    """Training mode is on for this tenant."""


class TrainingModeOffError(ConflictError, code="training_mode_disabled"):
    """Training mode is off for this tenant."""


class StaleFenceError(ConflictError, code="stale_fence"):
    """The fence is older than the current training lock."""


# --------------------------------------------------------------------------- the installation


class SettingsInvalidError(InvalidError, code="invalid_settings"):
    """A setting has a value that is not allowed."""


class ListenError(UnavailableError, code="cannot_listen", status=503, retry=Retry.NEVER):
    """The address to listen on is taken or not ours."""


class KeyFileError(UnavailableError, code="key_file_unusable", status=503, retry=Retry.NEVER):
    """A private key file cannot be used."""
