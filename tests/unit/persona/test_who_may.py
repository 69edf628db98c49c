"""Who may do what with a persona, cell by cell; and what may be done with a capsule in each of its states."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isfunction
from typing import Any

import pytest

from domain.ledger import Caller
from domain.persona import capsules, claims, imports, personas, publication, reviewing, standing, transfers
from domain.persona.artifacts import RegisterArtifact, register_artifact
from domain.trust import constitutions, reviews, signatures, signers
from domain.trust.constitutions import constitution_wanted
from domain.trust.keys import key_text
from domain.trust.pinned import PolicyTerms
from domain.trust.verification import Wanted
from tests.unit.persona.capsule_maker import Capsule
from tests.unit.persona.persona_world import (
    AUDITOR,
    AUTHOR,
    BILLING,
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
from tests.unit.trust.trust_maker import (
    COURIER,
    brought,
    constitution_terms,
    envelope,
    key_of,
    policy_terms,
)

CALLERS = {
    "owner": AUTHOR, "provider": COLLEAGUE, "stranger": RIVAL, "operator": OPERATOR, "reviewer": REVIEWER,
    "signer": COURIER, "auditor": AUDITOR, "billing": BILLING, "service": INSPECTOR,
}  # fmt: skip


def table(text: str) -> list[tuple[str, str, str]]:
    """Read a table: one line per row, one column per word of its head."""
    head, *lines = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    return [(line[0], wish, code) for line in lines for wish, code in zip(head[1:], line[1:], strict=True)]


# --------------------------------------------------------------------------- the ways into a state


async def nothing(world: World) -> Capsule:
    return made("1.0.0", world.constitution)


async def drafted(world: World) -> Capsule:
    await world.created()
    capsule = made("1.0.0", world.constitution)
    await world.uploaded(capsule)
    return capsule


async def asked(world: World) -> Capsule:
    capsule = await drafted(world)
    assert (await world.requested(capsule))["id"] == "export-0001"
    return capsule


async def exported(world: World) -> Capsule:
    await world.created()
    return await world.exported()


async def submitted(world: World) -> Capsule:
    capsule = await exported(world)
    await world.submitted(capsule)
    return capsule


async def inspected(world: World) -> Capsule:
    capsule = await submitted(world)
    await world.inspected(capsule)
    return capsule


async def unscannable(world: World) -> Capsule:
    capsule = await submitted(world)
    failure = {"code": "artifact_not_found", "detail": "a part is gone"}
    command = capsules.RecordInspection(capsule_id=capsule.address, failure=failure)
    await world.told(capsules.record_inspection, command, INSPECTOR)
    return capsule


async def rejected(world: World) -> Capsule:
    capsule = await inspected(world)
    assert await world.decided(capsule, "reject") == "ok"
    return capsule


async def overdue(world: World) -> Capsule:
    capsule = await inspected(world)
    world.now = "2026-01-05T00:00:00.000000Z"
    await world.told(reviewing.expire, reviews.ReviewStep(capsule=capsule.address), INSPECTOR)
    return capsule


async def ready(world: World) -> Capsule:
    return await world.ready()


async def published(world: World) -> Capsule:
    return await world.on_show()


async def suspended(world: World) -> Capsule:
    capsule = await world.on_show()
    command = standing.SuspendCapsule(capsule_id=capsule.address, reason="it may hurt")
    assert await world.says(standing.suspend_capsule, command, OTHER_OPERATOR) == "ok"
    return capsule


async def withdrawn(world: World) -> Capsule:
    capsule = await world.on_show()
    assert await world.says(*_withdraw(capsule), AUTHOR) == "ok"
    return capsule


async def revoked(world: World) -> Capsule:
    capsule = await world.on_show()
    assert await world.says(*_revoke(capsule), OPERATOR) == "ok"
    return capsule


async def distrusted(world: World) -> Capsule:
    capsule = await world.on_show()
    assert await world.says(*_revoke_key(capsule), OPERATOR) == "ok"
    command = capsules.CapsuleStep(capsule_id=capsule.address)
    assert await world.says(reviewing.reverify_trust, command, INSPECTOR) == "ok"
    return capsule


async def claimed(world: World) -> Capsule:
    capsule = await world.on_show()
    assert await world.says(*_claim(capsule), RIVAL) == "ok"
    return capsule


async def contested(world: World) -> Capsule:
    capsule = await claimed(world)
    command = claims.ReviewClaim(claim_id=claim_of(world))
    assert await world.says(claims.review_claim, command, OPERATOR) == "ok"
    return capsule


def claim_of(world: World) -> str:
    return next(s.id for s in world.store.states.values() if s.kind == "claim")


# --------------------------------------------------------------------------- the wishes

Wish = Callable[[Capsule], tuple[Any, Any]]


def _export(capsule: Capsule) -> tuple[Any, Any]:
    command = transfers.RequestExport(persona_id=PERSONA, manifest=capsule.manifest.document())
    return transfers.request_export, command


def _complete(capsule: Capsule) -> tuple[Any, Any]:
    command = transfers.CompleteExport(export_id="export-0001", archive=capsule.address, archive_bytes=1)
    return transfers.complete_export, command


def _fail(capsule: Capsule) -> tuple[Any, Any]:
    return transfers.fail_export, transfers.FailExport(
        export_id="export-0001", code="archive_limit", detail=""
    )


def _submit(capsule: Capsule) -> tuple[Any, Any]:
    return capsules.submit_capsule, capsules.SubmitCapsule(capsule_id=capsule.address)


def _inspect(capsule: Capsule) -> tuple[Any, Any]:
    command = capsules.RecordInspection(capsule_id=capsule.address, scan=scanned(), evaluation=PASSED)
    return capsules.record_inspection, command


def _approve(capsule: Capsule) -> tuple[Any, Any]:
    return reviewing.decide, reviews.DecideReview(capsule=capsule.address, decision="approve")


def _sign(capsule: Capsule) -> tuple[Any, Any]:
    policy = PolicyTerms.model_validate(policy_terms()).document().address
    until = "2026-04-01T00:00:00.000000Z"
    wanted = Wanted("publication", capsule.address, policy, capsule.manifest.governance.constitution, until)
    return reviewing.sign, signatures.SubmitSignature(
        capsule=capsule.address, envelope=brought(envelope(wanted, "ada"))
    )


def _override(capsule: Capsule) -> tuple[Any, Any]:
    command = reviews.DecideReview(
        capsule=capsule.address, decision="approve", is_override=True, notes="it must go on"
    )
    return reviewing.decide, command


def _publish(capsule: Capsule) -> tuple[Any, Any]:
    return publication.publish_capsule, publication.PublishCapsule(capsule_id=capsule.address)


def _preflight(capsule: Capsule) -> tuple[Any, Any]:
    return publication.preflight, capsules.CapsuleStep(capsule_id=capsule.address)


def _suspend(capsule: Capsule) -> tuple[Any, Any]:
    return standing.suspend_capsule, standing.SuspendCapsule(capsule_id=capsule.address, reason="harm")


def _reinstate(capsule: Capsule) -> tuple[Any, Any]:
    command = publication.ReinstateCapsule(capsule_id=capsule.address, reason="no harm")
    return publication.reinstate_capsule, command


def _revoke(capsule: Capsule) -> tuple[Any, Any]:
    command = standing.RevokeCapsule(capsule_id=capsule.address, reason="harm", rentals="end")
    return standing.revoke_capsule, command


def _withdraw(capsule: Capsule) -> tuple[Any, Any]:
    return standing.withdraw_capsule, standing.WithdrawCapsule(capsule_id=capsule.address)


def _degrade(capsule: Capsule) -> tuple[Any, Any]:
    return standing.mark_degraded, standing.MarkDegraded(capsule_id=capsule.address, mark="slow")


def _recover(capsule: Capsule) -> tuple[Any, Any]:
    return standing.clear_degraded, standing.ClearDegraded(capsule_id=capsule.address, mark="slow")


def _download(capsule: Capsule) -> tuple[Any, Any]:
    return transfers.download_capsule, transfers.DownloadCapsule(capsule_id=capsule.address)


def _claim(capsule: Capsule) -> tuple[Any, Any]:
    return claims.open_claim, claims.OpenClaim(capsule_id=capsule.address, right="copyright", reason="ours")


def _reverify(capsule: Capsule) -> tuple[Any, Any]:
    return reviewing.reverify_trust, capsules.CapsuleStep(capsule_id=capsule.address)


def _revoke_key(capsule: Capsule) -> tuple[Any, Any]:
    command = signers.RevokeKey(
        policy="publication", public_key=key_text(key_of("ada").public_key), reason="stolen"
    )
    return signers.revoke_key, command


def _reopen(capsule: Capsule) -> tuple[Any, Any]:
    return signatures.reopen_signing, signatures.OpenSigning(capsule=capsule.address)


def _adopt_policy(capsule: Capsule) -> tuple[Any, Any]:
    terms = PolicyTerms.model_validate(policy_terms(name="another"))
    return signers.adopt_policy, signers.AdoptPolicy(document=terms)


def _adopt_constitution(capsule: Capsule) -> tuple[Any, Any]:
    document = constitutions.ConstitutionTerms.model_validate(constitution_terms(2))
    policy = PolicyTerms.model_validate(policy_terms()).document().address
    sealed = envelope(constitution_wanted(document.document().sealed()[1], policy), "ada", "ben")
    command = constitutions.AdoptConstitution(document=document, envelopes=[brought(sealed)])
    return constitutions.adopt_constitution, command


def _create(capsule: Capsule) -> tuple[Any, Any]:
    return personas.create_persona, personas.CreatePersona(persona_id="harbour-pilot", display_name="Pilot")


def _describe(capsule: Capsule) -> tuple[Any, Any]:
    return personas.describe_persona, personas.DescribePersona(persona_id=PERSONA, summary="more")


def _upload(capsule: Capsule) -> tuple[Any, Any]:
    return register_artifact, RegisterArtifact(address="sha3-512:" + "0f" * 64, size_bytes=3)


def _import(capsule: Capsule) -> tuple[Any, Any]:
    attestations = {
        "schema": imports.SCHEMA,
        "capsule": capsule.address,
        "policy": "",
        "constitution": "",
        "envelopes": [],
    }
    part = capsule.manifest.parts[0]
    return imports.request_import, imports.RequestImport(archive=part.digest, attestations=attestations)


def _accept(capsule: Capsule) -> tuple[Any, Any]:
    return imports.accept_import, imports.AcceptImport(import_id="none", manifest={})


def _check(capsule: Capsule) -> tuple[Any, Any]:
    return imports.check_import, imports.AcceptImport(import_id="none", manifest={})


def _refuse(capsule: Capsule) -> tuple[Any, Any]:
    return imports.refuse_import, imports.RefuseImport(import_id="none", code="archive_invalid", detail="")


def _expire(capsule: Capsule) -> tuple[Any, Any]:
    return reviewing.expire, reviews.ReviewStep(capsule=capsule.address)


def _sweep(capsule: Capsule) -> tuple[Any, Any]:
    return reviewing.note_sweep, reviewing.NoteSweep(policy_version=1, capsules=0, lost=0)


# --------------------------------------------------------------------------- who may

WISHES: dict[str, tuple[Callable[[World], Awaitable[Capsule]], Wish]] = {
    "create": (nothing, _create), "describe": (drafted, _describe), "upload": (nothing, _upload),
    "export": (drafted, _export), "complete": (asked, _complete), "fail": (asked, _fail),
    "submit": (exported, _submit), "inspect": (submitted, _inspect),
    "approve": (inspected, _approve), "override": (inspected, _override), "expire": (inspected, _expire),
    "sign": (inspected, _sign),
    "publish": (ready, _publish), "preflight": (ready, _preflight), "suspend": (published, _suspend),
    "reinstate": (suspended, _reinstate), "revoke": (published, _revoke), "withdraw": (published, _withdraw),
    "degrade": (published, _degrade), "recover": (published, _recover),
    "download": (published, _download), "download early": (exported, _download), "download sub": (submitted, _download),
    "import": (drafted, _import), "check import": (nothing, _check), "accept": (nothing, _accept),
    "refuse": (nothing, _refuse), "claim": (published, _claim),
    "reverify": (published, _reverify), "revoke key": (published, _revoke_key), "reopen": (distrusted, _reopen),
    "adopt policy": (nothing, _adopt_policy), "constitute": (nothing, _adopt_constitution), "sweep": (nothing, _sweep),
}  # fmt: skip

# A refusal in capitals of the form F, P, C, A, I stands for the code below, so that the table can be read.
SHORT = {
    "F": "forbidden", "P": "persona_not_found", "C": "capsule_not_found", "A": "artifact_not_found",
    "I": "import_not_found", "S": "signing_not_found", "R": "self_review", "V": "review_not_found",
}  # fmt: skip

WHO = table("""
                   | owner | provider | stranger | operator | reviewer | signer | auditor | billing | service
    create         | ok    | ok       | ok       | ok       | F        | F      | F       | F       | F
    describe       | ok    | ok       | P        | ok       | F        | F      | F       | F       | F
    upload         | ok    | ok       | ok       | ok       | F        | F      | F       | F       | F
    export         | ok    | ok       | P        | ok       | F        | F      | F       | F       | F
    complete       | F     | F        | F        | F        | F        | F      | F       | F       | ok
    fail           | F     | F        | F        | F        | F        | F      | F       | F       | ok
    submit         | ok    | ok       | C        | ok       | F        | F      | F       | F       | F
    inspect        | F     | F        | F        | F        | F        | F      | F       | F       | ok
    approve        | F     | F        | F        | F        | ok       | F      | F       | F       | F
    override       | F     | F        | F        | ok       | F        | F      | F       | F       | F
    expire         | F     | F        | F        | F        | F        | F      | F       | F       | ok
    sign           | F     | F        | F        | F        | F        | ok     | F       | F       | F
    publish        | ok    | ok       | C        | ok       | F        | F      | F       | F       | F
    preflight      | ok    | ok       | C        | ok       | ok       | ok     | ok      | F       | F
    suspend        | ok    | ok       | C        | ok       | F        | F      | F       | F       | F
    reinstate      | F     | F        | F        | ok       | F        | F      | F       | F       | F
    revoke         | F     | F        | F        | ok       | F        | F      | F       | F       | F
    withdraw       | ok    | ok       | C        | ok       | F        | F      | F       | F       | F
    degrade        | F     | F        | F        | ok       | F        | F      | F       | F       | ok
    recover        | F     | F        | F        | ok       | F        | F      | F       | F       | ok
    download       | ok    | ok       | ok       | ok       | ok       | ok     | ok      | F       | F
    download early | ok    | ok       | C        | ok       | C        | C      | ok      | F       | F
    download sub   | ok    | ok       | C        | ok       | ok       | ok     | ok      | F       | F
    import         | ok    | ok       | A        | A        | F        | F      | F       | F       | F
    check import   | F     | F        | F        | F        | F        | F      | F       | F       | I
    accept         | F     | F        | F        | F        | F        | F      | F       | F       | I
    refuse         | F     | F        | F        | F        | F        | F      | F       | F       | I
    claim          | F     | F        | ok       | ok       | F        | F      | F       | F       | F
    reverify       | F     | F        | F        | F        | F        | F      | F       | F       | ok
    revoke key     | F     | F        | F        | ok       | F        | F      | F       | F       | F
    reopen         | ok    | ok       | S        | ok       | F        | F      | F       | F       | F
    adopt policy   | F     | F        | F        | ok       | F        | F      | F       | F       | F
    constitute     | F     | F        | F        | ok       | F        | F      | F       | F       | F
    sweep          | F     | F        | F        | F        | F        | F      | F       | F       | ok
""")

# Commands whose refusals are themselves events, since every attempt must be in the log.
ATTEMPTS = {"export", "download", "download early", "download sub", "import"}


@pytest.mark.parametrize(("wish", "who", "expected"), WHO)
def test_everybody_may_do_what_the_table_says_and_nothing_else(wish: str, who: str, expected: str) -> None:
    async def scene() -> None:
        world = await World.begun()
        before, wished = WISHES[wish]
        capsule = await before(world)
        size = len(world.store.logged)
        said = await world.says(*wished(capsule), CALLERS[who])
        assert said == SHORT.get(expected, expected)
        if said != "ok":
            assert len(world.store.logged) == size + (wish in ATTEMPTS)

    asyncio.run(scene())


def test_the_table_has_a_row_for_every_use_case() -> None:
    rooms = (capsules, claims, imports, personas, publication, reviewing, standing, transfers)
    found = {
        use_case
        for room in rooms
        for use_case in vars(room).values()
        if isfunction(use_case) and hasattr(use_case, "roles") and use_case.__module__ == room.__name__
    }
    capsule = asyncio.run(_any())
    told = {wished(capsule)[0] for _, wished in WISHES.values()}
    of_claims = {claims.review_claim, claims.uphold_claim, claims.reject_claim, claims.withdraw_claim}
    assert {one.__name__ for one in found - told - of_claims} == set()


async def _any() -> Capsule:
    return await nothing(await World.begun())


# --------------------------------------------------------------------------- claims

CLAIM_WISHES: dict[str, Callable[[str], tuple[Any, Any]]] = {
    "take up": lambda name: (claims.review_claim, claims.ReviewClaim(claim_id=name)),
    "uphold": lambda name: (claims.uphold_claim, claims.UpholdClaim(claim_id=name, resolution="so it is")),
    "reject": lambda name: (
        claims.reject_claim,
        claims.RejectClaim(claim_id=name, resolution="so it is not"),
    ),
    "withdraw": lambda name: (claims.withdraw_claim, claims.WithdrawClaim(claim_id=name)),
}

CLAIM_CALLERS = {
    "claimant": RIVAL,
    "accused": AUTHOR,
    "operator": OPERATOR,
    "claimant's operator": Caller("odd", "strange", frozenset(["operator"])),
    "accused's operator": Caller("ole", "acme", frozenset(["operator"])),
    "reviewer": REVIEWER,
    "service": INSPECTOR,
}

CLAIMS = table("""
             | claimant | accused         | operator        | claimant's operator | accused's operator | reviewer | service
    take up  | F        | F               | ok              | F                   | F                  | F        | F
    uphold   | F        | F               | ok              | F                   | F                  | F        | F
    reject   | F        | F               | ok              | F                   | F                  | F        | F
    withdraw | ok       | claim_not_found | claim_not_found | ok                  | claim_not_found    | F        | F
""")  # noqa: E501


@pytest.mark.parametrize(("wish", "who", "expected"), CLAIMS)
def test_claims_are_decided_by_operators_who_belong_to_neither_side(
    wish: str, who: str, expected: str
) -> None:
    async def scene() -> None:
        world = await World.begun()
        await (claimed if wish in ("take up", "withdraw") else contested)(world)
        said = await world.says(*CLAIM_WISHES[wish](claim_of(world)), CLAIM_CALLERS[who])
        assert said == SHORT.get(expected, expected)

    asyncio.run(scene())


# --------------------------------------------------------------------------- what may be done in each state

STATES: dict[str, Callable[[World], Awaitable[Capsule]]] = {
    "exported": exported, "submitted": submitted, "unscannable": unscannable, "inspected": inspected,
    "rejected": rejected, "overdue": overdue, "ready": ready, "published": published, "distrusted": distrusted,
    "suspended": suspended, "withdrawn": withdrawn, "revoked": revoked,
}  # fmt: skip

ACTS: dict[str, tuple[Wish, Caller]] = {
    "export": (_export, AUTHOR), "submit": (_submit, AUTHOR), "publish": (_publish, AUTHOR),
    "suspend": (_suspend, OPERATOR), "reinstate": (_reinstate, OPERATOR), "revoke": (_revoke, OPERATOR),
    "withdraw": (_withdraw, AUTHOR), "degrade": (_degrade, OPERATOR), "download": (_download, AUTHOR),
    "claim": (_claim, RIVAL),
}  # fmt: skip

ALSO_SHORT = {
    "T": "invalid_status_transition", "C": "capsule_not_found", "N": "not_inspected", "A": "not_approved",
    "M": "threshold_not_met", "s": "capsule_suspended", "r": "capsule_revoked", "X": "review_closed",
}  # fmt: skip

IN_EACH_STATE = table("""
                | export | submit | publish | suspend | reinstate | revoke | withdraw | degrade | download | claim
    exported    | ok     | ok     | T       | T       | T         | ok     | ok       | T       | ok       | C
    submitted   | ok     | T      | N       | T       | N         | ok     | ok       | T       | ok       | C
    unscannable | ok     | ok     | N       | T       | T         | ok     | ok       | T       | ok       | C
    inspected   | ok     | T      | A       | T       | T         | ok     | ok       | T       | ok       | C
    rejected    | ok     | X      | A       | T       | T         | ok     | ok       | T       | ok       | C
    overdue     | ok     | ok     | A       | T       | T         | ok     | ok       | T       | ok       | C
    ready       | ok     | T      | ok      | T       | T         | ok     | ok       | T       | ok       | C
    published   | ok     | T      | T       | ok      | T         | ok     | ok       | ok      | ok       | ok
    distrusted  | ok     | T      | T       | ok      | T         | ok     | ok       | ok      | ok       | ok
    suspended   | s      | s      | s       | T       | ok        | ok     | ok       | T       | s        | ok
    withdrawn   | T      | T      | T       | T       | T         | ok     | T        | T       | ok       | ok
    revoked     | r      | r      | r       | T       | r         | r      | r        | T       | r        | ok
""")


@pytest.mark.parametrize(("state", "wish", "expected"), IN_EACH_STATE)
def test_a_capsule_allows_in_each_state_what_it_must(state: str, wish: str, expected: str) -> None:
    async def scene() -> None:
        world = await World.begun()
        capsule = await STATES[state](world)
        wished, caller = ACTS[wish]
        assert await world.says(*wished(capsule), caller) == ALSO_SHORT.get(expected, expected)

    asyncio.run(scene())


def test_who_suspends_does_not_reinstate() -> None:
    async def scene() -> None:
        world = await World.begun()
        capsule = await suspended(world)
        assert await world.says(*_reinstate(capsule), OTHER_OPERATOR) == "forbidden"
        assert await world.says(*_reinstate(capsule), OPERATOR) == "ok"

    asyncio.run(scene())


def test_an_author_suspends_only_what_has_a_kill_switch() -> None:
    async def scene() -> None:
        world = await World.begun()
        capsule = await world.on_show(kill=False)
        assert await world.says(*_suspend(capsule), AUTHOR) == "forbidden"
        assert await world.says(*_suspend(capsule), OPERATOR) == "ok"

    asyncio.run(scene())


def test_owners_and_submitters_neither_review_nor_sign() -> None:
    async def scene() -> None:
        world = await World.begun()
        capsule = await inspected(world)
        both = AUTHOR._replace(tenant="platform", roles=frozenset(["reviewer", "operator"]))
        assert await world.decided(capsule, caller=both) == "self_review"
        submitter = Caller("ada@platform", "acme", frozenset(["owner"]))
        again = await world.exported("1.1.0", owner="olivia")
        await world.submitted(again, submitter)
        assert await world.signed(again, "ada") == "signature_refused"
        assert await world.signed(again, "ben") == "ok"

    asyncio.run(scene())
