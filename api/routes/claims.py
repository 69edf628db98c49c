"""Claims over HTTP: somebody's right against a capsule, and how operators decide."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import Response

from api.http import (
    AsOf,
    Cursor,
    Id,
    JsonRoute,
    Limit,
    Open,
    Sent,
    Who,
    Wish,
    act,
    body_of,
    completed,
    lists,
    reads,
    shows,
)
from api.routes.capsules import CapsuleId
from api.routes.market import listed, show
from domain.errors import ClaimNotFoundError
from domain.persona import claims
from domain.persona.claims import Claim
from ops.reads import RecordFilter

router = APIRouter(prefix="/v1", tags=["claims"], route_class=JsonRoute)

NewClaim = body_of(claims.OpenClaim, "capsule_id")
Review = body_of(claims.ReviewClaim, "claim_id")
Upholding = body_of(claims.UpholdClaim, "claim_id")
Rejection = body_of(claims.RejectClaim, "claim_id")
Withdrawal = body_of(claims.WithdrawClaim, "claim_id")


@router.post("/capsules/{capsule_id}/claims", status_code=201, responses=shows(Claim, 201))
async def open_claim(
    capsule_id: CapsuleId,
    body: NewClaim,  # type: ignore[valid-type]
    opened: Open,
    who: Who,
    sent: Sent,
) -> Response:
    """Claim a right against another tenant's published capsule."""
    command = completed(claims.OpenClaim, body, capsule_id=capsule_id)
    return await act(opened, claims.open_claim, command, who, sent, status=201)


@router.get("/claims", responses=lists(Claim))
async def list_claims(
    opened: Open,
    who: Who,
    status: Literal["open", "under_review", "upheld", "rejected", "withdrawn"] | None = None,
    persona_id: Wish = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List claims the caller's tenant is a party of; operators and auditors see all."""
    wanted = RecordFilter("claim", owner=persona_id, status=status)
    return await listed(opened, wanted, cursor, limit, who)


@router.get("/claims/{claim_id}", responses=reads(Claim))
async def get_claim(claim_id: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show a claim to its parties."""
    return await show(opened, who, Claim, claim_id, ClaimNotFoundError, as_of)


@router.post("/claims/{claim_id}/review", responses=shows(Claim))
async def review_claim(
    claim_id: Id,
    opened: Open,
    who: Who,
    sent: Sent,
    body: Review | None = None,  # type: ignore[valid-type]
) -> Response:
    """Take a claim up, and suspend the capsule meanwhile if that is needed."""
    command = completed(claims.ReviewClaim, body, claim_id=claim_id)
    return await act(opened, claims.review_claim, command, who, sent)


@router.post("/claims/{claim_id}/uphold", responses=shows(Claim))
async def uphold_claim(
    claim_id: Id,
    body: Upholding,  # type: ignore[valid-type]
    opened: Open,
    who: Who,
    sent: Sent,
) -> Response:
    """Find a claim right; the capsule is revoked."""
    command = completed(claims.UpholdClaim, body, claim_id=claim_id)
    return await act(opened, claims.uphold_claim, command, who, sent)


@router.post("/claims/{claim_id}/reject", responses=shows(Claim))
async def reject_claim(
    claim_id: Id,
    body: Rejection,  # type: ignore[valid-type]
    opened: Open,
    who: Who,
    sent: Sent,
) -> Response:
    """Find a claim groundless."""
    command = completed(claims.RejectClaim, body, claim_id=claim_id)
    return await act(opened, claims.reject_claim, command, who, sent)


@router.post("/claims/{claim_id}/withdraw", responses=shows(Claim))
async def withdraw_claim(
    claim_id: Id,
    opened: Open,
    who: Who,
    sent: Sent,
    body: Withdrawal | None = None,  # type: ignore[valid-type]
) -> Response:
    """Take a claim back before it is decided."""
    command = completed(claims.WithdrawClaim, body, claim_id=claim_id)
    return await act(opened, claims.withdraw_claim, command, who, sent)
