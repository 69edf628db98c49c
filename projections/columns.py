"""From records to columns: what every projection of the log shares, and the mirror with its timelines.

Pure functions of a batch. A batch is read once; a record that cannot be read does not stop the others: it is named,
with what is wrong, and its bytes are mirrored all the same.

Money travels as whole nano-units until it is a decimal of 38 digits, nine of them after the point; no float is met.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import pyarrow as pa

from domain.errors import DecimalOverflowError, LedgerError, LogDamagedError
from domain.log.records import ADDRESS_PREFIX
from domain.values import parse_nano
from ops.reads import Stored

# Nano-units of a Decimal(38, 9): below this, on either side of zero.
DECIMAL_NANO_MAX = 10**38 - 1
EPOCH = "1970-01-01T00:00:00.000000Z"

ADDRESS = pa.binary(64)
DECIMAL = pa.decimal128(38, 9)
MOMENT = pa.timestamp("us", "UTC")
TEXT = pa.string()
U64 = pa.uint64()

T = TypeVar("T")
Tables = dict[str, pa.Table]
# A record by its stream and its version there.
Version = tuple[str, int]


class Earlier(NamedTuple):
    """An earlier record that a later one is told with."""

    position: int
    record: bytes


class Unprojected(NamedTuple):
    """A record that is in the log and cannot be told in columns."""

    position: int
    address: bytes
    record: bytes
    code: str
    reason: str


class Shape(NamedTuple):
    """A table: its columns, and the column whose month is its partition."""

    name: str
    schema: pa.Schema
    month: str | None = None


class Envelope(msgspec.Struct, Generic[T], gc=False):
    """The members of a record; what its data is read as depends on who reads."""

    actor: str
    at: str
    causation: str | None
    correlation: str | None
    data: T
    schema: int
    stream: str
    tenant: str
    type: str
    version: int


class Reading(Generic[T]):
    """Reads the envelopes of batches, all records of one in one go."""

    def __init__(self, data: Any, blank: T) -> None:
        self._one = msgspec.json.Decoder(Envelope[data])
        self._all = msgspec.json.Decoder(list[Envelope[data]])
        self._blank = blank

    def read(self, stored: Sequence[Stored]) -> Rows[T]:
        """Read a batch; records that cannot be read are named, and stand blank in its columns."""
        try:
            envelopes = self._all.decode(b"[" + b",".join([s.record for s in stored]) + b"]")
            rows = Rows(stored, envelopes, [])
            _ = rows.at
        except (msgspec.MsgspecError, UnicodeDecodeError, pa.ArrowInvalid):
            return self._read_singly(stored)
        return rows if len(envelopes) == len(stored) else self._read_singly(stored)

    def _read_singly(self, stored: Sequence[Stored]) -> Rows[T]:
        envelopes: list[Envelope[T]] = []
        unread: list[Unprojected] = []
        for one in stored:
            try:
                envelope = self._one.decode(one.record)
                moments([envelope.at])
            except (msgspec.MsgspecError, UnicodeDecodeError, pa.ArrowInvalid) as error:
                envelope = self._blank_for(one)
                unread.append(Unprojected(*one, LogDamagedError.code, f"the record cannot be read: {error}"))
            envelopes.append(envelope)
        return Rows(stored, envelopes, unread)

    def _blank_for(self, stored: Stored) -> Envelope[T]:
        """Keep what can be told of a record that a strict reader refuses."""
        try:
            known = _loose.decode(stored.record)
            moments([known.at])
        except (msgspec.MsgspecError, UnicodeDecodeError, pa.ArrowInvalid):
            known = _Loose()
        return Envelope(
            known.actor,
            known.at,
            known.causation,
            known.correlation,
            self._blank,
            known.schema,
            known.stream,
            known.tenant,
            known.type,
            known.version,
        )


class _Loose(msgspec.Struct):
    actor: str = ""
    at: str = EPOCH
    causation: str | None = None
    correlation: str | None = None
    schema: int = 0
    stream: str = ""
    tenant: str = ""
    type: str = ""
    version: int = 0


_loose = msgspec.json.Decoder(_Loose)


class Rows(Generic[T]):
    """A batch that was read, and the columns its envelopes have in common; each is made once."""

    def __init__(
        self, stored: Sequence[Stored], envelopes: list[Envelope[T]], unread: list[Unprojected]
    ) -> None:
        self.stored = stored
        self.envelopes = envelopes
        self.unread = unread

    @cached_property
    def position(self) -> pa.Array:
        return pa.array([s.position for s in self.stored], U64)

    @cached_property
    def address(self) -> pa.Array:
        return addresses([s.address for s in self.stored])

    @cached_property
    def at(self) -> pa.Array:
        return moments([e.at for e in self.envelopes])

    @cached_property
    def day(self) -> pa.Array:
        # The day of the UTC moment; dates count days, so the time of day is cut off.
        return self.at.cast(pa.timestamp("us")).cast(pa.date32(), safe=False)

    @cached_property
    def tenant(self) -> pa.Array:
        return pa.array([e.tenant for e in self.envelopes], TEXT)

    @cached_property
    def stream(self) -> pa.Array:
        return pa.array([e.stream for e in self.envelopes], TEXT)

    @cached_property
    def version(self) -> pa.Array:
        return pa.array([e.version for e in self.envelopes], U64)

    @cached_property
    def type(self) -> pa.Array:
        return pa.array([e.type for e in self.envelopes], TEXT)

    @cached_property
    def actor(self) -> pa.Array:
        return pa.array([e.actor for e in self.envelopes], TEXT)

    def refuse(self, at: int, error: Exception) -> None:
        """Name a record of the batch that cannot be projected."""
        code = error.code if isinstance(error, LedgerError) else LogDamagedError.code
        self.unread.append(Unprojected(*self.stored[at], code, str(error)))

    def pick(self, places: Sequence[int], *names: str) -> dict[str, pa.Array]:
        """Give common columns of the records at some places, in this order, as often as they are named."""
        indices = pa.array(places, pa.int64())
        return {name: getattr(self, name).take(indices) for name in names}


# --------------------------------------------------------------------------- columns of one type


def decimals(nanos: Sequence[int]) -> pa.Array:
    """Put amounts into a column, exactly.

    Units:  nano-units of a currency.
    Errors: decimal_overflow.
    """
    try:
        data = b"".join([nano.to_bytes(16, "little", signed=True) for nano in nanos])
    except OverflowError as error:
        raise DecimalOverflowError(digits_max=38) from error
    if nanos and not -DECIMAL_NANO_MAX <= min(nanos) <= max(nanos) <= DECIMAL_NANO_MAX:
        raise DecimalOverflowError(digits_max=38)
    return pa.Array.from_buffers(DECIMAL, len(nanos), [None, pa.py_buffer(data)])


_nanos = lru_cache(65_536)(parse_nano)


def nano_of(amount: str) -> int:
    """Read a decimal string as nano-units; the two legs of a transfer have one amount, which is read once.

    Errors: invalid_amount.
    """
    return -_nanos(amount[1:]) if amount[:1] == "-" and amount[1:2].isdigit() else _nanos(amount)


def moments(texts: Sequence[str | None]) -> pa.Array:
    """Put RFC 3339 moments in UTC into a column."""
    return pa.array(texts, TEXT).cast(MOMENT)


def addresses(raw: Iterable[bytes]) -> pa.Array:
    """Put the 64 bytes of addresses into a column."""
    return pa.array(raw, ADDRESS)


def table(shape: Shape, columns: Mapping[str, Any]) -> pa.Table:
    """Put columns together in the order and with the types of a table, and nothing else."""
    arrays = [
        column if isinstance(column := columns[field.name], pa.Array) else pa.array(column, field.type)
        for field in shape.schema
    ]
    return pa.Table.from_arrays(arrays, schema=shape.schema)


def by_month(shape: Shape, whole: pa.Table) -> list[pa.Table]:
    """Split a table into one piece per partition, so that each insert is one part: there, or not there."""
    if shape.month is None or whole.num_rows < 2:
        return [whole] if whole.num_rows else []
    moments_us = whole.column(shape.month).combine_chunks().cast(pa.timestamp("us"), safe=False)
    months = moments_us.to_numpy(zero_copy_only=False).astype("datetime64[M]")
    if months[0] == months[-1] and (months == months[0]).all():
        return [whole]
    return [whole.filter(pa.array(months == month)) for month in sorted(set(months.tolist()))]


def schema_of(**types: pa.DataType) -> pa.Schema:
    """Write down columns that are never null, in order."""
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])


# --------------------------------------------------------------------------- the mirror

RECORDS = Shape(
    "records",
    schema_of(
        position=U64,
        address=ADDRESS,
        tenant=TEXT,
        kind=TEXT,
        stream=TEXT,
        version=U64,
        type=TEXT,
        schema=pa.uint16(),
        at=MOMENT,
        actor=TEXT,
        correlation=TEXT,
        causation=TEXT,
        record=pa.binary(),
    ),
    month="at",
)
TIMELINES = Shape(
    "timelines",
    schema_of(
        subject_kind=TEXT,
        subject=TEXT,
        position=U64,
        address=ADDRESS,
        tenant=TEXT,
        stream=TEXT,
        version=U64,
        type=TEXT,
        at=MOMENT,
        actor=TEXT,
        data=pa.binary(),
    ),
)

RECORD_ROWS: Reading[msgspec.Raw] = Reading(msgspec.Raw, msgspec.Raw(b"{}"))


def kind_of(stream: str) -> str:
    """Give the kind of a stream, such as `contract`."""
    return stream.partition("/")[0]


def records(rows: Rows[msgspec.Raw]) -> pa.Table:
    """Mirror the records of a batch."""
    envelopes = rows.envelopes
    return table(
        RECORDS,
        {
            "position": rows.position,
            "address": rows.address,
            "tenant": rows.tenant,
            "kind": [kind_of(e.stream) for e in envelopes],
            "stream": rows.stream,
            "version": rows.version,
            "type": rows.type,
            "schema": [e.schema for e in envelopes],
            "at": rows.at,
            "actor": rows.actor,
            "correlation": [e.correlation or "" for e in envelopes],
            "causation": [e.causation or "" for e in envelopes],
            "record": [s.record for s in rows.stored],
        },
    )


# --------------------------------------------------------------------------- timelines

# One-shot streams, of which there are as many as records: their timelines would be one line each.
UNTOLD = frozenset({"transfer", "usage", ""})
# What the data of a record names, and the kind of thing that is.
NAMED = {
    "contract_id": "contract",
    "round_intent_id": "intent",
    "persona_id": "persona",
    "capsule": "capsule",
}
# Streams that belong to other things for their whole life, by the members of their first record that name them.
CHILDREN = {
    "round": ("contract_id",),
    "dispute": ("contract_id",),
    "rental": ("persona_id",),
    "subscription": ("persona_id",),
    "purchase": ("persona_id",),
    "capsule": ("persona_id",),
    "export": ("persona_id", "capsule"),
    "evaluation": ("persona_id",),
    "claim": ("persona_id", "capsule"),
}
# Streams about the thing that has the same id, and belong to whatever that belongs to.
ABOUT = {"review": "capsule", "signing": "capsule"}

Subject = tuple[str, str]


class _Named(msgspec.Struct, gc=False):
    """What the data of a record may name."""

    contract_id: Any = None
    round_intent_id: Any = None
    persona_id: Any = None
    capsule: Any = None
    shares: Any = None


_named = msgspec.json.Decoder(_Named)


def root_of(stream: str) -> str:
    """Give the stream whose first record says what a stream belongs to: mostly its own."""
    kind, _, name = stream.partition("/")
    return f"{ABOUT[kind]}/{name}" if kind in ABOUT else stream


def orphans(rows: Rows[msgspec.Raw], parents: Mapping[str, Sequence[Subject]]) -> list[str]:
    """List the streams whose first records say what records of a batch belong to, and that are not known yet."""
    begun = {e.stream for e in rows.envelopes if e.version == 1}
    roots = {root_of(e.stream) for e in rows.envelopes if e.version}
    return sorted(root for root in roots - begun if kind_of(root) in CHILDREN and root not in parents)


def adopt(rows: Rows[msgspec.Raw]) -> dict[str, list[Subject]]:
    """Tell what the streams that begin in a batch belong to, for as long as they go on."""
    found: dict[str, list[Subject]] = {}
    for envelope in rows.envelopes:
        members = CHILDREN.get(kind_of(envelope.stream))
        if members is not None and envelope.version == 1:
            found[envelope.stream] = _named_by(_names(envelope.data), members)
    return found


def timelines(rows: Rows[msgspec.Raw], parents: Mapping[str, Sequence[Subject]]) -> pa.Table:
    """Tell each record under every subject it is about: its stream's own, those its data names, and its parents."""
    places: list[int] = []
    kinds: list[str] = []
    names: list[str] = []
    told: dict[int, bytes] = {}
    for at, envelope in enumerate(rows.envelopes):
        kind, _, name = envelope.stream.partition("/")
        if kind in UNTOLD:
            continue
        told[at] = bytes(envelope.data)
        root = root_of(envelope.stream)
        for subject_kind, subject in dict.fromkeys(
            [(kind, name), (kind_of(root), name), *parents.get(root, ()), *_subjects(envelope.data)]
        ):
            places.append(at)
            kinds.append(subject_kind)
            names.append(subject)
    columns: dict[str, Any] = rows.pick(
        places, "position", "address", "tenant", "stream", "version", "type", "at", "actor"
    )
    columns |= {"subject_kind": kinds, "subject": names, "data": [told[at] for at in places]}
    return table(TIMELINES, columns)


def _names(data: msgspec.Raw) -> _Named:
    try:
        return _named.decode(data)
    except msgspec.MsgspecError:
        return _Named()


def _named_by(named: _Named, members: Iterable[str]) -> list[Subject]:
    found = [(NAMED[member], getattr(named, member)) for member in members]
    # A capsule is named by its address, and its stream by the digits of it.
    return [
        (kind, name.removeprefix(ADDRESS_PREFIX)) for kind, name in found if isinstance(name, str) and name
    ]


def _subjects(data: msgspec.Raw) -> list[Subject]:
    named = _names(data)
    found = _named_by(named, NAMED)
    if isinstance(named.shares, list):
        sellers = [share.get("seller") for share in named.shares if isinstance(share, dict)]
        found += [("seller", seller) for seller in sellers if isinstance(seller, str) and seller]
    return found
