"""Exports and imports over HTTP, by real workers: what is sealed, what is refused, and what the log says of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from domain.persona.archive import archive_bytes
from tests.real.persona.capsule_world import AUDITOR, OLIVIA, RIVAL, CapsuleWorld
from tests.real.service import Service
from tests.unit.persona.capsule_maker import Capsule, address_of


@pytest.fixture(scope="module")
def world(service: Service) -> CapsuleWorld:
    opened = CapsuleWorld(service)
    opened.found()
    return opened


@pytest.fixture(scope="module")
def capsule(world: CapsuleWorld) -> Capsule:
    """Make a persona with its parts uploaded."""
    made = world.capsule()
    world.prepare(made)
    return made


@pytest.fixture(scope="module")
def exported(world: CapsuleWorld, capsule: Capsule) -> dict[str, Any]:
    return world.export(capsule)


@pytest.fixture
def olivia(world: CapsuleWorld) -> Iterator[httpx.Client]:
    with world.client(OLIVIA) as client:
        yield client


def code_of(answer: httpx.Response) -> str:
    """Read the code of a refusal."""
    assert answer.status_code >= 400, answer.text
    return str(answer.json()["code"])


class TestExports:
    def test_an_export_seals_the_archive_that_the_manifest_defines(
        self, capsule: Capsule, exported: dict[str, Any], olivia: httpx.Client
    ) -> None:
        assert exported["status"] == "completed"
        assert exported["capsule"] == capsule.address
        assert exported["archive"] == address_of(capsule.archive())
        assert exported["archive_bytes"] == archive_bytes(capsule.manifest)
        assert exported["token_estimate"]["prompt_tokens"] > 0
        back = olivia.get(f"/v1/capsules/{capsule.address}/archive")
        assert back.content == capsule.archive()

    def test_exported_twice_it_is_the_same_to_the_last_byte(
        self, world: CapsuleWorld, capsule: Capsule, exported: dict[str, Any]
    ) -> None:
        again = world.export(capsule)
        assert again["id"] != exported["id"]
        assert (again["status"], again["archive"]) == ("completed", exported["archive"])

    def test_a_part_that_is_damaged_in_the_vault_fails_the_export_by_its_name(
        self, world: CapsuleWorld, service: Service
    ) -> None:
        broken = world.capsule("clumsy-clerk", seed=11)
        world.prepare(broken)
        part = broken.manifest.parts_of("memory")[0]
        vault = service.runtime.vault
        body = vault._folder / "capsules" / "bodies" / _body_of(service, part.digest)  # type: ignore[operator]
        data = bytearray(body.read_bytes())
        data[100] ^= 1
        body.write_bytes(data)
        failed = world.export(broken)
        assert (failed["status"], failed["problem"]["code"]) == ("failed", "capsule_tampered")
        assert failed["problem"]["facts"]["part"] == part.name

    def test_a_memory_that_is_no_bundle_fails_the_export(self, world: CapsuleWorld) -> None:
        empty = world.capsule(
            "blank-mind", parts={"memory.parquet": ("memory", "application/vnd.apache.parquet", b"x" * 64)}
        )
        world.prepare(empty)
        failed = world.export(empty)
        assert (failed["status"], failed["problem"]["code"]) == ("failed", "memory_bundle_invalid")

    def test_a_refused_attempt_is_told_and_written_down(
        self, world: CapsuleWorld, capsule: Capsule, olivia: httpx.Client
    ) -> None:
        missing = world.capsule(version="2.0.0", seed=99)
        assert code_of(olivia.post("/v1/exports", json=world.asked(missing))) == "artifact_not_found"
        refused = olivia.get("/v1/exports?status=refused").json()["items"]
        assert (refused[0]["capsule"], refused[0]["problem"]["code"]) == (
            missing.address,
            "artifact_not_found",
        )
        with world.client(AUDITOR) as auditor:
            assert code_of(auditor.post("/v1/exports", json=world.asked(capsule))) == "forbidden"

    def test_another_tenant_sees_neither_the_export_nor_the_archive(
        self, world: CapsuleWorld, capsule: Capsule, exported: dict[str, Any]
    ) -> None:
        with world.client(RIVAL) as rival:
            assert code_of(rival.get(f"/v1/exports/{exported['id']}")) == "export_not_found"
            assert code_of(rival.get(f"/v1/capsules/{capsule.address}/archive")) == "capsule_not_found"
            assert code_of(rival.get(f"/v1/artifacts/{exported['archive']}")) == "artifact_not_found"


class TestDownloads:
    def test_a_download_is_in_the_log_before_its_first_byte(
        self,
        world: CapsuleWorld,
        service: Service,
        capsule: Capsule,
        exported: dict[str, Any],
        olivia: httpx.Client,
    ) -> None:
        size = service.run(service.runtime.reader.size())
        with olivia.stream("GET", f"/v1/capsules/{capsule.address}/archive") as answer:
            assert answer.status_code == 200
            assert service.run(service.runtime.reader.size()) == size + 1
        told = service.run(service.runtime.reader.at(size))
        assert b'"type":"download.granted"' in told.record
        assert exported["archive"].encode() in told.record

    def test_a_download_goes_on_where_it_broke_off(
        self, capsule: Capsule, exported: dict[str, Any], olivia: httpx.Client
    ) -> None:
        rest = olivia.get(f"/v1/capsules/{capsule.address}/archive", headers={"Range": "bytes=1000-"})
        assert (rest.status_code, rest.content) == (206, capsule.archive()[1000:])

    def test_a_refused_download_is_written_down_too(
        self, world: CapsuleWorld, service: Service, capsule: Capsule, exported: dict[str, Any]
    ) -> None:
        size = service.run(service.runtime.reader.size())
        with world.client(RIVAL) as rival:
            assert code_of(rival.get(f"/v1/capsules/{capsule.address}/archive")) == "capsule_not_found"
        told = service.run(service.runtime.reader.at(size))
        assert b'"type":"download.refused"' in told.record


class TestImports:
    def test_a_sound_capsule_with_its_signatures_is_taken_in_with_all_its_parts(
        self, world: CapsuleWorld
    ) -> None:
        foreign = world.capsule("foreign-expert", seed=21)
        taken = world.import_(foreign.archive(), world.attestations(foreign.address))
        assert (taken["status"], taken["problem"]) == ("completed", None)
        assert taken["capsule"] == foreign.address
        with world.client(RIVAL) as rival:
            for part in foreign.manifest.parts:
                assert rival.get(f"/v1/artifacts/{part.digest}").content == foreign.data[part.name]

    def test_every_part_with_one_byte_changed_is_refused_by_its_name_and_nothing_of_it_is_kept(
        self, world: CapsuleWorld, service: Service
    ) -> None:
        foreign = world.capsule("changed-expert", seed=22)
        archive = foreign.archive()
        for part in foreign.manifest.parts:
            at = archive.index(foreign.data[part.name]) + part.bytes // 2
            changed = archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :]
            refused = world.import_(changed, world.attestations(foreign.address))
            assert (refused["status"], refused["problem"]["code"]) == ("refused", "capsule_tampered")
            assert refused["problem"]["facts"]["part"] == part.name
        vault = service.runtime.vault
        with world.client(RIVAL) as rival:
            for part in foreign.manifest.parts:
                if part.role == "memory":
                    assert not vault.has(part.digest), "nothing of a refused import is kept"
                assert rival.head(f"/v1/artifacts/{part.digest}").status_code in (200, 404)

    def test_without_enough_signatures_nothing_of_it_is_kept(
        self, world: CapsuleWorld, service: Service
    ) -> None:
        foreign = world.capsule("unsigned-expert", seed=23)
        memory = foreign.manifest.parts_of("memory")[0].digest
        refused = world.import_(foreign.archive(), world.attestations(foreign.address, ["ada"]))
        assert (refused["status"], refused["problem"]["code"]) == ("refused", "threshold_not_met")
        assert not service.runtime.vault.has(memory)
        accepted = world.import_(foreign.archive(), world.attestations(foreign.address))
        assert accepted["status"] == "completed"
        assert service.runtime.vault.has(memory)

    def test_what_is_no_archive_is_refused(self, world: CapsuleWorld) -> None:
        foreign = world.capsule("no-archive")
        for data in (b"", b"PK\x03\x04" + bytes(2_000), foreign.archive()[:-1], foreign.archive() + b"\0"):
            refused = world.import_(data, world.attestations(foreign.address))
            assert (refused["status"], refused["problem"]["code"]) == ("refused", "archive_invalid")

    def test_an_archive_nobody_uploaded_is_refused_and_the_attempt_written_down(
        self, world: CapsuleWorld
    ) -> None:
        foreign = world.capsule("absent-expert")
        body = {"archive": address_of(b"absent"), "attestations": world.attestations(foreign.address)}
        with world.client(RIVAL) as rival:
            assert code_of(rival.post("/v1/imports", json=body)) == "artifact_not_found"
            newest = rival.get("/v1/imports?status=refused").json()["items"][0]
        assert (newest["archive"], newest["problem"]["code"]) == (address_of(b"absent"), "artifact_not_found")

    def test_a_memory_that_is_no_bundle_is_refused(self, world: CapsuleWorld) -> None:
        blank = world.capsule(
            "blank-import", parts={"memory.parquet": ("memory", "application/vnd.apache.parquet", b"y" * 64)}
        )
        refused = world.import_(blank.archive(), world.attestations(blank.address))
        assert (refused["status"], refused["problem"]["code"]) == ("refused", "memory_bundle_invalid")


def test_the_progress_of_a_transfer_is_told_while_it_is_under_way(world: CapsuleWorld) -> None:
    large = world.capsule("large-memory", items=10_000, dimension=384)
    world.prepare(large)
    seen: list[dict[str, Any]] = []
    with world.client(OLIVIA) as client:
        answer = client.post("/v1/exports", json=world.asked(large))
        path = f"/v1/exports/{answer.json()['id']}"
        while (found := client.get(path).json())["status"] == "requested":
            # It may end between the look at its state and the look at its progress.
            seen += [found["progress"]] if "progress" in found else []
        archive = client.get(f"/v1/capsules/{large.address}/archive").content
    assert found["status"] == "completed"
    assert seen
    assert all(p["bytes_done"] <= (p["bytes_total"] or 0) for p in seen)
    assert sorted(p["state"] for p in seen) == [p["state"] for p in seen]
    assert address_of(archive) == found["archive"]


def _body_of(service: Service, address: str) -> str:
    vault = service.runtime.vault
    name = f"capsules/objects/{address[9:11]}/{address[11:13]}/{address[9:]}"
    return vault._envelope(name).body
