"""The form of each record and the chain of each stream, judged in the order of the log.

A record is canonical JSON of exactly eleven members. The fast path decodes once, encodes once and
compares: equal bytes prove sorted keys, no spaces, no duplicates, minimal escapes and safe integers in
one stroke; floats are refused while decoding, and ASCII bytes have ASCII keys. Whatever leaves the fast
path is looked at again, slowly, to say what is wrong with it.

Where records could not be read there is a hole: what may have stood in it is never held against the
records after it.

Source: RFC 8785; RFC 3339.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, Any, TypedDict

import msgspec
import orjson

from domain.log.audit_findings import Findings
from domain.log.audit_money import Books

ADDRESS_PREFIX = "sha3-512:"
CANONICAL = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Envelope(TypedDict):
    """The members of a record."""

    actor: str
    at: str
    causation: str | None
    correlation: str | None
    data: dict[str, Any]
    previous: str | None
    schema: Positive
    stream: str
    tenant: str
    type: str
    version: Positive


_MEMBER_TYPES: dict[str, tuple[type, ...]] = {
    "actor": (str,),
    "at": (str,),
    "causation": (str, type(None)),
    "correlation": (str, type(None)),
    "data": (dict,),
    "previous": (str, type(None)),
    "schema": (int,),
    "stream": (str,),
    "tenant": (str,),
    "type": (str,),
    "version": (int,),
}


def _refuse_float(literal: str) -> Any:
    raise ValueError(literal)


_decode = msgspec.json.Decoder(Envelope, float_hook=_refuse_float).decode
_decode_any = msgspec.json.Decoder().decode
_encode = orjson.dumps
_sha3 = hashlib.sha3_512
_moment = datetime.fromisoformat


def address(record: bytes) -> str:
    """Compute the address of a record."""
    return ADDRESS_PREFIX + _sha3(record).hexdigest()


def is_moment(text: str) -> bool:
    """Say whether a text is a UTC moment with exactly six decimals.

    Source: RFC 3339, section 5.6.
    """
    if len(text) != 27 or text[4:20:3] != "--T::." or text[26] != "Z":
        return False
    try:
        _moment(text)
    except ValueError:
        return False
    return text.isascii()


def is_stream(text: str) -> bool:
    """Say whether a text is `kind/id`."""
    kind, slash, name = text.partition("/")
    return bool(kind and slash and name)


def keys_are_ascii(value: Any) -> bool:
    """Say whether all keys of all objects inside a decoded value are ASCII."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if not all(key.isascii() for key in item):
                return False
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return True


def has_float(value: Any) -> bool:
    """Say whether a decoded value holds a number that is not an integer."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, float):
            return True
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return False


def form_faults(raw: bytes) -> tuple[list[tuple[str, str]], Any]:
    """Say all that is wrong with the form of a record, as (code, sentence), and give what it decodes to."""
    try:
        value = _decode_any(raw)
    except (ValueError, RecursionError) as error:
        return [("record_malformed", f"not JSON: {error}")], None
    if not isinstance(value, dict):
        return [("record_malformed", "not a JSON object")], None
    faults = []
    try:
        canonical = _encode(value, option=CANONICAL) == raw
    except (TypeError, ValueError, RecursionError):
        canonical = False
    if not canonical:
        faults.append(("record_not_canonical", "the bytes are not canonical JSON"))
    elif not keys_are_ascii(value):
        faults.append(("record_not_canonical", "a key is not ASCII"))
    if has_float(value):
        faults.append(("record_not_canonical", "a number is not an integer"))
    return faults + _member_faults(value), value


def _member_faults(value: dict[str, Any]) -> list[tuple[str, str]]:
    faults = [
        ("unexpected_member", f"the member {key[:64]!r} is not one of a record's")
        for key in sorted(value.keys() - _MEMBER_TYPES.keys())
    ]
    for key, types in _MEMBER_TYPES.items():
        if key not in value:
            faults.append(("record_malformed", f"the member {key!r} is missing"))
        elif type(value[key]) not in types:
            faults.append(("record_malformed", f"the member {key!r} has the wrong type"))
        elif types == (int,) and value[key] < 1:
            faults.append(("record_malformed", f"the member {key!r} is less than 1"))
    if isinstance(value.get("at"), str) and not is_moment(value["at"]):
        faults.append(("record_malformed", "'at' is not a UTC moment with six decimals"))
    if isinstance(value.get("stream"), str) and not is_stream(value["stream"]):
        faults.append(("record_malformed", "'stream' is not kind/id"))
    return faults


def stream_of(raw: bytes) -> str | None:
    """Read the stream a record says it belongs to, if that can be read at all."""
    try:
        value = orjson.loads(raw)
    except ValueError:
        return None
    stream = value.get("stream") if isinstance(value, dict) else None
    return stream[:200] if isinstance(stream, str) else None


class Streams:
    """Follows every stream's chain and hands the money of each record to the books.

    Memory: per stream its name, last version and last address (64 bytes; empty when not known).
    """

    def __init__(self, findings: Findings, books: Books) -> None:
        self._findings = findings
        self._books = books
        self._heads: dict[str, tuple[int, bytes]] = {}
        # Heads as they were before the latest hole: their next record may have been in it.
        self._before_hole: dict[str, tuple[int, bytes]] = {}
        self._holed = False
        self.holed_from: int | None = None
        self.record_count = 0
        self.byte_count = 0

    @property
    def heads(self) -> dict[str, tuple[int, bytes]]:
        """Give version and address of the last record of every stream."""
        return self._before_hole | self._heads

    def hole(self, position: int) -> None:
        """Note that a record was here which could not be read."""
        if self.holed_from is None:
            self.holed_from = position
        self._before_hole |= self._heads
        self._heads = {}
        self._holed = True
        self._books.hole()

    def take(self, position: int, records: list[bytes]) -> None:
        """Judge authentic records that stand at consecutive positions.

        Cost: one decoding, one encoding and one SHA3-512 a record.
        """
        heads, books, fresh = self._heads, self._books, not self._holed
        size = 0
        for raw in records:
            digest = _sha3(raw).digest()
            size += len(raw)
            try:
                record = _decode(raw)
                at, stream, version = record["at"], record["stream"], record["version"]
                data = record["data"]
                head = heads.get(stream)
                if head is not None:
                    good = version == head[0] + 1 and record["previous"] == ADDRESS_PREFIX + head[1].hex()
                else:
                    good = version == 1 and record["previous"] is None and fresh and is_stream(stream)
                good = (
                    good
                    and at[4:20:3] == "--T::."
                    and len(at) == 27
                    and at[26] == "Z"
                    and _moment(at) is not None
                    and _encode(record, option=CANONICAL) == raw
                    and (raw.isascii() or (at.isascii() and keys_are_ascii(data)))
                )
            except (ValueError, TypeError, KeyError, RecursionError):
                good = False
            if good:
                heads[stream] = (version, digest)
                if "money" in data:
                    books.take(position, stream, data["money"])
            else:
                self.judge(position, raw, digest)
                heads, fresh = self._heads, not self._holed
            position += 1
        self.record_count += len(records)
        self.byte_count += size

    def judge(self, position: int, raw: bytes, digest: bytes, *, altered: bool = False) -> None:
        """Judge one record slowly and name each fault; an altered record leaves its address unknown."""
        faults, value = form_faults(raw)
        stream = value.get("stream") if isinstance(value, dict) else None
        stream = stream if isinstance(stream, str) else None
        for code, message in faults:
            self._findings.add(code, message, position=position, stream=stream)
        version = value.get("version") if stream is not None else None
        if stream is None or not is_stream(stream) or type(version) is not int or version < 1:
            self.hole(position)
            return
        if altered and version != self._head(stream)[0] + 1:
            # Stream or version are not those that were hashed: what stood here is unknown.
            self.hole(position)
            return
        self._follow(position, stream, version, value.get("previous"), b"" if altered else digest)
        data = value.get("data")
        if isinstance(data, dict) and "money" in data:
            self._books.take(position, stream, data["money"])

    def _head(self, stream: str) -> tuple[int, bytes]:
        return self._heads.get(stream) or self._before_hole.get(stream, (0, b""))

    def _follow(self, position: int, stream: str, version: int, previous: Any, digest: bytes) -> None:
        """Compare version and previous address with the head of the stream, then move the head."""
        gap_allowed = self._holed and stream not in self._heads
        last, known = self._head(stream)
        if version <= last:
            message = f"version {version} comes again after version {last}"
            self._findings.add("version_duplicate", message, position=position, stream=stream)
            return
        self._heads[stream] = (version, digest)
        if version > last + 1:
            if not gap_allowed:
                message = f"version {version} follows version {last}"
                self._findings.add("version_gap", message, position=position, stream=stream)
            return
        expected = ADDRESS_PREFIX + known.hex() if last else None
        if previous != expected and (known or not last):
            message = f"'previous' of version {version} is not the address of version {last}"
            self._findings.add("chain_broken", message, position=position, stream=stream)
