"""What a refusal is, the registry of codes, and the families every other refusal belongs to."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar

PROBLEM_BASE = "https://soma-ledger.dev/errors/"


class Retry(StrEnum):
    """What a client may do after a refusal."""

    NEVER = "never"
    AS_IS = "as-is"
    AFTER_READ = "after-read"


REGISTRY: dict[str, type[LedgerError]] = {}

# Codes that once had a class. They are never given a second meaning.
RETIRED: frozenset[str] = frozenset()


class LedgerError(Exception):
    """The ledger refused a request."""

    code: ClassVar[str] = ""
    status: ClassVar[int] = 500
    retry: ClassVar[Retry] = Retry.NEVER

    def __init_subclass__(cls, code: str = "", status: int | None = None, retry: Retry | None = None) -> None:
        super().__init_subclass__()
        if status is not None:
            cls.status = status
        if retry is not None:
            cls.retry = retry
        if not code:
            return
        if code in REGISTRY or code in RETIRED:
            raise TypeError(f"error code {code!r} is taken")
        if not cls.__doc__:
            raise TypeError(f"error class {cls.__name__} needs a docstring: it is the title")
        cls.code = code
        REGISTRY[code] = cls

    def __init__(self, message: str = "", *, internal: str = "", **facts: Any) -> None:
        self.message = message or self.title()
        self.facts = facts
        self.internal = internal
        super().__init__(self.message)

    @classmethod
    def title(cls) -> str:
        """Give the one-line meaning of the code."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    def problem(self) -> dict[str, Any]:
        """Render RFC 9457 members; `error`, `message` and `details` serve clients of the older API.

        Source: RFC 9457, section 3.
        """
        return {
            "type": PROBLEM_BASE + self.code,
            "title": self.title(),
            "status": self.status,
            "detail": self.message,
            "code": self.code,
            "error": self.code,
            "message": self.message,
            "retry": self.retry.value,
            "details": self.facts,
        }

    @staticmethod
    def from_problem(problem: dict[str, Any]) -> LedgerError:
        """Rebuild a refusal from its remembered rendering, so that a repeat hears the same words."""
        error = REGISTRY[problem["code"]](problem["message"])
        error.facts = problem["details"]
        return error


# --------------------------------------------------------------------------- the families


class InvalidError(LedgerError, code="invalid_request", status=400):
    """The request is malformed."""


class UnauthorizedError(LedgerError, code="unauthorized", status=401):
    """A valid bearer token is required."""


class ForbiddenError(LedgerError, code="forbidden", status=403):
    """The caller's roles do not allow this."""


class NotFoundError(LedgerError, code="not_found", status=404):
    """There is nothing here."""


class ConflictError(LedgerError, code="conflict", status=409, retry=Retry.AFTER_READ):
    """Somebody else changed it first."""


class UnprocessableError(LedgerError, code="unprocessable", status=422):
    """The request is understood but cannot be done."""


class UnavailableError(LedgerError, code="unavailable", status=503, retry=Retry.AS_IS):
    """A part of the system is away for a moment."""
