"""Exports and downloads of capsules: every attempt is an event, whether it was allowed or refused.

    requested -> completed | failed        once a worker packed the archive, or could not
    refused                                at once, with the code of the refusal

A refusal is written down and then told, so the caller hears the same as of any other command, and the log holds who
tried what. What the worker does in between is checked again when it delivers: a fence that went stale meanwhile, a
constitution that changed, a version that somebody else sealed first.
"""

from __future__ import annotations

import json
from functools import lru_cache
from hashlib import sha3_512
from typing import Annotated, Any

import msgspec
from pydantic import Field, StringConstraints

from domain.errors import (
    ArtifactMismatchError,
    CapsuleNotFoundError,
    CapsuleVersionTakenError,
    ExportNotFoundError,
    LedgerError,
    ManifestInvalidError,
    PersonaNotFoundError,
    PolicyUnavailableError,
)
from domain.fields import Command
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record
from domain.persona.artifacts import Artifact, artifact_id, get_artifact
from domain.persona.attempts import KeptRefusal, need, problem_of, told
from domain.persona.capsules import Capsule, check_not_ended, may_read
from domain.persona.facts import asker, capsule_facts, check_recordable, constitution_in_force, training_facts
from domain.persona.manifest import PersonaManifest, capsule_id, read_manifest
from domain.persona.manifest_faults import invalid
from domain.persona.personas import AUTHORS, Persona, check_version_free, note_version, own_persona
from domain.persona.tokens import TokenEstimate
from domain.trust.constitutions import check_constitution
from domain.trust.judgements import Judgement, Judgements, check_allowed, judged
from domain.trust.questions import TrainingFacts, export_question
from domain.trust.training import check_fence

PACKAGE = "soma.export"
MANIFEST_TEXT_MAX = 65_536
READERS = (*AUTHORS, "reviewer", "signer", "auditor")


class CapsuleExport(Aggregate):
    """One attempt to seal a persona into a capsule."""

    KIND = "export"

    persona_id: str = ""
    persona_version: str = ""
    capsule: str = ""
    submitted: str = ""
    manifest: dict[str, Any] = msgspec.field(default_factory=dict)
    fence: int | None = None
    requested_by: str = ""
    status: str = "requested"
    archive: str | None = None
    archive_bytes: int | None = None
    token_estimate: TokenEstimate | None = None
    problem: KeptRefusal | None = None

    class Requested(Event, frozen=True):
        """Somebody asked for a capsule, and may have it; a worker packs it."""

        TOPIC = "export.requested"

        persona_id: str
        version: str
        capsule: str
        submitted: str
        manifest: dict[str, Any]
        fence: int | None
        judgement: Judgement

        def apply(self, export: CapsuleExport, record: Record) -> None:
            export.persona_id, export.persona_version = self.persona_id, self.version
            export.capsule, export.submitted = self.capsule, self.submitted
            export.manifest, export.fence = self.manifest, self.fence
            export.requested_by = record.actor

    class Refused(Event, frozen=True):
        """Somebody asked for a capsule, and was refused."""

        TOPIC = "export.refused"

        persona_id: str
        version: str
        capsule: str
        submitted: str
        code: str
        problem: KeptRefusal

        def apply(self, export: CapsuleExport, record: Record) -> None:
            export.persona_id, export.persona_version = self.persona_id, self.version
            export.capsule, export.submitted = self.capsule, self.submitted
            export.requested_by = record.actor
            export.status, export.problem = "refused", self.problem

    class Completed(Event, frozen=True):
        """The capsule is sealed, and its archive is in the vault."""

        TOPIC = "export.completed"

        persona_id: str
        capsule: str
        archive: str
        archive_bytes: int
        token_estimate: TokenEstimate | None

        def apply(self, export: CapsuleExport, record: Record) -> None:
            export.status = "completed"
            export.archive, export.archive_bytes = self.archive, self.archive_bytes
            export.token_estimate = self.token_estimate

    class Failed(Event, frozen=True):
        """The capsule could not be packed, or might not be sealed any more when it was."""

        TOPIC = "export.failed"

        persona_id: str
        capsule: str
        code: str
        problem: KeptRefusal

        def apply(self, export: CapsuleExport, record: Record) -> None:
            export.status, export.problem = "failed", self.problem

    def status_key(self) -> str:
        return self.status

    def owner_key(self) -> str:
        return self.persona_id


class CapsuleDownload(Aggregate):
    """One attempt to have an archive sent."""

    KIND = "download"
    LASTING = False

    capsule: str = ""
    status: str = "granted"
    archive: str | None = None
    archive_bytes: int | None = None
    problem: KeptRefusal | None = None

    class Granted(Event, frozen=True):
        """The archive of a capsule is sent to somebody."""

        TOPIC = "download.granted"

        capsule: str
        persona_id: str
        version: str
        archive: str
        archive_bytes: int
        judgement: Judgement

        def apply(self, download: CapsuleDownload, record: Record) -> None:
            download.capsule = self.capsule
            download.archive, download.archive_bytes = self.archive, self.archive_bytes

    class Refused(Event, frozen=True):
        """The archive of a capsule is not sent to somebody."""

        TOPIC = "download.refused"

        capsule: str
        code: str
        problem: KeptRefusal

        def apply(self, download: CapsuleDownload, record: Record) -> None:
            download.capsule = self.capsule
            download.status, download.problem = "refused", self.problem

    def status_key(self) -> str:
        return self.status

    def owner_key(self) -> str:
        return self.capsule[:200]


# --------------------------------------------------------------------------- commands

ManifestText = Annotated[str, StringConstraints(max_length=MANIFEST_TEXT_MAX)]


class RequestExport(Command):
    """Ask for a capsule of a persona.

    The manifest is an object, or text in JSON or YAML. While the tenant's training lock is on, its fence is needed.
    """

    persona_id: str = Field(max_length=200)
    manifest: dict[str, Any] | ManifestText
    fence: int | None = Field(None, ge=1, le=2**53 - 1)


class CompleteExport(Command):
    """Deliver an archive that was packed."""

    export_id: str
    archive: str
    archive_bytes: int = Field(ge=1)
    token_estimate: dict[str, Any] | None = None


class FailExport(Command):
    """Tell why an archive could not be packed."""

    export_id: str
    code: str
    detail: str
    facts: dict[str, Any] = {}


class DownloadCapsule(Command):
    """Ask for a capsule's archive."""

    capsule_id: str


class _Asked(msgspec.Struct):
    """What is known of an attempt so far."""

    submitted: str
    persona_id: str
    version: str = ""
    capsule: str = ""


@allow()
def request_export(case: Case, command: RequestExport, *, judgements: Judgements | None) -> CapsuleExport:
    """Ask for a capsule; a refusal is the answer and not an exception, for it is written down.

    Without judgements the policy could not be asked, and the attempt is refused as that.
    Codes of refusals: artifact_mismatch, artifact_not_found, capsule_revoked, capsule_suspended,
    capsule_version_taken, constitution_mismatch, constitution_missing, forbidden, manifest_invalid,
    persona_not_found, policy_denied, policy_unavailable, stale_fence, training_mode_disabled.
    """
    data = _bytes_of(command.manifest)
    asked = _Asked("sha3-512:" + sha3_512(data).hexdigest(), told("", command.persona_id, {}).detail)
    try:
        persona, manifest = _sealable(case, command, data, asked)
        judgement = _exportable(case, persona, manifest, command.fence, judgements)
    except LedgerError as refusal:
        problem = problem_of(refusal)
        refused = CapsuleExport.Refused(
            code=problem.code,
            problem=problem,
            persona_id=asked.persona_id,
            version=asked.version,
            capsule=asked.capsule,
            submitted=asked.submitted,
        )
        return case.create(CapsuleExport, case.new_id("export"), refused)
    requested = CapsuleExport.Requested(
        persona_id=persona.id,
        version=asked.version,
        capsule=asked.capsule,
        submitted=asked.submitted,
        manifest=manifest.document(),
        fence=command.fence,
        judgement=judgement,
    )
    return case.create(CapsuleExport, case.new_id("export"), requested, tenant=persona.tenant)


@allow("service")
def complete_export(case: Case, command: CompleteExport) -> CapsuleExport:
    """Deliver an archive: from here on the capsule exists. What may not be sealed any more fails; twice is as once.

    Errors: export_not_found.
    """
    export = case.get(CapsuleExport, command.export_id, ExportNotFoundError)
    if export.status != "requested":
        return export
    try:
        persona = _still_sealable(case, export)
    except LedgerError as refusal:
        return _failed(case, export, problem_of(refusal))
    completed = CapsuleExport.Completed(
        persona_id=export.persona_id,
        capsule=export.capsule,
        archive=command.archive,
        archive_bytes=command.archive_bytes,
        token_estimate=msgspec.convert(command.token_estimate, TokenEstimate | None),
    )
    case.emit(export, completed)
    capsule = case.find(Capsule, capsule_id(export.capsule)) or _seal(case, export)
    note_version(case, persona, export.persona_version, export.capsule, capsule.status)
    return export


@allow("service")
def fail_export(case: Case, command: FailExport) -> CapsuleExport:
    """Write down why an archive could not be packed; an export that ended before stays as it ended.

    Errors: export_not_found.
    """
    export = case.get(CapsuleExport, command.export_id, ExportNotFoundError)
    if export.status != "requested":
        return export
    return _failed(case, export, told(command.code, command.detail, command.facts))


@allow()
def download_capsule(
    case: Case, command: DownloadCapsule, *, judgements: Judgements | None
) -> CapsuleDownload:
    """Ask for an archive; a refusal is the answer and not an exception, for it is written down.

    Codes of refusals: capsule_not_found, capsule_revoked, capsule_suspended, forbidden, invalid_status_transition,
    policy_denied, policy_unavailable.
    """
    named = told("", command.capsule_id, {}).detail[:200]
    try:
        capsule = _downloadable(case, command.capsule_id)
        named = capsule.address
        judgement = _judged(judgements, _download_question(case, capsule))
    except LedgerError as refusal:
        problem = problem_of(refusal)
        refused = CapsuleDownload.Refused(capsule=named, code=problem.code, problem=problem)
        return case.create(CapsuleDownload, case.new_id("download"), refused)
    granted = CapsuleDownload.Granted(
        capsule=capsule.address,
        persona_id=capsule.persona_id,
        version=capsule.persona_version,
        archive=capsule.archive,
        archive_bytes=capsule.archive_bytes,
        judgement=judgement,
    )
    return case.create(CapsuleDownload, case.new_id("download"), granted)


# --------------------------------------------------------------------------- what an export needs


def _bytes_of(manifest: dict[str, Any] | str) -> bytes:
    text = manifest if isinstance(manifest, str) else json.dumps(manifest, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


@lru_cache(maxsize=32)
def _read(data: bytes) -> PersonaManifest | ManifestInvalidError:
    """Read a manifest, once for all runs of a decision; a fault is a value here, so that it is kept too."""
    try:
        return read_manifest(data)
    except ManifestInvalidError as error:
        return error


def _sealable(
    case: Case, command: RequestExport, data: bytes, asked: _Asked
) -> tuple[Persona, PersonaManifest]:
    """Read the persona and the manifest; what becomes known on the way is noted for the refusal's event.

    Errors: forbidden, manifest_invalid, persona_not_found.
    """
    need(case, *AUTHORS)
    persona = own_persona(case, command.persona_id)
    manifest = _read(data)
    if isinstance(manifest, ManifestInvalidError):
        # The one that is kept is never raised: it would carry the traces of everybody who ever heard it.
        raise ManifestInvalidError(manifest.message, **manifest.facts)
    asked.capsule, asked.version = manifest.address, manifest.metadata.version
    named = manifest.metadata.persona_id
    if named != persona.id:
        raise invalid([{"path": "/metadata/persona_id", "why": f"this is not {persona.id}", "got": named}])
    check_recordable(manifest)
    return persona, manifest


def _exportable(
    case: Case,
    persona: Persona,
    manifest: PersonaManifest,
    fence: int | None,
    judgements: Judgements | None,
) -> Judgement:
    """Hold a manifest against everything an export needs; the policy is asked last.

    Errors: artifact_mismatch, artifact_not_found, capsule_revoked, capsule_suspended, capsule_version_taken,
            constitution_mismatch, constitution_missing, invalid_status_transition, policy_denied,
            policy_unavailable, stale_fence, training_mode_disabled.
    """
    document, address = manifest.document(), manifest.address
    status = _check_standing(case, persona, manifest.metadata.version, address)
    check_constitution(case, manifest.governance.constitution)
    check_fence(case, persona.tenant, fence)
    _check_parts(case, persona.tenant, manifest)
    question = export_question(
        who=asker(case),
        capsule=capsule_facts(document, address, persona.tenant, status),
        in_force=constitution_in_force(case),
        training=training_facts(case, persona.tenant, fence),
        now=case.now,
    )
    return _judged(judgements, question)


def _check_standing(case: Case, persona: Persona, version: str, address: str) -> str:
    check_version_free(persona, version, address)
    capsule = case.find(Capsule, capsule_id(address))
    if capsule is None:
        return "none"
    if capsule.tenant != persona.tenant:
        raise CapsuleVersionTakenError("another tenant imported this very capsule", capsule=address)
    check_not_ended(capsule)
    return capsule.status


def _check_parts(case: Case, tenant: str, manifest: PersonaManifest) -> None:
    case.look(Artifact, [artifact_id(tenant, part.digest) for part in manifest.parts])
    for part in manifest.parts:
        found = get_artifact(case, tenant, part.digest)
        if found.size_bytes != part.bytes:
            raise ArtifactMismatchError(
                f"{part.name} has {found.size_bytes} bytes, the manifest says {part.bytes}",
                part=part.name,
                expected=part.bytes,
                found=found.size_bytes,
            )


def _judged(judgements: Judgements | None, question: dict[str, Any]) -> Judgement:
    if judgements is None:
        raise PolicyUnavailableError(package=PACKAGE)
    return check_allowed(judged(judgements, PACKAGE, question))


def _still_sealable(case: Case, export: CapsuleExport) -> Persona:
    persona = case.get(Persona, export.persona_id, PersonaNotFoundError)
    _check_standing(case, persona, export.persona_version, export.capsule)
    check_constitution(case, export.manifest["governance"]["constitution"])
    check_fence(case, export.tenant, export.fence)
    return persona


def _seal(case: Case, export: CapsuleExport) -> Capsule:
    exported = Capsule.Exported(
        persona_id=export.persona_id,
        version=export.persona_version,
        capsule=export.capsule,
        manifest=export.manifest,
        archive=export.archive or "",
        archive_bytes=export.archive_bytes or 0,
        token_estimate=export.token_estimate,
        export_id=export.id,
    )
    return case.create(Capsule, capsule_id(export.capsule), exported, tenant=export.tenant)


def _failed(case: Case, export: CapsuleExport, problem: KeptRefusal) -> CapsuleExport:
    failed = CapsuleExport.Failed(
        persona_id=export.persona_id, capsule=export.capsule, code=problem.code, problem=problem
    )
    return case.emit(export, failed)


# --------------------------------------------------------------------------- what a download needs


def _downloadable(case: Case, name: str) -> Capsule:
    """Read a capsule whose archive the caller may ask for; operators and auditors may have those that were ended.

    Errors: capsule_not_found, capsule_revoked, capsule_suspended, forbidden, invalid_status_transition.
    """
    need(case, *READERS)
    capsule = case.find(Capsule, capsule_id(name))
    if capsule is None or not (capsule.published_at is not None or may_read(case.caller, capsule)):
        raise CapsuleNotFoundError(id=name[:160])
    is_taken_back = capsule.status == "withdrawn" and capsule.tenant == case.caller.tenant
    if not is_taken_back and not case.caller.roles & {"operator", "auditor"}:
        check_not_ended(capsule)
    return capsule


def _download_question(case: Case, capsule: Capsule) -> dict[str, Any]:
    return export_question(
        who=asker(case),
        capsule=capsule_facts(capsule.manifest, capsule.address, capsule.tenant, capsule.status),
        in_force=constitution_in_force(case),
        # A sealed archive cannot be changed by training, so its lock says nothing about it.
        training=TrainingFacts(on=False, fence_fresh=True),
        now=case.now,
        action="download",
    )
