"""Canonical JSON: one spelling for one value."""

from __future__ import annotations

import json
import struct
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.canonical import INTEGER_MAX, encode, encode_record, is_canonical
from domain.errors import NotCanonicalError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
keys = st.text(st.characters(max_codepoint=127), max_size=8)
numbers = st.integers(-INTEGER_MAX, INTEGER_MAX)
records = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


class TestForeignDocuments:
    def test_the_published_triples_are_reproduced(self, shared_dir):
        folder = shared_dir / "data" / "jcs" / "testdata"
        inputs = sorted((folder / "input").glob("*.json"))
        assert len(inputs) == 6
        for source in inputs:
            written = encode(json.loads(source.read_text("utf-8")))
            assert written == (folder / "output" / source.name).read_bytes(), source.name
            in_hex = (folder / "outhex" / f"{source.stem}.txt").read_text("ascii")
            assert written == bytes.fromhex(in_hex), source.name

    def test_ten_thousand_published_numbers_are_reproduced(self, shared_dir):
        lines = (shared_dir / "data" / "jcs" / "es6_numbers_10000.txt").read_text("ascii").splitlines()
        assert len(lines) == 10_000
        for line in lines:
            bits, _, expected = line.partition(",")
            (number,) = struct.unpack(">d", int(bits, 16).to_bytes(8, "big"))
            assert encode(number) == expected.encode(), bits

    @pytest.mark.parametrize(
        ("bits", "expected"),
        [
            ("0000000000000000", "0"),
            ("8000000000000000", "0"),
            ("0000000000000001", "5e-324"),
            ("7fefffffffffffff", "1.7976931348623157e+308"),
            ("4340000000000000", "9007199254740992"),
            ("44b52d02c7e14af5", "9.999999999999997e+22"),
            ("44b52d02c7e14af6", "1e+23"),
            ("444b1ae4d6e2ef50", "1e+21"),
            ("3eb0c6f7a0b5ed8d", "0.000001"),
            ("41b3de4355555553", "333333333.3333332"),
            ("becbf647612f3696", "-0.0000033333333333333333"),
        ],
    )
    def test_numbers_of_the_standard_are_written_as_it_says(self, bits, expected):
        # RFC 8785, appendix B.
        (number,) = struct.unpack(">d", bytes.fromhex(bits))
        assert encode(number) == expected.encode()

    def test_keys_are_sorted_by_their_utf16_units(self):
        # RFC 8785, section 3.2.3: the emoji comes before U+FB33 although its code point is larger.
        assert encode({"\ufb33": 1, "\U0001f600": 2, "\r": 3}) == (
            '{"\\r":3,"\U0001f600":2,"\ufb33":1}'.encode()
        )

    @pytest.mark.parametrize(
        "value",
        [
            float("nan"), float("inf"), 2**53, -(2**53), "\ud800", {"\udfff": 1}, {1: 2}, {None: 1},
            b"bytes", {1, 2}, Decimal("1.5"),
        ],
    )  # fmt: skip
    def test_what_has_no_canonical_form_is_refused(self, value):
        with pytest.raises(NotCanonicalError):
            encode({"in": [value]})

    def test_a_document_nested_too_deeply_is_refused(self):
        value = []
        for _ in range(100_000):
            value = [value]
        with pytest.raises(NotCanonicalError):
            encode(value)
        with pytest.raises(NotCanonicalError):
            encode_record(value)


class TestRecords:
    @given(records)
    def test_the_fast_path_gives_the_same_bytes_as_the_standard(self, value):
        assert encode_record(value) == encode(value)

    @given(records)
    def test_the_encoder_of_structs_gives_the_same_bytes_too(self, value):
        assert msgspec.json.Encoder(order="sorted").encode(value) == encode(value)

    @given(records)
    def test_what_is_written_is_canonical_and_reads_back(self, value):
        data = encode_record(value)
        assert is_canonical(data)
        assert json.loads(data) == value
        assert encode_record(json.loads(data)) == data

    def test_every_control_character_is_escaped_as_the_standard_says(self):
        for code in range(0x80):
            assert encode_record(chr(code)) == encode(chr(code))

    @pytest.mark.parametrize(
        "value",
        [
            1.5, 2.0, -0.0, float("nan"), float("inf"), INTEGER_MAX + 1, -INTEGER_MAX - 1, 2**64, 2**200,
            "\ud800", {"\ud800": 1}, {"é": 1}, {"\U0001f600": 1}, {1: 2}, {None: 1}, {True: 1},
            b"bytes", {1, 2},
            Decimal("1.5"), (1, 2), object(),
        ],
    )  # fmt: skip
    def test_what_a_record_must_not_hold_is_refused(self, value):
        for place in (value, [value], {"a": {"b": [value]}}):
            with pytest.raises(NotCanonicalError):
                encode_record(place)

    def test_the_largest_safe_integers_are_kept(self):
        assert encode_record([INTEGER_MAX, -INTEGER_MAX]) == b"[9007199254740991,-9007199254740991]"

    @pytest.mark.parametrize(
        "data",
        [
            b'{"b":1,"a":2}', b'{"a": 1}', b'{"a":1} ', b'\n{"a":1}', b'{"a":1,"a":1}', b'{"a":1,"a":2}',
            b"1.5",
            b"1.0", b"1e3", b"-0", b"01", b"NaN", b"Infinity", b"9007199254740992", b"-9007199254740992",
            b"123456789012345678901234567890", b'"\\u0041"', b'"\\/"', b'"\\u000A"', b'"\\ud800"', b'"\xff"',
            b'"\xed\xa0\x80"', '{"é":1}'.encode(), '{"a":[{"é":1}]}'.encode(), b"", b"{",
            b"[" * 5_000 + b"]" * 5_000,
            b'\xef\xbb\xbf{"a":1}', b'{"a":1.25}',
        ],
    )  # fmt: skip
    def test_other_spellings_are_not_canonical(self, data):
        assert not is_canonical(data)

    @given(st.binary(max_size=40))
    def test_no_bytes_at_all_upset_the_judgement(self, data):
        assert is_canonical(data) in (True, False)

    @given(records.filter(lambda value: isinstance(value, dict)), st.data())
    def test_a_changed_byte_never_gives_the_same_value_canonically(self, value, data):
        written = bytearray(encode_record(value))
        at = data.draw(st.integers(0, len(written) - 1))
        written[at] ^= data.draw(st.integers(1, 255))
        if is_canonical(bytes(written)):
            assert json.loads(written) != value
