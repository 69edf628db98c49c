"""What an audit found: broken promises, the first of them and all others, bounded in number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

FINDINGS_MAX = 1000

# Every code a finding can have, and the promise it says is broken.
CODES: dict[str, str] = {
    "account_overdrawn": "an account that forbids overdraft never has less than nothing available",
    "account_reopened": "an account is opened once",
    "account_unknown": "money moves between opened accounts only",
    "bad_amount": "an amount is a decimal string with at most nine decimals",
    "bundle_extra": "a bundle holds no record the tree does not have",
    "bundle_malformed": "a bundle is whole",
    "bundle_missing": "every record is there",
    "chain_broken": "a record names the address of its stream's previous record",
    "checkpoint_malformed": "the checkpoint is a signed tree head",
    "cosignature_invalid": "a witness's line is over this checkpoint",
    "currency_mixed": "an entry has the currency of its accounts",
    "history_malformed": "the history of checkpoints can be read",
    "history_rewritten": "the log extends every earlier checkpoint",
    "hold_exceeded": "a settlement takes at most what was held",
    "hold_reused": "a hold's name is used once",
    "hold_settled_twice": "a hold ends once",
    "hold_unknown": "only a placed hold ends",
    "inclusion_invalid": "the proof leads from the record to the root",
    "key_malformed": "the verifier key can be read",
    "key_mismatch": "the key beside the log is the pinned one",
    "key_unknown": "the checkpoint is signed by the log's key",
    "manifest_mismatch": "the manifest describes this export",
    "money_unbalanced": "the postings of an entry sum to zero",
    "origin_mismatch": "the checkpoint is of this log",
    "policy_malformed": "the witness policy can be read",
    "proof_malformed": "the proof file can be read",
    "quorum_missing": "enough witnesses have cosigned",
    "range_altered": "records and their tiles agree with the tree above them",
    "record_altered": "a record has the bytes that were hashed",
    "record_malformed": "a record has the members and types of a record",
    "record_not_canonical": "a record is canonical JSON without floats",
    "root_mismatch": "the records give the signed root",
    "signature_invalid": "the log's signature is over this text",
    "tile_altered": "a hash tile is what the hashes below it give",
    "tile_missing": "every hash tile is there",
    "truncated": "the log never shrinks",
    "unexpected_member": "an object has no member its form does not know",
    "unreadable": "the source can be read",
    "version_duplicate": "a version of a stream occurs once",
    "version_gap": "the versions of a stream are contiguous from 1",
}


@dataclass(frozen=True)
class Finding:
    """One broken promise and where it was broken."""

    code: str
    message: str
    position: int | None = None
    stream: str | None = None
    path: str | None = None


@dataclass
class Findings:
    """The findings of one audit, in the order they were met; past the bound they are only counted."""

    kept: list[Finding] = field(default_factory=list)
    dropped_count: int = 0

    def add(
        self,
        code: str,
        message: str,
        *,
        position: int | None = None,
        stream: str | None = None,
        path: str | None = None,
    ) -> None:
        """Keep a finding, or count it when there are too many."""
        assert code in CODES, code
        if len(self.kept) < FINDINGS_MAX:
            self.kept.append(Finding(code, message, position, stream, path))
        else:
            self.dropped_count += 1


@dataclass(frozen=True)
class Reader:
    """Reads paths of the audited source; a failing transport becomes a finding, never an exception."""

    source: Callable[[str], bytes | None]
    findings: Findings

    def read(self, path: str, *, missing: str | None = None) -> bytes | None:
        """Read a path; name the given code when it is not there."""
        try:
            body = self.source(path)
        except OSError as error:
            self.findings.add("unreadable", f"{path} cannot be read: {error}", path=path)
            return None
        if body is None and missing is not None:
            self.findings.add(missing, f"{path} is not there", path=path)
        return body
