"""Reviews: who may decide, what decisions come to, and what time does."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.errors import REGISTRY
from domain.ledger import Caller
from domain.trust import reviews, signers
from domain.trust.reviews import DecideReview, Review, ReviewStep
from domain.trust.signatures import OpenSigning, capsule_key
from tests.unit.trust.trust_maker import (
    FAR,
    OPERATOR,
    OWNER,
    REVIEWER,
    SERVICE,
    START,
    Trust,
    a_capsule,
    policy_terms,
    story,
)

CAPSULE = a_capsule()
KEY = capsule_key(CAPSULE)
DUE = "2026-01-04T00:00:00.000000Z"
SECOND = Caller("rolf", "platform", frozenset(["reviewer"]))


async def ready(required: int = 1) -> Trust:
    """Adopt what is needed and submit a capsule."""
    trust = Trust()
    await trust.adopt(policy_terms(approvals_required=required))
    await trust.constitute()
    await trust.opened(CAPSULE, owners=["olivia", "otto"])
    return trust


async def decide(trust: Trust, decision: str, caller: Caller = REVIEWER, **more: Any) -> str:
    """Decide; give the code of the refusal, or the status the review came to."""
    command = DecideReview.model_validate({"capsule": CAPSULE, "decision": decision} | more)
    heard = await trust.heard(reviews.decide_review, command, caller)
    return str(trust.state("review", KEY)["status"]) if heard == "ok" else heard


async def is_approved(trust: Trust, capsule: str = CAPSULE) -> str:
    """Ask as publishing does; give "ok" or the code of the refusal."""
    return await trust.heard(
        lambda case, _: reviews.approved(case, capsule), OpenSigning(capsule=capsule), OWNER
    )


async def submit_again(trust: Trust) -> str:
    """Submit the very same capsule again, as far as its review is concerned."""

    def submit(case: Any, _: Any) -> Review:
        return reviews.open_review(case, CAPSULE, signers.policy_in_force(case), ["olivia"], "acme")

    return await trust.heard(submit, OpenSigning(capsule=CAPSULE), OWNER)


@story
async def test_a_review_waits_for_as_many_as_the_policy_asks_for() -> None:
    trust = await ready(2)
    assert (await decide(trust, "approve"), await is_approved(trust)) == ("pending", "not_approved")
    assert (await decide(trust, "approve", SECOND), await is_approved(trust)) == ("approved", "ok")


@story
async def test_one_person_has_one_vote() -> None:
    trust = await ready(2)
    await decide(trust, "approve")
    assert await decide(trust, "approve") == "already_reviewed"
    assert await decide(trust, "reject") == "already_reviewed"


@pytest.mark.parametrize("name", ["olivia", "otto"])
@pytest.mark.parametrize("decision", ["approve", "reject"])
@pytest.mark.parametrize("is_override", [False, True])
@story
async def test_nobody_decides_on_what_they_own_or_submitted(
    name: str, decision: str, is_override: bool
) -> None:
    trust = await ready()
    mighty = Caller(name, "platform", frozenset(["reviewer", "operator"]))
    heard = await decide(trust, decision, mighty, is_override=is_override, notes="because")
    assert heard == "self_review"


@story
async def test_one_rejection_rejects_for_good_and_the_same_bytes_are_not_reviewed_again() -> None:
    trust = await ready(2)
    await decide(trust, "approve")
    assert await decide(trust, "reject", SECOND, notes="it leaks") == "rejected"
    assert await is_approved(trust) == "not_approved"
    assert await submit_again(trust) == "review_closed"
    assert await decide(trust, "approve", Caller("rhea", "platform", REVIEWER.roles)) == "review_closed"
    assert await is_approved(trust, a_capsule(2)) == "not_approved"


@story
async def test_an_approval_of_one_capsule_approves_no_other() -> None:
    trust = await ready()
    await trust.opened(a_capsule(2))
    await decide(trust, "approve")
    assert await is_approved(trust) == "ok"
    assert await is_approved(trust, a_capsule(2)) == "not_approved"


# --------------------------------------------------------------------------- who may

TABLE = [
    # roles, tenant, a plain decision, an override
    (["reviewer"], "platform", "approved", "forbidden"),
    (["reviewer"], "acme", "approved", "forbidden"),
    (["reviewer"], "strange", "review_not_found", "review_not_found"),
    (["operator"], "platform", "forbidden", "approved"),
    (["operator"], "acme", "forbidden", "approved"),
    (["operator"], "strange", "review_not_found", "review_not_found"),
    (["operator", "reviewer"], "platform", "approved", "approved"),
    (["owner"], "acme", "forbidden", "forbidden"),
    (["provider"], "acme", "forbidden", "forbidden"),
    (["signer"], "platform", "forbidden", "forbidden"),
    (["auditor"], "platform", "forbidden", "forbidden"),
    (["billing"], "platform", "forbidden", "forbidden"),
    (["service"], "platform", "forbidden", "forbidden"),
]


@pytest.mark.parametrize(("roles", "tenant", "plain", "override"), TABLE)
@story
async def test_who_may_decide(roles: list[str], tenant: str, plain: str, override: str) -> None:
    caller = Caller("x", tenant, frozenset(roles))
    assert await decide(await ready(), "approve", caller) == plain
    assert await decide(await ready(), "approve", caller, is_override=True, notes="urgent") == override


@story
async def test_an_override_settles_alone_needs_notes_and_is_told() -> None:
    trust = await ready(3)
    assert await decide(trust, "approve", OPERATOR, is_override=True) == "review_notes_missing"
    assert await decide(trust, "approve", OPERATOR, is_override=True, notes="the board decided") == "approved"
    state = trust.state("review", KEY)
    assert state["override"]
    assert state["decisions"][-1]["is_override"]
    assert await is_approved(trust) == "ok"
    again = await decide(trust, "approve", OPERATOR, is_override=True, notes="again")
    assert again == "already_reviewed"


@story
async def test_an_override_takes_an_approval_back() -> None:
    trust = await ready()
    await decide(trust, "approve")
    assert await decide(trust, "reject", OPERATOR, is_override=True, notes="a complaint") == "rejected"
    assert await is_approved(trust) == "not_approved"


# --------------------------------------------------------------------------- time


@story
async def test_a_decision_after_the_deadline_is_refused_whether_it_was_swept_or_not() -> None:
    trust = await ready()
    assert trust.store.states[f"review/{KEY}"].deadline == DUE
    trust.now = DUE
    assert await decide(trust, "approve") == "review_closed"
    await trust.do(reviews.expire_review, ReviewStep(capsule=CAPSULE), SERVICE)
    assert trust.state("review", KEY)["status"] == "expired"
    assert trust.store.states[f"review/{KEY}"].deadline is None
    assert await decide(trust, "approve") == "review_closed"


@story
async def test_a_review_expires_once_and_not_before_its_time() -> None:
    trust = await ready()
    for now, count in [(START, 0), (DUE, 1), (FAR, 1)]:
        trust.now = now
        await trust.do(reviews.expire_review, ReviewStep(capsule=CAPSULE), SERVICE)
        assert trust.topics().count("review.expired") == count
    assert await trust.heard(reviews.expire_review, ReviewStep(capsule=CAPSULE), OPERATOR) == "forbidden"


@pytest.mark.parametrize("swept", [False, True])
@story
async def test_an_expired_review_is_opened_again_with_a_new_deadline_and_no_votes(swept: bool) -> None:
    trust = await ready(2)
    await decide(trust, "approve")
    trust.now = DUE
    if swept:
        await trust.do(reviews.expire_review, ReviewStep(capsule=CAPSULE), SERVICE)
    assert await submit_again(trust) == "ok"
    state = trust.state("review", KEY)
    assert (state["status"], state["decisions"], state["due_at"] > DUE) == ("pending", [], True)
    assert trust.topics().count("review.expired") == 1
    assert await decide(trust, "approve") == "pending"


@story
async def test_an_approval_outlives_the_deadline() -> None:
    trust = await ready()
    await decide(trust, "approve")
    trust.now = FAR
    await trust.do(reviews.expire_review, ReviewStep(capsule=CAPSULE), SERVICE)
    assert await is_approved(trust) == "ok"


@story
async def test_submitting_again_changes_nothing_while_a_review_waits_or_stands() -> None:
    trust = await ready()
    assert await submit_again(trust) == "ok"
    await decide(trust, "approve")
    assert await submit_again(trust) == "ok"
    assert trust.topics().count("review.opened") == 1


@story
async def test_a_closed_review_is_over_even_for_overrides() -> None:
    trust = await ready()
    await decide(trust, "approve")
    closing = OpenSigning(capsule=CAPSULE)
    for _ in range(2):
        await trust.do(lambda case, _: reviews.close_review(case, CAPSULE, "withdrawn"), closing, OWNER)
    assert trust.topics().count("review.closed") == 1
    assert await decide(trust, "approve", OPERATOR, is_override=True, notes="no") == "review_closed"
    assert await is_approved(trust) == "not_approved"
    assert await submit_again(trust) == "review_closed"
    assert await trust.ask(lambda case: reviews.close_review(case, a_capsule(2), "none")) is None


@story
async def test_a_refusal_to_approve_says_what_is_missing() -> None:
    trust = await ready(2)
    await decide(trust, "approve")
    with pytest.raises(REGISTRY["not_approved"]) as refusal:
        await trust.ask(lambda case: reviews.approved(case, CAPSULE))
    assert refusal.value.facts == {"status": "pending", "approvals": 1, "required": 2}


# --------------------------------------------------------------------------- any sequence

PEOPLE = [
    Caller(name, tenant, frozenset(roles))
    for name, tenant, roles in [
        ("rita", "platform", ["reviewer"]),
        ("rolf", "platform", ["reviewer"]),
        ("ron", "acme", ["reviewer"]),
        ("olivia", "acme", ["reviewer", "owner"]),
        ("otto", "platform", ["reviewer", "operator"]),
        ("oscar", "platform", ["operator"]),
        ("sue", "strange", ["reviewer", "operator"]),
    ]
]
VOTES = st.lists(
    st.tuples(st.sampled_from(PEOPLE), st.sampled_from(["approve", "reject"]), st.booleans()), max_size=10
)


@given(VOTES, st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_after_any_votes_an_approved_review_has_enough_people_or_an_override(
    votes: list[tuple[Caller, str, bool]], required: int
) -> None:
    async def walk() -> Review:
        trust = await ready(required)
        for caller, decision, is_override in votes:
            await decide(trust, decision, caller, is_override=is_override, notes="n")
        return msgspec.convert(trust.state("review", KEY), Review)

    review = asyncio.run(walk())
    people = [one.reviewer for one in review.decisions if not one.is_override]
    assert len(people) == len(set(people))
    assert not set(review.approvals) & {"olivia", "otto", "sue"}
    last = review.decisions[-1] if review.decisions else None
    if review.status == "approved":
        assert last is not None
        assert last.is_override or len({*people}) >= required
    if last is not None and last.decision == "reject":
        assert review.status == "rejected"
