"""Governance in columns: what was exported and imported, inspected, reviewed, signed, published, claimed and ended.

Each event states some of the columns and leaves the others empty; `_Said` names the members that are read. Which
persona a capsule, its review and its signing belong to is known from the first record of the capsule's stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from domain.errors import LedgerError
from domain.log.records import ADDRESS_PREFIX, decode
from projections.columns import (
    ADDRESS,
    MOMENT,
    TEXT,
    U64,
    Reading,
    Rows,
    Shape,
    Subject,
    Tables,
    kind_of,
    root_of,
    schema_of,
    table,
)

GOVERNANCE_ROWS: Reading[msgspec.Raw] = Reading(msgspec.Raw, msgspec.Raw(b"{}"))

KINDS = (
    "persona", "capsule", "export", "import", "download", "evaluation", "review", "signing", "signer_policy",
    "constitution", "claim",
)  # fmt: skip
WORDS = pa.list_(pa.field("item", TEXT, nullable=False))
U32 = pa.uint32()

GOVERNANCE_EVENTS = Shape(
    "governance_events",
    schema_of(
        kind=TEXT,
        subject=TEXT,
        position=U64,
        address=ADDRESS,
        at=MOMENT,
        tenant=TEXT,
        event=TEXT,
        version=U64,
        actor=TEXT,
        persona_id=TEXT,
        persona_version=TEXT,
        capsule=TEXT,
        archive=TEXT,
        decision=TEXT,
        verdict=TEXT,
        code=TEXT,
        reason=TEXT,
        person=TEXT,
        is_override=pa.bool_(),
        threshold=U32,
        signed=WORDS,
        missing=WORDS,
        policy=TEXT,
        constitution=TEXT,
        rules=TEXT,
        judged_by=TEXT,
        findings=U32,
        bytes=U64,
    ),
)

# Kinds whose id is the hex of the capsule they are about.
_OF_CAPSULES = frozenset({"capsule", "review", "signing"})
_BLANK: dict[pa.DataType, Any] = {TEXT: "", U32: 0, U64: 0, WORDS: [], pa.bool_(): False}


class _Signer(msgspec.Struct, gc=False):
    name: str = ""


class _Judged(msgspec.Struct, gc=False):
    """What a policy said, where one was asked."""

    package: str = ""
    policy_digest: str = ""


class _Said(msgspec.Struct, gc=False):
    """The members of events that have a column; whatever else they say is in the mirror."""

    persona_id: str | None = None
    version: str | int | None = None
    capsule: str | None = None
    archive: str | None = None
    archive_bytes: int | None = None
    report: str | None = None
    report_bytes: int | None = None
    decision: str | None = None
    review: str | None = None
    status: str | None = None
    verdict: str | None = None
    passed: bool | None = None
    code: str | None = None
    detail: str | None = None
    mark: str | None = None
    right: str | None = None
    reason: str | None = None
    resolution: str | None = None
    notes: str | None = None
    reviewer: str | None = None
    submitted_by: str | None = None
    claimant: str | None = None
    name: str | None = None
    is_override: bool | None = None
    threshold: int | None = None
    signed: list[str | _Signer] | None = None
    missing: list[str] | None = None
    policy: str | None = None
    constitution: str | None = None
    address: str | None = None
    rules_digest: str | None = None
    finding_count: int | None = None
    judgement: _Judged | None = None
    approved_by: list[str] | None = None


_said = msgspec.json.Decoder(_Said)


def governance(rows: Rows[msgspec.Raw], parents: Mapping[str, Sequence[Subject]]) -> Tables:
    """Tell the governance of a batch; a record that cannot be told is named and left out."""
    places: list[int] = []
    found: list[dict[str, Any]] = []
    for place, envelope in enumerate(rows.envelopes):
        if kind_of(envelope.stream) not in KINDS or not envelope.version:
            continue
        try:
            # The event is read in full once, so that one nobody knows is told and not half kept.
            decode(rows.stored[place].record)
            row = _row(envelope.stream, envelope.type, _said.decode(envelope.data), parents)
        except (LedgerError, msgspec.MsgspecError) as error:
            rows.refuse(place, error)
        else:
            places.append(place)
            found.append(row)
    columns: dict[str, Any] = rows.pick(places, "position", "address", "at", "tenant", "version", "actor")
    for field in GOVERNANCE_EVENTS.schema:
        if field.name not in columns:
            columns[field.name] = [row.get(field.name) or _BLANK[field.type] for row in found]
    return {GOVERNANCE_EVENTS.name: table(GOVERNANCE_EVENTS, columns)}


def _row(
    stream: str, wire_type: str, said: _Said, parents: Mapping[str, Sequence[Subject]]
) -> dict[str, Any]:
    kind, _, subject = stream.partition("/")
    above = dict(parents.get(root_of(stream), ()))
    digits = subject if kind in _OF_CAPSULES else above.get("capsule", "")
    return {
        "kind": kind,
        "subject": subject,
        "event": wire_type.partition(".")[2],
        "persona_id": subject if kind == "persona" else said.persona_id or above.get("persona", ""),
        "persona_version": str(said.version or ""),
        "capsule": said.capsule or (ADDRESS_PREFIX + digits if digits else ""),
        "archive": said.archive,
        "decision": said.decision or said.review or said.status,
        "verdict": said.verdict or {True: "passed", False: "failed", None: ""}[said.passed],
        "code": said.code,
        "reason": said.reason or said.resolution or said.notes or said.detail or said.mark or said.right,
        "person": said.reviewer
        or said.submitted_by
        or said.claimant
        or (said.name if kind == "signer_policy" else ""),
        "is_override": said.is_override,
        "threshold": said.threshold,
        "signed": [
            one if isinstance(one, str) else one.name for one in said.signed or said.approved_by or ()
        ],
        "missing": said.missing,
        "policy": said.policy or (said.address if kind == "signer_policy" else ""),
        "constitution": said.constitution or (said.address if kind == "constitution" else ""),
        "rules": said.rules_digest,
        "judged_by": said.judgement.policy_digest if said.judgement else "",
        "findings": said.finding_count,
        "bytes": said.archive_bytes or said.report_bytes,
    }
