"""What the catalogue shows of a persona: its published version with the highest number, and how that one fares."""

from __future__ import annotations

from domain.ledger import Case
from domain.persona.capsules import Capsule, get_capsule
from domain.persona.personas import Compliance, Listing, Persona, PriceOption, note_version
from domain.values import Money


def relist(case: Case, persona: Persona, moved: Capsule) -> None:
    """Have the catalogue show the published version with the highest number, after a capsule moved."""
    note_version(case, persona, moved.persona_version, moved.address, moved.status)
    shown = [one for one in persona.versions if one.status == "published"]
    if shown:
        listing = listing_of(get_capsule(case, shown[-1].capsule))
        if listing != persona.published:
            case.emit(persona, Persona.Listed(listing=listing))
    elif persona.published is not None or persona.status not in ("draft", moved.status):
        case.emit(persona, Persona.Unlisted(status=moved.status))


def listing_of(capsule: Capsule) -> Listing:
    """Say what the catalogue shows of a published capsule: what was reviewed and signed, and how it fared."""
    manifest = capsule.manifest
    metadata, model, memory = manifest["metadata"], manifest["model_box"], manifest["memory"]
    return Listing(
        version=capsule.persona_version,
        capsule=capsule.address,
        published_at=capsule.published_at or "",
        display_name=metadata["display_name"],
        summary=metadata["summary"],
        domains=list(metadata["domains"]),
        model={"model_box_id": model["model_box_id"], "provider": model["provider"]},
        tools=[{"tool": t["tool"], "access_scope": t["access_scope"]} for t in manifest["tools"]],
        pricing=[
            PriceOption(option["model"], Money(**option["price"]), option["billing_period_minutes"])
            for option in manifest["pricing"]
        ],
        item_count=memory["item_count"],
        embedding_model=memory["embedding_model"],
        compliance=_compliance(capsule),
        trust=capsule.trust,
        degraded=list(capsule.degraded),
        token_estimate=capsule.token_estimate,
    )


def _compliance(capsule: Capsule) -> Compliance:
    scan = capsule.scan
    rules: dict[str, int] = {}
    for finding in scan.findings if scan else ():
        name = f"{finding.severity}: {finding.rule}"
        rules[name] = rules.get(name, 0) + 1
    notes = [f"{name} x {count}" for name, count in sorted(rules.items())[:16]]
    if capsule.is_override:
        return Compliance("override", ["published by an override", *notes])
    return Compliance("verified" if scan is not None and scan.verdict == "pass" else "warnings", notes)
