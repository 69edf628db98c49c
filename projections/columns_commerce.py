"""Commerce in columns: what was sold, billed, credited and paid out, by the events that say so.

What a sale's later events leave out - whose persona, which currency - is known from its first event, and the lines a
correction takes back from the document it corrects; both are read with a batch, so every row stands for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from domain.billing.credit_notes import CreditNote
from domain.billing.customers import Customer
from domain.billing.grants import Grant
from domain.billing.invoices import Invoice
from domain.billing.metering import Evidence
from domain.billing.payouts import Payout
from domain.billing.rating import Line, read_exact
from domain.errors import DecimalOverflowError, LedgerError, LogDamagedError
from domain.log.records import Event, decode
from domain.rental.purchases import Purchase
from domain.rental.rentals import Rental
from domain.rental.settling import Sale, held_by
from domain.rental.subscriptions import Subscription
from domain.values import NANO, Money, moment_of
from projections.columns import (
    ADDRESS,
    DECIMAL,
    DECIMAL_NANO_MAX,
    MOMENT,
    TEXT,
    U64,
    Earlier,
    Reading,
    Rows,
    Shape,
    Tables,
    Version,
    decimals,
    kind_of,
    moments,
    nano_of,
    schema_of,
    table,
)

COMMERCE_ROWS: Reading[msgspec.Raw] = Reading(msgspec.Raw, msgspec.Raw(b"{}"))

U32 = pa.uint32()
WORDS = pa.list_(pa.field("item", TEXT, nullable=False))
_WHO = {"position": U64, "address": ADDRESS, "at": MOMENT, "tenant": TEXT}
_WHAT = {**_WHO, "event": TEXT, "version": U64}


def _shape(name: str, *columns: dict[str, Any], nullable: str = "") -> Shape:
    """Write a table down; what may be null is named."""
    types = {key: kind for part in columns for key, kind in part.items()}
    return Shape(name, pa.schema([pa.field(n, t, nullable=n in nullable.split()) for n, t in types.items()]))


CUSTOMER_EVENTS = _shape(
    "customer_events",
    _WHAT,
    dict.fromkeys(("book", "currency", "zone", "every", "anchor"), TEXT),
    {"billed_to": MOMENT, "reference": TEXT},
    nullable="billed_to",
)
INVOICES = Shape(
    "invoices",
    schema_of(
        invoice_id=TEXT,
        **_WHO,
        number=TEXT,
        kind=TEXT,
        corrects=TEXT,
        period_start=MOMENT,
        period_end=MOMENT,
        zone=TEXT,
        known_at=U64,
        sheets=WORDS,
        currency=TEXT,
        lines=U32,
        **dict.fromkeys(("subtotal", "discounts", "net", "tax", "total", "credits", "rounding"), DECIMAL),
        **dict.fromkeys(("owed", "tax_owed", "due"), DECIMAL),
        due_at=MOMENT,
    ),
)
INVOICE_LINES = _shape(
    "invoice_lines",
    {"invoice_id": TEXT, "position": U64, "leg": U32, "address": ADDRESS, "at": MOMENT, "tenant": TEXT},
    {"entry": TEXT, "line": U32, "line_of": TEXT},
    {"period_start": MOMENT, "period_end": MOMENT, "charge": TEXT, "meter": TEXT, "description": TEXT},
    {"quantity": DECIMAL, "quantity_exact": TEXT, "amount": DECIMAL, "exact": TEXT, "rounding": TEXT},
    {"currency": TEXT, "events": U64, "first": U64, "last": U64, "fingerprint": TEXT},
    nullable="first last",
)
INVOICE_EVENTS = _shape(
    "invoice_events",
    {"invoice_id": TEXT, **_WHAT, "amount": DECIMAL, "off_due": DECIMAL, "currency": TEXT, "reference": TEXT},
    {"next_attempt_at": MOMENT},
    nullable="next_attempt_at",
)
CREDIT_NOTES = _shape(
    "credit_notes",
    {"credit_note_id": TEXT, **_WHO, "number": TEXT, "invoice_id": TEXT},
    dict.fromkeys(("amount", "tax", "off_due", "returned"), DECIMAL),
    {"currency": TEXT, "target": TEXT, "reason": TEXT},
)
GRANT_EVENTS = _shape(
    "grant_events",
    {"grant_id": TEXT, **_WHAT, "source": TEXT, "amount": DECIMAL, "currency": TEXT, "priority": U32},
    {"expires_at": MOMENT, "reference": TEXT},
    nullable="expires_at",
)
PAYOUT_EVENTS = _shape(
    "payout_events",
    {"payout_id": TEXT, **_WHAT, "amount": DECIMAL, "currency": TEXT, "destination": TEXT, "reference": TEXT},
)
SALE_EVENTS = _shape(
    "sale_events",
    {"kind": TEXT, "sale_id": TEXT, **_WHAT},
    dict.fromkeys(("seller", "persona_id", "capsule", "currency", "fee_share"), TEXT),
    {"price": DECIMAL, "every": TEXT, "minutes": U64},
    dict.fromkeys(("reserved", "charged", "fee", "released"), DECIMAL),
    {"used_s": U64, "period_start": MOMENT, "period_end": MOMENT, "expires_at": MOMENT, "reason": TEXT},
    nullable="period_start period_end expires_at",
)
SHAPES = (
    CUSTOMER_EVENTS, INVOICES, INVOICE_LINES, INVOICE_EVENTS, CREDIT_NOTES, GRANT_EVENTS, PAYOUT_EVENTS, SALE_EVENTS,
)  # fmt: skip

_SALES = (Rental.KIND, Subscription.KIND, Purchase.KIND)
KINDS = (Customer.KIND, Invoice.KIND, CreditNote.KIND, Grant.KIND, Payout.KIND, *_SALES)

Row = dict[str, Any]
Known = Mapping[Version, Earlier]
Told = Iterator[tuple[Shape, Row]]


class _Said(msgspec.Struct, gc=False):
    """What of an invoice says which other record it is told with."""

    corrects: str | None = None


_said = msgspec.json.Decoder(_Said)


def earlier_versions(rows: Rows[msgspec.Raw]) -> list[Version]:
    """Name the records a batch is told with: how sales began, and the documents that corrections correct."""
    found: list[Version] = []
    for envelope in rows.envelopes:
        if kind_of(envelope.stream) in _SALES and envelope.version > 1:
            found.append((envelope.stream, 1))
        elif envelope.type == Invoice.Issued.TOPIC and (corrects := _corrects(envelope.data)):
            found.append((f"{Invoice.KIND}/{corrects}", 1))
    return found


def _corrects(data: msgspec.Raw) -> str | None:
    try:
        return _said.decode(data).corrects
    except msgspec.MsgspecError:
        return None


def commerce(rows: Rows[msgspec.Raw], known: Known) -> Tables:
    """Tell the commerce of a batch; a record that cannot be told is named and left out whole."""
    found: dict[str, list[tuple[int, Row]]] = {shape.name: [] for shape in SHAPES}
    for place, envelope in enumerate(rows.envelopes):
        kind, _, name = envelope.stream.partition("/")
        if kind not in KINDS or not envelope.version:
            continue
        try:
            event = decode(rows.stored[place].record).data
            told = list(_TELLERS[kind](name, event, _Around(envelope.stream, known)))
            for shape, row in told:
                _check(shape, row)
        except (LedgerError, msgspec.MsgspecError, ValueError, TypeError) as error:
            rows.refuse(place, error)
        else:
            for shape, row in told:
                found[shape.name].append((place, row))
    return {shape.name: _table(shape, rows, found[shape.name]) for shape in SHAPES}


def _check(shape: Shape, row: Row) -> None:
    """See that a row can be kept, so that one that cannot does not take its neighbours with it.

    Errors: decimal_overflow.
    """
    for field in shape.schema:
        value = row.get(field.name)
        if value is not None and field.type == DECIMAL and abs(value) > DECIMAL_NANO_MAX:
            raise DecimalOverflowError(digits_max=38)
        if value is not None and field.type == MOMENT:
            moment_of(value)


class _Around:
    """What a record is told with: the records around it."""

    def __init__(self, stream: str, known: Known) -> None:
        self._stream = stream
        self._known = known

    def first(self, stream: str = "") -> Event:
        """Read how a stream began: the record's own, or another one.

        Errors: log_damaged.
        """
        found = self._known.get((stream or self._stream, 1))
        if found is None:
            raise LogDamagedError(f"how {stream or self._stream} began is not in the log")
        event: Event = decode(found.record).data
        return event


def _table(shape: Shape, rows: Rows[msgspec.Raw], found: list[tuple[int, Row]]) -> pa.Table:
    """Put rows into columns: common ones from their records, amounts from nano-units, the rest as they are."""
    places = [place for place, _ in found]
    columns: dict[str, Any] = rows.pick(places, "position", "address", "at", "tenant", "version")
    columns["event"] = [rows.envelopes[place].type.partition(".")[2] for place in places]
    for field in shape.schema:
        if field.name in columns:
            continue
        values = [row.get(field.name) for _, row in found]
        if field.type == DECIMAL:
            columns[field.name] = decimals([value or 0 for value in values])
        elif field.type == MOMENT:
            columns[field.name] = moments(values)
        else:
            columns[field.name] = (
                values if field.nullable else [value or _BLANK[field.type] for value in values]
            )
    return table(shape, columns)


_BLANK: dict[pa.DataType, Any] = {TEXT: "", U32: 0, U64: 0, WORDS: []}


def _nano(money: Money) -> int:
    return nano_of(money.amount)


# --------------------------------------------------------------------------- customers and their documents


def _customer(_: str, event: Event, _around: _Around) -> Told:
    row: Row = {}
    match event:
        case Customer.Enrolled() | Customer.Replanned():
            row = {key: getattr(event.plan, key) for key in ("book", "currency", "zone", "every", "anchor")}
            row["billed_to"] = event.billed_to if isinstance(event, Customer.Enrolled) else None
        case Customer.Billed():
            row = {"reference": event.invoice, "billed_to": event.period_end}
        case Customer.Corrected():
            row = {"reference": event.invoice}
        case Customer.CouponRedeemed():
            row = {"reference": event.redeemed.coupon.code}
        case Customer.NoteIssued():
            row = {"reference": event.note}
        case Customer.CreditAdded() | Customer.CreditSpent():
            row = {"reference": event.grant}
    yield CUSTOMER_EVENTS, row


def _invoice(name: str, event: Event, around: _Around) -> Told:
    row: Row = {"invoice_id": name}
    match event:
        case Invoice.Issued():
            yield INVOICES, row | _document(event)
            for leg, line in enumerate(_lines(name, event, around)):
                yield INVOICE_LINES, row | line | {"leg": leg}
            row |= {"amount": _nano(event.due), "currency": event.due.currency}
        case Invoice.Paid():
            row |= {"amount": _nano(event.amount), "off_due": _nano(event.amount)}
            row["currency"] = event.amount.currency
        case Invoice.Credited():
            row |= {"amount": _nano(event.amount), "off_due": _nano(event.off_due), "reference": event.note}
            row["currency"] = event.amount.currency
        case Invoice.Corrected():
            row["reference"] = event.by
        case Invoice.PaymentFailed():
            row |= {"reference": event.reason, "next_attempt_at": event.next_attempt_at}
    yield INVOICE_EVENTS, row


def _document(event: Invoice.Issued) -> Row:
    made = event.bill
    members = ("number", "kind", "corrects", "period_start", "period_end", "zone", "known_at", "due_at")
    return {key: getattr(event, key) for key in members} | {
        "sheets": [one.sheet for one in event.sheets],
        "currency": made.currency,
        "lines": len(made.lines),
        "subtotal": _nano(made.subtotal),
        "discounts": sum(_nano(item.amount) for item in made.discounts),
        "net": _nano(made.net),
        "tax": sum(_nano(item.amount) for item in made.taxes),
        "total": _nano(made.total),
        "credits": sum(_nano(item.amount) for item in made.credits),
        "rounding": _nano(made.rounding),
        "owed": _nano(event.owed),
        "tax_owed": _nano(event.tax),
        "due": _nano(event.due),
    }


def _lines(name: str, event: Invoice.Issued, around: _Around) -> Iterator[Row]:
    """Tell the lines of a document; those of a document it corrects are taken back first.

    Errors: log_damaged.
    """
    period: Row = {"period_start": event.period_start, "period_end": event.period_end}
    if event.corrects is not None:
        before = around.first(f"{Invoice.KIND}/{event.corrects}")
        if not isinstance(before, Invoice.Issued):
            raise LogDamagedError(f"{event.corrects}, which it corrects, is no document")
        for number, line in enumerate(before.bill.lines):
            yield period | _line(line, -1) | {"entry": "reversed", "line": number, "line_of": event.corrects}
    for number, line in enumerate(event.bill.lines):
        proof = event.evidence[number] if number < len(event.evidence) else None
        billed = {"entry": "billed", "line": number, "line_of": name}
        yield period | _line(line, 1) | billed | _evidence(proof)


def _line(line: Line, sign: int) -> Row:
    return {
        "charge": line.charge,
        "meter": line.meter,
        "description": line.description,
        "quantity": round(read_exact(line.quantity) * NANO) * sign,
        "quantity_exact": line.quantity,
        "amount": _nano(line.amount) * sign,
        "exact": line.exact,
        "rounding": line.rounding,
        "currency": line.amount.currency,
    }


def _evidence(proof: Evidence | None) -> Row:
    return {} if proof is None else msgspec.structs.asdict(proof)


def _credit_note(name: str, event: Event, _: _Around) -> Told:
    assert isinstance(event, CreditNote.Issued)
    amounts = {key: _nano(getattr(event, key)) for key in ("amount", "tax", "off_due", "returned")}
    texts = {key: getattr(event, key) for key in ("number", "target", "reason")}
    row = {"credit_note_id": name, "invoice_id": event.invoice, "currency": event.amount.currency}
    yield CREDIT_NOTES, row | amounts | texts


def _grant(name: str, event: Event, _: _Around) -> Told:
    assert isinstance(event, Grant.Granted | Grant.Grown | Grant.Burned | Grant.Expired)
    row: Row = {"grant_id": name, "amount": _nano(event.amount), "currency": event.amount.currency}
    if isinstance(event, Grant.Granted):
        row |= {key: getattr(event, key) for key in ("source", "priority", "expires_at", "reference")}
    elif isinstance(event, Grant.Burned):
        row["reference"] = event.invoice
    yield GRANT_EVENTS, row


def _payout(name: str, event: Event, _: _Around) -> Told:
    row: Row = {"payout_id": name}
    match event:
        case Payout.Requested():
            row |= {"amount": _nano(event.amount), "currency": event.amount.currency}
            row["destination"] = event.destination
        case Payout.Paid():
            row["reference"] = event.reference
        case Payout.Failed():
            row["reference"] = event.reason
    yield PAYOUT_EVENTS, row


# --------------------------------------------------------------------------- sales


def _sale_of(event: Event) -> Sale:
    """Say what the first event of a sale sells.

    Errors: log_damaged.
    """
    match event:
        case Rental.Requested():
            return event.terms.sale
        case Subscription.Started():
            return event.plan.sale
        case Purchase.Made():
            return event.sale
    raise LogDamagedError(f"{type(event).__name__} is not how a sale begins")


def _sale(kind: str, rest: Callable[[Event], Row]) -> Callable[[str, Event, _Around], Told]:
    """Tell an event of one kind of sale: what is sold, and the rest, which is the event's own."""

    def tell(name: str, event: Event, around: _Around) -> Told:
        begins = isinstance(event, Rental.Requested | Subscription.Started | Purchase.Made)
        sold = _sale_of(event if begins else around.first())
        row = {
            "kind": kind, "sale_id": name, "seller": sold.seller, "persona_id": sold.persona_id,
            "capsule": sold.capsule, "currency": sold.currency, "fee_share": sold.fee,
        }  # fmt: skip
        yield SALE_EVENTS, row | rest(event)

    return tell


def _rental(event: Event) -> Row:
    match event:
        case Rental.Requested():
            price = nano_of(event.terms.price.price)
            until = {"minutes": event.minutes, "expires_at": event.activate_by}
            return until | {"price": price, "reserved": _nano(event.amount)}
        case Rental.Activated():
            return {"expires_at": event.expires_at}
        case Rental.Extended():
            more = {"minutes": event.minutes, "expires_at": event.expires_at}
            return more | {"reserved": _nano(event.amount)}
        case Rental.Ended():
            return _settled(event.charged, event.fee) | {
                "released": _nano(event.released), "used_s": event.used_s, "reason": event.reason,
            }  # fmt: skip
    return {}


def _subscription(event: Event) -> Row:
    match event:
        case Subscription.Started():
            return _plan(event.plan) | _reserved(event.money) | _period(event.period_start, event.period_end)
        case Subscription.Renewed():
            return _reserved(event.money) | _period(event.period_start, event.period_end)
        case Subscription.Changed():
            return _plan(event.plan) | _reserved(event.money) | {"capsule": event.plan.sale.capsule}
        case Subscription.PeriodSettled():
            return _settled(event.charged, event.fee) | _period(event.period_start, event.until)
        case Subscription.RenewalFailed():
            return {"reason": event.reason, "expires_at": event.next_attempt_at}
        case Subscription.Ended():
            return {"reason": event.reason}
    return {}


def _purchase(event: Event) -> Row:
    match event:
        case Purchase.Made():
            price = _nano(event.price)
            return {"price": price, "reserved": price, "expires_at": event.refundable_until}
        case Purchase.Settled():
            return _settled(event.charged, event.fee)
        case Purchase.Refunded():
            return {"reason": event.reason}
    return {}


def _plan(plan: Any) -> Row:
    return {"price": _nano(plan.price), "every": plan.every}


def _period(start: str, end: str) -> Row:
    return {"period_start": start, "period_end": end}


def _reserved(money: Sequence[Any]) -> Row:
    return {"reserved": sum(_nano(part.amount) for part in held_by(money))}


def _settled(charged: Money, fee: Money) -> Row:
    return {"charged": _nano(charged), "fee": _nano(fee)}


_TELLERS: dict[str, Callable[[str, Event, _Around], Told]] = {
    Customer.KIND: _customer,
    Invoice.KIND: _invoice,
    CreditNote.KIND: _credit_note,
    Grant.KIND: _grant,
    Payout.KIND: _payout,
    Rental.KIND: _sale(Rental.KIND, _rental),
    Subscription.KIND: _sale(Subscription.KIND, _subscription),
    Purchase.KIND: _sale(Purchase.KIND, _purchase),
}
