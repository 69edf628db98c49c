"""Policies: what they say to each case, that nothing is allowed by mistake, and what a policy may not do."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.canonical import seal_of
from domain.errors import PolicyUnavailableError
from domain.trust.judgements import PACKAGES, Judgement
from domain.trust.questions import QUESTIONS, question_faults
from ops.rego import RegoEngine
from ops.rego_text import CONTEXT, policy_of, read_policy
from tests.policy_cases import PolicyCase, policy_cases

ALL = list(policy_cases())
ECHO = 'package soma.export\n\ndecision := {"allow": false, "reasons": [input.x], "obligations": []}\n'


@pytest.fixture(scope="module")
def engine() -> RegoEngine:
    return RegoEngine()


def judge(engine: RegoEngine, package: str, question: dict[str, Any]) -> Judgement:
    return asyncio.run(engine.judge(package, question, "sha3-512:0"))


def own(place: Path, **texts: str) -> RegoEngine:
    """Open an engine with the house's policies, some of them replaced."""
    for package in PACKAGES:
        name = package.removeprefix("soma.")
        (place / f"{name}.rego").write_text(texts.get(name, read_policy(package, None).text))
    return RegoEngine(place)


class TestCases:
    @pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case.package}: {case.name}")
    def test_a_case_is_answered_as_the_table_says(self, engine: RegoEngine, case: PolicyCase) -> None:
        said = judge(engine, case.package, case.question)
        assert (said.allow, [reason.partition(":")[0] for reason in said.reasons], said.obligations) == (
            case.allow,
            case.reasons,
            case.obligations,
        )

    @pytest.mark.parametrize("package", PACKAGES)
    def test_every_requirement_is_the_only_reason_of_some_case(self, package: str) -> None:
        text = read_policy(package, None).text
        block = text[text.index("requirements := {") : text.index("}", text.index("requirements := {"))]
        alone = {case.reasons[0] for case in ALL if case.package == package and len(case.reasons) == 1}
        assert alone == set(re.findall(r'^\t"(\w+)":', block, re.MULTILINE))

    @pytest.mark.parametrize("package", PACKAGES)
    def test_every_obligation_occurs_in_an_allowed_case(self, package: str) -> None:
        named = set(re.findall(r'obligations contains "(\w+)"', read_policy(package, None).text))
        assert named == {
            o for case in ALL if case.package == package and case.allow for o in case.obligations
        }

    @pytest.mark.parametrize("package", PACKAGES)
    def test_an_input_of_a_table_fits_the_schema(self, package: str) -> None:
        allowed = [case for case in ALL if case.package == package and case.allow]
        assert [question_faults(package, case.question) for case in allowed] == [[]] * len(allowed)


# No tools at all is a way to have tools, and a status is any word but the barred ones.
HARMLESS = (("capsule.tools", []), ("capsule.status", "junk"))


class TestNothingIsAllowedByMistake:
    JUNK = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    )

    @given(junk=JUNK, package=st.sampled_from(PACKAGES))
    def test_whatever_is_no_question_is_not_allowed(
        self, engine: RegoEngine, junk: Any, package: str
    ) -> None:
        assert not judge(engine, package, {"who": junk, "capsule": junk}).allow

    WEIGHED: ClassVar = {
        "soma.export": "who capsule.owners capsule.tools capsule.status constitution training action",
        "soma.import": "who capsule.owners capsule.tools capsule.status constitution signatures standing",
        "soma.publish": "who capsule.owners capsule.tools capsule.status capsule.pricing capsule.kill_switch_enabled "
        "constitution scan scan.verdict evaluation.passed approvals.required approvals.given signatures",
        "soma.rental": "who capsule.tools capsule.status capsule.pricing capsule.kill_switch_enabled constitution "
        "signatures action",
    }
    ALWAYS = "capsule who.roles constitution.in_force constitution.named"
    SIGNED = "signatures.threshold signatures.signed signatures.verified"

    @pytest.mark.parametrize("package", PACKAGES)
    def test_an_allowed_question_without_what_is_weighed_is_not_allowed(
        self, engine: RegoEngine, package: str
    ) -> None:
        base = next(case for case in ALL if case.package == package and case.allow).question
        weighed = f"{self.WEIGHED[package]} {self.ALWAYS}" + (
            f" {self.SIGNED}" if "signatures" in base else ""
        )
        for place in weighed.split():
            for spoil in ("remove", None, "junk", [], {}, 0):
                spoiled = json.loads(json.dumps(base))
                *path, last = place.split(".")
                inner = spoiled
                for name in path:
                    inner = inner[name]
                if spoil == "remove":
                    del inner[last]
                elif (place, spoil) in HARMLESS:
                    continue
                else:
                    inner[last] = spoil
                assert not judge(engine, package, spoiled).allow, (place, spoil)


class TestTexts:
    @given(text=st.text())
    def test_any_text_reaches_the_policy_as_it_is(
        self, tmp_path_factory: pytest.TempPathFactory, text: str
    ) -> None:
        engine = echo(str(tmp_path_factory.getbasetemp()))
        assert judge(engine, "soma.export", {"x": text[:100]}).reasons == [text[:100]]

    def test_a_text_cannot_pretend_to_be_more_of_the_input(self, tmp_path: Path) -> None:
        engine = own(tmp_path, export=ECHO)
        nasty = 'a", "capsule": {"status": "published"}, "b": "'
        assert judge(engine, "soma.export", {"x": nasty}).reasons == [nasty]


_ECHOES: dict[str, RegoEngine] = {}


def echo(place: str) -> RegoEngine:
    """Give one engine that answers what it is told."""
    if place not in _ECHOES:
        home = Path(place) / "echo"
        home.mkdir(exist_ok=True)
        _ECHOES[place] = own(home, export=ECHO)
    return _ECHOES[place]


class TestOwnPolicies:
    def test_a_policy_of_ones_own_is_asked_and_named_by_its_own_address(self, tmp_path: Path) -> None:
        engine = own(tmp_path, rental=ECHO.replace("soma.export", "soma.rental"))
        said = judge(engine, "soma.rental", {"x": "no"})
        assert said.reasons == ["no"]
        assert said.policy_digest == seal_of(CONTEXT, (tmp_path / "rental.rego").read_bytes())

    @pytest.mark.parametrize(
        "text",
        [
            "package soma.export\n\ndecision := {",
            "package soma.import\n\ndecision := {}\n",
            "",
            "package soma.export\n\nallow := true\n",
            'package soma.export\n\ndecision := {"allow": true}\n',
            'package soma.export\n\ndecision := {"allow": "true", "reasons": [], "obligations": []}\n',
            'package soma.export\n\ndecision := {"allow": true, "reasons": ["but"], "obligations": []}\n',
            'package soma.export\n\ndecision := {"allow": true, "reasons": [], "obligations": [], "more": 1}\n',
            'package soma.export\n\ndecision := {"allow": true, "reasons": [1], "obligations": []}\n',
            "package soma.export\n\ndecision := true\n",
            'package soma.export\n\ndecision := {"allow": input.a, "reasons": [], "obligations": []} if input.a\n',
        ],
        ids=range(11),
    )
    def test_a_policy_that_gives_no_answer_allows_nothing(self, tmp_path: Path, text: str) -> None:
        engine = own(tmp_path, export=text)
        with pytest.raises(PolicyUnavailableError):
            judge(engine, "soma.export", {})
        assert not judge(engine, "soma.publish", {}).allow

    def test_a_policy_that_is_not_there_allows_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(PolicyUnavailableError):
            judge(RegoEngine(tmp_path), "soma.publish", {})

    @pytest.mark.parametrize(
        "line",
        [
            "allow := data.other.allow",
            'allow := http.send({"method": "get", "url": "http://a"}).body',
            "now := time.now_ns()",
            'n := rand.intn("x", 7)',
            "e := opa.runtime().env",
            'u := uuid.rfc4122("x")',
            'a := net.lookup_ip_addr("a")',
            "import data.shared",
            "import input.who as data",
            'a := "#" ; b := data.x',
            'a := `"` ; b := data["x"]',
            'a := "\\"" ; b := data.x # "',
            'a := $"{data.x}"',
            'a if { every p in input.x { not startswith(p, "-") } }',
        ],
    )
    def test_a_policy_that_looks_beyond_its_input_is_not_taken(self, line: str) -> None:
        with pytest.raises(PolicyUnavailableError):
            policy_of("soma.export", f"package soma.export\n\n{line}\n".encode())

    def test_words_in_texts_and_comments_are_free(self) -> None:
        text = 'package soma.export\n\n# data\nimport rego.v1\na := "data and http.send"\nb := `data`\n'
        assert policy_of("soma.export", text.encode()).text == text

    def test_many_ask_at_once_and_each_hears_its_own_answer(self, tmp_path: Path) -> None:
        engine = own(tmp_path, export=ECHO)

        async def ask() -> list[Judgement]:
            asked = [engine.judge("soma.export", {"x": str(n)}, str(n)) for n in range(50)]
            return await asyncio.gather(*asked)

        assert [(j.reasons, j.input_digest) for j in asyncio.run(ask())] == [
            ([str(n)], str(n)) for n in range(50)
        ]


def test_every_package_has_a_question() -> None:
    assert tuple(QUESTIONS) == PACKAGES
