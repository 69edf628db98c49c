"""Refusals in ClickHouse's words: a code, a message, and the HTTP status its own server gives that code."""

from __future__ import annotations

import re

UNKNOWN_EXCEPTION = 1002

# ClickHouse's server/HTTP/exceptionCodeToHTTPStatus; what is not named there is 500. A wrong password is 401 here, as
# browsers and proxies expect, and a full house 503, which clients repeat by themselves.
_STATUS = {
    **dict.fromkeys((192, 193, 194, 516), 401),
    **dict.fromkeys((164, 291, 452, 497, 511), 403),
    **dict.fromkeys((6, 26, 27, 33, 36, 38, 41, 43, 53, 62, 69, 70, 72, 80, 117, 125, 167, 168, 321, 386, 691), 400),
    **dict.fromkeys((16, 46, 47, 50, 56, 60, 63, 73, 78, 81, 115), 404),
    **dict.fromkeys((159, 160), 408),
    **dict.fromkeys((158, 288, 307, 354, 396), 400),
    **dict.fromkeys((202, 209, 439, 210), 503),
    48: 501,
    131: 413,
    173: 507,
    241: 507,
    457: 400,
}  # fmt: skip

_CODE = re.compile(r"Code: (\d{1,5})\. (?:DB::)?Exception: ?")
_VERSION = re.compile(r"\s*\(version [^()]*\)\.?\s*$")


class Refused(Exception):
    """A request the engine, or we in front of it, will not do."""

    def __init__(self, code: int, words: str, name: str = "") -> None:
        self.code = code
        self.words = f"{words}. ({name})" if name else words
        super().__init__(self.words)

    @property
    def status(self) -> int:
        return _STATUS.get(self.code, 500)

    @property
    def text(self) -> str:
        """Write the refusal as ClickHouse does."""
        return f"Code: {self.code}. DB::Exception: {self.words} (embedded engine)\n"

    @classmethod
    def of(cls, error: BaseException) -> Refused:
        """Read what the engine raised; whatever else went wrong is told as an unknown exception, without details."""
        if isinstance(error, Refused):
            return error
        found = list(_CODE.finditer(str(error)))
        if not found:
            return cls(UNKNOWN_EXCEPTION, f"{type(error).__name__} in the engine", "UNKNOWN_EXCEPTION")
        # Wrapped errors repeat their code: the innermost one has the words.
        last = found[-1] if found[-1][1] == found[0][1] else found[0]
        return cls(int(found[0][1]), _VERSION.sub("", str(error)[last.end() :]).strip())
