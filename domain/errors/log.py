"""Refusals about records, positions, tiles, notes and proofs."""

from __future__ import annotations

from domain.errors.families import (
    ConflictError,
    InvalidError,
    NotFoundError,
    Retry,
    UnavailableError,
    UnprocessableError,
)


class NotCanonicalError(InvalidError, code="not_canonical"):
    """The value has no canonical form: floats, NaN, lone surrogates and non-string keys are refused."""


class RecordTooLargeError(UnprocessableError, code="record_too_large"):
    """A record may hold 65,535 bytes at most."""


class PositionNotFoundError(NotFoundError, code="position_not_found"):
    """The log does not reach this position."""


class AddressNotFoundError(NotFoundError, code="address_not_found"):
    """No record has this address."""


class AddressInvalidError(InvalidError, code="invalid_address"):
    """An address is `sha3-512:` and 128 lower-case hex digits."""


class StreamNotFoundError(NotFoundError, code="stream_not_found"):
    """No record belongs to this stream."""


class ObjectNotFoundError(NotFoundError, code="object_not_found"):
    """The object store holds nothing under this address."""


class TileNotFoundError(NotFoundError, code="tile_not_found"):
    """The log has no such tile."""


class TreeSizeInvalidError(InvalidError, code="invalid_tree_size"):
    """The tree size is beyond the log, or the first size exceeds the second."""


class CheckpointNotFoundError(NotFoundError, code="checkpoint_not_found"):
    """No checkpoint was signed at this size."""


class NoteMalformedError(InvalidError, code="malformed_note"):
    """The text is not a signed note."""


class NoteUnverifiedError(UnprocessableError, code="unverified_note"):
    """No known key signed the note, or the signature of a known key is wrong."""


class KeyMalformedError(InvalidError, code="malformed_key"):
    """The text is not a note key of a kind this service knows."""


class ProofMalformedError(InvalidError, code="malformed_proof"):
    """The text is not a transparency log proof."""


class PolicyMalformedError(InvalidError, code="malformed_policy"):
    """The text is not a transparency log policy."""


class QuorumMissingError(UnprocessableError, code="quorum_missing"):
    """The checkpoint lacks cosignatures the policy asks for."""


class BundleMalformedError(InvalidError, code="malformed_bundle"):
    """The bytes are not a bundle of records."""


class CosignatureInvalidError(InvalidError, code="invalid_cosignature"):
    """The cosignature does not verify for a witness this log knows."""


class ProofInvalidError(UnprocessableError, code="invalid_proof"):
    """The proof does not lead to the stated root."""


class WitnessExistsError(ConflictError, code="witness_exists", retry=Retry.NEVER):
    """A witness of this name, or with this key, is known under other words."""


class ExportExistsError(ConflictError, code="export_exists", retry=Retry.NEVER):
    """There is something under the name of the export already; it is never written over."""


class ExportFailedError(UnavailableError, code="export_failed", status=503, retry=Retry.AS_IS):
    """The log could not be read to its end, or the export not be written; nothing was left under its name."""


class LogIdentityError(UnavailableError, code="log_identity_mismatch", status=503, retry=Retry.NEVER):
    """The database belongs to a log with another origin or key."""


class LogDamagedError(UnavailableError, code="log_damaged", status=503, retry=Retry.NEVER):
    """Stored bytes do not hash to what the log committed to."""


class ExportDamagedError(UnprocessableError, code="export_damaged"):
    """The export is not the log that was signed, so nothing in it can be relied on."""


class ExportTooShortError(UnprocessableError, code="export_too_short"):
    """The export ends before what the invoice says to have counted."""
