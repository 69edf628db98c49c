"""Refusals of the market: one code per field, then one per rule."""

from __future__ import annotations

from domain.errors.families import ConflictError, InvalidError, NotFoundError, Retry, UnprocessableError

# --------------------------------------------------------------------------- field codes of the older API


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


# --------------------------------------------------------------------------- refusals


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


class EscrowExpiredError(ConflictError, code="escrow_expired", retry=Retry.NEVER):
    """The time of the escrow ran out before a round took the contract on."""


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
