"""Reconciliations over HTTP: ask for one, list them, look at one."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import Field

from api.http import (
    WRITE_PROBLEMS,
    Cursor,
    Id,
    JsonRoute,
    Limit,
    Open,
    Who,
    before_of,
    json_response,
    lists,
    need_role,
    object_of,
    page,
    reads,
)
from domain.billing.reconciliation import Reconciliation
from domain.errors import ReconciliationNotFoundError
from domain.fields import Command
from ops.reads import RecordFilter
from projections.reconcile import Scope
from projections.reconciliations import Asked

router = APIRouter(prefix="/v1/billing/reconciliations", tags=["money"], route_class=JsonRoute)

READERS = ("billing", "auditor", "operator")
BEGUN = object_of(id="string", status={"const": "running"})


class AskReconciliation(Command):
    """Hold the log against ClickHouse; without members, everything up to where the followers are."""

    as_of: int | None = Field(None, ge=0, description="The last position to look at.")
    account: str | None = Field(None, min_length=1, max_length=200, description="One account alone.")
    deep: bool = Field(False, description="Hash every mirrored record again.")


@router.post(
    "",
    status_code=202,
    responses=WRITE_PROBLEMS
    | {202: {"description": "Begun.", "content": {"application/json": {"schema": BEGUN}}}},
)
async def ask(command: AskReconciliation, request: Request, who: Who) -> Response:
    """Begin a reconciliation; its record is there once it is done. One runs at a time, so a repeat begins no second."""
    need_role(who, *READERS)
    asked: Asked = request.app.state.reconciliations
    name = asked.start(Scope(command.as_of, command.account, command.deep), who)
    return json_response(
        {"id": name, "status": "running"}, 202, {"Location": f"/v1/billing/reconciliations/{name}"}
    )


@router.get("", responses=lists(Reconciliation))
async def list_reconciliations(
    opened: Open,
    who: Who,
    limit: Limit = 100,
    cursor: Cursor = None,
    status: Annotated[str | None, Query(pattern="^(clean|drift)$", description="Only those.")] = None,
) -> Response:
    """List reconciliations, the newest first."""
    need_role(who, *READERS)
    wanted = RecordFilter("reconciliation", status=status)
    items = await opened.reader.records(wanted, before=before_of(cursor), limit=limit + 1)
    return json_response(page(items, limit))


@router.get("/{reconciliation_id}", responses=reads(Reconciliation))
async def get_reconciliation(reconciliation_id: Id, request: Request, opened: Open, who: Who) -> Response:
    """Show a reconciliation; while it runs, or if it could not be carried out, that is said instead."""
    need_role(who, *READERS)
    found = await opened.reader.state_at(f"reconciliation/{reconciliation_id}", await opened.reader.size())
    if found is not None:
        return json_response(msgspec.to_builtins(found), headers={"ETag": f'"{found.version}"'})
    asked: Asked = request.app.state.reconciliations
    state = asked.state(reconciliation_id)
    if state is None:
        raise ReconciliationNotFoundError(id=reconciliation_id)
    return json_response(state)
