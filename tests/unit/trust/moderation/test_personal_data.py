"""Personal data: exact spans, each held by what makes it valid."""

from __future__ import annotations

from ipaddress import IPv4Address
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.trust.moderation.personal_data import (
    _IBAN_LENGTHS,
    find_personal_data,
    iban_holds,
    luhn_holds,
)


def found(text: str) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.end]) for span in find_personal_data(text)]


def with_luhn(digits: str) -> str:
    """Add the check digit, found by trying all ten."""
    return next(digits + str(n) for n in range(10) if luhn_holds(digits + str(n)))


def with_check(country: str, account: str) -> str:
    """Make an IBAN of an account, its two check digits found by trying all."""
    return next(iban for n in range(2, 99) if iban_holds(iban := f"{country}{n:02}{account}"))


CARD = st.builds(
    lambda head, tail: with_luhn((head + tail)[: 15 if head != "37" else 14]),
    st.sampled_from(["4", "51", "55", "2221", "6011", "3530", "37"]),
    st.text("0123456789", min_size=15, max_size=15).filter(lambda tail: len(set(tail)) > 3),
)
IBAN = st.builds(
    lambda country, digits: with_check(country, digits[: _IBAN_LENGTHS[country] - 4]),
    st.sampled_from(sorted(_IBAN_LENGTHS)),
    st.text("0123456789", min_size=30, max_size=30),
)


class TestChecks:
    @given(CARD, st.sampled_from(["", " ", "-"]))
    def test_a_card_is_found_however_it_is_grouped(self, card: str, sign: str) -> None:
        written = sign.join(card[at : at + 4] for at in range(0, len(card), 4))
        assert found(f"I lost {written}, please block it") == [("credit_card", written)]

    @given(CARD, st.integers(0, 14), st.integers(1, 9))
    def test_a_card_with_one_wrong_digit_is_none(self, card: str, at: int, more: int) -> None:
        wrong = card[:at] + str((int(card[at]) + more) % 10) + card[at + 1 :]
        assert ("credit_card", wrong) not in found(f"I lost {wrong}, please block it")

    @given(IBAN, st.booleans())
    def test_an_iban_is_found_and_ends_where_its_country_says(self, iban: str, is_grouped: bool) -> None:
        written = " ".join(iban[at : at + 4] for at in range(0, len(iban), 4)) if is_grouped else iban
        assert ("iban", written) in found(f"Pay to {written} by Friday")

    @given(IBAN, st.data())
    def test_an_iban_with_two_digits_exchanged_is_none(self, iban: str, data: st.DataObject) -> None:
        at = data.draw(st.integers(4, len(iban) - 2))
        wrong = iban[:at] + iban[at + 1] + iban[at] + iban[at + 2 :]
        if wrong != iban:
            assert not iban_holds(wrong)

    @given(st.integers(1, 2**32 - 1).map(IPv4Address))
    def test_an_address_of_the_internet_is_found_whole(self, address: IPv4Address) -> None:
        is_somebodys = address.is_global and not all(int(part) < 30 for part in str(address).split(".")[:3])
        if is_somebodys and int(address) < 0xE0000000:
            assert found(f"It came from {address}.") == [("ip_address", str(address))]

    @pytest.mark.parametrize(
        "wrong", ["000-12-3456", "666-12-3456", "912-12-3456", "123-00-4567", "123-45-0000"]
    )
    def test_a_social_security_number_that_is_never_given_is_none(self, wrong: str) -> None:
        assert ("us_ssn", wrong) not in found(f"my SSN is {wrong}")


class TestForms:
    @pytest.mark.parametrize(
        ("text", "kind", "told"),
        [
            ("Write to ann.smith+x@mail.example.org, please", "email", "ann.smith+x@mail.example.org"),
            ("Call me at (030) 901820 tomorrow", "phone_number", "(030) 901820"),
            ("+44 20 7946 0958", "phone_number", "+44 20 7946 0958"),
            ("ring 555-867-5309 x12 now", "phone_number", "555-867-5309 x12"),
            ("fax: 001-420-335-7509", "phone_number", "001-420-335-7509"),
            ("My number is 5558675309", "phone_number", "5558675309"),
            ("his SSN: 531 21 7351", "us_ssn", "531 21 7351"),
            ("2a02:8108:8ac0:1f00:dead:1:2:3 asked", "ip_address", "2a02:8108:8ac0:1f00:dead:1:2:3"),
            ("She was born on 12/27/1986 in Oslo", "birth_date", "12/27/1986"),
            ("date of birth: 3 May 1971", "birth_date", "3 May 1971"),
            ("My driver's license number is 481195160", "identity_number", "481195160"),
            ("passport no. C01X00T47", "identity_number", "C01X00T47"),
        ],
    )
    def test_it_is_found_with_its_exact_place(self, text: str, kind: str, told: str) -> None:
        assert found(text) == [(kind, told)]

    @pytest.mark.parametrize(
        "text",
        [
            "On 2026-11-21 at 10:15:00 the log had 123456789 records.",
            "ISBN 978-3-16-148410-0, pp. 210-357, vol. 1910-1914",
            "version 10.4.2.1 and 3.11.4",
            "sha3-512:0123456789012345678901234567890123456789",
            "git@github.com:example/project.git",
            "logo@2x.png and left-pad@1.3.0",
            "127.0.0.1, 0.0.0.0, ::1 and 255.255.255.0",
            "ObjectIdentifier(2.5.29.14)",
            "pi is 3.14159265358979, and 1,234,567.89 is a price",
            "0b4f9a3e-8a59-4b0c-9d1e-2f3a4b5c6d7e",
            "invoice 4556 156821609, order 20261121",
            "The years 1914-1918 and 1939-1945 are in chapter 10.",
            "coordinates 48.8566, 2.3522 and 0.12345678",
            "12 34 56 78 90 12 34 are the numbers drawn",
        ],
    )
    def test_what_is_nobodys_is_left_in_peace(self, text: str) -> None:
        assert found(text) == []

    @given(st.text(max_size=300))
    def test_any_text_is_read_and_places_are_inside_it_and_apart(self, text: str) -> None:
        spans = find_personal_data(text)
        assert all(0 <= span.start < span.end <= len(text) for span in spans)
        assert all(a.end <= b.start for a, b in pairwise(spans))

    def test_a_long_row_of_digits_takes_no_long_time(self) -> None:
        chance = Random(7)
        text = "".join(chance.choice("0123456789 -./()+") for _ in range(200_000))
        find_personal_data(text)
