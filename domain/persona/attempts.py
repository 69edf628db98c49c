"""Attempts: what somebody tried to export, import or download, written down whether it was allowed or not."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from domain.errors import REGISTRY, ForbiddenError, LedgerError, UnprocessableError
from domain.ledger import Case

FACTS_BYTES_MAX = 8_192
TEXT_MAX = 1_000
DEPTH_MAX = 8
DROPPED = {"note": "the facts are too many to be kept in the log"}


class KeptRefusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why an attempt came to nothing: the code of a refusal, its words and its facts."""

    code: str
    detail: str
    facts: dict[str, Any]


class _Refused(msgspec.Struct):
    problem: KeptRefusal | None = None


def problem_of(refusal: LedgerError) -> KeptRefusal:
    """Write a refusal in the form that the log keeps."""
    return told(refusal.code, refusal.message, refusal.facts)


def told(code: str, detail: str, facts: dict[str, Any]) -> KeptRefusal:
    """Write a refusal that somebody tells of; what no record can hold is replaced, and what is too long is cut."""
    kept = recordable(facts)
    if len(orjson.dumps(kept)) > FACTS_BYTES_MAX:
        kept = DROPPED
    return KeptRefusal(code, _text(detail), kept)


def refusal_of(answer: bytes) -> LedgerError | None:
    """Give the refusal that an attempt ended in, so that whoever asked hears it; None where it was allowed."""
    problem = msgspec.json.decode(answer, type=_Refused).problem
    return None if problem is None else refusal(problem)


def refusal(problem: KeptRefusal) -> LedgerError:
    """Make a refusal again of what the log keeps of it; a code that nobody knows any more becomes `unprocessable`."""
    error = REGISTRY.get(problem.code, UnprocessableError)(problem.detail)
    error.facts = problem.facts
    return error


def need(case: Case, *roles: str) -> None:
    """Refuse a caller without one of these roles, from inside a decision, so that the attempt can be written down.

    Errors: forbidden.
    """
    if not case.caller.roles & frozenset(roles):
        raise ForbiddenError(f"this needs one of the roles {', '.join(sorted(roles))}", roles=sorted(roles))


def _text(text: str) -> str:
    # A record holds no NUL, nor what would read as one once it is written.
    clean = text.encode("utf-8", "replace").decode().replace("\0", "\ufffd").replace("\\u0000", "\ufffd")
    return clean if len(clean) <= TEXT_MAX else clean[: TEXT_MAX - 1] + "…"


def recordable(value: Any, depth: int = 0) -> Any:
    """Turn any value into one that a record can hold: no fraction but as text, no key but in ASCII."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)
    if depth >= DEPTH_MAX:
        return _text(repr(value))
    if isinstance(value, dict):
        return {_key(key): recordable(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [recordable(item, depth + 1) for item in value]
    if isinstance(value, msgspec.Struct):
        return recordable(msgspec.to_builtins(value), depth)
    return _text(str(value))


def _key(key: Any) -> str:
    return _text(str(key)).encode("ascii", "backslashreplace").decode()
