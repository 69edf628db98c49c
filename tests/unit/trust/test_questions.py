"""What policies are asked: fixed forms, the same state as the same question, and a schema that is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.canonical import encode_record, sealed
from domain.trust.judgements import INPUT_CONTEXT, PACKAGES
from domain.trust.questions import (
    SCHEMA_PATH,
    ApprovalFacts,
    Asker,
    CapsuleFacts,
    EvaluationFacts,
    MemoryFacts,
    ModelFacts,
    PriceFacts,
    ScanCounts,
    ScanFacts,
    SignatureFacts,
    StandingFacts,
    ToolFacts,
    TrainingFacts,
    export_question,
    import_question,
    publish_question,
    question_faults,
    question_schema,
    rental_question,
    tools_named,
)
from tests.conftest import ROOT

NOW = "2026-11-21T13:45:06.000001Z"
WHO = Asker.of("ada", "acme", ["provider", "owner", "owner"])
CAPSULE = CapsuleFacts(
    address="sha3-512:" + "ab" * 64,
    persona_id="librarian",
    version="1.2.0",
    tenant="acme",
    owners=["ada"],
    tools=[ToolFacts(tool="search", access_scope="read", required=True)],
    model=ModelFacts(model_box_id="box-7", provider="acme"),
    memory=MemoryFacts(item_count=10, dimension=384, bytes=1_000),
    pricing=[PriceFacts(model="rental", amount="4.50", currency="EUR")],
    constitution="sha3-512:" + "c0" * 64,
    kill_switch_enabled=True,
)
SIGNED = SignatureFacts(threshold=2, signed=2, verified=True)


def questions(now: str = NOW, who: Asker = WHO) -> dict[str, dict[str, Any]]:
    """Ask every package once."""
    asked: dict[str, Any] = {"who": who, "capsule": CAPSULE, "in_force": CAPSULE.constitution, "now": now}
    return {
        "soma.export": export_question(**asked, training=TrainingFacts(on=False, fence_fresh=True)),
        "soma.import": import_question(**asked, signatures=SIGNED, standing=StandingFacts()),
        "soma.publish": publish_question(
            **asked,
            scan=ScanFacts(verdict="warn", counts=ScanCounts(warn=2)),
            evaluation=EvaluationFacts(passed=True),
            approvals=ApprovalFacts(required=1, given=1, override=False),
            signatures=SIGNED,
        ),
        "soma.rental": rental_question(**asked, signatures=SIGNED),
    }


@pytest.mark.parametrize("package", PACKAGES)
class TestEveryQuestion:
    def test_it_fits_its_own_schema_and_no_other(self, package: str) -> None:
        question = questions()[package]
        assert question_faults(package, question) == []
        assert all(question_faults(other, question) for other in PACKAGES if other != package)

    def test_it_can_be_sealed_so_it_holds_no_fractions(self, package: str) -> None:
        data, _ = sealed(INPUT_CONTEXT, questions()[package])
        assert json.loads(data) == questions()[package]

    def test_it_is_the_same_all_day_and_another_tomorrow(self, package: str) -> None:
        morning = questions("2026-11-21T00:00:00.000000Z")[package]
        evening = questions("2026-11-21T23:59:59.999999Z")[package]
        assert morning == evening != questions("2026-11-22T00:00:00.000000Z")[package]

    def test_the_order_of_roles_does_not_matter(self, package: str) -> None:
        other = Asker.of("ada", "acme", ["owner", "provider"])
        assert encode_record(questions(who=other)[package]) == encode_record(questions()[package])

    def test_a_member_too_many_or_too_few_is_told(self, package: str) -> None:
        question = questions()[package]
        assert question_faults(package, question | {"more": 1})
        assert question_faults(
            package, {name: value for name, value in question.items() if name != "capsule"}
        )
        assert question_faults(package, question | {"who": question["who"] | {"roles": "owner"}})


class TestToolsNamed:
    @pytest.mark.parametrize(
        ("notes", "found"),
        [
            ("I allow shell.run and mail", ["mail", "shell.run"]),
            ("shell.run.", ["shell.run"]),
            ("mailbox and shell.runner", []),
            ("", []),
            ("(mail), 'shell.run': fine", ["mail", "shell.run"]),
        ],
    )
    def test_a_tool_is_named_as_a_word_of_its_own(self, notes: str, found: list[str]) -> None:
        assert tools_named([notes], ["mail", "shell.run"]) == found

    @given(st.lists(st.text(max_size=60)), st.lists(st.text(max_size=20)))
    def test_only_tools_that_are_there_are_named(self, notes: list[str], tools: list[str]) -> None:
        assert set(tools_named(notes, tools)) <= set(tools)


class TestSchema:
    def test_the_printed_schema_is_the_one_of_the_code(self) -> None:
        assert json.loads((ROOT / SCHEMA_PATH).read_text()) == question_schema()

    def test_it_names_every_package(self) -> None:
        assert [one["title"] for one in question_schema()["oneOf"]] == list(PACKAGES)

    def test_nothing_beyond_its_members_is_allowed(self) -> None:
        shapes = [shape for shape in question_schema()["$defs"].values() if shape["type"] == "object"]
        assert all(shape["additionalProperties"] is False for shape in shapes)
