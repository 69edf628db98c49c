"""Commands that need a policy's answer: decided, stopped where the answer is missing, and decided again with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pydantic import BaseModel

from domain.errors import ConflictError
from domain.ledger import Answer, Caller, Ledger, UseCase
from domain.trust.judgements import Judgement, Undecided

ROUNDS_MAX = 8


class Engine(Protocol):
    """What judges: an embedded Rego engine or a remote OPA."""

    async def judge(self, package: str, question: dict[str, Any], digest: str) -> Judgement:
        """Judge an input; it never allows what it cannot judge.

        Errors: policy_unavailable.
        """


async def act_judged(
    ledger: Ledger,
    engine: Engine,
    use_case: UseCase,
    command: BaseModel,
    caller: Caller,
    *,
    given: Mapping[str, Any] | None = None,
    **how: Any,
) -> Answer:
    """Carry a command out whose use case takes `judgements`, and beside them what is `given`.

    Errors: those of `Ledger.act`, policy_unavailable.
    """
    judgements: dict[tuple[str, str], Judgement] = {}

    async def gather() -> dict[str, Any]:
        return {"judgements": judgements, **(given or {})}

    for _ in range(ROUNDS_MAX):
        try:
            return await ledger.act(use_case, command, caller, gather=gather, **how)
        except Undecided as open_question:
            key = (open_question.package, open_question.digest)
            judgements[key] = await engine.judge(
                open_question.package, open_question.question, open_question.digest
            )
    raise ConflictError("what the policy is asked about changes faster than it answers; send it again")
