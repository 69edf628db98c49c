"""The service about itself: health, metrics, keys and its own description."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from api.http import PUBLIC, Open, answers, json_response, object_of
from domain.errors import UnavailableError
from ops import telemetry

router = APIRouter(tags=["system"])

READY = object_of(status={"const": "ready"}, origin="string", size="integer")
AWAY: dict[str, Any] = {
    "description": "The log cannot be read.",
    "content": {"application/json": {"schema": {"type": "object"}}},
}
TEXT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The Prometheus text format.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}
KEYS = object_of(keys={"type": "array", "items": {"type": "object"}})


@router.get("/health", responses=answers(object_of(status="string"), {}), openapi_extra=PUBLIC)
async def health() -> Response:
    """Say that the process answers."""
    return json_response({"status": "ok"})


@router.get("/ready", responses=answers(READY, {503: AWAY}), openapi_extra=PUBLIC)
async def ready(opened: Open) -> Response:
    """Say whether the log can be read and written."""
    try:
        size = await opened.reader.size()
    except UnavailableError as outage:
        return json_response({"status": "unavailable", "code": outage.code}, 503)
    return json_response({"status": "ready", "origin": opened.signer.name, "size": size})


@router.get("/metrics", responses=TEXT, response_class=PlainTextResponse, openapi_extra=PUBLIC)
async def metrics() -> Response:
    """Print Prometheus metrics."""
    return Response(telemetry.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/.well-known/jwks.json", responses=answers(KEYS, {}), openapi_extra=PUBLIC)
async def jwks(request: Request) -> Response:
    """Publish the key of the local token issuer."""
    return json_response(request.app.state.issuer.jwks())
