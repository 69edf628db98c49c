"""Signed notes: a text, an empty line, and one line per signature; and checkpoints, the notes of a log.

A signature counts only for a key the reader already trusts. Lines of unknown keys are passed over; a wrong
signature of a known key spoils the whole note. A checkpoint is the note in which a log states its size
and root; a cosignature is a witness's statement that, at a time, this was the largest head it had seen.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from hashlib import sha256
from typing import ClassVar, NamedTuple, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from domain.errors import (
    CosignatureInvalidError,
    KeyMalformedError,
    NoteMalformedError,
    NoteUnverifiedError,
)
from domain.log.hashes import HASH_BYTES

# Signature types, c2sp.org/signed-note.
ED25519 = 0x01
ED25519_COSIGNATURE = 0x04
RFC6962_TREE_HEAD = 0x05
ML_DSA_44_COSIGNATURE = 0x06
UNASSIGNED = 0xFF

NOTE_BYTES_MAX = 1_000_000
SIGNATURE_COUNT_MAX = 100
TIME_S_MAX = 2**63 - 1
SIZE_MAX = 2**63 - 1

_PUBLIC_BYTES = {ED25519: 32, ED25519_COSIGNATURE: 32, ML_DSA_44_COSIGNATURE: 1_312}
_SEED_BYTES = 32
_KEY_ID_BYTES = 4
_TIME_BYTES = 8
_ED25519_BYTES = 64
_LINE_START = "\N{EM DASH} "
_PRIVATE = "PRIVATE+KEY+"

_CONTROL = re.compile("[\x00-\x09\x0b-\x1f]")
_HEX8 = re.compile(r"[0-9a-f]{8}\Z", re.ASCII)
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z", re.ASCII)


def is_key_name(name: str) -> bool:
    """Tell whether a text can name a key or a log: not empty, no Unicode space, no plus, no control."""
    return bool(name) and "+" not in name and not any(c.isspace() or c < " " for c in name) and _is_utf8(name)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def print_base64(data: bytes) -> str:
    """Write bytes in the one base64 form that notes use: standard alphabet, padded."""
    return base64.b64encode(data).decode("ascii")


def parse_base64(text: str) -> bytes | None:
    """Read base64; anything but the one spelling `print_base64` gives is None."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if print_base64(data) == text else None


def parse_decimal(text: str) -> int | None:
    """Read a non-negative number below 2^63 without sign or leading zeros; anything else is None."""
    if not _DECIMAL.match(text):
        return None
    number = int(text)
    return number if number <= SIZE_MAX else None


# --------------------------------------------------------------------------- keys


class VerifierKey(NamedTuple):
    """A public key under its name, for one type of signature."""

    name: str
    kind: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        """Give the four bytes that, with the name, identify the key.

        Source: c2sp.org/signed-note, Signatures.
        """
        return key_id_of(self.name, self.kind, self.public)

    @property
    def text(self) -> str:
        """Write the key as others are given it: name, key id and key, joined by plus signs."""
        return f"{self.name}+{self.key_id.hex()}+{print_base64(bytes([self.kind]) + self.public)}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Read a verifier key; its id must be the one its name and key give.

        Errors: malformed_key.
        """
        name, key_id, kind, public = _parse_key(text)
        if len(public) != _PUBLIC_BYTES.get(kind) or key_id_of(name, kind, public) != key_id:
            raise KeyMalformedError("the key id belongs to no key of a known type", name=name, kind=kind)
        return cls(name, kind, public)

    @property
    def can_verify(self) -> bool:
        """Tell whether this service can check signatures of the type; others count as unknown."""
        return self.kind in (ED25519, ED25519_COSIGNATURE)

    def verifies(self, text: str, signature: bytes) -> bool:
        """Tell whether a signature of this key over a text is good.

        Cost: about 0.1-0.2 ms.
        """
        if self.kind == ED25519:
            return self._is_good(signature, text.encode())
        if self.kind != ED25519_COSIGNATURE or len(signature) != _TIME_BYTES + _ED25519_BYTES:
            return False
        time_s = int.from_bytes(signature[:_TIME_BYTES], "big")
        return time_s <= TIME_S_MAX and self._is_good(signature[_TIME_BYTES:], cosigned_message(text, time_s))

    def _is_good(self, signature: bytes, message: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


def key_id_of(name: str, kind: int, public: bytes) -> bytes:
    """Give the id of a key: the first four bytes of a hash over name, type and key.

    Source: c2sp.org/signed-note, Signatures.
    """
    return sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:_KEY_ID_BYTES]


def _parse_key(text: str) -> tuple[str, bytes, int, bytes]:
    # The base64 of the key may hold plus signs itself, so only the first two separate.
    name, _, rest = text.partition("+")
    hex_id, _, encoded = rest.partition("+")
    key = parse_base64(encoded)
    if not is_key_name(name) or not _HEX8.match(hex_id) or not key:
        raise KeyMalformedError("a key is a name, eight hex digits and base64, joined by plus signs")
    return name, bytes.fromhex(hex_id), key[0], key[1:]


# --------------------------------------------------------------------------- signers


class SecretKey:
    """An Ed25519 private key under its name; the same bytes always get the same signature.

    Source: RFC 8032, section 5.1.6.
    """

    kind: ClassVar[int]

    def __init__(self, name: str, seed: bytes) -> None:
        if not is_key_name(name) or len(seed) != _SEED_BYTES:
            raise KeyMalformedError("a signer needs a key name and a seed of 32 bytes")
        self._seed = bytes(seed)
        self._private = Ed25519PrivateKey.from_private_bytes(self._seed)
        self.key = VerifierKey(name, self.kind, self._private.public_key().public_bytes_raw())
        self._key_id = self.key.key_id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.key.text!r})"

    @property
    def name(self) -> str:
        """Give the key name."""
        return self.key.name

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a private key in the form Go's note package writes.

        Errors: malformed_key.
        """
        if not text.startswith(_PRIVATE):
            raise KeyMalformedError("a private key starts with PRIVATE+KEY+")
        name, key_id, kind, seed = _parse_key(text.removeprefix(_PRIVATE))
        if kind != ED25519 or len(seed) != _SEED_BYTES:
            raise KeyMalformedError("this is not an Ed25519 private key", name=name)
        secret = cls(name, seed)
        if key_id_of(name, ED25519, secret.key.public) != key_id:
            raise KeyMalformedError("the private key is damaged: it has another id", name=name)
        return secret

    def secret_text(self) -> str:
        """Write the private key in the form Go's note package reads. Never log it."""
        key_id = key_id_of(self.name, ED25519, self.key.public)
        return f"{_PRIVATE}{self.name}+{key_id.hex()}+{print_base64(bytes([ED25519]) + self._seed)}"

    def sign(self, message: bytes) -> bytes:
        """Sign bytes as they are.

        Cost: about 0.05 ms.
        """
        return self._private.sign(message)


class Signer(SecretKey):
    """A key that signs notes, such as a log's."""

    kind = ED25519

    def signature_line(self, text: str) -> str:
        """Sign a note text; give the line that goes below it."""
        return print_signature_line(self.name, self._key_id, self.sign(text.encode()))


class Cosigner(SecretKey):
    """A witness's key: it signs a checkpoint together with the time.

    Source: c2sp.org/tlog-cosignature.
    """

    kind = ED25519_COSIGNATURE

    def cosignature_line(self, text: str, time_s: int) -> str:
        """Cosign a checkpoint text at a POSIX time; give the line that goes below it."""
        signature = self.sign(cosigned_message(text, time_s))
        return print_signature_line(self.name, self._key_id, time_s.to_bytes(_TIME_BYTES, "big") + signature)


def cosigned_message(text: str, time_s: int) -> bytes:
    """Give the bytes a witness signs for a checkpoint text.

    Source: c2sp.org/tlog-cosignature, Ed25519 signed message.
    """
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()


# --------------------------------------------------------------------------- notes


class Signature(NamedTuple):
    """One signature line: who says to have signed, and what stands behind the key id."""

    name: str
    key_id: bytes
    payload: bytes

    @property
    def line(self) -> str:
        """Write the line again, with its newline."""
        return print_signature_line(self.name, self.key_id, self.payload)


class Verified(NamedTuple):
    """A signature that was checked, with the key it was checked by."""

    key: VerifierKey
    signature: Signature

    @property
    def time_s(self) -> int | None:
        """Give the POSIX time a cosignature states; None for a plain signature."""
        if self.key.kind != ED25519_COSIGNATURE:
            return None
        return int.from_bytes(self.signature.payload[:_TIME_BYTES], "big")


class SignedNote(NamedTuple):
    """A note that was read but not checked: nothing in it may be believed yet."""

    text: str
    signatures: tuple[Signature, ...]

    def to_bytes(self) -> bytes:
        """Write the note again, byte for byte."""
        return (self.text + "\n" + "".join(signature.line for signature in self.signatures)).encode()


class Note(NamedTuple):
    """A note that at least one known key signed, and no known key signed wrongly."""

    text: str
    verified: tuple[Verified, ...]
    unknown: tuple[Signature, ...]


def print_signature_line(name: str, key_id: bytes, payload: bytes) -> str:
    """Write a signature line with its newline."""
    return f"{_LINE_START}{name} {print_base64(key_id + payload)}\n"


def parse_signature_line(line: str) -> Signature:
    """Read one signature line, without its newline.

    Errors: malformed_note.
    """
    name, _, encoded = line.removeprefix(_LINE_START).partition(" ")
    data = parse_base64(encoded)
    if not line.startswith(_LINE_START) or not is_key_name(name) or not data or len(data) <= _KEY_ID_BYTES:
        raise NoteMalformedError("a signature line is a dash, a key name and base64", got=line[:128])
    return Signature(name, data[:_KEY_ID_BYTES], data[_KEY_ID_BYTES:])


def sign_note(text: str, *signers: Signer) -> bytes:
    """Sign a text that ends in a newline; the same text and keys always give the same bytes.

    Errors: malformed_note.
    """
    _check_text(text)
    return (text + "\n" + "".join(signer.signature_line(text) for signer in signers)).encode()


def add_signature_lines(note: bytes, lines: Iterable[str]) -> bytes:
    """Put further lines below a note, such as cosignatures that arrived later.

    Errors: malformed_note.
    """
    grown = note + "".join(lines).encode()
    parse_note(grown)
    return grown


def _check_text(text: str) -> None:
    if not text.endswith("\n") or _CONTROL.search(text) or not _is_utf8(text):
        raise NoteMalformedError("a note is UTF-8 without control characters, and its text ends in a newline")


def parse_note(note: bytes) -> SignedNote:
    """Read a note without checking its signatures.

    Cost:   at most 1 MB and 100 signatures are read.
    Errors: malformed_note.
    Source: c2sp.org/signed-note, Format.
    """
    if len(note) > NOTE_BYTES_MAX:
        raise NoteMalformedError("a note has 1,000,000 bytes at most", note_bytes=len(note))
    try:
        whole = note.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NoteMalformedError("a note is UTF-8") from error
    text, gap, below = whole.rpartition("\n\n")
    if not gap or not below.endswith("\n"):
        raise NoteMalformedError("a note has a text, an empty line and signature lines")
    _check_text(whole)
    lines = below[:-1].split("\n")
    if len(lines) > SIGNATURE_COUNT_MAX:
        raise NoteMalformedError("a note has 100 signatures at most", signature_count=len(lines))
    return SignedNote(text + "\n", tuple(parse_signature_line(line) for line in lines))


def open_note(note: bytes | SignedNote, verifiers: Iterable[VerifierKey]) -> Note:
    """Check a note by the keys the reader trusts; tell the good signatures from the unknown ones.

    Cost:   one verification per line of a known key.
    Errors: malformed_note, unverified_note.
    Source: c2sp.org/signed-note, Signatures.
    """
    signed = parse_note(note) if isinstance(note, bytes) else note
    known = {(key.name, key.key_id): key for key in verifiers if key.can_verify}
    verified: list[Verified] = []
    unknown: list[Signature] = []
    for signature in signed.signatures:
        key = known.get((signature.name, signature.key_id))
        if key is None:
            unknown.append(signature)
        elif key.verifies(signed.text, signature.payload):
            verified.append(Verified(key, signature))
        else:
            raise NoteUnverifiedError("the signature of a known key is wrong", name=key.name)
    if not verified:
        raise NoteUnverifiedError("no known key signed the note", names=[s.name for s in signed.signatures])
    return Note(signed.text, tuple(verified), tuple(unknown))


def check_cosignature(text: str, line: str, witnesses: Iterable[VerifierKey]) -> Verified:
    """Check one cosignature line over a checkpoint text by the witnesses a log knows.

    Errors: malformed_note, invalid_cosignature.
    """
    signature = parse_signature_line(line.removesuffix("\n"))
    for key in witnesses:
        if (key.name, key.key_id) != (signature.name, signature.key_id):
            continue
        if key.kind == ED25519_COSIGNATURE and key.verifies(text, signature.payload):
            return Verified(key, signature)
        raise CosignatureInvalidError("the cosignature does not verify", name=key.name)
    raise CosignatureInvalidError("no witness of this log has that key", name=signature.name)


# --------------------------------------------------------------------------- checkpoints


class Checkpoint(NamedTuple):
    """What a log states: at this size, its tree has this root."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """Write the three lines that are signed. There are no extension lines.

        Source: c2sp.org/tlog-checkpoint, Note text.
        """
        return f"{self.origin}\n{self.size}\n{print_base64(self.root)}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read exactly three lines; extension lines, which no witness vouches for, are refused.

        Errors: malformed_note.
        """
        lines = text.split("\n")
        if len(lines) != 4 or lines[3]:
            raise NoteMalformedError("a checkpoint has three lines: origin, size, root")
        origin, size, root = lines[0], parse_decimal(lines[1]), parse_base64(lines[2])
        if not is_key_name(origin) or size is None or root is None or len(root) != HASH_BYTES:
            raise NoteMalformedError("a checkpoint states an origin, a size and a root of 32 bytes")
        return cls(origin, size, root)

    def sign(self, signer: Signer) -> bytes:
        """Sign as the log; its key name is its origin.

        Errors: malformed_note.
        """
        if signer.name != self.origin:
            raise NoteMalformedError("a log signs under its own origin", origin=self.origin, name=signer.name)
        return sign_note(self.text, signer)


def open_checkpoint(note: bytes | SignedNote, verifiers: Iterable[VerifierKey]) -> tuple[Checkpoint, Note]:
    """Check a signed checkpoint; one of the keys must be the log's, under the name of its origin.

    Errors: malformed_note, unverified_note.
    """
    opened = open_note(note, verifiers)
    checkpoint = Checkpoint.parse(opened.text)
    if not any(signed_by_log(checkpoint, verified.key) for verified in opened.verified):
        raise NoteUnverifiedError("the log itself did not sign", origin=checkpoint.origin)
    return checkpoint, opened


def signed_by_log(checkpoint: Checkpoint, key: VerifierKey) -> bool:
    """Tell whether a key that signed a checkpoint speaks for the log, not for a witness."""
    return key.kind == ED25519 and key.name == checkpoint.origin
