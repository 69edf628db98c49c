"""Statements, and what signatures under a policy come to.

A signature counts if its key is pinned, was neither revoked nor out of its time, belongs to nobody who gains by it, and
is over exactly this statement. Keys are counted, and persons, never key ids. Whatever does not count is told with its
reason, so that the answer names who signed, who is missing, and what was refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, NamedTuple

import msgspec

from domain.canonical import encode_record, is_canonical
from domain.errors import EnvelopeMalformedError, ThresholdNotMetError
from domain.log.notes import parse_base64
from domain.trust.dsse import Envelope, Signature, seal_envelope
from domain.trust.keys import Signer, is_signed
from domain.trust.pinned import PinnedKey, PolicyDocument

PAYLOAD_TYPE = "application/vnd.soma.capsule-approval.v1+json"
DOCUMENT_PAYLOAD_TYPE = "application/vnd.soma.trust-document.v1+json"
PAYLOAD_TYPES = (PAYLOAD_TYPE, DOCUMENT_PAYLOAD_TYPE)

COUNTED_MAX = 64

_Address = Annotated[str, msgspec.Meta(pattern=r"^sha3-512:[0-9a-f]{128}$", max_length=137)]
_Moment = Annotated[
    str, msgspec.Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{6}Z$", max_length=27)
]


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a signer of a capsule says: this capsule, under this constitution and policy, for this, until then."""

    capsule: _Address
    constitution: _Address
    not_after: _Moment
    policy: _Address
    purpose: str


class DocumentStatement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a signer of a policy or a constitution says."""

    document: _Address
    not_after: _Moment
    policy: _Address
    purpose: str


def payload_of(statement: Statement | DocumentStatement) -> bytes:
    """Write a statement in the one form that is signed.

    Source: RFC 8785.
    """
    return encode_record(msgspec.to_builtins(statement))


def sign_statement(statement: Statement | DocumentStatement, *signers: Signer) -> Envelope:
    """Have every signer sign a statement."""
    kind = PAYLOAD_TYPE if isinstance(statement, Statement) else DOCUMENT_PAYLOAD_TYPE
    return seal_envelope(kind, payload_of(statement), *signers)


class Wanted(NamedTuple):
    """What signatures must be over; without a constitution it is a document, not a capsule."""

    purpose: str
    address: str
    policy: str
    constitution: str | None = None
    not_after_max: str | None = None

    @property
    def payload_type(self) -> str:
        """Name the kind of statement."""
        return DOCUMENT_PAYLOAD_TYPE if self.constitution is None else PAYLOAD_TYPE

    def statement(self, not_after: str) -> Statement | DocumentStatement:
        """Make the statement that would count until a moment."""
        if self.constitution is None:
            return DocumentStatement(self.address, not_after, self.policy, self.purpose)
        return Statement(self.address, self.constitution, not_after, self.policy, self.purpose)

    def fault(self, envelope: Envelope, now: str) -> str | None:
        """Say why a payload is not what is wanted, or None where it is."""
        if envelope.payload_type != self.payload_type:
            return "wrong_type"
        said = read_statement(envelope)
        if said is None or said.not_after > (self.not_after_max or said.not_after):
            return "wrong_statement"
        # One by one, so that a policy that changed is told apart from a statement about something else.
        wanted = self.statement(said.not_after)
        if said != wanted:
            same_otherwise = msgspec.structs.replace(said, policy=self.policy) == wanted
            return "wrong_policy" if same_otherwise else "wrong_statement"
        return "expired" if now >= said.not_after else None


def read_statement(envelope: Envelope) -> Statement | DocumentStatement | None:
    """Read what an envelope's payload says, or None where it is no statement in canonical form."""
    shape = {PAYLOAD_TYPE: Statement, DOCUMENT_PAYLOAD_TYPE: DocumentStatement}.get(envelope.payload_type)
    if shape is None or not is_canonical(envelope.payload):
        return None
    try:
        return msgspec.json.decode(envelope.payload, type=shape)  # type: ignore[no-any-return]
    except msgspec.MsgspecError:
        return None


# --------------------------------------------------------------------------- what they come to


class SignedBy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pinned key that signed."""

    name: str
    subject: str
    public_key: str


class RefusedSignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A signature that does not count, and why; the name is known only where the key is pinned."""

    public_key: str | None
    name: str | None
    reason: str


class Verification(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What signatures came to: who signed, whose keys could still sign, what was refused and why."""

    threshold: int
    signed: list[SignedBy]
    missing: list[str]
    refused: list[RefusedSignature]
    verified: bool


class _Tally:
    """Counts signatures, one after the other."""

    def __init__(
        self, wanted: Wanted, document: PolicyDocument, out: Collection[str], barred: Collection[str]
    ) -> None:
        self._wanted = wanted
        # One entry for each key, whatever the document says: what counts keys must not count entries.
        self.keys: dict[str, PinnedKey] = {}
        for key in document.keys:
            self.keys.setdefault(key.public_key, key)
        self._out = out
        self._barred = barred
        self.signed: dict[str, SignedBy] = {}
        self.refused: list[RefusedSignature] = []

    def count(self, envelope: Envelope, signature: Signature, message: bytes, now: str) -> None:
        """Count a signature, or note why it does not count."""
        key = self._found(signature, message)
        if key is None:
            self.refused.append(self._stranger(signature))
            return
        reason = self.hindrance(key, now) or self._wanted.fault(envelope, now) or self._repeated(key)
        if reason is None:
            self.signed[key.public_key] = SignedBy(key.name, key.subject, key.public_key)
        else:
            self.refused.append(RefusedSignature(key.public_key, key.name, reason))

    def hindrance(self, key: PinnedKey, now: str) -> str | None:
        """Say why nothing this key signs would count."""
        if key.public_key in self._out:
            return "revoked_key"
        if not key.is_valid(now):
            return "key_expired"
        return "self_signed" if key.subject in self._barred else None

    def _found(self, signature: Signature, message: bytes) -> PinnedKey | None:
        """Find the pinned key that signed; the key id only says which to try first."""
        hinted = self.keys.get(signature.keyid)
        for key in [hinted, *self.keys.values()] if hinted else self.keys.values():
            public = parse_base64(key.public_key)
            if public is not None and is_signed(public, signature.sig, message):
                return key
        return None

    def _stranger(self, signature: Signature) -> RefusedSignature:
        hinted = self.keys.get(signature.keyid)
        if hinted is not None:
            return RefusedSignature(hinted.public_key, hinted.name, "bad_signature")
        named = parse_base64(signature.keyid)
        known = signature.keyid if named is not None and len(named) == 32 else None
        return RefusedSignature(known, None, "unknown_key")

    def _repeated(self, key: PinnedKey) -> str | None:
        if key.public_key in self.signed:
            return "duplicate_key"
        taken = any(one.subject == key.subject for one in self.signed.values())
        return "duplicate_subject" if taken else None


def verify(
    envelopes: Sequence[Envelope],
    wanted: Wanted,
    document: PolicyDocument,
    *,
    revoked: Mapping[str, str],
    now: str,
    known_at: str | None = None,
    barred: Collection[str] = (),
) -> Verification:
    """Say what signatures under a policy come to.

    `revoked` maps public keys to the moment of their revocation; with known_at, later ones are not known yet. `now`
    is the moment at which statements and keys must be in their time; `barred` are subjects who may not sign this.
    Cost:   one verification of Ed25519 for a signature whose key id is honest, one for each pinned key otherwise.
    Errors: malformed_envelope.
    """
    if sum(len(envelope.signatures) for envelope in envelopes) > COUNTED_MAX:
        raise EnvelopeMalformedError("there are more signatures than are counted", signatures_max=COUNTED_MAX)
    out = {key for key, at in revoked.items() if known_at is None or at <= known_at}
    tally = _Tally(wanted, document, out, barred)
    for envelope in envelopes:
        message = envelope.message()
        for signature in envelope.signatures:
            tally.count(envelope, signature, message, now)
    signed = [tally.signed[public] for public in tally.keys if public in tally.signed]
    missing = [
        key.name
        for public, key in tally.keys.items()
        if public not in tally.signed and tally.hindrance(key, now) is None
    ]
    return Verification(
        document.threshold, signed, missing, tally.refused, len(signed) >= max(1, document.threshold)
    )


def check_verified(found: Verification) -> Verification:
    """Refuse where too few have signed.

    Errors: threshold_not_met.
    """
    if not found.verified:
        raise ThresholdNotMetError(
            f"{len(found.signed)} of the {found.threshold} signatures that are needed count",
            threshold=found.threshold,
            signed=[one.name for one in found.signed],
            missing=found.missing,
            refused=msgspec.to_builtins(found.refused),
        )
    return found
