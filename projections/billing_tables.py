"""Tables of billing for other programs: documents, their lines, credit notes and statements, row by row.

Documents are read in the order of their numbers, a few at a time, as they were issued: an export of a period as known
at a position is the same whenever it is asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from domain.billing.credit_notes import CreditNote
from domain.billing.documents import Issue, credit_note_document, invoice_document
from domain.billing.invoices import Invoice
from domain.billing.rating import read_exact
from domain.billing.statements import (
    Event,
    Frame,
    Movement,
    Owing,
    Subject,
    event_row,
    movement_row,
)
from domain.errors import LogDamagedError
from domain.log.records import decode
from domain.values import NANO, Money, print_nano
from ops.issued import issued_in
from ops.reads import LogReader, Stored
from ops.tables import Column, Row

TableName = Literal["invoices", "invoice_lines", "credit_notes"]

_PLACE = (Column("position", "integer"), Column("address"))
_HEAD = (
    Column("number"),
    Column("kind"),
    Column("tenant"),
    Column("currency"),
    Column("issued_at", "moment"),
)
_PERIOD = (Column("period_start", "moment"), Column("period_end", "moment"), Column("zone"))

INVOICES = (
    *_HEAD,
    Column("corrects"),
    *_PERIOD,
    Column("line_count", "integer"),
    Column("net", "decimal"),
    Column("tax", "decimal"),
    Column("rounding", "decimal"),
    Column("owed", "decimal"),
    Column("credits", "decimal"),
    Column("due", "decimal"),
    Column("due_at", "moment"),
    Column("known_at", "integer"),
    *_PLACE,
)
INVOICE_LINES = (
    *_HEAD,
    Column("corrects"),
    *_PERIOD,
    Column("line", "integer"),
    Column("charge"),
    Column("meter"),
    Column("description"),
    Column("quantity", "decimal"),
    Column("quantity_exact", "exact"),
    Column("exact", "exact"),
    Column("rounding", "exact"),
    Column("amount", "decimal"),
    Column("was", "decimal"),
    Column("change", "decimal"),
    Column("event_count", "integer"),
    Column("first_position", "integer"),
    Column("last_position", "integer"),
    Column("fingerprint"),
    *_PLACE,
)
CREDIT_NOTES = (
    *_HEAD,
    Column("invoice"),
    Column("amount", "decimal"),
    Column("net", "decimal"),
    Column("tax", "decimal"),
    Column("off_due", "decimal"),
    Column("returned", "decimal"),
    Column("target"),
    Column("reason"),
    *_PLACE,
)
MOVEMENTS = (
    Column("account"),
    Column("currency"),
    Column("position", "integer"),
    Column("leg", "integer"),
    Column("at", "moment"),
    Column("type"),
    Column("stream"),
    Column("counter"),
    Column("amount", "decimal"),
    Column("hold"),
    Column("balance", "decimal"),
    Column("held", "decimal"),
    Column("address"),
)
EVENTS = (
    Column("tenant"),
    Column("currency"),
    Column("position", "integer"),
    Column("at", "moment"),
    Column("kind"),
    Column("document"),
    Column("amount", "decimal"),
    Column("period_start", "moment"),
    Column("period_end", "moment"),
    Column("owed_change", "decimal"),
    Column("credit_change", "decimal"),
    Column("owed", "decimal"),
    Column("credit", "decimal"),
    Column("address"),
)


# --------------------------------------------------------------------------- rows


def _head(document: dict[str, Any]) -> dict[str, Any]:
    names = ("number", "kind", "tenant", "currency", "issued_at", "position", "address")
    return {name: document[name] for name in names}


def _invoice_head(document: dict[str, Any]) -> dict[str, Any]:
    period, corrects = document["period"], document["corrects"]
    return _head(document) | {
        "corrects": corrects and corrects["number"],
        "period_start": period["from"],
        "period_end": period["to"],
        "zone": period["zone"],
    }


def invoice_rows(document: dict[str, Any]) -> Iterator[Row]:
    """Write an invoice as its row: what it booked, so that net, tax and rounding add up to what it made owed."""
    currency = document["currency"]
    owed, tax = _nano(document["owed"], currency), _nano(document["tax"], currency)
    by_what = {item["what"]: item["amount"] for item in document["totals"]}
    rounding = _nano(by_what.get("rounding", "0"), currency)
    used = [_nano(item["amount"], currency) for item in document["totals"] if item["what"] == "credit"]
    yield _invoice_head(document) | {
        "line_count": len(document["lines"]),
        "net": print_nano(owed - tax - rounding, currency),
        "tax": document["tax"],
        "rounding": print_nano(rounding, currency),
        "owed": document["owed"],
        "credits": print_nano(-sum(used), currency),
        "due": document["due"],
        "due_at": document["due_at"],
        "known_at": document["known_at"],
    }


def _nano(amount: str, currency: str) -> int:
    return Money(amount, currency).nano


def line_rows(document: dict[str, Any]) -> Iterator[Row]:
    """Write the lines of an invoice; `change` is what a line adds to what earlier documents said."""
    head = _invoice_head(document)
    for line in document["lines"]:
        evidence = line["evidence"] or {}
        yield head | {
            "line": line["number"],
            "charge": line["charge"],
            "meter": line["meter"],
            "description": line["description"],
            "quantity": _nine_places(read_exact(line["quantity"])),
            "quantity_exact": line["quantity"],
            "exact": line["exact"],
            "rounding": line["rounding"],
            "amount": line["amount"],
            "was": line["was"],
            "change": line["amount"] if line["difference"] is None else line["difference"],
            "event_count": evidence.get("events", 0),
            "first_position": evidence.get("first"),
            "last_position": evidence.get("last"),
            "fingerprint": evidence.get("fingerprint"),
        }


def _nine_places(value: Fraction) -> str:
    """Print a number with nine places, rounded half to even."""
    nano = round(value * NANO)
    whole, part = divmod(abs(nano), NANO)
    return f"{'-' if nano < 0 else ''}{whole}.{part:09d}"


def note_rows(document: dict[str, Any]) -> Iterator[Row]:
    """Write a credit note as its row."""
    names = ("amount", "net", "tax", "off_due", "returned", "target", "reason")
    members = {name: document[name] for name in names}
    yield _head(document) | members | {"invoice": document["invoice"]["number"]}


def movement_rows(subject: Subject, movements: Iterable[Movement]) -> list[Row]:
    """Write movements of an account as rows."""
    beside = {"account": subject.account, "currency": subject.currency}
    rows = [movement_row(one, subject) | beside for one in movements]
    return [row | {"counter": " ".join(row["counter"])} for row in rows]


def event_rows(tenant: str, currency: str, steps: Iterable[tuple[Event, Owing]]) -> list[Row]:
    """Write events of a customer as rows."""
    beside = {"tenant": tenant, "currency": currency}
    return [event_row(event, after, currency) | beside for event, after in steps]


# --------------------------------------------------------------------------- documents


def issue_of(stored: Stored) -> Issue:
    """Read the record that issued a document."""
    return Issue(decode(stored.record), stored.position, bytes(stored.address))


async def invoice_documents(reader: LogReader, issues: Sequence[Issue]) -> list[dict[str, Any]]:
    """Write the documents of invoices, a correction beside what it corrects.

    Errors: log_damaged, unavailable.
    """
    corrected = sorted({one.record.data.corrects for one in issues if one.record.data.corrects})
    found = await _firsts(reader, Invoice.KIND, corrected)
    return [
        invoice_document(one, _found(found, one.record.data.corrects) if one.record.data.corrects else None)
        for one in issues
    ]


async def note_documents(reader: LogReader, issues: Sequence[Issue]) -> list[dict[str, Any]]:
    """Write the documents of credit notes, each beside its invoice and what was credited of that before.

    Errors: log_damaged, unavailable.
    """
    found = await _firsts(reader, Invoice.KIND, sorted({one.record.data.invoice for one in issues}))
    documents = []
    for one in issues:
        invoice = _found(found, one.record.data.invoice)
        then = await reader.state_at(f"{Invoice.KIND}/{invoice.id}", one.position)
        documents.append(credit_note_document(one, invoice, then.credited))
    return documents


async def _firsts(reader: LogReader, kind: str, names: Sequence[str]) -> dict[str, Issue]:
    stored = await reader.firsts([f"{kind}/{name}" for name in names]) if names else []
    return {issue.id: issue for issue in map(issue_of, stored)}


def _found(issues: dict[str, Issue], name: str) -> Issue:
    if name not in issues:
        raise LogDamagedError(f"a document is about {name}, which was never issued", invoice=name)
    return issues[name]


# --------------------------------------------------------------------------- exports


class Exported(NamedTuple):
    """How a table is exported: of which kind of document, in which columns, and its rows."""

    kind: str
    columns: Sequence[Column]
    documents: Callable[[LogReader, Sequence[Issue]], Any]
    rows: Callable[[dict[str, Any]], Iterator[Row]]


EXPORTS: dict[str, Exported] = {
    "invoices": Exported(Invoice.KIND, INVOICES, invoice_documents, invoice_rows),
    "invoice_lines": Exported(Invoice.KIND, INVOICE_LINES, invoice_documents, line_rows),
    "credit_notes": Exported(CreditNote.KIND, CREDIT_NOTES, note_documents, note_rows),
}


async def exported_rows(
    reader: LogReader, exported: Exported, frame: Frame, tenant: str | None
) -> AsyncIterator[list[Row]]:
    """Give the rows of all documents issued in a period, as known at a position, a few documents at a time.

    Cost:   memory for one page of documents, whatever the period.
    Errors: log_damaged, unavailable.
    """
    async for page in issued_in(reader.pool, exported.kind, frame, tenant):
        documents = await exported.documents(reader, [issue_of(one) for one in page])
        yield [row for document in documents for row in exported.rows(document)]
