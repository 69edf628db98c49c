"""Three implementations of one fingerprint - Python, PostgreSQL, ClickHouse - on whatever records can be written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain.billing.fingerprints import DIGESTED, ENTRIES, RECORDS, Totals, eight, row_digest, totals_of
from domain.log.records import Record, digest, encode
from domain.values import SUM_NANO_MAX, parse_nano, print_nano
from ops.clickhouse import ClickHouse, as_service
from ops.engine.process import EmbeddedClickHouse, Target
from ops.reconcile_log import LogSide
from ops.reconcile_warehouse import WarehouseSide
from projections import columns, columns_billing

TRAPS = [
    '"at":"2001-01-01',
    '"money":[',
    "\\",
    "\x1f",
    "a\x1fb",
    "größe ✓",
    "it's",
    '{"op":"post"}',
    "\u2028",
    "'\t'",
]
texts = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20
) | st.sampled_from(TRAPS)
accounts = st.sampled_from(
    ["wallet.acme.USD", "cash.platform.EUR", "fees", "a.b", "x.y.z.w", "..", "wallet.é.USD"]
)
nanos = st.integers(-SUM_NANO_MAX, SUM_NANO_MAX) | st.integers(-3, 3)
currencies = st.sampled_from(["USD", "EUR", "JPY"])
moments = st.datetimes().filter(lambda at: 1971 <= at.year <= 2105)


@st.composite
def postings(draw: st.DrawFn) -> list[dict[str, str]]:
    currency = draw(currencies)
    return [
        {"account": draw(accounts), "amount": print_nano(draw(nanos), currency)}
        for _ in range(draw(st.integers(1, 3)))
    ]


entries = st.one_of(
    st.builds(lambda p, c: {"op": "transfer", "currency": c, "postings": p}, postings(), currencies),
    st.builds(
        lambda p, c, h: {"op": "post", "currency": c, "postings": p, "hold": h}, postings(), currencies, texts
    ),
    st.builds(lambda h: {"op": "void", "hold": h}, texts),
    st.builds(
        lambda a: {"op": "open", "account": a, "currency": "USD", "side": "credit", "overdraft": False},
        accounts,
    ),
    st.builds(
        lambda a: {"op": "hold", "hold": "h", "account": a, "amount": "1.00", "currency": "USD"}, accounts
    ),
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    data: dict[str, Any] = {"memo": draw(texts), "at": draw(texts)}
    if draw(st.booleans()):
        data["money"] = draw(st.lists(entries, max_size=4))
    stream = draw(st.sampled_from(["transfer/1", "contract/a.b", "größe/1/2"]))
    at = draw(moments).isoformat(timespec="microseconds") + "Z"
    named = draw(st.none() | texts)
    return Record(
        draw(texts), at, named, draw(st.none() | texts), data, None, draw(st.integers(0, 65_535)), stream,
        draw(texts), draw(st.sampled_from(["transfer.posted", "a.b"])), draw(st.integers(1, 10**9)),
    )  # fmt: skip


def rows_of(position: int, record: Record, address: bytes) -> Iterator[dict[str, Any]]:
    """Tell the legs of a record in the plainest way: one after another, as the book counts its moves."""
    leg = 0
    for entry in record.data.get("money", []):
        leg += entry["op"] not in ("transfer",)
        for posting in entry.get("postings", []):
            parts = posting["account"].split(".")
            purpose, tenant = (parts[0], parts[1]) if len(parts) == 3 else ("", "")
            yield {
                "position": position, "leg": leg, "address": address, "at": record.at, "day": record.at[:10],
                "tenant": tenant, "account": posting["account"], "purpose": purpose, "currency": entry["currency"],
                "amount": parse_nano(posting["amount"]), "op": entry["op"], "hold": entry.get("hold", ""),
                "type": record.type, "stream": record.stream, "record_tenant": record.tenant, "actor": record.actor,
            }  # fmt: skip
            leg += 1


def plain(rows: list[dict[str, Any]]) -> Totals:
    """Fold legs in Python."""
    found = totals_of(
        (row["position"], row["amount"], row["address"], row_digest([row[c] for c in DIGESTED["entries"]]))
        for row in rows
    )
    debits = sum(row["amount"] for row in rows if row["amount"] > 0)
    return found._replace(more=(debits, debits - found.amount))


@pytest.fixture
def sides(
    engine: EmbeddedClickHouse, migrated: Target, database_url: str
) -> Iterator[Callable[[int, list[Record]], None]]:
    """Put records into both stores, and compare what each of the three says of them."""
    loop = asyncio.new_event_loop()
    clickhouse = loop.run_until_complete(ClickHouse.open(*as_service(engine.target)))

    def compare(start: int, made: list[Record]) -> None:
        loop.run_until_complete(_compared(database_url, clickhouse, start, made))

    yield compare
    loop.run_until_complete(clickhouse.close())
    loop.close()


async def _compared(url: str, clickhouse: ClickHouse, start: int, made: list[Record]) -> None:
    stored = [(start + n, encode(record), record) for n, record in enumerate(made)]
    legs = [row for position, data, record in stored for row in rows_of(position, record, digest(data))]
    with psycopg.connect(url) as connection:
        connection.cursor().executemany(
            "INSERT INTO events (position, version, stream, type, tenant, address, record)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            [(p, p + 1, r.stream, r.type, r.tenant, digest(d), d) for p, d, r in stored],
        )
    if legs:
        await clickhouse.insert("soma.entries", _entries(legs))
    await clickhouse.insert("soma.records", _records(stored))
    warehouse, end = WarehouseSide(clickhouse), start + len(made)

    def look() -> tuple[Any, ...]:
        with LogSide.opened(url) as log:
            pairs = [(side.totals(t, start, end), side.rows(t, start, end)) for t in (ENTRIES, RECORDS)
                     for side in (log, warehouse)]  # fmt: skip
        return tuple(pairs)

    (log, log_rows), (there, rows), (log_mirror, log_records), (mirror, mirrored) = await asyncio.to_thread(
        look
    )
    assert log == there == plain(legs)
    assert log_rows == sorted(rows, key=lambda row: (row["position"], row["leg"]))
    assert [row["amount"] for row in rows] == [str(leg["amount"]) for leg in legs]
    assert (
        log_mirror
        == mirror
        == totals_of(
            (position, len(data), digest(data), eight(_sha256(data))) for position, data, _ in stored
        )
    )
    assert log_records == mirrored


def _sha256(data: bytes) -> bytes:
    from hashlib import sha256

    return sha256(data).digest()


def _entries(legs: list[dict[str, Any]]) -> pa.Table:
    named: dict[str, Any] = {name: [leg[name] for leg in legs] for name in ENTRIES.columns}
    named["amount"] = columns.decimals(named["amount"])
    named["at"] = columns.moments(named["at"])
    named["day"] = named["at"].cast(pa.timestamp("us")).cast(pa.date32(), safe=False)
    return columns.table(columns_billing.ENTRIES, named)


def _records(stored: list[tuple[int, bytes, Record]]) -> pa.Table:
    told = [msgspec.structs.asdict(record) for _, _, record in stored]
    named: dict[str, Any] = {
        name: [one[name] or "" for one in told]
        for name in ("tenant", "stream", "type", "actor", "correlation", "causation")
    }
    named |= {name: [one[name] for one in told] for name in ("version", "schema")}
    named |= {
        "position": [position for position, _, _ in stored],
        "address": [digest(data) for _, data, _ in stored],
        "kind": [one["stream"].partition("/")[0] for one in told],
        "at": columns.moments([one["at"] for one in told]),
        "record": [data for _, data, _ in stored],
    }
    return columns.table(columns.RECORDS, named)


def test_python_postgresql_and_clickhouse_fold_any_records_to_the_same_numbers(
    sides: Callable[[int, list[Record]], None],
) -> None:
    places = iter(range(7, 10**12, 10**9 + 17))

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(records(), min_size=1, max_size=12))
    def hold(made: list[Record]) -> None:
        sides(next(places), made)

    hold()
