"""Invoices over HTTP: issued, corrected, paid and credited, each line down to its records; and payouts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import Response

from api.http import (
    AsOf,
    Cursor,
    Id,
    JsonRoute,
    Limit,
    Open,
    Sent,
    Who,
    act,
    answers,
    before_of,
    body_of,
    completed,
    json_response,
    lists,
    object_of,
    page,
    reads,
    shows,
)
from api.routes.billing import WhoseTenant, list_own, load, own, show_own
from domain.billing import credit_notes, invoices, payouts
from domain.billing.credit_notes import CreditInvoice, CreditNote
from domain.billing.invoices import CorrectInvoice, Invoice, InvoiceStep, IssueInvoice
from domain.billing.payouts import ConfirmPayout, FailPayout, Payout, RequestPayout
from domain.errors import (
    CreditNoteNotFoundError,
    InvalidCursorError,
    InvoiceLineNotFoundError,
    InvoiceNotFoundError,
    PayoutNotFoundError,
)
from ops.usage_totals import Reading, usage_readings
from projections.billing_counts import NOTHING, count_again, count_next, drawn_again

router = APIRouter(prefix="/v1", tags=["billing"], route_class=JsonRoute)

NoteBody = body_of(CreditInvoice, "invoice_id")
ConfirmBody = body_of(ConfirmPayout, "payout_id")
FailBody = body_of(FailPayout, "payout_id")

READING = object_of(
    position="integer",
    version="integer",
    stream="string",
    address="string",
    reading={"type": "object", "description": "The data of the record."},
)
EVIDENCE = {"anyOf": [{"$ref": "#/components/schemas/Evidence"}, {"type": "null"}]}
LINE = object_of(
    items={"type": "array", "items": READING},
    next=["string", "null"],
    known_at="integer",
    line={"$ref": "#/components/schemas/Line"},
    evidence=EVIDENCE,
)

# --------------------------------------------------------------------------- invoices


@router.post("/invoices", status_code=201, responses=shows(Invoice, 201))
async def issue(command: IssueInvoice, opened: Open, who: Who, sent: Sent) -> Response:
    """Bill a customer's next period, once it is over and its grace has passed."""

    async def gather() -> dict[str, Any]:
        counted = await count_next(opened.reader, [command.tenant])
        return {"counted": counted.get(command.tenant, NOTHING)}

    return await act(opened, invoices.issue_invoice, command, who, sent, status=201, gather=gather)


@router.get("/invoices", responses=lists(Invoice))
async def list_invoices(
    opened: Open,
    who: Who,
    limit: Limit = 100,
    cursor: Cursor = None,
    tenant: WhoseTenant = None,
    status: Annotated[Literal["issued", "paid", "overdue"] | None, Query()] = None,
) -> Response:
    """List invoices and corrections, by number, the latest first."""
    return await list_own(opened, who, Invoice.KIND, tenant, limit, cursor, status=status)


@router.get("/invoices/{invoice_id}", responses=reads(Invoice))
async def get_invoice(invoice_id: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show an invoice."""
    return await show_own(opened, who, Invoice, invoice_id, InvoiceNotFoundError, as_of)


@router.post("/invoices/{invoice_id}/correct", status_code=201, responses=shows(Invoice, 201))
async def correct(invoice_id: Id, opened: Open, who: Who, sent: Sent) -> Response:
    """Enter a billed period anew with everything known now; the answer is the correction."""

    async def gather() -> dict[str, Any]:
        before = await load(opened, Invoice, invoice_id)
        return {"counted": NOTHING if before is None else await count_again(opened.reader, before)}

    command = CorrectInvoice(invoice_id=invoice_id)
    return await act(opened, invoices.correct_invoice, command, who, sent, status=201, gather=gather)


@router.post("/invoices/{invoice_id}/pay", responses=shows(Invoice))
async def pay(invoice_id: Id, opened: Open, who: Who, sent: Sent) -> Response:
    """Pay what is due from the customer's wallet."""
    return await act(opened, invoices.pay_invoice, InvoiceStep(invoice_id=invoice_id), who, sent)


@router.get("/invoices/{invoice_id}/lines/{line}/records", responses=answers(LINE))
async def list_line_records(
    invoice_id: Id, line: Id, opened: Open, who: Who, limit: Limit = 100, cursor: Cursor = None
) -> Response:
    """List the records a line counts (0 is the first line), in the order of the log, each with its address.

    `/v1/log/proofs` proves each of them; their number and the sum of their addresses are the line's evidence.
    """
    invoice = await own(opened, who, Invoice, invoice_id, InvoiceNotFoundError)
    number = line_number(invoice, line)
    drawn = await drawn_again(opened.reader, invoice)
    found = await usage_readings(
        opened.reader.pool,
        invoice.tenant,
        drawn.sources[number],
        bound=invoice.known_at,
        after=_after(cursor),
        limit=limit + 1,
    )
    shown = page([_shown(one) for one in found], limit, "position")
    beside = {"line": invoice.made.lines[number], "evidence": invoice.evidence[number]}
    return json_response(shown | {"known_at": invoice.known_at} | msgspec.to_builtins(beside))


def line_number(invoice: Invoice, line: str) -> int:
    """Read the number of a line of an invoice; 0 is the first.

    Errors: invoice_line_not_found.
    """
    count = len(invoice.made.lines)
    if not (line.isascii() and line.isdigit() and len(line) < 6 and int(line) < count):
        raise InvoiceLineNotFoundError(invoice=invoice.id, line=line, line_count=count)
    return int(line)


def _after(cursor: str | None) -> int:
    text = before_of(cursor)
    if text is None:
        return -1
    if not (text.isdigit() and len(text) < 19):
        raise InvalidCursorError
    return int(text)


def _shown(one: Reading) -> dict[str, Any]:
    return {
        "position": one.position,
        "version": one.version,
        "stream": one.stream,
        "address": one.address,
        "reading": one.data,
    }


# --------------------------------------------------------------------------- credit notes


@router.post("/invoices/{invoice_id}/credit_notes", status_code=201, responses=shows(CreditNote, 201))
async def credit(invoice_id: Id, body: NoteBody, opened: Open, who: Who, sent: Sent) -> Response:  # type: ignore[valid-type]
    """Take a part of an invoice back."""
    command = completed(CreditInvoice, body, invoice_id=invoice_id)
    return await act(opened, credit_notes.credit_invoice, command, who, sent, status=201)


@router.get("/credit_notes", responses=lists(CreditNote))
async def list_notes(
    opened: Open,
    who: Who,
    limit: Limit = 100,
    cursor: Cursor = None,
    tenant: WhoseTenant = None,
    invoice: Annotated[str | None, Query(max_length=200, description="The invoice they are about.")] = None,
) -> Response:
    """List credit notes, by number, the latest first."""
    return await list_own(opened, who, CreditNote.KIND, tenant, limit, cursor, owner=invoice)


@router.get("/credit_notes/{credit_note_id}", responses=reads(CreditNote))
async def get_note(credit_note_id: Id, opened: Open, who: Who) -> Response:
    """Show a credit note."""
    return await show_own(opened, who, CreditNote, credit_note_id, CreditNoteNotFoundError)


# --------------------------------------------------------------------------- payouts


@router.post("/payouts", status_code=201, responses=shows(Payout, 201))
async def request_payout(command: RequestPayout, opened: Open, who: Who, sent: Sent) -> Response:
    """Ask for earnings of the caller's tenant to be paid out; they are reserved at once."""
    return await act(opened, payouts.request_payout, command, who, sent, status=201)


@router.get("/payouts", responses=lists(Payout))
async def list_payouts(
    opened: Open,
    who: Who,
    limit: Limit = 100,
    cursor: Cursor = None,
    tenant: WhoseTenant = None,
    status: Annotated[Literal["requested", "paid", "failed"] | None, Query()] = None,
) -> Response:
    """List payouts, the newest first."""
    return await list_own(opened, who, Payout.KIND, tenant, limit, cursor, status=status)


@router.get("/payouts/{payout_id}", responses=reads(Payout))
async def get_payout(payout_id: Id, opened: Open, who: Who) -> Response:
    """Show a payout."""
    return await show_own(opened, who, Payout, payout_id, PayoutNotFoundError)


@router.post("/payouts/{payout_id}/confirm", responses=shows(Payout))
async def confirm_payout(payout_id: Id, body: ConfirmBody, opened: Open, who: Who, sent: Sent) -> Response:  # type: ignore[valid-type]
    """Say that the money left."""
    return await act(
        opened, payouts.confirm_payout, completed(ConfirmPayout, body, payout_id=payout_id), who, sent
    )


@router.post("/payouts/{payout_id}/fail", responses=shows(Payout))
async def fail_payout(payout_id: Id, body: FailBody, opened: Open, who: Who, sent: Sent) -> Response:  # type: ignore[valid-type]
    """Say that the money did not leave; it is among the tenant's earnings again."""
    return await act(opened, payouts.fail_payout, completed(FailPayout, body, payout_id=payout_id), who, sent)
