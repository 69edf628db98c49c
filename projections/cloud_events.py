"""Records as CloudEvents 1.0 in Kafka's binary mode: attributes in headers, the record's own bytes as the value.

Nothing is serialised a second time: who takes the value's SHA3-512 gets `ce_id`. What the headers say is read from the
record, so they are a convenience for routing and filtering, never a second truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from domain.errors import AmountInvalidError, LogDamagedError
from domain.log.records import address_text
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

# Kinds of streams that are on the billing topic whether a record of theirs moves money or not.
BILLING_KINDS = frozenset(
    "account billing credit_note invoice payment plan price purchase refund rental subscription transfer usage".split()
)
TRAINING_KINDS = frozenset({"training", "round"})

# What billing readers want without opening the value: member of `data` -> attribute.
ATTRIBUTES = {
    "occurred_at": "ce_occurredtime",
    "provider": "ce_provider",
    "model": "ce_model",
    "tokens_in": "ce_tokensin",
    "tokens_out": "ce_tokensout",
    "requests": "ce_requests",
    "price_id": "ce_priceref",
    "rental_id": "ce_rental",
}


def sequence_text(number: int) -> str:
    """Print a position so that texts sort as numbers do."""
    return f"{number:020d}"


class _Data(msgspec.Struct, gc=False):
    money: Any = None
    amount: Any = None
    cost: Any = None
    occurred_at: Any = None
    provider: Any = None
    model: Any = None
    tokens_in: Any = None
    tokens_out: Any = None
    requests: Any = None
    price_id: Any = None
    rental_id: Any = None


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
            yield Message(BILLING, stream, record, headers + billing_attributes(envelope.data, envelope.at))

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
        kind = _Kind(headers, group in BILLING_KINDS, group in TRAINING_KINDS)
        self._kinds[envelope.type, envelope.schema] = kind
        return kind


# --------------------------------------------------------------------------- what billing readers want


def billing_attributes(data: Any, at: str) -> Headers:
    """Say in headers which accounts a record touches, how much it moves or costs, and what was used.

    Units: amounts are decimals in units of the currency; with several currencies both are lists in one order.
    """
    found: Headers = [("ce_recordedtime", at)]
    accounts, operations, sums = _entries(data.money)
    sums = sums or _stated(data.amount) or _stated(data.cost)
    if operations:
        found.append(("ce_operations", ",".join(operations)))
    if accounts:
        found.append(("ce_accounts", ",".join(accounts)))
    if sums:
        found.append(("ce_currency", ",".join(sums)))
        found.append(("ce_amount", ",".join(sums.values())))
    for member, attribute in ATTRIBUTES.items():
        value = getattr(data, member)
        if value is not None and not isinstance(value, dict | list):
            found.append((attribute, str(value)))
    return found


def _entries(money: Any) -> tuple[dict[str, None], dict[str, None], dict[str, str]]:
    """List accounts and operations in the order of the entries, and sum what is moved or held by currency."""
    accounts: dict[str, None] = {}
    operations: dict[str, None] = {}
    sums: dict[str, str] = {}
    for entry in money or ():
        operations[entry["op"]] = None
        for leg in entry.get("postings") or ([entry] if "account" in entry else ()):
            accounts[leg["account"]] = None
            amount = leg.get("amount")
            # Debits are positive; the positive legs of a transfer sum to what it moves, and most have one.
            if amount is not None and amount[0] != "-":
                currency = entry["currency"]
                sums[currency] = _sum(sums[currency], amount, currency) if currency in sums else amount
    return accounts, operations, sums


def _sum(one: str, other: str, currency: str) -> str:
    return print_nano(parse_nano(one) + parse_nano(other), currency)


def _stated(money: Any) -> dict[str, str]:
    """Read a sum that an event states without moving it here, such as an escrow that is given back."""
    if not isinstance(money, dict) or money.get("currency") not in CURRENCY_DIGITS:
        return {}
    try:
        return {money["currency"]: print_nano(parse_nano(money["amount"]), money["currency"])}
    except (KeyError, AmountInvalidError):
        return {}
