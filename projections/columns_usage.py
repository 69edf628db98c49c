"""Usage readings in columns: what requests to models consumed, by the hour in which they did.

The table has readings as they were taken. What was put right later is in the mirror of the log beside it, and in
invoices; a row of this table never changes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pyarrow as pa

from domain.billing.usage import Usage
from domain.errors import LedgerError
from domain.log.records import decode
from domain.values import moment_of
from projections.columns import (
    ADDRESS,
    DECIMAL,
    MOMENT,
    TEXT,
    U64,
    Reading,
    Rows,
    Shape,
    Tables,
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
            *schema_of(cost=DECIMAL, currency=TEXT),
        ]
    ),
    month="hour",
)


def usage(rows: Rows[msgspec.Raw]) -> Tables:
    """Tell the readings of a batch."""
    places: list[int] = []
    found: list[Usage.Metered] = []
    nanos: list[int] = []
    for place, envelope in enumerate(rows.envelopes):
        if kind_of(envelope.stream) != Usage.KIND or not envelope.version:
            continue
        if envelope.type == Usage.Corrected.TOPIC:
            continue
        try:
            reading, nano = _reading(rows.stored[place].record)
        except (LedgerError, ValueError) as error:
            rows.refuse(place, error)
            continue
        places.append(place)
        found.append(reading)
        nanos.append(nano)
    return {"usage": _usage(rows, places, found, nanos)}


def _reading(record: bytes) -> tuple[Usage.Metered, int]:
    """Read one reading and its cost.

    Errors: invalid_amount, log_damaged.
    """
    event = decode(record).data
    if not isinstance(event, Usage.Metered):
        raise ValueError(f"{type(event).__name__} is not a reading")
    if not EARLIEST <= moment_of(event.occurred_at) < LATEST:
        raise ValueError(f"the hour of {event.occurred_at} cannot be kept")
    return event, nano_of(event.cost.amount) if event.cost else 0


def _usage(
    rows: Rows[msgspec.Raw], places: list[int], found: list[Usage.Metered], nanos: list[int]
) -> pa.Table:
    occurred = moments([e.occurred_at for e in found])
    columns: dict[str, Any] = rows.pick(places, "position", "address", "at", "tenant")
    columns |= {
        "occurred_at": occurred,
        "hour": _hours(occurred),
        "source": [e.source for e in found],
        "event_id": [e.event_id for e in found],
        "provider": [e.provider for e in found],
        "model": [e.model for e in found],
        "rental": [e.rental_id or "" for e in found],
        "persona": [e.persona_id or "" for e in found],
        "status": [e.status for e in found],
        "requests": [e.requests for e in found],
        "tokens_in": [e.tokens_in for e in found],
        "tokens_out": [e.tokens_out for e in found],
        "tokens_cached": [e.cached_tokens or 0 for e in found],
        "latency_ms": [e.latency_ms for e in found],
        "cost": decimals(nanos),
        "currency": [e.cost.currency if e.cost else "" for e in found],
    }
    return table(USAGE, columns)


def _hours(occurred: pa.Array) -> pa.Array:
    """Cut moments off at the hour."""
    cut = occurred.cast(pa.timestamp("us")).to_numpy(zero_copy_only=False).astype("datetime64[h]")
    return pa.array(cut.astype("datetime64[s]"), pa.timestamp("s")).cast(pa.timestamp("s", "UTC"))
