"""Publication: every gate, what is missing told at once, and what the catalogue shows afterwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from itertools import product
from typing import Any

import msgspec
import pytest

from domain.errors import LedgerError
from domain.persona import capsules, claims, publication, reviewing, standing
from domain.persona.reviewing import NoteSweep
from domain.trust import signatures, signers
from domain.trust.keys import key_text
from tests.unit.persona.capsule_maker import Capsule
from tests.unit.persona.persona_world import (
    AUTHOR,
    INSPECTOR,
    OPERATOR,
    OTHER_OPERATOR,
    PASSED,
    PERSONA,
    REVIEWER,
    RIVAL,
    World,
)
from tests.unit.trust.trust_maker import key_of, pin, policy_terms

RITAS_COLLEAGUE = REVIEWER._replace(subject="rolf")


def play(scene: Callable[[World], Awaitable[None]], **terms: Any) -> None:
    """Play a scene on a world of its own."""

    async def played() -> None:
        await scene(await World.begun(**terms))

    asyncio.run(played())


async def submitted(world: World, version: str = "1.0.0") -> Capsule:
    """Bring a capsule to where everybody waits for it."""
    if f"persona/{PERSONA}" not in world.store.states:
        await world.created()
    capsule = await world.exported(version)
    await world.submitted(capsule)
    return capsule


async def looked_at(world: World, capsule: Capsule) -> Any:
    """Ask what publishing would come to; nothing may be written."""
    size = len(world.store.logged)
    found = await world.told(publication.preflight, capsules.CapsuleStep(capsule_id=capsule.address), AUTHOR)
    assert len(world.store.logged) == size
    return found


async def revoked(world: World, *names: str) -> None:
    """Revoke keys."""
    for name in names:
        command = signers.RevokeKey(
            policy="publication", public_key=key_text(key_of(name).public_key), reason="stolen"
        )
        assert await world.says(signers.revoke_key, command, OPERATOR) == "ok"


async def reverified(world: World, capsule: Capsule) -> Any:
    """Hold a capsule against the revocations."""
    return await world.told(
        reviewing.reverify_trust, capsules.CapsuleStep(capsule_id=capsule.address), INSPECTOR
    )


# --------------------------------------------------------------------------- the gates

FIRST_CLOSED = {
    (False, False, False): "not_approved", (False, False, True): "not_approved",
    (False, True, False): "threshold_not_met", (False, True, True): "policy_denied",
    (True, False, False): "not_approved", (True, False, True): "not_approved",
    (True, True, False): "threshold_not_met", (True, True, True): "ok",
}  # fmt: skip


@pytest.mark.parametrize(
    "there", list(product([False, True], repeat=3)), ids=lambda there: "".join("-+"[x] for x in there)
)
def test_of_all_eight_combinations_only_all_three_publish(there: tuple[bool, bool, bool]) -> None:
    is_allowed, is_approved, is_signed = there

    async def scene(world: World) -> None:
        capsule = await submitted(world)
        await world.inspected(capsule)
        world.engine.allow = is_allowed
        if is_approved:
            assert await world.decided(capsule) == "ok"
        assert await world.signed(capsule, "ada") == "ok"
        if is_signed:
            assert await world.signed(capsule, "ben") == "ok"
        found = await looked_at(world, capsule)
        codes = zip(("policy_denied", "not_approved", "threshold_not_met"), there, strict=True)
        expected = {code for code, held in codes if not held}
        assert {problem["code"] for problem in found["missing"]} == expected
        assert found["publishable"] is all(there)
        assert await world.published(capsule) == FIRST_CLOSED[there]
        assert world.state("persona", PERSONA)["status"] == ("listed" if all(there) else "draft")
        assert ("capsule.published" in world.topics()) is all(there)

    play(scene)


def test_a_preflight_names_everything_that_is_missing_at_once() -> None:
    async def scene(world: World) -> None:
        capsule = await submitted(world)
        world.engine.allow = False
        await world.constitute(2)
        found = await looked_at(world, capsule)
        assert sorted(problem["code"] for problem in found["missing"]) == [
            "constitution_mismatch", "not_approved", "not_inspected", "not_inspected", "not_inspected",
            "policy_denied", "threshold_not_met",
        ]  # fmt: skip
        assert (found["approvals_given"], found["approvals_required"]) == (0, 1)
        assert found["verification"]["missing"] == ["ada", "ben", "cleo"]
        assert await world.published(capsule) == "not_inspected"

    play(scene)


def test_who_only_looks_hears_what_its_author_would_hear() -> None:
    async def scene(world: World) -> None:
        world.engine.allow = lambda question: question["who"]["tenant"] == "acme"
        capsule = await world.ready()
        step = capsules.CapsuleStep(capsule_id=capsule.address)
        for who, expected in ((AUTHOR, True), (REVIEWER, True), (OPERATOR, False)):
            assert (await world.told(publication.preflight, step, who))["publishable"] is expected
        question = [q for j, q in world.engine.given.values() if j.package == "soma.publish"][-2]
        assert question["who"] == {"subject": "olivia", "tenant": "acme", "roles": ["owner"]}

    play(scene)


@pytest.mark.parametrize(
    ("verdict", "evaluation", "code"),
    [
        ("pass", PASSED, "ok"),
        ("warn", PASSED, "ok"),
        ("block", PASSED, "scan_blocked"),
        ("nonsense", PASSED, "scan_blocked"),
        ("pass", PASSED | {"passed": False}, "evaluation_failed"),
        ("pass", PASSED | {"passed": 1}, "evaluation_failed"),
        ("pass", PASSED | {"named_report": "differs"}, "evaluation_failed"),
    ],
)
def test_what_the_inspection_found_decides(verdict: str, evaluation: dict[str, Any], code: str) -> None:
    async def scene(world: World) -> None:
        capsule = await submitted(world)
        await world.inspected(capsule, verdict, evaluation)
        assert await world.decided(capsule) == "ok"
        assert await world.signed(capsule, "ada", "ben") == "ok"
        assert await world.published(capsule) == code
        if code == "ok":
            badge = world.state("persona", PERSONA)["published"]["compliance"]
            assert badge["badge"] == {"pass": "verified", "warn": "warnings"}[verdict]
            assert badge["notes"] == ([] if verdict == "pass" else ["warn: secret.key x 1"])

    play(scene)


def test_an_override_opens_the_scan_and_the_votes_and_nothing_else() -> None:
    async def scene(world: World) -> None:
        capsule = await submitted(world)
        await world.inspected(capsule, "block")
        assert await world.decided(capsule, "reject") == "ok"
        assert await world.decided(capsule, caller=OPERATOR, is_override=True) == "review_notes_missing"
        assert await world.decided(capsule, caller=OPERATOR, is_override=True, notes="a test key") == "ok"
        assert await world.published(capsule) == "threshold_not_met"
        assert await world.signed(capsule, "ada", "ben") == "ok"
        world.engine.allow = False
        assert await world.published(capsule) == "policy_denied"
        world.engine.allow = True
        assert await world.published(capsule) == "ok"
        assert world.state("persona", PERSONA)["published"]["compliance"]["badge"] == "override"

    play(scene)


def test_an_inspection_that_failed_publishes_nothing_until_it_is_done_again() -> None:
    async def scene(world: World) -> None:
        capsule = await submitted(world)
        failure = {"code": "artifact_not_found", "detail": "prompts.json is gone"}
        command = capsules.RecordInspection(capsule_id=capsule.address, failure=failure)
        await world.told(capsules.record_inspection, command, INSPECTOR)
        assert await world.decided(capsule) == "ok"
        assert await world.signed(capsule, "ada", "ben") == "ok"
        assert await world.published(capsule) == "not_inspected"
        await world.submitted(capsule)
        assert await world.published(capsule) == "not_inspected"
        await world.inspected(capsule)
        assert await world.published(capsule) == "ok"

    play(scene)


def test_an_inspection_that_is_told_twice_is_written_once() -> None:
    async def scene(world: World) -> None:
        capsule = await submitted(world)
        await world.inspected(capsule)
        await world.inspected(capsule, "block")
        assert world.topics().count("capsule.scanned") == 1
        assert (await world.capsule_of(capsule))["scan"]["verdict"] == "pass"

    play(scene)


def test_findings_that_no_record_can_hold_are_cut_and_counted() -> None:
    async def scene(world: World) -> None:
        capsule = await submitted(world)
        finding = {
            "rule": "r",
            "part": "p",
            "offset": 1,
            "line": 1,
            "severity": "warn",
            "match_digest": "x" * 500,
        }
        scan = {"verdict": "warn", "finding_count": 500, "findings": [finding] * 200}
        command = capsules.RecordInspection(capsule_id=capsule.address, scan=scan, evaluation=PASSED)
        await world.told(capsules.record_inspection, command, INSPECTOR)
        found = (await world.capsule_of(capsule))["scan"]
        assert found["finding_count"] == 500
        assert 20 < len(found["findings"]) < 60

    play(scene)


def test_an_approval_and_signatures_of_one_version_do_not_publish_the_next() -> None:
    async def scene(world: World) -> None:
        first = await world.ready("1.0.0")
        second = await submitted(world, "1.0.1")
        await world.inspected(second)
        assert await world.published(second) == "not_approved"
        assert await world.decided(second) == "ok"
        kept = world.state("signing", first.address[9:])["kept"][0]["envelope"]
        command = signatures.SubmitSignature(capsule=second.address, envelope=kept)
        courier = REVIEWER._replace(roles=frozenset(["signer"]))
        assert await world.says(reviewing.sign, command, courier) == "signature_refused"
        assert await world.published(second) == "threshold_not_met"

    play(scene)


def test_everything_must_be_there_at_this_moment_and_not_once() -> None:
    async def scene(world: World) -> None:
        capsule = await world.ready()
        await revoked(world, "ada")
        assert await world.published(capsule) == "threshold_not_met"
        assert await world.signed(capsule, "cleo") == "ok"
        await world.adopt(policy_terms(("ben", "cleo", "dora"), version=2), "ben", "cleo")
        assert await world.published(capsule) == "threshold_not_met"

    play(scene)


def test_a_statement_that_is_out_of_time_publishes_nothing_until_it_is_signed_anew() -> None:
    async def scene(world: World) -> None:
        capsule = await world.ready()
        world.now = "2026-06-01T00:00:00.000000Z"
        assert await world.published(capsule) == "threshold_not_met"
        assert (
            await world.says(
                signatures.reopen_signing, signatures.OpenSigning(capsule=capsule.address), AUTHOR
            )
            == "ok"
        )
        assert await world.signed(capsule, "ben", "cleo") == "ok"
        assert await world.published(capsule) == "ok"

    play(scene)


def test_two_approvals_are_of_two_people() -> None:
    async def scene(world: World) -> None:
        capsule = await submitted(world)
        await world.inspected(capsule)
        assert await world.signed(capsule, "ada", "ben") == "ok"
        assert await world.decided(capsule) == "ok"
        assert await world.decided(capsule) == "already_reviewed"
        assert await world.published(capsule) == "not_approved"
        assert await world.decided(capsule, caller=RITAS_COLLEAGUE) == "ok"
        assert await world.published(capsule) == "ok"

    play(scene, approvals_required=2)


def test_a_policy_that_asks_for_more_approvals_counts_for_what_was_approved_before() -> None:
    async def scene(world: World) -> None:
        capsule = await submitted(world)
        await world.inspected(capsule)
        assert await world.decided(capsule) == "ok"
        stricter = policy_terms(version=2, approvals_required=2)
        assert (await world.adopt(stricter, "ada", "ben")).startswith("sha3-512:")
        again = signatures.OpenSigning(capsule=capsule.address)
        assert await world.says(signatures.reopen_signing, again, AUTHOR) == "ok"
        assert await world.signed(capsule, "ada", "ben") == "ok"
        assert await world.published(capsule) == "not_approved"
        looked = await looked_at(world, capsule)
        assert (looked["approvals_given"], looked["approvals_required"]) == (1, 2)
        assert await world.decided(capsule) == "already_reviewed"
        assert await world.decided(capsule, caller=RITAS_COLLEAGUE) == "ok"
        assert await world.decided(capsule, caller=REVIEWER._replace(subject="ruth")) == "review_closed"
        assert await world.published(capsule) == "ok"

    play(scene)


def test_who_made_a_capsule_neither_votes_on_it_nor_signs_it_whomever_it_names_as_owner() -> None:
    async def scene(world: World) -> None:
        maker = AUTHOR._replace(subject="ada@platform", roles=frozenset(["provider", "reviewer"]))
        await world.created(caller=maker)
        capsule = await world.exported(caller=maker, owner="somebody-else")
        await world.submitted(capsule, AUTHOR)
        await world.inspected(capsule)
        assert await world.decided(capsule, caller=maker) == "self_review"
        assert await world.signed(capsule, "ada") == "signature_refused"
        assert await world.signed(capsule, "ben", "cleo") == "ok"
        assert await world.decided(capsule) == "ok"
        assert await world.published(capsule) == "ok"

    play(scene)


def test_who_voted_does_not_submit_and_who_submitted_does_not_vote() -> None:
    async def scene(world: World) -> None:
        both = frozenset(["owner", "reviewer"])
        carl, rita = AUTHOR._replace(subject="carl", roles=both), AUTHOR._replace(subject="rita", roles=both)
        await world.created()
        capsule = await world.exported()
        await world.submitted(capsule, carl)
        failure = capsules.RecordInspection(capsule_id=capsule.address, failure={"code": "not_found"})
        await world.told(capsules.record_inspection, failure, INSPECTOR)
        assert await world.decided(capsule, caller=rita) == "ok"
        again = capsules.SubmitCapsule(capsule_id=capsule.address)
        assert await world.says(capsules.submit_capsule, again, rita) == "self_review"
        assert await world.says(capsules.submit_capsule, again, AUTHOR) == "ok"
        for submitter in (carl, AUTHOR._replace(roles=both)):
            assert await world.decided(capsule, caller=submitter) == "self_review"

    play(scene, approvals_required=2)


def test_the_event_says_on_what_grounds_a_capsule_was_published() -> None:
    async def scene(world: World) -> None:
        capsule = await world.on_show()
        (row,) = [x.row for x in world.store.logged if x.row.type == "capsule.published"]
        told = json.loads(row.record)["data"]
        assert (told["capsule"], told["persona_id"], told["version"]) == (capsule.address, PERSONA, "1.0.0")
        assert (told["threshold"], told["signed"], told["approved_by"]) == (2, ["ada", "ben"], ["rita"])
        judgement, question = world.engine.given["soma.publish", told["judgement"]["input_digest"]]
        assert judgement.allow
        assert question["approvals"] == {"required": 1, "given": 1, "override": False, "tools_named": []}
        assert question["signatures"] == {"threshold": 2, "signed": 2, "verified": True}
        assert question["scan"]["verdict"] == "pass"

    play(scene)


# --------------------------------------------------------------------------- what is on show


def test_the_catalogue_shows_the_highest_published_version_and_falls_back() -> None:
    async def scene(world: World) -> None:
        second = await world.on_show("2.0.0")
        await world.on_show("1.5.0")
        newest = await world.on_show("2.1.0")
        await world.on_show("2.1.0-rc.1")
        assert world.state("persona", PERSONA)["published"]["version"] == "2.1.0"
        command = standing.RevokeCapsule(capsule_id=newest.address, reason="harm", rentals="end")
        assert await world.says(standing.revoke_capsule, command, OPERATOR) == "ok"
        assert world.state("persona", PERSONA)["published"]["version"] == "2.1.0-rc.1"
        suspension = standing.SuspendCapsule(capsule_id=second.address, reason="harm")
        assert await world.says(standing.suspend_capsule, suspension, OPERATOR) == "ok"
        persona = world.state("persona", PERSONA)
        assert [(v["version"], v["status"]) for v in persona["versions"]] == [
            ("1.5.0", "published"), ("2.0.0", "suspended"), ("2.1.0-rc.1", "published"), ("2.1.0", "revoked"),
        ]  # fmt: skip

    play(scene)


def test_a_persona_without_a_published_version_says_what_became_of_it() -> None:
    async def scene(world: World) -> None:
        capsule = await world.on_show()
        named: dict[str, Any] = {"capsule_id": capsule.address, "reason": "so it is"}
        steps: list[tuple[str, Any, Any, Any]] = [
            ("suspended", standing.suspend_capsule, standing.SuspendCapsule(**named), OPERATOR),
            ("listed", publication.reinstate_capsule, publication.ReinstateCapsule(**named), OTHER_OPERATOR),
            ("withdrawn", standing.withdraw_capsule, standing.WithdrawCapsule(**named), AUTHOR),
            ("revoked", standing.revoke_capsule, standing.RevokeCapsule(rentals="end", **named), OPERATOR),
        ]
        for status, use_case, command, caller in steps:
            assert await world.says(use_case, command, caller) == "ok"
            persona = world.state("persona", PERSONA)
            assert persona["status"] == status
            assert (persona["published"] is None) is (status != "listed")
        assert world.state("review", capsule.address[9:])["status"] == "closed"

    play(scene)


def test_marks_degrade_a_persona_and_are_taken_off() -> None:
    async def scene(world: World) -> None:
        capsule = await world.on_show()
        mark = {"capsule_id": capsule.address, "mark": "evaluation-regressed"}
        for _ in range(2):
            await world.told(standing.mark_degraded, standing.MarkDegraded(**mark), INSPECTOR)
        persona = world.state("persona", PERSONA)
        assert (persona["status"], persona["published"]["degraded"]) == ("degraded", ["evaluation-regressed"])
        for _ in range(2):
            await world.told(standing.clear_degraded, standing.ClearDegraded(**mark), INSPECTOR)
        assert world.state("persona", PERSONA)["status"] == "listed"
        assert [t for t in world.topics() if t in ("capsule.degraded", "capsule.recovered")] == [
            "capsule.degraded", "capsule.recovered",
        ]  # fmt: skip

    play(scene)


def test_reinstating_passes_every_gate_again() -> None:
    async def scene(world: World) -> None:
        capsule = await world.on_show()
        suspension = standing.SuspendCapsule(capsule_id=capsule.address, reason="harm")
        assert await world.says(standing.suspend_capsule, suspension, OPERATOR) == "ok"
        again = publication.ReinstateCapsule(capsule_id=capsule.address, reason="no harm")
        world.engine.allow = False
        assert await world.says(publication.reinstate_capsule, again, OTHER_OPERATOR) == "policy_denied"
        world.engine.allow = True
        await revoked(world, "ben")
        assert await world.says(publication.reinstate_capsule, again, OTHER_OPERATOR) == "threshold_not_met"
        reopen = signatures.OpenSigning(capsule=capsule.address)
        assert await world.says(signatures.reopen_signing, reopen, AUTHOR) == "ok"
        assert await world.signed(capsule, "ada", "cleo") == "ok"
        await world.constitute(2, names=("ada", "cleo"))
        assert (
            await world.says(publication.reinstate_capsule, again, OTHER_OPERATOR) == "constitution_mismatch"
        )

    play(scene)


# --------------------------------------------------------------------------- trust that is lost


def test_while_a_claim_is_open_no_party_of_it_puts_the_capsule_back() -> None:
    async def scene(world: World) -> None:
        capsule = await world.on_show()
        opening = claims.OpenClaim(capsule_id=capsule.address, right="copyright", reason="our texts")
        claim_id = (await world.told(claims.open_claim, opening, RIVAL))["id"]
        review = claims.ReviewClaim(claim_id=claim_id, suspend=True)
        assert await world.says(claims.review_claim, review, OPERATOR) == "ok"
        back = publication.ReinstateCapsule(capsule_id=capsule.address, reason="all is well")
        own = OTHER_OPERATOR._replace(tenant=AUTHOR.tenant)
        assert await world.says(publication.reinstate_capsule, back, own) == "forbidden"
        assert await world.says(publication.reinstate_capsule, back, OTHER_OPERATOR) == "ok"

    play(scene)


def test_a_revoked_key_ends_the_trust_in_what_no_longer_reaches_the_threshold() -> None:
    async def scene(world: World) -> None:
        capsule = await world.on_show()
        await revoked(world, "cleo")
        assert (await reverified(world, capsule))["trust"] == "verified"
        await revoked(world, "ben")
        found = await reverified(world, capsule)
        assert (found["trust"], found["status"]) == ("needs_signatures", "published")
        assert world.state("persona", PERSONA)["published"]["trust"] == "needs_signatures"
        await reverified(world, capsule)
        assert world.topics().count("capsule.trust_lost") == 1

    play(scene)


def test_new_signatures_bring_the_trust_back() -> None:
    async def scene(world: World) -> None:
        capsule = await world.on_show()
        await revoked(world, "ben")
        await reverified(world, capsule)
        reopen = signatures.OpenSigning(capsule=capsule.address)
        assert await world.says(signatures.reopen_signing, reopen, AUTHOR) == "ok"
        assert await world.signed(capsule, "cleo") == "ok"
        assert world.state("persona", PERSONA)["published"]["trust"] == "needs_signatures"
        assert await world.signed(capsule, "ada") == "ok"
        assert world.state("persona", PERSONA)["published"]["trust"] == "verified"
        assert world.state("signing", capsule.address[9:])["status"] == "completed"

    play(scene)


def test_time_and_a_rotation_of_keys_end_no_trust() -> None:
    async def scene(world: World) -> None:
        capsule = await world.on_show()
        await world.adopt(policy_terms((), version=2, keys=[pin("dora"), pin("emil")]), "ada", "ben")
        world.now = "2029-12-01T00:00:00.000000Z"
        assert (await reverified(world, capsule))["trust"] == "verified"

    play(scene)


def test_a_sweep_is_noted_with_what_it_knew_and_never_goes_back() -> None:
    async def scene(world: World) -> None:
        for version, known in ((2, 2), (1, 2), (3, 3)):
            command = NoteSweep(policy_version=version, capsules=1, lost=0)
            assert (await world.told(reviewing.note_sweep, command, INSPECTOR))["policy_version"] == known

    play(scene)


def test_only_what_is_published_and_verified_under_the_constitution_in_force_is_rented() -> None:
    async def scene(world: World) -> None:
        capsule = await world.on_show()
        in_force = world.constitution

        async def usable(purpose: Any, constitution: str) -> str:
            state = world.store.states[f"capsule/{capsule.address[9:]}"].state
            try:
                capsules.check_usable(
                    msgspec.json.decode(state, type=capsules.Capsule), purpose, constitution
                )
            except LedgerError as refusal:
                return refusal.code
            return "ok"

        async def told() -> list[str]:
            return [await usable(purpose, in_force) for purpose in ("import", "rent", "activate")]

        assert await told() == ["ok"] * 3
        assert await usable("import", "another") == "constitution_mismatch"
        await revoked(world, "ada", "ben")
        await reverified(world, capsule)
        assert await told() == ["ok", "threshold_not_met", "threshold_not_met"]
        suspension = standing.SuspendCapsule(capsule_id=capsule.address, reason="harm")
        assert await world.says(standing.suspend_capsule, suspension, OPERATOR) == "ok"
        assert await told() == ["capsule_suspended"] * 3
        revocation = standing.RevokeCapsule(capsule_id=capsule.address, reason="harm", rentals="end")
        assert await world.says(standing.revoke_capsule, revocation, OPERATOR) == "ok"
        assert await told() == ["capsule_revoked"] * 3

    play(scene)
