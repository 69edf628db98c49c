"""What pages print: no text of somebody else's acts on the page, and every number and moment can be read."""

from __future__ import annotations

import unicodedata
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.documents import about, grouped, hours, local, print_page, visible


@given(st.text(max_size=80))
def test_no_printed_text_holds_what_cannot_be_seen(text: str) -> None:
    shown = visible(text)
    categories = {unicodedata.category(one) for one in shown if one not in "\u200c\u200d\u200e\u200f\u061c"}
    assert not categories & {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc", "a b c"),
        ("\u202eabc\u202c", "⟨U+202E⟩abc⟨U+202C⟩"),
        ("x\u0007\u001b[31m", "x⟨U+0007⟩⟨U+001B⟩[31m"),
        ("\ufeffid\u00ad", "⟨U+FEFF⟩id⟨U+00AD⟩"),
        ("نص\u200f עברית", "نص\u200f עברית"),
        ("e" + "\u0301" * 40, "e" + "\u0301" * 4),
        ("👩\u200d🔬 é ü 中文", "👩\u200d🔬 é ü 中文"),
    ],
)
def test_letters_of_any_script_stay_and_what_hides_is_named(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        ("1234567.5", "1\u202f234\u202f567.5"),
        ("-1000", "-1\u202f000"),
        ("999", "999"),
        ("0.000001", "0.000001"),
        ("1000/3", "1\u202f000/3"),
        (12345, "12\u202f345"),
    ],
)
def test_a_number_is_printed_in_groups_and_exactly(number: object, shown: str) -> None:
    assert grouped(number) == shown


def test_a_fraction_is_also_shown_as_a_decimal_near_it() -> None:
    assert about("1/3") == "1/3 (about 0.333333)"
    assert about("0.25") == "0.25"


def test_moments_show_the_clocks_of_a_zone_before_and_after_they_change() -> None:
    assert local("2026-03-29T00:30:00.000000Z", "Europe/Berlin") == "2026-03-29 01:30:00 +01:00"
    assert local("2026-03-29T01:30:00.000000Z", "Europe/Berlin") == "2026-03-29 03:30:00 +02:00"
    assert hours("2026-03-28T23:00:00.000000Z", "2026-03-29T22:00:00.000000Z") == "23"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_whatever_a_reason_says_the_page_has_the_same_elements(reason: str) -> None:
    place = {
        "id": "i",
        "number": "N",
        "issued_at": "2026-03-29T00:30:00.000000Z",
        "position": 1,
        "address": "sha3-512:0",
    }
    period = {
        "from": "2026-03-28T23:00:00.000000Z",
        "to": "2026-03-29T22:00:00.000000Z",
        "zone": "Europe/Berlin",
    }
    document = place | {
        "issuer": "platform", "tenant": "acme", "currency": "USD", "reason": reason, "target": "wallet",
        "invoice": place | {"period": period}, "billed": {"was": "5", "amount": "3", "difference": "-2"},
        "amount": "2", "net": "2", "tax": "0", "off_due": "0", "returned": "2",
    }  # fmt: skip
    page = print_page("credit_note.html", document)
    plain = print_page("credit_note.html", document | {"reason": "x"})
    assert page.count("<") == plain.count("<")
    assert visible(reason).strip() in unescape(page)
