"""What is read from bytes in one pass is what the models would have read, to the byte a key is held against."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from api.routes.usage import UsagePart
from domain.billing.readings import Readings, read_readings
from domain.billing.usage import COUNT_MAX, READINGS_MAX, Flaw, MeterUsage, Reading
from domain.canonical import read_json
from domain.errors import InvalidError
from tests.unit.billing.usage_maker import a_reading

PART = 3


def by_the_models(data: bytes) -> list[UsagePart] | None:
    """Read a request as the models do, each reading by itself; None where the request as a whole is refused."""
    try:
        readings = MeterUsage.model_validate(read_json(data)).readings
    except (InvalidError, ValidationError):
        return None
    return [
        UsagePart(readings=readings[start : start + PART], part=start // PART, count=len(readings))
        for start in range(0, len(readings), PART)
    ]


def body(*readings: Any) -> bytes:
    return json.dumps({"readings": list(readings)}).encode()


def check_same(data: bytes) -> bool:
    """Hold both ways of reading against one another; say whether the fast one answered."""
    fast = read_readings(data, PART)
    if fast is None:
        return False
    slow = by_the_models(data)
    assert slow is not None, "a request was read that the models refuse"
    assert len(fast) == len(slow)
    for mine, theirs in zip(fast, slow, strict=True):
        assert not any(isinstance(one, Flaw) for one in theirs.readings), "a flaw was read over"
        assert list(mine.offered) == list(theirs.offered)
        assert mine.names("acme") == theirs.names("acme")
        assert mine.model_dump_json(exclude_unset=True) == theirs.model_dump_json(exclude_unset=True)
    return True


GOOD: dict[str, list[Any]] = {
    "source": ["gateway-eu", "~!", "x" * 200, "/a:b,{}[]"],
    "event_id": ["e1", ":", "req_0001", "y" * 200],
    "occurred_at": [
        "2026-03-01T12:00:00.000000Z", "2026-03-01T12:00:00Z", "2026-03-01t13:00:00.5+01:00",
        "2024-02-29T23:59:59.999999Z", "2026-03-01T12:00:00.123456789Z", "2026-03-01T12:00:00-00:00",
    ],
    "provider": ["openai", "a b", "A" * 128], "model": ["gpt-4o-mini", "x/y:z@1+2"],
    "tokens_in": [0, 1, COUNT_MAX], "tokens_out": [0, 350],
    "cached_tokens": [..., None, 0, 7], "requests": [..., 1, COUNT_MAX], "latency_ms": [..., None, 830],
    "cost": [
        ..., None, {"amount": "0.000123", "currency": "USD"}, {"amount": "0.5", "currency": "USD"},
        {"amount": "7", "currency": "JPY"}, {"amount": "7.5", "currency": "JPY"},
        {"amount": "1.500", "currency": "KWD"}, {"amount": "1.50", "currency": "KWD"},
        {"currency": "EUR", "amount": "999999999999.99"},
        {"amount": "1000000000000", "currency": "EUR"}, {"amount": "0", "currency": "USD"},
        {"amount": "0.10", "currency": "USD"},
        {"amount": "0.100", "currency": "USD"}, {"amount": "0.123456789", "currency": "BHD"},
    ],
    "status": [..., "ok", "error"], "rental_id": [..., None, "rental-1"], "persona_id": [..., None, "p:1"],
    "tenant": [..., None, "acme", "b0"], "reservation_id": [..., None, "reservation-1"],
}  # fmt: skip

BAD: dict[str, list[Any]] = {
    "source": ["", "a b", "x" * 201, 1, None, "\u00e9", "a\n", "\x7f", 'a"b', "a\\b"],
    "event_id": ["", "a b", "e\n", "e\x00", "y" * 201, ..., True, "\ud800"],
    "occurred_at": [
        "2026-02-30T12:00:00.000000Z", "2026-03-01T24:00:00.000000Z", "2026-03-01T12:00:60.000000Z",
        "2026-03-01T12:00:00", "2026-13-01T12:00:00.000000Z", "0000-01-01T00:00:00.000000Z",
        "0001-01-01T00:00:00+23:59", "now", 5, None,
        "2026-03-01 12:00:00.000000Z", "2026-03-01T12:00:00.000000Z\n", "\u0662026-03-01T12:00:00.000000Z",
    ],
    "provider": ["", " x", "A" * 129, "x\n"], "model": ["", "-x", None],
    "tokens_in": [-1, 1.0, "1", True, None, COUNT_MAX + 1, 10**30, 1e3], "tokens_out": [..., 0.5, False],
    "cached_tokens": [-1, 1.0, "0"], "requests": [0, None, 1.0], "latency_ms": [-5, 2.0],
    "cost": [
        {"amount": "-1", "currency": "USD"}, {"amount": "-0", "currency": "USD"}, {"amount": 0.1, "currency": "USD"},
        {"amount": "1", "currency": "XXX"}, {"amount": "1"}, {"amount": "1", "currency": "USD", "more": 1}, "1 USD", [],
        {"amount": "1000000000000.01", "currency": "USD"}, {"amount": "01", "currency": "USD"},
        {"amount": "1.", "currency": "USD"},
        {"amount": "0.0000000001", "currency": "USD"}, {"amount": "1\n", "currency": "USD"},
        {"amount": "1.50\n", "currency": "USD"},
    ],
    "status": ["meh", None, "OK"], "rental_id": ["", "-r", "r\n", 5], "persona_id": ["", "a b", "x" * 201],
    "tenant": ["", "a", "Acme", "a_b", "ab\n", "a" * 64], "colour": ["red"],
    "reservation_id": ["", "-r", 1], "requests ": [1],
}  # fmt: skip


@st.composite
def sent_readings(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a reading that is well formed, or one of which one member is not."""
    found = {name: draw(st.sampled_from(values)) for name, values in GOOD.items()}
    if draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from(sorted(BAD)))
        found[name] = draw(st.sampled_from(BAD[name]))
    members = draw(st.permutations(sorted(found)))
    return {name: found[name] for name in members if found[name] is not ...}


class TestTheSameAsTheModels:
    @settings(max_examples=400)
    @given(st.lists(sent_readings(), min_size=1, max_size=5), st.sampled_from([None, 1, "\t"]))
    def test_whatever_is_read_in_one_pass_is_read_as_the_models_read_it(self, readings, indent):
        check_same(json.dumps({"readings": readings}, indent=indent).encode())

    @pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in GOOD.items() for v in vs])
    def test_what_is_well_formed_is_read_in_one_pass(self, name, value):
        assert check_same(body(a_reading(**{name: value})))

    @pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in BAD.items() for v in vs])
    def test_what_is_not_is_left_to_the_models(self, name, value):
        assert read_readings(body(a_reading("before"), a_reading(**{name: value})), PART) is None

    @given(st.text(max_size=30), st.sampled_from(sorted(GOOD)))
    @example("\n", "tenant")
    def test_no_text_is_taken_that_the_models_refuse(self, text, name):
        check_same(body(a_reading(**{name: text})))
        check_same(
            json.dumps({"readings": [a_reading(**{name: text})]}, ensure_ascii=False).encode(errors="replace")
        )

    @given(st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z", fullmatch=True))
    def test_every_moment_is_the_one_the_models_read(self, text):
        check_same(body(a_reading(occurred_at=text)))

    @given(
        st.from_regex(r"-?[0-9]{1,14}(\.[0-9]{0,10})?", fullmatch=True),
        st.sampled_from(["USD", "JPY", "KWD", "CLP", "XXX"]),
    )
    def test_every_amount_is_the_one_the_models_read(self, amount, currency):
        check_same(body(a_reading(cost={"amount": amount, "currency": currency})))

    @given(st.binary(max_size=60), st.integers(0, 2**16))
    def test_bytes_that_were_spoiled_are_never_read_as_something_else(self, noise, at):
        whole = body(a_reading("a"), a_reading("b", requests=3))
        place = at % len(whole)
        check_same(whole[:place] + noise + whole[place + len(noise) :])
        check_same(whole[:place] + noise + whole[place:])

    @pytest.mark.parametrize(
        "number", ["1.0", "1e2", "1E0", "-0", "01", "+1", "0x1", "1_0", "NaN", "1.", "123456789012345678901"]
    )
    def test_a_number_is_one_for_both_or_for_none(self, number):
        check_same(body(a_reading(tokens_in=77)).replace(b"77", number.encode()))


class TestWhatMakesARequest:
    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b'"tokens_out"', b'"tokens_in": 5, "tokens_out"'),
            (b'"currency"', b'"amount": "9", "currency"'),
            (b'"source"', b'"source" : "other", "source"'),
            (b'"readings": ', b'"readings": [], "readings": '),
        ],
    )
    def test_a_name_that_occurs_twice_is_left_to_the_models(self, old, new):
        data = body(a_reading(), a_reading("e2")).replace(old, new)
        assert by_the_models(data) is None
        assert read_readings(data, PART) is None
        # Nor can a name written without a colon behind it, or a text that begins with one, hide another.
        hidden = data.replace(b'"model":', b'"model" :').replace(b"gateway-eu", b":gateway")
        assert read_readings(hidden, PART) is None

    def test_what_is_escaped_or_beyond_ascii_is_left_to_the_models(self):
        for data in (
            body(a_reading()).replace(b"openai", b"open\\u0061i"),
            body(a_reading()).replace(b'"model"', b'"m\\u006fdel"'),
            "\ufeff".encode() + body(a_reading()),
            body(a_reading()).replace(b"openai", "\u00f6penai".encode()),
        ):
            assert read_readings(data, PART) is None

    @pytest.mark.parametrize(
        "data", [b"", b"[]", b"{}", b'{"readings": []}', b'{"readings": [1]}', b"\xff", b"null"]
    )
    def test_a_body_of_another_shape_is_left_to_the_models(self, data):
        assert read_readings(data, PART) is None

    def test_more_than_may_come_at_once_is_left_to_the_models(self):
        many = [a_reading(f"e{n}") for n in range(READINGS_MAX + 1)]
        assert read_readings(body(*many), PART) is None
        parts = read_readings(body(*many[:-1]), 1_000)
        assert parts is not None
        assert [len(part.offered) for part in parts] == [1_000] * 10

    def test_a_part_says_how_many_there_were_in_all(self):
        parts = read_readings(body(*[a_reading(f"e{n}") for n in range(4)]), PART)
        assert parts is not None
        assert [json.loads(part.model_dump_json())["count"] for part in parts] == [4, 4]
        assert [json.loads(part.model_dump_json())["part"] for part in parts] == [0, 1]
        assert all(isinstance(part, Readings) for part in parts)

    def test_every_field_of_a_reading_is_known_to_both(self):
        assert set(GOOD) == set(Reading.model_fields)
