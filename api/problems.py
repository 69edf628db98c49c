"""Errors on the wire: every one is printed here, once, as RFC 9457 problem details."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from domain import errors
from domain.errors import LedgerError
from ops import telemetry

log = telemetry.logger(__name__)

MEDIA_TYPE = "application/problem+json"
ERRORS_MAX = 20

# What older clients know a bad field by. A field that is not listed answers missing_field or invalid_field.
FIELD_ERRORS: dict[str, type[LedgerError]] = {
    "seller_node_id": errors.SellerRequiredError,
    "dataset_fingerprint": errors.DatasetFingerprintRequiredError,
    "price_per_round": errors.PriceInvalidError,
    "min_rounds": errors.MinRoundsInvalidError,
    "sample_count": errors.SampleCountInvalidError,
    "quality_score": errors.QualityScoreInvalidError,
    "expires_at": errors.ExpiresAtInvalidError,
    "allowed_tasks": errors.AllowedTasksInvalidError,
    "model_owner_id": errors.ModelOwnerRequiredError,
    "task_type": errors.TaskTypeRequiredError,
    "budget_total": errors.BudgetInvalidError,
    "min_quality_score": errors.MinQualityInvalidError,
    "required_modalities": errors.RequiredModalitiesInvalidError,
    "deadline_ts": errors.DeadlineInvalidError,
    "status": errors.StatusInvalidError,
    "payout_status": errors.StatusInvalidError,
    "round_intent_id": errors.IntentIdRequiredError,
    "max_offers": errors.MaxOffersInvalidError,
    "contract_id": errors.ContractIdRequiredError,
    "intent": errors.IntentRequiredError,
    "amount": errors.AmountInvalidError,
    "currency": errors.CurrencyUnknownError,
    "Idempotency-Key": errors.InvalidIdempotencyKeyError,
}
# The same word in another place.
PATH_FIELD_ERRORS: dict[tuple[str, str], type[LedgerError]] = {
    ("disputes", "reason"): errors.DisputeReasonRequiredError,
    ("disputes", "status"): errors.DisputeStatusInvalidError,
}


def install(app: FastAPI) -> None:
    """Make every error of an application a problem."""
    app.add_exception_handler(LedgerError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _bug)


def respond(error: LedgerError, extra: dict[str, Any] | None = None) -> Response:
    """Print a refusal."""
    headers = {}
    if isinstance(wait := error.facts.get("retry_after_s"), int):
        headers["Retry-After"] = str(wait)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.internal:
        log.warning("refused", code=error.code, detail=error.message, internal=error.internal)
    return _printed(error.problem() | (extra or {}), error.status, headers)


def _printed(problem: dict[str, Any], status: int, headers: dict[str, str] | None = None) -> Response:
    # Written in ASCII: whatever a caller sent and a message repeats, it can be printed.
    return Response(json.dumps(problem, default=str), status, headers, media_type=MEDIA_TYPE)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, LedgerError)
    return respond(error)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return respond_invalid(request.url.path, error.errors())


def respond_invalid(path: str, faults: Sequence[Any]) -> Response:
    """Print what pydantic found: the first fault gives the code, all are listed with JSON pointers."""
    shown = [
        _place(fault["loc"]) | {"message": fault["msg"], "code": _class_of(path, fault).code}
        for fault in faults[:ERRORS_MAX]
    ]
    first = _class_of(path, faults[0])
    where = ".".join(str(part) for part in faults[0]["loc"][1:])
    message = f"{where}: {faults[0]['msg']}" if where else str(faults[0]["msg"])
    return respond(first(message), {"errors": shown})


def _class_of(path: str, fault: Any) -> type[LedgerError]:
    if len(fault["loc"]) < 2:
        return errors.InvalidError
    if fault["type"] == "extra_forbidden":
        return errors.UnknownFieldError
    resource = path.rstrip("/").rsplit("/", 1)[-1]
    for name in reversed([part for part in fault["loc"][1:] if isinstance(part, str)]):
        if found := PATH_FIELD_ERRORS.get((resource, name)) or FIELD_ERRORS.get(name):
            unknown = fault["type"] == "currency" and found is errors.AmountInvalidError
            return errors.CurrencyUnknownError if unknown else found
    return errors.MissingFieldError if fault["type"] == "missing" else errors.InvalidFieldError


def _place(loc: Sequence[Any]) -> dict[str, str]:
    """Say where a fault is: a JSON pointer into the body, or the name of a parameter."""
    if loc and loc[0] != "body":
        return {"parameter": ".".join(str(part) for part in loc[1:]), "in": str(loc[0])}
    parts = [str(part).replace("~", "~0").replace("/", "~1") for part in loc[1:]]
    return {"pointer": "".join(f"/{part}" for part in parts)}


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, LedgerError):
        return respond(error.__cause__)  # a refusal the framework took for a fault of the body
    known: dict[int, type[LedgerError]] = {
        404: errors.NotFoundError,
        405: errors.MethodNotAllowedError,
        413: errors.BodyTooLargeError,
        415: errors.UnsupportedMediaTypeError,
    }
    response = respond(known.get(error.status_code, errors.InvalidError)())
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    if error.status_code == 405:
        response.headers["Allow"] = ", ".join(_methods(request))
    return response


def _methods(request: Request) -> list[str]:
    """List the methods a path answers, over all of its routes; the router knows of the first only."""
    scope, routes = dict(request.scope), request.app.routes
    methods = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
    return [m for m in methods if any(r.matches(scope | {"method": m})[0] is Match.FULL for r in routes)]


async def _bug(request: Request, error: Exception) -> Response:
    """Answer a fault of ours: the caller gets a trace id, the log gets the rest."""
    trace_id = secrets.token_hex(8)
    log.error("bug", trace_id=trace_id, path=request.url.path, exc_info=error)
    problem = {
        "type": errors.PROBLEM_BASE + "internal",
        "title": "The service made a mistake.",
        "status": 500,
        "code": "internal",
        "error": "internal",
        "message": "The service made a mistake; it was written down under this trace id.",
        "trace_id": trace_id,
    }
    return _printed(problem, 500)
