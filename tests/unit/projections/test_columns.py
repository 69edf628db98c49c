"""Columns made of records: exact amounts, legs as the book counts them, and records that nobody can read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.reference_clickhouse import views
from domain.book import Book, Entry, Expire, Hold, Open, Post, Posting, Transfer, Void
from domain.errors import DecimalOverflowError, LedgerError
from domain.values import NANO, SUM_NANO_MAX, print_nano
from ops.clickhouse_migrate import clickhouse_migrations, statements
from ops.reads import Stored
from projections import columns, columns_billing, columns_market, columns_usage
from projections.columns import DECIMAL_NANO_MAX, by_month, decimals
from projections.groups import GROUPS

AT = "2026-06-30T23:59:59.999999Z"
NAMES = ("wallet.acme.USD", "wallet.lab.USD", "cash.platform.USD")
SHAPES = [shape for group in GROUPS.values() for shape in group.shapes]


def stored(position: int, **members: Any) -> Stored:
    """Write a record."""
    envelope = {
        "actor": "anna", "at": AT, "causation": None, "correlation": None, "data": {}, "previous": None, "schema": 1,
        "stream": "transfer/1", "tenant": "acme", "type": "transfer.posted", "version": 1,
    }  # fmt: skip
    record = msgspec.json.encode(envelope | members, order="sorted")
    return Stored(position, hashlib.sha3_512(record).digest(), record)


def billed(*groups: Sequence[Entry]) -> tuple[dict[str, pa.Table], list[columns.Unprojected]]:
    """Tell records that move money."""
    rows = columns_billing.BILLING_ROWS.read(
        [stored(n, data={"money": msgspec.to_builtins(list(money))}) for n, money in enumerate(groups)]
    )
    return columns_billing.billing(rows), rows.unread


# --------------------------------------------------------------------------- money


@given(st.lists(st.integers(-DECIMAL_NANO_MAX, DECIMAL_NANO_MAX)))
def test_an_amount_keeps_every_digit(nanos: list[int]) -> None:
    assert decimals(nanos).to_pylist() == [
        Decimal(nano).scaleb(-9) if abs(nano) < 10**28 else Decimal(f"{nano}e-9") for nano in nanos
    ]


@pytest.mark.parametrize("nano", [10**38, -(10**38), 2**127, 10**50])
def test_an_amount_that_does_not_fit_is_refused(nano: int) -> None:
    with pytest.raises(DecimalOverflowError):
        decimals([0, nano])


amounts = st.integers(1, 10**12)


@st.composite
def books(draw: st.DrawFn) -> list[list[Entry]]:
    """Draw groups of entries, of which a book will refuse some."""
    opened: list[Entry] = [Open(name, "USD", "debit" if "cash" in name else "credit", True) for name in NAMES]
    groups: list[list[Entry]] = [opened]
    for number in range(draw(st.integers(0, 12))):
        payer, payee = draw(st.sampled_from(NAMES)), draw(st.sampled_from(NAMES))
        nano = draw(amounts)
        legs = [Posting(payer, print_nano(nano, "USD")), Posting(payee, print_nano(-nano, "USD"))]
        hold = f"h{draw(st.integers(0, number))}"
        groups.append(
            [
                draw(
                    st.sampled_from(
                        [
                            Transfer("USD", legs),
                            Hold(hold, payer, print_nano(nano, "USD"), "USD"),
                            Post(hold, "USD", legs),
                            Void(hold),
                            Expire(hold),
                        ]
                    )
                )
                for _ in range(draw(st.integers(1, 3)))
            ]
        )
    return groups


@given(books())
def test_entries_are_the_moves_of_the_book_under_the_same_legs(groups: list[list[Entry]]) -> None:
    book, kept, moves = Book(), [], []
    for money in groups:
        try:
            done = [move for moved in book.apply(money) for move in moved]
        except LedgerError:
            continue
        moves += [(len(kept), leg, move) for leg, move in enumerate(done)]
        kept.append(money)
    tables, refused = billed(*kept)
    assert not refused
    found = tables["entries"].select(["position", "leg", "account", "amount"]).to_pylist()
    assert [(r["position"], r["leg"], r["account"], int(r["amount"].scaleb(9))) for r in found] == [
        (position, leg, move.account, move.amount_nano) for position, leg, move in moves if move.amount_nano
    ]
    steps = [(r["position"], r["leg"], r["hold"]) for r in tables["holds"].to_pylist()]
    assert steps == [(p, leg, move.hold) for p, leg, move in moves if move.hold and not move.amount_nano]


def test_only_the_placing_of_a_hold_says_whose_and_how_much() -> None:
    legs = [Posting("wallet.acme.USD", "1.5"), Posting("wallet.lab.USD", "-1.5")]
    tables, _ = billed(
        [Hold("c1", "wallet.acme.USD", "2", "USD"), Hold("c2", "wallet.acme.USD", "3", "USD")],
        [Post("c1", "USD", legs), Void("c2"), Expire("c3")],
    )
    found = [
        (r["hold"], r["op"], r["account"], r["tenant"], r["amount"]) for r in tables["holds"].to_pylist()
    ]
    assert found == [
        ("c1", "hold", "wallet.acme.USD", "acme", 2),
        ("c2", "hold", "wallet.acme.USD", "acme", 3),
        ("c1", "post", "", "", Decimal("1.5")),
        ("c2", "void", "", "", 0),
        ("c3", "expire", "", "", 0),
    ]
    assert [r["hold"] for r in tables["entries"].to_pylist()] == ["c1", "c1"]


def test_a_record_with_an_amount_beyond_all_limits_is_left_out_whole_and_named() -> None:
    too_much = str(SUM_NANO_MAX // NANO + 1)
    legs = [Posting("wallet.acme.USD", "1"), Posting("wallet.lab.USD", f"-{too_much}")]
    tables, refused = billed([Void("a"), Transfer("USD", legs)], [Void("b")])
    assert [one.position for one in refused] == [0]
    assert refused[0].code == "invalid_amount"
    assert tables["entries"].num_rows == 0
    assert [r["hold"] for r in tables["holds"].to_pylist()] == ["b"]


@pytest.mark.parametrize("amount", ["1.0000000001", "1e3", "NaN", "0x1", "1_000", " 1"])
def test_an_amount_that_is_no_exact_decimal_is_refused(amount: str) -> None:
    _, refused = billed([Transfer("USD", [Posting("wallet.acme.USD", amount)])])
    assert [one.code for one in refused] == ["invalid_amount"]


# --------------------------------------------------------------------------- records that cannot be told


def test_a_damaged_record_is_mirrored_and_named_and_its_neighbours_are_told() -> None:
    torn = Stored(1, b"\1" * 64, b'{"actor":"anna","at"')
    late = stored(2, at="yesterday")
    batch = [stored(0), torn, late, stored(3)]
    rows = columns.RECORD_ROWS.read(batch)
    assert [one.position for one in rows.unread] == [1, 2]
    mirror = columns.records(rows)
    assert mirror.column("position").to_pylist() == [0, 1, 2, 3]
    assert mirror.column("record").to_pylist() == [one.record for one in batch]
    assert mirror.column("tenant").to_pylist() == ["acme", "", "", "acme"]


def test_a_record_with_money_of_an_unknown_kind_is_named_by_billing_and_kept_by_the_mirror() -> None:
    batch = [stored(0, data={"money": [{"op": "levitate"}]}), stored(1)]
    rows = columns_billing.BILLING_ROWS.read(batch)
    columns_billing.billing(rows)
    assert [(one.position, one.code) for one in rows.unread] == [(0, "log_damaged")]
    assert rows.envelopes[0].tenant == "acme"
    assert not columns.RECORD_ROWS.read(batch).unread


def test_events_of_a_newer_release_are_named_where_they_would_be_told_and_nowhere_else() -> None:
    batch = [
        stored(0, stream="contract/1", type="contract.insured"),
        stored(1, stream="persona/9", type="persona.born"),
    ]
    market = columns_market.MARKET_ROWS.read(batch)
    tables = columns_market.market(market)
    assert [one.position for one in market.unread] == [0]
    assert tables["contract_events"].num_rows == 0
    usage = columns_usage.USAGE_ROWS.read(
        [stored(0, stream="usage/1", type="usage.metered", data={"source": 1})]
    )
    assert columns_usage.usage(usage, {})["usage"].num_rows == 0
    assert len(usage.unread) == 1


def test_bytes_that_only_look_like_records_when_put_together_are_read_apart() -> None:
    whole = stored(0).record
    halves = [Stored(0, b"\0" * 64, whole + b"," + whole), Stored(1, b"\0" * 64, whole)]
    assert [one.position for one in columns.RECORD_ROWS.read(halves).unread] == [0]


# --------------------------------------------------------------------------- timelines


def told(batch: list[Stored], parents: Any = None) -> list[tuple[str, str, int]]:
    """Tell the timelines of a batch."""
    rows = columns.RECORD_ROWS.read(batch)
    found = columns.timelines(rows, (parents or {}) | columns.adopt(rows)).to_pylist()
    return [(r["subject_kind"], r["subject"], r["position"]) for r in found]


def test_a_round_stands_in_the_timeline_of_its_contract_from_its_first_record_on() -> None:
    begun = stored(0, stream="round/r1", type="round.created", data={"contract_id": "c1"})
    after = stored(1, stream="round/r1", type="round.started", version=2, data={"fence": 1})
    both = [("round", "r1", 0), ("contract", "c1", 0), ("round", "r1", 1), ("contract", "c1", 1)]
    assert told([begun, after]) == both
    assert told([after], {"round/r1": [("contract", "c1")]}) == both[2:]
    rows = columns.RECORD_ROWS.read([after])
    assert columns.orphans(rows, {}) == ["round/r1"]
    assert columns.orphans(rows, {"round/r1": []}) == []


def test_a_seller_does_not_inherit_the_contract_its_history_began_with() -> None:
    first = stored(0, stream="seller/s", type="seller.succeeded", data={"contract_id": "c1"})
    second = stored(1, stream="seller/s", type="seller.succeeded", version=2, data={"contract_id": "c2"})
    assert told([first, second]) == [
        ("seller", "s", 0), ("contract", "c1", 0), ("seller", "s", 1), ("contract", "c2", 1),
    ]  # fmt: skip


def test_what_names_a_persona_stands_in_its_timeline_and_plain_transfers_stand_in_none() -> None:
    rental = stored(0, stream="rental/r", type="rental.requested", data={"persona_id": "p"})
    ended = stored(1, stream="rental/r", type="rental.ended", version=2)
    persona = stored(2, stream="persona/p", type="persona.sealed")
    assert told([rental, ended, persona, stored(3)]) == [
        ("rental", "r", 0), ("persona", "p", 0), ("rental", "r", 1), ("persona", "p", 1), ("persona", "p", 2),
    ]  # fmt: skip


# --------------------------------------------------------------------------- shapes


def test_a_batch_over_the_turn_of_a_month_is_split_by_the_months_of_its_records() -> None:
    moments = [AT, "2026-07-01T00:00:00.000000Z", AT, "2026-08-15T12:00:00.000000Z"]
    table = columns.records(columns.RECORD_ROWS.read([stored(n, at=at) for n, at in enumerate(moments)]))
    parts = by_month(columns.RECORDS, table)
    assert [part.column("position").to_pylist() for part in parts] == [[0, 2], [1], [3]]
    assert [part.schema for part in parts] == [columns.RECORDS.schema] * 3


def test_columns_are_named_and_ordered_as_in_the_tables() -> None:
    files = sorted(clickhouse_migrations().glob("[0-9]*.sql"))
    ddl = "\n".join(statement for file in files for statement in statements(file.read_text()))
    for shape in SHAPES:
        body = re.search(rf"soma\.{shape.name} \(\n(.*?)\n\) ENGINE", ddl, re.DOTALL)
        assert body is not None
        found = re.findall(r"^ {4}(?!INDEX)`?(\w+)`? +\S", body[1], re.MULTILINE)
        for added in re.findall(rf"^ALTER TABLE soma\.{shape.name}\n(.*?)\Z", ddl, re.DOTALL | re.MULTILINE):
            found += re.findall(r"ADD COLUMN IF NOT EXISTS (\w+)", added.partition("CREATE ")[0])
        assert found == shape.schema.names, shape.name


def test_nothing_relies_on_what_is_lost_or_counted_about() -> None:
    texts = [path.read_text() for path in Path(clickhouse_migrations()).glob("*.sql")]
    rollups = [group.rollup.statement("a", "b", 0, 1) for group in GROUPS.values() if group.rollup]
    code = "\n".join(
        line for text in [*texts, *rollups] for line in text.splitlines() if not line.startswith("--")
    )
    for word in (
        "SummingMergeTree",
        "AggregatingMergeTree",
        "MATERIALIZED VIEW",
        "uniq(",
        "Float64 ",
        "deduplication_token",
    ):
        assert word not in code, word
    reads = [line for line in code.splitlines() if re.search(r"\bFROM soma\.", line)]
    assert len(reads) > 20
    assert [line[:52] for line in reads if "FINAL" not in line and "soma.watermarks" not in line] == [
        "CROSS JOIN (SELECT DISTINCT toString(tenant) AS tena"
    ]


def test_every_view_and_every_column_says_what_it_means() -> None:
    for view in views():
        assert view.meaning.endswith(".")
        assert all(column.meaning.endswith(".") for column in view.columns), view.name
