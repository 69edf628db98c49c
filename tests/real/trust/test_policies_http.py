"""Policies over HTTP: shown with their addresses, asked without a trace in the log, and never allowing by accident."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from domain.canonical import seal_of, sealed
from domain.ledger import Caller
from domain.trust.judgements import INPUT_CONTEXT, PACKAGES
from domain.trust.questions import question_faults
from ops.rego_text import CONTEXT
from tests.conftest import ROOT
from tests.policy_cases import policy_cases
from tests.real.service import Service, serving, settings_on
from tests.real.trust.conftest import World, lending

AUTHOR = Caller("ada", "acme", frozenset(["owner"]))
ALLOWED = {case.package: case for case in reversed(list(policy_cases())) if case.allow}
DENIED = {
    case.package: case
    for case in reversed(list(policy_cases()))
    if len(case.reasons) == 1 and not question_faults(case.package, case.question)
}


@pytest.fixture(scope="module")
def service(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run one service for all tests of this file."""
    place = tmp_path_factory.mktemp("policies")
    with lending(server_url, template_database) as url, serving(settings_on(url, place)) as opened:
        yield opened


@pytest.fixture
def asking(service: Service) -> Iterator[World]:
    world = World(service)
    yield world
    world.close()


class TestShown:
    def test_every_policy_is_listed_with_its_address(self, asking: World) -> None:
        items = asking.read(AUTHOR, "/v1/policies")["items"]
        assert [(item["package"], item["available"], item["why"]) for item in items] == [
            (package, True, None) for package in PACKAGES
        ]

    @pytest.mark.parametrize("package", PACKAGES)
    def test_the_text_that_is_shown_has_the_address_that_is_listed(self, asking: World, package: str) -> None:
        shown = asking.read(AUTHOR, f"/v1/policies/{package}")
        listed = {item["package"]: item["digest"] for item in asking.read(AUTHOR, "/v1/policies")["items"]}
        assert seal_of(CONTEXT, shown["text"].encode()) == shown["digest"] == listed[package]

    def test_the_schema_is_the_published_one(self, asking: World) -> None:
        schema = asking.read(AUTHOR, "/v1/policies/schema")
        assert schema == json.loads((ROOT / "docs" / "schemas" / "policy_input.schema.json").read_text())

    def test_a_policy_that_is_none_is_not_found(self, asking: World) -> None:
        assert asking.heard(AUTHOR, "GET", "/v1/policies/soma.other") == (404, "policy_not_found")
        body = {"input": {}}
        assert asking.heard(AUTHOR, "POST", "/v1/policies/soma.other/evaluate", body) == (
            404,
            "policy_not_found",
        )


class TestAsked:
    @pytest.mark.parametrize("package", PACKAGES)
    def test_an_answer_comes_without_a_record(self, service: Service, asking: World, package: str) -> None:
        before = service.run(service.runtime.reader.size())
        for case in (ALLOWED[package], DENIED[package]):
            said = asking.done(AUTHOR, f"/v1/policies/{package}/evaluate", {"input": case.question})
            assert (said["allow"], [reason.partition(":")[0] for reason in said["reasons"]]) == (
                case.allow,
                case.reasons,
            )
            assert said["input_digest"] == sealed(INPUT_CONTEXT, case.question)[1]
        assert service.run(service.runtime.reader.size()) == before

    def test_answers_are_counted_by_what_was_missing(self, asking: World) -> None:
        case = DENIED["soma.publish"]
        series = f'soma_policy_reasons_total{{package="soma.publish",rule="{case.reasons[0]}"}}'
        before = asking.counted(series)
        asking.done(AUTHOR, "/v1/policies/soma.publish/evaluate", {"input": case.question})
        assert asking.counted(series) == before + 1

    @pytest.mark.parametrize(
        "spoiled", [{}, {"who": None}, {"more": 1}, {"environment": {"day": 1.5}}, {"capsule": {"bytes": 2**60}}],
        ids=range(5),
    )  # fmt: skip
    def test_what_is_no_question_is_refused(self, asking: World, spoiled: dict[str, object]) -> None:
        question = ALLOWED["soma.publish"].question | spoiled if spoiled else {}
        body = {"input": question}
        heard = asking.heard(AUTHOR, "POST", "/v1/policies/soma.publish/evaluate", body)
        assert heard == (400, "invalid_request")

    def test_without_a_token_nothing_is_shown_or_answered(self, service: Service) -> None:
        with service.client() as nobody:
            assert nobody.get("/v1/policies").status_code == 401
            assert nobody.post("/v1/policies/soma.publish/evaluate", json={"input": {}}).status_code == 401


class TestAway:
    def test_a_policy_that_does_not_compile_is_told_and_answers_nothing(
        self, database_url: str, tmp_path: Path
    ) -> None:
        own = tmp_path / "own"
        shutil.copytree(ROOT / "ops" / "policies", own)
        (own / "publish.rego").write_text("package soma.publish\n\ndecision := {")
        (own / "rental.rego").unlink()
        with serving(settings_on(database_url, tmp_path / "data", policy_dir=own)) as service:
            world = World(service)
            items = {item["package"]: item for item in world.read(AUTHOR, "/v1/policies")["items"]}
            assert [items[p]["available"] for p in PACKAGES] == [True, True, False, False]
            for package in ("soma.publish", "soma.rental"):
                body = {"input": ALLOWED[package].question}
                heard = world.heard(AUTHOR, "POST", f"/v1/policies/{package}/evaluate", body)
                assert heard == (503, "policy_unavailable")
                assert "why" in items[package]
            assert world.counted('soma_policy_judgements_total{outcome="unavailable",package="soma.rental"}')
            world.close()
