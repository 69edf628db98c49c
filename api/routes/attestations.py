"""Attestations over HTTP: what travels beside a capsule's archive, for those who verify or import it elsewhere."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from fastapi.responses import Response

from api.http import READ_PROBLEMS, JsonRoute, Open, Who, answers, json_response, object_of
from api.routes.capsules import CapsuleId
from domain.errors import (
    CapsuleNotFoundError,
    ConstitutionNotFoundError,
    SignerPolicyNotFoundError,
    SigningNotFoundError,
)
from domain.persona.capsules import Capsule, may_read
from domain.persona.imports import SCHEMA
from domain.persona.manifest import capsule_id as digits_of
from domain.trust.constitutions import CONSTITUTION, Constitution
from domain.trust.pinned import PolicyVersion
from domain.trust.signatures import Signing
from domain.trust.signers import SignerPolicy
from ops.runtime import Runtime

router = APIRouter(prefix="/v1/capsules", tags=["capsules"], route_class=JsonRoute)

ATTESTATIONS = object_of(
    schema={"const": SCHEMA},
    capsule="string",
    policy="object",
    constitution="object",
    envelopes={"type": "array", "items": {"type": "object"}},
)


@router.get("/{capsule_id}/attestations", responses={**READ_PROBLEMS, **answers(ATTESTATIONS)})
async def get_attestations(capsule_id: CapsuleId, opened: Open, who: Who) -> Response:
    """Give the envelopes of a capsule with the policy and the constitution they name: all an importer verifies."""
    name = digits_of(capsule_id)
    capsule = await _read(opened, Capsule, name)
    if not isinstance(capsule, Capsule) or not (capsule.published_at or may_read(who, capsule)):
        raise CapsuleNotFoundError(id=name)
    signing = await _read(opened, Signing, name)
    if not isinstance(signing, Signing):
        raise SigningNotFoundError("nobody was asked to sign this capsule yet", id=name)
    return json_response(
        {
            "schema": SCHEMA,
            "capsule": signing.capsule,
            "policy": msgspec.to_builtins((await _policy(opened, signing)).document),
            "constitution": await _constitution(opened, signing),
            "envelopes": [msgspec.to_builtins(kept.envelope) for kept in signing.kept],
        }
    )


async def _policy(opened: Runtime, signing: Signing) -> PolicyVersion:
    policy = await _read(opened, SignerPolicy, signing.policy_name)
    assert isinstance(policy, SignerPolicy | None)
    for version in policy.versions if policy else []:
        if version.address == signing.policy:
            return version
    raise SignerPolicyNotFoundError(address=signing.policy)


async def _constitution(opened: Runtime, signing: Signing) -> Any:
    constitution = await _read(opened, Constitution, CONSTITUTION)
    assert isinstance(constitution, Constitution | None)
    for version in constitution.versions if constitution else []:
        if version.address == signing.constitution:
            return msgspec.to_builtins(version.document)
    raise ConstitutionNotFoundError(address=signing.constitution)


async def _read(opened: Runtime, cls: type[Any], name: str) -> Any:
    stream = f"{cls.KIND}/{name}"
    loaded = (await opened.reader.load([stream])).get(stream)
    return loaded.aggregate if loaded else None
