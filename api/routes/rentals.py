"""Renting, subscribing to and buying personas over HTTP, and whether somebody may use one at this moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from api.http import (
    WRITE_PROBLEMS,
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
    answers,
    body_of,
    completed,
    json_response,
    lists,
    object_of,
    printed,
    reads,
    shows,
)
from api.routes.market import listed, seen, show
from api.routes.policies import engine_of
from domain.errors import NotFoundError, PurchaseNotFoundError, RentalNotFoundError, SubscriptionNotFoundError
from domain.fields import Command
from domain.ledger import Answer, Caller, UseCase
from domain.persona import renting
from domain.persona.capsules import Capsule
from domain.persona.offboarding import Use, entitlement, expiry_of, sale_behind
from domain.rental.purchases import Purchase
from domain.rental.rentals import Rental
from domain.rental.subscriptions import Subscription
from ops.judging import act_judged
from ops.reads import RecordFilter
from ops.runtime import Runtime

router = APIRouter(prefix="/v1", tags=["rentals"], route_class=JsonRoute)

RentBody = body_of(renting.RentPersona, "persona_id")
ActivateBody = body_of(renting.ActivateRental, "rental_id")
ExtendBody = body_of(renting.ExtendRental, "rental_id")
PurchaseBody = body_of(renting.PurchasePersona, "persona_id")
SubscribeBody = body_of(renting.SubscribePersona, "persona_id")
CancelBody = body_of(renting.CancelSubscription, "subscription_id")
ChangeBody = body_of(renting.ChangePlan, "subscription_id")

Epoch = Annotated[
    int | None, Query(ge=1, le=2**53, description="The epoch of a token that is to be held against it.")
]
_QUOTED = {"$ref": "#/components/schemas/RentalQuote"}
_ENTITLED = object_of(
    granted="boolean",
    why={"enum": ["granted", "not_activated", "over", "revoked", "stale_epoch"]},
    checked_at="string",
    expires_at=["string", "null"],
    access_epoch="integer",
    persona_id="string",
    capsule="string",
    access_token=["string", "null"],
)
NO_STORE = {"Cache-Control": "no-store"}


# --------------------------------------------------------------------------- rentals


@router.post("/personas/{persona_id}/rent", status_code=201, responses=shows(Rental, 201))
async def rent_persona(
    persona_id: Id,
    body: RentBody,  # type: ignore[valid-type]
    request: Request,
    who: Who,
    sent: Sent,
) -> Response:
    """Rent a persona for a time; the price is reserved, and the time runs from the activation on."""
    command = completed(renting.RentPersona, body, persona_id=persona_id)
    return printed(await _asking(request, renting.rent, command, who, sent, priced=True), 201)


@router.post("/personas/{persona_id}/rent/quote", responses=answers(_QUOTED, WRITE_PROBLEMS))
async def quote_rental(
    persona_id: Id,
    body: RentBody,  # type: ignore[valid-type]
    request: Request,
    opened: Open,
    who: Who,
) -> Response:
    """Say what a rental would reserve, and what has to be accepted for it; nothing is written."""
    command = completed(renting.RentPersona, body, persona_id=persona_id)
    answer = await act_judged(opened.ledger, engine_of(request), renting.quote_rental, command, who)
    return Response(answer.body, media_type="application/json")


@router.get("/rentals", responses=lists(Rental))
async def list_rentals(
    opened: Open,
    who: Who,
    status: Literal["requested", "active", "ended", "expired", "revoked", "cancelled", "lapsed"]
    | None = None,
    persona_id: Wish = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List the rentals of the caller's tenant, and those of its personas; the newest first."""
    return await listed(opened, RecordFilter("rental", owner=persona_id, status=status), cursor, limit, who)


@router.get("/rentals/{rental_id}", responses=reads(Rental))
async def get_rental(rental_id: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show a rental to its renter and its seller."""
    return await show(opened, who, Rental, rental_id, RentalNotFoundError, as_of)


@router.post("/rentals/{rental_id}/activate", responses=shows(Rental))
async def activate_rental(
    rental_id: Id,
    request: Request,
    who: Who,
    sent: Sent,
    body: ActivateBody | None = None,  # type: ignore[valid-type]
) -> Response:
    """Let the time run; the answer holds the access token, which expires with the rental."""
    command = completed(renting.ActivateRental, body, rental_id=rental_id)
    return _with_token(request, await _asking(request, renting.activate, command, who, sent), Rental)


@router.post("/rentals/{rental_id}/extend", responses=shows(Rental))
async def extend_rental(
    rental_id: Id,
    body: ExtendBody,  # type: ignore[valid-type]
    request: Request,
    who: Who,
    sent: Sent,
) -> Response:
    """Add time; the answer holds an access token up to the new end, if the rental was activated."""
    command = completed(renting.ExtendRental, body, rental_id=rental_id)
    return _with_token(request, await _asking(request, renting.extend, command, who, sent), Rental)


@router.post("/rentals/{rental_id}/end", responses=shows(Rental))
async def end_rental(rental_id: Id, opened: Open, who: Who, sent: Sent) -> Response:
    """Give a rental back; what was used is paid, the rest is free again, and its tokens are void."""
    return await act(opened, renting.end, renting.RentalStep(rental_id=rental_id), who, sent)


@router.get("/rentals/{rental_id}/entitlement", responses=answers(_ENTITLED))
async def check_rental(
    rental_id: Id, request: Request, opened: Open, who: Who, epoch: Epoch = None
) -> Response:
    """Say whether the persona may be used at this moment; the renter hears an access token with it."""
    return await _entitled(request, opened, who, Rental, rental_id, RentalNotFoundError, epoch)


# --------------------------------------------------------------------------- purchases


@router.post("/personas/{persona_id}/purchase", status_code=201, responses=shows(Purchase, 201))
async def purchase_persona(
    persona_id: Id,
    request: Request,
    who: Who,
    sent: Sent,
    body: PurchaseBody | None = None,  # type: ignore[valid-type]
) -> Response:
    """Buy a version of a persona; the price is reserved until it can no longer be given back."""
    command = completed(renting.PurchasePersona, body, persona_id=persona_id)
    return printed(await _asking(request, renting.purchase, command, who, sent, priced=True), 201)


@router.get("/purchases", responses=lists(Purchase))
async def list_purchases(
    opened: Open,
    who: Who,
    status: Literal["held", "settled", "refunded", "revoked"] | None = None,
    persona_id: Wish = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List the purchases of the caller's tenant, and those of its personas; the newest first."""
    return await listed(opened, RecordFilter("purchase", owner=persona_id, status=status), cursor, limit, who)


@router.get("/purchases/{purchase_id}", responses=reads(Purchase))
async def get_purchase(purchase_id: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show a purchase to its buyer and its seller."""
    return await show(opened, who, Purchase, purchase_id, PurchaseNotFoundError, as_of)


@router.post("/purchases/{purchase_id}/return", responses=shows(Purchase))
async def return_purchase(purchase_id: Id, opened: Open, who: Who, sent: Sent) -> Response:
    """Give a purchase back; its price is free again."""
    return await act(opened, renting.give_back, renting.PurchaseStep(purchase_id=purchase_id), who, sent)


@router.get("/purchases/{purchase_id}/entitlement", responses=answers(_ENTITLED))
async def check_purchase(
    purchase_id: Id, request: Request, opened: Open, who: Who, epoch: Epoch = None
) -> Response:
    """Say whether the capsule may be used at this moment; the buyer hears an access token with it."""
    return await _entitled(request, opened, who, Purchase, purchase_id, PurchaseNotFoundError, epoch)


# --------------------------------------------------------------------------- subscriptions


@router.post("/personas/{persona_id}/subscribe", status_code=201, responses=shows(Subscription, 201))
async def subscribe_persona(
    persona_id: Id,
    request: Request,
    who: Who,
    sent: Sent,
    body: SubscribeBody | None = None,  # type: ignore[valid-type]
) -> Response:
    """Subscribe to a persona; the rest of the present period is reserved, and it may be used at once."""
    command = completed(renting.SubscribePersona, body, persona_id=persona_id)
    answer = await _asking(request, renting.subscribe, command, who, sent, priced=True)
    return _with_token(request, answer, Subscription, 201)


@router.get("/subscriptions", responses=lists(Subscription))
async def list_subscriptions(
    opened: Open,
    who: Who,
    status: Literal["active", "past_due", "ended"] | None = None,
    persona_id: Wish = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List the subscriptions of the caller's tenant, and those to its personas; the newest first."""
    wanted = RecordFilter("subscription", owner=persona_id, status=status)
    return await listed(opened, wanted, cursor, limit, who)


@router.get("/subscriptions/{subscription_id}", responses=reads(Subscription))
async def get_subscription(subscription_id: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show a subscription to its subscriber and its seller."""
    return await show(opened, who, Subscription, subscription_id, SubscriptionNotFoundError, as_of)


@router.post("/subscriptions/{subscription_id}/cancel", responses=shows(Subscription))
async def cancel_subscription(
    subscription_id: Id,
    opened: Open,
    who: Who,
    sent: Sent,
    body: CancelBody | None = None,  # type: ignore[valid-type]
) -> Response:
    """Cancel a subscription, with the end of what is paid for or now."""
    command = completed(renting.CancelSubscription, body, subscription_id=subscription_id)
    return await act(opened, renting.cancel, command, who, sent)


@router.post("/subscriptions/{subscription_id}/resume", responses=shows(Subscription))
async def resume_subscription(subscription_id: Id, opened: Open, who: Who, sent: Sent) -> Response:
    """Take a cancellation back before the period is over."""
    command = renting.SubscriptionStep(subscription_id=subscription_id)
    return await act(opened, renting.resume, command, who, sent)


@router.post("/subscriptions/{subscription_id}/change", responses=shows(Subscription))
async def change_plan(
    subscription_id: Id,
    request: Request,
    who: Who,
    sent: Sent,
    body: ChangeBody | None = None,  # type: ignore[valid-type]
) -> Response:
    """Change to another version of the persona, or to the price of today."""
    command = completed(renting.ChangePlan, body, subscription_id=subscription_id)
    answer = await _asking(request, renting.change_plan, command, who, sent, priced=True)
    return _with_token(request, answer, Subscription)


@router.get("/subscriptions/{subscription_id}/entitlement", responses=answers(_ENTITLED))
async def check_subscription(
    subscription_id: Id, request: Request, opened: Open, who: Who, epoch: Epoch = None
) -> Response:
    """Say whether the persona may be used at this moment; the subscriber hears an access token with it."""
    missing = SubscriptionNotFoundError
    return await _entitled(request, opened, who, Subscription, subscription_id, missing, epoch)


# --------------------------------------------------------------------------- steps


async def _asking(
    request: Request, use_case: UseCase, command: Command, who: Caller, sent: Sent, *, priced: bool = False
) -> Answer:
    """Carry out what a policy judges, and where something is sold, at the platform's part of now."""
    opened: Runtime = request.app.state.runtime
    headers: Mapping[str, Any] = {
        "key": sent.key,
        "if_match": sent.if_match,
        "correlation": sent.correlation,
    }
    given = {"fee_ppm": opened.settings.rental_fee_ppm} if priced else None
    return await act_judged(opened.ledger, engine_of(request), use_case, command, who, given=given, **headers)


def _with_token(request: Request, answer: Answer, cls: type[Use], status: int = 200) -> Response:
    """Print an answer with the access token that belongs to what it tells."""
    use = msgspec.json.decode(answer.body, type=cls)
    is_over = isinstance(use, Rental) and use.expires_at is None
    response = printed(answer, status, access_token=None if is_over else _token(request, use))
    response.headers.update(NO_STORE)
    return response


def _token(request: Request, use: Use) -> str:
    sale = sale_behind(use)
    claims = {
        use.KIND: use.id,
        "persona": sale.persona_id,
        "capsule": sale.capsule,
        "epoch": use.access_epoch,
        "expires_at": expiry_of(use),
    }
    return str(request.app.state.issuer.mint_access(use.tenant, claims, expiry_of(use)))


async def _entitled(
    request: Request,
    opened: Runtime,
    who: Caller,
    cls: type[Use],
    name: str,
    missing: type[NotFoundError],
    epoch: int | None,
) -> Response:
    """Decide on access from what the log holds now; the clock is read last, so that no answer is older than it says."""
    use = await seen(opened, who, cls, name, missing, None)
    assert isinstance(use, Use)
    stream = f"{Capsule.KIND}/{sale_behind(use).capsule.removeprefix('sha3-512:')}"
    loaded = (await opened.reader.load([stream])).get(stream)
    capsule = loaded.aggregate if loaded else None
    assert capsule is None or isinstance(capsule, Capsule)
    found = entitlement(use, capsule, opened.clock(), epoch)
    token = _token(request, use) if found.granted and use.tenant == who.tenant else None
    return json_response(msgspec.structs.asdict(found) | {"access_token": token}, headers=NO_STORE)
