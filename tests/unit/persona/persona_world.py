"""Personas on a log in memory: everybody who takes part, and the ways that lead a capsule into a status."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from typing import Any, Literal

import msgspec

from domain.errors import LedgerError
from domain.ledger import Answer, Caller, UseCase
from domain.persona import capsules, imports, personas, publication, reviewing, transfers
from domain.persona.artifacts import RegisterArtifact, register_artifact
from domain.persona.attempts import refusal_of
from domain.trust.judgements import Judgement
from domain.trust.reviews import DecideReview
from domain.trust.signatures import Signing, SubmitSignature
from ops.judging import act_judged
from tests.unit.persona.capsule_maker import Capsule, a_capsule
from tests.unit.trust.trust_maker import COURIER, SERVICE, Trust, brought, envelope, policy_terms

AUTHOR = Caller("olivia", "acme", frozenset(["owner"]))
COLLEAGUE = Caller("carl", "acme", frozenset(["provider"]))
RIVAL = Caller("sam", "strange", frozenset(["owner", "provider"]))
OPERATOR = Caller("oscar", "platform", frozenset(["operator"]))
OTHER_OPERATOR = Caller("opal", "platform", frozenset(["operator"]))
REVIEWER = Caller("rita", "platform", frozenset(["reviewer"]))
AUDITOR = Caller("aude", "platform", frozenset(["auditor"]))
BILLING = Caller("bill", "acme", frozenset(["billing"]))
INSPECTOR = Caller("inspector", "platform", frozenset(["service"]))

PERSONA = "tax-advisor"
# Their refusals are written down, and are in the answer.
ATTEMPTS = (
    transfers.request_export, transfers.download_capsule, imports.request_import, imports.accept_import,
    imports.check_import,
)  # fmt: skip
PASSED: dict[str, Any] = {"passed": True, "report": None, "named_report": "none"}


class Ruling:
    """A policy engine whose answer the test sets; it keeps every answer, and what was asked."""

    def __init__(self) -> None:
        self.allow: bool | Callable[[dict[str, Any]], bool] = True
        self.given: dict[tuple[str, str], tuple[Judgement, dict[str, Any]]] = {}

    async def judge(self, package: str, question: dict[str, Any], digest: str) -> Judgement:
        """Answer as the test wishes."""
        allow = self.allow if isinstance(self.allow, bool) else self.allow(question)
        reasons = [] if allow else ["the test does not allow it"]
        found = Judgement(package, allow, reasons, [], "sha3-512:" + "01" * 64, digest, "test/1")
        self.given[package, digest] = found, question
        return found


@lru_cache(maxsize=64)
def made(
    version: str, constitution: str, persona_id: str = PERSONA, owner: str = "olivia", kill: bool = True
) -> Capsule:
    """Make a capsule, once for all tests that want this one."""

    def change(document: dict[str, Any]) -> None:
        document["governance"]["kill_switch_enabled"] = kill

    return a_capsule(persona_id, version, owner=owner, constitution=constitution, change=change)


def scanned(verdict: str = "pass", **counts: int) -> dict[str, Any]:
    """Write what a scan comes to."""
    finding = {
        "rule": "secret.key",
        "part": "prompts.json",
        "offset": 3,
        "line": 1,
        "severity": "warn" if verdict == "warn" else "block",
        "match_digest": "ab",
    }
    return {
        "verdict": verdict,
        "scanner": "test/1",
        "rules_digest": "sha3-512:" + "02" * 64,
        "finding_count": 0 if verdict == "pass" else 1,
        "counts": {"warn": 0, "block": 0} | counts,
        "findings": [] if verdict == "pass" else [finding],
    }


class World(Trust):
    """A ledger with a signer policy and a constitution, where personas are made."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Ruling()
        self.constitution = ""

    @classmethod
    async def begun(cls, **terms: Any) -> World:
        """Adopt a policy that needs two of three signers, and a constitution."""
        world = cls()
        await world.adopt(policy_terms(**terms))
        world.constitution = await world.constitute()
        assert world.constitution.startswith("sha3-512:")
        return world

    async def judged(self, use_case: UseCase, command: Any, caller: Caller, **how: Any) -> Answer:
        """Carry out a command, with the policy's answer where its use case asks for one."""
        if "judgements" not in signature(use_case).parameters:
            return await self.ledger.act(use_case, command, caller, **how)
        return await act_judged(self.ledger, self.engine, use_case, command, caller, **how)

    async def told(self, use_case: UseCase, command: Any, caller: Caller, **how: Any) -> Any:
        """Carry out a command that may ask the policy; give what it answered."""
        answer = await self.judged(use_case, command, caller, **how)
        return msgspec.json.decode(answer.body)

    async def says(self, use_case: UseCase, command: Any, caller: Caller) -> str:
        """Carry out a command; give "ok", or the code of the refusal that was raised or written down."""
        size = len(self.store.logged)
        try:
            answer = await self.judged(use_case, command, caller)
        except LedgerError as refusal:
            assert len(self.store.logged) == size, "a refusal that was raised was written down too"
            return refusal.code
        refused = refusal_of(answer.body) if use_case in ATTEMPTS else None
        return "ok" if refused is None else refused.code

    async def capsule_of(self, capsule: Capsule) -> Any:
        """Read a capsule's state."""
        return self.state("capsule", capsule.address.removeprefix("sha3-512:"))

    # ------------------------------------------------------------------ the way to publication

    async def created(self, persona_id: str = PERSONA, caller: Caller = AUTHOR) -> None:
        """Take a persona id."""
        command = personas.CreatePersona(persona_id=persona_id, display_name="Tax advisor")
        await self.told(personas.create_persona, command, caller)

    async def uploaded(self, capsule: Capsule, caller: Caller = AUTHOR) -> None:
        """Have a tenant hold the parts of a capsule."""
        for part in capsule.manifest.parts:
            command = RegisterArtifact(address=part.digest, size_bytes=part.bytes)
            await self.told(register_artifact, command, caller)

    async def requested(self, capsule: Capsule, caller: Caller = AUTHOR, **fields: Any) -> Any:
        """Ask for a capsule."""
        command = transfers.RequestExport(
            persona_id=capsule.manifest.metadata.persona_id, manifest=capsule.manifest.document(), **fields
        )
        return await self.told(transfers.request_export, command, caller)

    async def packed(self, export_id: str, capsule: Capsule) -> Any:
        """Deliver the archive of a capsule, as the worker does."""
        command = transfers.CompleteExport(export_id=export_id, archive=capsule.address, archive_bytes=4_096)
        return await self.told(transfers.complete_export, command, SERVICE)

    async def exported(self, version: str = "1.0.0", caller: Caller = AUTHOR, **fields: Any) -> Capsule:
        """Make a capsule of a persona that is there; give it."""
        capsule = made(version, self.constitution, **fields)
        await self.uploaded(capsule, caller)
        asked = await self.requested(capsule, caller)
        assert asked["status"] == "requested", asked
        assert (await self.packed(asked["id"], capsule))["status"] == "completed"
        return capsule

    async def submitted(self, capsule: Capsule, caller: Caller = AUTHOR) -> None:
        """Submit a capsule."""
        await self.told(capsules.submit_capsule, capsules.SubmitCapsule(capsule_id=capsule.address), caller)

    async def inspected(self, capsule: Capsule, verdict: str = "pass", evaluation: Any = None) -> None:
        """Tell what an inspection came to."""
        command = capsules.RecordInspection(
            capsule_id=capsule.address, scan=scanned(verdict), evaluation=evaluation or PASSED
        )
        await self.told(capsules.record_inspection, command, INSPECTOR)

    async def decided(
        self,
        capsule: Capsule,
        decision: Literal["approve", "reject"] = "approve",
        caller: Caller = REVIEWER,
        **fields: Any,
    ) -> str:
        """Vote on a capsule; give "ok" or the code of the refusal."""
        command = DecideReview(capsule=capsule.address, decision=decision, **fields)
        return await self.says(reviewing.decide, command, caller)

    async def signed(self, capsule: Capsule, *names: str, courier: Caller = COURIER) -> str:
        """Bring signatures for a capsule; give "ok" or the code of the refusal."""
        state = self.state("signing", capsule.address.removeprefix("sha3-512:"))
        signing = msgspec.convert(state, Signing)
        sealed = envelope(signing.wanted(signing.policy), *names)
        command = SubmitSignature(capsule=capsule.address, envelope=brought(sealed))
        return await self.says(reviewing.sign, command, courier)

    async def published(self, capsule: Capsule, caller: Caller = AUTHOR) -> str:
        """Publish a capsule; give "ok" or the code of the refusal."""
        command = publication.PublishCapsule(capsule_id=capsule.address)
        return await self.says(publication.publish_capsule, command, caller)

    async def ready(self, version: str = "1.0.0", **fields: Any) -> Capsule:
        """Bring a capsule to where everything for its publication is there."""
        if f"persona/{PERSONA}" not in self.store.states:
            await self.created()
        capsule = await self.exported(version, **fields)
        await self.submitted(capsule)
        await self.inspected(capsule)
        assert await self.decided(capsule) == "ok"
        assert await self.signed(capsule, "ada", "ben") == "ok"
        return capsule

    async def on_show(self, version: str = "1.0.0", **fields: Any) -> Capsule:
        """Publish a capsule."""
        capsule = await self.ready(version, **fields)
        assert await self.published(capsule) == "ok"
        return capsule
