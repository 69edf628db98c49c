"""The manifest of a persona: everything a capsule promises, in one document that is hashed.

The models here are the source; the published JSON Schema is printed from them. A manifest holds no signatures and no
approvals: both are made over its address and travel beside it. Files are named by digest and size; where they are
kept is nobody's promise and is not in it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from domain.canonical import sealed
from domain.fields import Moment
from domain.persona.manifest_faults import faults_of, invalid
from domain.persona.manifest_fields import (
    Address,
    Line,
    Link,
    MediaType,
    PartName,
    PersonaId,
    Prose,
    Scope,
    Sha256,
    Share,
    Temperature,
    Version,
    Word,
)
from domain.persona.manifest_rules import contradictions
from domain.persona.manifest_text import read_document
from domain.values import Money

CONTEXT = "soma/capsule/v1"
SCHEMA_URL = "https://soma-ledger.dev/schemas/persona_manifest.schema.json"
MANIFEST_BYTES_MAX = 32_768
ITEM_COUNT_MAX = 1_000_000
DIMENSION_MAX = 4_096
# What eleven octal digits can say; the largest file the archive's form has room for.
PART_BYTES_MAX = 2**33 - 1

Role = Literal[
    "prompts", "tools", "memory", "evaluation_report", "evaluation_cases", "release_notes", "license", "other"
]


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Owner(_Block):
    """Somebody the persona belongs to, and who therefore never approves or signs it."""

    subject: Word = Field(description="The subject of their bearer tokens.")
    name: Line | None = None
    contact: Line | None = None
    organization: Line | None = None


class Metadata(_Block):
    """What the persona is called, and whose it is."""

    persona_id: PersonaId
    version: Version = Field(description="A version is given once; changed content needs another.")
    display_name: Line
    summary: Prose = ""
    domains: list[Line] = Field(default=[], max_length=16, description="What it knows about; search facets.")
    created_at: Moment
    updated_at: Moment
    owners: list[Owner] = Field(min_length=1, max_length=16)


class Capability(_Block):
    """One ability of the model that is switched on or off."""

    feature: Word
    enabled: bool
    notes: Prose = ""


class ModelRef(_Block):
    """The model the persona was made for."""

    model_box_id: Word
    version: Line
    provider: Line
    default_mode: Literal["production", "training"] = "production"
    capabilities: list[Capability] = Field(default=[], max_length=64)
    temperature: Temperature = "0.2"


class MemoryRef(_Block):
    """The memory bundle: what is in it, and which part holds it."""

    snapshot_id: Word
    bundle: PartName = Field(description="The one part whose role is memory.")
    embedding_model: Line
    item_count: int = Field(ge=0, le=ITEM_COUNT_MAX)
    dimension: int = Field(ge=1, le=DIMENSION_MAX, description="Numbers in one embedding.")
    metric: Literal["cosine", "dot", "euclidean"] = "cosine"


class ToolRef(_Block):
    """A tool the persona may call, and how far it reaches."""

    tool: Word
    required: bool = False
    access_scope: Scope
    notes: Prose = ""


class Evaluation(_Block):
    """A result of an evaluation; `report` names the part that holds its report."""

    benchmark: Line
    score: Share
    dataset: Line
    captured_at: Moment
    report: PartName | None = None
    reference_link: Link | None = None
    notes: Prose = ""


class Governance(_Block):
    """What the persona is bound by."""

    constitution: Address = Field(description="Address of the constitution it was made under.")
    training_snapshot_id: Word | None = None
    kill_switch_enabled: bool


class PricingOption(_Block):
    """One way to pay: once, per period of a subscription, or per period of a rental."""

    model: Literal["purchase", "subscription", "rental"]
    price: Money
    billing_period_minutes: int | None = Field(
        default=None, ge=1, le=525_600, description="For subscriptions and rentals; a purchase has none."
    )
    price_book: Word | None = None
    notes: Prose = ""


class PartRef(_Block):
    """One file of the capsule; its digests are its identity."""

    name: PartName
    role: Role
    digest: Address = Field(description="SHA3-512 of the bytes.")
    sha256: Sha256 = Field(description="SHA-256 of the same bytes, as object stores know it.")
    bytes: int = Field(ge=1, le=PART_BYTES_MAX)
    media_type: MediaType


class PersonaManifest(_Block):
    """A persona, ready to be sealed: equal manifests are equal bytes, whatever they were written in."""

    schema_: Literal["soma/persona_manifest/1"] = Field(alias="schema")
    metadata: Metadata
    model_box: ModelRef
    memory: MemoryRef
    tools: list[ToolRef] = Field(default=[], max_length=64)
    evaluations: list[Evaluation] = Field(default=[], max_length=32)
    governance: Governance
    pricing: list[PricingOption] = Field(min_length=1, max_length=16)
    artifacts: list[PartRef] = Field(
        min_length=1, max_length=64, description="The files; their order says nothing."
    )

    @model_validator(mode="after")
    def _in_order(self) -> PersonaManifest:
        found = contradictions(self.document())
        # Frozen for others; the order of files says nothing, so the hashed document knows only one.
        self.artifacts.sort(key=lambda part: part.name)
        size = len(self.sealed()[0])
        if size > MANIFEST_BYTES_MAX:
            found.append(
                ("", f"a manifest holds {MANIFEST_BYTES_MAX:,} bytes at most in canonical form", size)
            )
        if found:
            raise PydanticCustomError("contradiction", "the manifest contradicts itself", {"faults": found})
        return self

    def document(self) -> dict[str, Any]:
        """Give the manifest as plain values, every field in it."""
        return self.model_dump(mode="json", by_alias=True)

    def sealed(self) -> tuple[bytes, str]:
        """Give the canonical bytes, and the address of the capsule.

        Source: RFC 8785.
        """
        return sealed(CONTEXT, self.document())

    @property
    def address(self) -> str:
        return self.sealed()[1]

    @property
    def parts(self) -> list[PartRef]:
        return list(self.artifacts)

    def part(self, name: str) -> PartRef | None:
        """Find a part by name."""
        return next((part for part in self.artifacts if part.name == name), None)

    def parts_of(self, role: str) -> list[PartRef]:
        """List the parts of a role."""
        return [part for part in self.artifacts if part.role == role]


def capsule_id(address: str) -> str:
    """Give the id of a capsule's stream: the 128 digits of its address."""
    return address.removeprefix("sha3-512:")


def parse_manifest(value: Any, lines: dict[str, int] | None = None) -> PersonaManifest:
    """Make a manifest of plain values; `lines` says on which line of a text each path stands.

    Errors: manifest_invalid.
    """
    try:
        return PersonaManifest.model_validate(value)
    except ValidationError as error:
        faults = faults_of(error, PersonaManifest, lines or {})
    raise invalid(faults)


def read_manifest(data: bytes) -> PersonaManifest:
    """Read a manifest that a person or a program wrote, as JSON or as YAML.

    Errors: manifest_invalid.
    """
    value, lines = read_document(data)
    return parse_manifest(value, lines)


def read_sealed_manifest(data: bytes) -> PersonaManifest:
    """Read a manifest out of an archive: canonical bytes, and no others.

    Errors: manifest_invalid.
    """
    manifest = parse_manifest(read_document(data, json_only=True)[0])
    if manifest.sealed()[0] != data:
        raise invalid(
            [{"path": "", "why": "these are not the canonical bytes of this manifest", "got": None}]
        )
    return manifest


def manifest_schema() -> dict[str, Any]:
    """Print the JSON Schema that is published.

    Source: JSON Schema, draft 2020-12.
    """
    schema = PersonaManifest.model_json_schema(mode="validation", by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_URL,
        **schema,
        "title": "Persona manifest",
    }
