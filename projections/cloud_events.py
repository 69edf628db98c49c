"""Records as CloudEvents 1.0 in Kafka's binary mode: attributes in headers, the record's own bytes as the value.

Nothing is serialised a second time: who takes the value's SHA3-512 gets `ce_id`. What the headers say is read from the
record, so they are a convenience for routing and filtering, never a second truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

import projections.kinds  # noqa: F401 - what may move money is told by the event's class
from domain.errors import AmountInvalidError, LogDamagedError
from domain.log.records import EVENTS as CLASSES
from domain.log.records import MoneyEvent, address_text
from domain.values import CURRENCY_DIGITS, parse_nano, print_nano
from ops.kafka import Headers, Message
from ops.reads import Stored

EVENTS = "marketplace.events"
BILLING = "marketplace.billing"
TRAINING = "training.audit"
TOPICS = (EVENTS, BILLING, TRAINING)

SCHEMA_BASE = "https://soma-ledger.dev/events/"
CHECKPOINT_TYPE = "soma.checkpoint"
CHECKPOINT_MEDIA = "text/plain; charset=utf-8"
RECORD_MEDIA = "application/json"

# Kinds of streams that are on the billing topic whether a record of theirs moves money or not. Of other kinds, what may
# move money is there: an escrow that is funded, released, refunded.
BILLING_KINDS = frozenset(
    "account credit_note customer grant invoice payout price_book price_sheet purchase quota rental subscription"
    " transfer usage".split()
)
TRAINING_KINDS = frozenset({"training", "round"})

# What billing readers want without opening the value: member of `data` -> attribute.
ATTRIBUTES = {
    "provider": "ce_provider",
    "model": "ce_model",
    "tokens_in": "ce_tokensin",
    "tokens_out": "ce_tokensout",
    "requests": "ce_requests",
    "persona_id": "ce_persona",
    "period_start": "ce_periodstart",
    "period_end": "ce_periodend",
}
# What is found in more than one place: attribute -> its meaning.
FOUND = {
    "ce_priceref": "The prices it is by: addresses of price sheets, or of the capsule whose manifest names the price.",
    "ce_rental": "The rental it belongs to.",
    "ce_invoice": "The invoice it belongs to.",
    "ce_documentnumber": "The number of the invoice, correction or credit note that it issues.",
}
# Kinds whose records name no prices and no document; most records on the topic are theirs.
PLAIN = frozenset({"account", "transfer", "usage"})
MOVED = ("ce_operations", "ce_accounts", "ce_holds")
_plain = attrgetter(*ATTRIBUTES)
# Where an event states a sum without moving it, the first of these members is it.
SUMS = ("amount", "charged", "price", "owed", "cost")


def sequence_text(number: int) -> str:
    """Print a position so that texts sort as numbers do."""
    return f"{number:020d}"


class _Data(msgspec.Struct, gc=False):
    money: Any = None
    amount: Any = None
    charged: Any = None
    price: Any = None
    owed: Any = None
    cost: Any = None
    occurred_at: Any = None
    provider: Any = None
    model: Any = None
    tokens_in: Any = None
    tokens_out: Any = None
    requests: Any = None
    persona_id: Any = None
    period_start: Any = None
    period_end: Any = None
    rental_id: Any = None
    invoice: Any = None
    number: Any = None
    sheets: Any = None
    address: Any = None
    sale: Any = None
    terms: Any = None
    plan: Any = None


class _Envelope(msgspec.Struct, gc=False):
    at: str
    causation: str | None
    correlation: str | None
    data: _Data
    schema: int
    stream: str
    tenant: str
    type: str


class _Kind(NamedTuple):
    """What is the same for every record of a type and schema."""

    headers: Headers
    billing: bool
    training: bool


class CloudEvents:
    """Writes the messages of one log."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self._decode = msgspec.json.Decoder(_Envelope).decode
        self._kinds: dict[tuple[str, int], _Kind] = {}

    def messages(self, stored: Stored) -> Iterator[Message]:
        """Write one record's messages, one for each topic it belongs to.

        Cost:   some microseconds; the record is read once and never written.
        Errors: log_damaged.
        """
        position, address, record = stored
        try:
            envelope = self._decode(record)
        except msgspec.MsgspecError as error:
            raise LogDamagedError(
                f"the record at {position} cannot be read", position=position, internal=str(error)
            ) from error
        stream = envelope.stream
        kind = self._kinds.get((envelope.type, envelope.schema)) or self._learn(envelope)
        headers: Headers = [
            ("ce_id", address_text(address)),
            *kind.headers,
            ("ce_subject", stream),
            ("ce_time", envelope.at),
            ("ce_sequence", f"{position:020d}"),
            ("ce_partitionkey", stream),
            ("ce_tenant", envelope.tenant),
        ]
        if envelope.correlation is not None:
            headers.append(("ce_correlationid", envelope.correlation))
        if envelope.causation is not None:
            headers.append(("ce_causationid", envelope.causation))
        yield Message(EVENTS, stream, record, headers)
        if kind.training:
            yield Message(TRAINING, stream, record, headers)
        if kind.billing or envelope.data.money:
            attributes = billing_attributes(envelope.data, stream, envelope.at)
            yield Message(BILLING, stream, record, headers + attributes)

    def checkpoint(self, size: int, note: bytes, at: str) -> Message:
        """Write the message of a signed checkpoint: who holds all records before its size can prove it."""
        headers: Headers = [
            ("ce_id", f"{self.origin}@{size}"),
            ("ce_specversion", "1.0"),
            ("content-type", CHECKPOINT_MEDIA),
            ("ce_source", self.origin),
            ("ce_type", CHECKPOINT_TYPE),
            ("ce_subject", self.origin),
            ("ce_time", at),
            ("ce_sequence", sequence_text(size)),
            ("ce_partitionkey", self.origin),
        ]
        return Message(EVENTS, self.origin, note, headers)

    def _learn(self, envelope: _Envelope) -> _Kind:
        group = envelope.type.partition(".")[0]
        headers: Headers = [
            ("ce_specversion", "1.0"),
            ("content-type", RECORD_MEDIA),
            ("ce_source", self.origin),
            ("ce_type", envelope.type),
            ("ce_dataschema", f"{SCHEMA_BASE}{envelope.type}/{envelope.schema}"),
        ]
        kind = _Kind(headers, is_billing(envelope.type), group in TRAINING_KINDS)
        self._kinds[envelope.type, envelope.schema] = kind
        return kind


# --------------------------------------------------------------------------- what billing readers want


def is_billing(wire_type: str) -> bool:
    """Say whether all records of a type are on the billing topic; of a type unknown here those that move money are."""
    event = CLASSES.get(wire_type)
    group = wire_type.partition(".")[0]
    return group in BILLING_KINDS or (event is not None and issubclass(event, MoneyEvent))


def billing_attributes(data: Any, stream: str, at: str) -> Headers:
    """Say in headers which accounts a record touches, how much it moves or costs, and what was used.

    Units: amounts are decimals in units of the currency; with several currencies both are lists in one order.
    """
    happened = data.occurred_at
    found: Headers = [
        ("ce_recordedtime", at),
        ("ce_occurredtime", happened if isinstance(happened, str) else at),
    ]
    sums: dict[str, str] = {}
    if data.money:
        moved = _entries(data.money)
        sums = moved.sums
        for attribute, names in zip(MOVED, moved[:3], strict=True):
            if names:
                found.append((attribute, ",".join(names)))
    if not sums:
        sums = _stated_of(data)
    if sums:
        found.append(("ce_currency", ",".join(sums)))
        found.append(("ce_amount", ",".join(sums.values())))
    for attribute, value in zip(ATTRIBUTES.values(), _plain(data), strict=True):
        if value is not None and not isinstance(value, dict | list):
            found.append((attribute, str(value)))
    kind, _, name = stream.partition("/")
    if kind not in PLAIN:
        _add(found, "ce_priceref", _prices(data, kind))
        _add(found, "ce_invoice", name if kind == "invoice" else data.invoice)
        _add(found, "ce_documentnumber", data.number)
    _add(found, "ce_rental", name if kind == "rental" else data.rental_id)
    return found


def _add(found: Headers, attribute: str, value: Any) -> None:
    if isinstance(value, str) and value:
        found.append((attribute, value))


def _prices(data: Any, kind: str) -> str | None:
    """Name the prices a record is by: sheets of a book, or the capsule whose manifest offers the persona."""
    if isinstance(data.sheets, list):
        return ",".join(sheet["address"] for sheet in data.sheets)
    if kind in ("price_book", "price_sheet"):
        return data.address if isinstance(data.address, str) else None
    for holder in (data.terms, data.plan):
        if isinstance(holder, dict) and isinstance(holder.get("sale"), dict):
            return str(holder["sale"]["capsule"])
    return str(data.sale["capsule"]) if isinstance(data.sale, dict) else None


class _Moved(NamedTuple):
    """What entries do and touch, in their order, and what they move or hold by currency."""

    operations: dict[str, None]
    accounts: dict[str, None]
    holds: dict[str, None]
    sums: dict[str, str]


def _entries(money: Any) -> _Moved:
    """List what entries touch, and sum what is moved or held by currency."""
    moved = _Moved({}, {}, {}, {})
    operations, accounts, holds, sums = moved
    for entry in money:
        operations[entry["op"]] = None
        if "hold" in entry:
            holds[entry["hold"]] = None
        for leg in entry.get("postings") or ([entry] if "account" in entry else ()):
            accounts[leg["account"]] = None
            amount = leg.get("amount")
            # Debits are positive; the positive legs of a transfer sum to what it moves, and most have one.
            if amount is not None and amount[0] != "-":
                currency = entry["currency"]
                sums[currency] = _sum(sums[currency], amount, currency) if currency in sums else amount
    return moved


def _sum(one: str, other: str, currency: str) -> str:
    return print_nano(parse_nano(one) + parse_nano(other), currency)


def _stated_of(data: Any) -> dict[str, str]:
    """Find the sum that an event states, where it moves none."""
    for name in SUMS:
        sums = _stated(getattr(data, name))
        if sums:
            return sums
    return {}


def _stated(money: Any) -> dict[str, str]:
    """Read a sum that an event states without moving it here, such as an escrow that is given back."""
    if not isinstance(money, dict) or money.get("currency") not in CURRENCY_DIGITS:
        return {}
    try:
        return {money["currency"]: print_nano(parse_nano(money["amount"]), money["currency"])}
    except (KeyError, AmountInvalidError):
        return {}
