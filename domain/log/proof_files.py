"""Proof files: one record's place in the log, provable offline with nothing but a policy.

A receipt is such a file: the position, the sibling hashes, and a checkpoint with its cosignatures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from domain.errors import NoteMalformedError, ProofMalformedError, QuorumMissingError
from domain.log.hashes import HASH_BYTES, leaf_hash
from domain.log.notes import (
    NOTE_BYTES_MAX,
    Checkpoint,
    parse_base64,
    parse_decimal,
    parse_note,
    print_base64,
)
from domain.log.policies import Policy, Verdict
from domain.log.tree import verify_inclusion

FILE_SUFFIX = ".tlog-proof"
EXTRA_BYTES_MAX = 65_535
SIBLING_COUNT_MAX = 63

_FIRST_LINE = "c2sp.org/tlog-proof@v1"
_INDEX = re.compile(r"index ([0-9]{1,19})\Z", re.ASCII)
_FILE_BYTES_MAX = NOTE_BYTES_MAX + 100_000


class ProofFile(msgspec.Struct, frozen=True):
    """A position, the way from its leaf to the root, and the signed checkpoint with that root.

    `extra` is for the application; nothing vouches for it.
    """

    position: int
    siblings: tuple[bytes, ...]
    checkpoint_note: bytes
    extra: bytes | None = None

    def to_bytes(self) -> bytes:
        """Write the file.

        Source: c2sp.org/tlog-proof, Format.
        """
        extra = [] if self.extra is None else [f"extra {print_base64(self.extra)}"]
        siblings = [print_base64(sibling) for sibling in self.siblings]
        lines = [_FIRST_LINE, *extra, f"index {self.position}", *siblings, "", ""]
        return "\n".join(lines).encode() + self.checkpoint_note

    @property
    def checkpoint(self) -> Checkpoint:
        """Read the checkpoint, unchecked.

        Errors: malformed_note.
        """
        return Checkpoint.parse(parse_note(self.checkpoint_note).text)


def parse_proof_file(data: bytes) -> ProofFile:
    """Read a proof file without checking it; writing it again gives the same bytes.

    Errors: malformed_proof.
    Source: c2sp.org/tlog-proof, Format.
    """
    head, gap, note = data.partition(b"\n\n")
    if len(data) > _FILE_BYTES_MAX or not gap or not head.isascii():
        raise ProofMalformedError("a proof file has a head, an empty line and a checkpoint")
    first, *lines = head.decode("ascii").split("\n")
    if first != _FIRST_LINE:
        raise ProofMalformedError(f"a proof file starts with {_FIRST_LINE}")
    extra = _parse_extra(lines.pop(0)) if lines and lines[0].startswith("extra ") else None
    if not lines or len(lines) > SIBLING_COUNT_MAX + 1:
        raise ProofMalformedError("a proof file has an index and at most 63 hashes")
    position = _parse_position(lines.pop(0))
    proof = ProofFile(position, tuple(_parse_hash(line) for line in lines), note, extra)
    try:
        _ = proof.checkpoint
    except NoteMalformedError as error:
        raise ProofMalformedError(error.message) from error
    return proof


def _parse_extra(line: str) -> bytes:
    extra = parse_base64(line.removeprefix("extra "))
    if extra is None or len(extra) > EXTRA_BYTES_MAX:
        raise ProofMalformedError("extra data is base64 of 65,535 bytes at most")
    return extra


def _parse_position(line: str) -> int:
    match = _INDEX.match(line)
    position = parse_decimal(match[1]) if match else None
    if position is None:
        raise ProofMalformedError("the index is a number without leading zeros", got=line[:64])
    return position


def _parse_hash(line: str) -> bytes:
    found = parse_base64(line)
    if found is None or len(found) != HASH_BYTES:
        raise ProofMalformedError("a proof line is base64 of 32 bytes", got=line[:64])
    return found


def verify_proof_file(proof: ProofFile | bytes, record: bytes, policy: Policy) -> Verdict:
    """Check that a record is in a log of the policy, at the stated position, under a head with its quorum.

    Cost:   one signature check per known key, and one hash per sibling.
    Errors: malformed_proof, unverified_note, quorum_missing, invalid_tree_size, invalid_proof.
    Source: c2sp.org/tlog-proof; RFC 9162, section 2.1.3.2.
    """
    if isinstance(proof, bytes):
        proof = parse_proof_file(proof)
    verdict = policy.evaluate(proof.checkpoint_note)
    if not verdict.is_satisfied:
        raise QuorumMissingError(cosigned=list(verdict.cosigned), missing=list(verdict.missing))
    checkpoint = verdict.checkpoint
    verify_inclusion(leaf_hash(record), proof.position, checkpoint.size, proof.siblings, checkpoint.root)
    return verdict


def make_proof_file(position: int, siblings: Sequence[bytes], checkpoint_note: bytes) -> ProofFile:
    """Put a receipt together from an inclusion proof and the checkpoint it leads to.

    Errors: malformed_note.
    """
    proof = ProofFile(position, tuple(siblings), checkpoint_note)
    _ = proof.checkpoint
    return proof
