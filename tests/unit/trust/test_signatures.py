"""Signings: who is asked, what is taken in, and what rotation, revocation and time do to it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.errors import REGISTRY, LedgerError
from domain.ledger import Caller
from domain.trust import signatures, signers
from domain.trust.signatures import OpenSigning, SubmitSignature, capsule_key
from domain.trust.signers import RevokeKey
from domain.trust.verification import Wanted
from domain.values import moment_of, moment_text
from tests.unit.trust.trust_maker import (
    COURIER,
    DAY_S,
    FAR,
    OPERATOR,
    OWNER,
    START,
    Trust,
    a_capsule,
    brought,
    envelope,
    pin,
    policy_terms,
    sent,
    story,
)

CAPSULE = a_capsule()
KEY = capsule_key(CAPSULE)
NOBODY = OpenSigning(capsule=CAPSULE)


async def ready(**terms: Any) -> Trust:
    """Adopt a policy and a constitution, and submit a capsule."""
    trust = Trust()
    await trust.adopt(policy_terms(**terms))
    await trust.constitute()
    await trust.opened(CAPSULE)
    return trust


async def complete(trust: Trust) -> str:
    """Use what was signed, as publishing does; give "ok" or the code of the refusal."""
    return await trust.heard(lambda case, _: signatures.complete_signing(case, CAPSULE), NOBODY, OWNER)


async def revoke(trust: Trust, name: str) -> None:
    """Revoke somebody's key."""
    command = RevokeKey(policy="publication", public_key=pin(name)["public_key"], reason="lost")
    await trust.do(signers.revoke_key, command, OPERATOR)


async def reopen(trust: Trust, caller: Caller = OWNER) -> str:
    """Ask for signatures anew."""
    return await trust.heard(signatures.reopen_signing, NOBODY, caller)


def in_a(trust: Trust, seconds: int) -> None:
    """Let time pass."""
    trust.now = moment_text(moment_of(trust.now) + timedelta(seconds=seconds))


@story
async def test_two_of_three_sign_and_what_they_signed_is_used() -> None:
    trust = await ready()
    assert await complete(trust) == "threshold_not_met"
    assert await trust.sign(CAPSULE, "ada") == "ok"
    assert await complete(trust) == "threshold_not_met"
    assert await trust.sign(CAPSULE, "cleo") == "ok"
    assert await complete(trust) == "ok"
    state = trust.state("signing", KEY)
    assert (state["status"], [k["signed"][0]["name"] for k in state["kept"]]) == (
        "completed",
        ["ada", "cleo"],
    )
    assert trust.topics()[-3:] == ["signing.signed", "signing.signed", "signing.completed"]


@story
async def test_completing_again_writes_nothing() -> None:
    trust = await ready()
    await trust.sign(CAPSULE, "ada", "cleo")
    assert [await complete(trust), await complete(trust)] == ["ok", "ok"]
    assert trust.topics().count("signing.completed") == 1


@story
async def test_a_capsule_nobody_submitted_has_everybody_missing() -> None:
    trust = await ready()
    other = a_capsule(2)
    found = await trust.verified(other)
    assert (found["verified"], found["missing"]) == (False, ["ada", "ben", "cleo"])
    command = SubmitSignature(capsule=other, envelope=brought(envelope(_wanted(trust, other), "ada")))
    assert await trust.heard(signatures.submit_signature, command, COURIER) == "signing_not_found"


def _wanted(trust: Trust, capsule: str = CAPSULE, **changes: Any) -> Wanted:
    state = trust.state("signing", KEY)
    wanted = Wanted("publication", capsule, state["policy"], state["constitution"], state["not_after"])
    return wanted._replace(**changes)


async def bring(trust: Trust, sealed: Any, caller: Caller = COURIER) -> tuple[str, str | None]:
    """Bring an envelope; give the code of the refusal and its reason."""
    command = SubmitSignature(capsule=CAPSULE, envelope=brought(sealed))
    try:
        await trust.do(signatures.submit_signature, command, caller)
    except LedgerError as refusal:
        return refusal.code, refusal.facts.get("reason")
    return "ok", None


@story
async def test_a_signature_that_does_not_count_is_refused_with_its_reason_and_not_kept() -> None:
    trust = await ready()
    wrong = a_capsule(7)
    for sealed, reason in [
        (envelope(_wanted(trust), "mallory"), "unknown_key"),
        (envelope(_wanted(trust, wrong), "ada"), "wrong_statement"),
        (envelope(_wanted(trust, constitution=wrong), "ada"), "wrong_statement"),
        (envelope(_wanted(trust, policy=wrong), "ada"), "wrong_policy"),
        (envelope(_wanted(trust), "ada", not_after=START), "expired"),
        (envelope(_wanted(trust), "ada", not_after=FAR), "wrong_statement"),
        (envelope(_wanted(trust), "ada", "mallory"), "unknown_key"),
        (envelope(_wanted(trust), "ada", "ada"), "duplicate_key"),
        (envelope(_wanted(trust, constitution=None), "ada"), "wrong_type"),
    ]:
        assert await bring(trust, sealed) == ("signature_refused", reason)
    assert trust.state("signing", KEY)["kept"] == []


@story
async def test_a_key_that_has_signed_is_told_so() -> None:
    trust = await ready()
    assert [await trust.sign(CAPSULE, "ada") for _ in range(2)] == ["ok", "signature_repeated"]


@story
async def test_another_payload_type_is_refused_before_anything_is_verified() -> None:
    trust = await ready()
    sealed = msgspec.structs.replace(envelope(_wanted(trust), "ada"), payload_type="application/json")
    assert (await bring(trust, sealed))[0] == "payload_type_unknown"


@pytest.mark.parametrize(
    "role", ["owner", "provider", "operator", "reviewer", "auditor", "billing", "service"]
)
@story
async def test_only_signers_bring_envelopes(role: str) -> None:
    trust = await ready()
    caller = Caller("x", "platform", frozenset([role]))
    assert (await bring(trust, envelope(_wanted(trust), "ada"), caller))[0] == "forbidden"


@story
async def test_a_signer_of_another_tenant_does_not_even_see_what_is_to_be_signed() -> None:
    trust = await ready()
    stranger = Caller("x", "strange", frozenset(["signer"]))
    assert (await bring(trust, envelope(_wanted(trust), "ada"), stranger))[0] == "signing_not_found"
    own = Caller("x", "acme", frozenset(["signer"]))
    assert (await bring(trust, envelope(_wanted(trust), "ada"), own))[0] == "ok"


@story
async def test_owners_and_whoever_submits_do_not_sign() -> None:
    trust = await ready(
        keys=[pin("ada", subject="olivia"), pin("ben", subject="o2"), pin("cleo"), pin("dan")]
    )
    capsule = a_capsule(3)
    await trust.opened(capsule, owners=["o2"], caller=OWNER)
    found = await trust.verified(capsule)
    assert found["missing"] == ["cleo", "dan"]
    for name in ("ada", "ben"):
        wanted = _wanted(trust, capsule)
        command = SubmitSignature(capsule=capsule, envelope=brought(envelope(wanted, name)))
        with pytest.raises(REGISTRY["signature_refused"]) as refusal:
            await trust.do(signatures.submit_signature, command, COURIER)
        assert refusal.value.facts["reason"] == "self_signed"


# --------------------------------------------------------------------------- time, rotation, revocation


@story
async def test_statements_run_out_and_are_asked_for_anew() -> None:
    trust = await ready()
    await trust.sign(CAPSULE, "ada", "ben")
    assert await reopen(trust) == "invalid_status_transition"
    in_a(trust, 90 * DAY_S)
    found = await trust.verified(CAPSULE)
    assert [one["reason"] for one in found["refused"]] == ["expired", "expired"]
    assert await complete(trust) == "threshold_not_met"
    assert await reopen(trust) == "ok"
    assert trust.state("signing", KEY)["round"] == 2
    assert trust.state("signing", KEY)["kept"] == []
    assert await trust.sign(CAPSULE, "ada", "ben") == "ok"
    assert await complete(trust) == "ok"


@story
async def test_what_was_used_in_time_stands_when_its_statements_and_keys_run_out() -> None:
    trust = await ready()
    await trust.sign(CAPSULE, "ada", "ben")
    await complete(trust)
    trust.now = "2035-01-01T00:00:00.000000Z"
    assert (await trust.verified(CAPSULE))["verified"]


@story
async def test_a_rotation_voids_what_is_open_and_breaks_nothing_that_was_used() -> None:
    trust = await ready()
    other = a_capsule(2)
    await trust.opened(other)
    for capsule in (CAPSULE, other):
        await trust.sign(capsule, "ada", "ben")
    await complete(trust)
    await trust.adopt(policy_terms(["ben", "cleo", "dan"], version=2), "ada", "ben")
    assert (await trust.verified(CAPSULE))["verified"]
    found = await trust.verified(other)
    assert not found["verified"]
    assert sorted(one["reason"] for one in found["refused"]) == ["unknown_key", "wrong_policy"]
    assert found["missing"] == ["ben", "cleo", "dan"]


@story
async def test_under_a_new_policy_signatures_are_asked_for_anew_and_old_ones_do_not_count() -> None:
    trust = await ready()
    await trust.sign(CAPSULE, "ada", "ben")
    old = _wanted(trust)
    await trust.adopt(policy_terms(version=2, threshold=3), "ada", "ben")
    assert (await bring(trust, envelope(old, "cleo")))[1] == "wrong_policy"
    assert await reopen(trust) == "ok"
    assert (await bring(trust, envelope(old, "cleo")))[1] == "wrong_policy"
    assert await trust.sign(CAPSULE, "ada", "ben") == "ok"
    assert await complete(trust) == "threshold_not_met"
    assert await trust.sign(CAPSULE, "cleo") == "ok"
    assert await complete(trust) == "ok"


@story
async def test_under_a_new_policy_nothing_is_signed_before_it_is_asked_for_anew() -> None:
    trust = await ready()
    await trust.adopt(policy_terms(version=2), "ada", "ben")
    in_force = trust.state("signer_policy", "publication")["versions"][-1]["address"]
    early = envelope(_wanted(trust)._replace(policy=in_force), "ada", "ben")
    assert (await bring(trust, early))[0] == "invalid_status_transition"
    assert await reopen(trust) == "ok"
    assert (await bring(trust, early))[0] == "ok"
    assert await complete(trust) == "ok"
    # What was used is judged under the policy it names, so it must be the one it was signed under.
    assert trust.state("signing", KEY)["policy"] == in_force
    assert (await trust.verified(CAPSULE))["verified"]


@story
async def test_a_revoked_key_ends_what_no_longer_reaches_the_threshold_and_others_may_sign_anew() -> None:
    trust = await ready()
    await trust.sign(CAPSULE, "ada", "ben")
    await complete(trust)
    await revoke(trust, "ada")
    found = await trust.verified(CAPSULE)
    assert (found["verified"], [one["reason"] for one in found["refused"]]) == (False, ["revoked_key"])
    assert await reopen(trust) == "ok"
    assert await trust.sign(CAPSULE, "ada", "ben") == "signature_refused"
    assert await trust.sign(CAPSULE, "ben", "cleo") == "ok"
    assert await complete(trust) == "ok"
    assert (await trust.verified(CAPSULE))["verified"]


@story
async def test_three_signatures_survive_the_revocation_of_one() -> None:
    trust = await ready()
    await trust.sign(CAPSULE, "ada", "ben", "cleo")
    await complete(trust)
    await revoke(trust, "ben")
    assert (await trust.verified(CAPSULE))["verified"]
    assert await reopen(trust) == "invalid_status_transition"


@story
async def test_what_stands_or_can_be_signed_is_not_opened_again() -> None:
    trust = await ready()
    assert await reopen(trust) == "invalid_status_transition"
    await trust.opened(CAPSULE)
    assert trust.topics().count("signing.opened") == 1
    assert await reopen(trust, Caller("x", "strange", frozenset(["owner"]))) == "signing_not_found"


@story
async def test_submitting_again_bars_the_second_submitter_too_and_drops_what_was_signed() -> None:
    trust = await ready()
    await trust.sign(CAPSULE, "ada")
    await trust.opened(CAPSULE, owners=[], caller=Caller("otto", "acme", frozenset(["owner"])))
    state = trust.state("signing", KEY)
    assert (state["barred"], state["kept"], state["round"]) == (["olivia", "otto"], [], 2)


# --------------------------------------------------------------------------- from outside


@story
async def test_envelopes_from_outside_count_under_any_version_that_was_adopted_here() -> None:
    trust = await ready()
    law = trust.state("signing", KEY)["constitution"]
    first = trust.state("signing", KEY)["policy"]
    both = [sent(envelope(_wanted(trust), name)) for name in ("ada", "ben")]
    await trust.adopt(policy_terms(["ben", "cleo", "dan"], version=2), "ada", "ben")

    async def judged(*given_: Any, **changes: Any) -> Any:
        asked = {"policy_address": first, "constitution": law, "owners": []} | changes
        return await trust.ask(
            lambda case: signatures.verify_import(case, CAPSULE, envelopes=list(given_), **asked)
        )

    assert (await judged(*both))["verified"]
    assert not (await judged(both[0]))["verified"]
    assert not (await judged(both[0], both[0]))["verified"]
    assert not (await judged(*both, owners=["ada@platform"]))["verified"]
    assert not (await judged(*both, constitution=a_capsule(5)))["verified"]
    await revoke(trust, "ada")
    assert not (await judged(*both))["verified"]
    trust.now = FAR
    assert [one["reason"] for one in (await judged(both[1]))["refused"]] == ["expired"]
    for change, code in [({"policy_address": a_capsule(4)}, "signer_policy_not_found")]:
        with pytest.raises(REGISTRY[code]):
            await judged(*both, **change)
    with pytest.raises(REGISTRY["malformed_envelope"]):
        await judged({"payload": "!"})
    with pytest.raises(REGISTRY["payload_type_unknown"]):
        await judged(both[0] | {"payloadType": "application/json"})


# --------------------------------------------------------------------------- any sequence

NAMES = ("ada", "ben", "cleo", "dan", "eve")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("sign"), st.sampled_from(NAMES)),
        st.tuples(st.just("stale"), st.sampled_from(NAMES)),
        st.tuples(st.just("revoke"), st.sampled_from(NAMES)),
        st.tuples(st.just("rotate"), st.sets(st.sampled_from(NAMES), min_size=2, max_size=4)),
        st.tuples(st.just("reopen"), st.none()),
        st.tuples(st.just("complete"), st.none()),
        st.tuples(st.just("wait"), st.integers(1, 60)),
    ),
    max_size=24,
)


class Reference:
    """What ought to be so, told plainly: who signed which round under which policy, and who is out."""

    def __init__(self) -> None:
        self.policies = [{"ada", "ben", "cleo"}]
        self.pinned = {"ada", "ben", "cleo"}
        self.out: set[str] = set()
        self.round_policy, self.round_until = 0, 90
        self.signed: set[str] = set()
        self.completed = False
        self.day = 0

    def counted(self) -> set[str]:
        """Name those whose signature counts now."""
        if self.completed:
            return self.signed - self.out
        current = self.round_policy == len(self.policies) - 1 and self.day < self.round_until
        return self.signed - self.out if current else set()


async def _walk(steps: list[tuple[str, Any]]) -> None:
    trust, model = await ready(), Reference()
    for what, arg in steps:
        if what == "wait":
            in_a(trust, arg * DAY_S)
            model.day += arg
        elif what == "revoke" and arg in model.pinned:
            await revoke(trust, arg)
            model.out.add(arg)
        elif what == "rotate":
            await _rotate(trust, model, arg)
        elif what in ("sign", "stale"):
            await _sign(trust, model, what, arg)
        elif what == "complete":
            enough = len(model.counted()) >= 2
            assert (await complete(trust) == "ok") == enough
            model.completed = model.completed or enough
        elif what == "reopen":
            spent = (
                model.completed
                or model.round_policy < len(model.policies) - 1
                or model.day >= model.round_until
            )
            may = len(model.counted()) < 2 and spent
            assert (await reopen(trust) == "ok") == may
            if may:
                model.round_policy, model.round_until = len(model.policies) - 1, model.day + 90
                model.signed, model.completed = set(), False
        found = await trust.verified(CAPSULE)
        assert {one["name"] for one in found["signed"]} == model.counted()
        assert found["verified"] == (len(model.counted()) >= 2)


async def _rotate(trust: Trust, model: Reference, names: set[str]) -> None:
    voters = sorted(model.policies[-1] - model.out)[:2]
    document = policy_terms(sorted(names), version=len(model.policies) + 1)
    heard = await trust.adopt(document, *voters) if voters else "threshold_not_met"
    may = len(voters) == 2 and not names & model.out
    assert heard.startswith("sha3-512:") == may
    if may:
        model.policies.append(names)
        model.pinned |= names


async def _sign(trust: Trust, model: Reference, what: str, name: str) -> None:
    wanted = _wanted(trust, policy=a_capsule(8)) if what == "stale" else _wanted(trust)
    code, _ = await bring(trust, envelope(wanted, name, not_after=trust.state("signing", KEY)["not_after"]))
    current = model.round_policy == len(model.policies) - 1 and model.day < model.round_until
    may = (
        what == "sign"
        and not model.completed
        and current
        and name in model.policies[-1] - model.out
        and name not in model.signed
    )
    assert (code == "ok") == may
    if may:
        model.signed.add(name)


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_after_any_sequence_only_those_count_who_ought_to(steps: list[tuple[str, Any]]) -> None:
    asyncio.run(_walk(steps))
