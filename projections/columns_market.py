"""Market activity in columns: offers, intents, contracts and their money, and why offers were passed over."""

from __future__ import annotations

from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from domain.errors import LedgerError
from domain.fields import share_ppm
from domain.log.records import Event, decode
from domain.market.contracts import Contract
from domain.market.intents import Intent
from domain.market.offers import Offer
from domain.values import Money
from projections.columns import (
    ADDRESS,
    DECIMAL,
    MOMENT,
    TEXT,
    U64,
    Reading,
    Rows,
    Shape,
    Tables,
    decimals,
    kind_of,
    moments,
    nano_of,
    schema_of,
    table,
)

MARKET_ROWS: Reading[msgspec.Raw] = Reading(msgspec.Raw, msgspec.Raw(b"{}"))

U32 = pa.uint32()
WORDS = pa.list_(pa.field("item", TEXT, nullable=False))
_WHO = {"position": U64, "address": ADDRESS, "at": MOMENT, "tenant": TEXT, "event": TEXT, "version": U64}

OFFER_EVENTS = Shape(
    "offer_events",
    schema_of(
        offer_id=TEXT,
        **_WHO,
        said=WORDS,
        seller=TEXT,
        modality=TEXT,
        tasks=WORDS,
        price=DECIMAL,
        currency=TEXT,
        quality_ppm=U32,
        sample_count=U64,
    ),
)
INTENT_EVENTS = Shape(
    "intent_events",
    pa.schema(
        [
            *schema_of(intent_id=TEXT, **_WHO, said=WORDS, task=TEXT),
            # A budget that is stated and null is unlimited.
            pa.field("budget", DECIMAL),
            *schema_of(currency=TEXT, contract_id=TEXT),
        ]
    ),
)
CONTRACT_EVENTS = Shape(
    "contract_events",
    pa.schema(
        [
            *schema_of(
                contract_id=TEXT,
                **_WHO,
                intent_id=TEXT,
                amount=DECIMAL,
                currency=TEXT,
                offers=U32,
                fee_ppm=U32,
                detail=TEXT,
            ),
            pa.field("expires_at", MOMENT),
        ]
    ),
)
REJECTIONS = Shape(
    "rejections",
    schema_of(
        position=U64,
        reason=TEXT,
        address=ADDRESS,
        at=MOMENT,
        tenant=TEXT,
        intent_id=TEXT,
        outcome=TEXT,
        offers=U64,
    ),
)
PAYOUTS = Shape(
    "payouts",
    schema_of(
        position=U64,
        leg=U32,
        address=ADDRESS,
        at=MOMENT,
        tenant=TEXT,
        payer=TEXT,
        contract_id=TEXT,
        paid=DECIMAL,
        fee=DECIMAL,
        currency=TEXT,
    ),
)

Row = dict[str, Any]


class _Found:
    """The rows of a batch, by table; each knows its record's place in the batch."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[int, Row]]] = {shape.name: [] for shape in SHAPES}

    def add(self, place: int, name: str, row: Row) -> None:
        self.rows[name].append((place, row))

    def adopt(self, other: _Found) -> None:
        for name, rows in other.rows.items():
            self.rows[name] += rows


def market(rows: Rows[msgspec.Raw]) -> Tables:
    """Tell the market activity of a batch; a record that cannot be told is named and left out whole."""
    found = _Found()
    for place, envelope in enumerate(rows.envelopes):
        tell = _TELLERS.get(kind_of(envelope.stream))
        if tell is None or not envelope.version:
            continue
        one = _Found()
        try:
            event = decode(rows.stored[place].record).data
            tell(one, place, envelope.stream.partition("/")[2], event)
        except (LedgerError, msgspec.MsgspecError, pa.ArrowInvalid, ValueError, TypeError) as error:
            rows.refuse(place, error)
        else:
            found.adopt(one)
    return {shape.name: _table(shape, rows, found.rows[shape.name]) for shape in SHAPES}


def _table(shape: Shape, rows: Rows[msgspec.Raw], found: list[tuple[int, Row]]) -> pa.Table:
    """Put rows into columns: common ones from their records, amounts from nano-units, the rest as they are."""
    places = [place for place, _ in found]
    columns: dict[str, Any] = {}
    for field in shape.schema:
        name = field.name
        if name in ("position", "address", "at", "version") or (name == "tenant" and shape is not PAYOUTS):
            columns[name] = rows.pick(places, name)[name]
        elif name == "payer":
            columns[name] = rows.pick(places, "tenant")["tenant"]
        elif name == "event":
            columns[name] = [rows.envelopes[place].type.partition(".")[2] for place in places]
        elif field.type == DECIMAL:
            nanos = [row.get(name) for _, row in found]
            amounts = decimals([nano or 0 for nano in nanos])
            columns[name] = (
                pc.if_else(pa.array([n is not None for n in nanos]), amounts, None)
                if field.nullable
                else amounts
            )
        elif field.type == MOMENT:
            columns[name] = moments([row.get(name) for _, row in found])
        else:
            columns[name] = [row.get(name, _BLANK[field.type]) for _, row in found]
    return table(shape, columns)


_BLANK: dict[pa.DataType, Any] = {TEXT: "", U32: 0, U64: 0, WORDS: []}


def _sum(money: Any, amount: str = "amount") -> Row:
    """Put money into its two columns; money that is not named is no money of no currency."""
    if money is None:
        return {}
    found = money if isinstance(money, Money) else msgspec.convert(money, Money)
    return {amount: nano_of(found.amount), "currency": found.currency}


# --------------------------------------------------------------------------- offers and intents

_OFFER_FIELDS = {
    "seller_node_id": "seller",
    "modality": "modality",
    "allowed_tasks": "tasks",
    "price_per_round": "price",
    "quality_score": "quality_ppm",
    "sample_count": "sample_count",
}
_INTENT_FIELDS = {"task_type": "task", "budget_total": "budget"}


def _offer(found: _Found, place: int, name: str, event: Event) -> None:
    found.add(place, "offer_events", {"offer_id": name} | _said(event, _OFFER_FIELDS))


def _intent(found: _Found, place: int, name: str, event: Event) -> None:
    row = {"intent_id": name} | _said(event, _INTENT_FIELDS)
    if isinstance(event, Intent.Opened):
        row["currency"] = event.currency
    if isinstance(event, Intent.Matched):
        row["contract_id"] = event.contract_id
    if isinstance(event, Intent.MatchFailed):
        _rejections(found, place, name, "failed", event.diagnostics)
    found.add(place, "intent_events", row)


def _said(event: Event, fields: dict[str, str]) -> Row:
    """Give the fields an event states, by our names; `said` lists them, since an empty one may be meant."""
    if isinstance(event, Offer.Listed | Intent.Opened):
        stated = {name: getattr(event, name) for name in fields}
    elif isinstance(event, Offer.Revised | Intent.Amended):
        stated = {name: value for name, value in event.changes.items() if name in fields}
    else:
        return {}
    row: Row = {}
    for name, value in stated.items():
        column = fields[name]
        if column in ("price", "budget"):
            row |= _sum(value, column)
        else:
            row[column] = share_ppm(value) if column == "quality_ppm" else value
    return row | {"said": sorted(fields[name] for name in stated)}


def _rejections(found: _Found, place: int, intent: str, outcome: str, diagnostics: dict[str, Any]) -> None:
    for reason, offers in sorted(diagnostics.get("rejection_reasons", {}).items()):
        found.add(
            place,
            "rejections",
            {"reason": reason, "intent_id": intent, "outcome": outcome, "offers": int(offers)},
        )


# --------------------------------------------------------------------------- contracts


def _contract(found: _Found, place: int, name: str, event: Event) -> None:
    row: Row = {"contract_id": name}
    match event:
        case Contract.Created():
            row |= _sum(event.agreed_price_per_round_total)
            row |= {
                "intent_id": event.round_intent_id,
                "offers": event.offer_count,
                "fee_ppm": event.fee_ppm,
                "detail": event.round_id,
            }
            _rejections(found, place, event.round_intent_id, "matched", event.selection_diagnostics)
        case Contract.EscrowFunded():
            row |= _sum(event.amount) | {"expires_at": event.expires_at}
        case Contract.EscrowReleased():
            row |= _sum(event.payout_amount)
            _payouts(found, place, name, event)
        case Contract.EscrowRefunded():
            row |= _sum(event.amount) | {"detail": event.reason}
        case Contract.EscrowExpired():
            row |= _sum(event.amount)
        case Contract.BoundToRound() | Contract.RoundCompleted() | Contract.RoundFailed():
            row["detail"] = event.execution_round
        case Contract.DisputeOpened() | Contract.DisputeResolved():
            row["detail"] = event.dispute_id
    found.add(place, "contract_events", row)


def _payouts(found: _Found, place: int, contract: str, event: Contract.EscrowReleased) -> None:
    for leg, share in enumerate(event.shares):
        row = {"leg": leg, "tenant": share.seller, "contract_id": contract}
        found.add(place, "payouts", row | _sum(share.paid, "paid") | {"fee": nano_of(share.fee.amount)})


SHAPES = (OFFER_EVENTS, INTENT_EVENTS, REJECTIONS, CONTRACT_EVENTS, PAYOUTS)
_TELLERS = {Offer.KIND: _offer, Intent.KIND: _intent, Contract.KIND: _contract}
KINDS = tuple(_TELLERS)
