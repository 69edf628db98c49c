"""The canonical JSON form of a value, so that equal values are equal bytes.

Two doors lead to the same form. `encode` takes any JSON value, floats included, for documents of others.
`encode_record` is for our own records, which hold no floats and have ASCII keys; there the order of
code points is the order of UTF-16 units, so a fast encoder gives RFC 8785 bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha3_512
from typing import Any, NoReturn

import msgspec
import orjson
import rfc8785

from domain.errors import InvalidError, NotCanonicalError

INTEGER_MAX = 2**53 - 1

_RECORD = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER


def _refuse_float(text: str) -> NoReturn:
    raise NotCanonicalError("a record holds no floats: write decimals as strings", got=text[:32])


_DECODER = msgspec.json.Decoder(float_hook=_refuse_float)


def encode(value: Any) -> bytes:
    """Write any JSON value in canonical form.

    Cost:   about a microsecond per member; for documents, not for the path of a command.
    Errors: not_canonical.
    Source: RFC 8785, section 3.
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise NotCanonicalError(str(error)) from error


def encode_record(value: Any) -> bytes:
    """Write a value of ours in canonical form: no floats, ASCII keys, lists rather than tuples.

    Cost:   one encoding, one decoding and one comparison, all in C.
    Errors: not_canonical.
    Source: RFC 8785, section 3.
    """
    try:
        data = orjson.dumps(value, option=_RECORD)
        read = _DECODER.decode(data)
    except (orjson.JSONEncodeError, msgspec.MsgspecError, RecursionError) as error:
        raise NotCanonicalError(str(error)) from error
    # The encoder writes NaN as null and some classes as strings; what does not read back is no JSON value.
    if read != value:
        raise NotCanonicalError("a record is made of objects, lists, strings, integers, true, false and null")
    if not data.isascii() and not _keys_are_ascii(read):
        raise NotCanonicalError("keys of records are ASCII")
    return data


def sealed(context: str, value: Any) -> tuple[bytes, str]:
    """Write a document in canonical form and give its address, which no document of another context can have.

    The address is SHA3-512 over the context, a zero byte and the document's bytes.
    Errors: not_canonical.
    """
    data = encode_record(value)
    return data, seal_of(context, data)


def seal_of(context: str, data: bytes) -> str:
    """Give the address of a document's canonical bytes in a context, such as `soma/capsule/v1`."""
    return "sha3-512:" + sha3_512(context.encode("ascii") + b"\0" + data).hexdigest()


def is_canonical(data: bytes) -> bool:
    """Tell whether bytes are a record in canonical form: re-encoding what they say gives them again.

    Cost: one decoding and one encoding, both in C.
    """
    try:
        value = _DECODER.decode(data)
        if orjson.dumps(value, option=_RECORD) != data:
            return False
    except (NotCanonicalError, msgspec.MsgspecError, orjson.JSONEncodeError, RecursionError, UnicodeError):
        return False
    return data.isascii() or _keys_are_ascii(value)


def _keys_are_ascii(value: Any) -> bool:
    return all(key.isascii() for key in _keys(value))


def _keys(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            yield from current
            waiting.extend(current.values())
        elif isinstance(current, list):
            waiting.extend(current)


# --------------------------------------------------------------------------- what others sent


def read_json(data: bytes) -> Any:
    """Read JSON as a ledger must: no number that is none, no name twice, no half of a character.

    Errors: invalid_request.
    Source: RFC 8259, sections 4 and 6; RFC 7493, sections 2.1 and 2.3.
    """
    try:
        text = data.decode()
        value = json.loads(text, object_pairs_hook=_members, parse_constant=_no_number)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"the body is not JSON: {_why(error)}") from error
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:64]!r} occurs twice in one object")
    return members


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _why(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "a surrogate stands alone"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
