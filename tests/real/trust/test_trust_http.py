"""Trust over HTTP: policies, the constitution, reviews and signatures as people use them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from domain.ledger import Caller
from domain.trust.constitutions import ConstitutionTerms, constitution_wanted
from domain.trust.pinned import PolicyTerms
from domain.trust.verification import Wanted
from tests.real.trust.conftest import World
from tests.unit.trust.trust_maker import (
    COURIER,
    OPERATOR,
    OWNER,
    REVIEWER,
    a_capsule,
    constitution_terms,
    envelope,
    pin,
    policy,
    policy_terms,
    sent,
)

FOREVER = "2100-01-01T00:00:00.000000Z"
STRANGER = Caller("sam", "strange", frozenset(["owner", "provider", "signer", "reviewer"]))
SWEEP_S_MAX = 20.0


def test_a_capsule_is_reviewed_and_signed_by_those_who_may(world: World) -> None:
    capsule = a_capsule(1)
    series = [
        'soma_trust_review_seconds_count{outcome="approved"}',
        'soma_trust_signatures_total{outcome="counted"}',
        "soma_trust_signature_seconds_count",
    ]
    before = [world.counted(name) for name in series]
    world.submitted(capsule)
    waiting = world.read(REVIEWER, "/v1/reviews", status="pending")["items"]
    assert capsule in [one["capsule"] for one in waiting]
    assert (
        world.done(REVIEWER, f"/v1/reviews/{capsule}/decisions", {"decision": "approve"})["status"]
        == "approved"
    )
    for name, verified in [("ada", False), ("ben", True)]:
        body = {"envelope": sent(world.signed(capsule, name))}
        world.done(COURIER, f"/v1/signings/{capsule}/signatures", body)
        assert world.read(OWNER, f"/v1/signings/{capsule}/verification")["verified"] is verified
    found = world.read(OWNER, f"/v1/signings/{capsule}/verification")
    assert [one["name"] for one in found["signed"]] == ["ada", "ben"]
    assert found["missing"] == ["cleo"]
    counted = [world.counted(name) - was for name, was in zip(series, before, strict=True)]
    assert counted == [1, 2, 2]


def test_an_address_is_taken_with_and_without_its_algorithm(world: World) -> None:
    capsule = a_capsule(2)
    world.submitted(capsule)
    for name in (capsule, capsule.removeprefix("sha3-512:")):
        assert world.read(OWNER, f"/v1/signings/{name}")["capsule"] == capsule
        assert world.read(OWNER, f"/v1/reviews/{name}")["capsule"] == capsule


def test_a_signature_that_does_not_count_is_refused_with_its_reason_and_counted(world: World) -> None:
    capsule = a_capsule(3)
    world.submitted(capsule)
    path, series = f"/v1/signings/{capsule}/signatures", 'soma_trust_signatures_total{outcome="unknown_key"}'
    before = world.counted(series)
    answer = world.ask(COURIER, "POST", path, {"envelope": sent(world.signed(capsule, "mallory"))})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "signature_refused")
    assert problem["details"]["reason"] == "unknown_key"
    assert world.heard(COURIER, "POST", path, {"envelope": {"payload": "!"}}) == (400, "missing_field")
    broken = sent(world.signed(capsule, "ada")) | {"payload": "!"}
    assert world.heard(COURIER, "POST", path, {"envelope": broken}) == (400, "malformed_envelope")
    plain = sent(world.signed(capsule, "ada")) | {"payloadType": "application/json"}
    assert world.heard(COURIER, "POST", path, {"envelope": plain}) == (400, "payload_type_unknown")
    assert world.counted(series) - before == 1


def test_a_repeated_request_hears_the_first_answer_and_counts_once(world: World) -> None:
    capsule = a_capsule(4)
    world.submitted(capsule)
    body, key = {"envelope": sent(world.signed(capsule, "ada"))}, {"Idempotency-Key": "once"}
    first, again = (
        world.done(COURIER, f"/v1/signings/{capsule}/signatures", body, headers=key) for _ in range(2)
    )
    assert (first["receipt"]["repeated"], again["receipt"]["repeated"]) == (False, True)
    assert len(world.read(OWNER, f"/v1/signings/{capsule}")["kept"]) == 1


def test_another_tenant_sees_neither_reviews_nor_signings_and_everybody_sees_the_roots(world: World) -> None:
    capsule = a_capsule(5)
    world.submitted(capsule)
    signing, review = f"/v1/signings/{capsule}", f"/v1/reviews/{capsule}"
    for path in (signing, f"{signing}/request", f"{signing}/verification"):
        assert world.heard(STRANGER, "GET", path) == (404, "signing_not_found")
    assert world.heard(STRANGER, "GET", review) == (404, "review_not_found")
    vote = {"decision": "approve"}
    assert world.heard(STRANGER, "POST", f"{review}/decisions", vote) == (404, "review_not_found")
    body = {"envelope": sent(world.signed(capsule, "ada"))}
    assert world.heard(STRANGER, "POST", f"{signing}/signatures", body) == (404, "signing_not_found")
    assert world.heard(STRANGER, "POST", f"{signing}/reopen") == (404, "signing_not_found")
    for path in ("/v1/reviews", "/v1/signings"):
        assert world.read(STRANGER, path)["items"] == []
    assert world.read(STRANGER, "/v1/constitution")["versions"]
    (one,) = world.read(STRANGER, "/v1/signer-policies")["items"]
    assert (
        one["versions"][0]["document"]
        == world.read(STRANGER, "/v1/signer-policies/publication")["versions"][0]["document"]
    )


def test_without_a_token_nothing_is_shown(world: World) -> None:
    with world.service.client() as client:
        for path in (
            "/v1/signer-policies",
            "/v1/signer-policies/publication",
            "/v1/constitution",
            "/v1/reviews",
        ):
            assert client.get(path).status_code == 401


def test_one_of_many_racing_signatures_of_one_key_is_kept(world: World) -> None:
    capsule = a_capsule(6)
    world.submitted(capsule)
    body = {"envelope": sent(world.signed(capsule, "ada"))}

    async def race() -> list[int]:
        headers = {"Authorization": f"Bearer {world.service.token(COURIER)}"}
        async with httpx.AsyncClient(base_url=world.service.url, headers=headers, trust_env=False) as client:
            path = f"/v1/signings/{capsule}/signatures"
            answers = await asyncio.gather(*(client.post(path, json=body) for _ in range(12)))
            return sorted(answer.status_code for answer in answers)

    assert asyncio.run(race()) == [200] + [409] * 11
    assert len(world.read(OWNER, f"/v1/signings/{capsule}")["kept"]) == 1


# --------------------------------------------------------------------------- a service of one's own


def _adopted(world: World, names: tuple[str, ...] = ("ada", "ben", "cleo"), **terms: Any) -> None:
    world.done(OPERATOR, "/v1/signer-policies", {"document": policy_terms(names, **terms)})
    current = PolicyTerms.model_validate(policy_terms(names, **terms)).document().address
    address = ConstitutionTerms.model_validate(constitution_terms()).document().sealed()[1]
    votes = [
        sent(envelope(constitution_wanted(address, current), name, not_after=FOREVER)) for name in names[:2]
    ]
    world.done(OPERATOR, "/v1/constitution", {"document": constitution_terms(), "envelopes": votes})


def test_before_anybody_is_pinned_nothing_is_there_and_the_constitution_waits(bare: World) -> None:
    assert bare.heard(OWNER, "GET", "/v1/constitution") == (404, "constitution_not_found")
    assert bare.heard(OWNER, "GET", "/v1/signer-policies/publication") == (404, "signer_policy_not_found")
    body = {"document": constitution_terms(), "envelopes": []}
    assert bare.heard(OPERATOR, "POST", "/v1/constitution", body) == (422, "signer_policy_missing")


def test_keys_are_rotated_and_revoked_and_history_says_what_was_known_then(bare: World) -> None:
    _adopted(bare)
    capsule = a_capsule(9)
    bare.submitted(capsule)
    body = {"envelope": sent(bare.signed(capsule, "ada", "ben"))}
    receipt = bare.done(COURIER, f"/v1/signings/{capsule}/signatures", body)["receipt"]
    path = f"/v1/signings/{capsule}/verification"
    assert bare.read(OWNER, path)["verified"]

    revocation = {"public_key": pin("ada")["public_key"], "reason": "its laptop was lost"}
    bare.done(OPERATOR, "/v1/signer-policies/publication/revocations", revocation)
    now = bare.read(OWNER, path)
    assert (now["verified"], now["refused"][0]["reason"]) == (False, "revoked_key")
    then = bare.read(OWNER, path, as_of=str(receipt["position"]))
    assert then["verified"]
    assert then["judged_at"] < now["judged_at"]

    following = policy_terms(("ben", "cleo", "dan"), version=2)
    wanted = Wanted("policy", PolicyTerms.model_validate(following).document().address, policy().address)
    for names, heard in [(("ada", "ben"), (422, "threshold_not_met")), (("ben", "cleo"), (201, "ok"))]:
        votes = [sent(envelope(wanted, name, not_after=FOREVER)) for name in names]
        body = {"document": following, "envelopes": votes}
        assert bare.heard(OPERATOR, "POST", "/v1/signer-policies", body) == heard
    assert bare.done(OWNER, f"/v1/signings/{capsule}/reopen")["round"] == 2
    body = {"envelope": sent(bare.signed(capsule, "cleo", "dan"))}
    bare.done(COURIER, f"/v1/signings/{capsule}/signatures", body)
    assert bare.read(OWNER, path)["verified"]


def test_a_review_nobody_decided_in_time_is_written_down_as_expired(world: World) -> None:
    capsule, series = a_capsule(8), 'soma_trust_review_seconds_count{outcome="expired"}'
    before = world.counted(series)
    world.submitted(capsule, sla_s=1)
    until = time.monotonic() + SWEEP_S_MAX
    while world.read(OWNER, f"/v1/reviews/{capsule}")["status"] == "pending":
        assert time.monotonic() < until, "nobody swept"
        time.sleep(0.1)
    assert world.read(OWNER, f"/v1/reviews/{capsule}")["status"] == "expired"
    assert world.counted(series) - before == 1
    vote = {"decision": "approve"}
    assert world.heard(REVIEWER, "POST", f"/v1/reviews/{capsule}/decisions", vote) == (409, "review_closed")


@pytest.mark.parametrize(
    "path", ["/v1/signings/abc", "/v1/signings/abc/request", "/v1/signings/abc/verification"]
)
def test_what_nobody_submitted_is_not_found(world: World, path: str) -> None:
    assert world.heard(OWNER, "GET", path) == (404, "signing_not_found")
