"""Webhooks over HTTP: who is told what, how it went, and having it told again."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import Field

from api.http import (
    READ_PROBLEMS,
    WRITE_PROBLEMS,
    AsOf,
    Cursor,
    Id,
    JsonRoute,
    Limit,
    Open,
    Sent,
    Who,
    act,
    answers,
    before_of,
    body_of,
    completed,
    json_response,
    lists,
    need_role,
    object_of,
    page,
    page_of,
    reads,
    shows,
    size_as_of,
)
from api.routes.market import listed, seen
from domain.errors import InvalidCursorError, WebhookNotFoundError, WebhookRangeError
from domain.feeds import webhooks
from domain.feeds.messages import ping_body
from domain.feeds.webhooks import HOLDERS, ChangeWebhook, RegisterWebhook, Webhook, WebhookStep
from domain.fields import Command
from domain.ledger import Caller
from ops.keys_webhooks import WebhookKeys
from ops.outbound import Outbound
from ops.reads import RecordFilter
from ops.runtime import Runtime
from ops.webhook_store import WebhookStore
from projections.webhooks import signed_headers

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=JsonRoute)

POSITION_MAX = 2**53
_PLACE = re.compile(r"([0-9]{1,16})\.([0-9]{1,16})", re.ASCII)
SEEN_BY = (*HOLDERS, "auditor")

WebhookChange = body_of(ChangeWebhook, "webhook_id")


class PauseReason(Command):
    """Why nothing is wanted for now."""

    reason: str = Field("", max_length=2_000)


class Redelivery(Command):
    """One position, or a range of them with both ends included."""

    position: int | None = Field(None, ge=0, le=POSITION_MAX)
    from_position: int | None = Field(None, ge=0, le=POSITION_MAX)
    to_position: int | None = Field(None, ge=0, le=POSITION_MAX)


_SECRET = {"type": "string", "description": "For `v1` signatures; shown here and nowhere else."}


def _shows_secret(status: int) -> dict[int | str, dict[str, Any]]:
    """Document the answer of a command that brings a secret with it."""
    found = shows(Webhook, status)
    schema = found[status]["content"]["application/json"]["schema"]
    schema["allOf"].append({"type": "object", "required": ["secret"], "properties": {"secret": _SECRET}})
    return found


def _keys(request: Request) -> WebhookKeys:
    found: WebhookKeys = request.app.state.webhook_keys
    return found


class _Secret(msgspec.Struct):
    """What a secret is derived from."""

    id: str
    secret_version: int


def _with_secret(response: Response, keys: WebhookKeys) -> Response:
    """Add the secret to an answer; it is derived anew, so a repeated request shows it too and no store holds it."""
    shown = msgspec.json.decode(response.body, type=_Secret)
    secret = f',"secret":"{keys.secret(shown.id, shown.secret_version)}"}}'.encode()
    headers = {"Cache-Control": "no-store"} | (
        {"ETag": response.headers["etag"]} if "etag" in response.headers else {}
    )
    body = bytes(response.body)[:-1] + secret
    return Response(body, response.status_code, headers, media_type="application/json")


# --------------------------------------------------------------------------- the webhooks of a tenant


@router.post("", status_code=201, responses=_shows_secret(201))
async def register_webhook(
    command: RegisterWebhook, request: Request, opened: Open, who: Who, sent: Sent
) -> Response:
    """Have records sent to a URL: those of the caller's tenant that fit `types` and `streams`.

    Messages and signatures follow Standard Webhooks 1.0. The answer shows the secret, once.
    """
    keys, settings = _keys(request), opened.settings

    async def gather() -> dict[str, Any]:
        mine = RecordFilter("webhook", tenant=who.tenant)
        gone = await opened.reader.count(mine._replace(status="deleted"))
        return {
            "size": await opened.reader.size(),
            "count": await opened.reader.count(mine) - gone,
            "count_max": settings.webhooks_per_tenant_max,
            "allow_http": settings.webhooks_allow_http,
            "public_key_of": keys.public,
        }

    answer = await act(opened, webhooks.register_webhook, command, who, sent, status=201, gather=gather)
    return _with_secret(answer, keys)


@router.get("", responses=lists(Webhook))
async def list_webhooks(
    opened: Open, who: Who,
    status: Literal["active", "paused", "disabled", "deleted"] | None = None,
    limit: Limit = 100, cursor: Cursor = None,
) -> Response:  # fmt: skip
    """List webhooks, the newest first; deleted ones are listed as such."""
    need_role(who, *SEEN_BY)
    return await listed(opened, RecordFilter("webhook", status=status), cursor, limit, who)


@router.get("/{webhook_id}", responses=reads(Webhook))
async def get_webhook(webhook_id: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show a webhook; as it is now, also how far each of its lanes has come."""
    found = await _seen(opened, who, webhook_id, as_of)
    shown = msgspec.to_builtins(found)
    if as_of is None:
        shown["lanes"] = await WebhookStore(opened.reader.pool).standing(webhook_id)
        shown["log_size"] = await opened.reader.size()
    return json_response(shown, headers={"ETag": f'"{found.version}"'})


@router.patch("/{webhook_id}", responses=shows(Webhook))
async def change_webhook(
    webhook_id: Id,
    opened: Open,
    who: Who,
    sent: Sent,
    body: WebhookChange,  # type: ignore[valid-type]
) -> Response:
    """Send to another URL, or other records; how far it came is kept."""

    async def gather() -> dict[str, Any]:
        return {"allow_http": opened.settings.webhooks_allow_http}

    command = completed(ChangeWebhook, body, webhook_id=webhook_id)
    return await act(opened, webhooks.change_webhook, command, who, sent, gather=gather)


@router.delete("/{webhook_id}", responses=shows(Webhook))
async def delete_webhook(webhook_id: Id, opened: Open, who: Who, sent: Sent) -> Response:
    """Take a webhook away for good."""
    return await act(opened, webhooks.delete_webhook, WebhookStep(webhook_id=webhook_id), who, sent)


@router.post("/{webhook_id}/pause", responses=shows(Webhook))
async def pause_webhook(
    webhook_id: Id, opened: Open, who: Who, sent: Sent, body: PauseReason | None = None
) -> Response:
    """Send nothing for now; what comes meanwhile is sent once it is resumed."""
    command = WebhookStep(webhook_id=webhook_id, reason=body.reason if body else "")
    return await act(opened, webhooks.pause_webhook, command, who, sent)


@router.post("/{webhook_id}/resume", responses=shows(Webhook))
async def resume_webhook(webhook_id: Id, opened: Open, who: Who, sent: Sent) -> Response:
    """Send again, from where it stopped; what failed is tried at once."""
    response = await act(opened, webhooks.resume_webhook, WebhookStep(webhook_id=webhook_id), who, sent)
    await WebhookStore(opened.reader.pool).start_over(webhook_id)
    return response


@router.post("/{webhook_id}/rotate", responses=_shows_secret(200))
async def rotate_secret(webhook_id: Id, request: Request, opened: Open, who: Who, sent: Sent) -> Response:
    """Sign with a new secret from now on, and for a while with the one before beside it. The answer shows it, once."""
    keys = _keys(request)

    async def gather() -> dict[str, Any]:
        return {"rotation_s": opened.settings.webhook_rotation_s, "public_key_of": keys.public}

    step = WebhookStep(webhook_id=webhook_id)
    return _with_secret(await act(opened, webhooks.rotate_secret, step, who, sent, gather=gather), keys)


# --------------------------------------------------------------------------- what is sent

_PING = object_of(
    message_id="string",
    delivered="boolean",
    http_status=["integer", "null"],
    error="string",
    duration_ms="integer",
)
_REDELIVERY = object_of(redelivery="integer", from_position="integer", to_position="integer")
_DELIVERY = object_of(
    position="integer", redelivery="integer", type="string", message_id="string", status="string", attempts="integer",
    http_status=["integer", "null"], error="string", duration_ms="integer", first_at="string", last_at="string",
)  # fmt: skip


@router.post("/{webhook_id}/ping", responses=answers(_PING, WRITE_PROBLEMS))
async def ping_webhook(webhook_id: Id, request: Request, opened: Open, who: Who) -> Response:
    """Send a message of the type `webhook.ping`, now and once, and say what came of it."""
    webhook = await _held(opened, who, webhook_id)
    settings, now = opened.settings, opened.clock()
    name, body = f"ping_{opened.ledger.next_id()}", ping_body(webhook_id, now)
    headers = signed_headers(_keys(request), webhook, name, body, now)
    async with Outbound(
        timeout_s=settings.webhook_timeout_s, allow_private=settings.webhooks_allow_private
    ) as outbound:
        outcome = await outbound.post(webhook.url, headers, body)
    return json_response(
        {
            "message_id": name,
            "delivered": outcome.delivered,
            "http_status": outcome.status,
            "error": outcome.error,
            "duration_ms": round(outcome.seconds * 1_000),
        }
    )


@router.post("/{webhook_id}/redeliver", status_code=202, responses=WRITE_PROBLEMS | {
    202: {"description": "Will be sent.", "content": {"application/json": {"schema": _REDELIVERY}}}
})  # fmt: skip
async def redeliver(webhook_id: Id, body: Redelivery, opened: Open, who: Who) -> Response:
    """Send what fits among these positions once more, beside what is new and under the same message ids."""
    webhook = await _held(opened, who, webhook_id)
    first, last = _range(body)
    end = min(last + 1, await opened.reader.size())
    if first >= end:
        raise WebhookRangeError("the range begins behind the end of the log", from_position=first, size=end)
    number = await WebhookStore(opened.reader.pool).redeliver(webhook.id, first, end, who.subject)
    return json_response({"redelivery": number, "from_position": first, "to_position": end - 1}, 202)


@router.get("/{webhook_id}/deliveries", responses=answers(page_of(_DELIVERY), READ_PROBLEMS))
async def list_deliveries(
    webhook_id: Id, opened: Open, who: Who,
    status: Annotated[
        Literal["failing", "delivered", "dead", "redelivered"] | None, Query(description="`dead` was given up.")
    ] = None,
    limit: Limit = 100, cursor: Cursor = None,
) -> Response:  # fmt: skip
    """List what was sent and how it went, the latest position first; dead letters are those with the status `dead`."""
    await _seen(opened, who, webhook_id, None)
    store = WebhookStore(opened.reader.pool)
    found = await store.deliveries(webhook_id, status=status, before=_before(cursor), limit=limit + 1)
    places = [{"place": f"{row['position']}.{row['redelivery']}"} for row in found]
    return json_response(page(places, limit, "place") | {"items": found[:limit]})


def _range(body: Redelivery) -> tuple[int, int]:
    """Read which positions are meant, both ends included.

    Errors: webhook_range_invalid.
    """
    first, last = body.from_position, body.to_position
    if body.position is not None and first is None and last is None:
        return body.position, body.position
    if body.position is not None or first is None or last is None or last < first:
        raise WebhookRangeError
    return first, last


def _before(cursor: str | None) -> tuple[int, int]:
    """Read which delivery a page begins behind.

    Errors: invalid_cursor.
    """
    text = before_of(cursor)
    if text is None:
        return POSITION_MAX, 0
    found = _PLACE.fullmatch(text)
    if found is None:
        raise InvalidCursorError
    return int(found[1]), int(found[2])


async def _seen(opened: Runtime, who: Caller, name: str, as_of: str | None) -> Webhook:
    """Read a webhook the caller may see.

    Errors: forbidden, webhook_not_found.
    """
    need_role(who, *SEEN_BY)
    size = await size_as_of(opened, as_of)
    found = await seen(opened, who, Webhook, name, WebhookNotFoundError, size)
    assert isinstance(found, Webhook)
    return found


async def _held(opened: Runtime, who: Caller, name: str) -> Webhook:
    """Read a webhook the caller may use.

    Errors: forbidden, webhook_not_found.
    """
    need_role(who, *HOLDERS)
    webhook = await _seen(opened, who, name, None)
    if webhook.status == "deleted":
        raise WebhookNotFoundError(id=name)
    if webhook.scope == "all":
        need_role(who, "operator")
    return webhook
