"""How refusals are printed: one code and one place for each fault, and nothing a caller sent can break it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api.http import body_of, completed, parse_json
from api.problems import ERRORS_MAX, FIELD_ERRORS, PATH_FIELD_ERRORS, respond, respond_invalid
from domain.errors import REGISTRY, InvalidError, LedgerError, OverloadedError, UnauthorizedError
from domain.fields import Command
from domain.market.intents import AmendIntent, OpenIntent
from domain.market.offers import ListOffer, ReviseOffer


def fault(loc: tuple[Any, ...], kind: str = "value_error", message: str = "no") -> dict[str, Any]:
    """Make a fault as pydantic tells it."""
    return {"type": kind, "loc": loc, "msg": message, "input": None}


def printed(path: str, *faults: dict[str, Any]) -> dict[str, Any]:
    """Print faults and read them back."""
    answer = respond_invalid(path, list(faults))
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = json.loads(answer.body)
    return found


@pytest.mark.parametrize(("field", "error"), sorted(FIELD_ERRORS.items(), key=lambda item: item[0]))
def test_a_field_has_its_code_wherever_it_stands(field: str, error: type[LedgerError]) -> None:
    for loc in (
        ("body", field),
        ("body", "intent", field),
        ("query", field),
        ("body", field, 3),
        ("body", field, "deep"),
    ):
        assert printed("/v1/things", fault(loc))["code"] == error.code


@pytest.mark.parametrize(("place", "error"), sorted(PATH_FIELD_ERRORS.items(), key=lambda item: item[0]))
def test_a_word_may_mean_something_else_in_another_place(
    place: tuple[str, str], error: type[LedgerError]
) -> None:
    assert printed(f"/v1/contracts/c/{place[0]}", fault(("body", place[1])))["code"] == error.code
    assert printed("/v1/elsewhere", fault(("body", place[1])))["code"] != error.code


def test_other_fields_are_missing_or_invalid() -> None:
    assert printed("/", fault(("body", "resolution"), "missing"))["code"] == "missing_field"
    assert printed("/", fault(("body", "resolution")))["code"] == "invalid_field"
    assert printed("/", fault(("body", "status"), "extra_forbidden"))["code"] == "unknown_field"
    assert printed("/", fault(("body",), "model_attributes_type"))["code"] == "invalid_request"
    assert printed("/", fault(("body", "amount"), "currency"))["code"] == "invalid_currency"
    assert printed("/", fault(("body", "price_per_round"), "currency"))["code"] == "invalid_price_per_round"


def test_places_are_json_pointers_or_names_of_parameters() -> None:
    problem = printed(
        "/",
        fault(("body", "a/b~c", 0, "d")),
        fault(("query", "limit")),
        fault(("header", "If-Match")),
        fault(("body",)),
    )
    places = [{k: v for k, v in error.items() if k not in ("message", "code")} for error in problem["errors"]]
    assert places == [
        {"pointer": "/a~1b~0c/0/d"}, {"parameter": "limit", "in": "query"},
        {"parameter": "If-Match", "in": "header"}, {"pointer": ""},
    ]  # fmt: skip


def test_the_first_fault_gives_the_code_and_the_list_has_an_end() -> None:
    problem = printed("/", *(fault(("body", f"f{n}"), "missing") for n in range(ERRORS_MAX + 5)))
    assert problem["code"] == "missing_field"
    assert len(problem["errors"]) == ERRORS_MAX


@given(st.text(st.characters(), max_size=40), st.text(st.characters(), max_size=40))
def test_whatever_was_sent_can_be_printed(name: str, message: str) -> None:
    problem = printed("/", fault(("body", name), "extra_forbidden", message))
    assert problem["errors"][0]["message"] == message
    assert json.loads(respond(InvalidError(message, got=name, thing=object())).body)["message"] == (
        message or InvalidError.title()
    )


def test_headers_say_what_to_do_next() -> None:
    assert respond(UnauthorizedError()).headers["www-authenticate"] == "Bearer"
    assert respond(OverloadedError(retry_after_s=2)).headers["retry-after"] == "2"


@pytest.mark.parametrize("code", sorted(REGISTRY))
def test_every_code_has_every_member(code: str) -> None:
    problem = json.loads(respond(REGISTRY[code]()).body)
    assert set(problem) == {
        "type",
        "title",
        "status",
        "detail",
        "code",
        "error",
        "message",
        "retry",
        "details",
    }
    assert problem["code"] == problem["error"] == code
    assert 400 <= problem["status"] <= 599


def test_what_is_internal_is_not_told() -> None:
    answer = respond(OverloadedError("busy", internal="password=secret"))
    assert b"secret" not in answer.body


# --------------------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"NaN", b"[Infinity]", b'{"a":1,"a":1}', b'"\\ud800"', b'{"\\udfff":1}', b"\xff", b"[" * 50_000,
     b'\xef\xbb\xbf{}', '"x"'.encode("utf-16"), b'"\xed\xa0\x80"', b"1" * 5_000, b"{}x", b"'a'"],
)  # fmt: skip
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidError):
        parse_json(data)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(json_values, st.booleans())
def test_what_is_json_is_read_as_it_is(value: Any, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=60))
def test_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        value = parse_json(data)
    except InvalidError:
        return
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(("command", "field"), [(ReviseOffer, "offer_id"), (AmendIntent, "intent_id")])
def test_the_body_of_a_change_is_the_command_without_its_path(command: type[Command], field: str) -> None:
    body = body_of(command, field)
    assert set(body.model_fields) == set(command.model_fields) - {field}
    with pytest.raises(ValidationError):
        body.model_validate({field: "x"})
    made = completed(
        command,
        body.model_validate({"status": "closed" if field == "intent_id" else "paused"}),
        **{field: "x"},
    )
    assert made.model_fields_set == {field, "status"}


@pytest.mark.parametrize("command", [ReviseOffer, AmendIntent, ListOffer, OpenIntent])
def test_null_is_accepted_exactly_where_the_schema_says_so(command: type[Command]) -> None:
    schema = command.model_json_schema()["properties"]
    for name, shown in schema.items():
        nullable = {"type": "null"} in shown.get("anyOf", [])
        try:
            command.model_validate({name: None})
            refused = False
        except ValidationError as error:
            refused = name in {found["loc"][0] for found in error.errors()}
        assert refused is not nullable, name
