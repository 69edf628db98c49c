"""Records: what the log is made of, and the events and aggregates they are about.

A record is the RFC 8785 canonical JSON of one envelope. Its bytes are stored, hashed and served; nothing is
ever serialised a second time to be verified. A record's address is the SHA3-512 of its bytes, and each record
names the address of its stream's previous one, so a stream is a chain.
"""

from __future__ import annotations

from hashlib import sha3_512
from typing import Any, ClassVar, Self

import msgspec

from domain.book import Entry
from domain.errors import AddressInvalidError, LogDamagedError, NotCanonicalError, RecordTooLargeError

RECORD_BYTES_MAX = 65_535
ADDRESS_PREFIX = "sha3-512:"

# Wire type -> event class. Filled when the classes are defined; wire types are never reused.
EVENTS: dict[str, type[Event]] = {}
# Kind of stream -> aggregate class.
AGGREGATES: dict[str, type[Aggregate]] = {}


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A fact, in the past tense. Subclasses set TOPIC, the wire type, and say how they change their aggregate."""

    TOPIC: ClassVar[str] = ""
    SCHEMA: ClassVar[int] = 1

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        topic = cls.__dict__.get("TOPIC", "")
        if not topic:
            return
        if topic in EVENTS:
            raise TypeError(f"wire type {topic!r} is taken")
        EVENTS[topic] = cls

    def apply(self, aggregate: Any, record: Record) -> None:
        """Change the aggregate; it never refuses, for the event has happened."""
        raise NotImplementedError


class MoneyEvent(Event, frozen=True, kw_only=True):
    """An event that moves money when it is committed."""

    money: list[Entry]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The envelope of an event.

    Units: version is 1-based in its stream; at is RFC 3339 UTC with microseconds.
    """

    actor: str
    at: str
    causation: str | None
    correlation: str | None
    data: Any
    previous: str | None
    schema: int
    stream: str
    tenant: str
    type: str
    version: int

    # The names by which the eventsourcing library knows these members.
    @property
    def originator_id(self) -> str:
        return self.stream

    @property
    def originator_version(self) -> int:
        return self.version


class Aggregate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A consistency boundary, rebuilt by applying its events in order.

    Subclasses set KIND and may say what lists and searches need: owner, status, deadline, parties, text.
    """

    KIND: ClassVar[str] = ""
    # Whether it is worth its place in memory after its commit; False for what is hardly ever read again.
    LASTING: ClassVar[bool] = True

    id: str
    tenant: str
    version: int = 0
    created_at: str = ""
    updated_at: str = ""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__dict__.get("KIND"):
            AGGREGATES[cls.KIND] = cls

    @property
    def stream(self) -> str:
        return f"{self.KIND}/{self.id}"

    def owner_key(self) -> str | None:
        """Name the one this belongs to, for lists."""
        return None

    def status_key(self) -> str:
        """Name the status, for lists."""
        return ""

    def deadline_key(self) -> str | None:
        """Name the moment at which something becomes due, for timers."""
        return None

    def party_keys(self) -> list[str] | None:
        """Name further tenants who may read this."""
        return None

    def search_text(self) -> str | None:
        """Give the words by which it is found."""
        return None

    def mutate(self, record: Record) -> Self:
        """Apply one record of this stream."""
        if record.version != self.version + 1:
            raise LogDamagedError(
                f"{record.stream} jumps from version {self.version} to {record.version}", stream=record.stream
            )
        record.data.apply(self, record)
        self.version = record.version
        self.updated_at = record.at
        if record.version == 1:
            self.created_at = record.at
        return self


_encoder = msgspec.json.Encoder(order="sorted")
encode_state = _encoder.encode


def encode(record: Record) -> bytes:
    """Write a record's canonical bytes.

    Cost:   one pass; keys are ASCII, so code-point order is the order RFC 8785 asks for.
    Errors: not_canonical, record_too_large.
    """
    try:
        data = _encoder.encode(record)
    except UnicodeEncodeError as error:
        raise NotCanonicalError("text must not contain half of a surrogate pair") from error
    if b"\\u0000" in data:
        raise NotCanonicalError("text must not contain the character NUL, nor spell it as \\u0000")
    if len(data) > RECORD_BYTES_MAX:
        raise RecordTooLargeError(bytes=len(data), bytes_max=RECORD_BYTES_MAX, type=record.type)
    return data


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    actor: str
    at: str
    causation: str | None
    correlation: str | None
    data: msgspec.Raw
    previous: str | None
    schema: int
    stream: str
    tenant: str
    type: str
    version: int


_envelopes = msgspec.json.Decoder(_Envelope)
_payloads: dict[type[Event], msgspec.json.Decoder[Any]] = {}


def decode(data: bytes) -> Record:
    """Read a record back; its `data` becomes the event.

    Errors: log_damaged.
    """
    try:
        e = _envelopes.decode(data)
        event = _payload(e.type, e.schema, e.data)
    except msgspec.MsgspecError as error:
        raise LogDamagedError("a stored record cannot be read", internal=str(error)) from error
    return Record(
        e.actor,
        e.at,
        e.causation,
        e.correlation,
        event,
        e.previous,
        e.schema,
        e.stream,
        e.tenant,
        e.type,
        e.version,
    )


def _payload(topic: str, schema: int, raw: msgspec.Raw) -> Event:
    cls = EVENTS.get(topic)
    if cls is None:
        raise LogDamagedError(f"no event is known by the type {topic!r}", type=topic)
    decoder = _payloads.get(cls)
    if decoder is None:
        decoder = _payloads[cls] = msgspec.json.Decoder(cls)
    if schema == cls.SCHEMA:
        return decoder.decode(raw)  # type: ignore[no-any-return]
    upcast = getattr(cls, f"upcast_{schema}", None)
    if upcast is None:
        raise LogDamagedError(f"{topic} has no schema {schema}", type=topic)
    return msgspec.convert(upcast(msgspec.json.decode(raw)), cls)


def digest(data: bytes) -> bytes:
    """Hash a record's bytes to the 64 bytes of its address."""
    return sha3_512(data).digest()


def address_text(raw: bytes) -> str:
    """Print an address."""
    return ADDRESS_PREFIX + raw.hex()


def parse_address(text: str) -> bytes:
    """Read an address strictly.

    Errors: invalid_address.
    """
    hexed = text.removeprefix(ADDRESS_PREFIX)
    if len(text) != len(ADDRESS_PREFIX) + 128 or hexed == text or not set(hexed) <= set("0123456789abcdef"):
        raise AddressInvalidError(got=text[:160])
    return bytes.fromhex(hexed)


def blank(stream: str, tenant: str) -> Aggregate:
    """Make the empty aggregate a stream starts from.

    Errors: log_damaged.
    """
    kind, _, name = stream.partition("/")
    cls = AGGREGATES.get(kind)
    if cls is None:
        raise LogDamagedError(f"no aggregate is known by the kind {kind!r}", stream=stream)
    return cls(id=name, tenant=tenant)
