"""Capsules over HTTP: submission, publication, and what ends it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from api import timelines
from api.http import (
    AsOf,
    Cursor,
    JsonRoute,
    Limit,
    Open,
    Sent,
    Who,
    Wish,
    act,
    answers,
    body_of,
    completed,
    json_response,
    lists,
    object_of,
    printed,
    reads,
    shows,
    size_as_of,
)
from api.routes.market import listed
from api.routes.personas import ENTRIES
from api.routes.policies import engine_of
from domain.errors import CapsuleNotFoundError, LedgerError
from domain.fields import Command
from domain.ledger import Caller, UseCase
from domain.persona import capsules, publication, standing
from domain.persona.capsules import Capsule, CapsuleStep, SubmitCapsule, may_read
from domain.persona.manifest import capsule_id as digits_of
from ops import telemetry
from ops.judging import act_judged
from ops.reads import RecordFilter
from ops.runtime import Runtime

router = APIRouter(prefix="/v1/capsules", tags=["capsules"], route_class=JsonRoute)

CapsuleId = Annotated[
    str,
    Path(
        max_length=200,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$",
        description="The capsule's address, or the 128 digits of it.",
    ),
]
Status = Literal[
    "exported", "imported", "submitted", "inspected", "published", "suspended", "withdrawn", "revoked"
]

Suspension = body_of(standing.SuspendCapsule, "capsule_id")
Reinstatement = body_of(publication.ReinstateCapsule, "capsule_id")
Revoking = body_of(standing.RevokeCapsule, "capsule_id")
Withdrawal = body_of(standing.WithdrawCapsule, "capsule_id")
Mark = body_of(standing.MarkDegraded, "capsule_id")
Recovery = body_of(standing.ClearDegraded, "capsule_id")

_MISSING = {"type": "array", "items": object_of(code="string", detail="string", facts="object")}
_PREFLIGHT = object_of(
    capsule="string",
    status="string",
    publishable="boolean",
    missing=_MISSING,
    verification="object",
    approvals_given="integer",
    approvals_required="integer",
    judgement="object",
)


@router.get("", responses=lists(Capsule))
async def list_capsules(
    opened: Open,
    who: Who,
    status: Status | None = None,
    persona_id: Wish = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List the caller's capsules, and those that were submitted to the caller's tenant; the newest first."""
    wanted = RecordFilter("capsule", owner=persona_id, status=status)
    return await listed(opened, wanted, cursor, limit, who)


@router.get("/{capsule_id}", responses=reads(Capsule))
async def get_capsule(capsule_id: CapsuleId, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show a capsule with its manifest; everybody sees those that are, or were, published."""
    found = await _seen(opened, who, capsule_id, await size_as_of(opened, as_of))
    return json_response(_shown_to(who, found), headers={"ETag": f'"{found.version}"'})


@router.get("/{capsule_id}/timeline", responses=answers(ENTRIES))
async def get_timeline(capsule_id: CapsuleId, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Tell what happened to a capsule; to its tenant and the platform."""
    size = await size_as_of(opened, as_of)
    found = await _seen(opened, who, capsule_id, size)
    if not may_read(who, found):
        raise CapsuleNotFoundError("its timeline is shown to its tenant and the platform", id=found.id)
    entries = [timelines.entry(stored) for stored in await opened.reader.stream(found.stream, size=size)]
    return json_response({"stream": found.stream, "entries": entries})


@router.get("/{capsule_id}/preflight", responses=answers(_PREFLIGHT))
async def preflight(capsule_id: CapsuleId, request: Request, opened: Open, who: Who) -> Response:
    """Say what publishing would come to now, and everything that is missing; nothing is written."""
    answer = await act_judged(
        opened.ledger,
        engine_of(request),
        publication.preflight,
        CapsuleStep(capsule_id=capsule_id),
        who,
    )
    return Response(answer.body, media_type="application/json")


@router.post("/{capsule_id}/submit", status_code=202, responses=shows(Capsule, 202))
async def submit_capsule(
    capsule_id: CapsuleId, request: Request, opened: Open, who: Who, sent: Sent
) -> Response:
    """Submit a capsule to inspection, review and signatures; the inspection runs in the background."""
    command = SubmitCapsule(capsule_id=capsule_id)
    response = await act(opened, capsules.submit_capsule, command, who, sent, status=202)
    request.app.state.inspections.start(digits_of(capsule_id))
    return response


@router.post("/{capsule_id}/publish", responses=shows(Capsule))
async def publish_capsule(
    capsule_id: CapsuleId, request: Request, opened: Open, who: Who, sent: Sent
) -> Response:
    """Publish a capsule, if the policy allows it and all approvals and signatures are there at this moment."""
    command = publication.PublishCapsule(capsule_id=capsule_id)
    return await _act_asking(request, opened, publication.publish_capsule, command, who, sent)


@router.post("/{capsule_id}/withdraw", responses=shows(Capsule))
async def withdraw_capsule(
    capsule_id: CapsuleId,
    opened: Open,
    who: Who,
    sent: Sent,
    body: Withdrawal | None = None,  # type: ignore[valid-type]
) -> Response:
    """Take a capsule of one's own back, for good."""
    command = completed(standing.WithdrawCapsule, body, capsule_id=capsule_id)
    return await act(opened, standing.withdraw_capsule, command, who, sent)


@router.post("/{capsule_id}/suspend", responses=shows(Capsule))
async def suspend_capsule(
    capsule_id: CapsuleId,
    body: Suspension,  # type: ignore[valid-type]
    opened: Open,
    who: Who,
    sent: Sent,
) -> Response:
    """Stop new rentals of a published capsule at once."""
    command = completed(standing.SuspendCapsule, body, capsule_id=capsule_id)
    return await act(opened, standing.suspend_capsule, command, who, sent)


@router.post("/{capsule_id}/reinstate", responses=shows(Capsule))
async def reinstate_capsule(
    capsule_id: CapsuleId,
    body: Reinstatement,  # type: ignore[valid-type]
    request: Request,
    opened: Open,
    who: Who,
    sent: Sent,
) -> Response:
    """Publish a suspended capsule again, through every gate of publication."""
    command = completed(publication.ReinstateCapsule, body, capsule_id=capsule_id)
    return await _act_asking(request, opened, publication.reinstate_capsule, command, who, sent)


@router.post("/{capsule_id}/revoke", responses=shows(Capsule))
async def revoke_capsule(
    capsule_id: CapsuleId,
    body: Revoking,  # type: ignore[valid-type]
    opened: Open,
    who: Who,
    sent: Sent,
) -> Response:
    """End a capsule for good."""
    command = completed(standing.RevokeCapsule, body, capsule_id=capsule_id)
    return await act(opened, standing.revoke_capsule, command, who, sent)


@router.post("/{capsule_id}/degrade", responses=shows(Capsule))
async def mark_degraded(
    capsule_id: CapsuleId,
    body: Mark,  # type: ignore[valid-type]
    opened: Open,
    who: Who,
    sent: Sent,
) -> Response:
    """Mark a published capsule as worse than it was."""
    command = completed(standing.MarkDegraded, body, capsule_id=capsule_id)
    return await act(opened, standing.mark_degraded, command, who, sent)


@router.post("/{capsule_id}/recover", responses=shows(Capsule))
async def clear_degraded(
    capsule_id: CapsuleId,
    body: Recovery,  # type: ignore[valid-type]
    opened: Open,
    who: Who,
    sent: Sent,
) -> Response:
    """Take a mark off a capsule."""
    command = completed(standing.ClearDegraded, body, capsule_id=capsule_id)
    return await act(opened, standing.clear_degraded, command, who, sent)


async def _act_asking(
    request: Request, opened: Runtime, use_case: UseCase, command: Command, who: Caller, sent: Sent
) -> Response:
    """Carry out a publication that a policy judges, count what it came to, and print its answer."""
    headers: dict[str, Any] = {"key": sent.key, "if_match": sent.if_match, "correlation": sent.correlation}
    try:
        answer = await act_judged(opened.ledger, engine_of(request), use_case, command, who, **headers)
    except LedgerError as refusal:
        telemetry.PUBLICATIONS.labels(refusal.code).inc()
        raise
    if not answer.repeated:
        telemetry.PUBLICATIONS.labels("published").inc()
    return printed(answer)


async def _seen(opened: Runtime, who: Caller, name: str, size: int | None) -> Capsule:
    """Read a capsule the caller may see, now or in the log of a size.

    Errors: capsule_not_found.
    """
    stream = f"capsule/{digits_of(name)}"
    if size is None:
        loaded = (await opened.reader.load([stream])).get(stream)
        found = loaded.aggregate if loaded else None
    else:
        found = await opened.reader.state_at(stream, size)
    if not isinstance(found, Capsule) or not (found.published_at is not None or may_read(who, found)):
        raise CapsuleNotFoundError(id=name)
    return found


def _shown_to(who: Caller, capsule: Capsule) -> dict[str, Any]:
    """Show strangers no places of findings: what was found was published by somebody's decision, not for them."""
    shown: dict[str, Any] = msgspec.to_builtins(capsule)
    if not may_read(who, capsule) and shown["scan"] is not None:
        shown["scan"]["findings"] = []
    return shown
