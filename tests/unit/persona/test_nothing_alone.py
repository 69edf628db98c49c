"""Nobody publishes alone: whatever anybody does in whatever order, policy, approvals and signatures were all there.

Random people with random roles send random commands, right ones and forged ones, while policies and constitutions
change, keys are revoked and time passes. After every command an auditor that shares no code with the ledger reads the
log and recomputes why each publication was allowed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from domain.errors import LedgerError
from domain.ledger import Caller
from domain.persona import capsules, claims, publication, reviewing, standing, transfers
from domain.persona.attempts import refusal_of
from domain.trust import reviews, signatures, signers
from domain.trust.keys import key_text
from domain.trust.pinned import PolicyTerms
from domain.trust.verification import sign_statement
from domain.values import moment_of, moment_text
from tests.unit.persona.capsule_maker import Capsule
from tests.unit.persona.persona_world import (
    AUTHOR,
    COLLEAGUE,
    INSPECTOR,
    OPERATOR,
    OTHER_OPERATOR,
    PASSED,
    PERSONA,
    REVIEWER,
    RIVAL,
    World,
    made,
    scanned,
)
from tests.unit.persona.publication_oracle import Oracle
from tests.unit.trust.trust_maker import COURIER, SIGNERS, brought, key_of, pin, policy_terms

EVERYTHING = frozenset(["owner", "provider", "operator", "reviewer", "signer", "service", "auditor"])
ACTORS = (
    AUTHOR, COLLEAGUE, RIVAL, OPERATOR, OTHER_OPERATOR, REVIEWER, COURIER, INSPECTOR,
    Caller("rolf", "platform", frozenset(["reviewer", "signer"])),
    # Those who hold every role: the owner, a colleague, a signer, and somebody who is nobody.
    AUTHOR._replace(roles=EVERYTHING), COLLEAGUE._replace(roles=EVERYTHING),
    Caller("ada@platform", "platform", EVERYTHING), Caller("mallory", "platform", EVERYTHING),
)  # fmt: skip
CAPSULES_MAX = 16
WISHES = (
    "export", "pack", "submit", "inspect", "block", "fail an evaluation", "fail an inspection", "approve", "reject",
    "override", "publish", "suspend", "reinstate", "revoke", "withdraw", "degrade", "claim", "take up", "uphold",
    "reverify", "reopen", "expire",
)  # fmt: skip
FORGERIES = (
    "right",
    "other capsule",
    "other policy",
    "other constitution",
    "other purpose",
    "over",
    "replayed",
)
# What goes wrong on the way to a publication: a step that is left out, or comes to something else.
FAULTS = (
    "", "", "export", "pack", "submit", "inspect", "approve", "sign", "publish", "block", "fail an evaluation",
    "constitute", "deny",
)  # fmt: skip
HOUR_S, DAY_S = 3_600, 86_400


class Stage:
    """A world in which anybody may try anything; what is refused changes nothing."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.world = self.run(World.begun())
        self.run(self.world.created())
        self.oracle = Oracle(self._Answers(self.world))
        self.heard: Counter[str] = Counter()

    class _Answers(dict[tuple[str, str], tuple[bool, dict[str, Any]]]):
        """What the policy was asked and answered, from who answered."""

        def __init__(self, world: World) -> None:
            super().__init__()
            self._world = world

        def __missing__(self, key: tuple[str, str]) -> tuple[bool, dict[str, Any]]:
            judgement, question = self._world.engine.given[key]
            return judgement.allow, question

    def run(self, doing: Any) -> Any:
        return self.loop.run_until_complete(doing)

    def close(self) -> None:
        self.loop.close()

    def look(self) -> None:
        """Have the auditor read what is new."""
        self.oracle.see([logged.row.record for logged in self.world.store.logged])
        states = [s for s in self.world.store.states.values() if s.kind == "capsule"]
        shown = {msgspec.json.decode(s.state)["address"] for s in states if s.status == "published"}
        assert shown == self.oracle.on_show()

    def capsule(self, number: int) -> Capsule:
        """Give one of the capsules made under the constitution in force; a version is given once."""
        adopted = len(self.world.state("constitution", "platform")["versions"])
        return made(f"{adopted}.{number}.0", self.world.constitution)

    def attempt(self, use_case: Any, command: Any, caller: Caller) -> str:
        try:
            answer = self.run(self.world.judged(use_case, command, caller))
        except LedgerError as refusal:
            said = refusal.code
        else:
            refused = refusal_of(answer.body) if use_case is transfers.request_export else None
            said = "ok" if refused is None else refused.code
        self.heard[f"{use_case.__name__}: {said}"] += 1
        return said

    # ------------------------------------------------------------------ what anybody may try

    def wish(self, wish: str, capsule: Capsule, caller: Caller) -> str:
        """Try something with a capsule."""
        name = capsule.address
        decide, votes = reviewing.decide, reviews.DecideReview
        simple: dict[str, tuple[Any, Any]] = {
            "submit": (capsules.submit_capsule, capsules.SubmitCapsule(capsule_id=name)),
            "inspect": (capsules.record_inspection, self._inspection(name, "pass", PASSED)),
            "block": (capsules.record_inspection, self._inspection(name, "block", PASSED)),
            "fail an evaluation": (
                capsules.record_inspection, self._inspection(name, "warn", PASSED | {"passed": False})
            ),
            "fail an inspection": (
                capsules.record_inspection, capsules.RecordInspection(capsule_id=name, failure={"code": "not_found"})
            ),
            "approve": (decide, votes(capsule=name, decision="approve")),
            "reject": (decide, votes(capsule=name, decision="reject")),
            "override": (decide, votes(capsule=name, decision="approve", is_override=True, notes="it must")),
            "publish": (publication.publish_capsule, publication.PublishCapsule(capsule_id=name)),
            "suspend": (standing.suspend_capsule, standing.SuspendCapsule(capsule_id=name, reason="harm")),
            "reinstate": (
                publication.reinstate_capsule, publication.ReinstateCapsule(capsule_id=name, reason="no harm")
            ),
            "revoke": (
                standing.revoke_capsule, standing.RevokeCapsule(capsule_id=name, reason="harm", rentals="end")
            ),
            "withdraw": (standing.withdraw_capsule, standing.WithdrawCapsule(capsule_id=name)),
            "degrade": (standing.mark_degraded, standing.MarkDegraded(capsule_id=name, mark="slow")),
            "claim": (claims.open_claim, claims.OpenClaim(capsule_id=name, right="copyright", reason="ours")),
            "reverify": (reviewing.reverify_trust, capsules.CapsuleStep(capsule_id=name)),
            "reopen": (signatures.reopen_signing, signatures.OpenSigning(capsule=name)),
            "expire": (reviewing.expire, reviews.ReviewStep(capsule=name)),
        }  # fmt: skip
        if wish in simple:
            return self.attempt(*simple[wish], caller)
        return {"export": self._export, "pack": self._pack, "take up": self._claims, "uphold": self._claims}[
            wish
        ](capsule, caller, wish)

    def _inspection(self, name: str, verdict: str, evaluation: dict[str, Any]) -> Any:
        return capsules.RecordInspection(capsule_id=name, scan=scanned(verdict), evaluation=evaluation)

    def _export(self, capsule: Capsule, caller: Caller, wish: str) -> str:
        self.run(self.world.uploaded(capsule))
        command = transfers.RequestExport(persona_id=PERSONA, manifest=capsule.manifest.document())
        return self.attempt(transfers.request_export, command, caller)

    def _pack(self, capsule: Capsule, caller: Caller, wish: str) -> str:
        said = "ok"
        for state in list(self.world.store.states.values()):
            if state.kind == "export" and state.status == "requested":
                command = transfers.CompleteExport(
                    export_id=state.id, archive=capsule.address, archive_bytes=9
                )
                said = self.attempt(transfers.complete_export, command, caller)
        return said

    def _claims(self, capsule: Capsule, caller: Caller, wish: str) -> str:
        said = "ok"
        for state in list(self.world.store.states.values()):
            if state.kind == "claim" and wish == "take up":
                command: Any = claims.ReviewClaim(claim_id=state.id, suspend=True)
                said = self.attempt(claims.review_claim, command, caller)
            elif state.kind == "claim":
                command = claims.UpholdClaim(claim_id=state.id, resolution="so it is")
                said = self.attempt(claims.uphold_claim, command, caller)
        return said

    def sign(self, capsule: Capsule, other: Capsule, names: Sequence[str], how: str, courier: Caller) -> str:
        """Bring signatures, of the right statement or of a wrong one."""
        found = self.world.store.states.get(f"signing/{capsule.address[9:]}")
        if found is None:
            return "signing_not_found"
        signing = msgspec.json.decode(found.state, type=signatures.Signing)
        if how == "replayed":
            if not signing.kept:
                return "ok"
            command = self._brought(capsule, signing.kept[0].envelope)
            return self.attempt(reviewing.sign, command, courier)
        changes: dict[str, Any] = {
            "other capsule": {"capsule": other.address},
            "other policy": {"policy": "sha3-512:" + "00" * 64},
            "other constitution": {"constitution": "sha3-512:" + "00" * 64},
            "other purpose": {"purpose": "policy"},
            "over": {"not_after": self.world.now},
        }.get(how, {})
        statement = msgspec.structs.replace(signing.statement(), **changes)
        sealed = sign_statement(statement, *(key_of(name) for name in names))
        return self.attempt(reviewing.sign, self._brought(capsule, sealed), courier)

    def _brought(self, capsule: Capsule, sealed: Any) -> Any:
        return signatures.SubmitSignature(capsule=capsule.address, envelope=brought(sealed))

    # ------------------------------------------------------------------ what changes around them

    def passes(self, seconds: int) -> None:
        """Let time pass."""
        moment = moment_of(self.world.now).timestamp() + seconds
        self.world.now = moment_text(
            moment_of(self.world.now).fromtimestamp(moment, moment_of(self.world.now).tzinfo)
        )

    def revoke_key(self, name: str, caller: Caller) -> str:
        command = signers.RevokeKey(
            policy="publication", public_key=key_text(key_of(name).public_key), reason="stolen"
        )
        return self.attempt(signers.revoke_key, command, caller)

    def rotate(self, threshold: int, approvals: int) -> None:
        """Adopt the next version of the policy, signed by those who may."""
        version = self.world.state("signer_policy", "publication")["versions"][-1]["version"]
        keys = [pin(name, subject=f"{name}@platform") for name in (*SIGNERS, f"dora-{version}")]
        revoked = {one["public_key"] for one in self.world.state("signer_policy", "publication")["revoked"]}
        keys = [key for key in keys if key["public_key"] not in revoked]
        terms = policy_terms(
            version=version + 1, threshold=threshold, approvals_required=approvals, keys=keys
        )
        try:
            PolicyTerms.model_validate(terms)
        except ValueError:
            return  # too few keys are left
        self.run(self.world.adopt(terms, "ada", "ben"))

    def constitute(self) -> None:
        """Adopt the next version of the constitution, signed by those who may."""
        version = self.world.state("constitution", "platform")["versions"][-1]["version"]
        adopted = self.run(self.world.constitute(version + 1))
        if adopted.startswith("sha3-512:"):
            self.world.constitution = adopted

    # ------------------------------------------------------------------ what gets on

    def push(self, number: int, fault: str = "") -> None:
        """Do all that leads to a publication, as those who may; but for one fault."""
        capsule = self.capsule(number)
        inspection = fault if fault in ("block", "fail an evaluation") else "inspect"
        steps: list[tuple[str, Caller]] = [
            ("export", AUTHOR), ("pack", INSPECTOR), ("submit", AUTHOR), (inspection, INSPECTOR),
            ("approve", REVIEWER), ("approve", ACTORS[8]),
        ]  # fmt: skip
        for wish, caller in steps:
            if wish != fault or wish == inspection != "inspect":
                self.wish(wish, capsule, caller)
        for name in SIGNERS[: 1 if fault == "sign" else 3]:
            self.sign(capsule, capsule, [name], "right", COURIER)
        if fault == "constitute":
            self.constitute()
        self.world.engine.allow = fault != "deny"
        if fault != "publish":
            self.wish("publish", capsule, AUTHOR)


actors = st.sampled_from(ACTORS)
numbers = st.integers(0, CAPSULES_MAX - 1)


class Publications(RuleBasedStateMachine):
    """Anybody tries anything, in any order."""

    @initialize()
    def begin(self) -> None:
        self.stage = Stage()

    def teardown(self) -> None:
        if hasattr(self, "stage"):
            self.stage.close()

    @rule(wish=st.sampled_from(WISHES), number=numbers, caller=actors)
    def try_something(self, wish: str, number: int, caller: Caller) -> None:
        self.stage.wish(wish, self.stage.capsule(number), caller)

    @rule(number=numbers, caller=actors)
    def try_to_publish(self, number: int, caller: Caller) -> None:
        self.stage.wish("publish", self.stage.capsule(number), caller)

    @rule(
        number=numbers, other=numbers, how=st.sampled_from(FORGERIES), courier=actors,
        names=st.lists(st.sampled_from([*SIGNERS, "mallory", "dora-1"]), min_size=1, max_size=4),
    )  # fmt: skip
    def sign(self, number: int, other: int, how: str, courier: Caller, names: list[str]) -> None:
        self.stage.sign(self.stage.capsule(number), self.stage.capsule(other), names, how, courier)

    @rule(number=numbers, fault=st.sampled_from(FAULTS))
    def push(self, number: int, fault: str) -> None:
        self.stage.push(number, fault)

    @rule(allow=st.booleans())
    def change_the_policy(self, allow: bool) -> None:
        self.stage.world.engine.allow = allow

    @rule(seconds=st.sampled_from([HOUR_S, 4 * DAY_S, 100 * DAY_S]))
    def wait(self, seconds: int) -> None:
        self.stage.passes(seconds)

    @rule(name=st.sampled_from([*SIGNERS, "dora-1"]), caller=actors)
    def revoke_a_key(self, name: str, caller: Caller) -> None:
        self.stage.revoke_key(name, caller)

    @rule(threshold=st.integers(2, 3), approvals=st.integers(1, 2))
    def rotate(self, threshold: int, approvals: int) -> None:
        self.stage.rotate(threshold, approvals)

    @rule()
    def constitute(self) -> None:
        self.stage.constitute()

    @invariant()
    def nothing_was_published_alone(self) -> None:
        if hasattr(self, "stage"):
            self.stage.look()


class TestPublications(Publications.TestCase):  # type: ignore[misc, valid-type]
    """Random orders, as many as a unit test has time for."""

    settings = settings(
        max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
    )


def walk(seed: int, steps: int = 600) -> Stage:
    """Let somebody do something, many times; the auditor looks after every step."""
    chance, stage = random.Random(seed), Stage()
    try:
        for _ in range(steps):
            _step(stage, chance)
            stage.look()
    finally:
        stage.close()
    return stage


def _step(stage: Stage, chance: random.Random) -> None:
    number, caller = chance.randrange(CAPSULES_MAX), chance.choice(ACTORS)
    capsule, other = stage.capsule(number), stage.capsule(chance.randrange(CAPSULES_MAX))
    match chance.randrange(80):
        case 0:
            stage.constitute()
        case 1:
            stage.rotate(chance.choice([2, 3]), chance.choice([1, 2]))
        case 2 if chance.random() < 0.2:
            stage.revoke_key(chance.choice(["cleo", "dora-1"]), caller)
        case 3 | 4:
            stage.world.engine.allow = chance.random() < 0.7
        case 5:
            stage.passes(chance.choice([HOUR_S, 4 * DAY_S]))
        case 6 | 7 | 8 | 9:
            stage.push(number, chance.choice(FAULTS))
        case 10 | 11 | 12 | 13 | 14 | 15:
            names = chance.choices([*SIGNERS, "mallory"], k=chance.choice([1, 2]))
            stage.sign(capsule, other, names, chance.choice(FORGERIES), caller)
        case 16 | 17 | 18 | 19 | 20 | 21 | 22 | 23:
            stage.wish("publish", capsule, caller)
        case _:
            wish = chance.choice(WISHES)
            if wish not in ("revoke", "withdraw", "uphold") or chance.random() < 0.1:
                stage.wish(wish, capsule, caller)


@pytest.mark.parametrize("seed", range(4))
def test_a_long_walk_publishes_now_and_then_and_never_alone(seed: int) -> None:
    assert walk(seed).oracle.publications, "the walk never came to a publication"


GATES: dict[str, Any] = {
    "check_allowed": lambda judgement: judgement,
    "approved": lambda case, capsule: case.find(reviews.Review, capsule[9:]),
    "check_verified": lambda found: found,
    "check_constitution": lambda case, named: None,
    "_check_scan": lambda capsule, is_override: None,
    "_check_evaluation": lambda capsule: None,
}


@pytest.mark.parametrize("gate", GATES)
def test_the_auditor_sees_each_gate_that_is_left_open(gate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publication, gate, GATES[gate])
    if gate == "check_verified":
        monkeypatch.setattr(publication, "complete_signing", lambda case, capsule: None)
    caught = 0
    for seed in range(16):
        try:
            walk(seed, 150)
        except AssertionError:
            caught += 1
            break
    assert caught, f"nobody noticed that {gate} was open"
