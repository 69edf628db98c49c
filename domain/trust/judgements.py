"""What policies answer, and how a decision gets its answers.

A policy is asked with an input that the use case itself builds from what it reads, so the answer is about exactly that
state and no other. The use case asks for a judgement by its input; where it was not given yet, the decision stops with
`Undecided`, whoever carries the command out has the policy engine judge that input, and the decision is made anew. The
engine may be in this process or far away: no decision waits for it, and none is made without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from domain.canonical import sealed
from domain.errors import PolicyDeniedError

INPUT_CONTEXT = "soma/policy-input/v1"
PACKAGES = ("soma.export", "soma.import", "soma.publish", "soma.rental")


class Judgement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a policy answered to one input; the digests say which policy and which input."""

    package: str
    allow: bool
    reasons: list[str]
    obligations: list[str]
    policy_digest: str
    input_digest: str
    engine: str


class Undecided(Exception):
    """A decision needs a judgement that it was not given."""

    def __init__(self, package: str, question: dict[str, Any], digest: str) -> None:
        super().__init__(package)
        self.package = package
        self.question = question
        self.digest = digest


Judgements = Mapping[tuple[str, str], Judgement]


def judged(judgements: Judgements, package: str, question: dict[str, Any]) -> Judgement:
    """Give the judgement of a policy on an input, or stop the decision until there is one."""
    _, digest = sealed(INPUT_CONTEXT, question)
    found = judgements.get((package, digest))
    if found is None:
        raise Undecided(package, question, digest)
    return found


def check_allowed(judgement: Judgement) -> Judgement:
    """Refuse what a policy does not allow.

    Errors: policy_denied.
    """
    if not judgement.allow:
        raise PolicyDeniedError(
            f"{judgement.package} does not allow this: {'; '.join(judgement.reasons) or 'no rule allows it'}",
            package=judgement.package,
            reasons=judgement.reasons,
            policy_digest=judgement.policy_digest,
            input_digest=judgement.input_digest,
        )
    return judgement
