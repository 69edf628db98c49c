"""The text of policies: where it lies, what it may look at, and its address.

A policy is one file, complete in itself: it reads `input` and nothing else, and asks neither clock nor chance nor
network. So its address says all there is to know about it, and the same input has the same answer for ever.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from domain.canonical import seal_of
from domain.errors import PolicyUnavailableError
from domain.trust.judgements import PACKAGES

CONTEXT = "soma/policy/v1"
TEXT_BYTES_MAX = 200_000

# Text and comments say nothing about what a policy reads; a text with expressions in it would.
_SILENT = re.compile(r'"(?:\\.|[^"\\\n])*"|`[^`]*`|#[^\n]*')
_PACKAGE = re.compile(r"^\s*package\s+([A-Za-z_][\w.]*)", re.MULTILINE)
_IMPORT = re.compile(r"^\s*import\s+([\w.]+)", re.MULTILINE)
_OUTSIDE = re.compile(
    r"\bdata\b|\$[\"`]|\b(?:http\.send|opa\.runtime|net\.\w+|time\.now_ns|rand\.\w+|uuid\.rfc4122|trace|print)\b"
)
# The engine inside takes `not` at this place for true, where OPA refuses; a rule of its own says the same in both.
_NOT_IN_EVERY = re.compile(r"\bevery\b[^{}]*\{[^{}]*\bnot\b")
_IMPORTS = frozenset({"rego.v1", "future.keywords", "future.keywords.if", "future.keywords.in",
                      "future.keywords.contains", "future.keywords.every"})  # fmt: skip


class Policy(NamedTuple):
    """One policy: its package, its text, and its address."""

    package: str
    text: str
    digest: str


def read_policy(package: str, directory: Path | None) -> Policy:
    """Read the policy of a package from a directory, or the one that comes with the house.

    Errors: policy_unavailable.
    """
    name = f"{package.removeprefix('soma.')}.rego"
    place = files("ops") / "policies" / name if directory is None else directory / name
    try:
        data = place.read_bytes()
    except OSError as error:
        raise PolicyUnavailableError(
            f"there is no policy {package}", package=package, internal=str(error)
        ) from error
    return policy_of(package, data)


def policy_of(package: str, data: bytes) -> Policy:
    """Take a text as the policy of a package, if it stands on its own.

    Errors: policy_unavailable.
    """
    if package not in PACKAGES:
        raise PolicyUnavailableError(f"there is no policy {package}", package=package)
    if len(data) > TEXT_BYTES_MAX:
        raise PolicyUnavailableError(f"the policy {package} is too long", package=package)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise PolicyUnavailableError(f"the policy {package} is not UTF-8", package=package) from error
    if (why := _fault(package, text)) is not None:
        raise PolicyUnavailableError(f"the policy {package} {why}", package=package)
    return Policy(package, text, seal_of(CONTEXT, data))


def package_of(text: str) -> str | None:
    """Read which package a text belongs to."""
    found = _PACKAGE.search(_spoken(text))
    return found[1] if found else None


def _spoken(text: str) -> str:
    # A template string opens like a text, so it is looked for before texts are blanked.
    return _SILENT.sub(lambda found: '$"' if found.string[: found.start()].endswith("$") else '""', text)


def _fault(package: str, text: str) -> str | None:
    if package_of(text) != package:
        return f"says it is {package_of(text)}"
    spoken = _spoken(text)
    for name in _IMPORT.findall(spoken):
        if name not in _IMPORTS:
            return f"imports {name}; a policy stands on its own"
    if _NOT_IN_EVERY.search(spoken):
        return "says `not` inside `every`, which engines read differently; put it into a rule of its own"
    if found := _OUTSIDE.search(spoken):
        return f"uses {found[0]}; a policy reads its input and nothing else"
    return None
