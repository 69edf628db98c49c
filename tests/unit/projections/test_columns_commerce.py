"""Commerce and corrected usage in columns, over the golden records of every event there is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from domain.log.records import EVENTS
from ops.reads import Stored
from projections.columns import Earlier, Unprojected, Version
from projections.columns_commerce import COMMERCE_ROWS, KINDS, SHAPES, commerce, earlier_versions
from projections.columns_usage import USAGE_ROWS, corrected_versions, usage

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
FIRST = {"rental": "rental.requested", "subscription": "subscription.started", "purchase": "purchase.made"}
TOLD = sorted(wire for wire in EVENTS if wire.partition(".")[0] in KINDS)

MOMENTS = {
    "activate_by",
    "billed_to",
    "expires_at",
    "period_end",
    "period_start",
    "refundable_until",
    "until",
}

Row = dict[str, Any]


def golden(wire: str, **more: Any) -> dict[str, Any]:
    """Read the newest golden record of a type, with some members of its envelope replaced."""
    newest = max(GOLDEN.glob(f"{wire}.v*.json"), key=lambda path: int(path.stem.rpartition(".v")[2]))
    record: dict[str, Any] = json.loads(newest.read_bytes())
    # Golden records fill texts in by their names; where a moment is meant, any will do.
    record["data"] |= dict.fromkeys(MOMENTS & record["data"].keys(), record["at"])
    return record | more


def stored(position: int, record: Row) -> Stored:
    data = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    return Stored(position, hashlib.sha3_512(data).digest(), data)


def log_of(*records: Row) -> list[Stored]:
    return [stored(position, record) for position, record in enumerate(records)]


def told(
    batch: list[Stored], earlier: list[Stored] | None = None
) -> tuple[dict[str, list[Row]], list[Unprojected]]:
    """Tell the commerce of a batch, with what came before it."""
    rows = COMMERCE_ROWS.read(batch)
    tables = commerce(rows, versions_of([*(earlier or ()), *batch]))
    return {name: table.to_pylist() for name, table in tables.items()}, rows.unread


def versions_of(log: list[Stored]) -> dict[Version, Earlier]:
    """Find records by stream and version."""
    read = [(json.loads(one.record), one) for one in log]
    return {(r["stream"], r["version"]): Earlier(one.position, one.record) for r, one in read}


@pytest.mark.parametrize("wire", TOLD)
def test_every_event_of_commerce_is_told_and_stands_for_itself(wire: str) -> None:
    kind = wire.partition(".")[0]
    record = golden(wire, stream=f"{kind}/x")
    first = (
        golden(FIRST[kind], stream=f"{kind}/x", version=1) if kind in FIRST and wire != FIRST[kind] else None
    )
    begun = [stored(90, first)] if first else []
    record |= {"version": 2 if first else 1}
    if wire == "invoice.issued":
        record["data"]["corrects"] = None
    if wire == "rental.requested":
        record["data"]["terms"]["price"]["price"] = "0.10"
    batch = [stored(100, record)]
    if begun:
        assert earlier_versions(COMMERCE_ROWS.read(batch)) == [(f"{kind}/x", 1)]
    found, unread = told(batch, begun)
    assert not unread
    rows = [row for shape in SHAPES for row in found[shape.name]]
    assert rows
    assert {(row["position"], row["tenant"]) for row in rows} == {(100, record["tenant"])}
    for row in found["sale_events"]:
        assert row["seller"]
        assert row["persona_id"]
        assert row["currency"]


def test_a_sale_whose_beginning_is_not_known_is_named_and_left_out() -> None:
    found, unread = told(log_of(golden("rental.ended", stream="rental/x", version=2)))
    assert not any(found.values())
    assert [(one.position, one.code) for one in unread] == [(0, "log_damaged")]


def test_an_event_of_a_newer_release_is_named_and_its_neighbours_are_told() -> None:
    strange = golden("grant.granted", stream="grant/y", type="grant.moved", version=1)
    found, unread = told(log_of(strange, golden("grant.granted", stream="grant/x", version=1)))
    assert [row["grant_id"] for row in found["grant_events"]] == ["x"]
    assert [one.position for one in unread] == [0]


def invoice(name: str, corrects: str | None, quantity: str, amount: str) -> Row:
    """Make an invoice of one line."""
    record = golden("invoice.issued", stream=f"invoice/{name}", version=1)
    line = {
        "charge": "in", "meter": "tokens_in", "description": "", "quantity": quantity, "steps": [], "exact": amount,
        "amount": {"amount": amount, "currency": "USD"}, "rounding": "0",
    }  # fmt: skip
    record["data"] |= {"corrects": corrects, "kind": "correction" if corrects else "invoice"}
    record["data"]["bill"] |= {"currency": "USD", "lines": [line]}
    record["data"]["evidence"] = [{"events": 2, "first": 3, "last": 9, "fingerprint": "00000000000000ff"}]
    return record


def test_a_correction_takes_back_the_lines_of_the_document_it_corrects() -> None:
    log = log_of(invoice("a", None, "1000", "10.00"), invoice("b", "a", "3500/3", "11.67"))
    assert earlier_versions(COMMERCE_ROWS.read(log[1:])) == [("invoice/a", 1)]
    found, unread = told(log[1:], log[:1])
    assert not unread
    lines = found["invoice_lines"]
    assert [(r["leg"], r["entry"], r["line_of"], str(r["quantity"]), str(r["amount"])) for r in lines] == [
        (0, "reversed", "a", "-1000.000000000", "-10.000000000"),
        (1, "billed", "b", "1166.666666667", "11.670000000"),
    ]
    assert [(r["events"], r["first"], r["last"]) for r in lines] == [(0, None, None), (2, 3, 9)]
    assert lines[1]["quantity_exact"] == "3500/3"
    _, unread = told(log[1:])
    assert [one.position for one in unread] == [1]


def test_a_document_with_an_amount_that_cannot_be_kept_is_left_out_whole() -> None:
    # More than 38 digits with the nine after the point: no document of this ledger comes near.
    found, unread = told(log_of(invoice("a", None, "9" * 30, "1.00"), invoice("b", None, "1", "1.00")))
    assert [(one.position, one.code) for one in unread] == [(0, "decimal_overflow")]
    for name in ("invoices", "invoice_lines", "invoice_events"):
        assert [row["invoice_id"] for row in found[name]] == ["b"], name


# --------------------------------------------------------------------------- corrected usage


def reading(**said: Any) -> Row:
    record = golden("usage.metered", stream="usage/u", version=1, tenant="acme")
    record["data"] |= {"event_id": "e", "occurred_at": "2026-06-30T23:59:59.999999Z", "tokens_in": 7} | said
    return record


def correction(version: int, **said: Any) -> Row:
    record = golden("usage.corrected", stream="usage/u", version=version, tenant="acme")
    record["data"] |= {"replaces": version - 1, "reason": "wrong", "tokens_in": 9} | said
    return record


def used(batch: list[Stored], log: list[Stored]) -> tuple[list[Row], list[Unprojected]]:
    rows = USAGE_ROWS.read(batch)
    found: list[Row] = usage(rows, versions_of(log))["usage"].to_pylist()
    return found, rows.unread


def test_a_correction_takes_back_what_it_replaces_where_that_stood() -> None:
    moved = correction(3, occurred_at="2026-07-01T00:00:00.000000Z", tokens_in=11)
    log = log_of(reading(), correction(2, occurred_at="2026-06-30T01:00:00.000000Z"), moved)
    assert set(corrected_versions(USAGE_ROWS.read(log[2:]))) == {("usage/u", 1), ("usage/u", 2)}
    found, unread = used(log[1:], log)
    assert not unread
    assert [
        (r["position"], r["leg"], r["sign"], str(r["hour"])[:13], r["tokens_in"], r["reverses"])
        for r in found
    ] == [
        (1, 0, -1, "2026-06-30 23", 7, 0),
        (1, 1, 1, "2026-06-30 01", 9, 0),
        (2, 0, -1, "2026-06-30 01", 9, 1),
        (2, 1, 1, "2026-07-01 00", 11, 0),
    ]
    # Which reading it is, only its first record says.
    assert {(r["event_id"], r["tenant"], r["reason"]) for r in found} == {("e", "acme", "wrong")}


def test_rows_of_a_correction_do_not_depend_on_how_the_log_is_cut() -> None:
    log = log_of(reading(), correction(2), correction(3, model="m9"))
    whole, _ = used(log, log)
    assert [row for one in log for row in used([one], log)[0]] == whole


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_correction_without_what_it_replaces_is_named_and_left_out(lacking: int) -> None:
    log = log_of(reading(), correction(2), correction(3))
    found, unread = used(log[2:], [one for one in log if one.position != lacking])
    assert not found
    assert [(one.position, one.code) for one in unread] == [(2, "log_damaged")]


def test_a_correction_of_another_version_than_the_one_before_it_is_named() -> None:
    log = log_of(reading(), correction(2), correction(3, replaces=1))
    found, unread = used(log[2:], log)
    assert not found
    assert [one.position for one in unread] == [2]
