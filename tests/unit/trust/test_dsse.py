"""Envelopes: the bytes that are signed, and which JSON is an envelope."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import EnvelopeMalformedError
from domain.trust.dsse import DsseEnvelope, Envelope, Signature, pae, seal_envelope
from domain.trust.keys import is_signed
from tests.unit.trust.trust_maker import key_of, sent

SHARED = Path(os.environ.get("SOMA_SHARED_DIR", Path(__file__).resolve().parents[4] / "shared"))
KIND = "http://example.com/HelloWorld"


def test_the_check_value_of_the_standard_comes_out() -> None:
    assert pae(KIND, b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("", b"", b"DSSEv1 0  0 "),
        ("application/example", b"hello", b"DSSEv1 19 application/example 5 hello"),
        ("application/example", "ほ".encode(), b"DSSEv1 19 application/example 3 \xe3\x81\xbb"),
        ("é", b"\x00\xff", b"DSSEv1 2 \xc3\xa9 2 \x00\xff"),
        ("a", b"x" * 100, b"DSSEv1 1 a 100 " + b"x" * 100),
    ],
)
def test_lengths_are_of_bytes_and_without_zeros_before_them(kind: str, body: bytes, expected: bytes) -> None:
    assert pae(kind, body) == expected


def test_the_worked_example_of_the_standard_is_read_as_it_is_printed() -> None:
    page = SHARED / "data" / "dsse" / "protocol.md"
    if not page.exists():
        pytest.skip("the standard's text is not in the shared data here")
    printed = json.loads(re.search(r"```json\n(\{.*?\})\n```", page.read_text(), re.DOTALL)[1])  # type: ignore[index]
    envelope = Envelope.parse(printed)
    assert envelope.payload == b"hello world"
    assert envelope.message().decode() in page.read_text()
    assert len(envelope.signatures[0].sig) == 64
    assert envelope.signatures[0].keyid == ""


@given(st.text(max_size=40), st.binary(max_size=200), st.text(max_size=40), st.binary(max_size=200))
def test_no_two_pairs_of_type_and_payload_are_the_same_bytes(a: str, x: bytes, b: str, y: bytes) -> None:
    assert (pae(a, x) == pae(b, y)) == ((a, x) == (b, y))


@given(st.binary(max_size=300), st.lists(st.sampled_from("abcd"), min_size=1, max_size=4))
def test_an_envelope_is_read_back_as_it_was_written(payload: bytes, names: list[str]) -> None:
    envelope = seal_envelope("application/vnd.test+json", payload, *(key_of(name) for name in names))
    assert Envelope.parse(json.loads(msgspec.json.encode(envelope))) == envelope
    assert msgspec.json.decode(msgspec.json.encode(envelope), type=Envelope) == envelope


def url_safe(value: str) -> str:
    """Write base64 in its other alphabet."""
    return value.replace("+", "-").replace("/", "_")


@given(st.binary(max_size=300))
def test_both_alphabets_are_read(payload: bytes) -> None:
    envelope = seal_envelope("application/vnd.test+json", payload, key_of("a"))
    given_ = sent(envelope)
    given_["payload"] = url_safe(given_["payload"])
    given_["signatures"][0]["sig"] = url_safe(given_["signatures"][0]["sig"])
    assert Envelope.parse(given_) == envelope


def test_members_nobody_knows_are_passed_over() -> None:
    envelope = seal_envelope("application/vnd.test+json", b"p", key_of("a"))
    given_ = sent(envelope) | {"more": 1}
    given_["signatures"][0]["cert"] = "x"
    assert Envelope.parse(given_) == envelope


def test_a_key_id_may_be_left_out_and_is_then_empty() -> None:
    given_ = sent(seal_envelope("application/vnd.test+json", b"p", key_of("a")))
    del given_["signatures"][0]["keyid"]
    assert Envelope.parse(given_).signatures[0].keyid == ""


GOOD = sent(Envelope(b"hello?>", "application/vnd.test+json", [Signature(bytes(64))]))


@pytest.mark.parametrize(
    "change",
    [
        {"payload": None},
        {"payload": 1},
        {"payload": "aGVsbG8"},
        {"payload": "aGVsbG9="},
        {"payload": "aGVs bG8="},
        {"payload": "aGVsbG8=\n"},
        {"payload": "-/=="},
        {"payload": "é"},
        {"payload": base64.b64encode(b"x" * 16_385).decode()},
        {"payloadType": None},
        {"payloadType": ""},
        {"payloadType": "x" * 257},
        {"signatures": []},
        {"signatures": {}},
        {"signatures": [{}]},
        {"signatures": [{"sig": 1}]},
        {"signatures": [{"sig": "*"}]},
        {"signatures": [{"sig": "AA==", "keyid": None}]},
        {"signatures": [{"sig": "AB=="}]},
        {"signatures": [{"sig": "AA=="}] * 33},
    ],
    ids=repr,
)
def test_what_is_no_envelope_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(EnvelopeMalformedError):
        Envelope.parse({k: v for k, v in (GOOD | change).items() if v is not None or k == "payloadType"})


@pytest.mark.parametrize("value", [None, [], "envelope", 1, {}, {"payload": ""}])
def test_what_is_no_object_of_these_members_is_refused(value: Any) -> None:
    with pytest.raises(EnvelopeMalformedError):
        Envelope.parse(value)


def test_a_message_says_where_the_fault_is() -> None:
    with pytest.raises(EnvelopeMalformedError, match=r"signatures\.0\.sig"):
        Envelope.parse(GOOD | {"signatures": [{"sig": 7}]})


def test_a_body_that_was_read_already_is_taken_as_it_is() -> None:
    assert Envelope.parse(DsseEnvelope.model_validate(GOOD)) == Envelope.parse(GOOD)


@given(st.data())
def test_one_bit_changed_in_type_or_payload_breaks_the_signature(data: st.DataObject) -> None:
    key = key_of("a")
    envelope = seal_envelope("application/vnd.test+json", b'{"a":"b"}', key)
    at = data.draw(st.integers(0, len(envelope.payload) * 8 - 1))
    payload = bytearray(envelope.payload)
    payload[at // 8] ^= 1 << at % 8
    signature = envelope.signatures[0].sig
    assert is_signed(key.public_key, signature, envelope.message())
    assert not is_signed(key.public_key, signature, pae(envelope.payload_type, bytes(payload)))
    assert not is_signed(key.public_key, signature, pae(envelope.payload_type + ".", envelope.payload))
