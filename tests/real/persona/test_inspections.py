"""Evaluations and inspections on a running service: by a process of their own, and taken up again after a crash."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from domain.errors import EvaluationFailedError, MemoryBundleInvalidError, ShuttingDownError
from domain.ledger import Caller
from domain.persona import capsules
from domain.persona.evaluation.harness import Constitution
from domain.persona.evaluation.report import read_report
from domain.persona.evaluation.suites import BASELINE
from ops.evaluation_run import Part, run_apart
from projections.inspections import INSPECTOR
from tests.real.persona.capsule_world import OLIVIA, RIVAL, CapsuleWorld, ended, upload
from tests.real.persona.test_publication_http import Stage
from tests.real.service import Service
from tests.unit.persona.capsule_maker import Capsule, a_capsule, address_of
from tests.unit.persona.evaluation_maker import UTILITY

IN_FORCE = Constitution("sha3-512:" + "c0" * 64, UTILITY)
REVIEWER = Caller("rita", "platform", frozenset({"reviewer"}))


@pytest.fixture(scope="module")
def world(service: Service) -> CapsuleWorld:
    made = CapsuleWorld(service)
    made.found()
    return made


@pytest.fixture(scope="module")
def olivia(world: CapsuleWorld) -> Iterator[httpx.Client]:
    with world.client(OLIVIA) as client:
        yield client


@pytest.fixture(scope="module")
def capsule(world: CapsuleWorld) -> Capsule:
    made = world.capsule("tax-advisor", items=40)
    world.prepare(made)
    return made


@pytest.fixture(scope="module")
def stage(world: CapsuleWorld) -> Iterator[Stage]:
    opened = Stage(world)
    yield opened
    for client in opened.clients.values():
        client.close()


def evaluated(client: httpx.Client, capsule: Capsule) -> dict[str, Any]:
    """Ask for an evaluation and wait for its end."""
    answer = client.post("/v1/evaluations", json={"manifest": capsule.manifest.document()})
    assert answer.status_code == 201, answer.text
    return ended(client, answer.headers["Location"])


def inspected(client: httpx.Client, capsule: Capsule) -> dict[str, Any]:
    """Submit a capsule and wait until it is inspected."""
    answer = client.post(f"/v1/capsules/{capsule.address}/submit")
    assert answer.status_code == 202, answer.text
    until = time.monotonic() + 60
    while (found := client.get(f"/v1/capsules/{capsule.address}").json())["status"] == "submitted":
        assert time.monotonic() < until, found
        time.sleep(0.05)
    return dict(found)


def completed(world: CapsuleWorld, capsule: Capsule) -> bool:
    """Export a capsule."""
    found = world.export(capsule)
    assert found["status"] == "completed", found["problem"]
    return True


def parts_of(capsule: Capsule) -> list[Part]:
    return [Part(part.name, part.bytes, capsule.open_part(part)) for part in capsule.manifest.parts]


class TestEvaluations:
    def test_the_suite_is_published_with_its_address(self, world: CapsuleWorld) -> None:
        with httpx.Client(base_url=world.service.url, trust_env=False) as anybody:
            found = anybody.get("/v1/evaluations/suites/baseline").json()
            assert found == {"digest": BASELINE.address, "suite": BASELINE.document()}
            assert anybody.get("/v1/evaluations/suites").json()["items"] == [found]
            missing = anybody.get("/v1/evaluations/suites/mine")
            assert (missing.status_code, missing.json()["code"]) == (404, "evaluation_suite_not_found")

    def test_run_twice_it_is_the_same_and_the_report_is_the_authors(
        self, olivia: httpx.Client, capsule: Capsule
    ) -> None:
        one, other = evaluated(olivia, capsule), evaluated(olivia, capsule)
        assert one["status"] == other["status"] == "completed"
        assert one["passed"], one["evaluation"]["why"]
        assert one["evaluation"]["compared"] == other["evaluation"]["compared"]
        data = olivia.get(f"/v1/evaluations/{one['id']}/report").content
        assert address_of(data) == one["report"]
        assert read_report(data).address == one["evaluation"]["compared"]
        assert olivia.get(f"/v1/artifacts/{one['report']}").content == data
        side = olivia.get(f"/v1/evaluations/{one['id']}/comparison", params={"baseline": other["id"]}).json()
        assert (side["paired"], side["lost"], side["regressed"]) == (40, 0, False)

    def test_nobody_else_sees_an_evaluation(
        self, world: CapsuleWorld, olivia: httpx.Client, capsule: Capsule
    ) -> None:
        own = evaluated(olivia, capsule)["id"]
        with world.client(RIVAL) as rival:
            for path in ("", "/report", f"/comparison?baseline={own}"):
                answer = rival.get(f"/v1/evaluations/{own}{path}")
                assert (answer.status_code, answer.json()["code"]) == (404, "evaluation_not_found")
            assert rival.get("/v1/evaluations").json()["items"] == []

    def test_a_bundle_that_is_none_fails_the_evaluation_by_its_code(
        self, world: CapsuleWorld, olivia: httpx.Client
    ) -> None:
        broken = world.capsule(
            "broken-bob", parts={"memory.parquet": ("memory", "application/octet-stream", b"PAR1")}
        )
        world.prepare(broken)
        found = evaluated(olivia, broken)
        assert (found["status"], found["code"]) == ("failed", "memory_bundle_invalid")
        assert olivia.get(f"/v1/evaluations/{found['id']}/report").status_code == 409

    def test_utility_is_a_metric(self, world: CapsuleWorld, olivia: httpx.Client, capsule: Capsule) -> None:
        evaluated(olivia, capsule)
        with httpx.Client(base_url=world.service.url, trust_env=False) as anybody:
            metrics = anybody.get("/metrics").text
        assert 'soma_utility_value{suite="baseline"} -' in metrics
        assert 'soma_utility_decisions_total{outcome="accepted",suite="baseline"}' in metrics


class TestInspections:
    def test_a_submitted_capsule_is_scanned_and_evaluated(
        self, world: CapsuleWorld, olivia: httpx.Client, capsule: Capsule
    ) -> None:
        assert completed(world, capsule)
        found = inspected(olivia, capsule)
        assert found["status"] == "inspected", found
        assert found["scan"]["verdict"] == "pass", found["scan"]
        assert found["evaluation"]["passed"], found["evaluation"]
        assert found["evaluation"]["named_report"] == "none"
        report = olivia.get(f"/v1/capsules/{capsule.address}/report")
        assert address_of(report.content) == found["evaluation"]["report"]
        assert read_report(report.content).address == found["evaluation"]["compared"]
        with world.client(REVIEWER) as reviewer, world.client(RIVAL) as rival:
            assert reviewer.get(f"/v1/capsules/{capsule.address}/report").content == report.content
            assert rival.get(f"/v1/capsules/{capsule.address}/report").status_code == 404

    def test_a_report_of_the_authors_own_evaluation_is_found_again(
        self, world: CapsuleWorld, olivia: httpx.Client
    ) -> None:
        draft = world.capsule("honest-hanna", items=30)
        world.prepare(draft)
        run = evaluated(olivia, draft)
        data = olivia.get(f"/v1/evaluations/{run['id']}/report").content
        final = world.capsule(
            "honest-hanna", items=30, parts={"report.json": ("evaluation_report", "application/json", data)}
        )
        assert completed(world, final)
        found = inspected(olivia, final)
        assert found["evaluation"]["named_report"] == "equal"
        assert found["evaluation"]["compared"] == run["evaluation"]["compared"]
        assert found["evaluation"]["passed"]

    def test_a_report_of_something_else_does_not_pass(
        self, world: CapsuleWorld, olivia: httpx.Client
    ) -> None:
        other = world.capsule("proud-paul", items=30, seed=9)
        world.prepare(other)
        run = evaluated(olivia, other)
        data = olivia.get(f"/v1/evaluations/{run['id']}/report").content
        borrowed = world.capsule(
            "proud-paul", items=31, parts={"report.json": ("evaluation_report", "application/json", data)}
        )
        for part in borrowed.manifest.parts:
            upload(olivia, part.digest, borrowed.data[part.name])
        assert completed(world, borrowed)
        found = inspected(olivia, borrowed)
        assert found["evaluation"]["named_report"] == "differs"
        assert found["evaluation"]["passed"] is False

    def test_a_secret_in_a_prompt_is_found_and_never_repeated(
        self, world: CapsuleWorld, olivia: httpx.Client
    ) -> None:
        secret = "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEowIBAAKCAQEAxGZ\n-----END RSA PRIVATE KEY-----\n"
        prompt = json.dumps({"system": secret}).encode()
        leaky = world.capsule("leaky-lou", parts={"prompts.json": ("prompts", "application/json", prompt)})
        world.prepare(leaky)
        assert completed(world, leaky)
        found = inspected(olivia, leaky)
        assert found["scan"]["verdict"] == "block"
        assert "MIIEowIBAAKCAQEAxGZ" not in json.dumps(found["scan"])

    def test_inspected_twice_at_once_it_is_written_down_once(
        self, world: CapsuleWorld, olivia: httpx.Client
    ) -> None:
        twice = world.capsule("double-dan", items=20)
        world.prepare(twice)
        assert completed(world, twice)
        found = inspected(olivia, twice)
        told = {"scan": found["scan"], "evaluation": found["evaluation"]}
        again = capsules.RecordInspection(capsule_id=twice.address, **told)
        answer = world.do(capsules.record_inspection, again, INSPECTOR)
        assert answer.event_count == 0

    def test_a_new_version_is_compared_with_the_one_on_show(
        self, world: CapsuleWorld, stage: Stage, olivia: httpx.Client
    ) -> None:
        first = world.capsule("old-otto", items=40)
        path = stage.exported(first)
        assert "comparison" not in stage.inspected(path)["evaluation"]
        stage.approved(first)
        stage.signed(first, "ada", "ben")
        assert stage.post(OLIVIA, f"{path}/publish").status_code == 200
        shorter = ("prompts", "application/json", b'{"system": "Answer from memory."}')
        second = world.capsule("old-otto", "1.1.0", items=40, parts={"prompts.json": shorter})
        for part in second.manifest.parts:
            upload(olivia, part.digest, second.data[part.name])
        assert completed(world, second)
        compared = inspected(olivia, second)["evaluation"]["comparison"]
        assert compared["baseline"] == stage.get(OLIVIA, path).json()["evaluation"]["compared"]
        assert (compared["paired"], compared["lost"], compared["regressed"]) == (40, 0, False)


class TestAProcessOfItsOwn:
    def test_it_finds_what_this_process_finds(self) -> None:
        capsule = a_capsule(items=50, dimension=24)
        apart = run_apart(capsule.manifest, "baseline", IN_FORCE, parts_of(capsule), scans=False)
        again = run_apart(capsule.manifest, "baseline", IN_FORCE, parts_of(capsule), scans=False)
        assert apart.compared == again.compared == read_report(apart.report).compared

    def test_a_bundle_that_is_damaged_is_refused_by_its_code(self) -> None:
        capsule = a_capsule(parts={"memory.parquet": ("memory", "application/octet-stream", b"PAR1" * 40)})
        with pytest.raises(MemoryBundleInvalidError):
            run_apart(capsule.manifest, "baseline", IN_FORCE, parts_of(capsule), scans=False)

    def test_one_that_takes_too_long_is_ended(self) -> None:
        capsule = a_capsule()
        with pytest.raises(EvaluationFailedError):
            run_apart(capsule.manifest, "baseline", IN_FORCE, parts_of(capsule), scans=False, seconds_max=0)

    def test_one_that_nobody_waits_for_is_ended(self) -> None:
        capsule = a_capsule()
        with pytest.raises(ShuttingDownError):
            run_apart(
                capsule.manifest, "baseline", IN_FORCE, parts_of(capsule), scans=False, stopped=lambda: True
            )
