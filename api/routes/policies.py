"""Policies over HTTP: which are in force, what they are asked, and what they would say."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import Response
from pydantic import Field

from api.http import READ_PROBLEMS, JsonRoute, answers, caller, json_response, object_of
from domain.canonical import sealed
from domain.errors import InvalidError, PolicyNotFoundError, PolicyUnavailableError
from domain.fields import Command
from domain.trust.judgements import INPUT_CONTEXT, PACKAGES
from domain.trust.questions import SCHEMA, question_faults, question_schema
from ops.rego import PolicyEngine

router = APIRouter(prefix="/v1/policies", tags=["policies"], route_class=JsonRoute)

KNOWN = [Depends(caller)]
Package = Annotated[str, Path(max_length=64, pattern=r"^[a-z][a-z.]*$", examples=["soma.publish"])]

_POLICY = object_of(package="string", digest=["string", "null"], available="boolean", why=["string", "null"])
_TEXT = object_of(package="string", digest="string", text="string", input_schema="string")
_LINES = {"type": "array", "items": {"type": "string"}}
_JUDGEMENT = object_of(
    package="string",
    allow="boolean",
    reasons=_LINES,
    obligations=_LINES,
    policy_digest="string",
    input_digest="string",
    engine="string",
)


class EvaluatePolicy(Command):
    """An input, in the form its package is asked with."""

    input: dict[str, Any] = Field(description="See docs/schemas/policy_input.schema.json.")


def engine_of(request: Request) -> PolicyEngine:
    """Give the engine that judges."""
    found: PolicyEngine = request.app.state.engine
    return found


@router.get("", responses=answers(object_of(items={"type": "array", "items": _POLICY})), dependencies=KNOWN)
async def list_policies(request: Request) -> Response:
    """List the policies with their addresses; one that cannot be asked is listed as such."""
    return json_response({"items": [await _shown(engine_of(request), package) for package in PACKAGES]})


@router.get("/schema", responses=answers({"type": "object"}), dependencies=KNOWN)
async def get_policy_input_schema() -> Response:
    """Show the JSON Schema of what policies are asked."""
    return json_response(question_schema())


@router.get("/{package}", responses=answers(_TEXT), dependencies=KNOWN)
async def get_policy(package: Package, request: Request) -> Response:
    """Show the text of a policy; its address is `soma/policy/v1` over these bytes."""
    policy = await engine_of(request).policy(_known(package))
    shown = {"package": package, "digest": policy.digest, "text": policy.text, "input_schema": SCHEMA}
    return json_response(shown, headers={"ETag": f'"{policy.digest}"'})


@router.post("/{package}/evaluate", responses={**READ_PROBLEMS, **answers(_JUDGEMENT)}, dependencies=KNOWN)
async def evaluate_policy(package: Package, asked: EvaluatePolicy, request: Request) -> Response:
    """Say what a policy answers to an input, and write nothing.

    The input is the caller's own, so the answer binds nobody: a decision asks with what it reads from the log itself.
    """
    if faults := question_faults(_known(package), asked.input):
        raise InvalidError(f"this is not what {package} is asked: {faults[0]}", faults=faults)
    _, digest = sealed(INPUT_CONTEXT, asked.input)
    judgement = await engine_of(request).judge(package, asked.input, digest)
    return json_response(msgspec.to_builtins(judgement))


def _known(package: str) -> str:
    if package not in PACKAGES:
        raise PolicyNotFoundError(package=package, known=list(PACKAGES))
    return package


async def _shown(engine: PolicyEngine, package: str) -> dict[str, Any]:
    try:
        policy = await engine.policy(package)
    except PolicyUnavailableError as fault:
        return {"package": package, "digest": None, "available": False, "why": str(fault)}
    return {"package": package, "digest": policy.digest, "available": True, "why": None}
