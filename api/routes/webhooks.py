"""Webhooks over HTTP."""

from __future__ import annotations

from fastapi import APIRouter

from api.http import JsonRoute

router = APIRouter(prefix="/v1/webhooks", tags=["feeds"], route_class=JsonRoute)
