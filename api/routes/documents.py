"""Documents over HTTP: invoices, corrections and credit notes to print, statements, and tables for the accountant.

`format` says in which form, in the address itself, so that a link leads to the same thing from everywhere; there is no
second way by headers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import date, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response, StreamingResponse

from api.documents import HTML_TYPE, PRIVATE, page_response, print_page
from api.http import READ_PROBLEMS, WRITE_PROBLEMS, AsOf, Id, JsonRoute, Open, Who, object_of, size_as_of
from api.routes.billing import WhoseTenant, own
from api.routes.money import SEE_ALL_MONEY
from domain.billing.credit_notes import CreditNote
from domain.billing.customers import Customer
from domain.billing.invoices import Invoice
from domain.billing.periods import day_start, zone_of
from domain.billing.statements import (
    MOVEMENTS_MAX,
    Frame,
    Subject,
    account_statement,
    currency_part,
    customer_statement,
    running,
    seal_account,
    seal_customer,
)
from domain.canonical import encode_record
from domain.errors import (
    AccountNotFoundError,
    CreditNoteNotFoundError,
    CustomerNotFoundError,
    ForbiddenError,
    InvalidFieldError,
    InvoiceNotFoundError,
    PositionNotFoundError,
    StatementTooLargeError,
)
from domain.values import moment_text
from ops import account_history as history
from ops.runtime import Runtime
from ops.tables import CsvTable, ParquetTable, Row, Table, table_of
from projections.billing_tables import (
    CREDIT_NOTES,
    EVENTS,
    EXPORTS,
    INVOICE_LINES,
    MOVEMENTS,
    TableName,
    event_rows,
    exported_rows,
    invoice_documents,
    issue_of,
    line_rows,
    movement_rows,
    note_documents,
    note_rows,
)
from projections.columns_billing import owner_of

router = APIRouter(prefix="/v1", tags=["billing"], route_class=JsonRoute)

DocumentFormat = Annotated[
    Literal["html", "csv", "parquet", "json"],
    Query(alias="format", description="A page to print, a table, or the whole document."),
]
StatementFormat = Annotated[
    Literal["json", "html", "csv"],
    Query(
        alias="format", description="The canonical document, a page to print, or a table of its movements."
    ),
]
TableFormat = Annotated[Literal["csv", "parquet"], Query(alias="format")]
_MOMENT = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?([Zz]|[+-][0-9]{2}:[0-9]{2}))?$"
From = Annotated[
    str | None,
    Query(
        alias="from",
        max_length=40,
        pattern=_MOMENT,
        description="Where it begins: an RFC 3339 time, or a day that begins in `zone`. From the beginning without it.",
    ),
]
To = Annotated[
    str | None,
    Query(alias="to", max_length=40, pattern=_MOMENT, description="Where it ends, itself not included."),
]
Zone = Annotated[str, Query(max_length=64, description="A zone of the IANA database.")]
OwnZone = Annotated[
    str | None,
    Query(
        alias="zone", max_length=64, description="A zone of the IANA database; the customer's own without it."
    ),
]

_MOVED = object_of(position="integer", at="string", address="string")
_STANDING = object_of(balance="string", held="string")
_FRAME = {
    "schema": "string",
    "as_of": "integer",
    "from": ["string", "null"],
    "to": ["string", "null"],
    "zone": "string",
}
ACCOUNT_STATEMENT = object_of(
    **_FRAME,
    account="string",
    currency="string",
    side="string",
    opening=_STANDING,
    closing=_STANDING,
    debits="string",
    credits="string",
    movement_count="integer",
    movements={"type": "array", "items": _MOVED},
)
CUSTOMER_STATEMENT = object_of(
    **_FRAME,
    tenant="string",
    currencies={
        "type": "array",
        "items": object_of(currency="string", opening="object", closing="object", movements="array"),
    },
)
DOCUMENT = object_of(
    schema="string",
    id="string",
    number="string",
    kind="string",
    tenant="string",
    currency="string",
    issued_at="string",
    position="integer",
    address="string",
)
_FILE = {"schema": {"type": "string", "format": "binary"}}
_TABLES = {CsvTable.media_type: {"schema": {"type": "string"}}, ParquetTable.media_type: _FILE}
_HTML = {HTML_TYPE: {"schema": {"type": "string"}}}


def _sends(content: dict[str, Any], description: str, **headers: str) -> dict[int | str, dict[str, Any]]:
    named = {name: {"description": said, "schema": {"type": "string"}} for name, said in headers.items()}
    answer: dict[str, Any] = {"description": description, "content": content}
    return {**READ_PROBLEMS, 422: WRITE_PROBLEMS[422], 200: answer | ({"headers": named} if named else {})}


def _document(schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return _sends({"application/json": {"schema": schema}, **_HTML, **_TABLES}, "The document.")


def _statement(schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    csv = {CsvTable.media_type: _TABLES[CsvTable.media_type]}
    content = {"application/json": {"schema": schema}, **_HTML, **csv}
    return _sends(content, "The statement.", ETag="The address of the JSON document, in quotation marks.")


# --------------------------------------------------------------------------- documents


@router.get(
    "/invoices/{invoice_id}/document", responses=_document(DOCUMENT), response_class=StreamingResponse
)
async def get_invoice_document(
    invoice_id: Id, opened: Open, who: Who, file_format: DocumentFormat = "html"
) -> Response:
    """Show an invoice or a correction as it was issued: to print, as a table of its lines, or as data.

    It is made of the record that issued it, so it never changes; what was paid later is in the customer's statement.
    """
    await own(opened, who, Invoice, invoice_id, InvoiceNotFoundError)
    (stored,) = await opened.reader.firsts([f"{Invoice.KIND}/{invoice_id}"])
    (document,) = await invoice_documents(opened.reader, [issue_of(stored)])
    if file_format == "html":
        return page_response(print_page("invoice.html", document), invoice_id)
    if file_format == "json":
        return _json(encode_record(document))
    return _table(table_of(file_format, INVOICE_LINES), list(line_rows(document)), invoice_id)


@router.get(
    "/credit_notes/{credit_note_id}/document", responses=_document(DOCUMENT), response_class=StreamingResponse
)
async def get_note_document(
    credit_note_id: Id, opened: Open, who: Who, file_format: DocumentFormat = "html"
) -> Response:
    """Show a credit note as it was issued, with what was billed before it and after it."""
    await own(opened, who, CreditNote, credit_note_id, CreditNoteNotFoundError)
    (stored,) = await opened.reader.firsts([f"{CreditNote.KIND}/{credit_note_id}"])
    (document,) = await note_documents(opened.reader, [issue_of(stored)])
    if file_format == "html":
        return page_response(print_page("credit_note.html", document), credit_note_id)
    if file_format == "json":
        return _json(encode_record(document))
    return _table(table_of(file_format, CREDIT_NOTES), list(note_rows(document)), credit_note_id)


def _json(body: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(body, headers={**PRIVATE, **(headers or {})}, media_type="application/json")


def _file_headers(table: Table, name: str) -> dict[str, str]:
    return {**PRIVATE, "Content-Disposition": f'attachment; filename="{name}.{table.suffix}"'}


def _table(table: Table, rows: list[Row], name: str) -> Response:
    body = table.head() + table.rows(rows) + table.end()
    return Response(body, headers=_file_headers(table, name), media_type=table.media_type)


# --------------------------------------------------------------------------- exports


@router.get(
    "/billing/exports/{table}",
    responses=_sends(_TABLES, "The table, as it is read."),
    response_class=StreamingResponse,
)
async def export_table(
    table: TableName,
    opened: Open,
    who: Who,
    start: From = None,
    end: To = None,
    zone: Zone = "UTC",
    as_of: AsOf = None,
    tenant: WhoseTenant = None,
    file_format: TableFormat = "csv",
) -> Response:
    """Send all documents issued in a period, or their lines, as a table: of one's tenant, or of all tenants.

    It is streamed in the order of numbers; a file that was cut off ends the connection early.
    """
    if not who.roles & SEE_ALL_MONEY:
        if tenant not in (None, who.tenant):
            raise ForbiddenError("only who keeps the books sees those of other tenants")
        tenant = who.tenant
    frame = await _frame(opened, start, end, zone, as_of)
    exported = EXPORTS[table]
    pages = exported_rows(opened.reader, exported, frame, tenant)
    name = "_".join([table, *([tenant] if tenant else []), *(one[:10] for one in (start, end) if one)])
    return await _streamed(table_of(file_format, exported.columns), pages, name)


async def _streamed(table: Table, pages: AsyncIterator[list[Row]], name: str) -> Response:
    """Send a table page by page; what fails before the first page is still a problem and no broken file."""
    first: list[Row] = await anext(pages, [])

    async def parts() -> AsyncIterator[bytes]:
        yield await asyncio.to_thread(lambda: table.head() + table.rows(first))
        async for page in pages:
            yield await asyncio.to_thread(table.rows, page)
        yield table.end()

    return StreamingResponse(parts(), headers=_file_headers(table, name), media_type=table.media_type)


# --------------------------------------------------------------------------- what a statement is about


async def _frame(opened: Runtime, start: str | None, end: str | None, zone: str, as_of: str | None) -> Frame:
    """Read what a statement is about in time.

    Errors: invalid_as_of, invalid_field, position_not_found, time_zone_unknown.
    """
    return _framed(await _position(opened, as_of), start, end, zone)


def _framed(position: int, start: str | None, end: str | None, zone: str) -> Frame:
    zone_of(zone)
    frame = Frame(
        position,
        None if start is None else _moment("from", start, zone),
        None if end is None else _moment("to", end, zone),
        zone,
    )
    if frame.start is not None and frame.end is not None and frame.end < frame.start:
        raise InvalidFieldError("to: it lies before `from`", **{"from": frame.start, "to": frame.end})
    return frame


async def _position(opened: Runtime, as_of: str | None) -> int:
    """Give the last position that counts. One the log has not come to is none: its statement could still change."""
    size = await opened.reader.size()
    if as_of is not None and as_of.isascii() and as_of.isdigit() and int(as_of) >= size:
        raise PositionNotFoundError("the log has not come so far", position=int(as_of), size=size)
    then = await size_as_of(opened, as_of)
    return (size if then is None else then) - 1


def _moment(name: str, text: str, zone: str) -> str:
    try:
        if len(text) == 10:
            return moment_text(day_start(date.fromisoformat(text), zone))
        return moment_text(datetime.fromisoformat(text.upper()))
    except (ValueError, OverflowError) as error:
        raise InvalidFieldError(f"{name}: {text!r} is no moment", field=name, got=text) from error


async def _refuse_large(
    opened: Runtime, whose: history.Account | history.Customer, within: history.Range, count: int
) -> None:
    """Refuse what one document cannot hold, and say until when it could.

    Errors: statement_too_large.
    """
    if count <= MOVEMENTS_MAX:
        return
    until = await history.moment_at(opened.reader.pool, whose, within, MOVEMENTS_MAX)
    raise StatementTooLargeError(
        f"{count} movements are more than {MOVEMENTS_MAX}; up to {until} they fit, and CSV has no limit",
        movements=count,
        movements_max=MOVEMENTS_MAX,
        to=until,
    )


# --------------------------------------------------------------------------- statements


@router.get(
    "/accounts/{account}/statement", responses=_statement(ACCOUNT_STATEMENT), response_class=StreamingResponse
)
async def get_account_statement(
    account: Id,
    opened: Open,
    who: Who,
    start: From = None,
    end: To = None,
    zone: Zone = "UTC",
    as_of: AsOf = None,
    file_format: StatementFormat = "json",
) -> Response:
    """Show what happened to an account in a period, as known at a position, with what it opened and closed at.

    The same position gives the same bytes for ever; `ETag` is their address.
    """
    if not who.roles & SEE_ALL_MONEY and owner_of(account)[1] != who.tenant:
        raise AccountNotFoundError(account=account)
    frame = await _frame(opened, start, end, zone, as_of)
    balance = await opened.reader.balance(account, frame.as_of + 1)
    subject = Subject(account, balance.currency, balance.side)
    pool, whose = opened.reader.pool, history.Account(account)
    within = await history.range_of(pool, whose, frame.start, frame.end, frame.as_of + 1)
    if file_format == "csv":
        found = history.movements(pool, account, within)
        return await _streamed(
            CsvTable(MOVEMENTS), _rows(found, lambda page: movement_rows(subject, page)), account
        )
    totals = await history.sums(pool, account, within)
    await _refuse_large(opened, whose, within, totals.movement_count)
    opening = await history.standing(pool, account, within.start)
    closing = await history.standing(pool, account, within.end)
    moved = [one async for page in history.movements(pool, account, within) for one in page]
    document = await asyncio.to_thread(account_statement, subject, frame, opening, closing, totals, moved)
    return await _sealed(document, seal_account, "account_statement.html", account, file_format)


@router.get(
    "/customers/{tenant}/statement",
    responses=_statement(CUSTOMER_STATEMENT),
    response_class=StreamingResponse,
)
async def get_customer_statement(
    tenant: Id,
    opened: Open,
    who: Who,
    start: From = None,
    end: To = None,
    zone: OwnZone = None,
    as_of: AsOf = None,
    file_format: StatementFormat = "json",
) -> Response:
    """Show what a customer was billed, credited and paid in a period, and what it owed before and after it.

    The same position gives the same bytes for ever; `ETag` is their address.
    """
    await own(opened, who, Customer, tenant, CustomerNotFoundError)
    position = await _position(opened, as_of)
    customer = await own(opened, who, Customer, tenant, CustomerNotFoundError, str(position))
    frame = _framed(position, start, end, zone or customer.agreed.zone)
    currencies = await _currencies(opened, customer, frame)
    if file_format == "csv":
        return await _streamed(CsvTable(EVENTS), _customer_rows(opened, tenant, currencies, frame), tenant)
    parts = [await _part(opened, tenant, currency, frame) for currency in currencies]
    document = customer_statement(tenant, frame, parts)
    return await _sealed(document, seal_customer, "customer_statement.html", tenant, file_format)


async def _currencies(opened: Runtime, customer: Customer, frame: Frame) -> list[str]:
    """Name the currencies a customer was billed in, or had credit in, until then."""
    found = {customer.agreed.currency}
    for purpose in ("receivable", "credits"):
        named = await opened.reader.balances(f"{purpose}.{customer.id}.", frame.as_of + 1)
        found |= {balance.currency for balance in named}
    return sorted(found)


async def _part(opened: Runtime, tenant: str, currency: str, frame: Frame) -> dict[str, Any]:
    pool, whose = opened.reader.pool, history.Customer(tenant, currency)
    within = await history.range_of(pool, whose, frame.start, frame.end, frame.as_of + 1)
    await _refuse_large(opened, whose, within, await history.event_count(pool, whose, within))
    opening = await history.owing(pool, whose, within.start)
    closing = await history.owing(pool, whose, within.end)
    found = [one async for page in history.events(pool, whose, within) for one in page]
    return await asyncio.to_thread(currency_part, currency, opening, closing, found)


async def _customer_rows(
    opened: Runtime, tenant: str, currencies: list[str], frame: Frame
) -> AsyncIterator[list[Row]]:
    pool = opened.reader.pool
    for currency in currencies:
        whose = history.Customer(tenant, currency)
        within = await history.range_of(pool, whose, frame.start, frame.end, frame.as_of + 1)
        after = await history.owing(pool, whose, within.start)
        async for page in history.events(pool, whose, within):
            steps = list(running(after, page))
            after = steps[-1][1]
            yield event_rows(tenant, currency, steps)


async def _rows(pages: AsyncIterator[Any], written: Callable[[Any], list[Row]]) -> AsyncIterator[list[Row]]:
    async for page in pages:
        yield written(page)


async def _sealed(
    document: dict[str, Any],
    seal: Callable[[dict[str, Any]], tuple[bytes, str]],
    template: str,
    name: str,
    file_format: str,
) -> Response:
    """Send a statement with its address; large ones are put together beside the loop."""
    body, address = await asyncio.to_thread(seal, document)
    if file_format == "html":
        page = await asyncio.to_thread(print_page, template, document, address=address)
        return page_response(page, f"statement_{name}")
    return _json(body, {"ETag": f'"{address}"'})
