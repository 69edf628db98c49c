"""Signer policies: what may be adopted, by whose word, and what revocation does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from domain.ledger import Caller
from domain.trust import signers
from domain.trust.keys import key_text
from domain.trust.pinned import PolicyTerms
from domain.trust.signers import AdoptPolicy, RecoverPolicy, RevokeKey
from tests.unit.trust.trust_maker import (
    FAR,
    LATER,
    OPERATOR,
    START,
    VALID_FROM,
    Trust,
    key_of,
    pin,
    policy,
    policy_terms,
    story,
)

ZERO = key_text(bytes([1]) + bytes(31))


@story
async def test_the_first_version_is_adopted_as_it_is_and_is_in_force() -> None:
    trust = Trust()
    address = await trust.adopt(policy_terms())
    found = await trust.ask(lambda case: signers.policy_in_force(case))
    assert found["address"] == address == policy().address
    assert found["adopted_at"] == START
    assert trust.topics() == ["signer_policy.adopted"]


@story
async def test_without_a_policy_nothing_can_be_signed_or_published() -> None:
    trust = Trust()
    heard = await trust.heard(lambda case, _: signers.policy_in_force(case), _nothing(), OPERATOR)
    assert heard == "signer_policy_missing"


def _nothing() -> Any:
    return RevokeKey(policy="publication", public_key=ZERO, reason="none")


@pytest.mark.parametrize(
    "roles", [["owner"], ["provider"], ["reviewer"], ["signer"], ["auditor"], ["service"]]
)
@story
async def test_only_operators_adopt_and_revoke(roles: list[str]) -> None:
    trust, caller = Trust(), Caller("x", "platform", frozenset(roles))
    adopting = AdoptPolicy(document=PolicyTerms.model_validate(policy_terms()))
    assert await trust.heard(signers.adopt_policy, adopting, caller) == "forbidden"
    await trust.adopt(policy_terms())
    revoking = RevokeKey(policy="publication", public_key=pin("ada")["public_key"], reason="lost")
    assert await trust.heard(signers.revoke_key, revoking, caller) == "forbidden"


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "one key twice": {"keys": [pin("ada"), pin("ben", public_key=pin("ada")["public_key"])]},
    "one person twice": {"keys": [pin("ada"), pin("ben", subject="ada@platform")]},
    "one name twice": {"keys": [pin("ada"), pin("ben", name="ada")]},
    "a threshold above the number of keys": {"threshold": 4},
    "a key that ends before it begins": {
        "keys": [pin("ada"), pin("ben"), pin("cleo", valid_from=FAR, valid_until=START)]
    },
    "too few keys that are valid now": {"keys": [pin("ada"), pin("ben", valid_from=FAR)]},
    "a first version that is not the first": {"version": 2},
}


@pytest.mark.parametrize("terms", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
@story
async def test_a_policy_that_contradicts_itself_is_refused(terms: dict[str, Any]) -> None:
    assert await Trust().adopt(policy_terms(**terms)) == "signer_policy_invalid"


@story
async def test_a_key_of_small_order_is_not_pinned() -> None:
    keys = [pin("ada"), pin("ben"), pin("zero", public_key=ZERO)]
    assert await Trust().adopt(policy_terms(keys=keys)) == "public_key_invalid"


@pytest.mark.parametrize(
    "terms",
    [
        {"threshold": 1},
        {"threshold": 0},
        {"approvals_required": 0},
        {"version": 0},
        {"keys": [pin("ada")]},
        {"schema": "soma/signer_policy/2"},
        {"more": 1},
        {"name": "Publication"},
        {"review_sla_s": 1},
        {"keys": [pin("ada"), pin("ben", public_key="AAAA")]},
        {"keys": [pin("ada"), pin("ben", valid_until="tomorrow")]},
    ],
    ids=repr,
)
def test_terms_outside_their_bounds_are_no_policy(terms: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PolicyTerms.model_validate(policy_terms(**terms))


def test_one_signer_alone_is_never_enough() -> None:
    assert PolicyTerms.model_json_schema()["properties"]["threshold"]["minimum"] == 2


# --------------------------------------------------------------------------- rotation


@story
async def test_the_next_version_is_adopted_by_the_threshold_of_the_one_before() -> None:
    trust = Trust()
    first = await trust.adopt(policy_terms())
    following = policy_terms(["ben", "cleo", "dan"], version=2)
    assert await trust.adopt(following) == "threshold_not_met"
    assert await trust.adopt(following, "ada") == "threshold_not_met"
    assert await trust.adopt(following, "ada", "ada") == "threshold_not_met"
    assert await trust.adopt(following, "ada", "dan") == "threshold_not_met"
    second = await trust.adopt(following, "ada", "cleo")
    state = trust.state("signer_policy", "publication")
    assert [one["address"] for one in state["versions"]] == [first, second]


@story
async def test_a_rotation_back_needs_those_who_are_in_now() -> None:
    trust = Trust()
    await trust.adopt(policy_terms())
    await trust.adopt(policy_terms(["dan", "eve"], version=2), "ada", "ben")
    back = policy_terms(version=3)
    assert await trust.adopt(back, "ada", "ben") == "threshold_not_met"
    assert (await trust.adopt(back, "dan", "eve")).startswith("sha3-512:")


@pytest.mark.parametrize("version", [1, 3, 7])
@story
async def test_versions_follow_each_other_without_a_gap(version: int) -> None:
    trust = Trust()
    await trust.adopt(policy_terms())
    assert await trust.adopt(policy_terms(version=version), "ada", "ben") == "signer_policy_invalid"


@story
async def test_votes_for_one_document_adopt_no_other() -> None:
    trust = Trust()
    await trust.adopt(policy_terms())
    voted = PolicyTerms.model_validate(policy_terms(version=2, threshold=3))
    from domain.trust.verification import Wanted
    from tests.unit.trust.trust_maker import brought, envelope

    wanted = Wanted("policy", voted.document().address, policy().address)
    votes = [brought(envelope(wanted, name)) for name in ("ada", "ben")]
    other = PolicyTerms.model_validate(policy_terms(version=2, threshold=2))
    swapped = AdoptPolicy(document=other, envelopes=votes)
    assert await trust.heard(signers.adopt_policy, swapped, OPERATOR) == "threshold_not_met"
    honest = AdoptPolicy(document=voted, envelopes=votes)
    assert await trust.heard(signers.adopt_policy, honest, OPERATOR) == "ok"


# --------------------------------------------------------------------------- revocation


def revoking(name: str) -> RevokeKey:
    """Ask that somebody's key be revoked."""
    return RevokeKey(policy="publication", public_key=pin(name)["public_key"], reason="its laptop was lost")


@story
async def test_a_revoked_key_votes_no_more_and_is_not_pinned_again() -> None:
    trust = Trust()
    await trust.adopt(policy_terms())
    assert await trust.heard(signers.revoke_key, revoking("ada"), OPERATOR) == "ok"
    without = policy_terms(["ben", "cleo"], version=2)
    assert await trust.adopt(without, "ada", "ben") == "threshold_not_met"
    assert await trust.adopt(policy_terms(version=2), "ben", "cleo") == "signer_policy_invalid"
    assert (await trust.adopt(without, "ben", "cleo")).startswith("sha3-512:")


@story
async def test_revoking_twice_writes_once_and_keeps_the_first_reason() -> None:
    trust = Trust()
    await trust.adopt(policy_terms())
    await trust.do(signers.revoke_key, revoking("ada"), OPERATOR)
    trust.now = FAR
    await trust.do(signers.revoke_key, revoking("ada"), OPERATOR)
    (revoked,) = trust.state("signer_policy", "publication")["revoked"]
    assert (revoked["name"], revoked["revoked_at"], revoked["revoked_by"]) == ("ada", START, "oscar")


@story
async def test_a_key_of_an_earlier_version_can_be_revoked_too() -> None:
    trust = Trust()
    await trust.adopt(policy_terms())
    await trust.adopt(policy_terms(["dan", "eve"], version=2), "ada", "ben")
    assert await trust.heard(signers.revoke_key, revoking("ada"), OPERATOR) == "ok"


@story
async def test_what_was_never_pinned_cannot_be_revoked() -> None:
    trust = Trust()
    assert await trust.heard(signers.revoke_key, revoking("ada"), OPERATOR) == "signer_policy_not_found"
    await trust.adopt(policy_terms())
    assert await trust.heard(signers.revoke_key, revoking("mallory"), OPERATOR) == "signer_key_not_found"


@story
async def test_a_version_is_found_by_its_address_after_a_rotation() -> None:
    trust = Trust()
    first = await trust.adopt(policy_terms())
    await trust.adopt(policy_terms(version=2, threshold=3), "ada", "ben")
    found = await trust.ask(lambda case: signers.pinned_policy(case, first))
    assert found["document"]["threshold"] == 2
    unknown = await trust.heard(
        lambda case, _: signers.pinned_policy(case, policy(threshold=3).address), _nothing(), OPERATOR
    )
    assert unknown == "signer_policy_not_found"


# --------------------------------------------------------------------------- recovery

SECOND = Caller("otto", "platform", frozenset(["operator"]))
NEXT = policy_terms(["dan", "eve"], version=2)


async def recover(trust: Trust, caller: Caller, document: dict[str, Any] = NEXT) -> str:
    """Propose or confirm; give "ok" or the code of the refusal."""
    terms = PolicyTerms.model_validate(document)
    command = RecoverPolicy(policy="publication", document=terms, reason="two laptops were lost")
    return await trust.heard(signers.recover_policy, command, caller)


async def lost() -> Trust:
    """Adopt a policy and lose two of its three keys."""
    trust = Trust()
    await trust.adopt(policy_terms())
    for name in ("ada", "ben"):
        await trust.do(signers.revoke_key, revoking(name), OPERATOR)
    return trust


@story
async def test_a_policy_that_can_vouch_for_itself_is_not_recovered() -> None:
    trust = Trust()
    assert await recover(trust, OPERATOR) == "signer_policy_not_found"
    await trust.adopt(policy_terms())
    assert await recover(trust, OPERATOR) == "invalid_status_transition"
    await trust.do(signers.revoke_key, revoking("ada"), OPERATOR)
    assert await recover(trust, OPERATOR) == "invalid_status_transition"


@story
async def test_a_lost_policy_is_recovered_by_two_operators_a_day_apart() -> None:
    trust = await lost()
    assert await trust.adopt(NEXT, "ben", "cleo") == "threshold_not_met"
    assert await recover(trust, OPERATOR) == "ok"
    assert await recover(trust, OPERATOR) == "self_review"
    assert await recover(trust, SECOND) == "invalid_status_transition"
    trust.now = LATER
    assert await recover(trust, OPERATOR) == "self_review"
    assert await recover(trust, SECOND) == "ok"
    state = trust.state("signer_policy", "publication")
    assert (len(state["versions"]), state["recovery"]) == (2, None)
    assert trust.topics()[-2:] == ["signer_policy.recovery_proposed", "signer_policy.recovered"]
    assert await recover(trust, OPERATOR, policy_terms(version=3)) == "invalid_status_transition"


@story
async def test_a_document_of_another_name_recovers_nothing() -> None:
    trust = await lost()
    assert await recover(trust, OPERATOR, NEXT | {"name": "another"}) == "signer_policy_invalid"


@story
async def test_whoever_changes_a_proposal_proposes_anew_and_the_day_begins_again() -> None:
    trust = await lost()
    await recover(trust, OPERATOR)
    trust.now = LATER
    other = policy_terms(["dan", "fay"], version=2)
    assert await recover(trust, SECOND, other) == "ok"
    assert trust.state("signer_policy", "publication")["recovery"]["proposed_by"] == "otto"
    assert await recover(trust, SECOND, other) == "self_review"
    assert await recover(trust, OPERATOR, other) == "invalid_status_transition"


@story
async def test_keys_that_all_ran_out_are_recovered_too_and_revoked_ones_never_come_back() -> None:
    trust = await lost()
    assert await recover(trust, OPERATOR, policy_terms(version=2)) == "signer_policy_invalid"
    expired = Trust()
    await expired.adopt(policy_terms())
    expired.now = "2031-01-01T00:00:00.000000Z"
    keys = [pin(name, valid_until="2040-01-01T00:00:00Z") for name in ("ada", "ben")]
    assert await expired.adopt(policy_terms(version=2, keys=keys), "ada", "ben") == "threshold_not_met"
    assert await recover(expired, OPERATOR, policy_terms(version=2, keys=keys)) == "ok"


@pytest.mark.parametrize("role", ["owner", "provider", "reviewer", "signer", "auditor", "service"])
@story
async def test_only_operators_recover(role: str) -> None:
    assert await recover(await lost(), Caller("x", "platform", frozenset([role]))) == "forbidden"


# --------------------------------------------------------------------------- addresses


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "threshold": st.integers(2, 3),
            "approvals_required": st.integers(1, 10),
            "version": st.integers(1, 9),
            "review_sla_s": st.integers(60, 10**6),
            "statement_ttl_s": st.integers(60, 10**6),
        },
    )
)
def test_every_member_of_a_policy_is_in_its_address(changes: dict[str, int]) -> None:
    changed = {name: value for name, value in changes.items() if policy_terms()[name] != value}
    assert (policy(**changes).address == policy().address) == (not changed)


@pytest.mark.parametrize("member", ["name", "subject", "role", "valid_from", "valid_until", "public_key"])
def test_every_member_of_a_key_is_in_the_address(member: str) -> None:
    other = {"public_key": key_text(key_of("eve").public_key), "valid_from": START, "valid_until": FAR}
    keys = [pin("ada", **{member: other.get(member, "another")}), pin("ben"), pin("cleo")]
    assert policy(keys=keys).address != policy().address


def test_one_moment_in_two_spellings_is_one_policy() -> None:
    keys = [pin(name, valid_from="2025-01-01T01:00:00+01:00") for name in ("ada", "ben", "cleo")]
    assert VALID_FROM.startswith("2025-01-01T00:00:00")
    assert policy(keys=keys).address == policy().address
