"""What policies are asked: one documented question for each package, made of plain values.

A question holds everything its policy may look at and nothing else: no secret, no findings' text, no fraction written
as a float, and no clock finer than the day, so that the same state is the same question. Its schema is printed to
`docs/schemas/policy_input.schema.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

SCHEMA: Literal["soma/policy_input/1"] = "soma/policy_input/1"
SCHEMA_PATH = "docs/schemas/policy_input.schema.json"
RentalAction = Literal["rent", "activate", "subscribe", "purchase"]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Asker(_Part, frozen=True, kw_only=True):
    """Who asks: the subject of the token, its tenant, and its roles in order."""

    subject: str
    tenant: str
    roles: list[str]

    @classmethod
    def of(cls, subject: str, tenant: str, roles: Iterable[str]) -> Asker:
        return cls(subject=subject, tenant=tenant, roles=sorted(set(roles)))


class ToolFacts(_Part, frozen=True, kw_only=True):
    """A tool of the persona, and how far it reaches: `read`, `write`, `admin`, or the name of a policy."""

    tool: str
    access_scope: str
    required: bool = False


class ModelFacts(_Part, frozen=True, kw_only=True):
    """The model box the persona was made for."""

    model_box_id: str
    provider: str


class MemoryFacts(_Part, frozen=True, kw_only=True):
    """How much the persona remembers; never what."""

    item_count: int
    dimension: int
    bytes: int


class PriceFacts(_Part, frozen=True, kw_only=True):
    """One way to pay: `purchase`, `subscription` or `rental`; the amount is a decimal string."""

    model: str
    amount: str
    currency: str


class CapsuleFacts(_Part, frozen=True, kw_only=True):
    """What a manifest says, as far as a policy may weigh it; `constitution` is the one it names.

    `status` is the capsule's standing in this log: `none` before its export or import.
    """

    address: str
    persona_id: str
    version: str
    tenant: str
    owners: list[str]
    tools: list[ToolFacts]
    model: ModelFacts
    memory: MemoryFacts
    pricing: list[PriceFacts]
    constitution: str
    kill_switch_enabled: bool
    status: str = "none"


class ConstitutionFacts(_Part, frozen=True, kw_only=True):
    """The address of the constitution in force, and of the one the capsule names."""

    in_force: str | None
    named: str


class TrainingFacts(_Part, frozen=True, kw_only=True):
    """Whether the tenant's training lock is on, and whether the fence that was shown is its present one.

    Where the lock is off there is no fence to be stale, and `fence_fresh` is true.
    """

    on: bool
    fence_fresh: bool


class ScanCounts(_Part, frozen=True, kw_only=True):
    """How many findings of each weight a scan had."""

    pass_: int = msgspec.field(default=0, name="pass")
    warn: int = 0
    block: int = 0


class ScanFacts(_Part, frozen=True, kw_only=True):
    """What the scan came to: `pass`, `warn` or `block`, or `none` where nothing was scanned."""

    verdict: Literal["none", "pass", "warn", "block"]
    counts: ScanCounts


class EvaluationFacts(_Part, frozen=True, kw_only=True):
    """Whether the evaluation passed its guard."""

    passed: bool


class ApprovalFacts(_Part, frozen=True, kw_only=True):
    """How many approvals are needed and given, whether one of them overrides, and the tools they name."""

    required: int
    given: int
    override: bool
    tools_named: list[str] = msgspec.field(default_factory=list)


class SignatureFacts(_Part, frozen=True, kw_only=True):
    """How many signatures of pinned keys are needed and count, and whether that is enough now."""

    threshold: int
    signed: int
    verified: bool


class StandingFacts(_Part, frozen=True, kw_only=True):
    """What this log knows already: the newest version imported here, and whether an older one was asked for."""

    newest_version: str | None = None
    is_older: bool = False
    allow_older: bool = False


class Environment(_Part, frozen=True, kw_only=True):
    """The day of the question, in UTC."""

    day: str


class ExportQuestion(_Part, frozen=True, kw_only=True):
    """Whether this capsule may be exported, or its archive be downloaded."""

    schema: Literal["soma/policy_input/1"] = SCHEMA
    action: Literal["export", "download"]
    who: Asker
    capsule: CapsuleFacts
    constitution: ConstitutionFacts
    training: TrainingFacts
    environment: Environment


class ImportQuestion(_Part, frozen=True, kw_only=True):
    """Whether this capsule may be taken in from outside."""

    schema: Literal["soma/policy_input/1"] = SCHEMA
    action: Literal["import"] = "import"
    who: Asker
    capsule: CapsuleFacts
    constitution: ConstitutionFacts
    signatures: SignatureFacts
    standing: StandingFacts
    environment: Environment


class PublishQuestion(_Part, frozen=True, kw_only=True):
    """Whether this capsule may be published, or a suspended one published again."""

    schema: Literal["soma/policy_input/1"] = SCHEMA
    action: Literal["publish", "reinstate"] = "publish"
    who: Asker
    capsule: CapsuleFacts
    constitution: ConstitutionFacts
    scan: ScanFacts
    evaluation: EvaluationFacts
    approvals: ApprovalFacts
    signatures: SignatureFacts
    environment: Environment


class RentalQuestion(_Part, frozen=True, kw_only=True):
    """Whether this persona may be rented, subscribed to or bought, or a rental of it be activated."""

    schema: Literal["soma/policy_input/1"] = SCHEMA
    action: RentalAction
    who: Asker
    capsule: CapsuleFacts
    constitution: ConstitutionFacts
    signatures: SignatureFacts
    environment: Environment


QUESTIONS: dict[str, type[_Part]] = {
    "soma.export": ExportQuestion,
    "soma.import": ImportQuestion,
    "soma.publish": PublishQuestion,
    "soma.rental": RentalQuestion,
}


def export_question(
    *,
    who: Asker,
    capsule: CapsuleFacts,
    in_force: str | None,
    training: TrainingFacts,
    now: str,
    action: Literal["export", "download"] = "export",
) -> dict[str, Any]:
    """Ask whether a capsule may be exported, or its archive be downloaded."""
    asked = ExportQuestion(
        action=action,
        who=who,
        capsule=capsule,
        constitution=_compared(in_force, capsule),
        training=training,
        environment=_today(now),
    )
    return _plain(asked)


def import_question(
    *,
    who: Asker,
    capsule: CapsuleFacts,
    in_force: str | None,
    signatures: SignatureFacts,
    standing: StandingFacts,
    now: str,
) -> dict[str, Any]:
    """Ask whether a capsule from outside may be taken in."""
    asked = ImportQuestion(
        who=who,
        capsule=capsule,
        constitution=_compared(in_force, capsule),
        signatures=signatures,
        standing=standing,
        environment=_today(now),
    )
    return _plain(asked)


def publish_question(
    *,
    who: Asker,
    capsule: CapsuleFacts,
    in_force: str | None,
    scan: ScanFacts,
    evaluation: EvaluationFacts,
    approvals: ApprovalFacts,
    signatures: SignatureFacts,
    now: str,
    action: Literal["publish", "reinstate"] = "publish",
) -> dict[str, Any]:
    """Ask whether a capsule may be published, or a suspended one published again."""
    asked = PublishQuestion(
        action=action,
        who=who,
        capsule=capsule,
        constitution=_compared(in_force, capsule),
        scan=scan,
        evaluation=evaluation,
        approvals=approvals,
        signatures=signatures,
        environment=_today(now),
    )
    return _plain(asked)


def rental_question(
    *,
    who: Asker,
    capsule: CapsuleFacts,
    in_force: str | None,
    signatures: SignatureFacts,
    now: str,
    action: RentalAction = "rent",
) -> dict[str, Any]:
    """Ask whether a persona may be rented, subscribed to or bought, or a rental of it be activated."""
    asked = RentalQuestion(
        action=action,
        who=who,
        capsule=capsule,
        constitution=_compared(in_force, capsule),
        signatures=signatures,
        environment=_today(now),
    )
    return _plain(asked)


def tools_named(notes: Iterable[str], tools: Iterable[str]) -> list[str]:
    """List the tools that the notes of approvals name, each as a word of its own."""
    words = {
        word for note in notes for word in re.findall(r"[A-Za-z0-9][A-Za-z0-9._:/-]*[A-Za-z0-9]|\w", note)
    }
    return sorted(set(tools) & words)


def question_faults(package: str, question: Any) -> list[str]:
    """Say how a question does not fit its schema; an empty list means that it fits."""
    try:
        msgspec.convert(question, QUESTIONS[package])
    except msgspec.ValidationError as error:
        return [str(error)]
    return []


def question_schema() -> dict[str, Any]:
    """Give the JSON Schema of all questions, one definition for each package."""
    (refs, definitions) = msgspec.json.schema_components(
        list(QUESTIONS.values()), ref_template="#/$defs/{name}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "soma/policy_input/1",
        "title": "What the policies of Soma Ledger are asked",
        "description": "One form for each package; the policy's `input` is exactly one of them.",
        "oneOf": [ref | {"title": name} for name, ref in zip(QUESTIONS, refs, strict=True)],
        "$defs": definitions,
    }


def _compared(in_force: str | None, capsule: CapsuleFacts) -> ConstitutionFacts:
    return ConstitutionFacts(in_force=in_force, named=capsule.constitution)


def _today(now: str) -> Environment:
    return Environment(day=now[:10])


def _plain(asked: _Part) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(asked)
    return plain
