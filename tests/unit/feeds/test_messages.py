"""What is sent: the stored bytes of a record inside a message that is always the same."""

from __future__ import annotations

import json
from hashlib import sha3_512

from hypothesis import given
from hypothesis import strategies as st

from domain.feeds.messages import MESSAGE_BYTES_MAX, message_body, message_id
from domain.market.disputes import Dispute
from domain.market.offers import Offer
from projections.webhooks import pause_of
from tests.unit.log.golden_events import golden_record


def body_of(record: bytes) -> bytes:
    """Make the message of a record."""
    address = sha3_512(record).digest()
    return message_body(
        position=7, address=address, wire_type="offer.listed", stream="offer/1", tenant="acme", record=record
    )


def padded(size: int) -> bytes:
    """Make a record of a size."""
    record = {"at": "2026-01-01T00:00:00.000000Z", "data": {"x": ""}}
    empty = json.dumps(record, separators=(",", ":")).encode()
    return empty.replace(b'""', b'"' + b"y" * (size - len(empty)) + b'"')


def test_a_message_carries_the_stored_bytes_and_what_they_hash_to() -> None:
    record = golden_record("offer.listed", Offer.Listed)
    body = body_of(record)
    message = json.loads(body)
    assert list(message) == ["type", "timestamp", "data"]
    assert message["timestamp"] == message["data"]["record"]["at"]
    assert record in body
    assert message["data"]["address"] == "sha3-512:" + sha3_512(record).hexdigest()
    assert body_of(record) == body


@given(size=st.integers(100, 65_535) | st.integers(19_000, 20_100))
def test_a_message_is_small_and_names_the_record_where_it_does_not_hold_it(size: int) -> None:
    record = padded(size)
    message = json.loads(body := body_of(record))
    assert len(body) < MESSAGE_BYTES_MAX
    assert (message["data"]["record"] is None) == ("link" in message["data"])
    if "link" in message["data"]:
        assert message["data"]["link"] == "/v1/log/records/7"
        assert size > MESSAGE_BYTES_MAX - 1_000


def test_an_id_is_of_the_record_and_fits_any_header() -> None:
    one, two = message_id(b"\x01" * 64), message_id(b"\x02" * 64)
    assert one == message_id(b"\x01" * 64) != two
    assert one.isascii()
    assert "." not in one


@given(delay=st.floats(0, 1e6), wish=st.none() | st.floats(0, 86_400), chance=st.floats(0, 1))
def test_a_pause_is_spread_by_a_fifth_and_never_shorter_than_the_receiver_asks(
    delay: float, wish: float | None, chance: float
) -> None:
    pause = pause_of(delay, wish, chance)
    assert pause >= 0.8 * delay * 0.999_999
    assert pause >= (wish or 0)
    assert pause <= max(1.2 * delay * 1.000_001, wish or 0)


def test_a_record_is_one_line_whatever_is_in_it() -> None:
    record = golden_record("dispute.opened", Dispute.Opened)
    assert b"tab" in record
    assert not set(b"\n\r") & set(record)
