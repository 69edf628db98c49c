"""Imports of capsules: every attempt is an event, and nothing of a refused one becomes anybody's.

    requested -> completed | refused

An archive that came in as an artifact is unpacked and checked by a worker; what it finds is decided here: the
signatures beside it against the keys that are pinned in this log, the constitution, what this log knows of the capsule
already, and the policy. Envelopes say who vouches for a capsule; the policy and the constitution that travel beside
them only say which, for both must have been adopted here.
"""

from __future__ import annotations

from typing import Any

import msgspec
from pydantic import Field

from domain.canonical import sealed
from domain.errors import (
    AttestationsMalformedError,
    CapsuleRollbackError,
    CapsuleTamperedError,
    CapsuleVersionTakenError,
    ConstitutionMismatchError,
    ImportNotFoundError,
    LedgerError,
    NotCanonicalError,
    PolicyUnavailableError,
)
from domain.fields import Command
from domain.ledger import Case, allow
from domain.log.records import Aggregate, Event, Record, encode_state
from domain.persona.artifacts import get_artifact, own_artifact
from domain.persona.attempts import KeptRefusal, need, problem_of, told
from domain.persona.capsules import Capsule, check_usable
from domain.persona.facts import (
    capsule_facts,
    check_recordable,
    constitution_in_force,
    owners_of,
    signature_facts,
)
from domain.persona.manifest import PersonaManifest, capsule_id, parse_manifest
from domain.persona.manifest_fields import version_key
from domain.persona.personas import AUTHORS
from domain.persona.tokens import TokenEstimate
from domain.trust.constitutions import CONSTITUTION_CONTEXT, check_constitution
from domain.trust.dsse import Envelope
from domain.trust.judgements import Judgement, Judgements, check_allowed, judged
from domain.trust.pinned import POLICY_CONTEXT
from domain.trust.questions import Asker, StandingFacts, import_question
from domain.trust.signatures import Verification, check_verified, verify_import

PACKAGE = "soma.import"
SCHEMA = "soma/attestations/1"
MEMBERS = frozenset({"schema", "capsule", "policy", "constitution", "envelopes"})
ENVELOPES_MAX = 32
ENVELOPES_BYTES_MAX = 32_768


class Attestations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What came beside an archive: who vouches for which capsule, under which policy and constitution."""

    capsule: str
    policy: str
    constitution: str
    envelopes: list[Envelope]


class HeldVersion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version that was imported."""

    version: str
    capsule: str


class Holding(Aggregate):
    """What a tenant imported of one persona. Its versions stand in the order of their numbers."""

    KIND = "holding"

    persona_id: str = ""
    versions: list[HeldVersion] = msgspec.field(default_factory=list)

    class Extended(Event, frozen=True):
        """A version was imported."""

        TOPIC = "holding.extended"

        persona_id: str
        version: str
        capsule: str
        import_id: str

        def apply(self, holding: Holding, record: Record) -> None:
            holding.persona_id = self.persona_id
            held = [*holding.versions, HeldVersion(self.version, self.capsule)]
            holding.versions = sorted(held, key=lambda one: version_key(one.version))

    def owner_key(self) -> str:
        return self.persona_id

    @property
    def newest(self) -> str | None:
        """Name the version with the highest number."""
        return self.versions[-1].version if self.versions else None


class CapsuleImport(Aggregate):
    """One attempt to take a capsule in from outside."""

    KIND = "import"

    archive: str = ""
    archive_bytes: int = 0
    attestations: Attestations | None = None
    allow_older: bool = False
    requested_by: str = ""
    roles: list[str] = msgspec.field(default_factory=list)
    status: str = "requested"
    capsule: str | None = None
    persona_id: str | None = None
    persona_version: str | None = None
    problem: KeptRefusal | None = None

    class Requested(Event, frozen=True):
        """Somebody brought an archive and what vouches for it; a worker unpacks it."""

        TOPIC = "import.requested"

        archive: str
        archive_bytes: int
        attestations: Attestations
        allow_older: bool
        roles: list[str]

        def apply(self, taken: CapsuleImport, record: Record) -> None:
            for name in self.__struct_fields__:
                setattr(taken, name, getattr(self, name))
            taken.requested_by = record.actor

    class Accepted(Event, frozen=True):
        """The archive is what it says, and enough pinned keys vouch for it."""

        TOPIC = "import.accepted"

        persona_id: str
        version: str
        capsule: str
        threshold: int
        signed: list[str]
        judgement: Judgement

        def apply(self, taken: CapsuleImport, record: Record) -> None:
            taken.status, taken.capsule = "completed", self.capsule
            taken.persona_id, taken.persona_version = self.persona_id, self.version

    class Refused(Event, frozen=True):
        """The archive is not taken in."""

        TOPIC = "import.refused"

        archive: str
        capsule: str | None
        code: str
        problem: KeptRefusal

        def apply(self, taken: CapsuleImport, record: Record) -> None:
            taken.archive, taken.capsule = self.archive, self.capsule
            taken.requested_by = taken.requested_by or record.actor
            taken.status, taken.problem = "refused", self.problem

    def status_key(self) -> str:
        return self.status

    def owner_key(self) -> str | None:
        return self.persona_id


# --------------------------------------------------------------------------- commands


class RequestImport(Command):
    """Bring an archive that was uploaded as an artifact, and the attestations that travel beside it."""

    archive: str = Field(max_length=200)
    attestations: dict[str, Any]
    allow_older: bool = False


class AcceptImport(Command):
    """Tell what an archive turned out to hold, after every byte of it was checked."""

    import_id: str
    manifest: dict[str, Any]
    token_estimate: dict[str, Any] | None = None


class RefuseImport(Command):
    """Tell what is wrong with an archive."""

    import_id: str
    code: str
    detail: str
    facts: dict[str, Any] = {}
    manifest: dict[str, Any] | None = None


class _Passed(msgspec.Struct):
    """What an import that may be accepted comes to."""

    manifest: PersonaManifest
    verification: Verification
    judgement: Judgement


@allow()
def request_import(case: Case, command: RequestImport) -> CapsuleImport:
    """Ask for an import; a refusal is the answer and not an exception, for it is written down.

    Codes of refusals: artifact_not_found, attestations_malformed, forbidden, invalid_address, malformed_envelope.
    """
    try:
        need(case, *AUTHORS)
        artifact = get_artifact(case, case.caller.tenant, command.archive)
        attestations = read_attestations(command.attestations)
    except LedgerError as refusal:
        problem = problem_of(refusal)
        named = told("", command.archive, {}).detail
        refused = CapsuleImport.Refused(archive=named, capsule=None, code=problem.code, problem=problem)
        return case.create(CapsuleImport, case.new_id("import"), refused)
    requested = CapsuleImport.Requested(
        archive=command.archive,
        archive_bytes=artifact.size_bytes,
        attestations=attestations,
        allow_older=command.allow_older,
        roles=sorted(case.caller.roles),
    )
    return case.create(CapsuleImport, case.new_id("import"), requested)


@allow("service")
def check_import(case: Case, command: AcceptImport, *, judgements: Judgements | None) -> CapsuleImport:
    """Say whether an import could be accepted, before anything of it is kept; only a refusal is written.

    Errors: import_not_found.
    """
    taken = case.get(CapsuleImport, command.import_id, ImportNotFoundError)
    if taken.status == "requested":
        _passed(case, taken, command, judgements)
    return taken


@allow("service")
def accept_import(case: Case, command: AcceptImport, *, judgements: Judgements | None) -> CapsuleImport:
    """Take a capsule in, or refuse it; its parts are the tenant's from here on. Twice is as once.

    Codes of refusals: capsule_revoked, capsule_rollback, capsule_suspended, capsule_tampered, capsule_version_taken,
    constitution_mismatch, constitution_missing, invalid_status_transition, malformed_envelope, manifest_invalid,
    payload_type_unknown, policy_denied, policy_unavailable, signer_policy_missing, signer_policy_not_found,
    threshold_not_met.
    Errors: import_not_found.
    """
    taken = case.get(CapsuleImport, command.import_id, ImportNotFoundError)
    if taken.status != "requested":
        return taken
    passed = _passed(case, taken, command, judgements)
    if passed is None:
        return taken
    _take_in(case, taken, passed.manifest, command.token_estimate)
    accepted = CapsuleImport.Accepted(
        persona_id=passed.manifest.metadata.persona_id,
        version=passed.manifest.metadata.version,
        capsule=passed.manifest.address,
        threshold=passed.verification.threshold,
        signed=[signer.name for signer in passed.verification.signed],
        judgement=passed.judgement,
    )
    return case.emit(taken, accepted)


@allow("service")
def refuse_import(case: Case, command: RefuseImport) -> CapsuleImport:
    """Write down what is wrong with an archive; an import that ended before stays as it ended.

    Errors: import_not_found.
    """
    taken = case.get(CapsuleImport, command.import_id, ImportNotFoundError)
    if taken.status != "requested":
        return taken
    capsule = None
    if command.manifest is not None:
        try:
            capsule = parse_manifest(command.manifest).address
        except LedgerError:
            capsule = None  # what cannot be read has no address
    return _refuse(case, taken, capsule, told(command.code, command.detail, command.facts))


# --------------------------------------------------------------------------- what travels beside an archive


def read_attestations(sent: dict[str, Any]) -> Attestations:
    """Read what came beside an archive; of the documents in it only their addresses count.

    Errors: attestations_malformed, malformed_envelope.
    """
    if set(sent) != MEMBERS or sent["schema"] != SCHEMA:
        raise AttestationsMalformedError(
            f"attestations are an object of schema {SCHEMA}", members=sorted(MEMBERS)
        )
    envelopes = sent["envelopes"]
    if (
        not isinstance(envelopes, list)
        or len(envelopes) > ENVELOPES_MAX
        or not isinstance(sent["capsule"], str)
    ):
        raise AttestationsMalformedError(envelopes_max=ENVELOPES_MAX)
    read = Attestations(
        capsule=sent["capsule"],
        policy=_address(POLICY_CONTEXT, sent["policy"]),
        constitution=_address(CONSTITUTION_CONTEXT, sent["constitution"]),
        envelopes=[Envelope.parse(envelope) for envelope in envelopes],
    )
    data = encode_state(read)
    if len(data) > ENVELOPES_BYTES_MAX or b"\\u0000" in data:
        raise AttestationsMalformedError(
            "the envelopes are too large, or hold what no text does", bytes_max=ENVELOPES_BYTES_MAX
        )
    return read


def _address(context: str, document: Any) -> str:
    if isinstance(document, str) and len(document) <= 200:
        return document
    try:
        return sealed(context, document)[1]
    except NotCanonicalError as error:
        raise AttestationsMalformedError("a document in it has no canonical form") from error


# --------------------------------------------------------------------------- what an import needs


def _passed(
    case: Case, taken: CapsuleImport, command: AcceptImport, judgements: Judgements | None
) -> _Passed | None:
    """Hold an import against everything; None means that its refusal is written."""
    capsule = None
    try:
        manifest = parse_manifest(command.manifest)
        capsule = manifest.address
        check_recordable(manifest)
        attestations = taken.attestations
        assert attestations is not None, "an import that was requested has attestations"
        _check_here(case, manifest, attestations)
        found = _vouched(case, manifest, attestations)
        standing = _standing(case, taken, manifest)
        judgement = _judged(case, taken, manifest, found, standing, judgements)
    except LedgerError as refusal:
        _refuse(case, taken, capsule, problem_of(refusal))
        return None
    return _Passed(manifest, found, judgement)


def _check_here(case: Case, manifest: PersonaManifest, attestations: Attestations) -> None:
    """Hold a capsule against what travels with it and what this log knows."""
    if attestations.capsule != manifest.address:
        raise CapsuleTamperedError(
            "the attestations are about another capsule",
            part="attestations",
            expected=attestations.capsule,
            found=manifest.address,
        )
    named = manifest.governance.constitution
    if attestations.constitution != named:
        raise ConstitutionMismatchError(
            "the attestations name another constitution", expected=named, found=attestations.constitution
        )
    check_constitution(case, named)
    known = case.find(Capsule, capsule_id(manifest.address))
    if known is not None:
        check_usable(known, "import", named)


def _vouched(case: Case, manifest: PersonaManifest, attestations: Attestations) -> Verification:
    found = verify_import(
        case,
        manifest.address,
        manifest.governance.constitution,
        attestations.policy,
        msgspec.to_builtins(attestations.envelopes),
        owners_of(manifest.document()),
    )
    return check_verified(found)


def _standing(case: Case, taken: CapsuleImport, manifest: PersonaManifest) -> StandingFacts:
    """Say what the tenant imported of this persona before.

    Errors: capsule_rollback, capsule_version_taken.
    """
    holding = case.find(Holding, _holding_id(taken.tenant, manifest))
    version, newest = manifest.metadata.version, holding.newest if holding else None
    for held in holding.versions if holding else ():
        if held.version == version and held.capsule != manifest.address:
            raise CapsuleVersionTakenError(version=version, capsule=held.capsule)
    is_older = newest is not None and version_key(version) < version_key(newest)
    if is_older and not taken.allow_older:
        raise CapsuleRollbackError(newest_version=newest, version=version)
    return StandingFacts(newest_version=newest, is_older=is_older, allow_older=taken.allow_older)


def _judged(
    case: Case,
    taken: CapsuleImport,
    manifest: PersonaManifest,
    found: Verification,
    standing: StandingFacts,
    judgements: Judgements | None,
) -> Judgement:
    if judgements is None:
        raise PolicyUnavailableError(package=PACKAGE)
    known = case.find(Capsule, capsule_id(manifest.address))
    question = import_question(
        who=Asker.of(taken.requested_by, taken.tenant, taken.roles),
        capsule=capsule_facts(
            manifest.document(),
            manifest.address,
            known.tenant if known else taken.tenant,
            known.status if known else "none",
        ),
        in_force=constitution_in_force(case),
        signatures=signature_facts(found),
        standing=standing,
        now=case.now,
    )
    return check_allowed(judged(judgements, PACKAGE, question))


def _take_in(
    case: Case, taken: CapsuleImport, manifest: PersonaManifest, token_estimate: dict[str, Any] | None
) -> None:
    """Have the tenant hold the parts and the version, and the log know the capsule."""
    address, metadata = manifest.address, manifest.metadata
    for part in manifest.parts:
        own_artifact(case, taken.tenant, part.digest, part.bytes, "import")
    named: dict[str, Any] = {
        "persona_id": metadata.persona_id,
        "version": metadata.version,
        "capsule": address,
    }
    extended = Holding.Extended(import_id=taken.id, **named)
    holding = case.find(Holding, _holding_id(taken.tenant, manifest))
    if holding is None:
        case.create(Holding, _holding_id(taken.tenant, manifest), extended, tenant=taken.tenant)
    elif all(held.capsule != address for held in holding.versions):
        case.emit(holding, extended)
    if case.find(Capsule, capsule_id(address)) is None:
        imported = Capsule.Imported(
            manifest=manifest.document(),
            archive=taken.archive,
            archive_bytes=taken.archive_bytes,
            token_estimate=msgspec.convert(token_estimate, TokenEstimate | None),
            import_id=taken.id,
            **named,
        )
        case.create(Capsule, capsule_id(address), imported, tenant=taken.tenant)


def _holding_id(tenant: str, manifest: PersonaManifest) -> str:
    return f"{tenant}.{manifest.metadata.persona_id}"


def _refuse(case: Case, taken: CapsuleImport, capsule: str | None, problem: KeptRefusal) -> CapsuleImport:
    refused = CapsuleImport.Refused(
        archive=taken.archive, capsule=capsule, code=problem.code, problem=problem
    )
    return case.emit(taken, refused)
