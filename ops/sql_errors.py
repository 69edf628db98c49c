"""Refusals in ClickHouse's own words: a code, its name, a sentence; what stock clients know how to show."""

from __future__ import annotations

from collections.abc import Mapping

# Code -> (name, HTTP status), for what we refuse ourselves; the numbers are ClickHouse's.
CODES: Mapping[int, tuple[str, int]] = {
    36: ("BAD_ARGUMENTS", 400),
    48: ("NOT_IMPLEMENTED", 501),
    62: ("SYNTAX_ERROR", 400),
    73: ("UNKNOWN_FORMAT", 400),
    81: ("UNKNOWN_DATABASE", 404),
    158: ("TOO_MANY_ROWS", 500),
    159: ("TIMEOUT_EXCEEDED", 500),
    167: ("TOO_DEEP_AST", 400),
    168: ("TOO_BIG_AST", 400),
    202: ("TOO_MANY_SIMULTANEOUS_QUERIES", 503),
    210: ("NETWORK_ERROR", 503),
    452: ("SETTING_CONSTRAINT_VIOLATION", 403),
    456: ("UNKNOWN_QUERY_PARAMETER", 400),
    497: ("ACCESS_DENIED", 403),
    396: ("TOO_MANY_ROWS_OR_BYTES", 400),
    516: ("AUTHENTICATION_FAILED", 401),
}


class SqlRefusal(Exception):
    """A statement was refused, by us or by the engine; it never ran or it stopped."""

    def __init__(
        self, code: int, message: str, *, name: str | None = None, status: int | None = None
    ) -> None:
        super().__init__(message)
        known = CODES.get(code, ("", 400))
        self.code = code
        self.name = known[0] if name is None else name
        self.status = known[1] if status is None else status

    @property
    def text(self) -> str:
        """Print the refusal as a ClickHouse server prints its exceptions."""
        tail = f" ({self.name})" if self.name else ""
        return f"Code: {self.code}. DB::Exception: {str(self).rstrip('. ')}.{tail}\n"


def denied(message: str) -> SqlRefusal:
    """Refuse what is not allowed to anybody here."""
    return SqlRefusal(497, message)
