"""The regression cases beside the policies: one table for each package, asked of every engine there is."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.conftest import ROOT

CASES = ROOT / "ops" / "policies" / "cases"


class PolicyCase(NamedTuple):
    """One input, and what the policy of a package has to answer to it."""

    package: str
    name: str
    question: dict[str, Any]
    allow: bool
    reasons: list[str]
    obligations: list[str]

    @property
    def is_whole(self) -> bool:
        """Tell whether nothing was left out or altered in form, so that the input fits its schema."""
        return "is not there" not in self.name


def policy_cases() -> Iterator[PolicyCase]:
    """Read every case of every package."""
    for path in sorted(CASES.glob("*.json")):
        table = json.loads(path.read_text())
        for case in table["cases"]:
            question = copy.deepcopy(table["input"])
            for place, value in case.get("change", {}).items():
                _at(question, place)[place.rpartition(".")[2]] = value
            for place in case.get("remove", []):
                del _at(question, place)[place.rpartition(".")[2]]
            yield PolicyCase(
                table["package"], case["name"], question, case["allow"], case["reasons"], case["obligations"]
            )


def _at(question: dict[str, Any], place: str) -> Any:
    for name in place.split(".")[:-1]:
        question = question[name]
    return question
