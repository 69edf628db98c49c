"""What is well formed and still cannot be: each state that stands in the way has its code and its facts."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.real.api.world import MISSING, UNSEEN, World, intent_body, money, refused, with_field

# Overdue things stay as they are, so that a decision meets them.
pytestmark = pytest.mark.usefixtures("unswept")

PAST = "2020-01-01T00:00:00Z"


def test_an_intent_that_is_not_open_says_what_it_is(world: World, contract: dict[str, Any]) -> None:
    lab = world.owner("lab")
    path = f"/v1/intents/{contract['round_intent_id']}"
    problem = refused(lab.post(f"{path}/match", {}), 409, "round_intent_not_open")
    assert problem["details"]["status"] == "matched"
    problem = refused(lab.patch(path, {"task_type": "x"}), 409, "round_intent_not_open")
    assert problem["details"] == {"status": "matched"}
    problem = refused(lab.post(f"{path}/cancel"), 409, "invalid_status_transition")
    assert problem["details"] == {"current_status": "matched", "next_status": "cancelled"}


def test_a_final_status_is_final(world: World) -> None:
    seller = world.provider("clinic")
    offer = world.offer(seller, dataset_fingerprint=UNSEEN)
    path = f"/v1/offers/{offer['id']}"
    refused(seller.post(f"{path}/resume"), 409, "invalid_status_transition")
    seller.made(f"{path}/pause")
    seller.made(f"{path}/retire")
    for step, status in (("pause", "paused"), ("resume", "active"), ("retire", "retired")):
        problem = refused(seller.post(f"{path}/{step}"), 409, "invalid_status_transition")
        assert problem["details"] == {"current_status": "retired", "next_status": status}
    refused(seller.patch(path, {"title": "new"}), 409, "invalid_status_transition")


def test_a_match_of_nothing_says_why_and_is_remembered(world: World) -> None:
    world.offer(world.provider("clinic"), dataset_fingerprint=UNSEEN)
    owner = world.owner("picky")
    intent = world.intent(owner, task_type="a-task-nobody-has")
    path = f"/v1/intents/{intent['id']}/match"
    problem = refused(owner.post(path, {}, key="once"), 422, "no_compatible_offers_found")
    diagnostics = problem["details"]["diagnostics"]
    assert diagnostics["compatible_offers"] == 0 < diagnostics["offers_evaluated"]
    assert diagnostics["rejection_reasons"]["task_not_supported"] == diagnostics["offers_evaluated"]
    assert refused(owner.post(path, {}, key="once"), 422, "no_compatible_offers_found") == problem
    assert owner.read(f"/v1/intents/{intent['id']}")["match_failures"] == 1


def test_an_intent_whose_deadline_has_passed_cannot_be_matched(world: World) -> None:
    owner = world.owner("late")
    soon = (datetime.now(UTC) + timedelta(milliseconds=300)).isoformat()
    intent = world.intent(owner, deadline_ts=soon)
    time.sleep(0.35)
    refused(owner.post(f"/v1/intents/{intent['id']}/match", {}), 409, "intent_expired")


def test_an_offer_whose_time_has_passed_is_not_matched(world: World) -> None:
    soon = (datetime.now(UTC) + timedelta(milliseconds=300)).isoformat()
    world.offer(world.provider("late"), dataset_fingerprint=UNSEEN, allowed_tasks=["late"], expires_at=soon)
    intent = world.intent(world.owner("lab"), task_type="late")
    time.sleep(0.35)
    problem = refused(
        world.owner("lab").post(f"/v1/intents/{intent['id']}/match", {}), 422, "no_compatible_offers_found"
    )
    assert problem["details"]["diagnostics"]["rejection_reasons"]["offer_expired"] >= 1


def test_nobody_trades_with_itself(world: World) -> None:
    both = world.speaker("both", "provider", "owner")
    world.offer(both, dataset_fingerprint=UNSEEN, allowed_tasks=["own"])
    intent = world.intent(both, task_type="own")
    problem = refused(both.post(f"/v1/intents/{intent['id']}/match", {}), 422, "no_compatible_offers_found")
    assert problem["details"]["diagnostics"]["rejection_reasons"]["self_dealing"] >= 1
    world.deposit("both", "5")
    refused(both.post("/v1/transfers", {"to_tenant": "both", "amount": money("1")}), 422, "same_account")


def test_another_currency_does_not_match(world: World) -> None:
    owner = world.owner("lab")
    world.offer(world.provider("clinic"))
    body = intent_body("lab") | {"currency": "EUR"}
    refused(owner.post("/v1/intents", body), 422, "currency_mismatch")
    refused(owner.post("/v1/intents", intent_body("lab") | {"currency": "XXX"}), 400, "invalid_currency")
    refused(
        owner.post("/v1/policy/preview", {"intent": intent_body("lab") | {"currency": "XXX"}}),
        400,
        "invalid_currency",
    )
    intent = world.intent(owner)
    path = f"/v1/intents/{intent['id']}"
    refused(owner.patch(path, {"budget_total": money("5", "EUR")}), 422, "currency_mismatch")
    euro = world.intent(owner, budget_total=money("100", "EUR"))
    problem = refused(owner.post(f"/v1/intents/{euro['id']}/match", {}), 422, "no_compatible_offers_found")
    assert problem["details"]["diagnostics"]["rejection_reasons"]["currency_mismatch"] >= 1


@pytest.mark.parametrize("bad", [0, 26, -1, "3", 1.5, True, None, 10**30])
def test_a_bad_number_of_offers_is_refused(world: World, bad: Any) -> None:
    owner = world.owner("lab")
    intent = world.intent(owner)
    refused(owner.post(f"/v1/intents/{intent['id']}/match", {"max_offers": bad}), 400, "invalid_max_offers")
    preview = {"round_intent_id": intent["id"], "max_offers": bad}
    refused(owner.post("/v1/policy/preview", preview), 400, "invalid_max_offers")


def test_what_a_preview_needs_is_asked_for(world: World) -> None:
    owner = world.owner("lab")
    refused(owner.post("/v1/policy/preview", {}), 400, "intent_required")
    refused(owner.post("/v1/policy/preview", {"intent": []}), 400, "intent_required")
    for bad in ("", 5, "\u0000", "x" * 201):
        refused(owner.post("/v1/policy/preview", {"round_intent_id": bad}), 400, "round_intent_id_required")
    refused(owner.post("/v1/policy/preview", {"round_intent_id": "intent-0"}), 404, "round_intent_not_found")
    refused(owner.post("/v1/policy/preview", {"intent": {"model_owner_id": "x"}}), 400, "task_type_required")
    over = {"intent": intent_body("lab"), "policy_overrides": {"min_quality_score": "2"}}
    refused(owner.post("/v1/policy/preview", over), 400, "invalid_min_quality_score")
    late = {"intent": intent_body("lab") | {"deadline_ts": PAST}}
    refused(owner.post("/v1/policy/preview", late), 400, "invalid_deadline_ts")


def test_a_round_needs_a_contract_that_is_funded(world: World, contract: dict[str, Any]) -> None:
    lab = world.owner("lab")
    for bad in (MISSING, None, "", 5, "a\u0000b", "x" * 201, "../x", "\u00e9"):
        refused(lab.post("/v1/rounds", with_field({}, "contract_id", bad)), 400, "contract_id_required")
    refused(lab.post("/v1/rounds", {"contract_id": "contract-0"}), 404, "contract_not_found")
    refused(lab.post("/v1/rounds", {"contract_id": contract["id"]}), 409, "contract_not_funded")
    for field, bad in {"learning_rate": "0", "l2": "-1", "rule": "x", "local_steps": 0, "fence": 0}.items():
        refused(lab.post("/v1/rounds", {"contract_id": contract["id"], field: bad}), 400, "invalid_field")


def test_release_and_refund_need_money_in_escrow(world: World, contract: dict[str, Any]) -> None:
    lab, path = world.owner("lab"), f"/v1/contracts/{contract['id']}"
    refused(lab.post(f"{path}/release"), 409, "contract_not_funded")
    refused(lab.post(f"{path}/refund", {}), 409, "contract_not_funded")
    problem = refused(lab.post(f"{path}/fund", {"amount": money("1")}), 409, "escrow_amount_mismatch")
    assert problem["details"]["offered"] == "1.00"
    refused(lab.post(f"{path}/fund", {"amount": money("10", "EUR")}), 409, "escrow_amount_mismatch")
    refused(lab.post(f"{path}/fund"), 409, "insufficient_funds")


def test_a_dispute_needs_a_reason_and_a_party(world: World, contract: dict[str, Any]) -> None:
    lab, path = world.owner("lab"), f"/v1/contracts/{contract['id']}/disputes"
    for bad in (MISSING, None, "", "   ", 5, "x" * 1_001):
        refused(lab.post(path, with_field({}, "reason", bad)), 400, "dispute_reason_required")
    refused(lab.post(path, {"reason": "x", "evidence": []}), 400, "invalid_field")
    refused(world.provider("stranger").post(path, {"reason": "x"}), 404, "contract_not_found")


def test_a_dispute_is_decided_once_and_not_by_a_party(world: World) -> None:
    world.offer(world.provider("clinic"), dataset_fingerprint=UNSEEN)
    contract = world.contract(world.owner("lab"))
    dispute = world.provider("clinic").made(f"/v1/contracts/{contract['id']}/disputes", {"reason": "late"})
    path = f"/v1/disputes/{dispute['id']}"
    verdict = {"resolution": "no"}
    refused(world.owner("lab").post(f"{path}/reject", verdict), 403, "forbidden")
    for tenant in ("lab", "clinic"):
        partial = world.speaker(tenant, "reviewer", "owner")
        refused(partial.post(f"{path}/review"), 403, "forbidden")
        refused(partial.post(f"{path}/reject", verdict), 403, "forbidden")
        refused(partial.post(f"{path}/resolve", verdict | {"outcome": "refund"}), 403, "forbidden")
    judge = world.speaker("court", "reviewer")
    assert judge.read(path)["status"] == "open"
    assert dispute["id"] in [found["id"] for found in judge.read("/v1/disputes")["items"]]
    refused(judge.post(f"{path}/resolve", verdict), 400, "missing_field")
    refused(judge.post(f"{path}/resolve", verdict | {"outcome": "jail"}), 400, "invalid_field")
    refused(
        judge.post(f"{path}/resolve", verdict | {"outcome": "refund", "sellers_share": "0.5"}),
        400,
        "invalid_field",
    )
    refused(
        judge.post(f"{path}/resolve", verdict | {"outcome": "split", "sellers_share": "1.5"}),
        400,
        "invalid_field",
    )
    refused(judge.post(f"{path}/review", if_match='"9"'), 412, "version_mismatch")
    judge.made(f"{path}/review")
    problem = refused(judge.post(f"{path}/review"), 409, "invalid_status_transition")
    assert problem["details"] == {"current_status": "under_review", "next_status": "under_review"}
    judge.made(f"{path}/reject", verdict)
    problem = refused(judge.post(f"{path}/reject", verdict), 409, "dispute_closed")
    assert problem["details"] == {"status": "rejected"}
    refused(judge.post(f"{path}/resolve", verdict | {"outcome": "refund"}), 409, "dispute_closed")


def test_a_key_means_one_request(world: World) -> None:
    owner = world.owner("keys")
    first = owner.made("/v1/intents", intent_body("keys"), key="k")
    again = owner.made("/v1/intents", intent_body("keys"), key="k")
    assert again == first | {"receipt": first["receipt"] | {"repeated": True}}
    refused(
        owner.post("/v1/intents", intent_body("keys") | {"task_type": "other"}, key="k"),
        422,
        "idempotency_key_reused",
    )
    path = f"/v1/intents/{first['id']}"
    owner.patch(path, {}, key="p")
    refused(owner.patch(path, {"budget_total": None}, key="p"), 422, "idempotency_key_reused")
    refused(owner.post(f"{path}/close", key="k"), 422, "idempotency_key_reused")
    other = world.speaker("keys", "owner", subject="another").made(
        "/v1/intents", intent_body("keys"), key="k"
    )
    assert other["id"] != first["id"]


def test_money_that_is_not_there_does_not_move(world: World) -> None:
    world.deposit("thin", "5")
    thin = world.owner("thin")
    refused(
        world.operator.post("/v1/deposits", {"tenant": "thin", "amount": money("0")}), 400, "invalid_amount"
    )
    refused(
        world.operator.post("/v1/deposits", {"tenant": "Thin!", "amount": money("1")}), 400, "invalid_field"
    )
    refused(
        thin.post("/v1/transfers", {"to_tenant": "nobody", "amount": money("1")}), 404, "account_not_found"
    )
    world.owner("fat").made("/v1/accounts", {"currency": "USD"})
    refused(
        thin.post("/v1/transfers", {"to_tenant": "fat", "amount": money("5.000000001")}),
        409,
        "insufficient_funds",
    )
    refused(thin.post("/v1/transfers", {"to_tenant": "platform", "amount": money("1")}), 403, "forbidden")
    withdrawal = {"tenant": "thin", "amount": money("6")}
    refused(world.operator.post("/v1/withdrawals", withdrawal), 409, "insufficient_funds")
    refused(thin.post("/v1/accounts", {"currency": "XXX"}), 400, "invalid_currency")
    refused(thin.post("/v1/accounts", {}), 400, "invalid_currency")
