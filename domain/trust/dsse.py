"""DSSE envelopes: bytes, what kind of bytes they are, and signatures over both.

What is signed is `pae(type, payload)`, so a signature for one kind of document holds for no other. The key id of a
signature is not signed; it says where to look first and decides nothing.
Source: secure-systems-lab/dsse 1.0.2, protocol.md and envelope.md.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from domain.errors import EnvelopeMalformedError
from domain.trust.keys import Signer, key_text

PAYLOAD_BYTES_MAX = 16_384
SIGNATURES_MAX = 32

_URL_SAFE = str.maketrans("-_", "+/")


def pae(payload_type: str, payload: bytes) -> bytes:
    """Give the bytes that are signed: type and payload, each after its length.

    Source: protocol.md, Signature Definition.
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signature, and an unsigned hint at its key."""

    sig: bytes
    keyid: str = ""


class Envelope(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"payload_type": "payloadType"}
):
    """A payload with its signatures; as JSON it is a DSSE envelope."""

    payload: bytes
    payload_type: str
    signatures: list[Signature]

    @classmethod
    def parse(cls, value: Any) -> Envelope:
        """Read an envelope that came from outside, as the members of its JSON.

        Errors: malformed_envelope.
        """
        try:
            sent = value if isinstance(value, DsseEnvelope) else DsseEnvelope.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "it"
            raise EnvelopeMalformedError(f"this is not a DSSE envelope: {place}: {first['msg']}") from error
        payload = _decoded(sent.payload, "payload")
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise EnvelopeMalformedError("the payload is too large", bytes_max=PAYLOAD_BYTES_MAX)
        signatures = [
            Signature(_decoded(s.sig, f"signatures.{n}.sig"), s.keyid) for n, s in enumerate(sent.signatures)
        ]
        return cls(payload, sent.payloadType, signatures)

    def message(self) -> bytes:
        """Give the bytes its signatures are over."""
        return pae(self.payload_type, self.payload)


def seal_envelope(payload_type: str, payload: bytes, *signers: Signer) -> Envelope:
    """Sign a payload with every signer."""
    message = pae(payload_type, payload)
    signatures = [Signature(signer.sign(message), key_text(signer.public_key)) for signer in signers]
    return Envelope(payload, payload_type, signatures)


# --------------------------------------------------------------------------- what others sent

_Base64 = Annotated[
    str, Field(max_length=(PAYLOAD_BYTES_MAX + 2) // 3 * 4, json_schema_extra={"format": "byte"})
]


class DsseSignature(BaseModel):
    """A signature of an envelope; members nobody knows are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    keyid: str = Field("", max_length=512)
    sig: str = Field(max_length=1_024, json_schema_extra={"format": "byte"})


class DsseEnvelope(BaseModel):
    """An envelope as it is sent; members nobody knows are passed over, as the standard asks."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    payload: _Base64
    payloadType: str = Field(min_length=1, max_length=256)  # noqa: N815 - the standard's name
    signatures: list[DsseSignature] = Field(min_length=1, max_length=SIGNATURES_MAX)


def _decoded(text: str, place: str) -> bytes:
    """Read base64, standard or URL-safe, padded; the bits behind the last byte must be zero."""
    try:
        standard = text.translate(_URL_SAFE) if "-" in text or "_" in text else text
        data = base64.b64decode(standard, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EnvelopeMalformedError(f"{place} is not base64", place=place) from error
    mixed = standard is not text and ("+" in text or "/" in text)
    if mixed or base64.b64encode(data).decode() != standard:
        raise EnvelopeMalformedError(f"{place} is not base64 of one alphabet, padded", place=place)
    return data
