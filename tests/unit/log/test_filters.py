"""What somebody wants to follow: exact types, beginnings, streams and tenants."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.log.filters import STREAM_PATTERN, TYPE_PATTERN, Wish

WORDS = st.sampled_from(["contract", "contracts", "offer", "escrow_released", "created"])
TYPES = st.builds(lambda one, two: f"{one}.{two}", WORDS, WORDS)
WISHED = TYPES | st.builds(lambda word: f"{word}.*", WORDS)


@given(types=st.lists(WISHED, max_size=4), wire_type=TYPES)
def test_a_type_fits_exactly_or_by_a_beginning_that_ends_at_a_dot(types: list[str], wire_type: str) -> None:
    fits = not types or any(
        wish == wire_type or (wish.endswith(".*") and wire_type.partition(".")[0] == wish[:-2])
        for wish in types
    )
    assert Wish.of(types, [], None).fits(wire_type, "offer/1", "acme") is fits


def test_every_part_must_fit() -> None:
    wish = Wish.of(["offer.*"], ["offer/1", "offer/2"], "acme")
    assert wish.fits("offer.listed", "offer/1", "acme")
    assert not wish.fits("contract.created", "offer/1", "acme")
    assert not wish.fits("offer.listed", "offer/3", "acme")
    assert not wish.fits("offer.listed", "offer/1", "other")


def test_no_wish_is_every_record() -> None:
    assert Wish().fits("anything.at_all", "any/thing", "anybody")


@pytest.mark.parametrize(
    "text", ["contract.*", "contract.escrow_released", "audit.run.*", "audit.run.failed"]
)
def test_a_wish_of_types_is_written_so(text: str) -> None:
    assert re.fullmatch(TYPE_PATTERN, text)


@pytest.mark.parametrize(
    "text", ["", "*", "contract", "contract*", "contract.", "contract.*.x", ".*", "a.%", "A.b", "a b.c"]
)
def test_anything_else_is_none(text: str) -> None:
    assert not re.fullmatch(TYPE_PATTERN, text)


def test_a_stream_is_a_kind_and_a_name() -> None:
    assert re.fullmatch(STREAM_PATTERN, "account/wallet.acme.USD")
    assert not re.fullmatch(STREAM_PATTERN, "account")
    assert not re.fullmatch(STREAM_PATTERN, "account/with space")
