"""Offline verification of one receipt: a `.tlog-proof` file, the record it is about, and the log's key.

It shares no code with the writer of proofs.

Source: C2SP tlog-proof; RFC 9162, section 2.1.3.2.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass

from domain.log.audit_findings import Finding, Findings
from domain.log.audit_notes import (
    Checkpoint,
    Policy,
    VerifierKey,
    check_cosignatures,
    check_log_signature,
    read_checkpoint,
    read_policy,
    read_text,
    read_vkey,
    unbase64,
)
from domain.log.audit_records import address, form_faults

PROOF_HEADER = "c2sp.org/tlog-proof@v1"
HASHES_MAX = 63

_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})", re.ASCII)


@dataclass(frozen=True)
class ReceiptReport:
    """The outcome of checking one receipt; `ok` exactly when there is no finding."""

    ok: bool
    position: int | None
    size: int | None
    root: str
    origin: str
    address: str
    quorum: bool | None
    findings: list[Finding]


@dataclass(frozen=True)
class Proof:
    """A proof file as read: what it says, not yet believed."""

    position: int
    hashes: tuple[bytes, ...]
    checkpoint: str


def read_proof(text: str | bytes) -> Proof:
    """Read a proof file strictly; raise ValueError with a sentence.

    Source: C2SP tlog-proof.
    """
    head, gap, checkpoint = read_text(text).partition("\n\n")
    lines = head.split("\n")
    if not gap or lines[0] != PROOF_HEADER:
        raise ValueError(f"a proof opens with the line {PROOF_HEADER}")
    rest = lines[1:]
    if rest and rest[0].startswith("extra "):
        unbase64(rest.pop(0)[len("extra ") :])
    match = _INDEX.fullmatch(rest[0]) if rest else None
    if match is None:
        raise ValueError("the index line is not there")
    hashes = tuple(unbase64(line) for line in rest[1:])
    if len(hashes) > HASHES_MAX or any(len(node) != 32 for node in hashes):
        raise ValueError(f"a proof has at most {HASHES_MAX} hashes of 32 bytes")
    return Proof(int(match[1]), hashes, checkpoint)


def inclusion_root(leaf: bytes, position: int, size: int, hashes: tuple[bytes, ...]) -> bytes | None:
    """Compute the root an inclusion proof leads to; None when the proof has the wrong length.

    Source: RFC 9162, section 2.1.3.2.
    """
    if not 0 <= position < size:
        return None
    at, last, root = position, size - 1, leaf
    for node in hashes:
        if last == 0:
            return None
        if at & 1 or at == last:
            root = hashlib.sha256(b"\x01" + node + root).digest()
            while not at & 1 and at:
                at >>= 1
                last >>= 1
        else:
            root = hashlib.sha256(b"\x01" + root + node).digest()
        at >>= 1
        last >>= 1
    return root if last == 0 else None


def verify_receipt(
    proof_text: str | bytes, record: bytes, vkey: str, policy: str | None = None
) -> ReceiptReport:
    """Say whether the log of this key holds exactly this record at the place the proof names; never raise.

    Errors: none; what is wrong is in the findings.
    """
    findings = Findings()
    proof, checkpoint = _read_both(proof_text, findings)
    key, rules = _read_trust(vkey, policy, findings)
    for code, message in form_faults(record)[0]:
        findings.add(code, message)
    quorum = None
    if checkpoint is not None and key is not None:
        broken = check_log_signature(checkpoint, key)
        if broken is not None:
            findings.add(*broken)
    if checkpoint is not None and rules is not None:
        quorum = _check_witnesses(checkpoint, rules, findings)
    if proof is not None and checkpoint is not None:
        _check_inclusion(proof, checkpoint, record, findings)
    return ReceiptReport(
        ok=not findings.kept,
        position=proof.position if proof else None,
        size=checkpoint.size if checkpoint else None,
        root=base64.b64encode(checkpoint.root).decode() if checkpoint else "",
        origin=checkpoint.origin if checkpoint else "",
        address=address(record),
        quorum=quorum,
        findings=findings.kept,
    )


def _read_both(text: str | bytes, findings: Findings) -> tuple[Proof | None, Checkpoint | None]:
    try:
        proof = read_proof(text)
    except ValueError as error:
        findings.add("proof_malformed", f"the proof cannot be read: {error}")
        return None, None
    try:
        return proof, read_checkpoint(proof.checkpoint)
    except ValueError as error:
        findings.add("checkpoint_malformed", f"the proof's checkpoint cannot be read: {error}")
        return proof, None


def _read_trust(
    vkey: str, policy: str | None, findings: Findings
) -> tuple[VerifierKey | None, Policy | None]:
    key, rules = None, None
    try:
        key = read_vkey(vkey)
    except ValueError as error:
        findings.add("key_malformed", f"the verifier key cannot be read: {error}")
    try:
        rules = read_policy(policy) if policy is not None else None
    except ValueError as error:
        findings.add("policy_malformed", str(error))
    return key, rules


def _check_witnesses(checkpoint: Checkpoint, policy: Policy, findings: Findings) -> bool | None:
    outcome = check_cosignatures(checkpoint, policy)
    for name in outcome.refused:
        findings.add("cosignature_invalid", f"the line of witness {name!r} is bad")
    if outcome.quorum is False:
        findings.add("quorum_missing", f"{policy.quorum!r} is not reached")
    return outcome.quorum


def _check_inclusion(proof: Proof, checkpoint: Checkpoint, record: bytes, findings: Findings) -> None:
    leaf = hashlib.sha256(b"\x00" + record).digest()
    root = inclusion_root(leaf, proof.position, checkpoint.size, proof.hashes)
    if root != checkpoint.root:
        why = "has the wrong length" if root is None else "does not lead from this record to the signed root"
        findings.add("inclusion_invalid", f"the proof {why}", position=proof.position)
