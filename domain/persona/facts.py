"""What is asked and shown of a capsule: the plain facts that policies weigh and the catalogue lists."""

from __future__ import annotations

from typing import Any

from domain.ledger import Case
from domain.persona.manifest import PersonaManifest
from domain.persona.manifest_faults import invalid
from domain.trust.constitutions import Constitution
from domain.trust.questions import (
    Asker,
    CapsuleFacts,
    MemoryFacts,
    ModelFacts,
    PriceFacts,
    SignatureFacts,
    ToolFacts,
    TrainingFacts,
)
from domain.trust.signatures import Verification
from domain.trust.training import TrainingMode


def asker(case: Case) -> Asker:
    """Name who asks."""
    return Asker.of(case.caller.subject, case.caller.tenant, case.caller.roles)


def owners_of(manifest: dict[str, Any]) -> list[str]:
    """List the subjects a persona belongs to; none of them approves or signs it."""
    return [owner["subject"] for owner in manifest["metadata"]["owners"]]


def check_recordable(manifest: PersonaManifest) -> None:
    """Refuse a manifest that spells the character NUL, for no record may hold that.

    Errors: manifest_invalid.
    """
    if b"\\u0000" in manifest.sealed()[0]:
        raise invalid([{"path": "", "why": "a text in it spells the character NUL as \\u0000", "got": None}])


def capsule_facts(manifest: dict[str, Any], address: str, tenant: str, status: str) -> CapsuleFacts:
    """Say of a manifest what a policy may weigh."""
    metadata, model, memory, governance = (
        manifest[block] for block in ("metadata", "model_box", "memory", "governance")
    )
    bundle = next((part["bytes"] for part in manifest["artifacts"] if part["name"] == memory["bundle"]), 0)
    return CapsuleFacts(
        address=address,
        persona_id=metadata["persona_id"],
        version=metadata["version"],
        tenant=tenant,
        owners=owners_of(manifest),
        tools=[
            ToolFacts(tool=t["tool"], access_scope=t["access_scope"], required=t["required"])
            for t in manifest["tools"]
        ],
        model=ModelFacts(model_box_id=model["model_box_id"], provider=model["provider"]),
        memory=MemoryFacts(item_count=memory["item_count"], dimension=memory["dimension"], bytes=bundle),
        pricing=[
            PriceFacts(model=p["model"], amount=p["price"]["amount"], currency=p["price"]["currency"])
            for p in manifest["pricing"]
        ],
        constitution=governance["constitution"],
        kill_switch_enabled=governance["kill_switch_enabled"],
        status=status,
    )


def training_facts(case: Case, tenant: str, fence: int | None) -> TrainingFacts:
    """Say whether a tenant's training lock is on, and whether this is its fence."""
    mode = case.find(TrainingMode, tenant)
    if mode is None or not mode.is_on(case.now):
        return TrainingFacts(on=False, fence_fresh=True)
    return TrainingFacts(on=True, fence_fresh=fence == mode.fence)


def signature_facts(verification: Verification) -> SignatureFacts:
    """Say how far a verification came."""
    return SignatureFacts(
        threshold=verification.threshold,
        signed=len(verification.signed),
        verified=verification.verified,
    )


def constitution_in_force(case: Case) -> str | None:
    """Give the address of the constitution in force, or None before one was adopted."""
    found = case.find(Constitution, "platform")
    return found.versions[-1].address if found is not None and found.versions else None
