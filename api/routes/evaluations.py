"""Evaluations over HTTP: the suites, a run on the parts of a manifest, its report, and two reports side by side."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from api.http import (
    PUBLIC,
    READ_PROBLEMS,
    Cursor,
    Id,
    JsonRoute,
    Limit,
    Open,
    Sent,
    Who,
    act,
    answers,
    json_response,
    lists,
    object_of,
    page_of,
    reads,
    shows,
)
from api.routes.capsules import CapsuleId
from api.routes.market import listed, seen
from domain.errors import (
    CapsuleNotFoundError,
    ConflictError,
    EvaluationNotFoundError,
    EvaluationSuiteNotFoundError,
    NotInspectedError,
)
from domain.ledger import Caller
from domain.persona.capsules import Capsule, may_read
from domain.persona.evaluation.report import SCHEMA, Compared, paired, read_report
from domain.persona.evaluation.suites import SUITES, suite_of
from domain.persona.evaluations import EvaluationRun, RequestEvaluation, request_evaluation
from domain.persona.manifest import capsule_id as digits_of
from ops.reads import RecordFilter
from ops.runtime import Runtime

router = APIRouter(prefix="/v1", tags=["evaluations"], route_class=JsonRoute)

SUITE = object_of(digest="string", suite="object")
REPORT = object_of(schema={"const": SCHEMA}, address="string", compared="object", host="object")
PAIRING = object_of(
    baseline="string",
    candidate="string",
    paired="integer",
    gained="integer",
    lost="integer",
    p_value="string",
    lost_cases={"type": "array", "items": {"type": "string"}},
    regressed="boolean",
)
SuiteName = Annotated[str, Path(max_length=100, pattern=r"^[a-z0-9][a-z0-9-]*$")]


@router.post("/evaluations", status_code=201, responses=shows(EvaluationRun, 201))
async def evaluate(
    command: RequestEvaluation, request: Request, opened: Open, who: Who, sent: Sent
) -> Response:
    """Ask for an evaluation of a manifest's parts, which are artifacts already; look at it until it is completed."""
    answer = await act(opened, request_evaluation, command, who, sent, status=201)
    body = msgspec.json.decode(bytes(answer.body))
    request.app.state.inspections.start_evaluation(body["id"])
    answer.headers["Location"] = f"/v1/evaluations/{body['id']}"
    return answer


@router.get("/evaluations", responses=lists(EvaluationRun))
async def list_evaluations(
    opened: Open,
    who: Who,
    limit: Limit = 100,
    cursor: Cursor = None,
    status: Annotated[
        str | None, Query(pattern="^(requested|completed|failed)$", description="Only those.")
    ] = None,
) -> Response:
    """List evaluations, the newest first."""
    return await listed(opened, RecordFilter("evaluation", status=status), cursor, limit, who)


@router.get("/evaluations/suites", responses=answers(page_of(SUITE)), openapi_extra=PUBLIC)
async def list_suites() -> Response:
    """List the published suites, each with its address."""
    items = [_suite(name) for name in sorted(SUITES)]
    return json_response({"items": items, "next": None})


@router.get("/evaluations/suites/{suite}", responses=answers(SUITE), openapi_extra=PUBLIC)
async def get_suite(suite: SuiteName) -> Response:
    """Show a published suite: seeds, cases, thresholds, and its address."""
    if suite not in SUITES:
        raise EvaluationSuiteNotFoundError(name=suite, known=sorted(SUITES))
    return json_response(_suite(suite))


@router.get("/evaluations/{evaluation_id}", responses=reads(EvaluationRun))
async def get_evaluation(evaluation_id: Id, opened: Open, who: Who) -> Response:
    """Show an evaluation."""
    found = await _own(opened, who, evaluation_id)
    return json_response(msgspec.to_builtins(found), headers={"ETag": f'"{found.version}"'})


@router.get("/evaluations/{evaluation_id}/report", responses={**READ_PROBLEMS, **answers(REPORT)})
async def get_report(evaluation_id: Id, opened: Open, who: Who) -> Response:
    """Send the report of an evaluation, to the byte as it is stored."""
    found = await _own(opened, who, evaluation_id)
    data = await _report(opened, found)
    return Response(data, headers={"ETag": f'"{found.report}"'}, media_type="application/json")


@router.get("/evaluations/{evaluation_id}/comparison", responses=answers(PAIRING))
async def compare_evaluations(
    evaluation_id: Id,
    opened: Open,
    who: Who,
    baseline: Annotated[
        str,
        Query(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$", description="The evaluation before."),
    ],
) -> Response:
    """Compare an evaluation with an earlier one, case by case: whom the guard accepts now, and whom it lost."""
    before, now = [await _compared(opened, who, name) for name in (baseline, evaluation_id)]
    return json_response(msgspec.to_builtins(paired(before, now)))


@router.get("/capsules/{capsule_id}/report", responses={**READ_PROBLEMS, **answers(REPORT)})
async def get_capsule_report(capsule_id: CapsuleId, opened: Open, who: Who) -> Response:
    """Send the report of a capsule's inspection; to its tenant and the platform."""
    name = digits_of(capsule_id)
    stream = f"{Capsule.KIND}/{name}"
    loaded = (await opened.reader.load([stream])).get(stream)
    capsule = loaded.aggregate if loaded else None
    if not isinstance(capsule, Capsule) or not may_read(who, capsule):
        raise CapsuleNotFoundError(id=name)
    report = (capsule.evaluation or {}).get("report")
    if report is None:
        raise NotInspectedError(id=name)
    data = await asyncio.to_thread(lambda: b"".join(opened.vault.read(report)))
    return Response(data, headers={"ETag": f'"{report}"'}, media_type="application/json")


async def _compared(opened: Runtime, who: Caller, name: str) -> Compared:
    data = await _report(opened, await _own(opened, who, name))
    return (await asyncio.to_thread(read_report, data)).compared


async def _report(opened: Runtime, found: EvaluationRun) -> bytes:
    if found.report is None:
        raise ConflictError("this evaluation has no report", id=found.id, current_status=found.status)
    # Reports are our own, and a few hundred kilobytes.
    report = found.report
    return await asyncio.to_thread(lambda: b"".join(opened.vault.read(report)))


async def _own(opened: Runtime, who: Caller, name: str) -> EvaluationRun:
    found = await seen(opened, who, EvaluationRun, name, EvaluationNotFoundError, None)
    assert isinstance(found, EvaluationRun)
    return found


def _suite(name: str) -> dict[str, Any]:
    suite = suite_of(name)
    return {"digest": suite.address, "suite": suite.document()}
