"""One request in ClickHouse's HTTP dialect, read: who asks, what, and how the answer is wanted."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from ops.sql_allowed import DATABASE_NAMES
from ops.sql_errors import SqlRefusal
from ops.sql_packing import too_long, unpacked

BODY_BYTES_MAX = 1_000_000
FIELDS_MAX = 500
URL_CHARS_MAX = 1_000_000
QUERY_ID = re.compile(r"[\w:.-]{1,128}", re.ASCII)
_PARAMETER = re.compile(r"[A-Za-z]\w{0,99}", re.ASCII)
_VERSION = re.compile(r"[0-9]{1,8}")
_FORM = "application/x-www-form-urlencoded"
# Words of the protocol that mean something here; every other field is a setting.
_WORDS = frozenset("query database default_format user password compress role".split())


@dataclass(frozen=True)
class Asked:
    """What a request asks for."""

    statement: str
    format: str | None
    fields: Mapping[str, str]
    parameters: Mapping[str, str]
    settings: Mapping[str, str] = field(default_factory=dict)

    def flag(self, name: str) -> bool:
        """Say whether a field is switched on."""
        return self.fields.get(name, "").lower() in ("1", "true")


async def read_body(receive: Receive) -> bytes:
    """Read a body that is not too long."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > BODY_BYTES_MAX:
            raise too_long(BODY_BYTES_MAX)
        if not message.get("more_body", False):
            return body


def read_fields(scope: Scope) -> dict[str, str]:
    """Read the fields of the URL."""
    if len(scope["query_string"]) > URL_CHARS_MAX:
        raise too_long(BODY_BYTES_MAX)
    return _pairs(scope["query_string"].decode("latin-1"))


def token_of(headers: Headers, fields: Mapping[str, str]) -> str:
    """Find the token, wherever ClickHouse's clients put a password; the name of the user does not matter.

    A request without one is a SqlRefusal.
    """
    scheme, _, word = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and word:
        return word.strip()
    if scheme.lower() == "basic":
        try:
            token = base64.b64decode(word, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            token = ""
    else:
        token = headers.get("x-clickhouse-key") or fields.get("password", "")
    if not token:
        raise SqlRefusal(516, "Authentication failed: give a token as password, or as Bearer")
    return token


def read_request(fields: dict[str, str], headers: Headers, body: bytes) -> Asked:
    """Put the statement together as ClickHouse does: first what the URL says, then the body."""
    body = unpacked(body, headers.get("content-encoding", ""), BODY_BYTES_MAX)
    kind = headers.get("content-type", "")
    if kind.lower().startswith("multipart/form-data"):
        # What the URL says outranks the form, so that the form cannot change who asks or what was signed.
        fields, body = {**_parts(kind, body), **fields}, b""
    elif kind.lower().startswith(_FORM) and re.match(rb"(?:query|param_\w+|database|default_format)=", body):
        # curl calls every body a form; only what begins like one is.
        fields, body = {**_pairs(_text(body)), **fields}, b""
    pieces = [piece for piece in (fields.get("query", ""), _text(body)) if piece]
    database = fields.get("database") or headers.get("x-clickhouse-database", "")
    if database not in DATABASE_NAMES:
        raise SqlRefusal(81, f"Database {database[:64]} does not exist, or is not available here")
    if fields.get("decompress") in ("1", "true"):
        raise SqlRefusal(48, "Framed bodies are not read here; use Content-Encoding")
    if (version := fields.get("client_protocol_version")) and not _VERSION.fullmatch(version):
        raise SqlRefusal(36, "client_protocol_version is a number")
    return Asked(
        "\n".join(pieces),
        headers.get("x-clickhouse-format") or fields.get("default_format"),
        fields,
        _parameters(fields),
        {n: v for n, v in fields.items() if n not in _WORDS and not n.startswith("param_")},
    )


def _parameters(fields: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name, value in fields.items():
        if name.startswith("param_"):
            if not _PARAMETER.fullmatch(name[6:]):
                raise SqlRefusal(36, "A query parameter has a plain name")
            found[name[6:]] = value
    return found


def _pairs(text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict")
    except ValueError as error:
        raise SqlRefusal(36, f"The fields of the request cannot be read: {error}") from error
    found = dict(pairs)
    if len(found) != len(pairs):
        # Two of one name are read differently by different readers.
        raise SqlRefusal(36, "A field occurs twice")
    return found


def _parts(kind: str, body: bytes) -> dict[str, str]:
    try:
        head = b"Content-Type: " + kind.encode("latin-1") + b"\r\n\r\n"
        message = BytesParser(policy=HTTP).parsebytes(head + body)
        parts = list(message.iter_parts()) if message.is_multipart() else []
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SqlRefusal(36, "The form cannot be read") from error
    found: dict[str, str] = {}
    for part in parts:
        name, content = part.get_param("name", header="content-disposition"), part.get_payload(decode=True)
        if part.get_filename() is not None:
            raise SqlRefusal(48, "Tables cannot be sent along")
        if (
            not isinstance(name, str)
            or not isinstance(content, bytes)
            or name in found
            or len(found) >= FIELDS_MAX
        ):
            raise SqlRefusal(36, "The form cannot be read")
        found[name] = _text(content)
    return found


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise SqlRefusal(36, "The request is not UTF-8") from error
