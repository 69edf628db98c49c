"""Evaluations that authors ask for: who may ask, of what, and how one ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from domain.errors import LedgerError
from domain.ledger import Caller
from domain.persona.artifacts import RegisterArtifact, register_artifact
from domain.persona.evaluations import (
    SUMMARY_BYTES_MAX,
    CompleteEvaluation,
    FailEvaluation,
    RequestEvaluation,
    complete_evaluation,
    fail_evaluation,
    request_evaluation,
)
from tests.unit.persona.capsule_maker import CONSTITUTION, Capsule
from tests.unit.persona.persona_world import (
    AUDITOR,
    AUTHOR,
    BILLING,
    COLLEAGUE,
    INSPECTOR,
    OPERATOR,
    REVIEWER,
    RIVAL,
    World,
    made,
)

REPORT = "sha3-512:" + "ab" * 64


async def begun() -> tuple[World, Capsule]:
    """Make a world where the parts of a persona are uploaded."""
    world = await World.begun()
    capsule = made("1.0.0", world.constitution)
    await world.uploaded(capsule)
    return world, capsule


def asking(capsule: Capsule, **more: Any) -> RequestEvaluation:
    return RequestEvaluation(manifest=capsule.manifest.document(), **more)


def done(evaluation_id: str, **more: Any) -> CompleteEvaluation:
    said = {"passed": True, "report": REPORT, "report_bytes": 12, "evaluation": {"passed": True}}
    return CompleteEvaluation(evaluation_id=evaluation_id, **(said | more))


def test_an_evaluation_is_asked_for_and_ends_with_a_report_the_tenant_holds() -> None:
    async def story() -> None:
        world, capsule = await begun()
        asked = await world.told(request_evaluation, asking(capsule), AUTHOR)
        assert (asked["status"], asked["suite"], asked["tenant"]) == ("requested", "baseline", "acme")
        ended = await world.told(complete_evaluation, done(asked["id"]), INSPECTOR)
        assert (ended["status"], ended["passed"], ended["report"]) == ("completed", True, REPORT)
        held = world.state("artifact", f"acme.{'ab' * 32}")
        assert (held["address"], held["origin"]) == (REPORT, "evaluation")
        assert world.topics()[-2:] == ["artifact.received", "evaluation.completed"]

    asyncio.run(story())


def test_how_an_evaluation_ended_is_told_once() -> None:
    async def story() -> None:
        world, capsule = await begun()
        asked = await world.told(request_evaluation, asking(capsule), AUTHOR)
        await world.told(complete_evaluation, done(asked["id"]), INSPECTOR)
        size = len(world.store.logged)
        again = await world.told(complete_evaluation, done(asked["id"], passed=False), INSPECTOR)
        failure = FailEvaluation(evaluation_id=asked["id"], code="evaluation_failed", detail="late")
        late = await world.told(fail_evaluation, failure, INSPECTOR)
        assert again["passed"] is late["passed"] is True
        assert len(world.store.logged) == size

    asyncio.run(story())


def test_an_evaluation_that_fails_says_why() -> None:
    async def story() -> None:
        world, capsule = await begun()
        asked = await world.told(request_evaluation, asking(capsule), AUTHOR)
        failure = FailEvaluation(evaluation_id=asked["id"], code="memory_bundle_invalid", detail="x" * 2_000)
        ended = await world.told(fail_evaluation, failure, INSPECTOR)
        assert (ended["status"], ended["code"], len(ended["detail"])) == (
            "failed",
            "memory_bundle_invalid",
            1_000,
        )

    asyncio.run(story())


@pytest.mark.parametrize(
    ("caller", "heard"),
    [
        (AUTHOR, "ok"),
        (COLLEAGUE, "ok"),
        (RIVAL, "artifact_not_found"),
        (OPERATOR, "artifact_not_found"),
        (REVIEWER, "forbidden"),
        (AUDITOR, "forbidden"),
        (BILLING, "forbidden"),
        (INSPECTOR, "forbidden"),
    ],
    ids=lambda value: value.subject if isinstance(value, Caller) else value,
)
def test_only_authors_ask_and_only_of_parts_their_tenant_holds(caller: Caller, heard: str) -> None:
    async def story() -> None:
        world, capsule = await begun()
        assert await world.says(request_evaluation, asking(capsule), caller) == heard

    asyncio.run(story())


@pytest.mark.parametrize("caller", [AUTHOR, OPERATOR, REVIEWER, AUDITOR], ids=lambda caller: caller.subject)
def test_only_the_inspector_says_how_an_evaluation_ended(caller: Caller) -> None:
    async def story() -> None:
        world, capsule = await begun()
        asked = await world.told(request_evaluation, asking(capsule), AUTHOR)
        assert await world.says(complete_evaluation, done(asked["id"]), caller) == "forbidden"
        failure = FailEvaluation(evaluation_id=asked["id"], code="c", detail="d")
        assert await world.says(fail_evaluation, failure, caller) == "forbidden"

    asyncio.run(story())


def test_what_cannot_be_evaluated_is_refused_at_once() -> None:
    async def story() -> None:
        world, capsule = await begun()
        assert (
            await world.says(request_evaluation, asking(capsule, suite="mine"), AUTHOR)
            == "evaluation_suite_invalid"
        )
        assert (
            await world.says(request_evaluation, RequestEvaluation(manifest={}), AUTHOR) == "manifest_invalid"
        )
        other = made("1.0.0", CONSTITUTION)
        assert await world.says(request_evaluation, asking(other), AUTHOR) == "constitution_mismatch"
        assert (
            await world.says(complete_evaluation, done("evaluation-0"), INSPECTOR) == "evaluation_not_found"
        )

    asyncio.run(story())


def test_without_a_constitution_nothing_is_evaluated() -> None:
    async def story() -> None:
        assert (
            await World().says(request_evaluation, asking(made("1.0.0", CONSTITUTION)), AUTHOR)
            == "constitution_missing"
        )

    asyncio.run(story())


def test_a_part_of_another_size_than_the_manifest_says_is_refused() -> None:
    async def story() -> None:
        world = await World.begun()
        capsule = made("1.0.0", world.constitution)
        for part in capsule.manifest.parts:
            command = RegisterArtifact(address=part.digest, size_bytes=part.bytes + (part.role == "memory"))
            await world.told(register_artifact, command, AUTHOR)
        assert await world.says(request_evaluation, asking(capsule), AUTHOR) == "artifact_mismatch"

    asyncio.run(story())


def test_a_summary_that_does_not_fit_into_a_record_is_refused() -> None:
    async def story() -> None:
        world, capsule = await begun()
        asked = await world.told(request_evaluation, asking(capsule), AUTHOR)
        large = done(asked["id"], evaluation={"why": "x" * SUMMARY_BYTES_MAX})
        with pytest.raises(LedgerError):
            await world.told(complete_evaluation, large, INSPECTOR)

    asyncio.run(story())
