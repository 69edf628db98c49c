"""Billing over HTTP: from a published price to a line's raw records, and refusals as problems."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from domain.values import moment_text
from tests.real.api.world import Speaker, money, refused
from tests.real.billing.billing_desk import CHARGES, Desk


@pytest.fixture(scope="module")
def billed(office: Desk) -> tuple[Speaker, dict[str, Any]]:
    """Bill a customer's day of many readings."""
    one = office.customer()
    office.use(one, *[{"tokens_in": 1_000 + n, "tokens_out": 10} for n in range(12)], {"model": "m2"})
    office.next_day()
    made = office.operator.made("/v1/invoices", {"tenant": one.tenant})
    return one, made


class TestPriceBooks:
    def test_a_version_is_published_listed_shown_and_never_changes(self, office: Desk) -> None:
        starts = moment_text(office.now + timedelta(days=40))
        first = office.publish("tariff")
        second = office.publish("tariff", charges=CHARGES[:1], effective_from=starts, commitment="5")
        assert (first["number"], second["number"], second["effective_from"]) == (1, 2, starts)
        anybody = office.owner("anybody")
        book = anybody.read("/v1/price_books/platform.tariff")
        assert [v["address"] for v in book["versions"]] == [first["address"], second["address"]]
        shown = anybody.read("/v1/price_books/platform.tariff/versions/1")
        assert (shown["charges"], shown["address"]) == (first["charges"], first["address"])
        assert anybody.read("/v1/price_books/platform.tariff/sheet")["number"] == 1
        assert anybody.read(f"/v1/price_books/platform.tariff/sheet?at={starts}")["number"] == 2
        names = [b["id"] for b in anybody.read("/v1/price_books?tenant=platform")["items"]]
        assert {"platform.tariff", "platform.standard"} <= set(names)
        then = first["receipt"]["position"] + 1
        assert len(anybody.read(f"/v1/price_books/platform.tariff?as_of={then}")["versions"]) == 1

    def test_a_price_that_is_none_is_named(self, office: Desk) -> None:
        charge = CHARGES[2] | {"price": {"model": "per_unit", "price": "-1"}}
        body = {"book": "bad", "currency": "USD", "charges": [charge]}
        problem = refused(office.operator.post("/v1/price_books", body), 422, "price_book_invalid")
        assert problem["details"]["where"] == "charges[0].price.price"
        refused(office.operator.post("/v1/price_books", body | {"charges": "x"}), 400, "invalid_field")
        refused(office.operator.post("/v1/price_books", body | {"currency": "XXQ"}), 400, "invalid_currency")
        past = body | {"charges": CHARGES, "effective_from": "2020-01-01T00:00:00Z"}
        refused(office.operator.post("/v1/price_books", past), 422, "starts_in_past")

    def test_a_private_book_is_for_its_tenant_and_its_customers(self, office: Desk) -> None:
        seller, stranger = office.provider("seller-a"), office.provider("seller-b")
        seller.made("/v1/price_books", {"book": "own", "currency": "USD", "charges": CHARGES})
        for path in ("", "/versions/1", "/sheet"):
            assert seller.get(f"/v1/price_books/seller-a.own{path}").status_code == 200
            refused(stranger.get(f"/v1/price_books/seller-a.own{path}"), 404, "price_book_not_found")
        refused(stranger.post("/v1/quotes", {"book": "seller-a.own"}), 404, "price_book_not_found")
        customer = office.customer(book="seller-a.own")
        assert customer.get("/v1/price_books/seller-a.own").status_code == 200
        assert stranger.read("/v1/price_books")["items"] == []
        refused(stranger.get("/v1/price_books?tenant=seller-a"), 403, "forbidden")


class TestCustomers:
    def test_a_customer_is_enrolled_once_replanned_and_seen_by_its_own(self, office: Desk) -> None:
        one = office.customer(zone="Europe/Berlin", every="month", taxes=[{"name": "VAT", "share": "0.19"}])
        path = f"/v1/customers/{one.tenant}"
        assert one.read(path)["plan"]["taxes"] == [{"name": "VAT", "share": "0.19"}]
        body = {"tenant": one.tenant, "book": "platform.standard"}
        refused(office.operator.post("/v1/customers", body), 409, "customer_exists")
        refused(one.post("/v1/customers", body | {"tenant": "somebody"}), 403, "forbidden")
        moved = office.operator.made(f"{path}/plan", {"book": "platform.standard", "zone": "Asia/Tokyo"})
        assert (moved["plan"]["zone"], moved["next_plan"]["zone"]) == ("Europe/Berlin", "Asia/Tokyo")
        refused(
            office.operator.post(f"{path}/plan", {"book": "platform.standard", "zone": "Mars/Base"}),
            400,
            "invalid_field",
        )
        stranger = office.owner("nosy")
        refused(stranger.get(path), 404, "customer_not_found")
        refused(stranger.get(f"{path}/credits"), 404, "customer_not_found")
        assert [c["id"] for c in one.read("/v1/customers")["items"]] == [one.tenant]

    def test_coupons_and_credits_are_granted(self, office: Desk) -> None:
        one = office.customer()
        path = f"/v1/customers/{one.tenant}"
        office.operator.made(f"{path}/coupons", {"code": "half", "share": "0.5", "periods": 1})
        refused(
            office.operator.post(f"{path}/coupons", {"code": "half", "share": "0.5"}), 422, "coupon_invalid"
        )
        office.operator.made(f"{path}/credits", {"amount": money("3")})
        office.operator.made(f"{path}/credits", {"amount": money("4"), "source": "promotion"})
        left = {g["source"]: g["left"]["amount"] for g in one.read(f"{path}/credits")["items"]}
        assert left == {"paid": "3.00", "promotion": "4.00"}
        quoted = one.made("/v1/quotes", {"tenant": one.tenant})["bill"]
        assert (quoted["subtotal"]["amount"], quoted["due"]["amount"]) == ("10.00", "0.00")


class TestInvoices:
    def test_is_issued_over_http_once_and_shown_to_its_tenant(self, office: Desk, billed: Any) -> None:
        one, made = billed
        assert one.read(f"/v1/invoices/{made['id']}")["bill"] == made["bill"]
        # One whose day has just begun: the clock is everybody's, and others have moved it since this one was billed.
        fresh = office.customer()
        refused(office.operator.post("/v1/invoices", {"tenant": fresh.tenant}), 409, "period_open")
        refused(office.operator.post("/v1/invoices", {"tenant": "nobody"}), 404, "customer_not_found")
        stranger = office.speaker("nosy", "owner", "service")
        refused(stranger.post("/v1/invoices", {"tenant": one.tenant}), 404, "customer_not_found")
        for act in ("pay", "correct"):
            refused(stranger.post(f"/v1/invoices/{made['id']}/{act}"), 404, "invoice_not_found")
        refused(stranger.get(f"/v1/invoices/{made['id']}"), 404, "invoice_not_found")
        refused(stranger.get(f"/v1/invoices?tenant={one.tenant}"), 403, "forbidden")
        assert stranger.read("/v1/invoices")["items"] == []

    def test_a_line_leads_to_its_records_and_each_to_its_proof(self, office: Desk, billed: Any) -> None:
        one, made = billed
        for number, evidence in enumerate(made["evidence"]):
            path, found, cursor = f"/v1/invoices/{made['id']}/lines/{number}/records", [], ""
            while cursor is not None:
                answer = one.read(f"{path}?limit=5{cursor and '&cursor=' + cursor}")
                found += answer["items"]
                cursor = answer["next"]
            assert (answer["line"], answer["evidence"]) == (made["bill"]["lines"][number], evidence)
            assert len(found) == (evidence["events"] if evidence else 0)
            if evidence:
                mixed = sum(int(r["address"].removeprefix("sha3-512:")[:16], 16) for r in found) % 2**64
                assert f"{mixed:016x}" == evidence["fingerprint"]
                total = sum(r["reading"].get(answer["line"]["meter"], 0) for r in found)
                assert str(total) == answer["line"]["quantity"]
            for record in found[:2]:
                told = one.read(f"/v1/log/events/{record['position']}")
                assert told["address"] == record["address"]
        refused(one.get(f"/v1/invoices/{made['id']}/lines/99/records"), 404, "invoice_line_not_found")
        refused(one.get(f"/v1/invoices/{made['id']}/lines/x/records"), 404, "invoice_line_not_found")
        refused(one.get(f"/v1/invoices/{made['id']}/lines/0/records?cursor=eA"), 400, "invalid_cursor")
        stranger = office.owner("nosy")
        refused(stranger.get(f"/v1/invoices/{made['id']}/lines/0/records"), 404, "invoice_not_found")

    def test_a_line_keeps_its_records_when_a_correction_comes(self, office: Desk) -> None:
        one = office.customer()
        early = moment_text(office.now)
        office.use(one, {"tokens_out": 4_000})
        office.next_day()
        made = office.operator.made("/v1/invoices", {"tenant": one.tenant})
        refused(office.operator.post(f"/v1/invoices/{made['id']}/correct"), 409, "nothing_to_correct")
        office.use(one, {"tokens_out": 6_000, "occurred_at": early})
        later = office.operator.made(f"/v1/invoices/{made['id']}/correct")
        line = next(n for n, line in enumerate(made["bill"]["lines"]) if line["charge"] == "out")
        counts = [
            len(one.read(f"/v1/invoices/{name}/lines/{line}/records")["items"])
            for name in (made["id"], later["id"])
        ]
        assert (counts, later["owed"]["amount"]) == ([1, 2], "0.18")

    def test_is_paid_and_credited_and_never_more_than_billed(self, office: Desk) -> None:
        one = office.customer()
        office.next_day()
        made = office.operator.made("/v1/invoices", {"tenant": one.tenant})
        assert office.operator.made(f"/v1/invoices/{made['id']}/pay")["status"] == "paid"
        refused(office.operator.post(f"/v1/invoices/{made['id']}/pay"), 409, "invoice_settled")
        path = f"/v1/invoices/{made['id']}/credit_notes"
        body = {"amount": money("4"), "target": "wallet", "reason": "an outage"}
        note = office.operator.made(path, body)
        refused(office.operator.post(path, body | {"amount": money("7")}), 422, "credit_too_large")
        refused(one.post(path, body), 403, "forbidden")
        assert one.read(f"/v1/credit_notes/{note['id']}")["returned"] == money("4.00")
        (listed,) = one.read(f"/v1/credit_notes?invoice={made['id']}")["items"]
        assert listed["number"] == note["number"]
        refused(office.owner("nosy").get(f"/v1/credit_notes/{note['id']}"), 404, "credit_note_not_found")
        assert one.read(f"/v1/accounts/wallet.{one.tenant}.USD")["balance"] == "994.00"

    def test_as_it_was_stays_readable(self, office: Desk, billed: Any) -> None:
        one, made = billed
        # The accounts it opened stand before it.
        last = made["receipt"]["position"] + made["receipt"]["event_count"] - 1
        then = one.read(f"/v1/invoices/{made['id']}?as_of={last}")
        assert (then["version"], then["status"]) == (1, "issued")


class TestQuotes:
    def test_a_book_is_quoted_for_supposed_usage(self, office: Desk) -> None:
        usage = [{"provider": "p", "model": "m1", "tokens_in": 150_500, "tokens_out": 2_000, "requests": 2}]
        asked = {"book": "platform.standard", "usage": usage}
        quoted = office.owner("anybody").made("/v1/quotes", asked)
        amounts = {line["charge"]: line["amount"]["amount"] for line in quoted["bill"]["lines"]}
        assert amounts == {"base": "10.00", "in": "1.35", "out": "0.06", "calls": "0.50"}
        half = office.owner("anybody").made(
            "/v1/quotes", asked | {"coupons": [{"code": "half", "share": "0.5"}]}
        )
        assert half["bill"]["due"]["amount"] == "5.95"

    def test_is_for_a_tenant_or_a_book_and_writes_nothing(self, office: Desk) -> None:
        one = office.customer()
        size = office.size
        refused(one.post("/v1/quotes", {}), 400, "invalid_field")
        refused(
            one.post("/v1/quotes", {"tenant": one.tenant, "book": "platform.standard"}), 400, "invalid_field"
        )
        refused(one.post("/v1/quotes", {"book": "platform.nothing"}), 404, "price_book_not_found")
        both = {"coupons": [{"code": "x", "share": "0.5", "amount": money("1")}], "tenant": one.tenant}
        refused(one.post("/v1/quotes", both), 422, "coupon_invalid")
        other = {"coupons": [{"code": "x", "amount": money("1", "EUR")}], "tenant": one.tenant}
        refused(one.post("/v1/quotes", other), 422, "currency_mismatch")
        outside = [{"provider": "p", "model": "m", "at": "2020-01-01T00:00:00Z"}]
        refused(one.post("/v1/quotes", {"tenant": one.tenant, "usage": outside}), 400, "invalid_field")
        refused(office.owner("nosy").post("/v1/quotes", {"tenant": one.tenant}), 404, "customer_not_found")
        one.made("/v1/quotes", {"tenant": one.tenant})
        assert office.size == size


class TestPayouts:
    def test_money_is_reserved_and_leaves_once_or_comes_back(self, office: Desk) -> None:
        one = office.owner(office.customer(money="50").tenant)
        asked = {"amount": money("20"), "destination": "house bank"}
        refused(one.post("/v1/payouts", asked), 404, "account_not_found")
        office.earn(one.tenant, "50")
        first, second = one.made("/v1/payouts", asked), one.made("/v1/payouts", asked)
        refused(one.post("/v1/payouts", asked), 409, "insufficient_funds")
        refused(one.post(f"/v1/payouts/{first['id']}/confirm", {"reference": "r-1"}), 403, "forbidden")
        office.operator.made(f"/v1/payouts/{first['id']}/confirm", {"reference": "r-1"})
        office.operator.made(f"/v1/payouts/{second['id']}/fail", {"reason": "closed"})
        refused(
            office.operator.post(f"/v1/payouts/{first['id']}/fail", {"reason": "x"}), 409, "payout_settled"
        )
        assert one.read(f"/v1/accounts/earnings.{one.tenant}.USD")["available"] == "30.00"
        assert one.read(f"/v1/accounts/wallet.{one.tenant}.USD")["available"] == "50.00"
        assert [p["status"] for p in one.read("/v1/payouts")["items"]] == ["failed", "paid"]
        refused(office.owner("nosy").get(f"/v1/payouts/{first['id']}"), 404, "payout_not_found")


class TestCorrectedUsage:
    def test_is_taken_over_http_and_told_in_its_stream(self, office: Desk) -> None:
        one = office.customer()
        office.use(one, {"event_id": "e-1", "tokens_in": 5})
        (item,) = one.read("/v1/usage")["items"]
        path = f"/v1/usage/{item['id']}/corrections"
        body = {"replaces": 1, "reason": "counted twice", "tokens_in": 3, "cached_tokens": 1}
        made = one.made(path, body)
        assert (made["tokens_in"], made["cached_tokens"], made["as_taken"]["tokens_in"]) == (3, 1, 5)
        again = one.made(path, body)
        assert again["receipt"]["event_count"] == 0
        refused(one.post(path, body | {"tokens_in": 4}), 412, "version_mismatch")
        refused(one.post(path, body | {"tokens_in": None}), 400, "invalid_field")
        refused(one.post(path, body | {"source": "x"}), 400, "unknown_field")
        refused(office.speaker("nosy", "service").post(path, body | {"replaces": 2}), 404, "usage_not_found")
        refused(office.owner(one.tenant).post(path, body), 403, "forbidden")
        records = one.read(f"/v1/log/streams/usage/{item['id']}")["items"]
        assert [r["record"]["type"] for r in records] == ["usage.metered", "usage.corrected"]

    def test_the_reading_sent_again_is_still_a_duplicate(self, office: Desk) -> None:
        one = office.customer()
        reading = office.reading(event_id="e-2", tokens_in=5)
        one.made("/v1/usage", {"readings": [reading]})
        (item,) = one.read("/v1/usage")["items"]
        one.made(f"/v1/usage/{item['id']}/corrections", {"replaces": 1, "reason": "r", "tokens_in": 3})
        assert one.made("/v1/usage", {"readings": [reading]})["duplicates"] == 1
        changed = one.made("/v1/usage", {"readings": [reading | {"tokens_in": 3}]})
        assert changed["rejected"][0]["code"] == "usage_conflict"
