"""Personas over HTTP: taking an id, saying what it will be, and what became of it."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from fastapi.responses import Response

from api import timelines
from api.http import (
    AsOf,
    Id,
    JsonRoute,
    Open,
    Sent,
    Who,
    act,
    answers,
    body_of,
    completed,
    json_response,
    object_of,
    reads,
    sees_all,
    shows,
    size_as_of,
)
from domain.errors import PersonaNotFoundError
from domain.ledger import Caller
from domain.persona import personas
from domain.persona.personas import SHOWN, CreatePersona, DescribePersona, Persona
from ops.runtime import Runtime

router = APIRouter(prefix="/v1/personas", tags=["personas"], route_class=JsonRoute)

Description = body_of(DescribePersona, "persona_id")

ENTRIES = object_of(stream="string", entries={"type": "array", "items": {"type": "object"}})


@router.post("", status_code=201, responses=shows(Persona, 201))
async def create_persona(command: CreatePersona, opened: Open, who: Who, sent: Sent) -> Response:
    """Take a persona id; it is the caller's tenant's for good."""
    return await act(opened, personas.create_persona, command, who, sent, status=201)


@router.get("/{persona_id}", responses=reads(Persona))
async def get_persona(persona_id: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show a persona: all of it to its tenant and the platform, what was published to everybody else."""
    found = await _seen(opened, who, persona_id, await size_as_of(opened, as_of))
    return json_response(_shown_to(who, found), headers={"ETag": f'"{found.version}"'})


@router.patch("/{persona_id}", responses=shows(Persona))
async def describe_persona(
    persona_id: Id,
    body: Description,  # type: ignore[valid-type]
    opened: Open,
    who: Who,
    sent: Sent,
) -> Response:
    """Change what is said of a persona before a version of it is published."""
    command = completed(DescribePersona, body, persona_id=persona_id)
    return await act(opened, personas.describe_persona, command, who, sent)


@router.get("/{persona_id}/timeline", responses=answers(ENTRIES))
async def get_timeline(persona_id: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Tell what happened to a persona; to its tenant and the platform."""
    size = await size_as_of(opened, as_of)
    found = await _seen(opened, who, persona_id, size)
    if not is_insider(who, found):
        raise PersonaNotFoundError("its timeline is shown to its tenant and the platform", id=persona_id)
    entries = [timelines.entry(stored) for stored in await opened.reader.stream(found.stream, size=size)]
    return json_response({"stream": found.stream, "entries": entries})


def is_insider(who: Caller, persona: Persona) -> bool:
    """Say whether a caller sees versions that were never published: its tenant, the platform once one is submitted."""
    return sees_all(who) or who.tenant == persona.tenant or who.tenant in (persona.party_keys() or [])


async def _seen(opened: Runtime, who: Caller, name: str, size: int | None) -> Persona:
    """Read a persona the caller may see, now or in the log of a size.

    Errors: persona_not_found.
    """
    stream = f"persona/{name}"
    if size is None:
        loaded = (await opened.reader.load([stream])).get(stream)
        found = loaded.aggregate if loaded else None
    else:
        found = await opened.reader.state_at(stream, size)
    if not isinstance(found, Persona) or not (found.status != "draft" or is_insider(who, found)):
        raise PersonaNotFoundError(id=name)
    return found


def _shown_to(who: Caller, persona: Persona) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(persona)
    if not is_insider(who, persona):
        shown["versions"] = [one for one in shown["versions"] if one["status"] in SHOWN]
    return shown
