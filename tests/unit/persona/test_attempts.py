"""Exports, imports and downloads: every attempt is one event, allowed or refused, with the address it was about."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from domain.canonical import is_canonical
from domain.errors import CapsuleRollbackError, ConflictError
from domain.ledger import Caller
from domain.persona import attempts, capsules, imports, personas, standing, transfers
from domain.persona.artifacts import RegisterArtifact, register_artifact
from domain.persona.attempts import problem_of, refusal_of, told
from domain.trust import training
from domain.trust.pinned import PolicyTerms
from domain.trust.verification import Wanted
from tests.unit.persona.capsule_maker import CONSTITUTION, Capsule, a_capsule, address_of
from tests.unit.persona.persona_world import (
    AUDITOR,
    AUTHOR,
    BILLING,
    OPERATOR,
    PERSONA,
    RIVAL,
    World,
    made,
)
from tests.unit.trust.trust_maker import SERVICE, constitution, envelope, policy_terms, sent

ARCHIVE = address_of(b"an archive")
OTHER = Caller("ida", "elsewhere", frozenset(["owner"]))
UNTIL = "2026-04-01T00:00:00.000000Z"


def play(scene: Callable[[World], Awaitable[None]]) -> None:
    """Play a scene on a world of its own."""

    async def played() -> None:
        await scene(await World.begun())

    asyncio.run(played())


def last(world: World) -> dict[str, Any]:
    """Read the last record of a log."""
    found: dict[str, Any] = json.loads(world.store.logged[-1].row.record)
    return found


async def drafted(world: World) -> Capsule:
    """Have a persona, and the parts of a capsule."""
    await world.created()
    capsule = made("1.0.0", world.constitution)
    await world.uploaded(capsule)
    return capsule


# --------------------------------------------------------------------------- exports


class TestExports:
    def test_a_manifest_is_an_object_or_a_text_and_means_the_same(self) -> None:
        async def scene(world: World) -> None:
            capsule = await drafted(world)
            document = capsule.manifest.document()
            for manifest in (document, json.dumps(document), yaml.safe_dump(document)):
                command = transfers.RequestExport(persona_id=PERSONA, manifest=manifest)
                asked = await world.told(transfers.request_export, command, AUTHOR)
                assert (asked["status"], asked["capsule"]) == ("requested", capsule.address)

        play(scene)

    def test_the_same_capsule_is_exported_twice_and_sealed_once(self) -> None:
        async def scene(world: World) -> None:
            await world.created()
            first = await world.exported()
            second = await world.exported()
            assert first.address == second.address
            assert world.topics().count("export.completed") == 2
            assert world.topics().count("capsule.exported") == 1

        play(scene)

    async def refused(
        self, world: World, capsule: Any, code: str, caller: Caller = AUTHOR, **fields: Any
    ) -> Any:
        """Ask for a capsule and be refused: one event, with what was sent and what is known of it."""
        manifest = capsule.manifest.document() if isinstance(capsule, Capsule) else capsule
        size = len(world.store.logged)
        given: dict[str, Any] = {"persona_id": PERSONA, "manifest": manifest}
        command = transfers.RequestExport(**given | fields)
        answer = await world.judged(transfers.request_export, command, caller)
        refusal = refusal_of(answer.body)
        assert refusal is not None
        assert refusal.code == code
        assert len(world.store.logged) == size + 1
        record = last(world)
        assert (record["type"], record["data"]["code"]) == ("export.refused", code)
        assert record["data"]["submitted"].startswith("sha3-512:")
        assert (record["actor"], record["tenant"]) == (caller.subject, caller.tenant)
        if isinstance(capsule, Capsule) and code not in ("forbidden", "persona_not_found"):
            assert record["data"]["capsule"] == capsule.address
        return refusal

    def test_every_refusal_of_an_export_is_an_event(self) -> None:
        async def scene(world: World) -> None:
            capsule = await drafted(world)
            await self.refused(world, capsule, "forbidden", BILLING)
            await self.refused(world, capsule, "persona_not_found", RIVAL)
            await self.refused(world, capsule, "persona_not_found", persona_id="another")
            await self.refused(world, "nonsense: [", "manifest_invalid")
            await self.refused(world, {"schema": 1.5}, "manifest_invalid")
            other = await self.refused(
                world, made("1.0.0", world.constitution, "other-one"), "manifest_invalid"
            )
            assert other.facts["faults"][0]["path"] == "/metadata/persona_id"
            found = await self.refused(world, made("1.0.0", CONSTITUTION), "constitution_mismatch")
            assert found.facts == {"expected": world.constitution, "found": CONSTITUTION}
            spelt = capsule.manifest.document()
            spelt["metadata"]["summary"] = "NUL is \\u0000 in JSON"
            await self.refused(world, spelt, "manifest_invalid")
            fresh = a_capsule(constitution=world.constitution, seed=9)
            await self.refused(world, fresh, "artifact_not_found")
            part = fresh.manifest.parts[0]
            wrong = RegisterArtifact(address=part.digest, size_bytes=part.bytes + 1)
            await world.told(register_artifact, wrong, AUTHOR)
            await self.refused(world, fresh, "artifact_mismatch")
            world.engine.allow = False
            denied = await self.refused(world, capsule, "policy_denied")
            assert denied.facts["package"] == "soma.export"

        play(scene)

    def test_an_attempt_that_the_policy_could_not_judge_is_an_event_too(self) -> None:
        async def scene(world: World) -> None:
            capsule = await drafted(world)

            async def unjudged() -> dict[str, Any]:
                return {"judgements": None}

            command = transfers.RequestExport(persona_id=PERSONA, manifest=capsule.manifest.document())
            answer = await world.ledger.act(transfers.request_export, command, AUTHOR, gather=unjudged)
            refusal = refusal_of(answer.body)
            assert refusal is not None
            assert (refusal.code, refusal.status) == ("policy_unavailable", 503)

        play(scene)

    def test_a_version_is_given_once(self) -> None:
        async def scene(world: World) -> None:
            await world.created()
            await world.exported()
            other = a_capsule(constitution=world.constitution, seed=8)
            await world.uploaded(other)
            await self.refused(world, other, "capsule_version_taken")

        play(scene)

    def test_of_two_exports_of_one_version_the_first_to_be_packed_has_it(self) -> None:
        async def scene(world: World) -> None:
            capsule = await drafted(world)
            other = a_capsule(constitution=world.constitution, seed=8)
            await world.uploaded(other)
            first, second = await world.requested(capsule), await world.requested(other)
            assert (await world.packed(second["id"], other))["status"] == "completed"
            lost = await world.packed(first["id"], capsule)
            assert (lost["status"], lost["problem"]["code"]) == ("failed", "capsule_version_taken")
            assert last(world)["type"] == "export.failed"

        play(scene)

    def test_an_export_that_ended_stays_as_it_ended(self) -> None:
        async def scene(world: World) -> None:
            capsule = await drafted(world)
            asked = await world.requested(capsule)
            for _ in range(2):
                assert (await world.packed(asked["id"], capsule))["status"] == "completed"
            fail = transfers.FailExport(export_id=asked["id"], code="archive_limit", detail="too late")
            assert (await world.told(transfers.fail_export, fail, SERVICE))["status"] == "completed"
            assert world.topics().count("export.completed") == 1

        play(scene)

    def test_under_training_mode_an_export_shows_its_fence(self) -> None:
        async def scene(world: World) -> None:
            capsule = await drafted(world)
            enable = training.EnableTraining(reason="a round", duration_s=3_600)
            fence = (await world.told(training.enable_training, enable, AUTHOR))["fence"]
            await self.refused(world, capsule, "stale_fence")
            await self.refused(world, capsule, "stale_fence", fence=fence + 1)
            asked = await world.requested(capsule, fence=fence)
            assert asked["status"] == "requested"
            question = next(q for j, q in world.engine.given.values() if j.package == "soma.export")
            assert question["training"] == {"on": True, "fence_fresh": True}
            # The worker was away until the lock ran out: whoever held it may not seal any more.
            world.now = "2026-01-01T01:00:00.000000Z"
            late = await world.packed(asked["id"], capsule)
            assert (late["status"], late["problem"]["code"]) == ("failed", "training_mode_disabled")
            await self.refused(world, capsule, "training_mode_disabled", fence=fence)

        play(scene)

    def test_a_constitution_that_changed_meanwhile_fails_the_export(self) -> None:
        async def scene(world: World) -> None:
            capsule = await drafted(world)
            asked = await world.requested(capsule)
            await world.constitute(2)
            late = await world.packed(asked["id"], capsule)
            assert (late["status"], late["problem"]["code"]) == ("failed", "constitution_mismatch")

        play(scene)

    def test_what_was_ended_is_not_exported_again(self) -> None:
        async def scene(world: World) -> None:
            capsule = await world.on_show()
            command = standing.SuspendCapsule(capsule_id=capsule.address, reason="harm")
            await world.told(standing.suspend_capsule, command, OPERATOR)
            await self.refused(world, capsule, "capsule_suspended")
            revoke = standing.RevokeCapsule(capsule_id=capsule.address, reason="harm", rentals="end")
            await world.told(standing.revoke_capsule, revoke, OPERATOR)
            await self.refused(world, capsule, "capsule_revoked")

        play(scene)


# --------------------------------------------------------------------------- downloads


class TestDownloads:
    @pytest.mark.parametrize("allow", [True, False])
    def test_every_download_is_an_event_before_a_byte_is_sent(self, allow: bool) -> None:
        async def scene(world: World) -> None:
            capsule = await world.on_show()
            world.engine.allow = allow
            command = transfers.DownloadCapsule(capsule_id=capsule.address)
            said = await world.says(transfers.download_capsule, command, RIVAL)
            assert said == ("ok" if allow else "policy_denied")
            record = last(world)
            assert record["type"] == ("download.granted" if allow else "download.refused")
            assert (record["actor"], record["tenant"], record["data"]["capsule"]) == (
                "sam", "strange", capsule.address,
            )  # fmt: skip
            question = next(q for j, q in world.engine.given.values() if q["action"] == "download")
            assert question["who"]["tenant"] == "strange"

        play(scene)

    def test_what_is_not_there_and_what_is_not_shown_are_refused_alike(self) -> None:
        async def scene(world: World) -> None:
            await world.created()
            hidden = await world.exported()
            for name in (hidden.address, "sha3-512:" + "00" * 64, "no/address \0 at all"):
                command = transfers.DownloadCapsule(capsule_id=name)
                assert await world.says(transfers.download_capsule, command, RIVAL) == "capsule_not_found"
                assert last(world)["type"] == "download.refused"

        play(scene)

    def test_auditors_may_have_what_was_revoked(self) -> None:
        async def scene(world: World) -> None:
            capsule = await world.on_show()
            revoke = standing.RevokeCapsule(capsule_id=capsule.address, reason="harm", rentals="end")
            await world.told(standing.revoke_capsule, revoke, OPERATOR)
            command = transfers.DownloadCapsule(capsule_id=capsule.address)
            assert await world.says(transfers.download_capsule, command, RIVAL) == "capsule_revoked"
            assert await world.says(transfers.download_capsule, command, AUDITOR) == "ok"

        play(scene)


# --------------------------------------------------------------------------- what is taken in


def attested(capsule: Capsule, *names: str, **changes: Any) -> dict[str, Any]:
    """Write attestations: what is right, but for changes."""
    policy = PolicyTerms.model_validate(policy_terms()).document()
    wanted = Wanted(
        "publication", capsule.address, policy.address, capsule.manifest.governance.constitution, UNTIL
    )
    return {
        "schema": "soma/attestations/1",
        "capsule": capsule.address,
        "policy": msgspec.to_builtins(policy),
        "constitution": msgspec.to_builtins(constitution()),
        "envelopes": [sent(envelope(wanted, name)) for name in names or ("ada", "ben")],
    } | changes


def made_with_summary(world: World, summary: str) -> Capsule:
    """Make a capsule that says this of itself."""

    def change(document: dict[str, Any]) -> None:
        document["metadata"]["summary"] = summary

    return a_capsule(constitution=world.constitution, change=change)


async def asked(world: World, attestations: dict[str, Any], caller: Caller = OTHER, **fields: Any) -> Any:
    """Bring an archive and ask for its import."""
    await world.told(register_artifact, RegisterArtifact(address=ARCHIVE, size_bytes=10), caller)
    command = imports.RequestImport(archive=ARCHIVE, attestations=attestations, **fields)
    return await world.told(imports.request_import, command, caller)


async def taken(
    world: World, capsule: Capsule, attestations: dict[str, Any] | None = None, **fields: Any
) -> Any:
    """Import a capsule as far as it comes; give the import."""
    begun = await asked(world, attested(capsule) if attestations is None else attestations, **fields)
    if begun["status"] == "refused":
        return begun
    command = imports.AcceptImport(import_id=begun["id"], manifest=capsule.manifest.document())
    checked = await world.told(imports.check_import, command, SERVICE)
    return (
        await world.told(imports.accept_import, command, SERVICE)
        if checked["status"] == "requested"
        else checked
    )


class TestImports:
    def test_a_capsule_with_enough_signatures_is_taken_in(self) -> None:
        async def scene(world: World) -> None:
            capsule = made("1.0.0", world.constitution)
            found = await taken(world, capsule)
            assert (found["status"], found["capsule"]) == ("completed", capsule.address)
            state = await world.capsule_of(capsule)
            assert (state["status"], state["origin"], state["tenant"]) == ("imported", "import", "elsewhere")
            for part in capsule.manifest.parts:
                assert f"artifact/elsewhere.{part.digest[9:73]}" in world.store.states
            assert world.state("holding", f"elsewhere.{PERSONA}")["versions"] == [
                {"capsule": capsule.address, "version": "1.0.0"}
            ]

        play(scene)

    def test_an_import_twice_is_two_events_and_one_capsule(self) -> None:
        async def scene(world: World) -> None:
            capsule = made("1.0.0", world.constitution)
            await taken(world, capsule)
            await taken(world, capsule)
            topics = world.topics()
            assert [topics.count(t) for t in ("import.accepted", "capsule.imported", "holding.extended")] == [
                2,
                1,
                1,
            ]

        play(scene)

    def test_an_imported_capsule_is_published_by_who_has_its_persona_and_passes_the_same_gates(self) -> None:
        async def scene(world: World) -> None:
            capsule = made("1.0.0", world.constitution)
            await taken(world, capsule)
            submit = capsules.SubmitCapsule(capsule_id=capsule.address)
            assert await world.says(capsules.submit_capsule, submit, OTHER) == "persona_not_found"
            create = personas.CreatePersona(persona_id=PERSONA, display_name="Tax")
            await world.told(personas.create_persona, create, OTHER)
            assert await world.says(capsules.submit_capsule, submit, OTHER) == "ok"
            assert await world.published(capsule, OTHER) == "not_inspected"
            await world.inspected(capsule)
            assert await world.decided(capsule) == "ok"
            assert await world.published(capsule, OTHER) == "threshold_not_met"
            assert await world.signed(capsule, "ada", "ben") == "ok"
            assert await world.published(capsule, OTHER) == "ok"

        play(scene)

    async def refused(self, world: World, capsule: Capsule, code: str, *given: Any, **fields: Any) -> Any:
        found = await taken(world, capsule, *given, **fields)
        assert (found["status"], found["problem"] and found["problem"]["code"]) == ("refused", code)
        record = last(world)
        assert (record["type"], record["data"]["code"]) == ("import.refused", code)
        assert record["data"]["archive"] == ARCHIVE
        assert f"artifact/elsewhere.{capsule.manifest.parts[0].digest[9:73]}" not in world.store.states
        return found["problem"]

    def test_every_refusal_of_an_import_is_an_event_and_keeps_nothing(self) -> None:
        async def scene(world: World) -> None:
            one, two = made("1.0.0", world.constitution), made("1.1.0", world.constitution)
            foreign = made("1.0.0", CONSTITUTION)
            await self.refused(world, one, "attestations_malformed", {})
            await self.refused(world, one, "attestations_malformed", attested(one, envelopes={}))
            await self.refused(world, one, "attestations_malformed", attested(one, policy=[1.5]))
            await self.refused(
                world, one, "malformed_envelope", attested(one, envelopes=[{"payload": "AA=="}])
            )
            swapped = await self.refused(world, one, "capsule_tampered", attested(two))
            assert swapped["facts"]["part"] == "attestations"
            await self.refused(world, one, "constitution_mismatch", attested(one, constitution=CONSTITUTION))
            await self.refused(
                world, foreign, "constitution_mismatch", attested(foreign, constitution=CONSTITUTION)
            )
            unknown = attested(one, policy="sha3-512:" + "00" * 64)
            await self.refused(world, one, "signer_policy_not_found", unknown)
            spelt = made_with_summary(world, "NUL is \\u0000 in JSON")
            await self.refused(world, spelt, "manifest_invalid", attested(spelt))
            few = await self.refused(world, one, "threshold_not_met", attested(one, "ada"))
            assert few["facts"]["missing"] == ["ben", "cleo"]
            strangers = await self.refused(world, one, "threshold_not_met", attested(one, "ada", "mallory"))
            assert strangers["facts"]["refused"][0]["reason"] == "unknown_key"
            twice = await self.refused(world, one, "threshold_not_met", attested(one, "ada", "ada"))
            assert twice["facts"]["refused"][0]["reason"] == "duplicate_key"
            await self.refused(world, one, "threshold_not_met", attested(one, envelopes=[]))
            world.engine.allow = False
            await self.refused(world, one, "policy_denied")
            world.engine.allow = True
            world.now = UNTIL
            late = await self.refused(world, one, "threshold_not_met")
            assert {refused["reason"] for refused in late["facts"]["refused"]} == {"expired"}

        play(scene)

    def test_an_older_version_is_a_rollback_unless_it_is_asked_for(self) -> None:
        async def scene(world: World) -> None:
            old, new = made("1.9.0", world.constitution), made("1.10.0", world.constitution)
            again = a_capsule(version="1.10.0", constitution=world.constitution, seed=5)
            assert (await taken(world, new))["status"] == "completed"
            found = await taken(world, old)
            assert (found["problem"]["code"], found["problem"]["facts"]["newest_version"]) == (
                "capsule_rollback", "1.10.0",
            )  # fmt: skip
            assert (await taken(world, again))["problem"]["code"] == "capsule_version_taken"
            assert (await taken(world, old, allow_older=True))["status"] == "completed"
            question = [q for _, q in world.engine.given.values() if q["action"] == "import"][-1]
            assert question["standing"] == {"newest_version": "1.10.0", "is_older": True, "allow_older": True}

        play(scene)

    def test_what_was_ended_here_is_not_taken_in(self) -> None:
        async def scene(world: World) -> None:
            capsule = await world.on_show()
            command = standing.SuspendCapsule(capsule_id=capsule.address, reason="harm")
            await world.told(standing.suspend_capsule, command, OPERATOR)
            assert (await taken(world, capsule))["problem"]["code"] == "capsule_suspended"
            revoke = standing.RevokeCapsule(capsule_id=capsule.address, reason="harm", rentals="end")
            await world.told(standing.revoke_capsule, revoke, OPERATOR)
            assert (await taken(world, capsule))["problem"]["code"] == "capsule_revoked"

        play(scene)

    def test_an_archive_the_worker_cannot_read_is_a_refused_import(self) -> None:
        async def scene(world: World) -> None:
            capsule = made("1.0.0", world.constitution)
            begun = await asked(world, attested(capsule))
            facts = {"part": "prompts.json", "ratio": 0.5, "bytes": b"\xff", "many": list(range(4_000))}
            command = imports.RefuseImport(
                import_id=begun["id"], code="capsule_tampered", detail="nul \0", facts=facts,
                manifest=capsule.manifest.document(),
            )  # fmt: skip
            for _ in range(2):
                found = await world.told(imports.refuse_import, command, SERVICE)
                assert (found["status"], found["capsule"]) == ("refused", capsule.address)
            assert world.topics().count("import.refused") == 1
            accept = imports.AcceptImport(import_id=begun["id"], manifest=capsule.manifest.document())
            assert (await world.told(imports.accept_import, accept, SERVICE))["status"] == "refused"

        play(scene)

    def test_who_asked_is_who_the_policy_hears_of_and_not_the_worker(self) -> None:
        async def scene(world: World) -> None:
            await taken(world, made("1.0.0", world.constitution))
            question = [q for _, q in world.engine.given.values() if q["action"] == "import"][-1]
            assert question["who"] == {"subject": "ida", "tenant": "elsewhere", "roles": ["owner"]}

        play(scene)


# --------------------------------------------------------------------------- what is written of a refusal

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


@given(st.text(), st.dictionaries(st.text(), anything, max_size=6))
def test_any_refusal_can_be_written_down(detail: str, facts: dict[str, Any]) -> None:
    problem = told("conflict", detail, facts)
    data = msgspec.json.encode(problem, order="sorted")
    assert is_canonical(data)
    assert b"\\u0000" not in data
    assert len(data) < 3 * attempts.FACTS_BYTES_MAX


def test_a_refusal_read_back_is_the_same_refusal() -> None:
    refusal = CapsuleRollbackError(newest_version="2.0.0", version="1.0.0")
    again = attempts.refusal(problem_of(refusal))
    assert type(again) is CapsuleRollbackError
    assert again.problem() == refusal.problem()
    assert attempts.refusal(told("no_such_code", "x", {})).code == "unprocessable"
    assert refusal_of(b'{"problem":null}') is None
    assert refusal_of(msgspec.json.encode({"problem": problem_of(ConflictError())})) is not None
