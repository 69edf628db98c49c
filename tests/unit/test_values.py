"""Money is exact and has one spelling; moments sort as text; fields accept what they say and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from domain.errors import AmountInvalidError, CurrencyMismatchError, CurrencyUnknownError
from domain.fields import Command, JsonObject, Label, Labels, Moment, Share, share_ppm
from domain.values import (
    AMOUNT_NANO_MAX,
    CURRENCY_DIGITS,
    NANO,
    SUM_NANO_MAX,
    Money,
    Name,
    Tenant,
    moment_of,
    moment_text,
    parse_nano,
    print_nano,
)

currencies = st.sampled_from(sorted(CURRENCY_DIGITS))
nanos = st.one_of(
    st.integers(-SUM_NANO_MAX, SUM_NANO_MAX),
    st.integers(-20, 20),
    st.integers(-1_000_000, 1_000_000).map(lambda n: n * NANO // 1000),
)
years = st.integers(2, 9998)
moments = st.builds(
    lambda year, at: at.replace(year=year, day=min(at.day, 28)),
    years,
    st.datetimes(timezones=st.timezones() | st.just(UTC)),
)

NOT_AMOUNTS = [
    "", " ", "1 ", " 1", "1\n", "+1", "--1", "-", ".", "1.", ".5", "-.5", "01", "00", "-01", "0x10", "1_000",
    "1,5", "1e3", "1E3", "1e-3", "NaN", "nan", "inf", "-Infinity", "1.0000000001", "٣", "1.٣", "１", "½",
    "1\0", "1 000", "$1", "1/2", "99999999999999999", "1000000000000000.000000001", "-1000000000000000.000000001",
]  # fmt: skip
NOT_TEXT = [1, 0, -1, 1.5, True, False, None, b"1", Decimal(1), ["1"], {"amount": "1"}]


class TestAmount:
    @given(nanos, currencies)
    def test_printing_and_reading_give_the_same_number(self, nano, currency):
        assert parse_nano(print_nano(nano, currency)) == nano

    @given(nanos, currencies)
    def test_what_is_printed_is_the_exact_decimal(self, nano, currency):
        assert Fraction(Decimal(print_nano(nano, currency))) == Fraction(nano, NANO)

    @given(nanos, currencies)
    def test_reading_and_printing_gives_one_spelling(self, nano, currency):
        money = Money.of(nano, currency)
        padded = money.amount if "." in money.amount else money.amount + "."
        padded += "0" * (9 - len(padded.partition(".")[2]))
        assert Money.parse(padded, currency) == money
        assert Money.parse(money.amount, currency) == money

    @given(nanos, currencies)
    def test_no_digit_is_printed_beyond_the_currency_s_unless_it_counts(self, nano, currency):
        decimals = print_nano(nano, currency).partition(".")[2]
        digits = CURRENCY_DIGITS[currency]
        assert len(decimals) == digits or (len(decimals) > digits and decimals[-1] != "0")

    @pytest.mark.parametrize("text", NOT_AMOUNTS)
    def test_what_is_no_plain_decimal_is_refused(self, text):
        with pytest.raises(AmountInvalidError):
            parse_nano(text)
        with pytest.raises(AmountInvalidError):
            Money.parse(text, "USD")

    @pytest.mark.parametrize("value", NOT_TEXT)
    def test_numbers_that_are_no_text_are_refused(self, value):
        with pytest.raises(AmountInvalidError):
            parse_nano(value)

    @pytest.mark.parametrize(
        ("nano", "currency", "text"),
        [
            (0, "USD", "0.00"),
            (0, "JPY", "0"),
            (0, "KWD", "0.000"),
            (12_500_000_000, "USD", "12.50"),
            (12_500_000_000, "JPY", "12.5"),
            (12_000_000_000, "JPY", "12"),
            (12_500_000_000, "BHD", "12.500"),
            (1, "USD", "0.000000001"),
            (-1, "USD", "-0.000000001"),
            (10_010_000_000, "USD", "10.01"),
            (10_001_000_000, "USD", "10.001"),
            (AMOUNT_NANO_MAX, "USD", "1000000000000.00"),
        ],
    )
    def test_a_currency_shows_its_digits(self, nano, currency, text):
        assert print_nano(nano, currency) == text
        assert parse_nano(text) == nano

    def test_there_is_no_negative_zero(self):
        assert Money.parse("-0.00", "USD") == Money.parse("0", "USD")

    def test_the_greatest_sum_is_read_and_one_nano_more_is_not(self):
        assert parse_nano("1000000000000000") == SUM_NANO_MAX
        with pytest.raises(AmountInvalidError):
            parse_nano("1000000000000000.000000001")


class TestMoney:
    @pytest.mark.parametrize("currency", ["usd", "XXX", "BTC", "", "US", "USDD", "USD ", "ＵＳＤ"])
    def test_an_unknown_currency_is_refused(self, currency):
        with pytest.raises(CurrencyUnknownError):
            Money.parse("1", currency)

    @given(st.integers(-(10**20), 10**20), st.integers(-(10**20), 10**20), currencies)
    def test_sums_are_exact(self, left, right, currency):
        assert (Money.of(left, currency) + Money.of(right, currency)).nano == left + right

    def test_currencies_do_not_mix(self):
        with pytest.raises(CurrencyMismatchError):
            Money.parse("1", "USD") + Money.parse("1", "EUR")

    def test_every_currency_has_none_two_or_three_digits(self):
        assert set(CURRENCY_DIGITS.values()) == {0, 2, 3}
        assert all(len(code) == 3 and code.isascii() and code.isupper() for code in CURRENCY_DIGITS)

    @given(st.integers(0, AMOUNT_NANO_MAX), currencies)
    def test_the_wire_gives_back_what_it_was_given(self, nano, currency):
        adapter, money = TypeAdapter(Money), Money.of(nano, currency)
        assert adapter.validate_json(adapter.dump_json(money)) == money
        assert msgspec.json.decode(msgspec.json.encode(money), type=Money) == money

    @pytest.mark.parametrize(
        "amount", [*NOT_AMOUNTS, *NOT_TEXT, "-1", "-0.000000001", "1000000000000.000000001"]
    )
    def test_a_malformed_negative_or_absurd_amount_is_refused_on_the_wire(self, amount):
        with pytest.raises(ValidationError):
            TypeAdapter(Money).validate_python({"amount": amount, "currency": "USD"})

    def test_the_greatest_amount_a_caller_may_name_is_taken(self):
        money = TypeAdapter(Money).validate_python({"amount": "1000000000000", "currency": "USD"})
        assert money.nano == AMOUNT_NANO_MAX

    @pytest.mark.parametrize(
        "value",
        [
            None, 1, "1.00", "USD", [], {}, {"amount": "1"}, {"currency": "USD"},
            {"amount": "1", "currency": "USD", "more": 1}, {"amount": "1", "currency": None},
            {"amount": "1", "currency": ["USD"]}, {"amount": "1", "currency": {}}, ["1", "USD"],
        ],
    )  # fmt: skip
    def test_money_is_an_object_of_exactly_two_members(self, value):
        with pytest.raises(ValidationError):
            TypeAdapter(Money).validate_python(value)


class TestMoment:
    @given(moments, moments)
    def test_the_order_of_the_text_is_the_order_of_time(self, left, right):
        assert (moment_text(left) < moment_text(right)) == (left.astimezone(UTC) < right.astimezone(UTC))

    @given(moments)
    def test_a_moment_survives_its_text(self, moment):
        text = moment_text(moment)
        assert moment_of(text) == moment.astimezone(UTC)
        assert moment_text(moment_of(text)) == text
        assert len(text) == 27
        assert text.endswith("Z")

    @given(moments, st.integers(0, 10**6))
    def test_a_span_is_the_same_whatever_the_clocks_on_the_wall_do(self, moment, seconds):
        start = moment_of(moment_text(moment))
        later = moment_of(moment_text(start + timedelta(seconds=seconds)))
        assert (later - start).total_seconds() == seconds

    @pytest.mark.parametrize(
        ("text", "canonical"),
        [
            ("2030-01-31T12:00:00Z", "2030-01-31T12:00:00.000000Z"),
            ("2030-01-31t12:00:00z", "2030-01-31T12:00:00.000000Z"),
            ("2030-01-31T12:00:00+02:00", "2030-01-31T10:00:00.000000Z"),
            ("2030-01-31T12:00:00.5-00:30", "2030-01-31T12:30:00.500000Z"),
            ("0300-01-01T00:00:00Z", "0300-01-01T00:00:00.000000Z"),
        ],
    )
    def test_a_time_with_an_offset_is_read(self, text, canonical):
        assert TypeAdapter(Moment).validate_python(text) == canonical

    @pytest.mark.parametrize(
        "text",
        [
            "", "2030-01-31", "2030-01-31T12:00:00", "2030-01-31 12:00:00Z", "20300131T120000+0000",
            "2030-W05-4T12:00:00Z", "2030-02-30T12:00:00Z", "2030-01-31T25:00:00Z", "2030-01-31T12:00Z",
            "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2030-01-31T12:00:00+99:00",
            "٢٠٣٠-01-31T12:00:00Z", "2030-01-31T12:00:00Z\n", "now", 1_900_000_000, None,
        ],
    )  # fmt: skip
    def test_what_is_no_rfc_3339_time_with_an_offset_is_refused(self, text):
        with pytest.raises(ValidationError):
            TypeAdapter(Moment).validate_python(text)

    def test_a_moment_of_another_zone_is_written_in_utc(self):
        zone = timezone(timedelta(hours=5, minutes=45))
        assert moment_text(datetime(2026, 1, 1, tzinfo=zone)) == "2025-12-31T18:15:00.000000Z"


class TestShare:
    @given(st.integers(0, 1_000_000), st.integers(0, 6))
    def test_a_share_is_read_exactly(self, ppm, digits):
        text = f"{ppm // 1_000_000}.{ppm % 1_000_000:06d}"
        assert share_ppm(TypeAdapter(Share).validate_python(text)) == ppm
        cut = text[: 1 + bool(digits) + digits]
        assert share_ppm(cut) == Fraction(cut) * 1_000_000

    @pytest.mark.parametrize(
        "text", ["1.000001", "1.1", "2", "-0", "-0.5", ".5", "0.", "0.0000001", "00.5", "1e-1", "NaN", "", 0.5, 1, True]
    )  # fmt: skip
    def test_what_is_no_share_of_one_is_refused(self, text):
        with pytest.raises(ValidationError):
            TypeAdapter(Share).validate_python(text)


class TestFields:
    @pytest.mark.parametrize("text", ["", "-a", "a\n", "a\0", "ä", "a" * 129, " a", 1, None])
    def test_a_label_is_short_plain_text(self, text):
        with pytest.raises(ValidationError):
            TypeAdapter(Label).validate_python(text)

    @pytest.mark.parametrize("text", ["", "a", "A1", "-a", "a_b", "a\n", "é" * 3, "a" * 64])
    def test_a_tenant_is_a_short_lower_case_name(self, text):
        with pytest.raises(ValidationError):
            TypeAdapter(Tenant).validate_python(text)

    @pytest.mark.parametrize("text", ["", "/a", "a b", "a\n", "a" * 129])
    def test_a_name_is_plain(self, text):
        with pytest.raises(ValidationError):
            TypeAdapter(Name).validate_python(text)

    def test_labels_are_distinct_and_few(self):
        assert TypeAdapter(Labels).validate_python(["a", "b"]) == ["a", "b"]
        for wrong in (["a", "a"], [f"n{n}" for n in range(33)]):
            with pytest.raises(ValidationError):
                TypeAdapter(Labels).validate_python(wrong)

    @pytest.mark.parametrize(
        "value",
        [
            {"a": 0.5}, {"a": float("nan")}, {"a": 2**53}, {"ä": 1}, {"a": b"x"}, {"a": (1,)}, {"a": {1: 2}},
            {"a": "x" * 16_384}, {"a": "\ud800"}, {"a": {"b": [1.0]}},
        ],
    )  # fmt: skip
    def test_a_json_member_holds_what_a_record_can_hold(self, value):
        with pytest.raises(ValidationError):
            TypeAdapter(JsonObject).validate_python(value)

    def test_a_command_takes_its_fields_and_no_others_strictly(self):
        class Try(Command):
            count: int

        assert Try(count=1).count == 1
        for wrong in ({"count": "1"}, {"count": 1.0}, {"count": True}, {"count": 1, "more": 2}, {}):
            with pytest.raises(ValidationError):
                Try.model_validate(wrong)
        with pytest.raises(ValidationError):
            Try(count=1).count = 2
