"""One scan of everything in a capsule: secrets, personal data, unsafe parts, prompts and the reach of tools.

The same bytes under the same rules give the same report, wherever and whenever: the report names the rules by their
address, and holds neither a moment nor anything of what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from domain.canonical import sealed
from domain.trust.moderation import artifacts, personal_data, prompts, scopes, secrets
from domain.trust.moderation.findings import (
    FINDINGS_MAX,
    Finding,
    SecretMatch,
    Severity,
    Verdict,
    finding,
    verdict_of,
)
from domain.trust.questions import ScanCounts, ScanFacts, ToolFacts

RULES_CONTEXT = "soma/scan-rules/v1"
VERSION = "1"

# What could be used against somebody must not be published; the rest is said to those who review.
_PERSONAL: dict[str, Severity] = {
    "credit_card": "block",
    "iban": "block",
    "us_ssn": "block",
    "identity_number": "block",
}

FindSecrets = Callable[[str], Iterable[SecretMatch]]


class ScannedPart(NamedTuple):
    """A part as the scan sees it; `text` is given where it holds text in another form, as a bundle does."""

    name: str
    role: str
    media_type: str
    data: bytes
    text: str | None = None


class ScanReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a scan came to; of the findings the gravest and first are kept."""

    scanner: str
    rules_digest: str
    verdict: Verdict
    finding_count: int
    warn_count: int
    block_count: int
    findings: list[Finding]

    @property
    def facts(self) -> ScanFacts:
        counts = ScanCounts(warn=self.warn_count, block=self.block_count)
        return ScanFacts(verdict=self.verdict, counts=counts)


def scan(
    parts: Sequence[ScannedPart], tools: Sequence[ToolFacts], find: FindSecrets, *, scanner: str
) -> ScanReport:
    """Scan the parts of a capsule and the tools of its manifest.

    `find` is the library of known secrets, and `scanner` says which one and of which version.
    Cost: about two seconds for a megabyte of text; binary parts cost nothing to speak of.
    """
    found = [*scopes.check_tools(tools), *(one for part in parts for one in scan_part(part, find))]
    found = sorted(set(found), key=lambda one: (one.severity != "block", one.part, one.offset, one.rule))
    blocks = sum(one.severity == "block" for one in found)
    return ScanReport(
        scanner=scanner,
        rules_digest=rules_digest(scanner),
        verdict=verdict_of(found),
        finding_count=len(found),
        warn_count=len(found) - blocks,
        block_count=blocks,
        findings=found[:FINDINGS_MAX],
    )


def scan_part(part: ScannedPart, find: FindSecrets) -> Iterator[Finding]:
    """Scan one part."""
    if part.text is None or part.data:
        yield from artifacts.check_artifact(part.name, part.media_type, part.data)
    text = part.text if part.text is not None else _text_of(part)
    if text:
        yield from _secrets(part.name, text, find)
        for span in personal_data.find_personal_data(text):
            gravity = _PERSONAL.get(span.kind, "warn")
            yield finding(
                f"personal_{span.kind}", part.name, gravity, text=text, start=span.start, end=span.end
            )
        yield from prompts.check_prompt(part.name, text, is_prompt=part.role == "prompts")


def _secrets(part: str, text: str, find: FindSecrets) -> Iterator[Finding]:
    """Find secrets by the library and by our own rules; one place is told once."""
    taken: list[SecretMatch] = []
    for match in sorted([*find(text), *secrets.find_secrets(text)], key=lambda one: (one.start, -one.end)):
        if not taken or match.start >= taken[-1].end:
            taken.append(match)
            yield finding(f"secret_{match.rule}", part, "block", text=text, start=match.start, end=match.end)


def _text_of(part: ScannedPart) -> str | None:
    kind = part.media_type.partition(";")[0].strip().lower()
    if kind in artifacts.MEDIA_TYPES and kind not in artifacts.TEXT_TYPES:
        return None
    # Whatever is no allowed form is blocked already; what can be read of it is looked at all the same.
    return part.data.decode(errors="replace")


def rules_digest(scanner: str) -> str:
    """Give the address of the rules: of every pattern, limit and table they are made of."""
    modules = {"artifacts": artifacts, "prompts": prompts, "scopes": scopes, "secrets": secrets}
    rules = {name: module.definition() for name, module in modules.items()}
    rules["personal_data"] = personal_data.definition()
    weights = {"personal": _PERSONAL, "findings_max": FINDINGS_MAX}
    return sealed(
        RULES_CONTEXT, {"version": VERSION, "scanner": scanner, "rules": rules, "weights": weights}
    )[1]
