"""Personas on a shelf: real ones, made and listed through the gate, with what each test wants to search by."""

from __future__ import annotations

from typing import Any

from domain.fields import Command
from domain.ledger import Caller, Case, allow
from domain.log.records import address_text, digest
from domain.persona.personas import (
    Compliance,
    CreatePersona,
    Listing,
    Persona,
    create_persona,
    note_review,
    note_version,
    own_persona,
)
from ops.runtime import Runtime

NOTHING: dict[str, Any] = {}


class PutOnShow(Command):
    """List a persona as publication would, without the capsule behind it."""

    persona_id: str
    listing: dict[str, Any]


class TakeOff(Command):
    """Take a persona off the list."""

    persona_id: str
    status: str


class Submit(Command):
    """Say that a version of a persona waits for its review."""

    persona_id: str
    version: str


def member(tenant: str, *roles: str) -> Caller:
    """Name somebody of a tenant."""
    return Caller("mia", tenant, frozenset(roles or ("owner",)))


def capsule_of(persona_id: str, version: str) -> str:
    """Name a capsule; what is sealed in it is of no matter here."""
    return address_text(digest(f"{persona_id} {version}".encode()))


@allow()
def put_on_show(case: Case, command: PutOnShow) -> Persona:
    """List a persona."""
    persona = own_persona(case, command.persona_id)
    given = dict(command.listing)
    version = given.get("version", "1.0.0")
    capsule = capsule_of(persona.id, version)
    note_version(case, persona, version, capsule, "published")
    note_review(case, persona, version, "approved", submitting=True)
    listing = {
        "version": version,
        "capsule": capsule,
        "published_at": case.now,
        "display_name": persona.display_name,
        "summary": persona.summary,
        "domains": persona.domains,
        "model": {"model_box_id": "box-1", "provider": "north"},
        "tools": [],
        "pricing": [
            {"model": "rental", "price": {"amount": "2", "currency": "USD"}, "billing_period_minutes": 60}
        ],
        "item_count": 10,
        "embedding_model": "hashed",
        "trust": "verified",
        "degraded": [],
        "token_estimate": None,
    } | given
    compliance = listing.pop("compliance", {"badge": "verified", "notes": []})
    return case.emit(persona, Persona.Listed(listing=Listing(**listing, compliance=Compliance(**compliance))))


@allow()
def take_off(case: Case, command: TakeOff) -> Persona:
    """Take a persona off the list."""
    return case.emit(own_persona(case, command.persona_id), Persona.Unlisted(status=command.status))


@allow()
def submit(case: Case, command: Submit) -> Persona:
    """Let a version wait for its review."""
    persona = own_persona(case, command.persona_id)
    note_version(case, persona, command.version, capsule_of(persona.id, command.version), "submitted")
    note_review(case, persona, command.version, "pending", submitting=True)
    return persona


async def draft(rt: Runtime, persona_id: str, tenant: str = "acme", **said: Any) -> None:
    """Make a persona."""
    command = CreatePersona(**{"persona_id": persona_id, "display_name": persona_id.title()} | said)
    await rt.ledger.act(create_persona, command, member(tenant))


async def listed(
    rt: Runtime, persona_id: str, tenant: str = "acme", listing: dict[str, Any] = NOTHING, **said: Any
) -> None:
    """Make a persona and list it."""
    await draft(rt, persona_id, tenant, **said)
    await shown(rt, persona_id, tenant, **listing)


async def shown(rt: Runtime, persona_id: str, tenant: str = "acme", **listing: Any) -> None:
    """List a persona that is there, or list it otherwise."""
    await rt.ledger.act(put_on_show, PutOnShow(persona_id=persona_id, listing=listing), member(tenant))


async def submitted(rt: Runtime, persona_id: str, tenant: str = "acme", version: str = "1.0.0") -> None:
    """Submit a version of a persona that is there."""
    await rt.ledger.act(submit, Submit(persona_id=persona_id, version=version), member(tenant))


async def unlisted(rt: Runtime, persona_id: str, status: str, tenant: str = "acme") -> None:
    """Take a persona off the list."""
    await rt.ledger.act(take_off, TakeOff(persona_id=persona_id, status=status), member(tenant))
