"""Commerce in ClickHouse: the views held against the log read plainly, and against what the ledger itself keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from api.reference_clickhouse import EXAMPLES
from api.routes.sql import SqlEndpoint
from ops.clickhouse import as_reader, as_service
from ops.engine.process import EmbeddedClickHouse, Target
from ops.settings import Settings
from ops.tokens import LocalIssuer, TokenGate
from projections.groups import group_of
from projections.rebuild import rebuild
from tests.real.clickhouse.commerce_world import SELLER, Books, Shop, Time, amount_of, days_of_commerce
from tests.real.clickhouse.conftest import client_of, migrate_afresh
from tests.real.clickhouse.reconciled import TENANTS, world
from tests.real.clickhouse.warehouse_world import connected, follow, prints, summed
from tests.real.conftest import lend

Ask = Callable[..., list[Any]]
OURS = ("clickhouse.usage", "clickhouse.commerce")
SPAN = {"start": "2020-01-01", "end": "2040-01-01"}
VIEWS = (
    "usage", "usage_entries", "usage_hourly", "costs", "costs_daily", "customers", "invoices", "invoice_lines",
    "credit_notes", "grants", "payout_requests", "rentals", "subscriptions", "purchases", "rental_revenue",
    "renewal_rate", "recurring_revenue",
)  # fmt: skip


@pytest.fixture(scope="module")
def url(
    server_url: str,
    template_database: str,
    tmp_path_factory: pytest.TempPathFactory,
    engine: EmbeddedClickHouse,
) -> Iterator[str]:
    """Lend a database whose log holds days of commerce; nobody writes to it any more."""
    with contextmanager(lend)(server_url, template_database) as lent:

        async def play() -> None:
            time = Time()
            place = tmp_path_factory.mktemp("commerce")
            async with world(lent, place, engine.target, payments=0, clock=time.clock) as told:
                await days_of_commerce(Shop(told, time))

        asyncio.run(play())
        yield lent


@pytest.fixture(scope="module")
def shown(engine: EmbeddedClickHouse, url: str) -> Target:
    """Lend a ClickHouse into which that log was followed."""
    asyncio.run(migrate_afresh(engine.target))
    asyncio.run(follow(engine.target, url))
    return engine.target


@pytest.fixture(scope="module")
def books(url: str) -> Books:
    """Read that log plainly."""
    return Books(url)


@pytest.fixture(scope="module")
def ask(shown: Target) -> Iterator[Ask]:
    """Ask as those who read."""
    with client_of(shown, reader=True) as client:
        yield lambda query, **given: [tuple(row) for row in client.query(query, given).result_rows]


def example(ask: Ask, title: str, **given: Any) -> list[Any]:
    """Ask an example of the reference."""
    query = next(one.query for one in EXAMPLES if one.title == title)
    return ask(query, **{name: value for name, value in (SPAN | given).items() if f"{{{name}:" in query})


def states(url: str, kind: str) -> dict[str, dict[str, Any]]:
    """Read what the ledger keeps of the things of a kind."""
    with psycopg.connect(url) as connection:
        return dict(connection.execute("SELECT id, state FROM records WHERE kind = %s", [kind]).fetchall())


def moment(text: str | None) -> datetime | None:
    """Read a moment as ClickHouse's client gives it."""
    return None if text is None else datetime.fromisoformat(text).replace(tzinfo=None)


# --------------------------------------------------------------------------- usage, and what was put right


def told(reading: dict[str, Any]) -> tuple[Any, ...]:
    """Give the columns of a reading."""
    cost = reading["cost"] or {"amount": "0", "currency": ""}
    return (
        reading["tenant"], reading["source"], reading["event_id"], reading["version"], reading["provider"],
        reading["model"], moment(reading["occurred_at"]), reading["persona_id"] or "", reading["status"],
        reading["requests"], reading["tokens_in"], reading["tokens_out"], reading["latency_ms"],
        Decimal(cost["amount"]), cost["currency"], reading.get("reason", ""), reading["position"],
    )  # fmt: skip


def test_a_reading_stands_as_it_was_last_put_right(ask: Ask, books: Books) -> None:
    found = ask(
        "SELECT tenant, source, event_id, version, provider, model, occurred_at, persona, status, requests, tokens_in,"
        " tokens_out, latency_ms, cost, currency, reason, position FROM bi.usage ORDER BY position"
    )
    held = books.readings()
    assert found == sorted((told(reading) for reading in held.values()), key=lambda row: row[-1])
    assert sorted(row[3] for row in found if row[3] > 1) == [2, 2, 2, 2, 3]


def by_model(readings: Any) -> list[Any]:
    """Sum readings up as the example does."""
    names = ("requests", "tokens_in", "tokens_out")
    keys = sorted({(r["provider"], r["model"]) for r in readings})
    mine = {key: [r for r in readings if (r["provider"], r["model"]) == key] for key in keys}
    return [(*key, len(mine[key]), *(sum(r[name] for r in mine[key]) for name in names)) for key in keys]


def test_usage_is_what_was_known_at_every_position(ask: Ask, books: Books) -> None:
    changes = [at for at, _ in books.of("usage.corrected")]
    assert len(changes) == 6
    for position in (changes[0] - 1, *changes, *(at + 1 for at in changes), len(books.records)):
        found = example(ask, "Usage as it was known", position=position)
        assert found == by_model(books.readings(position).values()), position
    assert {entry for (entry,) in ask("SELECT DISTINCT entry FROM bi.usage_entries")} == {
        "taken", "reversed", "corrected",
    }  # fmt: skip


def test_every_hour_counts_what_holds_now(ask: Ask, books: Books) -> None:
    hours: dict[Any, list[dict[str, Any]]] = {}
    for r in books.readings().values():
        currency = r["cost"]["currency"] if r["cost"] else ""
        hours.setdefault(
            (r["tenant"], r["provider"], r["model"], currency, r["occurred_at"][:13]), []
        ).append(r)
    found = ask(
        "SELECT tenant, provider, model, currency, formatDateTime(hour, '%Y-%m-%dT%H'), readings, requests, errors,"
        " tokens_in, tokens_out, timed, latency_ms, latency_max, cost FROM bi.usage_hourly"
    )
    assert {row[:5]: row[5:] for row in found} == {
        key: (
            len(mine),
            sum(r["requests"] for r in mine),
            sum(r["requests"] for r in mine if r["status"] == "error"),
            sum(r["tokens_in"] for r in mine),
            sum(r["tokens_out"] for r in mine),
            sum(r["requests"] for r in mine if r["latency_ms"] is not None),
            sum(r["latency_ms"] or 0 for r in mine),
            max((r["latency_ms"] or 0) // max(1, r["requests"]) for r in mine),
            sum((amount_of(r["cost"]) for r in mine), Decimal(0)),
        )
        for key, mine in hours.items()
    }
    # A reading went to another month, and the only one of its model with such a latency to another model.
    assert len({row[4][:7] for row in found}) >= 2
    assert [row[2] for row in found if row[12] == 10_000_000] == ["m9"]
    assert ask("SELECT sum(readings), sum(tokens) FROM bi.forecast_inputs") == [
        (len(books.readings()), sum(r["tokens_in"] + r["tokens_out"] for r in books.readings().values()))
    ]


@pytest.mark.parametrize("shortcut", [0, 1])
def test_a_reading_that_changed_its_month_counts_once_however_parts_are_merged(
    shown: Target, books: Books, shortcut: int
) -> None:
    chosen = f"SETTINGS do_not_merge_across_partitions_select_final = {shortcut}"
    query = "SELECT sum(sign), sum(sign * toInt64(tokens_in)) FROM soma.usage FINAL"
    with client_of(shown) as service:
        for _ in range(2):
            ((readings, tokens),) = service.query(f"{query} {chosen}").result_rows
            assert readings == len(books.readings())
            assert tokens == sum(r["tokens_in"] for r in books.readings().values())
            service.command("OPTIMIZE TABLE soma.usage FINAL")


# --------------------------------------------------------------------------- documents


def test_documents_stand_as_the_ledger_keeps_them(ask: Ask, url: str) -> None:
    found = ask(
        "SELECT invoice_id, tenant, number, kind, corrects, corrected_by, status, period_start, period_end, known_at,"
        " total, owed, tax_owed, open, credited, attempts, lines, net, currency FROM bi.invoices"
    )
    kept = states(url, "invoice")
    with psycopg.connect(url) as connection:
        tenants: dict[str, str] = dict(
            connection.execute("SELECT id, tenant FROM records WHERE kind = 'invoice'").fetchall()
        )
    assert {row[0]: row[1:] for row in found} == {
        name: (
            tenants[name], s["number"], s["kind"], s["corrects"] or "", s["corrected_by"] or "", s["status"],
            moment(s["period_start"]), moment(s["period_end"]), s["known_at"], amount_of(s["bill"]["total"]),
            amount_of(s["owed"]), amount_of(s["tax"]), amount_of(s["due"]), amount_of(s["credited"]), s["attempts"],
            len(s["bill"]["lines"]), amount_of(s["bill"]["net"]), s["bill"]["currency"],
        )
        for name, s in kept.items()
    }  # fmt: skip
    assert {s["kind"] for s in kept.values()} == {"invoice", "correction"}


def test_what_was_billed_is_what_the_books_say_was_owed(ask: Ask) -> None:
    owed = ask("SELECT sum(owed) - (SELECT sum(amount) FROM bi.credit_notes) FROM bi.invoices")
    revenue = ask(
        "SELECT -sum(amount) FROM bi.ledger_entries WHERE tenant = 'platform' AND purpose IN"
        " ('revenue', 'tax', 'rounding') AND type IN ('invoice.issued', 'credit_note.issued')"
    )
    assert owed == revenue


def test_lines_over_all_documents_of_a_period_are_those_of_its_last_one(ask: Ask, url: str) -> None:
    last = [s for s in states(url, "invoice").values() if s["corrected_by"] is None]
    lines = [
        ((s["number"].split("-")[1], moment(s["period_start"]), line["charge"]), line)
        for s in last
        for line in s["bill"]["lines"]
    ]
    found = ask(
        "SELECT tenant, period_start, charge, sum(amount), sum(quantity) FROM bi.invoice_lines"
        " GROUP BY tenant, period_start, charge"
    )
    amounts = summed((key, amount_of(line["amount"])) for key, line in lines)
    quantities = summed((key, Decimal(line["quantity"])) for key, line in lines)
    assert {row[:3]: row[3:] for row in found} == {key: (amounts[key], quantities[key]) for key in amounts}
    by_charge = summed(
        ((line["charge"], line["meter"], "USD"), amount_of(line["amount"])) for _, line in lines
    )
    billed = example(ask, "What was billed for a period")
    assert {row[:3]: row[4] for row in billed} == by_charge


def test_a_line_names_the_records_it_comes_from(ask: Ask, url: str) -> None:
    found = ask(
        "SELECT invoice_id, line, events, first_position, last_position, fingerprint FROM bi.invoice_lines"
        " WHERE entry = 'billed'"
    )
    wanted = {
        (name, n): (e["events"], e["first"], e["last"], e["fingerprint"]) if e else (0, None, None, "")
        for name, s in states(url, "invoice").items()
        for n, e in enumerate(s["evidence"])
    }
    assert {row[:2]: row[2:] for row in found} == wanted
    assert any(events for events, *_ in wanted.values())


def test_usage_that_was_billed_is_the_usage_there_is(ask: Ask) -> None:
    billed = ask(
        "SELECT tenant, toInt64(sum(quantity)) FROM bi.invoice_lines WHERE charge = 'out' GROUP BY tenant"
        " ORDER BY tenant"
    )
    # What was used in a period that nobody was billed for is not on any line.
    used = ask(
        "SELECT u.tenant, sum(u.tokens_out) FROM bi.usage AS u JOIN (SELECT tenant, enrolled_at FROM bi.customers) AS c"
        " ON c.tenant = u.tenant WHERE u.occurred_at >= c.enrolled_at - INTERVAL 1 DAY GROUP BY u.tenant"
        " ORDER BY u.tenant"
    )
    assert billed == used
    assert len(billed) == 3


def test_customers_grants_credit_notes_and_payouts_stand_as_the_ledger_keeps_them(ask: Ask, url: str) -> None:
    found = ask(
        "SELECT tenant, book, currency, zone, every, billed_to, invoices, credit_notes FROM bi.customers"
    )
    assert {row[0]: row[1:] for row in found} == {
        name: (
            s["plan"]["book"], s["plan"]["currency"], s["plan"]["zone"], s["plan"]["every"], moment(s["billed_to"]),
            s["invoice_count"], s["credit_note_count"],
        )
        for name, s in states(url, "customer").items()
    }  # fmt: skip
    grants = ask("SELECT grant_id, source, status, amount, left, currency, expires_at FROM bi.grants")
    assert {row[0]: row[1:] for row in grants} == {
        name: (
            s["source"], s["status"], amount_of(s["amount"]), amount_of(s["left"]), s["amount"]["currency"],
            moment(s["expires_at"]),
        )
        for name, s in states(url, "grant").items()
    }  # fmt: skip
    assert {row[2] for row in grants} == {"active", "burned", "expired"}
    notes = ask(
        "SELECT credit_note_id, invoice_id, amount, tax, off_due, returned, target FROM bi.credit_notes"
    )
    assert {row[0]: row[1:] for row in notes} == {
        name: (
            s["invoice"],
            *(amount_of(s[k]) for k in ("amount", "tax", "off_due", "returned")),
            s["target"],
        )
        for name, s in states(url, "credit_note").items()
    }
    payouts = ask("SELECT payout_id, status, amount, reference FROM bi.payout_requests")
    assert {row[0]: row[1:] for row in payouts} == {
        name: (s["status"], amount_of(s["amount"]), s["reference"] or s["reason"] or "")
        for name, s in states(url, "payout").items()
    }
    assert {row[1] for row in payouts} == {"requested", "paid", "failed"}


# --------------------------------------------------------------------------- sales


def test_rentals_stand_as_the_ledger_keeps_them(ask: Ask, url: str) -> None:
    found = ask(
        "SELECT rental_id, tenant, seller, persona_id, status, minutes, reserved, charged, used_s, activated_at,"
        " expires_at, ended_at, version FROM bi.rentals"
    )
    assert {row[0]: row[1:] for row in found} == {
        name: (
            s["renter"], s["terms"]["sale"]["seller"], s["terms"]["sale"]["persona_id"], s["status"], s["minutes"],
            amount_of(s["reserved"]), amount_of(s["charged"]), s["used_s"], moment(s["activated_at"]),
            moment(s["expires_at"]), moment(s["ended_at"]), s["version"],
        )
        for name, s in states(url, "rental").items()
    }  # fmt: skip
    assert {row[4] for row in found} == {"ended", "cancelled", "expired"}
    assert ask("SELECT count() FROM bi.rentals WHERE charged + released != reserved") == [(0,)]


def test_subscriptions_and_purchases_stand_as_the_ledger_keeps_them(ask: Ask, url: str) -> None:
    found = ask(
        "SELECT subscription_id, tenant, status, price, every, period_start, period_end, cancel_at_end, renewals,"
        " charged, ended_at, version FROM bi.subscriptions"
    )
    assert {row[0]: row[1:] for row in found} == {
        name: (
            s["renter"], s["status"], amount_of(s["plan"]["price"]), s["plan"]["every"], moment(s["period_start"]),
            moment(s["period_end"]), s["cancel_at_end"], s["renewals"], amount_of(s["paid"]), moment(s["ended_at"]),
            s["version"],
        )
        for name, s in states(url, "subscription").items()
    }  # fmt: skip
    purchases = ask("SELECT purchase_id, tenant, status, price, refundable_until, version FROM bi.purchases")
    assert {row[0]: row[1:] for row in purchases} == {
        name: (s["buyer"], s["status"], amount_of(s["price"]), moment(s["refundable_until"]), s["version"])
        for name, s in states(url, "purchase").items()
    }


def test_what_personas_brought_in_is_what_the_books_say(ask: Ask) -> None:
    sales = "type IN ('rental.ended', 'subscription.period_settled', 'purchase.settled')"
    booked = dict(
        ask(
            f"SELECT tenant, -sum(amount) FROM bi.ledger_entries WHERE {sales} GROUP BY tenant HAVING sum(amount) != 0"
        )
    )
    told_by = "SELECT tenant, sum(earned) + sum(fees) - sum(spent) FROM bi.rental_revenue GROUP BY tenant"
    assert dict(ask(told_by)) == booked
    assert booked[SELLER.tenant] > 0
    assert booked["platform"] > 0
    assert ask("SELECT sum(earned) + sum(fees) - sum(spent) FROM bi.rental_revenue") == [(0,)]
    by_kind = {kind for _, kind, *_ in example(ask, "Revenue of personas")}
    assert by_kind == {"rental", "subscription", "purchase"}


def test_renewals_are_counted_and_the_open_subscription_is_the_recurring_revenue(
    ask: Ask, books: Books
) -> None:
    found = example(ask, "Renewal rate")
    assert [sum(column) for column in list(zip(*found, strict=True))[1:3]] == [3, 1]
    assert all(
        rate == (Decimal(renewed) / due).quantize(Decimal("0.0001")) for _, due, renewed, rate in found
    )
    # One goes on, at 6.00 a day.
    assert example(ask, "Recurring revenue") == [("atlas", "USD", 1, 0, 0, Decimal("182.5"))]
    assert len(list(books.of("subscription.started"))) == 3


# --------------------------------------------------------------------------- costs


def test_costs_are_quantities_and_list_costs_of_what_holds(ask: Ask, books: Books) -> None:
    held = list(books.readings().values())
    keyed = [((r["provider"], r["model"], r["cost"]["currency"] if r["cost"] else ""), r) for r in held]
    wanted = []
    for key in sorted({key for key, _ in keyed}):
        mine = [r for k, r in keyed if k == key]
        counts = (sum(r[name] for r in mine) for name in ("requests", "tokens_in", "tokens_out"))
        cost = sum((amount_of(r["cost"]) for r in mine), Decimal(0)) if key[2] else None
        wanted.append((*key, *counts, cost))
    assert example(ask, "Costs by provider and model") == wanted
    assert ask("SELECT count() FROM bi.costs WHERE (list_cost IS NULL) != (currency = '')") == [(0,)]
    assert ask(
        "SELECT count() FROM bi.costs WHERE charge_period_end != charge_period_start + INTERVAL 1 DAY"
    ) == [(0,)]


def test_the_dashboard_of_costs_adds_up_usage_and_sales_by_day_and_persona(ask: Ask, books: Books) -> None:
    wanted: dict[Any, list[Any]] = {}

    def add(day: str, persona: str | None, currency: str, place: int, value: Any) -> None:
        wanted.setdefault((date.fromisoformat(day[:10]), persona or "", currency), [0, 0, 0, 0, 0, 0])[
            place
        ] += value

    for r in books.readings().values():
        currency = r["cost"]["currency"] if r["cost"] else ""
        counts = (r["requests"], r["tokens_in"] + r["tokens_out"], amount_of(r["cost"]))
        for place, value in enumerate(counts):
            add(r["occurred_at"], r["persona_id"], currency, place, value)
    kinds = {"rental.ended": 3, "subscription.period_settled": 4, "purchase.settled": 5}
    for _, record in books.of(*kinds):
        charged = amount_of(record["data"]["charged"])
        if charged:
            add(record["at"], "atlas", record["data"]["charged"]["currency"], kinds[record["type"]], charged)
    found = example(ask, "Costs by day and persona")
    assert {row[:3]: list(row[3:9]) for row in found} == wanted
    assert all(row[9] == sum(row[6:9]) for row in found)


# --------------------------------------------------------------------------- whose rows


@pytest.fixture(scope="module")
def answer(shown: Target, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], str]:
    """Ask through the endpoint that people ask, as somebody of a tenant."""
    settings = Settings(data_dir=Path(tmp_path_factory.mktemp("endpoint")))
    issuer = LocalIssuer(settings)

    def ask_as(tenant: str, statement: str) -> str:
        async def work() -> str:
            places = nullcontext((lambda: as_service(shown), lambda: as_reader(shown)))
            endpoint = SqlEndpoint(settings, TokenGate(settings, issuer), lambda: places)
            headers = {"X-ClickHouse-Key": issuer.mint("ann", tenant, ["billing"])}
            transport = httpx.ASGITransport(endpoint)
            async with httpx.AsyncClient(transport=transport, base_url="http://sql") as client:
                found = await client.post("/", content=statement, headers=headers)
            await endpoint.close()
            assert found.status_code == 200, f"{statement}: {found.text}"
            return found.text.strip()

        return asyncio.run(work())

    return ask_as


@pytest.mark.parametrize("view", VIEWS)
def test_a_tenant_sees_its_own_rows_of_commerce_and_no_others(
    view: str, ask: Ask, answer: Callable[[str, str], str]
) -> None:
    counts = dict(ask(f"SELECT tenant, count() FROM bi.{view} GROUP BY tenant"))
    assert counts, view
    assert set(counts) <= {*TENANTS, SELLER.tenant, "platform"}
    for tenant in ("acme", "dune", SELLER.tenant):
        mine = counts.get(tenant, 0)
        asked = f"SELECT count(), countIf(tenant = '{tenant}') FROM bi.{view}"
        assert answer(tenant, asked) == f"{mine}\t{mine}"


def test_who_sells_sees_its_revenue_and_not_who_rented(answer: Callable[[str, str], str]) -> None:
    seller = SELLER.tenant
    assert answer(seller, "SELECT count() FROM bi.rentals") == "0"
    assert answer(seller, "SELECT sum(earned) > 0, sum(spent), sum(fees) FROM bi.rental_revenue") == "1\t0\t0"


@pytest.mark.parametrize(
    "view",
    ["customers", "invoices", "invoice_lines", "credit_notes", "grants", "rentals", "subscriptions", "usage"],
)
def test_the_tenant_reaches_the_primary_key_through_a_view(view: str, shown: Target) -> None:
    with client_of(shown) as service:
        plan = service.query(
            f"EXPLAIN indexes = 1 SELECT * FROM (SELECT * FROM bi.{view} WHERE tenant = 'acme') AS x"
        ).result_rows
    assert any("tenant in ['acme', 'acme']" in line for (line,) in plan), "\n".join(line for (line,) in plan)


# --------------------------------------------------------------------------- again, and again


def test_small_batches_and_a_rebuild_give_the_same_rows(shown: Target, url: str) -> None:
    before = prints(shown)
    ours = [table for name in OURS for table in group_of(name).tables]
    assert all(before[table][0] for table in ours)

    async def again() -> None:
        async with connected(shown) as clickhouse:
            for name in OURS:
                report = await rebuild(clickhouse, url, name)
                assert all(difference.same for difference in report.tables.values())

    asyncio.run(again())
    assert prints(shown) == before
    for batch_max in (1, 7):
        # From the beginning, over what is there, in batches that part a reading from its correction.
        with psycopg.connect(url) as connection:
            connection.execute(
                "UPDATE followers SET position = 0 WHERE name ~ '^clickhouse.(usage|commerce)'"
            )
        asyncio.run(follow(shown, url, OURS, batch_max=batch_max))
        assert prints(shown) == before
