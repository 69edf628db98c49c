"""Dead letters over HTTP: what could not be taken in, why, and what became of it. For the platform's own people."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response

from api.http import (
    WRITE_PROBLEMS,
    Cursor,
    Id,
    JsonRoute,
    Limit,
    Open,
    Who,
    answers,
    before_of,
    json_response,
    object_of,
    page,
    page_of,
)
from domain.billing.accounts import PLATFORM
from domain.errors import DeadLetterNotFoundError, ForbiddenError, InvalidCursorError
from domain.fields import Command, JsonObject, Reason
from domain.ledger import Caller
from ops.dead_letters import DeadLetter, DeadLetters
from projections.ingest import requeue

router = APIRouter(prefix="/v1", tags=["dead letters"], route_class=JsonRoute)

LETTER = object_of(
    id="integer",
    kind={"enum": ["message", "projection"]},
    source="string",
    topic="string",
    partition="integer",
    offset="integer",
    key=["string", "null"],
    headers={"type": "array", "items": {"type": "array"}},
    payload_bytes=["integer", "null"],
    code="string",
    detail="string",
    attempts="integer",
    first_seen_at="string",
    last_seen_at="string",
    state={"enum": ["open", "requeued", "discarded"]},
    closed_by=["string", "null"],
    note=["string", "null"],
)
WHOLE_LETTER = {"allOf": [LETTER, object_of(payload=["string", "null"], payload_base64=["string", "null"])]}

Word = Annotated[str | None, Query(max_length=128, pattern=r"^[ -~]+$")]


class RequeueDeadLetter(Command):
    """Have a dead letter taken in: as it came, or the reading put in its place."""

    reading: JsonObject | None = None


class DiscardDeadLetter(Command):
    """Give a dead letter up."""

    reason: Reason


def _check(who: Caller, *more: str) -> None:
    """Refuse whoever is not of the platform: letters hold what every tenant's programs sent.

    Errors: forbidden.
    """
    ours = who.tenant == PLATFORM and who.roles & {"billing", *more}
    if "operator" not in who.roles and not ours:
        raise ForbiddenError("dead letters are for operators, and for the platform's own billing")


def _number(letter_id: str) -> int:
    """Read the number of a letter; whatever is none is nobody's.

    Errors: dead_letter_not_found.
    """
    if not letter_id.isascii() or not letter_id.isdigit() or len(letter_id) > 18:
        raise DeadLetterNotFoundError(id=letter_id)
    return int(letter_id)


def shown(letter: DeadLetter, *, whole: bool = False) -> dict[str, Any]:
    """Print a letter, its payload only where one letter is asked for."""
    key, payload = letter.key, letter.payload
    found: dict[str, Any] = {
        "id": letter.id,
        "kind": letter.kind,
        "source": letter.source,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "key": None if key is None else key.decode("utf-8", "replace"),
        "headers": letter.headers,
        "payload_bytes": letter.payload_bytes,
        "code": letter.code,
        "detail": letter.detail,
        "attempts": letter.attempts,
        "first_seen_at": letter.first_seen_at,
        "last_seen_at": letter.last_seen_at,
        "state": letter.state,
        "closed_by": letter.closed_by,
        "note": letter.note,
    }
    if whole:
        found["payload"] = None if payload is None else payload.decode("utf-8", "replace")
        found["payload_base64"] = None if payload is None else base64.b64encode(payload).decode()
    return found


@router.get("/dead_letters", responses=answers(page_of(LETTER)))
async def list_dead_letters(
    opened: Open,
    who: Who,
    limit: Limit = 100,
    cursor: Cursor = None,
    state: Annotated[
        Literal["open", "requeued", "discarded", "all"], Query(description="In which state.")
    ] = "open",
    source: Word = None,
    code: Word = None,
) -> Response:
    """List dead letters, the latest first, without their payloads."""
    _check(who, "auditor")
    before = before_of(cursor)
    if before is not None and not (before.isdigit() and len(before) < 19):
        raise InvalidCursorError
    found = await DeadLetters(opened.reader.pool).list(
        state=None if state == "all" else state,
        source=source,
        code=code,
        before=None if before is None else int(before),
        limit=limit + 1,
    )
    return json_response(page([shown(letter) for letter in found], limit))


@router.get("/dead_letters/{letter_id}", responses=answers(WHOLE_LETTER))
async def get_dead_letter(letter_id: Id, opened: Open, who: Who) -> Response:
    """Show a dead letter with its payload."""
    _check(who, "auditor")
    return json_response(shown(await DeadLetters(opened.reader.pool).get(_number(letter_id)), whole=True))


@router.post("/dead_letters/{letter_id}/requeue", responses=answers(LETTER, WRITE_PROBLEMS))
async def requeue_dead_letter(
    letter_id: Id, opened: Open, who: Who, body: RequeueDeadLetter | None = None
) -> Response:
    """Have a dead letter taken in again; it is closed once it is in the log, and stays open where it is not."""
    _check(who)
    mended = None if body is None else body.reading
    letters = DeadLetters(opened.reader.pool)
    return json_response(shown(await requeue(opened.ledger, letters, _number(letter_id), who, mended)))


@router.post("/dead_letters/{letter_id}/discard", responses=answers(LETTER, WRITE_PROBLEMS))
async def discard_dead_letter(letter_id: Id, command: DiscardDeadLetter, opened: Open, who: Who) -> Response:
    """Give a dead letter up, with a reason; it is kept, and never taken in."""
    _check(who)
    letters = DeadLetters(opened.reader.pool)
    return json_response(
        shown(await letters.mark(_number(letter_id), "discarded", who.subject, command.reason))
    )
