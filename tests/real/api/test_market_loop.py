"""The loop of the market, step by step over HTTP: the good way through, and every way out of it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from tests.real.api.world import UNSEEN, Speaker, World, intent_body, money, offer_body, table


def code_of(answer: Any) -> tuple[int, str]:
    """Give the status and the code of a refusal."""
    return answer.status_code, answer.json().get("code", "")


def balance(who: Speaker, tenant: str, **more: Any) -> dict[str, str]:
    """Read a wallet."""
    found = who.read(f"/v1/accounts/wallet.{tenant}.USD", params=more)
    return {name: found[name] for name in ("balance", "held", "available")}


def earned(who: Speaker, tenant: str) -> dict[str, str]:
    """Read what a seller was paid."""
    found = who.read(f"/v1/accounts/earnings.{tenant}.USD")
    return {name: found[name] for name in ("balance", "held", "available")}


def balanced(world: World) -> dict[str, Any]:
    """Check that the books balance."""
    trial = world.operator.read("/v1/trial_balance")
    assert trial["balanced"] is True
    return {row["currency"]: row for row in trial["currencies"]}


def timeline(who: Speaker, contract_id: str) -> list[str]:
    """Name what happened to a contract, in order."""
    entries = who.read(f"/v1/contracts/{contract_id}/timeline")["entries"]
    assert [entry["position"] for entry in entries] == sorted(entry["position"] for entry in entries)
    assert entries == who.read(f"/v1/contracts/{contract_id}")["timeline"]
    return [entry["event"] for entry in entries]


def records(world: World, stream: str) -> list[dict[str, Any]]:
    """Read the records of a stream."""
    return [item["record"] for item in world.operator.read(f"/v1/log/streams/{stream}")["items"]]


def bare(found: dict[str, Any]) -> dict[str, Any]:
    """Leave out of an answer what is told beside the aggregate."""
    return {name: value for name, value in found.items() if name not in ("receipt", "timeline")}


def sellers(world: World, *prices: str, task: str = "classification", **fields: Any) -> list[dict[str, Any]]:
    """List one offer each of several sellers."""
    return [
        world.offer(
            world.provider(f"clinic-{n}"), price_per_round=money(price), allowed_tasks=[task], **fields
        )
        for n, price in enumerate(prices)
    ]


# --------------------------------------------------------------------------- the good way through


def test_the_loop_from_offer_to_release(fresh: World) -> None:
    world, lab = fresh, fresh.owner("lab")
    sellers(world, "10", "11.50", "12.345678901")
    world.deposit("lab", "100")
    contract = world.contract(lab)
    assert contract["agreed_price_per_round_total"] == money("33.845678901")
    assert (contract["status"], contract["escrow_status"], contract["payout_status"]) == (
        "created",
        "unfunded",
        "pending",
    )
    path = f"/v1/contracts/{contract['id']}"
    lab.made(f"{path}/fund", {"amount": money("33.845678901")})
    assert balance(lab, "lab") == {"balance": "100.00", "held": "33.845678901", "available": "66.154321099"}
    pending = lab.read("/v1/training/status")["marketplace_pending_contract"]
    assert {k: pending[k] for k in ("contract_id", "offer_count", "agreed_price_per_round_total")} == {
        "contract_id": contract["id"], "offer_count": 3, "agreed_price_per_round_total": money("33.845678901"),
    }  # fmt: skip
    assert code_of(lab.post(f"{path}/release")) == (409, "round_not_completed")
    training = world.round(lab, contract["id"])
    assert training["status"] == "completed"
    assert len(training["updates"]) == 3
    assert code_of(lab.post("/v1/rounds", {"contract_id": contract["id"]})) == (409, "round_already_bound")
    assert code_of(lab.post(f"{path}/refund", {})) == (409, "refund_not_allowed")
    released = lab.made(f"{path}/release", key="pay")
    fee = world.operator.read("/v1/accounts/fees.platform.USD")["balance"]
    paid = {f"clinic-{n}": earned(world.provider(f"clinic-{n}"), f"clinic-{n}")["balance"] for n in range(3)}
    assert paid == {"clinic-0": "9.75", "clinic-1": "11.2125", "clinic-2": "12.037036928"}
    assert (fee, released["payout_amount"]["amount"]) == ("0.846141973", "32.999536928")
    assert balance(lab, "lab") == {"balance": "66.154321099", "held": "0.00", "available": "66.154321099"}
    assert timeline(lab, contract["id"]) == [
        "created", "escrow_funded", "bound_to_round", "round_completed", "escrow_released",
    ]  # fmt: skip
    again = lab.made(f"{path}/release", key="pay")
    assert again == released | {"receipt": released["receipt"] | {"repeated": True}}
    second = lab.post(f"{path}/release")
    assert code_of(second) == (409, "contract_already_released")
    assert second.json()["details"] == {"contract_id": contract["id"], "payout_status": "released"}
    for step in ("fund", "refund", "disputes"):
        body = {"reason": "too late"} if step == "disputes" else {}
        assert code_of(lab.post(f"{path}/{step}", body)) == (409, "contract_already_released")
    assert code_of(lab.post("/v1/rounds", {"contract_id": contract["id"]})) == (
        409,
        "contract_already_released",
    )
    books = balanced(world)["USD"]
    assert (books["debits"], books["credits"], books["held"]) == ("100.00", "100.00", "0.00")
    summary = lab.read("/v1/metrics_summary")
    assert summary["marketplace"] == {
        "offers_total": 3, "open_intents": 0, "contracts_total": 1, "locked_escrow_total": {},
        "released_payout_total": {"USD": "32.999536928"},
    }  # fmt: skip
    assert summary["federated_learning"]["current_round"] == training["id"]
    assert lab.read("/v1/training/status")["marketplace_pending_contract"] is None


def test_a_free_contract_goes_the_same_way(fresh: World) -> None:
    lab = fresh.owner("lab")
    sellers(fresh, "0")
    contract = fresh.completed(lab, budget_total=money("0"))
    released = lab.made(f"/v1/contracts/{contract['id']}/release")
    assert (released["status"], released["payout_amount"]) == ("released", money("0.00"))


def test_a_seller_with_history_ranks_above_a_newcomer(fresh: World) -> None:
    world, lab = fresh, fresh.owner("lab")
    (old,) = sellers(world, "10")
    contract = world.completed(lab)
    lab.made(f"/v1/contracts/{contract['id']}/release")
    new = world.offer(world.provider("newcomer"))
    contract = world.contract(lab, max_offers=1)
    ranked = contract["selection_diagnostics"]["top_ranked_offers"]
    assert [one["offer_id"] for one in ranked] == [old["id"], new["id"]]
    chosen = contract["selected_offers"][0]
    assert (chosen["offer_id"], chosen["successes"], chosen["failures"]) == (old["id"], 1, 0)
    assert float(chosen["trust_score"]) > 0.05


def test_the_same_data_give_the_same_model(fresh: World) -> None:
    lab = fresh.owner("lab")
    sellers(fresh, "1", "2")
    found = [fresh.round(lab, fresh.funded(lab)["id"]) for _ in range(2)]
    assert found[0]["model_address"] == found[1]["model_address"]
    assert [u["update_address"] for u in found[0]["updates"]] == [
        u["update_address"] for u in found[1]["updates"]
    ]


# --------------------------------------------------------------------------- matching


def test_a_preview_writes_nothing_and_is_what_the_match_then_does(fresh: World) -> None:
    world, lab = fresh, fresh.owner("lab")
    sellers(world, "30", "30", "30", "90")
    intent = world.intent(lab)
    size = world.size
    preview = lab.made("/v1/policy/preview", {"round_intent_id": intent["id"], "max_offers": 4})
    full = lab.made("/v1/policy/preview", {"intent": intent_body("lab"), "max_offers": 4})
    assert world.size == size
    assert lab.read(f"/v1/intents/{intent['id']}")["version"] == 1
    assert full["preview"] == preview["preview"]
    contract = lab.made(f"/v1/intents/{intent['id']}/match", {"max_offers": 4})
    assert contract["selected_offers"] == preview["preview"]["selected"]
    assert contract["score_total"] == preview["preview"]["score_total"]
    diagnostics = preview["preview"]["diagnostics"]
    assert contract["selection_diagnostics"] == diagnostics
    assert diagnostics["optimal"] is True


def test_what_is_said_to_match_does_match(fresh: World) -> None:
    world, lab = fresh, fresh.owner("lab")
    world.offer(world.provider("dear"), dataset_fingerprint=UNSEEN, price_per_round=money("150"))
    world.offer(world.provider("poor"), dataset_fingerprint=UNSEEN, quality_score="0.4")
    world.offer(world.provider("other"), dataset_fingerprint=UNSEEN, modality="image")
    wish = {"required_modalities": ["tabular"], "min_quality_score": "0.6"}
    intent = world.intent(lab, **wish)
    answer = lab.post(f"/v1/intents/{intent['id']}/match", {})
    assert code_of(answer) == (422, "no_compatible_offers_found")
    proposals = {one["change"]: one for one in answer.json()["details"]["diagnostics"]["would_match"]}
    assert {"budget", "min_quality", "required_modalities"} <= set(proposals) or len(proposals) == 3, (
        proposals
    )
    for change, proposal in proposals.items():
        amended = dict(intent_body("lab")) | wish
        if "at_least" in proposal:
            amended["budget_total"] = money(proposal["at_least"])
        elif "one_of" in proposal:
            amended["required_modalities"] = [proposal["one_of"][0]]
        else:
            amended["min_quality_score"] = proposal["at_most"]
        contract = world.contract(lab, **amended)
        assert [one["offer_id"] for one in contract["selected_offers"]] == list(proposal["offers"]), change


def test_an_amended_intent_matches_where_it_did_not(fresh: World) -> None:
    lab = fresh.owner("lab")
    sellers(fresh, "40")
    intent = fresh.intent(lab, budget_total=money("39.999999999"))
    path = f"/v1/intents/{intent['id']}"
    assert code_of(lab.post(f"{path}/match", {})) == (422, "no_compatible_offers_found")
    stale = lab.patch(path, {"budget_total": money("40")}, if_match='"1"')
    assert code_of(stale) == (412, "version_mismatch")
    assert lab.patch(path, {"budget_total": money("40")}, if_match='"2"').status_code == 200
    assert lab.made(f"{path}/match", {})["agreed_price_per_round_total"] == money("40.00")


def test_an_intent_matched_by_two_at_once_becomes_one_contract(fresh: World) -> None:
    lab = fresh.owner("lab")
    sellers(fresh, "10", "20")
    intent = fresh.intent(lab)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: lab.post(f"/v1/intents/{intent['id']}/match", {}), range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {
        "round_intent_not_open"
    }
    assert len(lab.read("/v1/contracts")["items"]) == 1


def test_one_key_sent_by_many_at_once_has_one_effect(fresh: World) -> None:
    lab = fresh.owner("lab")
    sellers(fresh, "10")
    intent = fresh.intent(lab)
    path = f"/v1/intents/{intent['id']}/match"
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: lab.post(path, {}, key="one"), range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert {answer.json()["id"] for answer in answers} == {answers[0].json()["id"]}
    assert sum(not answer.json()["receipt"]["repeated"] for answer in answers) == 1


def test_a_revised_offer_leaves_contracts_as_they_are(fresh: World) -> None:
    lab = fresh.owner("lab")
    (offer,) = sellers(fresh, "10")
    contract = fresh.contract(lab)
    fresh.provider("clinic-0").patch(f"/v1/offers/{offer['id']}", {"price_per_round": money("99")})
    fresh.provider("clinic-0").made(f"/v1/offers/{offer['id']}/retire")
    fresh.deposit("lab", "10")
    assert lab.made(f"/v1/contracts/{contract['id']}/fund")["agreed_price_per_round_total"] == money("10.00")
    assert contract["selected_offers"][0]["version"] == 1


# --------------------------------------------------------------------------- money that does not go the good way


def test_escrow_needs_the_agreed_sum(fresh: World) -> None:
    world, lab = fresh, fresh.owner("lab")
    sellers(world, "10", "20")
    contract = world.contract(lab)
    path = f"/v1/contracts/{contract['id']}/fund"
    world.deposit("lab", "29.999999999")
    assert code_of(lab.post(path)) == (409, "insufficient_funds")
    wrong = lab.post(path, {"amount": money("29.99")})
    assert code_of(wrong) == (409, "escrow_amount_mismatch")
    assert wrong.json()["details"] == {"agreed": "30.00", "offered": "29.99", "currency": "USD"}
    world.deposit("lab", "0.000000001")
    lab.made(path)
    assert code_of(lab.post(path)) == (409, "contract_already_funded")
    assert balance(lab, "lab") == {"balance": "30.00", "held": "30.00", "available": "0.00"}
    world.provider("clinic-0").made("/v1/accounts", {"currency": "USD"})
    assert code_of(lab.post("/v1/transfers", {"to_tenant": "clinic-0", "amount": money("0.01")})) == (
        409,
        "insufficient_funds",
    )


def test_money_comes_back_before_anybody_has_worked(fresh: World) -> None:
    lab = fresh.owner("lab")
    sellers(fresh, "10")
    contract = fresh.funded(lab)
    path = f"/v1/contracts/{contract['id']}"
    refunded = lab.made(f"{path}/refund", {"reason": "changed our mind"})
    assert (refunded["status"], refunded["payout_status"]) == ("refunded", "refunded")
    assert balance(lab, "lab") == {"balance": "10.00", "held": "0.00", "available": "10.00"}
    for step in ("refund", "release", "fund"):
        assert code_of(lab.post(f"{path}/{step}", {} if step != "release" else None)) == (
            409,
            "contract_already_refunded",
        )
    assert code_of(lab.post("/v1/rounds", {"contract_id": contract["id"]})) == (
        409,
        "contract_already_refunded",
    )
    assert timeline(lab, contract["id"]) == ["created", "escrow_funded", "escrow_refunded"]
    balanced(fresh)


def test_a_round_without_its_data_fails_and_the_money_comes_back(fresh: World) -> None:
    world, lab = fresh, fresh.owner("lab")
    sellers(world, "10")
    missing = world.offer(world.provider("empty"), dataset_fingerprint=UNSEEN)
    contract = world.funded(lab)
    training = world.round(lab, contract["id"])
    assert (training["status"], training["failure"]) == ("failed", "dataset_missing")
    assert records(world, f"round/{training['id']}")[-1]["data"]["offer_id"] == missing["id"]
    path = f"/v1/contracts/{contract['id']}"
    assert lab.read(path)["status"] == "round_failed"
    assert code_of(lab.post(f"{path}/release")) == (409, "round_failed")
    lab.made(f"{path}/refund", {})
    assert timeline(lab, contract["id"]) == [
        "created",
        "escrow_funded",
        "bound_to_round",
        "round_failed",
        "escrow_refunded",
    ]
    history = records(world, "seller/empty")
    assert [(one["type"], one["data"]["reason"]) for one in history] == [("seller.failed", "dataset_missing")]
    assert world.operator.get("/v1/log/streams/seller/clinic-0").status_code == 404
    balanced(world)


def test_data_of_somebody_else_are_not_trained_on(fresh: World) -> None:
    owned = fresh.dataset(fresh.provider("honest"))
    fresh.offer(fresh.provider("thief"), dataset_fingerprint=owned)
    lab = fresh.owner("lab")
    training = fresh.round(lab, fresh.funded(lab)["id"])
    assert (training["status"], training["failure"]) == ("failed", "dataset_missing")


def test_tables_without_a_column_in_common_come_to_a_typed_end(fresh: World) -> None:
    lab = fresh.owner("lab")
    fresh.offer(fresh.provider("one"), data=table("one", names=("age", "dose")))
    fresh.offer(fresh.provider("other"), data=table("other", names=("height", "weight")))
    contract = fresh.funded(lab)
    training = fresh.round(lab, contract["id"])
    assert training["status"] in ("completed", "failed")
    if training["status"] == "failed":
        assert training["failure"] in ("dataset_invalid", "update_rejected")
        lab.made(f"/v1/contracts/{contract['id']}/refund", {})
    else:
        assert len(training["updates"]) == 2


@pytest.mark.parametrize("harm", ["deleted", "altered"])
def test_a_round_whose_objects_were_touched_is_not_paid(fresh: World, harm: str) -> None:
    lab = fresh.owner("lab")
    sellers(fresh, "10", "10")
    contract = fresh.completed(lab)
    training = lab.read(f"/v1/rounds/{contract['execution_round']}")
    name = training["updates"][0]["update_address"].removeprefix("sha3-512:")
    (stored,) = fresh.service.settings.objects_path.rglob(name)
    kept = stored.read_bytes()
    stored.unlink()
    if harm == "altered":
        stored.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    path = f"/v1/contracts/{contract['id']}/release"
    assert code_of(lab.post(path)) == (409, "attestation_invalid")
    assert balance(lab, "lab")["held"] == "20.00"
    stored.write_bytes(kept)
    assert lab.post(path).status_code == 200


# --------------------------------------------------------------------------- disputes


def disputed(world: World, lab: Speaker) -> tuple[str, str]:
    """Make a completed contract of 100 with a dispute; give the names of both."""
    sellers(world, "60", "40")
    contract = world.completed(lab)
    dispute = lab.made(
        f"/v1/contracts/{contract['id']}/disputes",
        {"reason": "the labels are wrong", "evidence": {"rows": 3}},
    )
    assert code_of(lab.post(f"/v1/contracts/{contract['id']}/release")) == (409, "dispute_open")
    assert code_of(lab.post(f"/v1/contracts/{contract['id']}/refund", {})) == (409, "dispute_open")
    return contract["id"], dispute["id"]


def resolve(world: World, dispute_id: str, outcome: str, **more: str) -> dict[str, Any]:
    """Decide a dispute as the operator."""
    return world.operator.made(
        f"/v1/disputes/{dispute_id}/resolve", {"outcome": outcome, "resolution": "so be it"} | more
    )


def histories(world: World) -> dict[str, tuple[int, int]]:
    """Read the history of each seller: successes and failures."""
    found = {}
    for n in range(2):
        answer = world.operator.get(f"/v1/log/streams/seller/clinic-{n}/state")
        state = answer.json().get("state", {}) if answer.is_success else {}
        found[f"clinic-{n}"] = (state.get("successes", 0), state.get("failures", 0))
    return found


def test_a_dispute_resolved_for_the_sellers_ends_in_release(fresh: World) -> None:
    lab = fresh.owner("lab")
    contract_id, dispute_id = disputed(fresh, lab)
    fresh.operator.made(f"/v1/disputes/{dispute_id}/review")
    assert resolve(fresh, dispute_id, "release")["status"] == "resolved"
    assert lab.made(f"/v1/contracts/{contract_id}/release")["payout_amount"] == money("97.50")
    assert timeline(lab, contract_id)[-3:] == ["dispute_opened", "dispute_resolved", "escrow_released"]
    assert histories(fresh) == {"clinic-0": (1, 0), "clinic-1": (1, 0)}
    balanced(fresh)


def test_a_dispute_resolved_for_the_owner_ends_in_refund(fresh: World) -> None:
    lab = fresh.owner("lab")
    contract_id, dispute_id = disputed(fresh, lab)
    resolve(fresh, dispute_id, "refund")
    assert code_of(lab.post(f"/v1/contracts/{contract_id}/release")) == (409, "refund_not_allowed")
    lab.made(f"/v1/contracts/{contract_id}/refund", {})
    assert balance(lab, "lab") == {"balance": "100.00", "held": "0.00", "available": "100.00"}
    assert histories(fresh) == {"clinic-0": (0, 1), "clinic-1": (0, 1)}
    assert timeline(lab, contract_id)[-3:] == ["dispute_opened", "dispute_resolved", "escrow_refunded"]
    balanced(fresh)


def test_a_split_pays_each_side_its_part(fresh: World) -> None:
    lab = fresh.owner("lab")
    contract_id, dispute_id = disputed(fresh, lab)
    resolve(fresh, dispute_id, "split", sellers_share="0.333333")
    released = lab.made(f"/v1/contracts/{contract_id}/release")
    assert released["payout_amount"] == money("32.4999675")
    assert balance(lab, "lab") == {"balance": "66.6667", "held": "0.00", "available": "66.6667"}
    assert earned(fresh.provider("clinic-0"), "clinic-0")["balance"] == "19.4999805"
    assert histories(fresh) == {"clinic-0": (0, 1), "clinic-1": (0, 1)}
    balanced(fresh)


def test_a_rejected_dispute_changes_nothing(fresh: World) -> None:
    lab = fresh.owner("lab")
    contract_id, dispute_id = disputed(fresh, lab)
    fresh.operator.made(f"/v1/disputes/{dispute_id}/reject", {"resolution": "groundless"})
    assert lab.made(f"/v1/contracts/{contract_id}/release")["payout_amount"] == money("97.50")
    assert histories(fresh) == {"clinic-0": (1, 0), "clinic-1": (1, 0)}


def test_each_of_two_disputes_must_be_decided(fresh: World) -> None:
    lab = fresh.owner("lab")
    contract_id, first = disputed(fresh, lab)
    second = fresh.provider("clinic-1").made(f"/v1/contracts/{contract_id}/disputes", {"reason": "not paid"})
    resolve(fresh, first, "release")
    assert code_of(lab.post(f"/v1/contracts/{contract_id}/release")) == (409, "dispute_open")
    fresh.operator.made(f"/v1/disputes/{second['id']}/reject", {"resolution": "groundless"})
    assert lab.post(f"/v1/contracts/{contract_id}/release").status_code == 200


# --------------------------------------------------------------------------- training mode


def test_training_mode_is_a_fenced_lock(fresh: World) -> None:
    world, lab = fresh, fresh.owner("lab")
    sellers(world, "10")
    contract = world.funded(lab)
    start = {"contract_id": contract["id"], "communication_rounds": 2}
    assert code_of(lab.post("/v1/rounds", start | {"fence": 1})) == (409, "training_mode_disabled")
    first = lab.made("/v1/training/enable", {"reason": "nightly"})
    assert (first["enabled"], first["locked_by"], first["fence"]) == (True, "somebody-of-lab", 1)
    other = world.speaker("lab", "owner", subject="somebody-else")
    twice = other.post("/v1/training/enable", {"reason": "me too"})
    assert code_of(twice) == (409, "training_mode_enabled")
    assert twice.json()["details"]["locked_by"] == "somebody-of-lab"
    assert code_of(other.post("/v1/training/disable", {})) == (403, "forbidden")
    for fence in ({}, {"fence": 2}, {"fence": 10**15}):
        assert code_of(lab.post("/v1/rounds", start | fence)) == (409, "stale_fence")
    lab.made("/v1/training/disable", {})
    assert code_of(lab.post("/v1/training/disable", {})) == (409, "training_mode_disabled")
    second = other.made("/v1/training/enable", {"reason": "again", "duration_s": 60})
    assert second["fence"] > first["fence"]
    assert code_of(lab.post("/v1/rounds", start | {"fence": first["fence"]})) == (409, "stale_fence")
    started = lab.made("/v1/rounds", start | {"fence": second["fence"]})
    assert world.ended(lab, started["id"])["status"] == "completed"
    world.operator.made("/v1/training/disable", {"tenant": "lab", "reason": "by the operator"})
    assert lab.read("/v1/training/status/lab")["enabled"] is False
    types = [one["type"] for one in records(world, "training/lab")]
    assert types == ["training.enabled", "training.disabled", "training.enabled", "training.disabled"]
    for bad in (0, 59, 86_401, "60", 1.5):
        assert code_of(lab.post("/v1/training/enable", {"reason": "x", "duration_s": bad})) == (
            400,
            "invalid_field",
        )


def test_the_least_number_of_rounds_of_an_offer_is_kept(fresh: World) -> None:
    lab = fresh.owner("lab")
    sellers(fresh, "10", min_rounds=7)
    contract = fresh.funded(lab)
    few = lab.post("/v1/rounds", {"contract_id": contract["id"], "communication_rounds": 6})
    assert code_of(few) == (400, "invalid_min_rounds")
    assert few.json()["details"] == {"min_rounds": 7}
    assert fresh.round(lab, contract["id"], communication_rounds=7)["status"] == "completed"


# --------------------------------------------------------------------------- reading


def test_pages_lose_and_double_nothing(world: World) -> None:
    seller = world.provider("many")
    body = offer_body("many") | {"dataset_fingerprint": UNSEEN}
    with ThreadPoolExecutor(8) as pool:
        made = {
            answer.json()["id"]
            for answer in pool.map(lambda n: seller.post("/v1/offers", body | {"title": f"n{n}"}), range(250))
        }
    assert len(made) == 250
    seen: list[str] = []
    page: dict[str, Any] = {"next": None}
    sizes = []
    while True:
        more = {"cursor": page["next"]} if page["next"] else {}
        page = seller.read("/v1/offers", params={"limit": 100, "seller_node_id": "node-of-many", **more})
        sizes.append(len(page["items"]))
        seen += [item["id"] for item in page["items"]]
        if page["next"] is None:
            break
        seller.made("/v1/offers", body)  # what comes while somebody reads must not move the pages
    assert sizes == [100, 100, 50]
    assert seen == sorted(made, reverse=True)


def test_offers_are_found_by_what_they_are(world: World) -> None:
    seller = world.provider("library")
    heart = world.offer(
        seller,
        dataset_fingerprint=UNSEEN,
        title="Cardiac rhythms",
        description="Ten years of atrial flutter, Z\u00fcrich",
        modality="timeseries",
        allowed_tasks=["forecasting"],
        seller_node_id="node-heart",
    )
    skin = world.offer(
        seller,
        dataset_fingerprint=UNSEEN,
        title="Skin lesions",
        modality="image",
        allowed_tasks=["segmentation"],
        seller_node_id="node-skin",
    )
    seller.made(f"/v1/offers/{skin['id']}/pause")

    def found(**wish: str) -> set[str]:
        reader = world.owner("reader")
        return {one["id"] for one in reader.read("/v1/offers", params={"limit": 500, **wish})["items"]} & {
            heart["id"],
            skin["id"],
        }

    assert found(q="flutter") == found(q="FLUTTER cardiac") == found(q="z\u00fcrich") == {heart["id"]}
    assert found(q='"atrial flutter"') == {heart["id"]}
    assert found(q="lesions -skin") == found(q="nothing-like-it") == set()
    for words in ("'", '"', "\\", "&|!", "a:*", "%", "--", "OR OR", "(", "<->", "\U0001f600", "x" * 200):
        found(q=words)
    assert (
        found(modality="image") == found(status="paused") == found(seller_node_id="node-skin") == {skin["id"]}
    )
    assert found(task="forecasting") == {heart["id"]}
    assert found(task="forecasting", modality="image") == set()
    assert found(status="active", q="rhythms") == {heart["id"]}


def test_lists_of_the_other_things_are_narrowed_too(fresh: World) -> None:
    lab = fresh.owner("lab")
    sellers(fresh, "10")
    contract = fresh.funded(lab)
    second = fresh.intent(lab, model_owner_id="another-lab")
    assert [one["id"] for one in lab.read("/v1/intents", params={"status": "open"})["items"]] == [
        second["id"]
    ]
    owned = lab.read("/v1/intents", params={"model_owner_id": "another-lab"})["items"]
    assert [one["id"] for one in owned] == [second["id"]]
    for wish in (
        {"payout_status": "pending"},
        {"status": "funded"},
        {"round_intent_id": contract["round_intent_id"]},
    ):
        assert [one["id"] for one in lab.read("/v1/contracts", params=wish)["items"]] == [contract["id"]]
    for wish in ({"payout_status": "released"}, {"status": "created"}, {"round_intent_id": second["id"]}):
        assert lab.read("/v1/contracts", params=wish)["items"] == []
    postings: list[Any] = []
    page: dict[str, Any] = {"next": None}
    while True:
        more = {"cursor": page["next"]} if page["next"] else {}
        page = lab.read("/v1/accounts/wallet.lab.USD/postings", params={"limit": 1, **more})
        postings += page["items"]
        if page["next"] is None:
            break
    assert postings == lab.read("/v1/accounts/wallet.lab.USD/postings")["items"]
    assert [one["held"] for one in postings] == ["10.00", "0.00", "0.00"]


def test_things_can_be_seen_as_they_were(fresh: World) -> None:
    world, lab = fresh, fresh.owner("lab")
    sellers(world, "10")
    contract = world.contract(lab)
    path = f"/v1/contracts/{contract['id']}"
    created = contract["receipt"]["position"]
    assert code_of(lab.get(path, params={"as_of": created - 1})) == (404, "contract_not_found")
    world.deposit("lab", "25")
    between = lab.made("/v1/intents", intent_body("lab"))["created_at"]
    time.sleep(0.01)
    moment = lab.made("/v1/intents", intent_body("lab"))["created_at"]
    assert between < moment
    time.sleep(0.01)
    funded = lab.made(f"{path}/fund")["receipt"]["position"]
    as_made = lab.read(path, params={"as_of": created})
    assert bare(as_made) == bare(contract)
    assert [entry["event"] for entry in as_made["timeline"]] == ["created"]
    assert lab.read(path, params={"as_of": funded})["status"] == "funded"
    assert lab.read(path, params={"as_of": funded - 1})["status"] == "created"
    assert lab.read(path, params={"as_of": moment})["status"] == "created"
    assert lab.read(path)["status"] == "funded"
    assert balance(lab, "lab", as_of=funded - 1) == {"balance": "25.00", "held": "0.00", "available": "25.00"}
    assert balance(lab, "lab", as_of=funded) == {"balance": "25.00", "held": "10.00", "available": "15.00"}
    assert balance(lab, "lab", as_of=moment)["held"] == "0.00"
    assert code_of(lab.get("/v1/accounts/wallet.lab.USD", params={"as_of": 0})) == (404, "account_not_found")
    beyond = lab.read(path, params={"as_of": 10**15})
    assert beyond == lab.read(path)


def test_what_a_seller_earned_is_spent_or_paid_out_only_by_its_own_wish(fresh: World) -> None:
    world, lab = fresh, fresh.owner("lab")
    sellers(world, "10", "20")
    contract = world.completed(lab)
    clinic = world.provider("clinic-1")
    body = {"amount": money("12.5"), "memo": "to buy with"}
    early = {"amount": money("0.01", "EUR")}
    assert code_of(clinic.post("/v1/earnings/transfers", early)) == (404, "account_not_found")
    assert code_of(clinic.post("/v1/earnings/transfers", body)) == (409, "insufficient_funds")
    lab.made(f"/v1/contracts/{contract['id']}/release")
    assert earned(clinic, "clinic-1") == {"balance": "19.50", "held": "0.00", "available": "19.50"}
    first = clinic.made("/v1/earnings/transfers", body, key="spend")
    again = clinic.made("/v1/earnings/transfers", body, key="spend")
    assert (first["id"], again["receipt"]["repeated"]) == (again["id"], True)
    assert (first["source"], first["target"]) == ("earnings.clinic-1.USD", "wallet.clinic-1.USD")
    assert code_of(clinic.post("/v1/earnings/transfers", {"amount": money("0")})) == (400, "invalid_amount")
    payout = clinic.made("/v1/payouts", {"amount": money("7"), "destination": "house bank"})
    assert code_of(clinic.post("/v1/earnings/transfers", {"amount": money("0.01")})) == (
        409,
        "insufficient_funds",
    )
    world.operator.made(f"/v1/payouts/{payout['id']}/confirm", {"reference": "r-1"})
    assert earned(clinic, "clinic-1")["balance"] == "0.00"
    assert balance(clinic, "clinic-1") == {"balance": "12.50", "held": "0.00", "available": "12.50"}
    assert {a["account"]: a["purpose"] for a in clinic.read("/v1/accounts")["items"]} == {
        "earnings.clinic-1.USD": "earnings",
        "wallet.clinic-1.USD": "wallet",
    }
    assert balanced(world)["USD"]["debits"] == "23.00"


def test_the_trial_balance_says_what_lies_where_and_says_it_again_for_ever(fresh: World) -> None:
    world, lab = fresh, fresh.owner("lab")
    sellers(world, "10", "20")
    world.deposit("lab", "3000", "JPY")
    contract = world.completed(lab)
    world.deposit("lab", "0.25")
    told = world.operator.get("/v1/trial_balance")
    then, before = told.content, told.json()["size"] - 1
    lab.made(f"/v1/contracts/{contract['id']}/release")
    now = balanced(world)
    assert (now["USD"]["escrow"], now["JPY"]["escrow"]) == ("0.00", "0")
    purposes = {row["purpose"]: row for row in now["USD"]["accounts"]}
    assert {name: row["balance"] for name, row in purposes.items()} == {
        "cash": "30.25", "earnings": "29.25", "fees": "0.75", "wallet": "0.25",
    }  # fmt: skip
    assert (purposes["earnings"]["account_count"], purposes["earnings"]["side"]) == (2, "credit")
    for currency in now.values():
        for side, total in (("debit", "debits"), ("credit", "credits")):
            rows = [Decimal(row["balance"]) for row in currency["accounts"] if row["side"] == side]
            assert sum(rows) == Decimal(currency[total])
    asked = world.operator.get("/v1/trial_balance", params={"as_of": before})
    assert asked.content == then
    held = {row["currency"]: row for row in asked.json()["currencies"]}["USD"]
    assert (held["escrow"], held["held"]) == ("30.00", "30.00")
    assert {row["purpose"]: row["available"] for row in held["accounts"]}["wallet"] == "0.25"
    asked = world.operator.read("/v1/accounts", params={"as_of": before})["items"]
    assert {a["account"]: a["held"] for a in asked}["wallet.lab.USD"] == "30.00"


def test_what_a_caller_calls_its_request_is_in_the_record(fresh: World) -> None:
    lab = fresh.owner("lab")
    made = lab.made("/v1/intents", intent_body("lab"), headers={"X-Correlation-ID": "order-66/a"})
    (record,) = fresh.operator.read(f"/v1/log/streams/intent/{made['id']}", params={"raw": "true"})["items"]
    assert '"correlation":"order-66/a"' in record["raw"]
    assert '"actor":"somebody-of-lab"' in record["raw"]


def test_money_moves_between_tenants_and_out_again(fresh: World) -> None:
    world, lab = fresh, fresh.owner("lab")
    world.deposit("lab", "100")
    world.deposit("lab", "5000", "JPY")
    clinic = world.provider("clinic")
    clinic.made("/v1/accounts", {"currency": "USD"})
    again = clinic.made("/v1/accounts", {"currency": "USD"})
    assert again["receipt"]["event_count"] == 0
    paid = lab.made(
        "/v1/transfers", {"to_tenant": "clinic", "amount": money("0.000000001"), "memo": "a nano"}
    )
    assert lab.read(f"/v1/transfers/{paid['id']}")["memo"] == "a nano"
    world.operator.made("/v1/withdrawals", {"tenant": "lab", "amount": money("99.999999999")})
    assert balance(clinic, "clinic")["balance"] == "0.000000001"
    assert balance(lab, "lab")["balance"] == "0.00"
    books = balanced(world)
    assert (books["USD"]["debits"], books["JPY"]["debits"]) == ("0.000000001", "5000")
