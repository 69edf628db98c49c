"""How far the tools of a persona reach; what writes or administers is listed, and an unknown reach is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from domain.trust.moderation.findings import Finding, Severity, finding
from domain.trust.questions import ToolFacts

PART = "manifest.json"

_RULES: dict[str, tuple[str, Severity]] = {
    "write": ("tool_that_writes", "warn"),
    "admin": ("tool_that_administers", "warn"),
}
_BY_POLICY = re.compile(r"policy:[a-z0-9][a-z0-9._-]{0,99}\Z")


def check_tools(tools: Iterable[ToolFacts]) -> Iterator[Finding]:
    """Find the tools that reach further than reading; the offset is the tool's place in the manifest."""
    for place, tool in enumerate(tools):
        if tool.access_scope == "read":
            continue
        rule, severity = _RULES.get(tool.access_scope, ("scope_unknown", "block"))
        if _BY_POLICY.match(tool.access_scope):
            rule, severity = "tool_by_policy", "warn"
        told = f"{tool.tool} {tool.access_scope}"
        found = finding(rule, PART, severity, text=told, start=0, end=len(told))
        yield Finding(rule, PART, place, 0, severity, found.match_digest)


def definition() -> list[str]:
    """List what the rules of this module are made of, for their address."""
    return [*(f"{scope} {rule} {severity}" for scope, (rule, severity) in _RULES.items()), _BY_POLICY.pattern]
