"""The one answer we write in ClickHouse's own binary: what the Go client asks before anything else.

It reads that answer as its newest protocol has it, whatever was agreed, and all later ones by the revision it finds
in it. The embedded engine writes blocks of revision 0, so 0 is what it is told. (A server writes what was agreed.)

Source: ClickHouse, Native format: block information, then name, type, serialization kind and data of each column.
"""

from __future__ import annotations

import re

from api.routes.sql_request import Asked

# From this revision on a column says how it is serialized.
REVISION_MIN = 54_454
_HELLO = re.compile(
    r"\s*SELECT\s+displayName\(\),\s*version\(\),\s*revision\(\),\s*timezone\(\)\s*(?:FORMAT\s+Native\s*)?;?\s*",
    re.IGNORECASE,
)


def is_hello(asked: Asked) -> bool:
    """Say whether a request is that first question."""
    version = asked.fields.get("client_protocol_version", "0")
    return (
        _HELLO.fullmatch(asked.statement) is not None
        and (asked.format or "").lower() == "native"
        and int(version) >= REVISION_MIN
    )


def hello(name: str, version: str, timezone: str) -> bytes:
    """Write the answer: one block of four columns and one row."""
    columns = [
        ("displayName()", "String", _text(name)),
        ("version()", "String", _text(version)),
        ("revision()", "UInt32", (0).to_bytes(4, "little")),
        ("timezone()", "String", _text(timezone)),
    ]
    # Field 1: no overflow rows; field 2: no bucket; end of fields.
    information = b"\x01\x00\x02" + (-1).to_bytes(4, "little", signed=True) + b"\x00"
    block = information + bytes([len(columns), 1])
    return block + b"".join(_text(name) + _text(kind) + b"\x00" + data for name, kind, data in columns)


def _text(text: str) -> bytes:
    content = text.encode()
    assert len(content) < 128
    return bytes([len(content)]) + content
