"""The service about itself: health, metrics, keys and its own description."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.http import Open, json_response
from domain.errors import UnavailableError
from ops import telemetry

router = APIRouter(tags=["system"])


@router.get("/health")
async def health() -> Response:
    """Say that the process answers."""
    return json_response({"status": "ok"})


@router.get("/ready", responses={503: {"description": "The log cannot be read."}})
async def ready(opened: Open) -> Response:
    """Say whether the log can be read and written."""
    try:
        size = await opened.reader.size()
    except UnavailableError as outage:
        return json_response({"status": "unavailable", "code": outage.code}, 503)
    return json_response({"status": "ready", "origin": opened.signer.name, "size": size})


@router.get("/metrics")
async def metrics() -> Response:
    """Print Prometheus metrics."""
    return Response(telemetry.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/.well-known/jwks.json")
async def jwks(request: Request) -> Response:
    """Publish the key of the local token issuer."""
    return json_response(request.app.state.issuer.jwks())
