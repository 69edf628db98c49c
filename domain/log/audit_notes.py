"""Keys, signed notes, checkpoints, cosignatures and witness policies, as an auditor reads them.

This file belongs to the independent verifier: it shares no code with the writer of the log. Every
reader here is strict (one spelling per value), so that no flipped byte can hide in a lenient parser,
and raises only `ValueError`, with a sentence for people.

Source: C2SP signed-note, tlog-checkpoint, tlog-cosignature, tlog-policy.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

ED25519 = 0x01
ED25519_COSIGNATURE = 0x04
NOTE_BYTES_MAX = 1_000_000
SIGNATURES_MAX = 100
SIZE_MAX = 2**63 - 1

_SIGNATURE_LINE = re.compile("\u2014 ([^\\s+]+) ([A-Za-z0-9+/]+={0,2})")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_KEY_NAME = re.compile(r"[^\s+]+")
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f]")


def unbase64(text: str) -> bytes:
    """Decode padded standard base64 that has exactly one spelling."""
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ValueError("not base64") from error
    if base64.b64encode(raw).decode() != text:
        raise ValueError("base64 with stray bits")
    return raw


def read_text(body: bytes | str) -> str:
    """Decode UTF-8 without control characters other than the line feed."""
    if len(body) > NOTE_BYTES_MAX:
        raise ValueError(f"longer than {NOTE_BYTES_MAX} bytes")
    try:
        text = body if isinstance(body, str) else body.decode("utf-8")
        text.encode("utf-8")
    except UnicodeError as error:
        raise ValueError("not UTF-8") from error
    if _CONTROL.search(text):
        raise ValueError("a control character")
    return text


# --------------------------------------------------------------------------- keys


@dataclass(frozen=True)
class VerifierKey:
    """A public key with the name it signs under."""

    name: str
    key_id: bytes
    kind: int
    public: bytes

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Say whether an Ed25519 signature over the message is good."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


def read_vkey(text: str) -> VerifierKey:
    """Read `name+hex8+base64(type and public key)`, with at most one final line feed.

    Source: C2SP signed-note, verifier keys.
    """
    parts = text.removesuffix("\n").split("+", 2)
    if len(parts) != 3 or not _KEY_NAME.fullmatch(parts[0]):
        raise ValueError("a verifier key is name+id+key")
    name, stated_id, encoded = parts
    raw = unbase64(encoded)
    key_id = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
    if stated_id != key_id.hex():
        raise ValueError("the key id does not belong to this name and key")
    if raw[:1] in (b"\x01", b"\x04") and len(raw) != 33:
        raise ValueError("an Ed25519 key has 32 bytes")
    return VerifierKey(name, key_id, raw[0], raw[1:])


# --------------------------------------------------------------------------- notes and checkpoints


@dataclass(frozen=True)
class SignatureLine:
    """One signature of a note: who says to have signed, and the bytes."""

    name: str
    key_id: bytes
    signature: bytes

    def claims(self, key: VerifierKey) -> bool:
        """Say whether the line claims to be by this key."""
        return self.name == key.name and self.key_id == key.key_id


@dataclass(frozen=True)
class Checkpoint:
    """A tree head as it was signed."""

    text: str
    origin: str
    size: int
    root: bytes
    signatures: tuple[SignatureLine, ...]


def _read_signature(line: str) -> SignatureLine:
    match = _SIGNATURE_LINE.fullmatch(line)
    if match is None:
        raise ValueError("a signature line is a dash, a key name and base64")
    raw = unbase64(match[2])
    if len(raw) < 5:
        raise ValueError("a signature is too short")
    return SignatureLine(match[1], raw[:4], raw[4:])


def read_note(body: bytes | str) -> tuple[str, tuple[SignatureLine, ...]]:
    """Split a signed note at its last empty line into the signed text and the signature lines."""
    note = read_text(body)
    cut = note.rfind("\n\n")
    if cut < 0 or not note.endswith("\n"):
        raise ValueError("a signed note is a text, an empty line and signature lines")
    lines = note[cut + 2 :].split("\n")[:-1]
    if not 1 <= len(lines) <= SIGNATURES_MAX:
        raise ValueError(f"a signed note has 1 to {SIGNATURES_MAX} signatures")
    return note[: cut + 1], tuple(_read_signature(line) for line in lines)


def read_checkpoint(body: bytes | str) -> Checkpoint:
    """Read a signed tree head: origin, size and root, without extension lines.

    Source: C2SP tlog-checkpoint.
    """
    text, signatures = read_note(body)
    lines = text.split("\n")
    if len(lines) != 4 or not lines[0]:
        raise ValueError("a checkpoint has the three lines origin, size and root")
    origin, size, root = lines[:3]
    if not _SIZE.fullmatch(size) or int(size) > SIZE_MAX:
        raise ValueError("the size is not a decimal number")
    digest = unbase64(root)
    if len(digest) != 32:
        raise ValueError("the root has not 32 bytes")
    return Checkpoint(text, origin, int(size), digest, signatures)


def check_log_signature(checkpoint: Checkpoint, key: VerifierKey) -> tuple[str, str] | None:
    """Return the broken promise (code and sentence) of the log's own signature, or None when it is good."""
    if checkpoint.origin != key.name:
        return "origin_mismatch", f"the checkpoint is of {checkpoint.origin!r}, the key of {key.name!r}"
    if key.kind != ED25519:
        return "key_unknown", f"signature type {key.kind:#04x} is not one this verifier knows for logs"
    known = [line for line in checkpoint.signatures if line.claims(key)]
    if not known:
        return "key_unknown", f"no signature is by the key {key.name}+{key.key_id.hex()}"
    if not all(key.verify(line.signature, checkpoint.text.encode()) for line in known):
        return "signature_invalid", f"the signature of {key.name}+{key.key_id.hex()} is not over this text"
    return None


# --------------------------------------------------------------------------- witnesses


def cosignature_holds(checkpoint: Checkpoint, line: SignatureLine, key: VerifierKey) -> bool:
    """Say whether a line is a good timestamped Ed25519 cosignature of the checkpoint.

    Source: C2SP tlog-cosignature, Ed25519 cosignatures.
    """
    if key.kind != ED25519_COSIGNATURE or len(line.signature) != 72:
        return False
    time_s = int.from_bytes(line.signature[:8], "big")
    message = f"cosignature/v1\ntime {time_s}\n{checkpoint.text}".encode()
    return key.verify(line.signature[8:], message)


@dataclass(frozen=True)
class Group:
    """Members of whom at least `needed` must have cosigned."""

    needed: int
    members: tuple[str, ...]


@dataclass
class Policy:
    """Who must have cosigned a checkpoint before it is believed."""

    logs: list[VerifierKey] = field(default_factory=list)
    witnesses: dict[str, VerifierKey] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    quorum: str = ""

    def knows(self, name: str) -> bool:
        """Say whether a witness or group of this name was already defined."""
        return name in self.witnesses or name in self.groups

    def satisfied(self, signed: set[str]) -> bool:
        """Say whether these witnesses form a quorum."""
        if self.quorum == "none":
            return True
        # A group names earlier names only, so one pass in the order of the file decides them all.
        holds = dict.fromkeys(self.witnesses, False) | dict.fromkeys(signed, True)
        for name, group in self.groups.items():
            holds[name] = sum(holds[member] for member in group.members) >= group.needed
        return holds[self.quorum]


def read_policy(body: bytes | str) -> Policy:
    """Read a witness policy.

    Source: C2SP tlog-policy.
    """
    policy = Policy()
    for number, line in enumerate(read_text(_untabbed(body)).split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            _read_policy_line(policy, words)
        except (ValueError, IndexError) as error:
            raise ValueError(f"line {number} of the policy: {error}") from error
    if not policy.quorum:
        raise ValueError("the policy has no quorum line")
    return policy


def _untabbed(body: bytes | str) -> bytes | str:
    return body.replace(b"\t", b" ") if isinstance(body, bytes) else body.replace("\t", " ")


def _read_policy_line(policy: Policy, words: list[str]) -> None:
    word = words[0]
    if word == "log" and len(words) in (2, 3):
        policy.logs.append(read_vkey(words[1]))
    elif word == "witness" and len(words) in (3, 4):
        key = read_vkey(words[2])
        if any(key.public == other.public for other in policy.witnesses.values()):
            raise ValueError("a key is given twice")
        policy.witnesses[_new_name(policy, words[1])] = key
    elif word == "group" and len(words) >= 4:
        _read_group(policy, words)
    elif word == "quorum" and len(words) == 2 and not policy.quorum:
        if words[1] != "none" and not policy.knows(words[1]):
            raise ValueError(f"{words[1]!r} is not defined")
        policy.quorum = words[1]
    else:
        raise ValueError(f"{word!r} is unknown, repeated or incomplete")


def _new_name(policy: Policy, name: str) -> str:
    if name == "none" or policy.knows(name):
        raise ValueError(f"the name {name!r} is taken")
    return name


def _read_group(policy: Policy, words: list[str]) -> None:
    members = tuple(words[3:])
    needed = {"all": len(members), "any": 1}.get(words[2])
    if needed is None:
        needed = int(words[2]) if _SIZE.fullmatch(words[2]) else 0
    if not 1 <= needed <= len(members) or len(set(members)) != len(members):
        raise ValueError("a group names each member once and needs some of them")
    if not all(policy.knows(member) for member in members):
        raise ValueError("a group names an undefined member")
    policy.groups[_new_name(policy, words[1])] = Group(needed, members)


@dataclass(frozen=True)
class Cosigned:
    """Who cosigned a checkpoint, whose line is bad, and whether they suffice; None where nobody is asked for."""

    signed: frozenset[str]
    refused: tuple[str, ...]
    quorum: bool | None


def check_cosignatures(checkpoint: Checkpoint, policy: Policy) -> Cosigned:
    """Verify the lines of the policy's witnesses; lines of others are ignored."""
    signed, refused = set(), []
    for name, key in policy.witnesses.items():
        lines = [line for line in checkpoint.signatures if line.claims(key)]
        if lines and all(cosignature_holds(checkpoint, line, key) for line in lines):
            signed.add(name)
        elif lines:
            refused.append(name)
    quorum = None if policy.quorum == "none" else policy.satisfied(signed)
    return Cosigned(frozenset(signed), tuple(refused), quorum)
