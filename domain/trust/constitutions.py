"""The constitution: one document per version, addressed, and signed by the threshold of the publication policy.

A capsule names the address of the constitution it was made under; wherever something is done with it, that address is
held against the one in force here.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from pydantic import Field, StringConstraints

from domain.canonical import sealed
from domain.errors import (
    ConstitutionInvalidError,
    ConstitutionMismatchError,
    ConstitutionMissingError,
)
from domain.fields import Command
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record
from domain.trust.dsse import DsseEnvelope, Envelope
from domain.trust.signers import ENVELOPES_MAX, adopted_policy, vouched
from domain.trust.verification import SignedBy, Wanted

CONSTITUTION_CONTEXT = "soma/constitution/v1"
CONSTITUTION = "platform"
DOCUMENT_BYTES_MAX = 32_768


class Article(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One article."""

    title: str
    text: str


class Utility(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an evaluation must reach: lam log p - mu c - nu l, at least with p_min, c_max and l_max.

    Units: decimal texts; p is a probability, c a cost in thousands of tokens, l a time in seconds.
    """

    lam: str
    mu: str
    nu: str
    p_min: str
    c_max: str
    l_max: str


class ConstitutionDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One version of the constitution."""

    schema: str
    version: int
    title: str
    articles: list[Article]
    utility: Utility

    def sealed(self) -> tuple[bytes, str]:
        """Give the document's canonical bytes and its address."""
        return sealed(CONSTITUTION_CONTEXT, msgspec.to_builtins(self))


class ConstitutionVersion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version that was adopted here."""

    version: int
    address: str
    document: ConstitutionDocument
    adopted_at: str


class Constitution(Aggregate):
    """The constitution with all its versions, the newest last and in force."""

    KIND = "constitution"

    versions: list[ConstitutionVersion] = msgspec.field(default_factory=list)

    class Adopted(Event, frozen=True):
        """A version came into force; `signed` are those who vouched for it, under the policy of that address."""

        TOPIC = "constitution.adopted"

        address: str
        document: ConstitutionDocument
        policy: str
        envelopes: list[Envelope]
        signed: list[SignedBy]

        def apply(self, constitution: Constitution, record: Record) -> None:
            version = ConstitutionVersion(self.document.version, self.address, self.document, record.at)
            constitution.versions = [*constitution.versions, version]

    def status_key(self) -> str:
        return "in_force"

    @property
    def in_force(self) -> ConstitutionVersion:
        """Give the version in force."""
        return self.versions[-1]


# --------------------------------------------------------------------------- what is asked

Decimal = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,8})(\.[0-9]{1,9})?$")]
Probability = Annotated[str, StringConstraints(pattern=r"^(0\.[0-9]{0,8}[1-9]|1)$")]
Heading = Annotated[str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True)]


class ArticleTerms(Command):
    """One article as it is proposed."""

    title: Heading
    text: str = Field(min_length=1, max_length=4_000)


class UtilityTerms(Command):
    """What an evaluation must reach, as it is proposed; p_min is above 0, so that its logarithm exists."""

    lam: Decimal
    mu: Decimal
    nu: Decimal
    p_min: Probability
    c_max: Decimal
    l_max: Decimal


class ConstitutionTerms(Command):
    """A constitution as it is proposed; its address is taken over all of it."""

    schema_name: Literal["soma/constitution/1"] = Field(alias="schema")
    version: int = Field(ge=1, le=1_000_000)
    title: Heading
    articles: list[ArticleTerms] = Field(min_length=1, max_length=64)
    utility: UtilityTerms

    def document(self) -> ConstitutionDocument:
        """Give the document these terms are."""
        return msgspec.convert(self.model_dump(by_alias=True), ConstitutionDocument)


class AdoptConstitution(Command):
    """Bring a version of the constitution into force, with the envelopes of those who vouch for it."""

    document: ConstitutionTerms
    envelopes: list[DsseEnvelope] = Field(default_factory=list, max_length=ENVELOPES_MAX)


@allow("operator")
def adopt_constitution(case: Case, command: AdoptConstitution) -> Constitution:
    """Bring a version into force, signed by the threshold of the publication policy.

    Errors: constitution_invalid, malformed_envelope, signer_policy_missing, threshold_not_met.
    """
    policy = adopted_policy(case)
    constitution = case.find(Constitution, CONSTITUTION)
    document = command.document.document()
    following = 1 if constitution is None else constitution.in_force.version + 1
    if document.version != following:
        raise ConstitutionInvalidError(f"the next version is {following}", version=document.version)
    data, address = document.sealed()
    if len(data) > DOCUMENT_BYTES_MAX:
        raise ConstitutionInvalidError("the document is too large", bytes_max=DOCUMENT_BYTES_MAX)
    envelopes = [Envelope.parse(sent) for sent in command.envelopes]
    wanted = constitution_wanted(address, policy.in_force.address)
    signed = vouched(policy, wanted, envelopes, case.now)
    adopted = Constitution.Adopted(
        address=address,
        document=document,
        policy=policy.in_force.address,
        envelopes=envelopes,
        signed=signed,
    )
    if constitution is None:
        return case.create(Constitution, CONSTITUTION, adopted, tenant="platform")
    return case.emit(constitution, adopted)


# --------------------------------------------------------------------------- what others ask


def constitution_wanted(address: str, policy: str) -> Wanted:
    """Say what vouches for a version of the constitution."""
    return Wanted("constitution", address, policy)


def current_constitution(case: Case) -> ConstitutionVersion:
    """Give the constitution in force.

    Errors: constitution_missing.
    """
    constitution = case.find(Constitution, CONSTITUTION)
    if constitution is None:
        raise ConstitutionMissingError
    return constitution.in_force


def check_constitution(case: Case, named: str) -> ConstitutionVersion:
    """Hold the constitution that a capsule names against the one in force.

    Errors: constitution_mismatch, constitution_missing.
    """
    current = current_constitution(case)
    if named != current.address:
        raise ConstitutionMismatchError(expected=current.address, found=named)
    return current
