"""Whatever a message holds, it is a reading or a refusal with a known code; nothing else comes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.billing.usage import Reading
from domain.errors import REGISTRY, LedgerError
from projections.ingest import read_message
from tests.unit.billing.usage_maker import a_reading

GOOD: dict[str, Any] = a_reading() | {"tenant": "acme"}

members = st.sampled_from([*GOOD, "cached_tokens", "requests", "status", "rental_id", "persona_id", "other"])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["\0", "1e3", "-0", "NaN"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
headers = st.lists(
    st.tuples(st.sampled_from(["ce_id", "ce_source", "ce_time", "other"]), st.none() | st.binary()),
    max_size=3,
)


def read(value: bytes | None, found: Any = ()) -> Reading | str:
    """Read a message; a refusal gives its code, and its words can be printed."""
    try:
        return read_message(value, found)
    except LedgerError as error:
        refusal = error
    assert refusal.code in REGISTRY
    assert refusal.status < 500
    json.dumps(refusal.problem())
    return refusal.code


@given(st.none() | st.binary(max_size=200), headers)
def test_any_bytes_are_a_reading_or_a_refusal(value, found):
    assert isinstance(read(value, found), str)


@given(st.dictionaries(members, values, max_size=3), st.lists(members, max_size=2), headers)
def test_any_change_of_a_good_message_gives_a_reading_or_a_refusal(changes, left_out, found):
    changed = {name: value for name, value in (GOOD | changes).items() if name not in left_out}
    outcome = read(json.dumps(changed).encode(), found)
    if isinstance(outcome, Reading):
        again = json.dumps(outcome.model_dump(mode="json")).encode()
        assert read(again) == outcome


def test_a_good_message_is_a_reading():
    outcome = read(json.dumps(GOOD).encode())
    assert isinstance(outcome, Reading)
    assert (outcome.tenant, outcome.event_id, outcome.tokens_in) == ("acme", "e1", 1_200)


def test_what_the_value_says_counts_before_what_the_headers_say():
    bare = {name: value for name, value in GOOD.items() if name not in ("event_id", "source")}
    told = [("ce_id", b"h"), ("ce_source", b"/h"), ("ce_time", b"not a time"), ("ce_type", b"x")]
    outcome = read(json.dumps(bare).encode(), told)
    assert isinstance(outcome, Reading)
    assert (outcome.event_id, outcome.source, outcome.occurred_at) == ("h", "/h", GOOD["occurred_at"])


@pytest.mark.parametrize(
    ("name", "value"), [("ce_id", b"a\0b"), ("ce_id", b"\xff"), ("ce_time", b"soon"), ("ce_id", b"")]
)
def test_a_header_that_is_no_id_or_time_is_refused_like_a_member(name, value):
    member = {"ce_id": "event_id", "ce_time": "occurred_at"}[name]
    bare = {key: said for key, said in GOOD.items() if key != member}
    assert read(json.dumps(bare).encode(), [(name, value)]) == "invalid_field"
