"""The whole corpus of tampered archives, imported over HTTP with attestations that honest signers have signed."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import httpx
import pytest

from domain.canonical import seal_of
from domain.persona.manifest import CONTEXT
from tests.real.persona.capsule_world import RIVAL, CapsuleWorld, ended, made, topics_of, upload
from tests.real.service import Service
from tests.unit.persona.tamper_corpus import CASES, Case, capsule

pytestmark = pytest.mark.slow

# Where less is taken in than the reader's own limits allow, size is what is wrong first.
TOO_LARGE_HERE = "a part of a gigabyte that is not there"


def vouched_for(case: Case) -> str:
    """Name the capsule the attestations of a case are about: the honest one, or else the forged manifest itself."""
    archive = case.archive()
    with suppress(ValueError):
        if not case.knows_address:
            return seal_of(CONTEXT, archive[512 : 512 + int(archive[124:135], 8)])
    return capsule().address


def begun(world: CapsuleWorld, client: httpx.Client, case: Case) -> str:
    """Ask for the import of a case; give its name."""
    archive = upload(client, None, case.archive())
    body = {"archive": archive, "attestations": world.attestations(vouched_for(case))}
    return str(made(client, "/v1/imports", body, 202)["id"])


def names(problem: dict[str, Any]) -> list[str]:
    """List what a refusal names: a part, or the paths of a manifest's faults."""
    facts = problem["facts"]
    return [fault["path"] for fault in facts.get("faults", [])] + [facts.get("part", "")]


def test_every_tampered_archive_is_refused_by_its_code_and_its_part_is_named(service: Service) -> None:
    world = CapsuleWorld(service)
    world.found()
    wrong = []
    with world.client(RIVAL) as client:
        asked = [(case, begun(world, client, case)) for case in CASES]
        for case, name in asked:
            found = ended(client, f"/v1/imports/{name}")
            problem = found["problem"] or {"code": "none", "facts": {}}
            code = "archive_limit" if case.name == TOO_LARGE_HERE else case.code
            told = case.named in names(problem) or code == "archive_limit" or "note" in problem["facts"]
            if (found["status"], problem["code"]) != ("refused", code) or not told:
                wrong.append((case.name, case.code, case.named, found["status"], problem))
        kept = client.get("/v1/artifacts", params={"limit": 500}).json()["items"]
    assert not wrong, f"{len(wrong)}: {wrong[:5]}"
    seen = topics_of(service)
    assert (seen["import.refused"], seen["import.accepted"]) == (len(CASES), 0)
    # What the vault holds is what was uploaded, and no part of any of it.
    assert seen["artifact.received"] == 0
    objects = [one for one in service.runtime.vault.names() if "/objects/" in one]
    assert len(objects) == len(kept) == seen["artifact.uploaded"]
