"""What a scan finds: which rule, in which part, where, and how grave; never what was found itself."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha3_512
from typing import Literal, NamedTuple

import msgspec

FINDINGS_MAX = 200

Severity = Literal["warn", "block"]
Verdict = Literal["pass", "warn", "block"]


class Finding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One finding. What matched is named by a digest over the rule, the part and the match, so it can be told again.

    Units: offset in characters of the part's text (bytes where a part is no text), from 0; line from 1, or 0.
    """

    rule: str
    part: str
    offset: int
    line: int
    severity: Severity
    match_digest: str


class SecretMatch(NamedTuple):
    """A secret in a text: which rule saw it, and where."""

    rule: str
    start: int
    end: int


class Span(NamedTuple):
    """Something personal in a text: of which kind, and where."""

    kind: str
    start: int
    end: int


def finding(
    rule: str, part: str, severity: Severity, *, text: str = "", start: int = 0, end: int = 0
) -> Finding:
    """Make a finding of what stands between two places of a text."""
    line = text.count("\n", 0, start) + 1 if text else 0
    return Finding(rule, part, start, line, severity, digest_of(rule, part, text[start:end]))


def digest_of(rule: str, part: str, match: str) -> str:
    """Name a match without telling it: the same match of the same rule in the same part has the same digest.

    A telephone number could be found by trying all of them against a whole digest, so 24 bits are kept: enough to
    tell the findings of a capsule apart, and hundreds of other numbers have the same.
    """
    told = f"{rule}\0{part}\0{match}".encode("utf-8", "surrogatepass")
    return "sha3-512/24:" + sha3_512(b"soma/finding/v1\0" + told).hexdigest()[:6]


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """Give the gravest of all findings."""
    found = {one.severity for one in findings}
    return "block" if "block" in found else "warn" if "warn" in found else "pass"
