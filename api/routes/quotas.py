"""Quotas over HTTP: limits on what a tenant spends, reservations under them, and how they stand."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from api.http import (
    PROBLEM_SCHEMA,
    WRITE_PROBLEMS,
    Cursor,
    Id,
    JsonRoute,
    Limit,
    Open,
    Sent,
    Who,
    act,
    answers,
    body_of,
    completed,
    lists,
    printed,
    shows,
)
from api.routes.billing import list_own
from domain.billing.budgeting import (
    ReleaseReservation,
    Reserve,
    SetQuota,
    release_reservation,
    reserve,
)
from domain.billing.quotas import Quota
from domain.errors import LedgerError
from domain.values import Tenant
from ops import telemetry
from projections import quotas

router = APIRouter(prefix="/v1", tags=["quotas"], route_class=JsonRoute)

QuotaBody = body_of(SetQuota, "tenant")
ReserveBody = body_of(Reserve, "tenant")
STATE = {"$ref": "#/components/schemas/QuotaState"}
RECEIPT = {"type": "object", "properties": {"receipt": {"$ref": "#/components/schemas/Receipt"}}}
CREATED: dict[int | str, dict[str, Any]] = {
    201: {
        "description": "Reserved.",
        "content": {
            "application/json": {"schema": {"allOf": [{"$ref": "#/components/schemas/Reserved"}, RECEIPT]}}
        },
    }
}
EXCEEDED: dict[int | str, dict[str, Any]] = {
    402: {
        "description": "No room under a hard limit; `details` says what would fit.",
        "content": {"application/problem+json": {"schema": PROBLEM_SCHEMA}},
    }
}


@router.put("/quotas/{tenant}", responses=answers({"allOf": [STATE, RECEIPT]}, WRITE_PROBLEMS))
async def set_limits(tenant: Tenant, body: QuotaBody, opened: Open, who: Who, sent: Sent) -> Response:  # type: ignore[valid-type]
    """Set a tenant's limits in place of those the same side set before; show how they stand."""
    command = completed(SetQuota, body, tenant=tenant)
    answer = await quotas.set_limits(
        opened, command, who, key=sent.key, if_match=sent.if_match, correlation=sent.correlation
    )
    return printed(answer._replace(body=await quotas.show(opened, tenant, who)))


@router.get("/quotas", responses=lists(Quota))
async def list_quotas(opened: Open, who: Who, limit: Limit = 100, cursor: Cursor = None) -> Response:
    """List quotas as they are kept: everybody's for those who keep the books, else the caller's own."""
    return await list_own(opened, who, Quota.KIND, None, limit, cursor)


@router.get("/quotas/{tenant}", responses=answers(STATE))
async def get_quota(tenant: Tenant, opened: Open, who: Who) -> Response:
    """Show what is spent, reserved and left of each limit at this moment, and the alerts there were."""
    return Response(await quotas.show(opened, tenant, who), media_type="application/json")


@router.post(
    "/quotas/{tenant}/reservations",
    status_code=201,
    responses=WRITE_PROBLEMS | EXCEEDED | CREATED,
)
async def reserve_usage(
    tenant: Tenant,
    body: ReserveBody,  # type: ignore[valid-type]
    opened: Open,
    who: Who,
    sent: Sent,
) -> Response:
    """Reserve usage that is about to happen; refused where a hard limit has no room for it."""
    command = completed(Reserve, body, tenant=tenant)
    try:
        return await act(
            opened, reserve, command, who, sent, status=201, gather=quotas.counted_first(opened, tenant)
        )
    except LedgerError as refusal:
        telemetry.QUOTA_REFUSALS.labels(refusal.code).inc()
        raise


@router.post("/quotas/{tenant}/reservations/{reservation_id}/release", responses=shows(Quota))
async def release(tenant: Tenant, reservation_id: Id, opened: Open, who: Who, sent: Sent) -> Response:
    """Let a reservation go that is not used; its room is free again."""
    command = ReleaseReservation(tenant=tenant, reservation_id=reservation_id)
    return await act(opened, release_reservation, command, who, sent)
