"""Training rounds: the work a contract pays for. A round binds one contract, and a contract one round."""

from __future__ import annotations

from typing import Literal

import msgspec
from pydantic import Field

from domain.errors import (
    ContractNotFoundError,
    ContractNotFundedError,
    DisputeOpenError,
    EscrowExpiredError,
    MinRoundsInvalidError,
    RefundNotAllowedError,
    RoundBoundError,
    RoundNotFoundError,
    StaleFenceError,
    StatusTransitionError,
)
from domain.fields import Command, Id
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record
from domain.market.contracts import Contract, check_unsettled
from domain.market.models import RoundOptions
from domain.market.offers import Offer, Seller, note_outcome
from domain.market.standing import PPM, ValidationScore
from domain.trust.training import check_fence


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One seller's part of a round: the dataset of an offer, at the version the contract names."""

    offer_id: str
    version: int
    seller: str
    dataset_fingerprint: str


class AcceptedUpdate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one seller's training came to; the update itself is the object at this address."""

    offer_id: str
    seller: str
    update_address: str
    row_count: int
    norm: str
    loss_before: str
    loss_after: str
    validation_rows: int
    accuracy: str | None


class Measures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model measured on the held-out rows of all sellers."""

    loss: str
    accuracy: str | None
    auc: str | None
    train_rows: int
    validation_rows: int


class Round(Aggregate):
    """A round of federated averaging: started, then completed or failed.

    fence grows whenever the work is taken up again; a runner that was overtaken cannot finish it.
    """

    KIND = "round"

    contract_id: str = ""
    tasks: list[Task] = msgspec.field(default_factory=list)
    options: RoundOptions = RoundOptions()
    status: str = "created"
    fence: int = 0
    updates: list[AcceptedUpdate] = msgspec.field(default_factory=list)
    before: Measures | None = None
    after: Measures | None = None
    history: list[Measures] = msgspec.field(default_factory=list)
    model_address: str | None = None
    broadcast_address: str | None = None
    failure: str | None = None
    started_at: str | None = None
    finished_at: str | None = None

    class Created(Event, frozen=True):
        """A round was set up for a contract."""

        TOPIC = "round.created"

        contract_id: str
        tasks: list[Task]
        options: RoundOptions

        def apply(self, training: Round, record: Record) -> None:
            training.contract_id = self.contract_id
            training.tasks = self.tasks
            training.options = self.options

    class Started(Event, frozen=True):
        """Training began, or was taken up again."""

        TOPIC = "round.started"

        fence: int

        def apply(self, training: Round, record: Record) -> None:
            training.status = "started"
            training.fence = self.fence
            training.started_at = training.started_at or record.at

    class UpdateAccepted(Event, frozen=True):
        """A seller's update passed all checks."""

        TOPIC = "round.update_accepted"

        update: AcceptedUpdate

        def apply(self, training: Round, record: Record) -> None:
            training.updates = [*training.updates, self.update]

    class Completed(Event, frozen=True):
        """The updates were averaged; the result is the object at model_address."""

        TOPIC = "round.completed"

        model_address: str
        broadcast_address: str
        before: Measures
        after: Measures
        history: list[Measures]

        def apply(self, training: Round, record: Record) -> None:
            training.status = "completed"
            for name in self.__struct_fields__:
                setattr(training, name, getattr(self, name))
            training.finished_at = record.at

    class Failed(Event, frozen=True):
        """The round ended without a result."""

        TOPIC = "round.failed"

        reason: str
        detail: str
        offer_id: str | None

        def apply(self, training: Round, record: Record) -> None:
            training.status = "failed"
            training.failure = self.reason
            training.finished_at = record.at

    def status_key(self) -> str:
        return self.status

    def owner_key(self) -> str:
        return self.contract_id

    def party_keys(self) -> list[str]:
        return sorted({task.seller for task in self.tasks})

    def scores(self) -> dict[str, ValidationScore]:
        """Give what each seller's update achieved; of several offers of one seller the weakest counts."""
        scores: dict[str, ValidationScore] = {}
        for update in self.updates:
            if update.accuracy is None or not update.validation_rows:
                continue
            whole, _, part = update.accuracy.partition(".")
            score = ValidationScore(int(whole) * PPM + int(part.ljust(6, "0") or 0), update.validation_rows)
            known = scores.get(update.seller)
            if known is None or score.score_ppm < known.score_ppm:
                scores[update.seller] = score
        return scores


# --------------------------------------------------------------------------- commands


class StartRound(Command):
    """Train under a funded contract.

    fence is needed while the tenant is in training mode; communication_rounds must reach every offer's min_rounds.
    """

    contract_id: Id
    fence: int | None = Field(None, ge=1)
    communication_rounds: int = Field(20, ge=1, le=1_000)
    local_steps: int = Field(10, ge=1, le=1_000)
    learning_rate: str = Field("0.1", pattern=r"^(?:0\.[0-9]{1,6}|[1-9](?:\.[0-9]{1,6})?)$")
    l2: str = Field("0.01", pattern=r"^(?:0(?:\.[0-9]{1,6})?|[1-9](?:\.[0-9]{1,6})?)$")
    rule: Literal["mean", "median", "trimmed_mean"] = "mean"


class ResumeRound(Command):
    """Take up a round whose runner is gone."""

    round_id: str


class CompleteRound(Command):
    """Deliver the result of a round; the structures are those of the events."""

    round_id: str
    fence: int
    updates: list[dict[str, object]]
    model_address: str
    broadcast_address: str
    before: dict[str, object]
    after: dict[str, object]
    history: list[dict[str, object]]


class FailRound(Command):
    """Give a round up, naming the offer at fault where there is one."""

    round_id: str
    fence: int
    reason: str
    detail: str
    offer_id: str | None = None


@allow("owner", "operator")
def start_round(case: Case, command: StartRound) -> Round:
    """Bind a funded contract to a new round and start it.

    Errors: contract_already_refunded, contract_already_released, contract_not_found, contract_not_funded, dispute_open,
            escrow_expired, invalid_min_rounds, refund_not_allowed, round_already_bound, stale_fence,
            training_mode_disabled.
    """
    contract = case.get_own(Contract, command.contract_id, ContractNotFoundError)
    case.match_version(contract)
    check_unsettled(contract)
    if contract.execution_round is not None:
        raise RoundBoundError(contract_id=contract.id, execution_round=contract.execution_round)
    if contract.escrow_status != "locked":
        raise ContractNotFundedError(contract_id=contract.id)
    if contract.is_escrow_over(case.now):
        raise EscrowExpiredError(expires_at=contract.escrow_expires_at)
    if contract.open_disputes:
        raise DisputeOpenError(disputes=contract.open_disputes)
    if contract.payable_ppm == 0:
        raise RefundNotAllowedError("a dispute decided that nobody is paid under this contract")
    least = max(chosen.min_rounds for chosen in contract.selected_offers)
    if command.communication_rounds < least:
        raise MinRoundsInvalidError(
            f"the offers ask for at least {least} communication rounds", min_rounds=least
        )
    check_fence(case, contract.tenant, command.fence)
    options = RoundOptions(
        communication_rounds=command.communication_rounds,
        local_steps=command.local_steps,
        learning_rate=command.learning_rate,
        l2=command.l2,
        rule=command.rule,
    )
    created = Round.Created(contract_id=contract.id, tasks=_tasks(case, contract), options=options)
    training = case.create(Round, case.new_id("round"), created, tenant=contract.tenant)
    case.emit(training, Round.Started(fence=1))
    case.emit(contract, Contract.BoundToRound(execution_round=training.id))
    return training


def _tasks(case: Case, contract: Contract) -> list[Task]:
    return [
        Task(
            chosen.offer_id,
            chosen.version,
            chosen.seller,
            case.get(Offer, chosen.offer_id).dataset_fingerprint,
        )
        for chosen in contract.selected_offers
    ]


@allow("service")
def resume_round(case: Case, command: ResumeRound) -> Round:
    """Take a started round up again under a new fence; a finished one is left as it is.

    Errors: round_not_found.
    """
    training = case.get(Round, command.round_id, RoundNotFoundError)
    if training.status == "started":
        case.emit(training, Round.Started(fence=training.fence + 1))
    return training


@allow("service")
def complete_round(case: Case, command: CompleteRound) -> Round:
    """Record the result of a round.

    Errors: contract_not_found, invalid_status_transition, round_not_found, stale_fence.
    """
    training = _running(case, command.round_id, command.fence, "completed")
    for update in msgspec.convert(command.updates, list[AcceptedUpdate]):
        case.emit(training, Round.UpdateAccepted(update=update))
    completed = Round.Completed(
        model_address=command.model_address,
        broadcast_address=command.broadcast_address,
        before=msgspec.convert(command.before, Measures),
        after=msgspec.convert(command.after, Measures),
        history=msgspec.convert(command.history, list[Measures]),
    )
    case.emit(training, completed)
    contract = case.get(Contract, training.contract_id, ContractNotFoundError)
    case.emit(contract, Contract.RoundCompleted(execution_round=training.id))
    return training


@allow("service")
def fail_round(case: Case, command: FailRound) -> Round:
    """Record that a round failed; a seller at fault carries it in its history.

    Errors: contract_not_found, invalid_status_transition, round_not_found, stale_fence.
    """
    training = _running(case, command.round_id, command.fence, "failed")
    failed = Round.Failed(reason=command.reason, detail=command.detail[:1_000], offer_id=command.offer_id)
    case.emit(training, failed)
    contract = case.get(Contract, training.contract_id, ContractNotFoundError)
    case.emit(contract, Contract.RoundFailed(execution_round=training.id, reason=command.reason))
    for task in training.tasks:
        if task.offer_id == command.offer_id:
            note_outcome(case, task.seller, Seller.Failed(contract_id=contract.id, reason=command.reason))
    return training


def _running(case: Case, round_id: str, fence: int, wish: str) -> Round:
    training = case.get(Round, round_id, RoundNotFoundError)
    if training.status != "started":
        raise StatusTransitionError(current_status=training.status, next_status=wish)
    if training.fence != fence:
        raise StaleFenceError(fence=training.fence, yours=fence)
    return training
