"""Quotas over HTTP and on a real log: limits, reservations in a race, alerts as events, and one number all along."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.real.api.world import Speaker, done, money, refused
from tests.real.billing.billing_desk import Desk

WAIT_S_MAX = 60.0
# One dollar for a thousand tokens in, and nothing else, so that sums can be read.
PLAIN = [{"id": "in", "meter": "tokens_in", "price": {"model": "per_unit", "price": "1", "per": "1000"}}]


@pytest.fixture(scope="module")
def plain(office: Desk) -> str:
    """Publish prices that can be added up by eye; give the book."""
    office.publish("plain", charges=PLAIN)
    return "platform.plain"


def limit(name: str = "all", amount: str = "100", **members: Any) -> dict[str, Any]:
    return {"id": name, "amount": money(amount)} | members


def limited(office: Desk, book: str, *limits: dict[str, Any], **more: Any) -> Speaker:
    """Make a customer with limits; give somebody of its own."""
    somebody = office.customer(book=book)
    put(office.operator, somebody.tenant, limits, **more)
    return somebody


def put(speaker: Speaker, tenant: str, limits: Any, **more: Any) -> dict[str, Any]:
    return done(speaker.ask("PUT", f"/v1/quotas/{tenant}", {"limits": list(limits)} | more))


def stands(speaker: Speaker, name: str = "all") -> dict[str, Any]:
    """Show how a limit of the speaker's tenant stands."""
    state = speaker.read(f"/v1/quotas/{speaker.tenant}")
    return next(one for one in state["limits"] if one["id"] == name)


def reserve(speaker: Speaker, **members: Any) -> Any:
    body = {"provider": "p", "model": "m1", "tokens_in": 1_000} | members
    return speaker.post(f"/v1/quotas/{speaker.tenant}/reservations", body)


def told(office: Desk, tenant: str) -> list[str]:
    """List the wire types of a quota's records."""
    items = office.operator.read(f"/v1/log/streams/quota/{tenant}")["items"]
    return [one["record"]["type"] for one in items]


def wait_for(check: Any) -> Any:
    until = time.monotonic() + WAIT_S_MAX
    while not (found := check()):
        assert time.monotonic() < until, "it does not come"
        time.sleep(0.05)
    return found


def test_a_quota_is_set_reserved_under_spent_and_shown(office: Desk, plain: str) -> None:
    somebody = office.customer(book=plain)
    office.use(somebody, {"tokens_in": 2_000})
    # What was used before there was a quota is in it at once.
    state = put(office.operator, somebody.tenant, [limit(amount="10")])
    assert state["is_counted"]
    assert (state["limits"][0]["spent"], state["receipt"]["event_count"] > 0) == (money("2.00"), True)
    made = done(reserve(somebody, tokens_in=5_000))
    assert stands(somebody)["left"] == money("3.00")
    problem = refused(reserve(somebody, tokens_in=4_000), 402, "quota_exceeded")
    assert problem["details"]["left"] == money("3.00")
    name = made["reservation"]["id"]
    office.use(somebody, {"tokens_in": 4_500, "reservation_id": name})
    found = stands(somebody)
    assert (found["spent"], found["reserved"], found["crossed"]) == (money("6.50"), money("0.00"), ["0.5"])
    quoted = office.operator.made("/v1/quotes", {"tenant": somebody.tenant})["bill"]["subtotal"]
    assert quoted == found["spent"]
    gone = somebody.post(f"/v1/quotas/{somebody.tenant}/reservations/{name}/release")
    refused(gone, 404, "reservation_not_found")
    assert "quota.threshold_crossed" in told(office, somebody.tenant)


def test_a_correction_is_counted_too(office: Desk, plain: str) -> None:
    somebody = limited(office, plain, limit())
    office.use(somebody, {"tokens_in": 9_000})
    (usage,) = somebody.read("/v1/usage")["items"]
    correction = {"replaces": 1, "reason": "counted twice", "tokens_in": 4_000}
    somebody.made(f"/v1/usage/{usage['id']}/corrections", correction)
    assert stands(somebody)["spent"] == money("4.00")


def test_an_owner_sets_soft_limits_of_its_own_and_sees_no_others(office: Desk, plain: str) -> None:
    somebody, other = limited(office, plain, limit("cap")), office.customer(book=plain)
    state = put(somebody, somebody.tenant, [limit("mine", mode="soft")])
    assert [(one["id"], one["by"]) for one in state["limits"]] == [("cap", "platform"), ("mine", "tenant")]
    path, body = f"/v1/quotas/{somebody.tenant}", {"limits": [limit("mine")]}
    refused(somebody.ask("PUT", path, body), 403, "forbidden")
    refused(other.ask("PUT", path, {"limits": []}), 404, "customer_not_found")
    refused(other.get(path), 404, "quota_not_found")
    refused(other.post(path + "/reservations", {"provider": "p", "model": "m"}), 404, "quota_not_found")
    assert other.read("/v1/quotas")["items"] == []
    assert [one["id"] for one in somebody.read("/v1/quotas")["items"]] == [somebody.tenant]


def test_a_reservation_asked_for_again_under_its_key_is_the_same(office: Desk, plain: str) -> None:
    somebody = limited(office, plain, limit(amount="1"))
    path, body = (
        f"/v1/quotas/{somebody.tenant}/reservations",
        {"provider": "p", "model": "m1", "tokens_in": 1_000},
    )
    first = done(somebody.post(path, body, key="one"))
    again = done(somebody.post(path, body, key="one"))
    assert again["reservation"] == first["reservation"]
    assert again["receipt"]["repeated"]


def test_of_64_who_want_the_last_seven_units_at_once_seven_get_one(office: Desk, plain: str) -> None:
    somebody = limited(office, plain, limit(amount="7"))
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda _: reserve(somebody), range(64)))
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(201), statuses.count(402)) == (7, 57)
    found = stands(somebody)
    assert (found["reserved"], found["left"], found["over"]) == (money("7.00"), money("0.00"), money("0.00"))


def test_reservations_and_readings_in_a_race_keep_the_limit_and_the_number(office: Desk, plain: str) -> None:
    somebody = limited(office, plain, limit(amount="20"))

    def work(number: int) -> int:
        answer = reserve(somebody)
        if answer.status_code == 201:
            name = answer.json()["reservation"]["id"]
            office.use(somebody, {"tokens_in": 10 * number, "reservation_id": name})
        return int(answer.status_code)

    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(work, range(64)))
    assert set(statuses) <= {201, 402}
    found = stands(somebody)
    assert (found["reserved"], found["over"]) == (money("0.00"), money("0.00"))
    quoted = office.operator.made("/v1/quotes", {"tenant": somebody.tenant})["bill"]["subtotal"]
    assert quoted == found["spent"]


def test_what_expires_is_let_go_by_itself_and_its_hold_with_it(office: Desk, plain: str) -> None:
    somebody = limited(office, plain, prepaid=True)
    reservation = done(reserve(somebody, ttl_s=1))["reservation"]
    assert reservation["hold"] == money("1.00")
    wait_for(lambda: "quota.released" in told(office, somebody.tenant))
    (account,) = [a for a in somebody.read("/v1/accounts")["items"] if a["account"].startswith("wallet.")]
    assert account["held"] == "0.00"


def test_what_is_paid_ahead_is_burned_by_the_invoice(fresh: Desk) -> None:
    fresh.publish("plain", charges=PLAIN)
    somebody = limited(fresh, "platform.plain", prepaid=True)
    name = done(reserve(somebody, tokens_in=10_000))["reservation"]["id"]
    fresh.use(somebody, {"tokens_in": 8_000, "reservation_id": name})
    fresh.use(somebody, {"tokens_in": 1_500})
    fresh.next_day()
    assert fresh.run(collect=False).billed == 1
    (invoice,) = somebody.read("/v1/invoices")["items"]
    assert (invoice["bill"]["total"], invoice["due"]) == (money("9.50"), money("1.50"))


def test_a_period_begins_by_itself(fresh: Desk) -> None:
    fresh.publish("plain", charges=PLAIN)
    somebody = limited(fresh, "platform.plain", limit())
    fresh.use(somebody, {"tokens_in": 80_000})
    assert stands(somebody)["crossed"] == ["0.5", "0.8"]
    fresh.next_day()
    found = stands(somebody)
    assert (found["spent"], found["crossed"]) == (money("0.00"), [])


def test_refusals_and_alerts_are_metrics(office: Desk, plain: str) -> None:
    from ops import telemetry

    refusals = telemetry.QUOTA_REFUSALS.labels("quota_exceeded")._value
    before = refusals.get(), telemetry.QUOTA_THRESHOLD_CROSSINGS._value.get()
    somebody = limited(office, plain, limit(amount="1", thresholds=["1"]))
    office.use(somebody, {"tokens_in": 2_000})
    refused(reserve(somebody), 402, "quota_exceeded")
    assert refusals.get() == before[0] + 1
    assert telemetry.QUOTA_THRESHOLD_CROSSINGS._value.get() == before[1] + 1
