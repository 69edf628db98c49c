"""Personas: what a tenant offers under one id, version by version, and what everybody may see of it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from pydantic import StringConstraints

from domain.errors import (
    CapsuleVersionTakenError,
    PersonaIdTakenError,
    PersonaNotFoundError,
    StatusTransitionError,
)
from domain.fields import Command, Kept, Labels, Text
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record
from domain.persona.manifest_fields import PersonaId, version_key
from domain.persona.tokens import TokenEstimate
from domain.values import Money

AUTHORS = ("owner", "provider", "operator")
# What a version may be once it was published; strangers see these and no others.
SHOWN = frozenset({"published", "suspended", "withdrawn", "revoked"})


class PersonaVersion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version of a persona: its capsule's address, and the capsule's status."""

    version: str
    capsule: str
    status: str


class Compliance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the scan and the reviewers came to: a badge `verified`, `warnings` or `override`, and notes."""

    badge: str
    notes: list[str]


class PriceOption(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to pay: `purchase`, `subscription` or `rental`, the last two for a period."""

    model: str
    price: Money
    billing_period_minutes: int | None


class Listing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the catalogue shows of the published version with the highest number, all of it taken from the capsule."""

    version: str
    capsule: str
    published_at: str
    display_name: str
    summary: str
    domains: list[str]
    model: dict[str, str]
    tools: list[dict[str, str]]
    pricing: list[PriceOption]
    item_count: int
    embedding_model: str
    compliance: Compliance
    trust: str
    degraded: list[str]
    token_estimate: TokenEstimate | None


class Persona(Aggregate):
    """A persona of a tenant.

    Its versions stand in the order of their numbers. `published` shows the published version with the highest number;
    where there is none, the persona is a draft, or what became of the version that was shown last.
    """

    KIND = "persona"

    display_name: str = ""
    summary: str = ""
    domains: list[str] = msgspec.field(default_factory=list)
    status: str = "draft"
    versions: list[PersonaVersion] = msgspec.field(default_factory=list)
    review: str = "none"
    reviewed_version: str | None = None
    published: Listing | None = None

    class Created(Event, frozen=True):
        """A tenant took a persona id and said what the persona will be."""

        TOPIC = "persona.created"

        display_name: str
        summary: str
        domains: list[str]

        def apply(self, persona: Persona, record: Record) -> None:
            for name in self.__struct_fields__:
                setattr(persona, name, getattr(self, name))

    class Described(Event, frozen=True):
        """An author said anew what a persona will be, before any version of it was published."""

        TOPIC = "persona.described"

        changes: dict[str, Any]

        def apply(self, persona: Persona, record: Record) -> None:
            for name, value in self.changes.items():
                setattr(persona, name, value)

    class VersionAdded(Event, frozen=True):
        """A capsule was sealed as a version of the persona; from here on the version means this content."""

        TOPIC = "persona.version_added"

        version: str
        capsule: str
        status: str

        def apply(self, persona: Persona, record: Record) -> None:
            added = [*persona.versions, PersonaVersion(self.version, self.capsule, self.status)]
            persona.versions = sorted(added, key=lambda one: version_key(one.version))

    class VersionMoved(Event, frozen=True):
        """A version's capsule changed its status."""

        TOPIC = "persona.version_moved"

        version: str
        status: str

        def apply(self, persona: Persona, record: Record) -> None:
            persona.versions = [
                PersonaVersion(one.version, one.capsule, self.status) if one.version == self.version else one
                for one in persona.versions
            ]

    class ReviewMoved(Event, frozen=True):
        """The review of the version that was submitted last changed its status."""

        TOPIC = "persona.review_moved"

        version: str
        review: str

        def apply(self, persona: Persona, record: Record) -> None:
            persona.review = self.review
            persona.reviewed_version = self.version

    class Listed(Event, frozen=True):
        """The catalogue shows a version of the persona, or shows it otherwise than before."""

        TOPIC = "persona.listed"

        listing: Listing

        def apply(self, persona: Persona, record: Record) -> None:
            shown = persona.published = self.listing
            persona.display_name, persona.summary, persona.domains = (
                shown.display_name,
                shown.summary,
                shown.domains,
            )
            persona.status = "degraded" if shown.degraded else "listed"

    class Unlisted(Event, frozen=True):
        """No version of the persona is published any more."""

        TOPIC = "persona.unlisted"

        status: str

        def apply(self, persona: Persona, record: Record) -> None:
            persona.published = None
            persona.status = self.status

    def status_key(self) -> str:
        return self.status

    def party_keys(self) -> list[str] | None:
        return ["platform"] if self.review != "none" else None

    def search_text(self) -> str:
        return " ".join([self.id, self.display_name, self.summary, *self.domains])

    def version_of(self, version: str) -> PersonaVersion | None:
        """Find a version by its number."""
        return next((one for one in self.versions if one.version == version), None)


# --------------------------------------------------------------------------- commands

DisplayName = Annotated[str, StringConstraints(min_length=1, max_length=128, strip_whitespace=True)]


class CreatePersona(Command):
    """Take a persona id; ids are lower-case letters, digits and hyphens, and are given once."""

    persona_id: PersonaId
    display_name: DisplayName
    summary: Text = ""
    domains: Labels = []


class DescribePersona(Command):
    """Change what is said of a persona before a version of it is published; fields left out stay as they are."""

    persona_id: str
    display_name: Kept[DisplayName] = None
    summary: Kept[Text] = None
    domains: Kept[Labels] = None


@allow(*AUTHORS)
def create_persona(case: Case, command: CreatePersona) -> Persona:
    """Take a persona id for the caller's tenant.

    Errors: persona_id_taken.
    """
    if case.find(Persona, command.persona_id) is not None:
        raise PersonaIdTakenError(persona_id=command.persona_id)
    created = Persona.Created(
        display_name=command.display_name, summary=command.summary, domains=command.domains
    )
    return case.create(Persona, command.persona_id, created)


@allow(*AUTHORS)
def describe_persona(case: Case, command: DescribePersona) -> Persona:
    """Change what is said of a draft; of a published persona the words are those that were reviewed and signed.

    Errors: invalid_status_transition, persona_not_found, version_mismatch.
    """
    persona = own_persona(case, command.persona_id)
    case.match_version(persona)
    if persona.published is not None or persona.status != "draft":
        raise StatusTransitionError(
            "the words of a published persona come with its next version",
            current_status=persona.status,
            next_status="described",
        )
    named = sorted(command.model_fields_set - {"persona_id"})
    if not named:
        return persona
    return case.emit(persona, Persona.Described(changes={name: getattr(command, name) for name in named}))


def own_persona(case: Case, persona_id: str) -> Persona:
    """Read a persona of the caller's tenant.

    Errors: persona_not_found.
    """
    return case.get_own(Persona, persona_id, PersonaNotFoundError)


# --------------------------------------------------------------------------- what capsules tell of themselves


def check_version_free(persona: Persona, version: str, capsule: str) -> None:
    """Refuse a version that means other content already.

    Errors: capsule_version_taken.
    """
    known = persona.version_of(version)
    if known is not None and known.capsule != capsule:
        raise CapsuleVersionTakenError(persona_id=persona.id, version=version, capsule=known.capsule)


def note_version(case: Case, persona: Persona, version: str, capsule: str, status: str) -> None:
    """Bring a version's status up to date, adding the version where it is new.

    Errors: capsule_version_taken.
    """
    check_version_free(persona, version, capsule)
    known = persona.version_of(version)
    if known is None:
        case.emit(persona, Persona.VersionAdded(version=version, capsule=capsule, status=status))
    elif known.status != status:
        case.emit(persona, Persona.VersionMoved(version=version, status=status))


def note_review(case: Case, persona: Persona, version: str, review: str, *, submitting: bool = False) -> None:
    """Bring the state of a review up to date; a persona shows that of the version submitted last."""
    if not submitting and persona.reviewed_version != version:
        return
    if (persona.reviewed_version, persona.review) != (version, review):
        case.emit(persona, Persona.ReviewMoved(version=version, review=review))
