"""Exports, imports and downloads of capsules over HTTP. Every attempt is in the log, allowed or refused."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from api.http import (
    READ_PROBLEMS,
    WRITE_PROBLEMS,
    Correlation,
    Cursor,
    Envelope,
    Id,
    JsonRoute,
    Limit,
    Open,
    Sent,
    Who,
    Wish,
    json_response,
    lists,
    printed,
    reads,
    sees_all,
    shows,
)
from api.routes.artifacts import BYTES, stream_of
from api.routes.market import listed, seen
from domain.errors import ExportNotFoundError, ImportNotFoundError, NotFoundError, PolicyUnavailableError
from domain.fields import Command
from domain.ledger import Answer, Caller, UseCase
from domain.persona.attempts import refusal_of
from domain.persona.imports import CapsuleImport, RequestImport, request_import
from domain.persona.transfers import (
    CapsuleDownload,
    CapsuleExport,
    DownloadCapsule,
    RequestExport,
    download_capsule,
    request_export,
)
from ops.judging import act_judged
from ops.reads import RecordFilter
from projections.transfers import TransferRunner

router = APIRouter(prefix="/v1", tags=["transfers"], route_class=JsonRoute)


@router.post("/exports", status_code=202, responses=shows(CapsuleExport, 202))
async def start_export(command: RequestExport, who: Who, sent: Sent, request: Request) -> Response:
    """Export a persona: a worker seals it into a capsule; until then the export tells how far it is."""
    answer = await _attempted(request, request_export, command, who, sent)
    _workers(request).start("export", _id(answer))
    return printed(answer, 202)


@router.get("/exports", responses=lists(CapsuleExport))
async def list_exports(
    opened: Open,
    who: Who,
    status: Literal["requested", "completed", "refused", "failed"] | None = None,
    persona_id: Wish = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List exports, the newest first; those that were refused too."""
    wanted = RecordFilter("export", owner=persona_id, status=status, tenant=_tenant(who))
    return await listed(opened, wanted, cursor, limit)


@router.get("/exports/{export_id}", responses=reads(CapsuleExport))
async def get_export(export_id: Id, who: Who, request: Request) -> Response:
    """Show an export; `progress` is there while it is under way."""
    return await _shown(request, who, CapsuleExport, export_id, ExportNotFoundError)


@router.post("/imports", status_code=202, responses=shows(CapsuleImport, 202))
async def start_import(
    command: RequestImport, opened: Open, who: Who, sent: Sent, request: Request
) -> Response:
    """Import a capsule from an uploaded archive: a worker verifies all of it before anything is kept."""
    answer = await opened.ledger.act(request_import, command, who, key=sent.key, correlation=sent.correlation)
    _raise_refusal(answer)
    _workers(request).start("import", _id(answer))
    return printed(answer, 202)


@router.get("/imports", responses=lists(CapsuleImport))
async def list_imports(
    opened: Open,
    who: Who,
    status: Literal["requested", "completed", "refused"] | None = None,
    persona_id: Wish = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List imports, the newest first; those that were refused too."""
    wanted = RecordFilter("import", owner=persona_id, status=status, tenant=_tenant(who))
    return await listed(opened, wanted, cursor, limit)


@router.get("/imports/{import_id}", responses=reads(CapsuleImport))
async def get_import(import_id: Id, who: Who, request: Request) -> Response:
    """Show an import, and if it was refused why; `progress` is there while it is under way."""
    return await _shown(request, who, CapsuleImport, import_id, ImportNotFoundError)


@router.get(
    "/capsules/{capsule_id}/archive",
    responses={**READ_PROBLEMS, **{code: WRITE_PROBLEMS[code] for code in (409, 422)}, **BYTES},
    response_class=StreamingResponse,
)
async def download_archive(
    capsule_id: Id, opened: Open, who: Who, request: Request, correlation: Correlation = None
) -> Response:
    """Send a capsule's archive, once the log says to whom; `Range: bytes=N-` sends it from a byte on."""
    command = DownloadCapsule(capsule_id=capsule_id)
    answer = await _attempted(request, download_capsule, command, who, Envelope(correlation=correlation))
    granted = msgspec.json.decode(answer.body, type=CapsuleDownload)
    assert granted.archive is not None, "a download that is granted names an archive"
    assert granted.archive_bytes is not None
    return await stream_of(opened.vault, granted.archive, granted.archive_bytes, request)


async def _attempted(
    request: Request, use_case: UseCase, command: Command, who: Caller, sent: Sent
) -> Answer:
    """Make an attempt that a policy judges; one that it cannot judge is written down as refused.

    Errors: those of the use case, policy_unavailable.
    """
    ledger, engine = request.app.state.runtime.ledger, request.app.state.engine
    how: dict[str, Any] = {"key": sent.key, "correlation": sent.correlation}
    try:
        answer = await act_judged(ledger, engine, use_case, command, who, **how)
    except PolicyUnavailableError:
        answer = await ledger.act(use_case, command, who, gather=_unjudged, **how)
    _raise_refusal(answer)
    return answer


async def _unjudged() -> dict[str, Any]:
    return {"judgements": None}


def _raise_refusal(answer: Answer) -> None:
    """Tell the caller why an attempt was refused; the log has it already."""
    refusal = refusal_of(answer.body)
    if refusal is not None:
        raise refusal


def _workers(request: Request) -> TransferRunner:
    workers: TransferRunner = request.app.state.transfers
    return workers


def _id(answer: Answer) -> str:
    return str(msgspec.json.decode(answer.body)["id"])


def _tenant(who: Caller) -> str | None:
    return None if sees_all(who) else who.tenant


async def _shown(
    request: Request,
    who: Caller,
    cls: type[CapsuleExport | CapsuleImport],
    name: str,
    missing: type[NotFoundError],
) -> Response:
    found = await seen(request.app.state.runtime, who, cls, name, missing, None)
    progress = _workers(request).progress(name)
    shown = msgspec.to_builtins(found) | ({"progress": progress} if progress else {})
    return json_response(shown, headers={"ETag": f'"{found.version}"'})
