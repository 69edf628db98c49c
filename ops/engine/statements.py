"""What a text of SQL is, as far as carrying it out needs to know: a reading, an insert with its data, or a command."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ops.engine.refusals import Refused

# One piece of SQL at a time. A quote that never ends is one piece of its own; the engine will name the error.
_PIECE = re.compile(
    rb"""(?P<blank>\s+|--[^\n]*|\#[ !][^\n]*|/\*.*?\*/)
    | (?P<quoted>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*"|`(?:[^`\\]|\\.|``)*`)
    | (?P<open>[(\[{]) | (?P<close>[)\]}])
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_FORMAT_AT_END = re.compile(
    rb"\bFORMAT\s+(?P<name>[A-Za-z][A-Za-z0-9]*)\s*(?:SETTINGS\s[^()]*)?;?\s*\Z", re.IGNORECASE
)
# Data begins after the blanks that follow the name of its format, and one end of line.
_BEFORE_DATA = re.compile(rb"[ \t\f]*(?:\r?\n)?")

# An INSERT that reaches one of these brings its rows from elsewhere.
_NO_DATA = frozenset({b"SELECT", b"WITH", b"VALUES", b"FROM", b"WATCH"})
_READING = frozenset({b"SELECT", b"WITH", b"("})
# Statements a client that left need not have finished.
_HARMLESS = _READING | {b"SHOW", b"DESCRIBE", b"DESC", b"EXPLAIN", b"EXISTS", b"CHECK"}


@dataclass(frozen=True)
class Reading:
    """A statement that changes nothing."""

    sql: str
    format: str | None
    streamable: bool


@dataclass(frozen=True)
class Insert:
    """An INSERT whose rows follow it in a format."""

    head: str
    format: str
    data: bytes | memoryview


@dataclass(frozen=True)
class Command:
    """Anything else; it may answer with rows too."""

    sql: str
    format: str | None


Statement = Reading | Insert | Command


def read_statement(text: bytes) -> Statement:
    """Tell what a text is; only the head of an INSERT is looked at, however much data follows."""
    first = _first(text)
    if first == b"INSERT":
        found = _insert(text)
        if found is not None:
            return found
        return Command(_decoded(text), None)
    sql = _decoded(text)
    stated = _FORMAT_AT_END.search(text[-4_096:])
    name = stated["name"].decode() if stated else None
    if first in _HARMLESS:
        return Reading(sql, name, first in _READING)
    return Command(sql, name)


def is_blank(text: bytes) -> bool:
    """Tell whether a text holds nothing but blanks and comments."""
    return _first(text) == b""


def _first(text: bytes) -> bytes:
    for piece in _PIECE.finditer(text):
        if piece.lastgroup != "blank":
            return piece[0].upper()
    return b""


def _insert(text: bytes) -> Insert | None:
    depth = 0
    for piece in _PIECE.finditer(text):
        if piece.lastgroup == "open":
            depth += 1
        elif piece.lastgroup == "close":
            depth -= 1
        elif piece.lastgroup == "word" and depth == 0:
            word = piece[0].upper()
            if word in _NO_DATA:
                return None
            if word == b"FORMAT":
                return _with_data(text, piece)
    return None


def _with_data(text: bytes, format_word: re.Match[bytes]) -> Insert | None:
    for piece in _PIECE.finditer(text, format_word.end()):
        if piece.lastgroup == "word":
            start = _BEFORE_DATA.match(text, piece.end())
            assert start is not None
            data = memoryview(text)[start.end() :]
            return Insert(_decoded(text[: format_word.start()]), piece[0].decode(), data)
        if piece.lastgroup != "blank":
            return None
    return None


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise Refused(62, "the statement is not UTF-8", "SYNTAX_ERROR") from None
