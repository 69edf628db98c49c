"""Documents: a correction beside what it corrects, line by line, whatever came, went or stood twice."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from domain.billing.bills import Coupon, Tax, Terms, bill
from domain.billing.documents import Issue, invoice_document
from domain.billing.invoices import Invoice
from domain.billing.prices import PerUnit
from domain.billing.rating import Charge, rate
from domain.canonical import encode_record
from domain.log.records import Record
from domain.values import Money
from projections.billing_tables import invoice_rows, line_rows

AT = "2026-04-01T10:00:00.000000Z"
TERMS = Terms(
    "USD", coupons=[Coupon("ten", share="0.1"), Coupon("ten", share="0.05")], taxes=[Tax("VAT", "0.19")]
)
# Charges by name, some of a name twice, each with a quantity.
used = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 10**7)), max_size=7)


def issue(lines: list[tuple[str, int]], before: Issue | None = None) -> Issue:
    """Issue an invoice, or a correction of one."""
    price = PerUnit(price="0.037", per="1000")
    rated = [rate(Charge(name, "requests", price, description=name), Fraction(n), "USD") for name, n in lines]
    made = bill(rated, TERMS, AT)
    was = before.record.data.bill if before else None
    owed = made.net.nano - (was.net.nano if was else 0)
    tax = sum(i.amount.nano for i in made.taxes) - (sum(i.amount.nano for i in was.taxes) if was else 0)
    rounding = 0 if was else made.rounding.nano
    number = "INV-a-000002" if before else "INV-a-000001"
    data = Invoice.Issued(
        number=number, kind="correction" if before else "invoice", corrects=before.id if before else None,
        period_start="2026-03-01T00:00:00.000000Z", period_end=AT, zone="UTC", known_at=7, sheets=[], terms=TERMS,
        bill=made, evidence=[None] * len(made.lines), owed=Money.of(owed + tax + rounding, "USD"),
        tax=Money.of(tax, "USD"), due=Money.of(max(0, owed + tax + rounding), "USD"), due_at=AT, money=[],
    )  # fmt: skip
    record = Record("x", AT, None, None, data, None, 1, f"invoice/{number.lower()}", "a", "invoice.issued", 1)
    return Issue(record, 7, bytes(64))


@given(used, used)
def test_every_line_is_told_once_and_the_differences_add_up(was, now):
    before = issue(was)
    after = invoice_document(issue(now, before), before)
    lines = after["lines"]
    assert [line["charge"] for line in lines if line["number"] is not None] == [name for name, _ in now]
    for line in lines:
        assert Decimal(line["amount"]) - Decimal(line["was"]) == Decimal(line["difference"])
    earlier = invoice_document(before)
    assert sum(Decimal(line["was"]) for line in lines) == sum(
        Decimal(line["amount"]) for line in earlier["lines"]
    )
    totals = {item["what"]: item for item in after["totals"]}
    assert totals["subtotal"]["difference"] == str(
        Decimal(totals["subtotal"]["amount"]) - Decimal(totals["subtotal"]["was"])
    )
    assert Decimal(totals["total"]["difference"]) == Decimal(after["owed"])
    assert encode_record(after)


@given(used)
def test_the_totals_of_an_invoice_lead_from_its_lines_to_what_is_due(lines):
    made = invoice_document(issue(lines))
    by_what: dict[str, Decimal] = {}
    for item in made["totals"]:
        by_what[item["what"]] = by_what.get(item["what"], Decimal(0)) + Decimal(item["amount"])
    assert by_what["subtotal"] == sum(Decimal(line["amount"]) for line in made["lines"])
    assert by_what["subtotal"] + by_what["discount"] == by_what["net"]
    assert by_what["net"] + by_what["tax"] == by_what["total"]
    assert by_what["total"] + by_what.get("credit", Decimal(0)) + by_what["rounding"] == by_what["due"]
    assert by_what["due"] == Decimal(made["due"])


@given(used, used)
def test_the_changes_of_all_documents_add_up_to_what_is_billed_now(was, now):
    before = issue(was)
    first, second = invoice_document(before), invoice_document(issue(now, before), before)
    changes = [Decimal(row["change"]) for made in (first, second) for row in line_rows(made)]
    assert sum(changes) == sum(Decimal(line["amount"]) for line in second["lines"])
    for made in (first, second):
        (row,) = invoice_rows(made)
        assert sum(Decimal(row[name]) for name in ("net", "tax", "rounding")) == Decimal(row["owed"])


def test_a_step_says_for_how_many_units_its_price_is():
    made = invoice_document(issue([("a", 1_500)]))
    (step,) = made["lines"][0]["steps"]
    assert (step["what"], step["quantity"], step["price"], step["per"]) == ("unit", "1500", "0.037", "1000")
