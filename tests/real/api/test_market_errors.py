"""Every refusal of the market, reached by a real request: status, code, message, details and where the fault is."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.real.api.world import MISSING, UNSEEN, World, intent_body, money, offer_body, refused, with_field

PAST = "2020-01-01T00:00:00Z"


# --------------------------------------------------------------------------- fields

LONG = "x" * 4_001
BAD_MONEY: list[Any] = [
    MISSING, None, 5, 5.5, "12", [], {}, {"amount": "1"}, {"currency": "USD"}, money("1") | {"more": 1},
    *({"amount": amount, "currency": "USD"} for amount in (
        "1e9", "-1", "-0", "+1", "01", "1.", ".5", "", " 1", "1 ", "1,5", "0.0000000001", "1" + "0" * 30, "NaN",
        "Infinity", "\u0661", "1\n", "0x1", "1_0", "1000000000000.000000001", "1000000000001", LONG,
        1, 1.5, True, None, {}, [],
    )),
    *({"amount": "1", "currency": currency} for currency in ("usd", "XXX", "", "US\u0000", None, 5, ["USD"], {})),
]  # fmt: skip
BAD_SHARES: list[Any] = [
    7, -5, 0.5, 0, 1, True, None, "7", "-5", "-0.1", "1.1", "1.0000001", "inf", "NaN", "abc", "", " 0.5", "0.5\n",
    "1e-1", "\u0660", "0.", ".5", [], {},
]  # fmt: skip
BAD_LABELS: list[Any] = [
    None,
    "x",
    {},
    [1],
    [""],
    ["a", "a"],
    ["\u0000"],
    ["x" * 129],
    [f"t{n}" for n in range(33)],
]
BAD_WORDS: list[Any] = [MISSING, None, "", 5, True, [], "x" * 129, "\u0000", " a", "-a", "\u00e9"]
BAD_TIMES: list[Any] = [
    PAST, "0999-01-01T00:00:00Z", "0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59-23:00", "2099-01-01T00:00:00",
    "2099-01-01", "2099-13-01T00:00:00Z", "tomorrow", "", 4_000_000_000, 4e9, True, [], "x" * 41,
]  # fmt: skip
BAD_COUNTS: list[Any] = ["3", 1.5, 1.0, True, None, -1, 10**30, 2**63, [], {}]

OFFER_FIELDS: dict[str, tuple[str, list[Any]]] = {
    "seller_node_id": ("seller_node_id_required", BAD_WORDS),
    "dataset_fingerprint": ("dataset_fingerprint_required", [MISSING, None, "", 5, True, "x" * 257]),
    "price_per_round": ("invalid_price_per_round", BAD_MONEY),
    "min_rounds": ("invalid_min_rounds", [0, 10_001, *BAD_COUNTS]),
    "sample_count": ("invalid_sample_count", [10**12 + 1, *BAD_COUNTS]),
    "quality_score": ("invalid_quality_score", BAD_SHARES),
    "expires_at": ("invalid_expires_at", BAD_TIMES),
    "allowed_tasks": ("invalid_allowed_tasks", BAD_LABELS),
    "title": ("invalid_field", ["x" * 201, None, 5]),
    "description": ("invalid_field", ["x" * 2_001, None, 5]),
    "label_schema": (
        "invalid_field",
        [[], None, 5, {"a": 0.5}, {"\u00e9": 1}, {"a": "x" * 20_000}, {"a": 2**53}],
    ),
}
INTENT_FIELDS: dict[str, tuple[str, list[Any]]] = {
    "model_owner_id": ("model_owner_id_required", BAD_WORDS),
    "task_type": ("task_type_required", BAD_WORDS),
    "budget_total": ("invalid_budget_total", [bad for bad in BAD_MONEY if bad not in (MISSING, None)]),
    "min_quality_score": ("invalid_min_quality_score", BAD_SHARES),
    "required_modalities": ("invalid_required_modalities", BAD_LABELS),
    "deadline_ts": ("invalid_deadline_ts", BAD_TIMES),
    "max_per_seller": ("invalid_field", [0, 26, "3", 1.5, True, -1]),
}


def each_field(table: dict[str, tuple[str, list[Any]]]) -> list[Any]:
    """Give each field with its code and its bad values."""
    return [pytest.param(field, code, values, id=field) for field, (code, values) in table.items()]


def check_field(answers: list[httpx.Response], field: str, code: str) -> None:
    """Check that each answer blames the field, and no other."""
    for answer in answers:
        problem = refused(answer, 400, code)
        for fault in problem.get("errors", []):
            assert fault["code"] == code
            assert fault["pointer"] == f"/{field}" or fault["pointer"].startswith(f"/{field}/")


@pytest.mark.parametrize(("field", "code", "values"), each_field(OFFER_FIELDS))
def test_a_bad_field_of_an_offer_has_its_code(world: World, field: str, code: str, values: list[Any]) -> None:
    seller, size = world.provider("strict"), world.size
    body = offer_body("strict") | {"dataset_fingerprint": UNSEEN}
    check_field([seller.post("/v1/offers", with_field(body, field, bad)) for bad in values], field, code)
    assert world.size == size


@pytest.mark.parametrize(("field", "code", "values"), each_field(INTENT_FIELDS))
def test_a_bad_field_of_an_intent_has_its_code(
    world: World, field: str, code: str, values: list[Any]
) -> None:
    owner, size = world.owner("strict"), world.size
    answers = [owner.post("/v1/intents", with_field(intent_body("strict"), field, bad)) for bad in values]
    check_field(answers, field, code)
    assert world.size == size


@pytest.mark.parametrize(("field", "code", "values"), each_field(OFFER_FIELDS))
def test_a_bad_change_of_an_offer_changes_nothing(
    world: World, field: str, code: str, values: list[Any]
) -> None:
    seller = world.provider("strict")
    if field in ("seller_node_id", "dataset_fingerprint"):
        field, code, values = field, "unknown_field", ["node-2"]
    offer = world.offer(seller, dataset_fingerprint=UNSEEN)
    for bad in (value for value in values if value is not MISSING):
        change = {"title": "half done", "privacy_profile": "half-done"} | {field: bad}
        refused(seller.patch(f"/v1/offers/{offer['id']}", change), 400, code)
    assert seller.read(f"/v1/offers/{offer['id']}") == {k: v for k, v in offer.items() if k != "receipt"}


@pytest.mark.parametrize(("field", "code", "values"), each_field(INTENT_FIELDS))
def test_a_bad_change_of_an_intent_changes_nothing(
    world: World, field: str, code: str, values: list[Any]
) -> None:
    owner = world.owner("strict")
    if field == "model_owner_id":
        code, values = "unknown_field", ["lab-2"]
    intent = world.intent(owner)
    for bad in (value for value in values if value is not MISSING):
        refused(owner.patch(f"/v1/intents/{intent['id']}", {"max_per_seller": 2} | {field: bad}), 400, code)
    assert owner.read(f"/v1/intents/{intent['id']}") == {k: v for k, v in intent.items() if k != "receipt"}


def test_a_change_that_ends_in_a_refused_step_changes_nothing(world: World) -> None:
    seller, owner = world.provider("strict"), world.owner("strict")
    offer, intent = world.offer(seller, dataset_fingerprint=UNSEEN), world.intent(owner)
    change = {"title": "half done", "status": "expired"}
    problem = refused(seller.patch(f"/v1/offers/{offer['id']}", change), 409, "invalid_status_transition")
    assert problem["details"] == {"current_status": "active", "next_status": "expired"}
    change = {"task_type": "half-done", "status": "matched"}
    problem = refused(owner.patch(f"/v1/intents/{intent['id']}", change), 409, "invalid_status_transition")
    assert problem["details"] == {"current_status": "open", "next_status": "matched"}
    assert seller.read(f"/v1/offers/{offer['id']}")["version"] == 1
    assert owner.read(f"/v1/intents/{intent['id']}")["version"] == 1


@pytest.mark.parametrize("bad", ["nonsense", "", None, 5, "ACTIVE", True])
def test_a_status_that_does_not_exist_is_refused(world: World, bad: Any) -> None:
    offer = world.offer(world.provider("strict"), dataset_fingerprint=UNSEEN)
    intent = world.intent(world.owner("strict"))
    refused(
        world.provider("strict").patch(f"/v1/offers/{offer['id']}", {"status": bad}), 400, "invalid_status"
    )
    refused(
        world.owner("strict").patch(f"/v1/intents/{intent['id']}", {"status": bad}), 400, "invalid_status"
    )


def test_zero_is_a_value(world: World) -> None:
    offer = world.offer(
        world.provider("zero"),
        dataset_fingerprint=UNSEEN,
        quality_score="0",
        price_per_round=money("0"),
        sample_count=0,
    )
    assert (offer["quality_score"], offer["price_per_round"]["amount"], offer["sample_count"]) == (
        "0",
        "0.00",
        0,
    )
    revised = world.provider("zero").patch(f"/v1/offers/{offer['id']}", {"quality_score": "1.000000"}).json()
    assert revised["quality_score"] == "1.000000"
    intent = world.intent(world.owner("zero"), budget_total=money("0"), min_quality_score="0")
    assert (intent["budget_total"]["amount"], intent["min_quality_score"]) == ("0.00", "0")


def test_a_budget_of_zero_buys_nothing_and_null_is_unlimited(world: World) -> None:
    seller, owner = world.provider("shop"), world.owner("zero")
    price = money("999999999999")
    offer = world.offer(
        seller, dataset_fingerprint=UNSEEN, allowed_tasks=["zero-task"], price_per_round=price
    )
    none = world.intent(owner, task_type="zero-task", budget_total=money("0"))
    problem = refused(owner.post(f"/v1/intents/{none['id']}/match", {}), 422, "no_compatible_offers_found")
    diagnostics = problem["details"]["diagnostics"]
    assert {one["offer_id"]: one["reasons"] for one in diagnostics["per_offer"]}[offer["id"]] == [
        "budget_rejected"
    ]
    contract = world.contract(owner, task_type="zero-task", budget_total=None)
    assert contract["agreed_price_per_round_total"]["amount"] == "999999999999.00"


def test_sums_beyond_any_single_amount_are_refused_with_a_code(world: World) -> None:
    owner = world.owner("giant")
    for n in range(3):
        world.offer(
            world.provider(f"giant-{n}"),
            dataset_fingerprint=UNSEEN,
            allowed_tasks=["giant"],
            price_per_round=money("1000000000000"),
        )
    intent = world.intent(owner, task_type="giant", budget_total=None)
    answer = owner.post(f"/v1/intents/{intent['id']}/match", {"max_offers": 3})
    assert answer.status_code in (201, 400, 422), answer.text
    if answer.status_code == 201:
        found = owner.read(f"/v1/contracts/{answer.json()['id']}")
        refused(owner.post(f"/v1/contracts/{found['id']}/fund"), 409, "insufficient_funds")
        assert owner.get("/v1/metrics_summary").status_code == 200


@pytest.mark.parametrize("amount", BAD_MONEY[1:], ids=str)
def test_bad_money_never_moves(world: World, amount: Any) -> None:
    answer = world.operator.post("/v1/deposits", {"tenant": "rich", "amount": amount})
    unknown = (
        isinstance(amount, dict)
        and amount.get("amount") == "1"
        and not isinstance(amount.get("currency"), list | dict)
    )
    unknown = unknown and set(amount) == {"amount", "currency"}
    refused(answer, 400, "invalid_currency" if unknown else "invalid_amount")


# --------------------------------------------------------------------------- bodies


def raw(world: World, content: Any, content_type: str | None = "application/json") -> httpx.Response:
    """Send bytes as the body of an offer."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    return world.provider("raw").post("/v1/offers", content=content, headers=headers)


NO_JSON: dict[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "a number": b"5",
    "a list": b"[]",
    "a text": b'"x"',
    "a half": b'{"title": "x"',
    "a trailing comma": b'{"title": "x",}',
    "NaN": b'{"quality_score": NaN}',
    "Infinity": b'{"quality_score": Infinity}',
    "minus Infinity": b'{"quality_score": -Infinity}',
    "a name twice": b'{"title": "a", "title": "b"}',
    "a name twice, deep": b'{"label_schema": {"a": {"b": 1, "b": 2}}}',
    "a lone surrogate": b'{"title": "\\ud800"}',
    "a lone surrogate as a name": b'{"\\udc00": 1}',
    "no UTF-8": b'{"title": "\xff"}',
    "a surrogate in UTF-8": b'{"title": "\xed\xa0\x80"}',
    "a number of 5,000 digits": b'{"sample_count": ' + b"9" * 5_000 + b"}",
    "100,000 levels": b"[" * 100_000,
    "100,000 closed levels": b'{"label_schema": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a comment": b'{"title": "x"} // y',
    "two documents": b"{}{}",
    "NUL": b"\x00",
}


@pytest.mark.parametrize("content", list(NO_JSON.values()), ids=list(NO_JSON))
def test_a_body_that_is_no_json_object_is_refused(world: World, content: bytes) -> None:
    refused(raw(world, content), 400, "invalid_request")


@pytest.mark.parametrize("depth", [50, 400, 900, 3_000])
def test_a_deep_object_is_refused_or_kept(world: World, depth: int) -> None:
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    body = json.dumps(offer_body("raw") | {"dataset_fingerprint": UNSEEN})[:-1].encode()
    answer = raw(world, body + b', "label_schema": ' + deep + b"}")
    assert answer.status_code in (201, 400), answer.text[:300]
    if answer.status_code == 201:
        assert world.provider("raw").get(f"/v1/offers/{answer.json()['id']}").json()[
            "label_schema"
        ] == json.loads(deep)


def test_text_with_nul_is_refused_everywhere(world: World, contract: dict[str, Any]) -> None:
    body = offer_body("raw") | {"dataset_fingerprint": UNSEEN}
    seller, lab = world.provider("raw"), world.owner("lab")
    for field in ("title", "description", "dataset_fingerprint"):
        refused(seller.post("/v1/offers", body | {field: "a\u0000b"}), 400, "not_canonical")
    refused(seller.post("/v1/offers", body | {"label_schema": {"a": "\u0000"}}), 400, "not_canonical")
    refused(lab.post("/v1/training/enable", {"reason": "\u0000"}), 400, "not_canonical")
    refused(lab.post(f"/v1/contracts/{contract['id']}/disputes", {"reason": "\u0000"}), 400, "not_canonical")
    deposit = {"tenant": "lab", "amount": money("1"), "memo": "\u0000"}
    refused(world.operator.post("/v1/deposits", deposit), 400, "not_canonical")
    assert seller.get("/v1/offers", params={"q": "\u0000"}).status_code == 400
    assert seller.get("/v1/offers", params={"seller_node_id": "\u0000"}).status_code == 400
    assert seller.get("/v1/offers/%00").status_code == 400
    assert seller.post("/v1/offers/%00/pause").status_code == 400


def test_an_unknown_field_is_refused_by_name(world: World) -> None:
    body = offer_body("raw") | {"dataset_fingerprint": UNSEEN, "qualty~/score": "1", "tenant": "lab"}
    problem = refused(world.provider("raw").post("/v1/offers", body), 400, "unknown_field")
    assert {fault["pointer"] for fault in problem["errors"]} == {"/qualty~0~1score", "/tenant"}
    preview = {"intent": intent_body("raw") | {"extra": 1}}
    problem = refused(world.owner("raw").post("/v1/policy/preview", preview), 400, "unknown_field")
    assert problem["errors"][0]["pointer"] == "/intent/extra"


def test_many_faults_are_all_listed(world: World) -> None:
    problem = refused(world.provider("raw").post("/v1/offers", {}), 400, "seller_node_id_required")
    assert [fault["code"] for fault in problem["errors"]] == [
        "seller_node_id_required", "dataset_fingerprint_required", "invalid_price_per_round",
    ]  # fmt: skip
    problem = refused(
        world.provider("raw").post("/v1/offers", {f"f{n}": n for n in range(5_000)}), 400, problem["code"]
    )
    assert len(problem["errors"]) == 20


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "image/png", "x"]
)
def test_a_body_that_does_not_say_it_is_json_is_refused(world: World, content_type: str | None) -> None:
    refused(raw(world, b'{"title": "x"}', content_type), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/a+json"]
)
def test_json_by_any_of_its_names_is_read(world: World, content_type: str) -> None:
    refused(raw(world, b"{}", content_type), 400, "seller_node_id_required")


def test_a_huge_body_is_refused_whether_it_says_its_length_or_not(world: World) -> None:
    huge = b'{"title": "' + b"x" * world.service.settings.body_bytes_max + b'"}'
    refused(raw(world, huge), 413, "body_too_large")

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(huge), 65_536):
            yield huge[start : start + 65_536]

    refused(raw(world, pieces()), 413, "body_too_large")


def test_a_record_over_its_limit_is_refused(world: World) -> None:
    text = {f"k{n}": "\u20ac" * 1_200 for n in range(4)}
    body = offer_body("raw") | {
        "dataset_fingerprint": UNSEEN,
        "label_schema": text,
        "description": "\u20ac" * 2_000,
    }
    assert world.provider("raw").post("/v1/offers", body).status_code == 201
    many = world.provider("raw").post(
        "/v1/datasets", content=b",".join([b"c%d" % n for n in range(300)]) + b",target\n"
    )
    refused(many, 400, "invalid_dataset")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"target\n",
        b"a,target\n1,2\n",
        b"a,target\nNaN,1\n",
        b"a,target\ninf,1\n1,0\n",
        b"a,a,target\n1,2,1\n",
        b"\xff\xfe",
        b'a,target\n"1,1\n',
        b"a,target\n1e400,1\n1,0\n",
        b"a,target\n1,1\n" * 2,
        b"a,target\n1\n",
        "a,target\n\u0661,1\n".encode(),
    ],
)
def test_a_dataset_that_is_none_is_refused(world: World, data: bytes) -> None:
    refused(world.provider("raw").post("/v1/datasets", content=data), 400, "invalid_dataset")


def test_a_dataset_of_somebody_who_may_not_upload_is_not_kept(world: World) -> None:
    objects = world.service.settings.objects_path
    before = sorted(objects.rglob("*"))
    answer = world.owner("raw").post("/v1/datasets", content=b"a,target\n77,1\n78,0\n79,1\n")
    refused(answer, 403, "forbidden")
    assert sorted(objects.rglob("*")) == before


# --------------------------------------------------------------------------- lists and parameters


@pytest.mark.parametrize("bad", ["0", "501", "-1", "abc", "1.5", "", "1e2", "9" * 40, "\u0661\u0661x"])
def test_a_bad_limit_is_refused(world: World, bad: str) -> None:
    problem = refused(world.owner("raw").get("/v1/offers", params={"limit": bad}), 400, "invalid_field")
    assert problem["errors"] == [problem["errors"][0] | {"parameter": "limit", "in": "query"}]


@pytest.mark.parametrize("path", ["offers", "intents", "contracts", "rounds"])
def test_a_list_by_a_status_that_does_not_exist_is_refused(world: World, path: str) -> None:
    refused(world.owner("raw").get(f"/v1/{path}", params={"status": "nonsense"}), 400, "invalid_status")


def test_other_bad_wishes_of_lists_are_refused(world: World) -> None:
    who = world.owner("raw")
    refused(who.get("/v1/disputes", params={"status": "nonsense"}), 400, "invalid_dispute_status")
    refused(who.get("/v1/contracts", params={"payout_status": "nonsense"}), 400, "invalid_status")
    for cursor in ("%%%", "not base64!", "\u00e9", base64.urlsafe_b64encode(b"\x00").decode(), "A"):
        refused(who.get("/v1/offers", params={"cursor": cursor}), 400, "invalid_cursor")
    who.made("/v1/accounts", {"currency": "USD"})
    for place in (b"1", b"1.", b"a.b", b"-1.0", b"1.1.1"):
        cursor = base64.urlsafe_b64encode(place).decode()
        refused(
            who.get("/v1/accounts/wallet.raw.USD/postings", params={"cursor": cursor}), 400, "invalid_cursor"
        )
    cursor = base64.urlsafe_b64encode(b"9" * 14 + b"." + b"9" * 14).decode()
    assert who.get("/v1/accounts/wallet.raw.USD/postings", params={"cursor": cursor}).status_code == 200


@pytest.mark.parametrize(
    "bad", ["", "-1", "abc", "1.5", "2026-01-01", "2026-01-01T00:00:00", "\u0661", "x" * 41]
)
def test_a_bad_moment_to_look_back_to_is_refused(world: World, contract: dict[str, Any], bad: str) -> None:
    answer = world.owner("lab").get(f"/v1/contracts/{contract['id']}", params={"as_of": bad})
    assert answer.status_code == 400
    assert answer.json()["code"] in ("invalid_as_of", "invalid_field")


@pytest.mark.parametrize(
    "moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "999999999999999999"]
)
def test_the_ends_of_time_can_be_asked_about(world: World, contract: dict[str, Any], moment: str) -> None:
    assert world.owner("lab").get(
        f"/v1/contracts/{contract['id']}", params={"as_of": moment}
    ).status_code in (200, 404)
    assert world.operator.get("/v1/accounts/wallet.lab.USD", params={"as_of": moment}).status_code in (
        200,
        404,
    )


def test_headers_are_held_to_their_form(world: World) -> None:
    owner = world.owner("raw")
    for key in ("", "x" * 256, "a\tb"):
        refused(owner.post("/v1/intents", intent_body("raw"), key=key), 400, "invalid_idempotency_key")
    headers = {"X-Correlation-ID": "a b"}
    refused(owner.post("/v1/intents", intent_body("raw"), headers=headers), 400, "invalid_field")
    problem = refused(
        owner.post("/v1/intents", intent_body("raw"), headers={"X-Correlation-ID": "x" * 129}),
        400,
        "invalid_field",
    )
    assert problem["errors"][0]["in"] == "header"
    intent = world.intent(owner)
    for version in ("abc", "", "-1", "1.5", '"1', "9" * 16, '"1", "2"'):
        answer = owner.patch(f"/v1/intents/{intent['id']}", {"max_per_seller": 2}, if_match=version)
        refused(answer, 412, "version_mismatch")
    refused(
        owner.patch(f"/v1/intents/{intent['id']}", {"max_per_seller": 3}, if_match='"7"'),
        412,
        "version_mismatch",
    )
    now = owner.get(f"/v1/intents/{intent['id']}").headers["ETag"]
    for form in ("{}", "W/{}", "*"):
        answer = owner.patch(f"/v1/intents/{intent['id']}", {"max_per_seller": 3}, if_match=form.format(now))
        assert answer.status_code == 200, answer.text
        now = answer.headers["ETag"]
    assert now == '"4"'


def test_what_is_not_there_and_methods_that_are_not_known_are_problems(world: World) -> None:
    refused(world.owner("raw").get("/v1/nothing"), 404, "not_found")
    answer = world.owner("raw").ask("DELETE", "/v1/offers")
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"
    refused(world.owner("raw").ask("TRACE", "/v1/offers"), 405, "method_not_allowed")
