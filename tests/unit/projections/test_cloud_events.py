"""Records as CloudEvents: where they go and what their headers say, over the golden records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from domain.errors import LogDamagedError
from domain.log.records import AGGREGATES, MoneyEvent, address_text, digest
from ops.kafka import Message
from ops.reads import Stored
from projections.cloud_events import BILLING, BILLING_KINDS, EVENTS, TRAINING, CloudEvents
from tests.unit.log.golden_events import event_classes, golden_path

GOLDEN = sorted((Path(__file__).resolve().parents[2] / "golden").glob("*.json"))
MOVES = {
    "transfer.posted": ("transfer", "wallet.acme.USD,wallet.bolt.USD", "USD", "12.50"),
    "contract.escrow_funded": ("hold", "wallet.acme.USD", "USD", "12.50"),
    "contract.escrow_released": ("post", "wallet.acme.USD,wallet.bolt.USD,fees.platform.USD", "USD", "12.50"),
    "account.opened": ("open", "wallet.acme.USD", None, None),
    "payout.requested": ("hold", "earnings.acme.USD", "USD", "12.50"),
    "payout.paid": ("post", "earnings.acme.USD,cash.platform.USD", "USD", "12.50"),
    "payout.failed": ("void", None, "USD", "12.50"),
    "invoice.issued": ("transfer", "receivable.acme.USD,revenue.platform.USD", "USD", "12.50"),
    "grant.burned": ("transfer", "credits.acme.USD,receivable.acme.USD", "USD", "12.50"),
    "rental.requested": ("hold", "wallet.acme.USD", "USD", "12.50"),
    "rental.ended": ("post,expire", "wallet.acme.USD,earnings.bolt.USD,fees.platform.USD", "USD", "12.50"),
    "purchase.refunded": ("void", None, "USD", "12.50"),
    "contract.escrow_refunded": ("void", None, "USD", "12.50"),
}


USES = ("rental", "subscription", "purchase")


def written(record: bytes, position: int = 7) -> dict[str, Message]:
    """Write one record's messages, by topic."""
    found = list(CloudEvents("log.test").messages(Stored(position, digest(record), record)))
    assert len({message.topic for message in found}) == len(found)
    return {message.topic: message for message in found}


def said(message: Message) -> dict[str, str]:
    """Read a message's headers."""
    assert len(dict(message.headers)) == len(message.headers)
    return {name: str(value) for name, value in message.headers}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_record_is_written_unchanged_with_what_the_standard_asks_for(path: Path) -> None:
    record = path.read_bytes()
    envelope = json.loads(record)
    for message in written(record).values():
        headers = said(message)
        assert message.value == record
        assert message.key == headers["ce_subject"] == headers["ce_partitionkey"] == envelope["stream"]
        assert headers["ce_id"] == address_text(digest(record))
        assert headers["ce_source"] == "log.test"
        assert headers["ce_specversion"] == "1.0"
        assert headers["ce_type"] == envelope["type"]
        assert headers["ce_time"] == envelope["at"]
        assert headers["ce_dataschema"].endswith(f"/{envelope['type']}/{envelope['schema']}")
        assert headers["ce_sequence"] == "00000000000000000007"
        assert headers["ce_tenant"] == envelope["tenant"]
        assert headers.get("ce_correlationid") == envelope["correlation"]
        assert headers.get("ce_causationid") == envelope["causation"]
        assert headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_record_goes_where_its_readers_are(path: Path) -> None:
    envelope = json.loads(path.read_bytes())
    group = envelope["type"].split(".")[0]
    wanted = {EVENTS}
    if group in ("training", "round"):
        wanted.add(TRAINING)
    billing = (
        "account",
        "transfer",
        "usage",
        "price_book",
        "price_sheet",
        "customer",
        "quota",
        "grant",
        "invoice",
    )
    if envelope["data"].get("money") or group in (*billing, "credit_note", "payout", *USES):
        wanted.add(BILLING)
    assert set(written(path.read_bytes())) == wanted


@pytest.mark.parametrize("topic", MOVES)
def test_the_billing_topic_says_what_is_moved_and_where(topic: str) -> None:
    path = next(path for path in GOLDEN if path.stem.startswith(topic + "."))
    headers = said(written(path.read_bytes())[BILLING])
    names = ("ce_operations", "ce_accounts", "ce_currency", "ce_amount")
    assert tuple(headers.get(name) for name in names) == MOVES[topic]
    assert headers["ce_recordedtime"] == headers["ce_time"]


def test_usage_says_what_was_used_and_when() -> None:
    record = next(path for path in GOLDEN if path.stem.startswith("usage.metered")).read_bytes()
    data = json.loads(record)["data"]
    headers = said(written(record)[BILLING])
    assert headers["ce_tokensin"] == str(data["tokens_in"])
    assert headers["ce_tokensout"] == str(data["tokens_out"])
    assert headers["ce_occurredtime"] == data["occurred_at"]
    assert (headers["ce_amount"], headers["ce_currency"]) == (
        data["cost"]["amount"],
        data["cost"]["currency"],
    )


CLASSES = event_classes()


@pytest.mark.parametrize("wire_type", CLASSES)
def test_every_event_that_may_move_money_or_is_about_billing_is_on_the_billing_topic(wire_type: str) -> None:
    """Walk the events there are, not a list of them: what is new tomorrow is held against this too."""
    event = CLASSES[wire_type]
    module = event.__module__
    about_billing = (
        module.startswith(("domain.billing.", "domain.rental.")) and "reconciliation" not in module
    )
    record = golden_path(wire_type, event.SCHEMA).read_bytes()
    assert (BILLING in written(record)) is (issubclass(event, MoneyEvent) or about_billing)
    if issubclass(event, MoneyEvent):
        # A price of nothing moves nothing, and its readers hear of it all the same.
        envelope = json.loads(record)
        envelope["data"]["money"] = []
        assert BILLING in written(json.dumps(envelope).encode())


def test_the_kinds_of_billing_are_kinds_there_are() -> None:
    assert set(AGGREGATES) >= BILLING_KINDS


def headers_of(wire_type: str) -> dict[str, str]:
    """Read the headers of an event's golden record on the billing topic."""
    return said(written(golden_path(wire_type, CLASSES[wire_type].SCHEMA).read_bytes())[BILLING])


def test_an_invoice_is_told_by_its_number_its_period_and_its_prices() -> None:
    data = json.loads(golden_path("invoice.issued", 1).read_bytes())["data"]
    headers = headers_of("invoice.issued")
    assert headers["ce_documentnumber"] == data["number"]
    assert (headers["ce_periodstart"], headers["ce_periodend"]) == (data["period_start"], data["period_end"])
    assert headers["ce_priceref"] == ",".join(sheet["address"] for sheet in data["sheets"])
    assert headers["ce_invoice"] == headers_of("invoice.paid")["ce_invoice"] == "1"
    assert headers_of("credit_note.issued")["ce_invoice"] == headers_of("grant.burned")["ce_invoice"]


def test_a_rental_is_told_by_its_name_and_by_what_names_its_price() -> None:
    for wire_type in ("rental.requested", "rental.activated", "rental.extended", "rental.ended"):
        assert headers_of(wire_type)["ce_rental"] == "1"
    for wire_type in ("rental.requested", "purchase.made", "subscription.started", "subscription.changed"):
        assert headers_of(wire_type)["ce_priceref"] == "capsule-1"
    assert headers_of("usage.metered")["ce_rental"] == "rental-id-1"
    assert headers_of("rental.requested")["ce_persona"] == "persona-id-1"


def test_what_is_given_back_names_its_hold_and_its_sum() -> None:
    for wire_type in ("payout.failed", "purchase.refunded", "contract.escrow_refunded"):
        headers = headers_of(wire_type)
        assert headers["ce_holds"]
        assert (headers["ce_amount"], headers["ce_currency"]) == ("12.50", "USD")


def test_what_happened_is_what_was_recorded_where_nothing_else_is_said() -> None:
    assert headers_of("invoice.issued")["ce_occurredtime"] == headers_of("invoice.issued")["ce_time"]


def test_a_record_without_correlation_or_cause_has_no_such_headers() -> None:
    envelope = json.loads(GOLDEN[0].read_bytes()) | {"correlation": None, "causation": None}
    headers = said(written(json.dumps(envelope).encode())[EVENTS])
    assert not {"ce_correlationid", "ce_causationid"} & set(headers)


def test_a_type_this_release_does_not_know_is_relayed_all_the_same() -> None:
    envelope = json.loads(GOLDEN[0].read_bytes()) | {"type": "moon.landed", "data": {"amount": {"crater": 1}}}
    assert set(written(json.dumps(envelope).encode())) == {EVENTS}


def test_positions_sort_as_texts_as_they_do_as_numbers() -> None:
    record = GOLDEN[0].read_bytes()
    texts = [said(written(record, position)[EVENTS])["ce_sequence"] for position in (0, 9, 10, 10**6, 2**62)]
    assert texts == sorted(texts)


def test_what_is_no_record_stops_the_relay() -> None:
    with pytest.raises(LogDamagedError):
        written(b'{"stream":"a/b"}')
