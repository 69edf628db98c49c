"""Documents to print, tables for other programs, exports of a period: what they say, to whom, and do not do."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from hashlib import sha3_512
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domain.values import moment_text
from tests.real.api.world import Speaker, money, refused
from tests.real.billing.billing_desk import CHARGES, Desk

HOSTILE = (
    '=HYPERLINK("http://x") <script>alert(1)</script><img src=x onerror=alert(1)>'
    " \u202egpj.exe\u202c \u0007 שלום {{ 7*7 }} "
)
LONG = ("A name of two hundred characters that does not end " * 5)[:200]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Billed(NamedTuple):
    """A customer with an invoice, its correction, and a credit note of that."""

    one: Speaker
    invoice: dict[str, Any]
    correction: dict[str, Any]
    note: dict[str, Any]


@pytest.fixture(scope="module")
def billed(office: Desk) -> Billed:
    """Bill a day under hostile names, correct it, and take a part of it back."""
    charges = [
        CHARGES[0] | {"description": HOSTILE},
        CHARGES[1] | {"description": LONG, "maximum": "900"},
        CHARGES[2],
        CHARGES[3] | {"description": "+Requests"},
    ]
    # What nobody has a price for is seen on the bill.
    charges[3] = charges[3] | {"match": {"model": "m1"}}
    charges[2] = charges[2] | {"match": {"model": "m1"}}
    office.publish("hostile", charges=charges)
    one = office.customer(
        book="platform.hostile", zone="Europe/Berlin", taxes=[{"name": "VAT 19", "share": "0.19"}]
    )
    path = f"/v1/customers/{one.tenant}"
    office.operator.made(f"{path}/coupons", {"code": "WELCOME", "share": "0.1"})
    office.operator.made(f"{path}/credits", {"amount": money("3"), "source": "promotion"})
    office.next_day(12)
    early = moment_text(office.now)
    office.use(
        one,
        *[{"tokens_in": 12_345 * n, "tokens_out": 101, "requests": n} for n in range(1, 12)],
        {"model": "nobody-prices-this", "tokens_out": 5},
    )
    office.next_day(12)
    office.run()
    (invoice,) = [
        i for i in one.read("/v1/invoices")["items"] if i["kind"] == "invoice" and "in" in charges_of(i)
    ]
    office.use(one, {"tokens_in": 1_000_000, "tokens_out": 77, "occurred_at": early})
    correction = office.operator.made(f"/v1/invoices/{invoice['id']}/correct")
    body = {"amount": money("2"), "target": "wallet", "reason": HOSTILE}
    note = office.operator.made(f"/v1/invoices/{invoice['id']}/credit_notes", body)
    return Billed(one, invoice, correction, note)


def charges_of(invoice: dict[str, Any]) -> list[str]:
    return [line["charge"] for line in invoice["bill"]["lines"]]


def document(who: Speaker, name: str, form: str = "json", kind: str = "invoices") -> Any:
    """Read a document."""
    answer = who.get(f"/v1/{kind}/{name}/document?format={form}")
    assert answer.is_success, answer.text
    return answer.json() if form == "json" else answer


class Seen(HTMLParser):
    """Reads a page as a browser would: which elements it has, with which attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self.text += " " * (tag in ("td", "th", "dd"))

    def handle_data(self, data: str) -> None:
        self.text += data


def plain(text: str) -> str:
    return " ".join(text.replace("\u202f", " ").split())


class TestPages:
    def test_an_invoice_says_all_of_its_bill_and_where_it_comes_from(self, billed: Billed) -> None:
        made = billed.invoice
        text = plain(Seen(document(billed.one, made["id"], "html").text).text)
        data = document(billed.one, made["id"])
        assert made["number"] in text
        assert billed.one.tenant in text
        for line, evidence in zip(made["bill"]["lines"], made["evidence"], strict=True):
            assert re.search(rf"(?<![\d.]){re.escape(plain_number(line['amount']['amount']))}(?![\d.])", text)
            for step in line["steps"]:
                assert step["what"] in text
            if evidence:
                assert evidence["fingerprint"] in text
        for item in (*made["bill"]["discounts"], *made["bill"]["taxes"], *made["bill"]["credits"]):
            assert plain_number(item["amount"]["amount"]) in text
        assert "not priced" in text
        assert data["address"] in text
        assert "+01:00" in text or "+02:00" in text
        assert "Europe/Berlin" in text
        assert data["due"] == made["bill"]["due"]["amount"]

    def test_its_address_is_that_of_the_record_that_issued_it(self, office: Desk, billed: Billed) -> None:
        for name, kind in ((billed.invoice["id"], "invoices"), (billed.note["id"], "credit_notes")):
            data = document(billed.one, name, kind=kind)
            (stored,) = office.service.run(
                office.service.runtime.reader.span(data["position"], data["position"] + 1)
            )
            assert data["address"] == "sha3-512:" + sha3_512(bytes(stored.record)).hexdigest()

    def test_a_document_never_changes_whatever_comes_later(self, office: Desk, billed: Billed) -> None:
        one = office.customer()
        office.next_day()
        made = office.operator.made("/v1/invoices", {"tenant": one.tenant})
        before = [document(one, made["id"], form).content for form in ("html", "csv", "parquet")]
        office.operator.made(f"/v1/invoices/{made['id']}/pay")
        body = {"amount": money("1"), "target": "wallet", "reason": "late"}
        office.operator.made(f"/v1/invoices/{made['id']}/credit_notes", body)
        assert [document(one, made["id"], form).content for form in ("html", "csv", "parquet")] == before

    def test_a_correction_shows_what_was_what_is_and_the_difference(self, billed: Billed) -> None:
        data = document(billed.one, billed.correction["id"])
        assert data["corrects"]["number"] == billed.invoice["number"]
        was = {line["charge"]: line["amount"]["amount"] for line in billed.invoice["bill"]["lines"]}
        for line in data["lines"]:
            assert Decimal(line["amount"]) - Decimal(line["was"]) == Decimal(line["difference"])
            assert line["was"] == was[line["charge"]]
        total = {item["what"]: item for item in data["totals"]}["total"]
        assert total["difference"] == data["owed"] == billed.correction["owed"]["amount"]
        text = plain(Seen(document(billed.one, billed.correction["id"], "html").text).text)
        for words in (
            "Correction",
            "Was",
            "Difference",
            billed.invoice["number"],
            data["corrects"]["address"],
        ):
            assert words in text

    def test_a_credit_note_shows_what_was_billed_before_and_after_it(self, billed: Billed) -> None:
        data = document(billed.one, billed.note["id"], kind="credit_notes")
        owed = Decimal(billed.invoice["owed"]["amount"])
        assert [Decimal(data["billed"][name]) for name in ("was", "amount", "difference")] == [
            owed,
            owed - 2,
            -2,
        ]
        text = plain(Seen(document(billed.one, billed.note["id"], "html", "credit_notes").text).text)
        assert billed.invoice["number"] in text
        assert "Returned to your wallet" in text

    def test_hostile_names_are_printed_and_do_nothing(self, billed: Billed) -> None:
        for name, kind in (
            (billed.invoice["id"], "invoices"),
            (billed.correction["id"], "invoices"),
            (billed.note["id"], "credit_notes"),
        ):
            page = document(billed.one, name, "html", kind).text
            seen = Seen(page)
            assert not {"script", "img", "link", "iframe", "a", "svg", "object", "form"} & set(
                seen.elements
            ), name
            assert not {one for one in seen.attributes if one.startswith("on")} | (
                {"style", "src", "href"} & seen.attributes
            )
            assert "<script>alert(1)</script>" in seen.text
            assert "{{ 7*7 }}" in seen.text
            assert "⟨U+202E⟩gpj.exe⟨U+202C⟩ ⟨U+0007⟩" in seen.text
            assert not {"\u202e", "\u202c", "\u0007"} & set(page)

    def test_the_policy_of_a_page_lets_it_load_nothing_and_run_nothing(self, billed: Billed) -> None:
        answer = document(billed.one, billed.invoice["id"], "html")
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "unsafe" not in policy
        assert "sandbox" in policy.split("; ")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "private, no-store"
        assert not re.search(
            r"url\(|@import|https?://", re.search(r"<style>(.*?)</style>", answer.text, re.DOTALL)[1]
        )  # type: ignore[index]

    def test_others_see_no_document(self, office: Desk, billed: Billed) -> None:
        stranger = office.owner("nosy")
        for form in ("html", "csv", "parquet", "json"):
            path = f"/v1/invoices/{billed.invoice['id']}/document?format={form}"
            refused(stranger.get(path), 404, "invoice_not_found")
            path = f"/v1/credit_notes/{billed.note['id']}/document?format={form}"
            refused(stranger.get(path), 404, "credit_note_not_found")
        assert office.speaker("platform", "auditor").get(path).is_success
        refused(billed.one.get("/v1/invoices/none/document"), 404, "invoice_not_found")
        refused(
            billed.one.get(f"/v1/invoices/{billed.invoice['id']}/document?format=pdf"), 400, "invalid_field"
        )


def plain_number(text: str) -> str:
    whole, _, part = text.partition(".")
    return f"{int(whole):,}".replace(",", " ") + (f".{part}" if part else "")


def table_rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


class TestTables:
    def test_the_lines_of_an_invoice_add_up_in_both_forms(self, billed: Billed) -> None:
        lines = billed.invoice["bill"]["lines"]
        rows = table_rows(document(billed.one, billed.invoice["id"], "csv").content)
        kept = pq.read_table(pa.BufferReader(document(billed.one, billed.invoice["id"], "parquet").content))
        assert kept.schema.field("amount").type == pa.decimal128(38, 9)
        assert [row["amount"] for row in rows] == [line["amount"]["amount"] for line in lines]
        assert kept.column("amount").to_pylist() == [Decimal(line["amount"]["amount"]) for line in lines]
        assert sum(kept.column("change").to_pylist()) == Decimal(billed.invoice["bill"]["subtotal"]["amount"])
        assert [row["line"] for row in rows] == [str(n) for n in range(len(lines))]

    def test_no_cell_is_a_formula_and_every_amount_is_a_number(self, billed: Billed) -> None:
        for name, form in ((billed.invoice["id"], "invoices"), (billed.note["id"], "credit_notes")):
            for row in table_rows(document(billed.one, name, "csv", form).content):
                Decimal(row["amount"])
                texts = [
                    value for column, value in row.items() if column not in ("exact", "rounding", "change")
                ]
                assert not [
                    text for text in texts if text.lstrip()[:1] in ("=", "+", "-", "@") and not number(text)
                ]
        rows = table_rows(document(billed.one, billed.invoice["id"], "csv").content)
        assert rows[0]["description"] == "'" + HOSTILE
        assert rows[-2]["description"] == "'+Requests"
        kept = pq.read_table(pa.BufferReader(document(billed.one, billed.invoice["id"], "parquet").content))
        assert kept.column("description")[0].as_py() == HOSTILE

    def test_a_correction_in_a_table_says_what_it_changes(self, billed: Billed) -> None:
        rows = table_rows(document(billed.one, billed.correction["id"], "csv").content)
        assert {row["corrects"] for row in rows} == {billed.invoice["number"]}
        for row in rows:
            assert Decimal(row["amount"]) - Decimal(row["was"]) == Decimal(row["change"])


def number(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text) is not None


class TestExports:
    def test_a_period_of_all_customers_adds_up_to_what_was_booked(self, fresh: Desk) -> None:
        tenants = [fresh.customer(taxes=[{"name": "VAT", "share": "0.2"}]) for _ in range(5)]
        for number_, one in enumerate(tenants):
            fresh.use(one, {"tokens_out": 1_000 * (number_ + 1)})
        fresh.next_day()
        start = moment_text(fresh.now)
        fresh.run()
        invoices = fresh.operator.read("/v1/invoices")["items"]
        fresh.operator.made(
            f"/v1/invoices/{invoices[0]['id']}/credit_notes", {"amount": money("1.20"), "reason": "an outage"}
        )
        asked = {"from": start}
        got = exported(fresh.operator, "invoices", asked)
        assert {row["number"] for row in got} == {one["number"] for one in invoices}
        assert len(got) == 5
        lines = exported(fresh.operator, "invoice_lines", asked)
        assert len(lines) == sum(len(one["bill"]["lines"]) for one in invoices)
        notes = exported(fresh.operator, "credit_notes", asked)
        assert [(row["amount"], row["net"], row["tax"]) for row in notes] == [("1.20", "1.00", "0.20")]
        accounts = {a["account"]: Decimal(a["balance"]) for a in fresh.operator.read("/v1/accounts")["items"]}
        net = sum(Decimal(row["net"]) for row in got) - sum(Decimal(row["net"]) for row in notes)
        tax = sum(Decimal(row["tax"]) for row in got) - sum(Decimal(row["tax"]) for row in notes)
        assert (accounts["revenue.platform.USD"], accounts["tax.platform.USD"]) == (net, tax)
        assert sum(Decimal(row["change"]) for row in lines) == sum(Decimal(row["net"]) for row in got)
        # The period is half-open, and a position bounds what is known.
        last = max(row["issued_at"] for row in got)
        assert len(exported(fresh.operator, "invoices", asked | {"to": last})) == 4
        first = min(int(row["position"]) for row in got)
        assert len(exported(fresh.operator, "invoices", {"as_of": first})) == 1
        assert exported(fresh.operator, "invoices", {"as_of": first - 1}) == []

    def test_a_tenant_exports_its_own_alone(self, fresh: Desk) -> None:
        one, other = fresh.customer(), fresh.customer()
        fresh.next_day()
        fresh.run()
        assert {row["tenant"] for row in exported(one, "invoices", {})} == {one.tenant}
        assert {row["tenant"] for row in exported(fresh.operator, "invoices", {"tenant": other.tenant})} == {
            other.tenant
        }
        assert len(exported(fresh.operator, "invoices", {})) == 2
        refused(one.get(f"/v1/billing/exports/invoices?tenant={other.tenant}"), 403, "forbidden")
        refused(one.get("/v1/billing/exports/invoices?from=2026-02-30"), 400, "invalid_field")
        refused(one.get("/v1/billing/exports/invoices?zone=Mars/Base"), 400, "time_zone_unknown")
        refused(one.get("/v1/billing/exports/invoices?as_of=99999999"), 404, "position_not_found")

    def test_more_documents_than_a_page_are_all_there_once(
        self, fresh: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for _ in range(7):
            fresh.customer()
        fresh.next_day()
        fresh.run()
        whole = fresh.operator.get("/v1/billing/exports/invoice_lines?format=csv").content
        monkeypatch.setattr("ops.issued.issued_in.__defaults__", (2,))
        assert fresh.operator.get("/v1/billing/exports/invoice_lines?format=csv").content == whole
        data = fresh.operator.get("/v1/billing/exports/invoice_lines?format=parquet").content
        kept = pq.ParquetFile(pa.BufferReader(data))
        assert kept.metadata.num_row_groups == 4
        assert kept.read().num_rows == len(table_rows(whole)) == 7

    def test_nothing_is_a_table_with_its_columns(self, fresh: Desk) -> None:
        body = fresh.operator.get("/v1/billing/exports/invoices?format=parquet").content
        found = pq.read_table(pa.BufferReader(body))
        assert (found.num_rows, found.schema.field("owed").type) == (0, pa.decimal128(38, 9))
        assert table_rows(fresh.operator.get("/v1/billing/exports/invoices").content) == []


def exported(who: Speaker, table: str, asked: dict[str, Any]) -> list[dict[str, str]]:
    """Export a table as CSV."""
    answer = who.get(f"/v1/billing/exports/{table}", params=asked)
    assert answer.is_success, answer.text
    return table_rows(answer.content)


# --------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def printed(billed: Billed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Save the pages as files."""
    folder = tmp_path_factory.mktemp("pages")
    pages = {
        "invoice": (billed.invoice["id"], "invoices"),
        "correction": (billed.correction["id"], "invoices"),
        "credit_note": (billed.note["id"], "credit_notes"),
    }
    found = {}
    for name, (document_id, kind) in pages.items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(document(billed.one, document_id, "html", kind).text, encoding="utf-8")
    return found


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed here")
@pytest.mark.parametrize("name", ["invoice", "correction", "credit_note"])
def test_a_browser_prints_a_page_of_paper(printed: dict[str, Path], name: str, tmp_path: Path) -> None:
    page = printed[name]
    out = page.with_suffix(".pdf")
    browse(tmp_path, f"--print-to-pdf={out}", "--no-pdf-header-footer", page.as_uri())
    data = out.read_bytes()
    assert data.startswith(b"%PDF-")
    # A4 in points, as a browser rounds it.
    boxes = {
        tuple(round(float(n)) for n in box.split()) for box in re.findall(rb"/MediaBox\s*\[([^\]]*)\]", data)
    }
    assert boxes == {(0, 0, 595, 842)} or boxes == {(0, 0, 594, 841)} or boxes == {(0, 0, 596, 842)}
    browse(tmp_path, f"--screenshot={page.with_suffix('.png')}", "--window-size=900,1300", page.as_uri())


def browse(folder: Path, *words: str) -> None:
    """Run a browser without a window to its end."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--hide-scrollbars", f"--user-data-dir={folder / 'browser'}", *words,
    ]  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SOMA_")}
    subprocess.run(command, env=inherited, capture_output=True, timeout=180, check=True)
