"""Fingerprints of rows: what two stores are compared by, when neither can be read beside the other row by row.

A fingerprint is a count, a sum, and folds that do not depend on the order of rows. The address of a record is a
uniform hash already, so its bytes are folded as they are; a digest over the text of all columns covers what no address
does. PostgreSQL and ClickHouse compute the same numbers in their own words (`ops/reconcile_log.py`,
`ops/reconcile_warehouse.py`); the functions here are the plain form both are held against.

It finds faults. Against somebody who chooses bytes on purpose there are the proofs of the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

SEPARATOR = "\x1f"


class Totals(NamedTuple):
    """The fingerprint of a set of rows.

    Units: rows is how many; `amount` sums amounts up (nano-units of money, bytes of records); `weighted` sums
           amount x (position + 1), so that two alterations which cancel in the sum do not cancel here. x0 and x1 are
           the exclusive or of the first and second eight bytes of addresses, s2 the sum of the third; `digest` the
           exclusive or over the digests of whole rows. Eight bytes are read as a signed big-endian number. `more`
           holds further sums, by table.
    """

    rows: int = 0
    amount: int = 0
    weighted: int = 0
    x0: int = 0
    x1: int = 0
    s2: int = 0
    digest: int = 0
    more: tuple[int, ...] = ()


EMPTY = Totals()


class Table(NamedTuple):
    """A table that is compared: its columns, what its rows are grouped by, and what names one row."""

    name: str
    follower: str
    columns: tuple[str, ...]
    group: tuple[str, ...]
    more: tuple[str, ...] = ()
    rollup: str | None = None


ENTRIES = Table(
    "entries",
    "clickhouse.billing",
    (
        "position", "leg", "address", "at", "day", "tenant", "account", "purpose", "currency", "amount", "op", "hold",
        "type", "stream", "record_tenant", "actor",
    ),
    ("account", "currency", "day"),
    ("debits", "credits"),
    "entries_daily",
)  # fmt: skip
RECORDS = Table(
    "records",
    "clickhouse.records",
    (
        "position", "leg", "address", "tenant", "kind", "stream", "version", "type", "schema", "at", "actor",
        "correlation", "causation", "record",
    ),
    ("tenant", "day"),
)  # fmt: skip
USAGE = Table(
    "usage",
    "clickhouse.usage",
    (
        "position", "leg", "address", "at", "occurred_at", "hour", "tenant", "source", "event_id", "version", "sign",
        "reverses", "reason", "provider", "model", "rental", "persona", "status", "requests", "tokens_in", "tokens_out",
        "tokens_cached", "latency_ms", "cost", "currency",
    ),
    ("tenant", "provider", "model", "currency", "hour"),
    (
        "readings", "requests", "errors", "tokens_in", "tokens_out", "tokens_cached", "timed", "latency_ms",
        "latency_max",
    ),
    "usage_hourly",
)  # fmt: skip
LINES = Table(
    "invoice_lines",
    "clickhouse.commerce",
    (
        "position", "leg", "address", "at", "tenant", "invoice_id", "entry", "line", "line_of", "period_start",
        "period_end", "charge", "meter", "description", "quantity", "quantity_exact", "amount", "exact", "rounding",
        "currency", "events", "first", "last", "fingerprint",
    ),
    ("tenant", "invoice_id"),
)  # fmt: skip
SALES = Table(
    "sale_events",
    "clickhouse.commerce",
    (
        "position", "leg", "address", "at", "tenant", "kind", "sale_id", "event", "version", "seller", "persona_id",
        "capsule", "currency", "fee_share", "price", "every", "minutes", "reserved", "charged", "fee", "released",
        "used_s", "period_start", "period_end", "expires_at", "reason",
    ),
    ("tenant", "kind", "persona_id"),
)  # fmt: skip
TABLES = (ENTRIES, RECORDS, USAGE, LINES, SALES)

# What the digest of a row is taken over, besides records, where it is their bytes.
DIGESTED: dict[str, tuple[str, ...]] = {
    "entries": (
        "position", "leg", "at", "day", "tenant", "account", "purpose", "currency", "amount", "op", "hold", "type",
        "stream", "record_tenant", "actor",
    ),
    "usage": (
        "position", "leg", "at", "occurred_at", "hour", "tenant", "source", "event_id", "version", "sign", "reverses",
        "reason", "provider", "model", "rental", "persona", "status", "requests", "tokens_in", "tokens_out",
        "tokens_cached", "latency_ms", "cost", "currency",
    ),
    **{table.name: tuple(c for c in table.columns if c != "address") for table in (LINES, SALES)},
}  # fmt: skip


def eight(data: bytes, start: int = 0) -> int:
    """Read eight bytes as a signed number, the most significant first."""
    return int.from_bytes(data[start : start + 8], "big", signed=True)


def row_digest(values: Sequence[Any]) -> int:
    """Digest one row from the text of its columns."""
    return eight(sha256(SEPARATOR.join(map(str, values)).encode()).digest())


def totals_of(rows: Iterable[tuple[int, int, bytes, int]]) -> Totals:
    """Fold rows of (position, amount, address, digest), in any order.

    Source: the plain form of what both databases compute.
    """
    count = total = weighted = x0 = x1 = s2 = digest = 0
    for position, amount, address, row in rows:
        count += 1
        total += amount
        weighted += amount * (position + 1)
        x0 ^= eight(address)
        x1 ^= eight(address, 8)
        s2 += eight(address, 16)
        digest ^= row
    return Totals(count, total, weighted, x0, x1, s2, digest)
