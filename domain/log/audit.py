"""The independent verifier: replays a whole log from its public files and names every broken promise.

It shares no code with the writer, needs no database and trusts nothing but the key it is given. The
source is any function from a path to bytes (None when not there), over this layout:

    checkpoint                     the signed tree head (C2SP signed note)
    tile/<L>/<N>[.p/<W>]           hash tiles (C2SP tlog-tiles)
    tile/entries/<N>[.p/<W>]       bundles: per record two bytes of big-endian length, then the record
    log.vkey                       verifier key text; used only when the caller pins no key
    checkpoints                    optional: the history of tree heads, see below
    policy                         optional: the log's own witness policy (C2SP tlog-policy)
    manifest.json                  exports only, see below

`checkpoints` is JSON lines, each ended by one line feed: a compact object of exactly two members, `size`
(the tree size) and `note` (the whole signed note as text), such as {"size":3,"note":"..."}; any order of
lines, every line signed by the log's key.
`manifest.json` is one JSON object of exactly `format` ("soma-audit-export"), `version` (1), `origin`,
`size`, `created_at`. It is not signed: origin and size must agree with the checkpoint; `created_at` is a
remark that proves nothing.

What is checked: the signature and origin of the checkpoint; cosignatures and, where the caller names a
policy, its quorum; every record's form; every stream's versions and chain of addresses; every entry of
money; every hash tile of the tree of that size, partial ones included; the signed root; every earlier
checkpoint (of the history and of the caller) against the root recomputed at its size.

Source: RFC 6962 section 2.1; C2SP tlog-tiles, tlog-checkpoint, tlog-policy.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import orjson

from domain.log.audit_findings import Finding, Findings, Reader
from domain.log.audit_money import Books
from domain.log.audit_notes import (
    Checkpoint,
    Policy,
    VerifierKey,
    check_cosignatures,
    check_log_signature,
    read_checkpoint,
    read_policy,
    read_vkey,
)
from domain.log.audit_records import ADDRESS_PREFIX, Streams, is_moment
from domain.log.audit_scan import Head, Scan

__all__ = ["Finding", "Report", "audit"]

EXPORT_FORMAT = "soma-audit-export"
EXPORT_VERSION = 1

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Report:
    """The outcome of one audit.

    Invariant: `ok` exactly when there is no finding. `key_pinned` tells whether the key came from the
    caller; `quorum` whether the policy in force is satisfied (None where none asks for a witness). `digest` is over
    the final state of streams, accounts and holds, so two audits of one log give the same.
    `holed_from` is the first position that could not be read: faults of version or balance after it that
    may come from the hole alone are not held against the log.
    """

    ok: bool
    size: int
    root: str
    origin: str
    findings: list[Finding]
    dropped_count: int
    records: int
    bytes: int
    streams: int
    accounts: int
    checkpoints: int
    key_pinned: bool
    quorum: bool | None
    holed_from: int | None
    digest: str

    @property
    def first(self) -> Finding | None:
        """Give the first broken promise."""
        return self.findings[0] if self.findings else None


def audit(
    source: Callable[[str], bytes | None],
    *,
    vkey: str | None = None,
    since: Iterable[str] = (),
    policy: str | None = None,
    progress: Progress | None = None,
    manifest_required: bool = False,
) -> Report:
    """Verify a whole log and report the first broken promise and all others; never raise on what it reads.

    `since` are checkpoints the caller kept from earlier; `progress` hears (records done, records in all).
    Cost: one decoding, one encoding, one SHA3-512 and two SHA-256 a record; memory grows with streams,
    accounts and holds, not with records.
    Errors: none; a source that fails to answer raises OSError, which becomes the finding `unreadable`.
    """
    findings = Findings()
    return _Audit(Reader(source, findings), findings).run(
        vkey, tuple(since), policy, progress or _silent, manifest_required
    )


def _silent(done: int, total: int) -> None:
    """Say nothing about progress."""


class _Audit:
    """One run: keys, heads, the scan, the report."""

    def __init__(self, reader: Reader, findings: Findings) -> None:
        self._reader = reader
        self._findings = findings
        self._books = Books(findings)
        self._streams = Streams(findings, self._books)
        self._key: VerifierKey | None = None
        self._checkpoint: Checkpoint | None = None
        self._quorum: bool | None = None
        self._pinned = False
        self._head_count = 0

    def run(
        self, vkey: str | None, since: tuple[str, ...], policy: str | None, progress: Progress, manifest: bool
    ) -> Report:
        """Check keys and heads first, then everything under them."""
        pinned_policy = self._pinned_policy(policy)
        self._key = self._trusted_key(vkey, pinned_policy)
        self._checkpoint = self._read_head()
        self._check_policy(pinned_policy)
        self._check_manifest(manifest)
        heads = self._history(since)
        if self._checkpoint is not None:
            scan = Scan(self._reader, self._findings, self._streams, self._checkpoint, heads)
            scan.run(progress)
        return self._report()

    # ------------------------------------------------------------------ keys

    def _pinned_policy(self, policy: str | None) -> Policy | None:
        if policy is None:
            return None
        try:
            return read_policy(policy)
        except ValueError as error:
            self._findings.add("policy_malformed", str(error))
            return None

    def _trusted_key(self, vkey: str | None, policy: Policy | None) -> VerifierKey | None:
        """Choose the key: the caller's, else the one of the caller's policy, else the source's own."""
        offered = self._reader.read("log.vkey")
        beside = self._read_key(offered, "log.vkey") if offered is not None else None
        pinned = self._read_key(vkey, None) if vkey is not None else None
        if vkey is None and policy is not None and policy.logs:
            pinned = beside if beside in policy.logs else policy.logs[0]
        self._pinned = pinned is not None
        if vkey is not None or pinned is not None:
            if pinned is not None and beside is not None and beside != pinned:
                self._findings.add("key_mismatch", "log.vkey is not the pinned key", path="log.vkey")
            return pinned
        if offered is None:
            self._findings.add("key_unknown", "no key was given and none is there", path="log.vkey")
        return beside

    def _read_key(self, text: str | bytes | None, path: str | None) -> VerifierKey | None:
        try:
            return read_vkey(text.decode("utf-8") if isinstance(text, bytes) else text or "")
        except ValueError as error:
            self._findings.add("key_malformed", f"the verifier key cannot be read: {error}", path=path)
            return None

    # ------------------------------------------------------------------ heads

    def _read_head(self) -> Checkpoint | None:
        body = self._reader.read("checkpoint", missing="checkpoint_malformed")
        return self._verified(body, "checkpoint")[0] if body is not None else None

    def _verified(self, note: bytes | str, path: str) -> tuple[Checkpoint | None, bool]:
        """Read a tree head and say whether its signature is good; give it even when it is not."""
        try:
            checkpoint = read_checkpoint(note)
        except ValueError as error:
            self._findings.add("checkpoint_malformed", f"{path} is not a checkpoint: {error}", path=path)
            return None, False
        if self._key is None:
            return checkpoint, False
        broken = check_log_signature(checkpoint, self._key)
        if broken is not None:
            self._findings.add(broken[0], f"{path}: {broken[1]}", path=path)
        return checkpoint, broken is None

    def _history(self, since: tuple[str, ...]) -> list[Head]:
        """Gather every earlier signed head; one larger than the log is a truncation."""
        heads = []
        for path, size, note in [
            *self._kept_lines(),
            *((f"since[{at}]", None, text) for at, text in enumerate(since)),
        ]:
            checkpoint, good = self._verified(note, path)
            if checkpoint is None or not good:
                continue
            if size is not None and size != checkpoint.size:
                self._findings.add(
                    "history_malformed", f"{path}: size {size} is not that of its note", path=path
                )
            heads.append(Head(checkpoint.size, checkpoint.root, path))
        self._head_count = len(heads)
        current = self._checkpoint.size if self._checkpoint is not None else None
        for head in heads:
            if current is not None and head.size > current:
                message = f"{head.path} is of size {head.size}, the log has {current} records"
                self._findings.add("truncated", message, position=current, path=head.path)
        return heads

    def _kept_lines(self) -> Iterable[tuple[str, int, str]]:
        """Read the log's own history of heads."""
        body = self._reader.read("checkpoints")
        if not body:
            return
        lines = body.split(b"\n")
        if lines.pop() != b"":
            self._findings.add(
                "history_malformed", "checkpoints does not end with a line feed", path="checkpoints"
            )
        for number, line in enumerate(lines, 1):
            path = f"checkpoints:{number}"
            try:
                entry = orjson.loads(line)
                size, note = entry["size"], entry["note"]
                spelled = (
                    orjson.dumps({"size": size, "note": note}),
                    orjson.dumps({"note": note, "size": size}),
                )
                if line not in spelled or type(size) is not int or type(note) is not str:
                    raise ValueError("not in its one spelling")
            except (ValueError, KeyError, TypeError) as error:
                self._findings.add("history_malformed", f"{path} cannot be read: {error}", path=path)
                continue
            yield path, size, note

    # ------------------------------------------------------------------ witnesses and manifest

    def _check_policy(self, pinned: Policy | None) -> None:
        """Check the witnesses' lines; only the caller's policy can demand a quorum."""
        policy = pinned
        body = self._reader.read("policy") if policy is None else None
        if body is not None:
            try:
                policy = read_policy(body)
            except ValueError as error:
                self._findings.add("policy_malformed", str(error), path="policy")
        if policy is None or self._checkpoint is None:
            return
        outcome = check_cosignatures(self._checkpoint, policy)
        self._quorum = outcome.quorum
        for name in outcome.refused:
            self._findings.add(
                "cosignature_invalid", f"the line of witness {name!r} is bad", path="checkpoint"
            )
        if pinned is not None and outcome.quorum is False:
            signed = ", ".join(sorted(outcome.signed)) or "nobody"
            absent = ", ".join(sorted(policy.witnesses.keys() - outcome.signed)) or "nobody"
            message = f"cosigned by {signed}; not by {absent}; {policy.quorum!r} is not reached"
            self._findings.add("quorum_missing", message, path="checkpoint")

    def _check_manifest(self, required: bool) -> None:
        body = self._reader.read("manifest.json", missing="manifest_mismatch" if required else None)
        if body is None:
            return
        for message in self._manifest_faults(body):
            self._findings.add("manifest_mismatch", message, path="manifest.json")

    def _manifest_faults(self, body: bytes) -> Iterable[str]:
        try:
            manifest = orjson.loads(body)
        except ValueError:
            manifest = None
        if not isinstance(manifest, dict):
            yield "manifest.json is not a JSON object"
            return
        expected: dict[str, object] = {"format": EXPORT_FORMAT, "version": EXPORT_VERSION}
        if self._checkpoint is not None:
            expected |= {"origin": self._checkpoint.origin, "size": self._checkpoint.size}
        for key, value in expected.items():
            if type(manifest.get(key)) is not type(value) or manifest.get(key) != value:
                yield f"{key!r} is {str(manifest.get(key))[:100]!r} instead of {value!r}"
        if manifest.keys() != {"format", "version", "origin", "size", "created_at"}:
            yield "the members are not format, version, origin, size, created_at"
        elif not isinstance(manifest["created_at"], str) or not is_moment(manifest["created_at"]):
            yield "'created_at' is not a UTC moment with six decimals"

    # ------------------------------------------------------------------ the report

    def _report(self) -> Report:
        checkpoint, streams = self._checkpoint, self._streams
        return Report(
            ok=not self._findings.kept,
            size=checkpoint.size if checkpoint else 0,
            root=base64.b64encode(checkpoint.root).decode() if checkpoint else "",
            origin=checkpoint.origin if checkpoint else "",
            findings=self._findings.kept,
            dropped_count=self._findings.dropped_count,
            records=streams.record_count,
            bytes=streams.byte_count,
            streams=len(streams.heads),
            accounts=len(self._books.accounts),
            checkpoints=self._head_count,
            key_pinned=self._pinned,
            quorum=self._quorum,
            holed_from=streams.holed_from,
            digest=self._digest(),
        )

    def _digest(self) -> str:
        """Digest the final state: streams, accounts, open holds, each sorted, as lines of JSON."""
        digest = hashlib.sha3_512()
        heads = self._streams.heads
        for name in sorted(heads):
            version, address = heads[name]
            digest.update(orjson.dumps(["stream", _safe(name), version, address.hex()]) + b"\n")
        for name, state in self._books.rows():
            digest.update(orjson.dumps([_safe(name), _safe(state)]) + b"\n")
        return ADDRESS_PREFIX + digest.hexdigest()


def _safe(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
