"""Refusals about personas, capsules, their archives, and what is done with them."""

from __future__ import annotations

from domain.errors.families import ConflictError, InvalidError, NotFoundError, Retry, UnprocessableError


class PersonaNotFoundError(NotFoundError, code="persona_not_found"):
    """There is no such persona."""


class PersonaIdTakenError(ConflictError, code="persona_id_taken", retry=Retry.NEVER):
    """A persona of this id exists; ids are given once, to whoever comes first."""


class CapsuleNotFoundError(NotFoundError, code="capsule_not_found"):
    """There is no such capsule."""


class CapsuleVersionTakenError(ConflictError, code="capsule_version_taken", retry=Retry.NEVER):
    """This version was exported before, with other content; a version is given once."""


class CapsuleRevokedError(UnprocessableError, code="capsule_revoked"):
    """The capsule was revoked; it cannot be imported, published, rented or activated."""


class CapsuleSuspendedError(ConflictError, code="capsule_suspended"):
    """The capsule is suspended."""


class CapsuleTamperedError(UnprocessableError, code="capsule_tampered"):
    """The capsule is not what its seal says; `part` names where it differs."""


class CapsuleRollbackError(UnprocessableError, code="capsule_rollback"):
    """A newer version of this persona was imported before."""


class ManifestInvalidError(InvalidError, code="manifest_invalid"):
    """The manifest breaks its schema; `faults` lists each fault with its path."""


class ArchiveInvalidError(UnprocessableError, code="archive_invalid"):
    """The archive is not in the one form a capsule has; `why` says how."""


class ArchiveLimitError(UnprocessableError, code="archive_limit"):
    """The archive is larger, or holds more, than is taken in."""


class AttestationsMalformedError(InvalidError, code="attestations_malformed"):
    """What travels beside an archive is not in the form of attestations."""


class ArtifactNotFoundError(NotFoundError, code="artifact_not_found"):
    """There is no such artifact, or it is another tenant's."""


class ArtifactMismatchError(UnprocessableError, code="artifact_mismatch"):
    """The bytes do not hash to the address they were sent under."""


class ArtifactOffsetError(ConflictError, code="artifact_offset"):
    """A piece of an upload starts where the bytes so far end."""


class MemoryBundleInvalidError(UnprocessableError, code="memory_bundle_invalid"):
    """The memory bundle is not readable as the manifest describes it."""


class ExportNotFoundError(NotFoundError, code="export_not_found"):
    """There is no such export."""


class ImportNotFoundError(NotFoundError, code="import_not_found"):
    """There is no such import."""


class EvaluationNotFoundError(NotFoundError, code="evaluation_not_found"):
    """There is no such evaluation."""


class EvaluationSuiteNotFoundError(NotFoundError, code="evaluation_suite_not_found"):
    """There is no published suite of this name."""


class EvaluationSuiteError(UnprocessableError, code="evaluation_suite_invalid"):
    """The evaluation suite cannot be run on this persona."""


class EvaluationFailedError(UnprocessableError, code="evaluation_failed"):
    """The evaluation did not pass the guard, or does not give the report the manifest names."""


class NotInspectedError(ConflictError, code="not_inspected"):
    """The capsule was not scanned and evaluated yet."""


class ClaimNotFoundError(NotFoundError, code="claim_not_found"):
    """There is no such claim."""


class EncryptionKeyError(UnprocessableError, code="encryption_key_missing"):
    """The key that an object was encrypted under is not there."""
