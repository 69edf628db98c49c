"""Disputes: a party stops the money of a contract until somebody who is not a party decides."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from domain.errors import (
    ContractNotFoundError,
    DisputeClosedError,
    DisputeNotFoundError,
    ForbiddenError,
    InvalidFieldError,
    StatusTransitionError,
)
from domain.fields import Command, JsonObject, Reason, Share, share_ppm
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record
from domain.market.contracts import PPM, Contract, check_unsettled, get_contract
from domain.market.offers import Seller, note_outcome

Outcome = Literal["release", "refund", "split"]


class Dispute(Aggregate):
    """A dispute over a contract: open, under review, then resolved with an outcome or rejected."""

    KIND = "dispute"

    contract_id: str = ""
    reporter: str = ""
    reason: str = ""
    evidence: dict[str, Any] = msgspec.field(default_factory=dict)
    status: str = "open"
    outcome: str | None = None
    resolution: str = ""
    parties: list[str] = msgspec.field(default_factory=list)

    class Opened(Event, frozen=True):
        """A party opened a dispute."""

        TOPIC = "dispute.opened"

        contract_id: str
        reporter: str
        reason: str
        evidence: dict[str, Any]
        parties: list[str]

        def apply(self, dispute: Dispute, record: Record) -> None:
            for name in self.__struct_fields__:
                setattr(dispute, name, getattr(self, name))

    class ReviewStarted(Event, frozen=True):
        """Somebody took the dispute up."""

        TOPIC = "dispute.review_started"

        def apply(self, dispute: Dispute, record: Record) -> None:
            dispute.status = "under_review"

    class Resolved(Event, frozen=True):
        """The dispute was upheld, with an outcome for the money."""

        TOPIC = "dispute.resolved"

        outcome: str
        resolution: str

        def apply(self, dispute: Dispute, record: Record) -> None:
            dispute.status = "resolved"
            dispute.outcome = self.outcome
            dispute.resolution = self.resolution

    class Rejected(Event, frozen=True):
        """The dispute was found groundless."""

        TOPIC = "dispute.rejected"

        resolution: str

        def apply(self, dispute: Dispute, record: Record) -> None:
            dispute.status = "rejected"
            dispute.resolution = self.resolution

    def status_key(self) -> str:
        return self.status

    def owner_key(self) -> str:
        return self.contract_id

    def party_keys(self) -> list[str]:
        return self.parties


class OpenDispute(Command):
    """Dispute a contract that is not settled yet."""

    contract_id: str
    reason: Reason
    evidence: JsonObject = {}


class DisputeStep(Command):
    """Name a dispute to be taken up."""

    dispute_id: str


class ResolveDispute(Command):
    """Uphold a dispute; a split names the part of the sum the sellers are still paid."""

    dispute_id: str
    outcome: Outcome
    sellers_share: Share | None = None
    resolution: Reason


class RejectDispute(Command):
    """Find a dispute groundless."""

    dispute_id: str
    resolution: Reason


@allow("owner", "provider", "operator")
def open_dispute(case: Case, command: OpenDispute) -> Dispute:
    """Open a dispute over a contract the caller is a party of.

    Errors: contract_already_refunded, contract_already_released, contract_not_found.
    """
    contract = get_contract(case, command.contract_id)
    check_unsettled(contract)
    opened = Dispute.Opened(
        contract_id=contract.id,
        reporter=case.caller.tenant,
        reason=command.reason,
        evidence=command.evidence,
        parties=sorted({contract.tenant, *contract.party_keys()}),
    )
    dispute = case.create(Dispute, case.new_id("dispute"), opened)
    case.emit(contract, Contract.DisputeOpened(dispute_id=dispute.id))
    return dispute


@allow("operator", "reviewer")
def review_dispute(case: Case, command: DisputeStep) -> Dispute:
    """Take a dispute up.

    Errors: dispute_not_found, forbidden, invalid_status_transition, version_mismatch.
    """
    dispute = _to_judge(case, command.dispute_id)
    if dispute.status != "open":
        raise StatusTransitionError(current_status=dispute.status, next_status="under_review")
    return case.emit(dispute, Dispute.ReviewStarted())


@allow("operator", "reviewer")
def resolve_dispute(case: Case, command: ResolveDispute) -> Dispute:
    """Uphold a dispute. Sellers that lose money by it carry a failure in their history.

    Errors: contract_not_found, dispute_closed, dispute_not_found, forbidden, invalid_field, version_mismatch.
    """
    dispute, contract = _open_one(case, command.dispute_id)
    if command.sellers_share is not None and command.outcome != "split":
        raise InvalidFieldError("only a split has a share of the sellers", field="sellers_share")
    share = share_ppm(command.sellers_share) if command.sellers_share is not None else PPM // 2
    before = contract.payable_ppm
    payable = {"release": before, "refund": 0, "split": min(before, share)}[command.outcome]
    case.emit(dispute, Dispute.Resolved(outcome=command.outcome, resolution=command.resolution))
    decided = Contract.DisputeResolved(dispute_id=dispute.id, outcome=command.outcome, payable_ppm=payable)
    case.emit(contract, decided)
    if payable < before:
        for seller in contract.party_keys():
            note_outcome(case, seller, Seller.Failed(contract_id=contract.id, reason="dispute_upheld"))
    return dispute


@allow("operator", "reviewer")
def reject_dispute(case: Case, command: RejectDispute) -> Dispute:
    """Find a dispute groundless; the contract goes on as before.

    Errors: contract_not_found, dispute_closed, dispute_not_found, forbidden, version_mismatch.
    """
    dispute, contract = _open_one(case, command.dispute_id)
    case.emit(dispute, Dispute.Rejected(resolution=command.resolution))
    decided = Contract.DisputeResolved(
        dispute_id=dispute.id, outcome="rejected", payable_ppm=contract.payable_ppm
    )
    case.emit(contract, decided)
    return dispute


def _to_judge(case: Case, dispute_id: str) -> Dispute:
    """Read a dispute for somebody who is to decide it, and so must not be one of its parties."""
    dispute = case.get(Dispute, dispute_id, DisputeNotFoundError)
    case.match_version(dispute)
    if case.caller.tenant in dispute.parties:
        raise ForbiddenError("a party of the contract does not decide over it", parties=dispute.parties)
    return dispute


def _open_one(case: Case, dispute_id: str) -> tuple[Dispute, Contract]:
    dispute = _to_judge(case, dispute_id)
    if dispute.status not in ("open", "under_review"):
        raise DisputeClosedError(status=dispute.status)
    return dispute, case.get(Contract, dispute.contract_id, ContractNotFoundError)
