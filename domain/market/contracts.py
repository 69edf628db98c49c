"""Contracts: money in escrow against training rounds, and what happens to it.

    created -> escrow_funded -> bound_to_round -> round_completed -> escrow_released
                     |               |   \\-> round_failed -> escrow_refunded
                     \\-> escrow_refunded (before anybody has worked)

A dispute stops release and refund until it is decided. The escrow is one hold on the owner's wallet, settled exactly
once: split over sellers and fee, or released back.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import msgspec
from pydantic import Field

from domain.billing.accounts import PLATFORM, Account, account_name, ensure
from domain.book import Entry, Expire, Hold, Void, settlement
from domain.errors import (
    AttestationInvalidError,
    ContractFundedError,
    ContractNotFoundError,
    ContractNotFundedError,
    ContractRefundedError,
    ContractReleasedError,
    DisputeOpenError,
    EscrowAmountError,
    ExpiresAtInvalidError,
    RefundNotAllowedError,
    RoundFailedError,
    RoundNotCompletedError,
)
from domain.fields import Command, Moment
from domain.ledger import Case, Redo, allow
from domain.log.records import Aggregate, Event, MoneyEvent, Record
from domain.market.matching import Diagnostics, MatchResult, SelectedOffer
from domain.market.offers import Seller, note_outcome
from domain.market.standing import ValidationScore
from domain.values import Money

PPM = 1_000_000
PER_OFFER_KEPT = 20


class Terms(msgspec.Struct, frozen=True):
    """What a match agreed on."""

    intent_id: str
    round_id: str
    model_owner_id: str
    selected: tuple[SelectedOffer, ...]
    total: Money
    score_total: str
    fee_ppm: int
    max_offers: int
    matched_at: str
    diagnostics: Diagnostics

    @classmethod
    def of(
        cls,
        intent_id: str,
        round_id: str,
        model_owner_id: str,
        result: MatchResult,
        *,
        fee_ppm: int,
        max_offers: int,
        matched_at: str,
    ) -> Terms:
        """Take the terms out of a match; of the offers passed over, the record keeps the first ones."""
        kept = result.diagnostics.per_offer[:PER_OFFER_KEPT]
        left_out = len(result.diagnostics.per_offer) - len(kept) + result.diagnostics.per_offer_truncated
        diagnostics = msgspec.structs.replace(
            result.diagnostics, per_offer=kept, per_offer_truncated=left_out
        )
        return cls(
            intent_id,
            round_id,
            model_owner_id,
            result.selected,
            result.total_price,
            result.score_total,
            fee_ppm,
            max_offers,
            matched_at,
            diagnostics,
        )


class Share(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one seller is paid, and the fee taken from it."""

    seller: str
    paid: Money
    fee: Money


class Contract(Aggregate):
    """An agreement between a model owner and the sellers of the offers it names, by version."""

    KIND = "contract"

    round_intent_id: str = ""
    round_id: str = ""
    model_owner_id: str = ""
    selected_offers: list[SelectedOffer] = msgspec.field(default_factory=list)
    offer_count: int = 0
    agreed_price_per_round_total: Money | None = None
    fee_ppm: int = 0
    score_total: str = "0"
    max_offers: int = 0
    matched_at: str = ""
    selection_diagnostics: dict[str, Any] = msgspec.field(default_factory=dict)
    proof_requirements: dict[str, bool] = msgspec.field(default_factory=dict)
    status: str = "created"
    escrow_status: str = "unfunded"
    payout_status: str = "pending"
    execution_round: str | None = None
    open_disputes: list[str] = msgspec.field(default_factory=list)
    payable_ppm: int = PPM
    payout_amount: Money | None = None
    escrow_expires_at: str | None = None
    funded_at: str | None = None
    released_at: str | None = None

    class Created(Event, frozen=True):
        """A match became a contract."""

        TOPIC = "contract.created"

        round_intent_id: str
        round_id: str
        model_owner_id: str
        selected_offers: list[SelectedOffer]
        offer_count: int
        agreed_price_per_round_total: Money
        fee_ppm: int
        score_total: str
        max_offers: int
        matched_at: str
        selection_diagnostics: dict[str, Any]
        proof_requirements: dict[str, bool]

        def apply(self, contract: Contract, record: Record) -> None:
            for name in self.__struct_fields__:
                setattr(contract, name, getattr(self, name))

    class EscrowFunded(MoneyEvent, frozen=True):
        """The owner's money for the agreed sum was put on hold."""

        TOPIC = "contract.escrow_funded"

        amount: Money
        expires_at: str | None

        def apply(self, contract: Contract, record: Record) -> None:
            contract.status = "funded"
            contract.escrow_status = "locked"
            contract.escrow_expires_at = self.expires_at
            contract.funded_at = record.at

    class BoundToRound(Event, frozen=True):
        """A training round took the contract on; no other can."""

        TOPIC = "contract.bound_to_round"

        execution_round: str

        def apply(self, contract: Contract, record: Record) -> None:
            contract.status = "bound"
            contract.execution_round = self.execution_round

    class RoundCompleted(Event, frozen=True):
        """The training round delivered."""

        TOPIC = "contract.round_completed"

        execution_round: str

        def apply(self, contract: Contract, record: Record) -> None:
            contract.status = "completed"

    class RoundFailed(Event, frozen=True):
        """The training round failed; the money can go back."""

        TOPIC = "contract.round_failed"

        execution_round: str
        reason: str

        def apply(self, contract: Contract, record: Record) -> None:
            contract.status = "round_failed"

    class DisputeOpened(Event, frozen=True):
        """A party disputes the contract; the money stays where it is."""

        TOPIC = "contract.dispute_opened"

        dispute_id: str

        def apply(self, contract: Contract, record: Record) -> None:
            contract.open_disputes = [*contract.open_disputes, self.dispute_id]

    class DisputeResolved(Event, frozen=True):
        """A dispute was decided; payable_ppm is the part of the sum the sellers may still be paid."""

        TOPIC = "contract.dispute_resolved"

        dispute_id: str
        outcome: str
        payable_ppm: int

        def apply(self, contract: Contract, record: Record) -> None:
            contract.open_disputes = [d for d in contract.open_disputes if d != self.dispute_id]
            contract.payable_ppm = self.payable_ppm

    class EscrowReleased(MoneyEvent, frozen=True):
        """The hold was paid out to sellers and fee."""

        TOPIC = "contract.escrow_released"

        payout_amount: Money
        shares: list[Share]

        def apply(self, contract: Contract, record: Record) -> None:
            contract.status = contract.escrow_status = contract.payout_status = "released"
            contract.payout_amount = self.payout_amount
            contract.released_at = record.at

    class EscrowRefunded(MoneyEvent, frozen=True):
        """The hold went back to the owner."""

        TOPIC = "contract.escrow_refunded"

        amount: Money
        reason: str

        def apply(self, contract: Contract, record: Record) -> None:
            contract.status = contract.escrow_status = contract.payout_status = "refunded"

    class EscrowExpired(MoneyEvent, frozen=True):
        """No round took the contract on in time; the hold went back to the owner."""

        TOPIC = "contract.escrow_expired"

        amount: Money

        def apply(self, contract: Contract, record: Record) -> None:
            contract.status = contract.escrow_status = contract.payout_status = "refunded"

    def status_key(self) -> str:
        return self.status

    def owner_key(self) -> str:
        return self.round_intent_id

    def deadline_key(self) -> str | None:
        return self.escrow_expires_at if self.status == "funded" and not self.open_disputes else None

    def is_escrow_over(self, now: str) -> bool:
        """Say whether the escrow's time has run out before any round took the contract on."""
        return (
            self.status == "funded" and self.escrow_expires_at is not None and self.escrow_expires_at <= now
        )

    def party_keys(self) -> list[str]:
        return sorted({chosen.seller for chosen in self.selected_offers})

    @property
    def sum(self) -> Money:
        """Give the agreed sum."""
        assert self.agreed_price_per_round_total is not None
        return self.agreed_price_per_round_total


def open_contract(case: Case, terms: Terms) -> Contract:
    """Write down what a match agreed on."""
    created = Contract.Created(
        round_intent_id=terms.intent_id,
        round_id=terms.round_id,
        model_owner_id=terms.model_owner_id,
        selected_offers=list(terms.selected),
        offer_count=len(terms.selected),
        agreed_price_per_round_total=terms.total,
        fee_ppm=terms.fee_ppm,
        score_total=terms.score_total,
        max_offers=terms.max_offers,
        matched_at=terms.matched_at,
        selection_diagnostics=msgspec.to_builtins(terms.diagnostics),
        proof_requirements={"require_attestation": True, "require_round_completion": True},
    )
    return case.create(Contract, case.new_id("contract"), created)


def get_contract(case: Case, contract_id: str) -> Contract:
    """Read a contract the caller is a party of.

    Errors: contract_not_found.
    """
    contract = case.get(Contract, contract_id, ContractNotFoundError)
    caller = case.caller
    if (
        caller.tenant != contract.tenant
        and caller.tenant not in contract.party_keys()
        and "operator" not in caller.roles
    ):
        raise ContractNotFoundError(id=contract_id)
    return contract


# --------------------------------------------------------------------------- commands


class FundContract(Command):
    """Put the agreed sum into escrow; amount, if given, must be that sum.

    The escrow goes back by itself if no round has taken the contract on by expires_at.
    """

    contract_id: str
    amount: Money | None = None
    expires_at: Moment | None = None


class ExpireEscrow(Command):
    """Give back an escrow whose time has run out."""

    contract_id: str


class ReleaseEscrow(Command):
    """Pay the sellers of a contract."""

    contract_id: str = Field(min_length=1)


class RefundEscrow(Command):
    """Give the escrow back to the owner."""

    contract_id: str
    reason: str = Field("", max_length=500)


@allow("owner", "operator")
def fund_contract(case: Case, command: FundContract) -> Contract:
    """Put the agreed sum of a contract on hold in the owner's wallet.

    Errors: account_not_found, contract_already_funded, contract_already_refunded, contract_not_found,
            dispute_open, escrow_amount_mismatch, insufficient_funds, invalid_expires_at, version_mismatch.
    """
    contract = case.get_own(Contract, command.contract_id, ContractNotFoundError)
    case.match_version(contract)
    check_unsettled(contract)
    if contract.escrow_status == "locked":
        raise ContractFundedError(contract_id=contract.id)
    if contract.open_disputes:
        raise DisputeOpenError(disputes=contract.open_disputes)
    if command.expires_at is not None and command.expires_at <= case.now:
        raise ExpiresAtInvalidError("expires_at must lie in the future", now=case.now)
    total = contract.sum
    if command.amount is not None and command.amount != total:
        raise EscrowAmountError(agreed=total.amount, offered=command.amount.amount, currency=total.currency)
    money: list[Entry] = []
    if total.nano:
        wallet = ensure(case, "wallet", contract.tenant, total.currency)
        money = [Hold(contract.id, wallet, total.amount, total.currency)]
    return case.emit(
        contract, Contract.EscrowFunded(amount=total, expires_at=command.expires_at, money=money)
    )


@allow("owner", "operator")
def release_escrow(
    case: Case, command: ReleaseEscrow, *, attested: bool | None, scores: dict[str, ValidationScore]
) -> Contract:
    """Pay the sellers: the round is completed, its attestation holds, no dispute is open, and the sum is in escrow.

    attested says whether the round's stored objects still lead to its recorded result, or None where nobody has
    looked since there was no result yet; scores are what each seller's update achieved on the held-out rows.
    Errors: attestation_invalid, contract_already_refunded, contract_already_released, contract_not_found,
            contract_not_funded, dispute_open, refund_not_allowed, round_failed, round_not_completed, version_mismatch.
    """
    contract = case.get_own(Contract, command.contract_id, ContractNotFoundError)
    case.match_version(contract)
    _check_releasable(contract)
    if attested is None:
        raise Redo("the round was completed after its objects were to be checked")
    if not attested:
        raise AttestationInvalidError(contract_id=contract.id, execution_round=contract.execution_round)
    shares = split(contract)
    total = contract.sum
    fee = sum(s.fee.nano for s in shares)
    money: list[Entry] = []
    if total.nano:
        # An offer opens this account when it is listed, but those of an earlier release opened a wallet only.
        case.look(Account, [account_name("earnings", s.seller, total.currency) for s in shares])
        pay = [(ensure(case, "earnings", s.seller, total.currency), s.paid) for s in shares if s.paid.nano]
        if fee:
            pay.append((ensure(case, "fees", PLATFORM, total.currency), Money.of(fee, total.currency)))
        wallet = account_name("wallet", contract.tenant, total.currency)
        paid = any(m.nano for _, m in pay)
        money = [settlement(contract.id, wallet, pay) if paid else Void(contract.id)]
    payout = Money.of(sum(s.paid.nano for s in shares), total.currency)
    case.emit(contract, Contract.EscrowReleased(payout_amount=payout, shares=shares, money=money))
    if contract.payable_ppm == PPM:
        for seller in contract.party_keys():
            earned = [scores[seller]] if seller in scores else []
            note_outcome(case, seller, Seller.Succeeded(contract_id=contract.id, scores=earned))
    return contract


@allow("owner", "operator")
def refund_escrow(case: Case, command: RefundEscrow) -> Contract:
    """Give the escrow back: before a round took the contract on, after one failed, or where a dispute says so.

    Errors: contract_already_refunded, contract_already_released, contract_not_found, contract_not_funded,
            dispute_open, refund_not_allowed, version_mismatch.
    """
    contract = case.get_own(Contract, command.contract_id, ContractNotFoundError)
    case.match_version(contract)
    check_unsettled(contract)
    if contract.escrow_status != "locked":
        raise ContractNotFundedError(contract_id=contract.id)
    if contract.open_disputes:
        raise DisputeOpenError(disputes=contract.open_disputes)
    if contract.status not in ("funded", "round_failed") and contract.payable_ppm:
        raise RefundNotAllowedError(status=contract.status)
    total = contract.sum
    money: list[Entry] = [Void(contract.id)] if total.nano else []
    return case.emit(contract, Contract.EscrowRefunded(amount=total, reason=command.reason, money=money))


@allow("service")
def expire_escrow(case: Case, command: ExpireEscrow) -> Contract:
    """Give an escrow back when its time has run out; asking again changes nothing.

    Errors: contract_not_found.
    """
    contract = case.get(Contract, command.contract_id, ContractNotFoundError)
    if contract.is_escrow_over(case.now) and not contract.open_disputes:
        total = contract.sum
        money: list[Entry] = [Expire(contract.id)] if total.nano else []
        case.emit(contract, Contract.EscrowExpired(amount=total, money=money))
    return contract


def check_unsettled(contract: Contract) -> None:
    """Refuse a contract whose money has gone one way or the other.

    Errors: contract_already_refunded, contract_already_released.
    """
    if contract.payout_status == "released":
        raise ContractReleasedError(contract_id=contract.id, payout_status=contract.payout_status)
    if contract.payout_status == "refunded":
        raise ContractRefundedError(contract_id=contract.id, payout_status=contract.payout_status)


def _check_releasable(contract: Contract) -> None:
    check_unsettled(contract)
    if contract.escrow_status != "locked":
        raise ContractNotFundedError(contract_id=contract.id)
    if contract.open_disputes:
        raise DisputeOpenError(disputes=contract.open_disputes)
    if contract.status == "round_failed":
        raise RoundFailedError(contract_id=contract.id, execution_round=contract.execution_round)
    if contract.status != "completed":
        raise RoundNotCompletedError(contract_id=contract.id, status=contract.status)
    if contract.payable_ppm == 0:
        raise RefundNotAllowedError("a dispute decided that this contract is refunded, not released")


def split(contract: Contract) -> list[Share]:
    """Split the payable part over the sellers, each less its fee; every rounding is half to even, per seller."""
    prices: dict[str, int] = {}
    for chosen in contract.selected_offers:
        prices[chosen.seller] = prices.get(chosen.seller, 0) + chosen.price_per_round.nano
    shares = []
    for seller, price in sorted(prices.items()):
        payable = round(Fraction(price * contract.payable_ppm, PPM))
        fee = round(Fraction(payable * contract.fee_ppm, PPM))
        currency = contract.sum.currency
        shares.append(Share(seller, Money.of(payable - fee, currency), Money.of(fee, currency)))
    return shares
