"""Offers: what data providers put on the market, and the history that speaks for them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field, StringConstraints

from domain.billing.accounts import ensure
from domain.errors import (
    ExpiresAtInvalidError,
    OfferNotFoundError,
    StatusTransitionError,
)
from domain.fields import Command, JsonObject, Kept, Label, Labels, Moment, Share, Text, share_ppm
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record
from domain.market.standing import SCORE_WINDOW, ValidationScore
from domain.values import Money

Task = Label


class Offer(Aggregate):
    """A dataset for training rounds at a price per round.

    It is active, paused, retired or expired; retired and expired are final. A revision never touches a contract made
    before, since contracts name the version they were made with.
    """

    KIND = "offer"

    seller_node_id: str = ""
    dataset_fingerprint: str = ""
    title: str = ""
    description: str = ""
    modality: str = "tabular"
    label_schema: dict[str, Any] = msgspec.field(default_factory=dict)
    sample_count: int = 0
    quality_score: str = "0"
    privacy_profile: str = ""
    allowed_tasks: list[str] = msgspec.field(default_factory=list)
    price_per_round: Money | None = None
    min_rounds: int = 1
    expires_at: str | None = None
    status: str = "active"

    class Listed(Event, frozen=True):
        """A seller listed an offer."""

        TOPIC = "offer.listed"

        seller_node_id: str
        dataset_fingerprint: str
        title: str
        description: str
        modality: str
        label_schema: dict[str, Any]
        sample_count: int
        quality_score: str
        privacy_profile: str
        allowed_tasks: list[str]
        price_per_round: Money
        min_rounds: int
        expires_at: str | None

        def apply(self, offer: Offer, record: Record) -> None:
            for name in self.__struct_fields__:
                setattr(offer, name, getattr(self, name))

    class Revised(Event, frozen=True):
        """A seller changed fields of an offer."""

        TOPIC = "offer.revised"

        changes: dict[str, Any]

        def apply(self, offer: Offer, record: Record) -> None:
            for name, value in self.changes.items():
                setattr(offer, name, msgspec.convert(value, _TYPES[name]))

    class Paused(Event, frozen=True):
        """A seller took an offer off the market for a while."""

        TOPIC = "offer.paused"

        def apply(self, offer: Offer, record: Record) -> None:
            offer.status = "paused"

    class Resumed(Event, frozen=True):
        """A seller put a paused offer back on the market."""

        TOPIC = "offer.resumed"

        def apply(self, offer: Offer, record: Record) -> None:
            offer.status = "active"

    class Retired(Event, frozen=True):
        """A seller took an offer off the market for good."""

        TOPIC = "offer.retired"

        def apply(self, offer: Offer, record: Record) -> None:
            offer.status = "retired"

    class Expired(Event, frozen=True):
        """The time of an offer ran out."""

        TOPIC = "offer.expired"

        def apply(self, offer: Offer, record: Record) -> None:
            offer.status = "expired"

    def status_key(self) -> str:
        return self.status

    def owner_key(self) -> str:
        return self.seller_node_id

    def deadline_key(self) -> str | None:
        return self.expires_at if self.status in ("active", "paused") else None

    def search_text(self) -> str:
        return " ".join(
            [self.title, self.description, self.modality, *self.allowed_tasks, self.seller_node_id]
        )


_TYPES: dict[str, Any] = {f.name: f.type for f in msgspec.structs.fields(Offer)}


class Seller(Aggregate):
    """What a seller's history says; matching turns it into trust and quality. One per tenant."""

    KIND = "seller"

    successes: int = 0
    failures: int = 0
    scores: list[ValidationScore] = msgspec.field(default_factory=list)

    class Succeeded(Event, frozen=True):
        """A contract of this seller ended well."""

        TOPIC = "seller.succeeded"

        contract_id: str
        scores: list[ValidationScore]

        def apply(self, seller: Seller, record: Record) -> None:
            seller.successes += 1
            seller.scores = [*seller.scores, *self.scores][-SCORE_WINDOW:]

    class Failed(Event, frozen=True):
        """A contract of this seller ended badly, and by its fault."""

        TOPIC = "seller.failed"

        contract_id: str
        reason: str

        def apply(self, seller: Seller, record: Record) -> None:
            seller.failures += 1


def note_outcome(case: Case, tenant: str, event: Seller.Succeeded | Seller.Failed) -> None:
    """Write an outcome into a seller's history, starting it where there is none."""
    seller = case.find(Seller, tenant)
    if seller is None:
        case.create(Seller, tenant, event, tenant=tenant)
    else:
        case.emit(seller, event)


# --------------------------------------------------------------------------- commands

Title = Annotated[str, StringConstraints(max_length=200)]
SampleCount = Annotated[int, Field(ge=0, le=10**12)]
MinRounds = Annotated[int, Field(ge=1, le=10_000)]


class ListOffer(Command):
    """List an offer.

    quality_score is what the seller declares; matching scores evidence from past rounds.
    """

    seller_node_id: Label
    dataset_fingerprint: str = Field(min_length=1, max_length=256)
    title: Title = ""
    description: Text = ""
    modality: Label = "tabular"
    label_schema: JsonObject = {}
    sample_count: SampleCount = 0
    quality_score: Share = "0.5"
    privacy_profile: Label = "dp-ready"
    allowed_tasks: Labels = []
    price_per_round: Money
    min_rounds: MinRounds = 1
    expires_at: Moment | None = None


class ReviseOffer(Command):
    """Change fields of an offer; fields left out stay as they are."""

    offer_id: str
    title: Kept[Title] = None
    description: Kept[Text] = None
    label_schema: Kept[JsonObject] = None
    sample_count: Kept[SampleCount] = None
    quality_score: Kept[Share] = None
    privacy_profile: Kept[Label] = None
    allowed_tasks: Kept[Labels] = None
    price_per_round: Kept[Money] = None
    min_rounds: Kept[MinRounds] = None
    expires_at: Moment | None = None
    status: Kept[Literal["active", "paused", "retired", "expired"]] = None


class OfferStep(Command):
    """Name an offer whose status is to change."""

    offer_id: str


@allow("provider", "operator")
def list_offer(case: Case, command: ListOffer) -> Offer:
    """List an offer; the seller's earnings account is opened with it, so that it can be paid.

    Errors: invalid_expires_at.
    """
    _check_expiry(case, command.expires_at)
    ensure(case, "earnings", case.caller.tenant, command.price_per_round.currency)
    listed = Offer.Listed(**{name: getattr(command, name) for name in Offer.Listed.__struct_fields__})
    return case.create(Offer, case.new_id("offer"), listed)


@allow("provider", "operator")
def revise_offer(case: Case, command: ReviseOffer) -> Offer:
    """Change an offer that is on the market; every field is checked before any is changed.

    Errors: invalid_expires_at, invalid_status_transition, offer_not_found, version_mismatch.
    """
    offer = case.get_own(Offer, command.offer_id, OfferNotFoundError)
    case.match_version(offer)
    named = command.model_fields_set - {"offer_id", "status"}
    if command.status is not None and command.status != offer.status:
        _check_step(offer, command.status)
    if named:
        _check_alive(offer, "revised")
        _check_expiry(case, command.expires_at)
        changes = {name: msgspec.to_builtins(getattr(command, name)) for name in sorted(named)}
        if command.price_per_round is not None:
            ensure(case, "earnings", offer.tenant, command.price_per_round.currency)
        case.emit(offer, Offer.Revised(changes=changes))
    if command.status is not None and command.status != offer.status:
        case.emit(offer, _STEPS[command.status]())
    return offer


@allow("provider", "operator")
def pause_offer(case: Case, command: OfferStep) -> Offer:
    """Take an active offer off the market.

    Errors: invalid_status_transition, offer_not_found, version_mismatch.
    """
    return _step(case, command, "paused")


@allow("provider", "operator")
def resume_offer(case: Case, command: OfferStep) -> Offer:
    """Put a paused offer back.

    Errors: invalid_status_transition, offer_not_found, version_mismatch.
    """
    return _step(case, command, "active")


@allow("provider", "operator")
def retire_offer(case: Case, command: OfferStep) -> Offer:
    """Take an offer off the market for good.

    Errors: invalid_status_transition, offer_not_found, version_mismatch.
    """
    return _step(case, command, "retired")


@allow("service")
def expire_offer(case: Case, command: OfferStep) -> Offer:
    """Write down that an offer's time has run out; asking again changes nothing.

    Errors: offer_not_found.
    """
    offer = case.get(Offer, command.offer_id, OfferNotFoundError)
    if offer.status in ("active", "paused") and offer.expires_at is not None and offer.expires_at <= case.now:
        case.emit(offer, Offer.Expired())
    return offer


_STEPS: dict[str, type[Event]] = {"active": Offer.Resumed, "paused": Offer.Paused, "retired": Offer.Retired}
_ALLOWED = {"active": {"paused", "retired"}, "paused": {"active", "retired"}}


def _step(case: Case, command: OfferStep, status: str) -> Offer:
    offer = case.get_own(Offer, command.offer_id, OfferNotFoundError)
    case.match_version(offer)
    _check_step(offer, status)
    return case.emit(offer, _STEPS[status]())


def _check_step(offer: Offer, status: str) -> None:
    if status not in _ALLOWED.get(offer.status, set()):
        raise StatusTransitionError(
            f"an offer that is {offer.status} cannot become {status}",
            current_status=offer.status,
            next_status=status,
        )


def _check_alive(offer: Offer, wish: str) -> None:
    if offer.status not in _ALLOWED:
        raise StatusTransitionError(
            f"an offer that is {offer.status} cannot be {wish}", current_status=offer.status, next_status=wish
        )


def _check_expiry(case: Case, expires_at: str | None) -> None:
    if expires_at is not None and expires_at <= case.now:
        raise ExpiresAtInvalidError("expires_at must lie in the future", now=case.now)


# --------------------------------------------------------------------------- datasets


class DataSet(Aggregate):
    """A dataset a tenant uploaded, by the address of its bytes. Only its owner's offers may train on it."""

    KIND = "dataset"

    fingerprint: str = ""
    row_count: int = 0
    columns: list[str] = msgspec.field(default_factory=list)
    size_bytes: int = 0

    class Uploaded(Event, frozen=True):
        """A tenant uploaded a dataset; its bytes are in the object store, not in the log."""

        TOPIC = "dataset.uploaded"

        fingerprint: str
        row_count: int
        columns: list[str]
        size_bytes: int

        def apply(self, dataset: DataSet, record: Record) -> None:
            for name in self.__struct_fields__:
                setattr(dataset, name, getattr(self, name))


class RegisterDataset(Command):
    """Register a dataset whose bytes are in the object store."""

    fingerprint: str
    row_count: int
    columns: list[str]
    size_bytes: int


def dataset_id(tenant: str, fingerprint: str) -> str:
    """Name a tenant's dataset; tenants that own the same bytes own two datasets."""
    return f"{tenant}.{fingerprint.removeprefix('sha3-512:')[:64]}"


@allow("provider", "operator")
def register_dataset(case: Case, command: RegisterDataset) -> DataSet:
    """Register an upload; uploading the same bytes again changes nothing."""
    name = dataset_id(case.caller.tenant, command.fingerprint)
    known = case.find(DataSet, name)
    if known is not None:
        return known
    return case.create(DataSet, name, DataSet.Uploaded(**command.model_dump()))


def declared_ppm(offer: Offer) -> int:
    """Read the quality a seller declares, in millionths."""
    return share_ppm(offer.quality_score)
