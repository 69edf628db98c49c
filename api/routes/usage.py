"""Usage over HTTP: readings in, one by one or by the thousand, what was taken, and what was put right."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import Field, ValidationError

from api.http import (
    WRITE_PROBLEMS,
    AsOf,
    Cursor,
    Envelope,
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
    json_bytes,
    json_response,
    lists,
    object_of,
    page,
    parse_json,
    reads,
    sees_all,
    shows,
)
from api.routes.market import show
from domain.billing.readings import Readings, read_readings
from domain.billing.usage import (
    READINGS_MAX,
    CorrectUsage,
    Metered,
    MeterUsage,
    Reading,
    Usage,
    correct_usage,
    meter_usage,
)
from domain.errors import ForbiddenError, InvalidCursorError, UsageNotFoundError
from domain.ledger import Answer, Caller
from domain.values import Tenant
from ops.runtime import Runtime

router = APIRouter(prefix="/v1", tags=["usage"], route_class=JsonRoute)

CorrectionBody = body_of(CorrectUsage, "usage_id")

# Readings of one command: what is decided at once keeps the loop for some ten milliseconds.
PART = 1_000
# Of one request: enough for the writer to be busy, and few enough for others to be heard in between.
PARTS_AT_ONCE = 3

_answers = msgspec.json.Decoder(Metered)

BODY = {
    "type": "object",
    "additionalProperties": False,
    "required": ["readings"],
    "properties": {
        "readings": {
            "type": "array",
            "minItems": 1,
            "maxItems": READINGS_MAX,
            # One that is no reading is no fault of the request: it is answered for under `rejected`.
            "items": {
                "anyOf": [Reading.model_json_schema(), {"description": "Anything else is rejected alone."}]
            },
        }
    },
}
REJECTED = object_of(index="integer", code="string", detail="string")
COUNTED = object_of(
    inserted="integer",
    duplicates="integer",
    rejected={"type": "array", "items": REJECTED},
    receipt={"$ref": "#/components/schemas/Receipt"},
)


class UsagePart(MeterUsage):
    """A part of what was sent, and of how much: a key used again for something else is seen in every part."""

    part: int = Field(ge=0)
    count: int = Field(ge=1)


Part = Readings | UsagePart


async def _parts(request: Request, who: Who) -> Sequence[Part]:
    """Read the readings in a thread: thousands of them would keep everybody else waiting."""
    return await asyncio.to_thread(_read, await json_bytes(request), who.tenant)


def _read(data: bytes, tenant: str) -> Sequence[Part]:
    parts: Sequence[Part] = read_readings(data, PART) or _read_one_by_one(data)
    for part in parts:
        part.names(tenant)  # kept: the loop need not work them out
    return parts


def _read_one_by_one(data: bytes) -> Sequence[Part]:
    """Read each reading by itself, so that one that is none does not take others with it."""
    try:
        readings = MeterUsage.model_validate(parse_json(data)).readings
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        raise RequestValidationError(
            [fault | {"loc": ("body", *fault["loc"])} for fault in faults]
        ) from error
    return [
        UsagePart(readings=readings[start : start + PART], part=start // PART, count=len(readings))
        for start in range(0, len(readings), PART)
    ]


@router.post(
    "/usage",
    responses=answers(COUNTED, WRITE_PROBLEMS),
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": BODY}}}},
)
async def meter(
    parts: Annotated[Sequence[Part], Depends(_parts)], opened: Open, who: Who, sent: Sent
) -> Response:
    """Take usage readings in, 1 to 10,000; say how many were new, how many known, and which were rejected."""
    at_once = asyncio.Semaphore(PARTS_AT_ONCE)
    takings = [_take(opened, who, sent, number, part, at_once) for number, part in enumerate(parts)]
    taken = await asyncio.gather(*takings, return_exceptions=True)
    for outcome in taken:
        if isinstance(outcome, BaseException):
            # What the other parts took stays taken; whoever sends all of it again hears of duplicates.
            raise outcome
    return json_response(_summed([outcome for outcome in taken if isinstance(outcome, Answer)]))


async def _take(
    opened: Runtime, who: Caller, sent: Envelope, number: int, part: Part, at_once: asyncio.Semaphore
) -> Answer:
    key = sent.key
    if key is not None and number:
        key = f"{sha256(key.encode()).hexdigest()}-{number}"
    async with at_once:
        return await opened.ledger.act(meter_usage, part, who, key=key, correlation=sent.correlation)


def _summed(taken: Sequence[Answer]) -> dict[str, Any]:
    counted = [_answers.decode(answer.body) for answer in taken]
    positions = [answer.position for answer in taken if answer.position is not None]
    return {
        "inserted": sum(one.inserted for one in counted),
        "duplicates": sum(one.duplicates for one in counted),
        "rejected": [
            {"index": number * PART + bad.index, "code": bad.code, "detail": bad.detail}
            for number, one in enumerate(counted)
            for bad in one.rejected
        ],
        "receipt": {
            "position": min(positions, default=None),
            "event_count": sum(answer.event_count for answer in taken),
            "repeated": all(answer.repeated for answer in taken),
        },
    }


@router.post("/usage/{usage_id}/corrections", status_code=201, responses=shows(Usage, 201))
async def correct(usage_id: Id, body: CorrectionBody, opened: Open, who: Who, sent: Sent) -> Response:  # type: ignore[valid-type]
    """Put a reading right: what is given holds from now on, and the earlier values stay in the log."""
    command = completed(CorrectUsage, body, usage_id=usage_id)
    return await act(opened, correct_usage, command, who, sent, status=201)


@router.get("/usage", responses=lists(Usage))
async def list_usage(
    opened: Open,
    who: Who,
    limit: Limit = 100,
    cursor: Cursor = None,
    tenant: Annotated[
        Tenant | None, Query(description="Whose, for those who see all; the caller's without it.")
    ] = None,
) -> Response:
    """List the usage of one tenant, the latest taken first; each with its position in the log."""
    if tenant not in (None, who.tenant) and not sees_all(who):
        raise ForbiddenError("only operators and auditors see the usage of other tenants")
    before = before_of(cursor)
    if before is not None and not (before.isdigit() and len(before) < 19):
        raise InvalidCursorError
    items = await opened.reader.usage(
        tenant or who.tenant, before=None if before is None else int(before), limit=limit + 1
    )
    return json_response(page(items, limit, "position"))


@router.get("/usage/{usage_id}", responses=reads(Usage))
async def get_usage(usage_id: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show a reading as it stands; where it was put right, what was taken at first stands beside it."""
    return await show(opened, who, Usage, usage_id, UsageNotFoundError, as_of)
