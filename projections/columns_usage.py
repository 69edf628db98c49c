"""Usage in columns: what requests to models consumed, by the hour in which they did, and what was put right since.

A reading is one row. A correction is two: the first takes back what the replaced version said, in that version's own
hour and with the sign -1; the second says what holds now, in its hour. No row ever changes, so sums with signs are
right in every hour, before and after, whichever month a correction moves a reading to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from domain.billing.usage import Usage
from domain.errors import LedgerError, LogDamagedError
from domain.log.records import decode
from domain.values import moment_of
from projections.columns import (
    ADDRESS,
    DECIMAL,
    MOMENT,
    TEXT,
    U64,
    Earlier,
    Reading,
    Rows,
    Shape,
    Tables,
    Version,
    decimals,
    kind_of,
    moments,
    nano_of,
    schema_of,
    table,
)

USAGE_ROWS: Reading[msgspec.Raw] = Reading(msgspec.Raw, msgspec.Raw(b"{}"))

# What a 32-bit hour can hold.
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(2106, 1, 1, tzinfo=UTC)

USAGE = Shape(
    "usage",
    pa.schema(
        [
            *schema_of(
                position=U64,
                address=ADDRESS,
                at=MOMENT,
                occurred_at=MOMENT,
                hour=pa.timestamp("s", "UTC"),
                tenant=TEXT,
                source=TEXT,
                event_id=TEXT,
                provider=TEXT,
                model=TEXT,
                rental=TEXT,
                persona=TEXT,
                status=TEXT,
                requests=U64,
                tokens_in=U64,
                tokens_out=U64,
                tokens_cached=U64,
            ),
            # Unknown is not zero: a mean over readings that were not timed would be too small.
            pa.field("latency_ms", U64),
            *schema_of(cost=DECIMAL, currency=TEXT, leg=pa.uint32(), sign=pa.int8(), version=U64),
            *schema_of(reverses=U64, reason=TEXT),
        ]
    ),
    month="hour",
)


class Entry(NamedTuple):
    """One row: what is said, and whether it is added or taken back.

    Units: cost in nano-units; reverses is the position of the record that is taken back, zero where nothing is.
    """

    place: int
    leg: int
    said: Usage.Metered | Usage.Corrected
    cost: int
    named: Usage.Metered
    sign: int = 1
    reverses: int = 0
    reason: str = ""


def corrected_versions(rows: Rows[msgspec.Raw]) -> list[Version]:
    """Name the records that corrections of a batch are read with: what they replace, and how the reading began."""
    corrections = (e for e in rows.envelopes if e.type == Usage.Corrected.TOPIC and e.version > 1)
    return [(e.stream, version) for e in corrections for version in {e.version - 1, 1}]


def usage(rows: Rows[msgspec.Raw], earlier: Mapping[Version, Earlier]) -> Tables:
    """Tell the readings of a batch, and their corrections; a record that cannot be told is named and left out whole."""
    found: list[Entry] = []
    for place, envelope in enumerate(rows.envelopes):
        if kind_of(envelope.stream) != Usage.KIND or not envelope.version:
            continue
        try:
            found += _entries(rows, place, earlier)
        except (LedgerError, ValueError) as error:
            rows.refuse(place, error)
    return {"usage": _usage(rows, found)}


def _entries(rows: Rows[msgspec.Raw], place: int, earlier: Mapping[Version, Earlier]) -> Sequence[Entry]:
    """Tell one record.

    Errors: invalid_amount, log_damaged.
    """
    said, cost = _read(rows.stored[place].record)
    if isinstance(said, Usage.Metered):
        return (Entry(place, 0, said, cost, said),)
    return tuple(_correction(rows, place, said, cost, earlier))


def _correction(
    rows: Rows[msgspec.Raw], place: int, said: Usage.Corrected, cost: int, earlier: Mapping[Version, Earlier]
) -> Iterator[Entry]:
    stream, version = rows.envelopes[place].stream, rows.envelopes[place].version
    replaced, first = earlier.get((stream, version - 1)), earlier.get((stream, 1))
    if replaced is None or first is None or said.replaces != version - 1:
        raise LogDamagedError(f"version {said.replaces}, which it replaces, is not the one before it")
    before, before_cost = _read(replaced.record)
    named, _ = _read(first.record)
    if not isinstance(named, Usage.Metered):
        raise LogDamagedError("what it corrects does not begin with a reading")
    yield Entry(place, 0, before, before_cost, named, -1, replaced.position, said.reason)
    yield Entry(place, 1, said, cost, named, reason=said.reason)


def _read(record: bytes) -> tuple[Usage.Metered | Usage.Corrected, int]:
    """Read what a record says, and its cost.

    Errors: invalid_amount, log_damaged.
    """
    event = decode(record).data
    if not isinstance(event, Usage.Metered | Usage.Corrected):
        raise ValueError(f"{type(event).__name__} is not a reading")
    if not EARLIEST <= moment_of(event.occurred_at) < LATEST:
        raise ValueError(f"the hour of {event.occurred_at} cannot be kept")
    return event, nano_of(event.cost.amount) if event.cost else 0


def _usage(rows: Rows[msgspec.Raw], found: list[Entry]) -> pa.Table:
    said = [entry.said for entry in found]
    occurred = moments([e.occurred_at for e in said])
    columns: dict[str, Any] = rows.pick(
        [entry.place for entry in found], "position", "address", "at", "tenant", "version"
    )
    columns |= {
        "leg": [entry.leg for entry in found],
        "occurred_at": occurred,
        "hour": _hours(occurred),
        "source": [entry.named.source for entry in found],
        "event_id": [entry.named.event_id for entry in found],
        "sign": [entry.sign for entry in found],
        "reverses": [entry.reverses for entry in found],
        "reason": [entry.reason for entry in found],
        "provider": [e.provider for e in said],
        "model": [e.model for e in said],
        "rental": [e.rental_id or "" for e in said],
        "persona": [e.persona_id or "" for e in said],
        "status": [e.status for e in said],
        "requests": [e.requests for e in said],
        "tokens_in": [e.tokens_in for e in said],
        "tokens_out": [e.tokens_out for e in said],
        "tokens_cached": [e.cached_tokens or 0 for e in said],
        "latency_ms": [e.latency_ms for e in said],
        "cost": decimals([entry.cost for entry in found]),
        "currency": [e.cost.currency if e.cost else "" for e in said],
    }
    return table(USAGE, columns)


def _hours(occurred: pa.Array) -> pa.Array:
    """Cut moments off at the hour."""
    cut = occurred.cast(pa.timestamp("us")).to_numpy(zero_copy_only=False).astype("datetime64[h]")
    return pa.array(cut.astype("datetime64[s]"), pa.timestamp("s")).cast(pa.timestamp("s", "UTC"))
