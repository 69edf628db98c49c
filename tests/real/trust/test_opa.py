"""Policies judged by a real Open Policy Agent: the same answers, and nothing allowed by accident."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from domain.errors import PolicyUnavailableError
from domain.trust.judgements import PACKAGES, Judgement
from ops.opa import RemoteOpa
from ops.rego import RegoEngine, open_engine
from ops.settings import Settings
from tests.conftest import ROOT
from tests.policy_cases import PolicyCase, policy_cases
from tests.real.trust.opa_server import opa_server, program

pytestmark = pytest.mark.slow

POLICIES = ROOT / "ops" / "policies"
ALL = list(policy_cases())
ALLOWED = {case.package: case for case in reversed(ALL) if case.allow}
TEXTS = sorted(POLICIES.glob("*.rego"))


@pytest.fixture(scope="module")
def opa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run OPA with our policies."""
    with opa_server(tmp_path_factory.mktemp("opa"), *map(str, TEXTS)) as url:
        yield url


@pytest.fixture
def changeable(tmp_path: Path) -> Iterator[str]:
    """Run an OPA of the test's own."""
    with opa_server(tmp_path, *map(str, TEXTS)) as url:
        yield url


def ask(url: str, *questions: tuple[str, dict[str, Any]], token: str | None = None) -> list[Judgement]:
    """Ask over one connection, one question after the other."""

    async def asked() -> list[Judgement]:
        settings = Settings(opa_url=url, opa_token=SecretStr(token) if token else None)
        engine = open_engine(settings)
        assert isinstance(engine, RemoteOpa)
        try:
            return [await engine.judge(package, question, "sha3-512:1") for package, question in questions]
        finally:
            await engine.close()

    return asyncio.run(asked())


def ask_inside(case: PolicyCase) -> Judgement:
    return asyncio.run(RegoEngine().judge(case.package, case.question, "sha3-512:1"))


class TestTheSameAnswers:
    def test_every_case_is_answered_as_the_table_says(self, opa: str) -> None:
        said = ask(opa, *((case.package, case.question) for case in ALL))
        told = [
            (case.name, answer.allow, [r.partition(":")[0] for r in answer.reasons], answer.obligations)
            for case, answer in zip(ALL, said, strict=True)
        ]
        assert told == [(case.name, case.allow, case.reasons, case.obligations) for case in ALL]

    @pytest.mark.parametrize("package", PACKAGES)
    def test_both_engines_say_the_same_to_the_letter_and_name_one_policy(
        self, opa: str, package: str
    ) -> None:
        for case in [case for case in ALL if case.package == package]:
            (there,) = ask(opa, (package, case.question))
            here = ask_inside(case)
            assert (there.allow, there.reasons, there.obligations, there.policy_digest, there.input_digest) == (
                here.allow, here.reasons, here.obligations, here.policy_digest, here.input_digest
            )  # fmt: skip
            assert there.engine == "opa"
            assert here.engine.startswith("regopy")

    def test_opa_finds_nothing_to_complain_of_in_our_policies(self) -> None:
        for words in (["check", "--strict"], ["fmt", "--list", "--fail"]):
            run = subprocess.run([program(), *words, *map(str, TEXTS)], capture_output=True, text=True)
            assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


class TestNothingByAccident:
    def test_nobody_there_allows_nothing(self) -> None:
        case = ALLOWED["soma.publish"]
        with pytest.raises(PolicyUnavailableError, match="does not answer"):
            ask("http://127.0.0.1:9", (case.package, case.question))

    def test_a_policy_that_opa_does_not_hold_allows_nothing(self, changeable: str) -> None:
        case = ALLOWED["soma.publish"]
        for module in httpx.get(f"{changeable}/v1/policies", trust_env=False).json()["result"]:
            if "package soma.publish" in module["raw"]:
                httpx.delete(f"{changeable}/v1/policies/{module['id']}", trust_env=False).raise_for_status()
        with pytest.raises(PolicyUnavailableError, match="0 modules"):
            ask(changeable, (case.package, case.question))
        other = ALLOWED["soma.rental"]
        assert ask(changeable, (other.package, other.question))[0].allow

    def test_two_modules_of_one_package_allow_nothing(self, changeable: str) -> None:
        case = ALLOWED["soma.rental"]
        text = "package soma.rental\n\nhelpful := true\n"
        httpx.put(f"{changeable}/v1/policies/more", content=text, trust_env=False).raise_for_status()
        with pytest.raises(PolicyUnavailableError, match="2 modules"):
            ask(changeable, (case.package, case.question))

    @pytest.mark.parametrize(
        "text",
        [
            'package soma.rental\n\ndecision := {"allow": true, "reasons": ["but"], "obligations": []}\n',
            "package soma.rental\n\ndecision := true\n",
            "package soma.rental\n\nallow := true\n",
            'package soma.rental\n\ndecision := {"allow": data.all, "reasons": [], "obligations": []}\n',
            'package soma.rental\n\ndecision := {"allow": time.now_ns() > 0, "reasons": [], "obligations": []}\n',
        ],
        ids=["contradiction", "bare", "undefined", "data", "clock"],
    )
    def test_a_policy_of_another_form_allows_nothing(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "rental.rego").write_text(text)
        case = ALLOWED["soma.rental"]
        with (
            opa_server(tmp_path, str(tmp_path / "rental.rego")) as url,
            pytest.raises(PolicyUnavailableError),
        ):
            ask(url, (case.package, case.question))

    def test_a_server_that_asks_for_a_token_is_given_it(self, tmp_path: Path) -> None:
        rule = tmp_path / "authz.rego"
        rule.write_text(
            'package system.authz\n\ndefault allow := false\n\nallow if input.identity == "let-me"\n'
        )
        words = ["--authentication=token", "--authorization=basic", str(rule), *map(str, TEXTS)]
        case = ALLOWED["soma.publish"]
        with opa_server(tmp_path, *words) as url:
            assert ask(url, (case.package, case.question), token="let-me")[0].allow
            for token in (None, "another"):
                with pytest.raises(PolicyUnavailableError, match="401"):
                    ask(url, (case.package, case.question), token=token)

    def test_a_changed_policy_is_asked_from_then_on_and_has_another_address(self, tmp_path: Path) -> None:
        own = tmp_path / "own"
        shutil.copytree(POLICIES, own)
        texts = sorted(map(str, own.glob("*.rego")))
        case = ALLOWED["soma.rental"]
        with opa_server(tmp_path, "--watch", *texts) as url:
            (before,) = ask(url, (case.package, case.question))
            changed = (own / "rental.rego").read_text().replace("count(reasons) == 0", "count(reasons) < 0")
            modules = httpx.get(f"{url}/v1/policies", trust_env=False).json()["result"]
            name = next(module["id"] for module in modules if "package soma.rental" in module["raw"])
            httpx.put(f"{url}/v1/policies/{name}", content=changed, trust_env=False).raise_for_status()
            (after,) = ask(url, (case.package, case.question))
        assert (before.allow, after.allow) == (True, False)
        assert before.policy_digest != after.policy_digest
