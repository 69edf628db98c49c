"""Statements: they add up, touch without gaps, and are the same bytes for ever, as known at a position."""

from __future__ import annotations

import csv
import io
import itertools
import json
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import psycopg
import pytest

from domain.billing.statements import seal_account, seal_customer
from domain.canonical import is_canonical
from domain.values import moment_text
from ops.rebuild import rebuild
from tests.real.api.world import Speaker, money, refused
from tests.real.billing.billing_desk import Desk, desk
from tests.real.billing.test_documents import Seen, plain
from tests.real.conftest import lend

lending = contextmanager(lend)


def statement(who: Speaker, path: str, **asked: Any) -> dict[str, Any]:
    """Read a statement, and hold its address against its bytes."""
    answer = who.get(f"/v1/{path}/statement", params=asked)
    assert answer.is_success, answer.text
    body = answer.json()
    seal = seal_account if "account" in body else seal_customer
    assert (answer.content, answer.headers["etag"]) == (seal(body)[0], f'"{seal(body)[1]}"')
    assert is_canonical(answer.content)
    return body


def traded(office: Desk) -> Speaker:
    """Make a customer whose money went in, out, on hold, and to invoices of two days, one corrected and credited."""
    one = office.customer(taxes=[{"name": "VAT", "share": "0.19"}])
    office.operator.made(f"/v1/customers/{one.tenant}/credits", {"amount": money("12"), "source": "paid"})
    early = moment_text(office.now)
    office.use(one, {"tokens_out": 40_000})
    office.next_day()
    office.run()
    (first,) = one.read("/v1/invoices")["items"]
    office.use(one, {"tokens_out": 70_000, "occurred_at": early})
    office.operator.made(f"/v1/invoices/{first['id']}/correct")
    body = {"amount": money("2"), "target": "wallet", "reason": "an outage"}
    office.operator.made(f"/v1/invoices/{first['id']}/credit_notes", body)
    office.next_day()
    office.run()
    office.offer(office.provider(f"lender-{one.tenant}"))
    office.funded(office.owner(one.tenant), max_offers=1)
    return one


class TestOfAnAccount:
    def test_it_adds_up_posting_by_posting(self, office: Desk) -> None:
        one = traded(office)
        name = f"wallet.{one.tenant}.USD"
        found = statement(one, f"accounts/{name}")
        listed = one.read(f"/v1/accounts/{name}/postings?limit=500")["items"][::-1]
        assert [
            (m["position"], m["leg"], m["amount"], m["balance"], m["held"]) for m in found["movements"]
        ] == [(p["position"], p["leg"], p["amount"], p["balance"], p["held"]) for p in listed]
        assert found["movement_count"] == len(listed)
        sign = -1 if found["side"] == "credit" else 1
        balance = Decimal(found["opening"]["balance"])
        for movement in found["movements"]:
            balance += sign * Decimal(movement["amount"])
            assert Decimal(movement["balance"]) == balance
        shown = one.read(f"/v1/accounts/{name}")
        assert found["closing"] == {"balance": shown["balance"], "held": shown["held"]}
        debits, credited = Decimal(found["debits"]), Decimal(found["credits"])
        assert Decimal(found["opening"]["balance"]) + sign * (debits - credited) == balance

    def test_every_posting_names_its_record_and_the_other_side(self, office: Desk) -> None:
        one = traded(office)
        found = statement(one, f"accounts/wallet.{one.tenant}.USD")
        for movement in found["movements"]:
            record = office.operator.read(f"/v1/log/events/{movement['position']}")
            assert (record["address"], record["record"]["at"]) == (movement["address"], movement["at"])
            assert (record["record"]["type"], record["record"]["stream"]) == (
                movement["type"],
                movement["stream"],
            )
        by_type = {movement["type"]: movement["counter"] for movement in found["movements"]}
        assert by_type["transfer.posted"] == ["cash.platform.USD"]
        assert by_type["grant.granted"] == [f"credits.{one.tenant}.USD"]
        assert by_type["invoice.paid"] == [f"receivable.{one.tenant}.USD"]
        assert by_type["account.opened"] == by_type["contract.escrow_funded"] == []
        assert Decimal(found["closing"]["held"]) > 0

    def test_days_touch_without_gap_or_overlap(self, office: Desk) -> None:
        one = traded(office)
        name = f"accounts/wallet.{one.tenant}.USD"
        whole = statement(one, name)
        moments = sorted({movement["at"] for movement in whole["movements"]})
        cuts = [None, *moments[1::2], None]
        parts = [
            statement(
                one,
                name,
                **{k: v for k, v in (("from", a), ("to", b), ("as_of", whole["as_of"])) if v is not None},
            )
            for a, b in itertools.pairwise(cuts)
        ]
        assert [m for part in parts for m in part["movements"]] == whole["movements"]
        for before, after in itertools.pairwise(parts):
            assert before["closing"] == after["opening"]
        assert (parts[0]["opening"], parts[-1]["closing"]) == (whole["opening"], whole["closing"])
        for part, end in zip(parts, cuts[1:], strict=False):
            assert end is None or all(movement["at"] < end for movement in part["movements"])

    def test_a_day_is_one_of_the_zone_that_is_named(self, office: Desk) -> None:
        one = office.customer()
        day = office.now.date().isoformat()
        name = f"accounts/wallet.{one.tenant}.USD"
        found = statement(one, name, **{"from": day, "zone": "Pacific/Kiritimati"})
        moment = found["from"]
        assert moment.endswith("T10:00:00.000000Z")
        assert statement(one, name, **{"from": moment, "zone": "Pacific/Kiritimati"}) == found
        # The clocks of Berlin went forward on that day, which had 23 hours.
        spring = statement(one, name, **{"from": "2026-03-29", "to": "2026-03-30", "zone": "Europe/Berlin"})
        assert (spring["from"], spring["to"]) == (
            "2026-03-28T23:00:00.000000Z",
            "2026-03-29T22:00:00.000000Z",
        )
        assert spring["movement_count"] == 0
        assert spring["opening"] == spring["closing"] == {"balance": "0.00", "held": "0.00"}

    def test_what_is_asked_wrongly_is_refused_by_name(self, office: Desk) -> None:
        one = office.customer()
        path = f"/v1/accounts/wallet.{one.tenant}.USD/statement"
        refused(one.get(path, params={"from": "2026-02-30"}), 400, "invalid_field")
        refused(one.get(path, params={"from": "2026-02-02", "to": "2026-02-01"}), 400, "invalid_field")
        refused(one.get(path, params={"from": "0001-01-01", "zone": "Asia/Tokyo"}), 400, "invalid_field")
        refused(one.get(path, params={"zone": "Mars/Base"}), 400, "time_zone_unknown")
        refused(one.get(path, params={"as_of": "99999999"}), 404, "position_not_found")
        refused(one.get(path, params={"as_of": "yesterday"}), 400, "invalid_as_of")
        refused(one.get(path, params={"as_of": "0"}), 404, "account_not_found")
        refused(one.get(path, params={"format": "pdf"}), 400, "invalid_field")
        refused(office.owner("nosy").get(path), 404, "account_not_found")
        refused(
            office.owner("nosy").get("/v1/accounts/fees.platform.USD/statement"), 404, "account_not_found"
        )

    def test_one_that_is_too_long_says_until_when_it_would_fit(
        self, office: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = traded(office)
        name = f"accounts/wallet.{one.tenant}.USD"
        whole = statement(one, name)
        rows = one.get(f"/v1/{name}/statement?format=csv").content
        monkeypatch.setattr("api.routes.documents.MOVEMENTS_MAX", 5)
        problem = refused(one.get(f"/v1/{name}/statement"), 422, "statement_too_large")
        facts = problem["details"]
        assert (facts["movements"], facts["movements_max"]) == (len(whole["movements"]), 5)
        fits = statement(one, name, to=facts["to"], as_of=whole["as_of"])
        assert 0 < fits["movement_count"] <= 5
        assert fits["movements"] == whole["movements"][: fits["movement_count"]]
        refused(one.get(f"/v1/customers/{one.tenant}/statement"), 422, "statement_too_large")
        # A table has no limit.
        assert one.get(f"/v1/{name}/statement?format=csv").content == rows

    def test_pages_of_any_size_give_the_same_statement_and_table(
        self, office: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = traded(office)
        asked = [
            f"/v1/{what}/statement?as_of={office.size - 1}&format={form}"
            for what in (f"accounts/wallet.{one.tenant}.USD", f"customers/{one.tenant}")
            for form in ("json", "csv", "html")
        ]
        whole = [one.get(path).content for path in asked]
        for name in ("movements", "events"):
            monkeypatch.setattr(f"ops.account_history.{name}.__defaults__", (2,))
        assert [one.get(path).content for path in asked] == whole

    def test_as_a_table_and_as_a_page_it_says_the_same(self, office: Desk) -> None:
        one = traded(office)
        path = f"/v1/accounts/wallet.{one.tenant}.USD/statement"
        found = statement(one, path.removeprefix("/v1/").removesuffix("/statement"))
        rows = list(csv.DictReader(io.StringIO(one.get(f"{path}?format=csv").text, newline="")))
        names = ("position", "leg", "amount", "balance", "held", "address")
        assert [[row[n] for n in names] for row in rows] == [
            [str(m[n]) for n in names] for m in found["movements"]
        ]
        page = one.get(f"{path}?format=html&as_of={found['as_of']}")
        text = plain(Seen(page.text).text)
        assert one.get(f"{path}?as_of={found['as_of']}").headers["etag"].strip('"') in text
        for movement in found["movements"]:
            assert movement["address"][:25] in text
        assert "default-src 'none'" in page.headers["content-security-policy"]


class TestOfACustomer:
    def test_it_opens_moves_and_closes_as_its_documents_say(self, office: Desk) -> None:
        one = traded(office)
        (part,) = statement(one, f"customers/{one.tenant}")["currencies"]
        kinds = [movement["kind"] for movement in part["movements"]]
        assert kinds[:3] == ["credit_given", "invoice", "credit_used"]
        assert {"correction", "credit_note", "payment"} < set(kinds)
        note = next(movement for movement in part["movements"] if movement["kind"] == "credit_note")
        assert note["amount"] == "2.00"
        invoices = {i["number"]: i for i in one.read("/v1/invoices")["items"]}
        named = {m["document"] for m in part["movements"] if m["kind"] in ("invoice", "correction")}
        assert named == set(invoices)
        for movement in part["movements"]:
            if movement["kind"] in ("invoice", "correction"):
                assert movement["owed_change"] == invoices[movement["document"]]["owed"]["amount"]
        accounts = {a["account"]: a["balance"] for a in one.read("/v1/accounts")["items"]}
        assert part["closing"] == {
            "owed": accounts[f"receivable.{one.tenant}.USD"],
            "credit": accounts[f"credits.{one.tenant}.USD"],
        }
        owed = sum(Fraction(m["owed_change"]) for m in part["movements"])
        assert owed == Fraction(part["closing"]["owed"]) - Fraction(part["opening"]["owed"])
        sums = {s["kind"]: Fraction(s["owed"]) for s in part["totals"]}
        assert sum(sums.values()) == owed

    def test_its_days_are_those_of_the_customer(self, office: Desk) -> None:
        one = office.customer(zone="America/New_York")
        path = f"customers/{one.tenant}"
        found = statement(one, path, **{"from": "2026-11-01"})
        assert (found["zone"], found["from"]) == ("America/New_York", "2026-11-01T04:00:00.000000Z")
        assert (
            statement(one, path, **{"from": "2026-11-01", "zone": "UTC"})["from"]
            == "2026-11-01T00:00:00.000000Z"
        )

    def test_an_invoice_of_nothing_is_told_too(self, office: Desk) -> None:
        office.publish(
            "free", charges=[{"id": "n", "meter": "requests", "price": {"model": "per_unit", "price": "0"}}]
        )
        one = office.customer(book="platform.free")
        office.use(one, {"requests": 3})
        office.next_day()
        office.run()
        (part,) = statement(one, f"customers/{one.tenant}")["currencies"]
        (movement,) = part["movements"]
        assert (movement["kind"], movement["owed_change"], movement["owed"]) == ("invoice", "0.00", "0.00")

    def test_it_is_its_own_tenants_and_for_who_keeps_the_books(self, office: Desk) -> None:
        one = traded(office)
        path = f"/v1/customers/{one.tenant}/statement"
        refused(office.owner("nosy").get(path), 404, "customer_not_found")
        refused(one.get(f"{path}?as_of=0"), 404, "customer_not_found")
        assert office.speaker("platform", "auditor").get(path).content == one.get(path).content
        page = office.speaker("platform", "billing").get(f"{path}?format=html")
        assert "Customer statement" in page.text
        rows = list(csv.DictReader(io.StringIO(one.get(f"{path}?format=csv").text, newline="")))
        (part,) = one.read(path)["currencies"]
        assert [row["owed"] for row in rows] == [m["owed"] for m in part["movements"]]


def test_a_party_to_a_shared_payment_learns_of_no_other_seller(office: Desk) -> None:
    sellers = [office.provider(name) for name in ("seller-one", "seller-two")]
    for seller in sellers:
        office.offer(seller, allowed_tasks=["a-task-of-these-two"])
    owner = office.owner("the-buyer")
    done = office.completed(owner, task_type="a-task-of-these-two")
    owner.made(f"/v1/contracts/{done['id']}/release")
    paid = [a for a in sellers[0].read("/v1/accounts")["items"] if Decimal(a["balance"])]
    assert paid
    for account in paid:
        body = sellers[0].get(f"/v1/accounts/{account['account']}/statement").text
        assert "the-buyer" in body
        assert "seller-two" not in body


def test_as_known_at_a_position_it_is_the_same_bytes_for_ever(
    server_url: str, template_database: str, tmp_path: Path
) -> None:
    with lending(server_url, template_database) as url:
        with desk(url, tmp_path) as first:
            one = traded(first)
            asked = questions(one.tenant, first.size, moment_text(first.now))
            before = answers(first, asked)
            # More is written, also about the very same accounts and documents.
            first.use(one, {"tokens_out": 5_000})
            first.next_day()
            first.run()
            first.deposit(one.tenant, "5")
            assert answers(first, asked) == before
        # Everything that follows the log is thrown away and computed again.
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("TRUNCATE postings, accounts, records")
        report = rebuild(url, repair=True)
        assert report.repaired
        with desk(url, tmp_path) as second:
            assert answers(second, asked) == before


def questions(tenant: str, size: int, now: str) -> list[str]:
    """Ask for statements as known at several positions, in each form."""
    found = []
    for what in (f"accounts/wallet.{tenant}.USD", "accounts/revenue.platform.USD", f"customers/{tenant}"):
        for as_of in (size - 1, size - 4, size // 2):
            for period in ("", f"&to={now}", f"&from={now[:10]}"):
                found += [
                    f"/v1/{what}/statement?as_of={as_of}{period}&format={f}" for f in ("json", "csv", "html")
                ]
    return found


def answers(office: Desk, asked: list[str]) -> dict[str, tuple[int, bytes, str | None]]:
    found = {path: office.operator.get(path) for path in asked}
    assert sum(answer.is_success for answer in found.values()) > len(asked) // 2
    return {path: (a.status_code, shape(a), a.headers.get("etag")) for path, a in found.items()}


def shape(answer: Any) -> bytes:
    """Give an answer's bytes; a refusal counts by its code."""
    return answer.content if answer.is_success else json.dumps(answer.json()["code"]).encode()
