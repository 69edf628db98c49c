"""Intents: what model owners look for; and the match that turns one into a contract."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal

import msgspec
from pydantic import Field

from domain.errors import (
    CurrencyMismatchError,
    CurrencyUnknownError,
    DeadlineInvalidError,
    IntentExpiredError,
    IntentNotFoundError,
    IntentNotOpenError,
    StatusTransitionError,
)
from domain.fields import Command, Kept, Label, Labels, Moment, Share, share_ppm
from domain.ledger import Case, Redo, allow
from domain.log.records import Aggregate, Event, Record
from domain.market.candidates import Candidate, MatchPolicy, Want
from domain.market.contracts import Contract, Terms, open_contract
from domain.market.matching import MatchResult, match
from domain.market.offers import Offer, Seller, declared_ppm
from domain.market.standing import quality_ppm
from domain.values import CURRENCY_DIGITS, Money, moment_of, moment_text

DEADLINE_S = 3_600


class Intent(Aggregate):
    """A wish for training data. It is open, matched, cancelled, closed or expired; only an open one can be matched."""

    KIND = "intent"

    round_id: str = ""
    model_owner_id: str = ""
    task_type: str = ""
    required_modalities: list[str] = msgspec.field(default_factory=list)
    min_quality_score: str = "0"
    budget_total: Money | None = None
    currency: str = "USD"
    deadline_ts: str = ""
    max_per_seller: int | None = None
    status: str = "open"
    contract_id: str | None = None
    match_failures: int = 0

    class Opened(Event, frozen=True):
        """A model owner opened an intent."""

        TOPIC = "intent.opened"

        round_id: str
        model_owner_id: str
        task_type: str
        required_modalities: list[str]
        min_quality_score: str
        budget_total: Money | None
        currency: str
        deadline_ts: str
        max_per_seller: int | None

        def apply(self, intent: Intent, record: Record) -> None:
            for name in self.__struct_fields__:
                setattr(intent, name, getattr(self, name))

    class Amended(Event, frozen=True):
        """A model owner changed an open intent."""

        TOPIC = "intent.amended"

        changes: dict[str, Any]

        def apply(self, intent: Intent, record: Record) -> None:
            for name, value in self.changes.items():
                setattr(intent, name, msgspec.convert(value, _TYPES[name]))

    class MatchFailed(Event, frozen=True):
        """No set of offers satisfied the intent; the diagnosis says why, and what would."""

        TOPIC = "intent.match_failed"

        diagnostics: dict[str, Any]

        def apply(self, intent: Intent, record: Record) -> None:
            intent.match_failures += 1

    class Matched(Event, frozen=True):
        """A match became a contract."""

        TOPIC = "intent.matched"

        contract_id: str

        def apply(self, intent: Intent, record: Record) -> None:
            intent.status = "matched"
            intent.contract_id = self.contract_id

    class Cancelled(Event, frozen=True):
        """A model owner gave an intent up."""

        TOPIC = "intent.cancelled"

        def apply(self, intent: Intent, record: Record) -> None:
            intent.status = "cancelled"

    class Closed(Event, frozen=True):
        """A model owner closed an intent."""

        TOPIC = "intent.closed"

        def apply(self, intent: Intent, record: Record) -> None:
            intent.status = "closed"

    class Expired(Event, frozen=True):
        """The deadline of an intent passed."""

        TOPIC = "intent.expired"

        def apply(self, intent: Intent, record: Record) -> None:
            intent.status = "expired"

    def status_key(self) -> str:
        return self.status

    def owner_key(self) -> str:
        return self.model_owner_id

    def deadline_key(self) -> str | None:
        return self.deadline_ts if self.status == "open" else None


_TYPES: dict[str, Any] = {f.name: f.type for f in msgspec.structs.fields(Intent)}


# --------------------------------------------------------------------------- commands


class OpenIntent(Command):
    """Open an intent. A budget of null is unlimited, a budget of zero buys free offers only."""

    model_owner_id: Label
    task_type: Label
    round_id: str = Field("", max_length=128)
    required_modalities: Labels = []
    min_quality_score: Share = "0"
    budget_total: Money | None = None
    currency: str | None = Field(None, description="Needed where the budget is null; otherwise the budget's.")
    deadline_ts: Moment | None = None
    max_per_seller: int | None = Field(None, ge=1, le=25)


class AmendIntent(Command):
    """Change fields of an open intent; fields left out stay as they are."""

    intent_id: str
    task_type: Kept[Label] = None
    required_modalities: Kept[Labels] = None
    min_quality_score: Kept[Share] = None
    budget_total: Money | None = None
    deadline_ts: Kept[Moment] = None
    max_per_seller: int | None = Field(None, ge=1, le=25)
    status: Kept[Literal["open", "matched", "cancelled", "closed", "expired"]] = None


class IntentStep(Command):
    """Name an intent whose status is to change."""

    intent_id: str


class MatchIntent(Command):
    """Match an open intent with at most max_offers offers."""

    intent_id: str
    max_offers: int = Field(3, ge=1, le=25)


@allow("owner", "operator")
def open_intent(case: Case, command: OpenIntent) -> Intent:
    """Open an intent.

    Errors: currency_mismatch, invalid_currency, invalid_deadline_ts.
    """
    return case.create(Intent, case.new_id("intent"), opening(command, case.now))


def opening(command: OpenIntent, now: str) -> Intent.Opened:
    """Give the event that opening an intent leads to.

    Errors: currency_mismatch, invalid_currency, invalid_deadline_ts.
    """
    budget = command.budget_total
    currency = command.currency or (budget.currency if budget else "USD")
    if currency not in CURRENCY_DIGITS:
        raise CurrencyUnknownError(field="currency")
    if budget is not None and budget.currency != currency:
        raise CurrencyMismatchError(
            "the currency of an intent is its budget's", budget=budget.currency, intent=currency
        )
    return Intent.Opened(
        round_id=command.round_id,
        model_owner_id=command.model_owner_id,
        task_type=command.task_type,
        required_modalities=command.required_modalities,
        min_quality_score=command.min_quality_score,
        budget_total=budget,
        currency=currency,
        deadline_ts=_deadline(now, command.deadline_ts),
        max_per_seller=command.max_per_seller,
    )


@allow("owner", "operator")
def amend_intent(case: Case, command: AmendIntent) -> Intent:
    """Change an open intent, or its status; everything is checked before anything is changed.

    Errors: currency_mismatch, invalid_deadline_ts, invalid_status_transition, round_intent_not_found,
            round_intent_not_open, version_mismatch.
    """
    intent = case.get_own(Intent, command.intent_id, IntentNotFoundError)
    case.match_version(intent)
    named = command.model_fields_set - {"intent_id", "status"}
    if command.status is not None:
        _check_step(intent, command.status)
    if named:
        if intent.status != "open":
            raise IntentNotOpenError(status=intent.status)
        if command.deadline_ts is not None:
            _deadline(case.now, command.deadline_ts)
        if command.budget_total is not None and command.budget_total.currency != intent.currency:
            raise CurrencyMismatchError(
                "the budget is in the currency of the intent",
                budget=command.budget_total.currency,
                intent=intent.currency,
            )
        changes = {name: msgspec.to_builtins(getattr(command, name)) for name in sorted(named)}
        case.emit(intent, Intent.Amended(changes=changes))
    if command.status is not None:
        case.emit(intent, _STEPS[command.status]())
    return intent


@allow("owner", "operator")
def cancel_intent(case: Case, command: IntentStep) -> Intent:
    """Give an open intent up.

    Errors: invalid_status_transition, round_intent_not_found, version_mismatch.
    """
    return _step(case, command, "cancelled")


@allow("owner", "operator")
def close_intent(case: Case, command: IntentStep) -> Intent:
    """Close an intent, open or matched.

    Errors: invalid_status_transition, round_intent_not_found, version_mismatch.
    """
    return _step(case, command, "closed")


@allow("service")
def expire_intent(case: Case, command: IntentStep) -> Intent:
    """Write down that an intent's deadline has passed; asking again changes nothing.

    Errors: round_intent_not_found.
    """
    intent = case.get(Intent, command.intent_id, IntentNotFoundError)
    if intent.status == "open" and intent.deadline_ts <= case.now:
        case.emit(intent, Intent.Expired())
    return intent


_STEPS: dict[str, type[Event]] = {"cancelled": Intent.Cancelled, "closed": Intent.Closed}
_ALLOWED = {"open": {"cancelled", "closed"}, "matched": {"closed"}}


def _step(case: Case, command: IntentStep, status: str) -> Intent:
    intent = case.get_own(Intent, command.intent_id, IntentNotFoundError)
    case.match_version(intent)
    _check_step(intent, status)
    return case.emit(intent, _STEPS[status]())


def _check_step(intent: Intent, status: str) -> None:
    if status not in _ALLOWED.get(intent.status, set()):
        raise StatusTransitionError(
            f"an intent that is {intent.status} cannot become {status}",
            current_status=intent.status,
            next_status=status,
        )


def _deadline(now: str, deadline: str | None) -> str:
    if deadline is None:
        return moment_text(moment_of(now) + timedelta(seconds=DEADLINE_S))
    if deadline <= now:
        raise DeadlineInvalidError("the deadline must lie in the future", now=now)
    return deadline


# --------------------------------------------------------------------------- matching


class MatchFailure(msgspec.Struct, frozen=True):
    """What a match came to that found nothing."""

    intent_id: str
    diagnostics: Any


def candidate(offer: Offer, seller: Seller | None) -> Candidate:
    """Put an offer beside its seller's history, as matching weighs it."""
    scores = seller.scores if seller else []
    evidence = quality_ppm(scores)
    assert offer.price_per_round is not None
    return Candidate(
        offer_id=offer.id,
        version=offer.version,
        seller=offer.tenant,
        price=offer.price_per_round,
        allowed_tasks=tuple(offer.allowed_tasks),
        modality=offer.modality,
        status=offer.status,
        expires_at=offer.expires_at,
        quality_ppm=evidence,
        threshold_ppm=evidence if scores else declared_ppm(offer),
        declared_quality=offer.quality_score,
        successes=seller.successes if seller else 0,
        failures=seller.failures if seller else 0,
        min_rounds=offer.min_rounds,
    )


def want_of(intent: Intent, max_offers: int) -> Want:
    """State an intent as matching reads it."""
    return Want(
        owner=intent.tenant,
        task_type=intent.task_type,
        required_modalities=tuple(intent.required_modalities),
        min_quality_ppm=share_ppm(intent.min_quality_score),
        budget=intent.budget_total,
        currency=intent.currency,
        max_offers=max_offers,
        deadline=intent.deadline_ts,
        max_per_seller=intent.max_per_seller,
    )


class Proposed(msgspec.Struct, frozen=True):
    """A match that was computed beforehand, off the event loop, for an intent at a version."""

    intent_version: int
    result: MatchResult
    matched_at: str


def propose(
    intent: Intent,
    max_offers: int,
    candidates: Sequence[Candidate],
    policy: MatchPolicy,
    now: str,
    as_of_position: int,
) -> Proposed:
    """Compute a match. CPU-bound for hard instances, so call it off the event loop.

    Errors: invalid_field, invalid_max_offers.
    """
    result = match(want_of(intent, max_offers), candidates, policy, now, as_of_position)
    return Proposed(intent.version, result, now)


@allow("owner", "operator")
def match_intent(
    case: Case, command: MatchIntent, *, proposed: Proposed | None, fee_ppm: int
) -> Contract | MatchFailure:
    """Match an open intent: a contract, or a failure that is written down with its diagnosis.

    proposed is None where there was no intent to compute it for.
    Errors: intent_expired, round_intent_not_found, round_intent_not_open, version_mismatch.
    """
    intent = case.get_own(Intent, command.intent_id, IntentNotFoundError)
    case.match_version(intent)
    if intent.status != "open":
        raise IntentNotOpenError(status=intent.status, contract_id=intent.contract_id)
    if intent.deadline_ts <= case.now:
        raise IntentExpiredError(deadline_ts=intent.deadline_ts)
    if proposed is None or proposed.intent_version != intent.version:
        raise Redo("the intent changed while it was matched")
    result = proposed.result
    if not result.selected:
        case.emit(intent, Intent.MatchFailed(diagnostics=msgspec.to_builtins(result.diagnostics)))
        return MatchFailure(intent.id, result.diagnostics)
    _check_fresh(case, result)
    terms = Terms.of(
        intent.id,
        intent.round_id,
        intent.model_owner_id,
        result,
        fee_ppm=fee_ppm,
        max_offers=command.max_offers,
        matched_at=proposed.matched_at,
    )
    contract = open_contract(case, terms)
    case.emit(intent, Intent.Matched(contract_id=contract.id))
    return contract


def _check_fresh(case: Case, result: MatchResult) -> None:
    """Hold the chosen offers against their present versions; a changed one means: match again."""
    for chosen in result.selected:
        offer = case.get(Offer, chosen.offer_id)
        if offer.version != chosen.version:
            raise Redo(f"{offer.id} is at version {offer.version}, the match saw {chosen.version}")
