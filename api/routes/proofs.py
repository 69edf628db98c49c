"""Proofs of invoices over HTTP: one line with everything that an auditor needs to check it without us."""

from __future__ import annotations

import re

from fastapi import APIRouter
from fastapi.responses import Response

from api.http import Cursor, Id, JsonRoute, Limit, Open, Who, answers, before_of
from api.routes.billing import own
from api.routes.invoices import line_number
from domain.billing.invoices import Invoice
from domain.billing.line_proofs import print_page
from domain.errors import InvalidCursorError, InvoiceNotFoundError
from projections.line_proofs import prove_line

router = APIRouter(prefix="/v1", tags=["billing"], route_class=JsonRoute)

_PLACE = re.compile(r"(0|[1-9][0-9]{0,17}):([1-9][0-9]{0,17})", re.ASCII)


@router.get(
    "/invoices/{invoice_id}/lines/{line}/proof",
    responses=answers({"$ref": "#/components/schemas/LineProof"}),
)
async def show_line_proof(
    invoice_id: Id, line: Id, opened: Open, who: Who, limit: Limit = 100, cursor: Cursor = None
) -> Response:
    """Prove a line (0 is the first): its readings, its prices and the invoice, each record up to a signed checkpoint.

    A page at a time, all under the checkpoint of the first. The bytes of the pages are what `soma audit line` checks,
    offline and with the log's key alone.
    """
    invoice = await own(opened, who, Invoice, invoice_id, InvoiceNotFoundError)
    number = line_number(invoice, line)
    after, size = _place(cursor)
    page = await prove_line(opened, invoice, number, after=after, size=size, limit=limit)
    return Response(print_page(page), media_type="application/json")


def _place(cursor: str | None) -> tuple[int, int | None]:
    """Read behind which position a page starts, and under the checkpoint of which size.

    Errors: invalid_cursor.
    """
    text = before_of(cursor)
    if text is None:
        return -1, None
    found = _PLACE.fullmatch(text)
    if found is None:
        raise InvalidCursorError
    return int(found[1]), int(found[2])
