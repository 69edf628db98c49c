"""Trust over HTTP: signer policies, the constitution, reviews, and who signs what."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from api.http import (
    AsOf,
    Cursor,
    Id,
    JsonRoute,
    Limit,
    Open,
    Sent,
    Who,
    act,
    answers,
    body_of,
    caller,
    completed,
    json_response,
    lists,
    object_of,
    reads,
    shows,
    size_as_of,
)
from api.routes.market import listed, seen
from domain.errors import (
    ConstitutionNotFoundError,
    LedgerError,
    NotFoundError,
    ReviewNotFoundError,
    SignerPolicyNotFoundError,
    SigningNotFoundError,
)
from domain.log.records import Aggregate, decode
from domain.persona import reviewing
from domain.trust import constitutions, signatures, signers
from domain.trust.constitutions import CONSTITUTION, AdoptConstitution, Constitution
from domain.trust.reviews import DecideReview, Review
from domain.trust.signatures import Signing, SubmitSignature, capsule_key, payload_of, verify_signing
from domain.trust.signers import AdoptPolicy, RecoverPolicy, RevokeKey, SignerPolicy
from domain.trust.verification import PAYLOAD_TYPE
from domain.values import moment_of
from ops import telemetry
from ops.reads import RecordFilter
from ops.runtime import Runtime

router = APIRouter(prefix="/v1", tags=["trust"], route_class=JsonRoute)

A = TypeVar("A", bound=Aggregate)

# For everybody with a token, whoever it is.
KNOWN = [Depends(caller)]

Revocation = body_of(RevokeKey, "policy")
PolicyRecovery = body_of(RecoverPolicy, "policy")
ReviewDecision = body_of(DecideReview, "capsule")
NewSignature = body_of(SubmitSignature, "capsule")

Mine = Annotated[bool, Query(description="Only what the caller submitted.")]


# --------------------------------------------------------------------------- signer policies


@router.post("/signer-policies", status_code=201, responses=shows(SignerPolicy, 201))
async def adopt_policy(command: AdoptPolicy, opened: Open, who: Who, sent: Sent) -> Response:
    """Bring a signer policy into force; every version but the first is signed by the one before."""
    return await _counted(act(opened, signers.adopt_policy, command, who, sent, status=201))


@router.get("/signer-policies", responses=lists(SignerPolicy), dependencies=KNOWN)
async def list_policies(opened: Open, limit: Limit = 100, cursor: Cursor = None) -> Response:
    """List the signer policies; everybody may know which keys count."""
    return await listed(opened, RecordFilter("signer_policy"), cursor, limit)


@router.get("/signer-policies/{name}", responses=reads(SignerPolicy), dependencies=KNOWN)
async def get_policy(name: Id, opened: Open, as_of: AsOf = None) -> Response:
    """Show a signer policy with its versions and the keys that were revoked."""
    return await _public(opened, SignerPolicy, name, SignerPolicyNotFoundError, as_of)


@router.post("/signer-policies/{name}/recovery", responses=shows(SignerPolicy))
async def recover_policy(name: Id, body: PolicyRecovery, opened: Open, who: Who, sent: Sent) -> Response:  # type: ignore[valid-type]
    """Propose or confirm a version of a policy whose keys can vouch for nothing any more; it takes two operators."""
    command = completed(RecoverPolicy, body, policy=name)
    return await act(opened, signers.recover_policy, command, who, sent)


@router.post("/signer-policies/{name}/revocations", responses=shows(SignerPolicy))
async def revoke_key(
    name: Id,
    body: Revocation,  # type: ignore[valid-type]
    opened: Open,
    who: Who,
    sent: Sent,
    request: Request,
) -> Response:
    """Take a key out of every version of a policy, at once and for good; what it signed is looked at again."""
    command = completed(RevokeKey, body, policy=name)
    response = await act(opened, signers.revoke_key, command, who, sent)
    request.app.state.trust_watch.look()
    return response


# --------------------------------------------------------------------------- the constitution


@router.post("/constitution", status_code=201, responses=shows(Constitution, 201))
async def adopt_constitution(command: AdoptConstitution, opened: Open, who: Who, sent: Sent) -> Response:
    """Bring a version of the constitution into force, signed by the threshold of the publication policy."""
    return await _counted(act(opened, constitutions.adopt_constitution, command, who, sent, status=201))


@router.get("/constitution", responses=reads(Constitution), dependencies=KNOWN)
async def get_constitution(opened: Open, as_of: AsOf = None) -> Response:
    """Show the constitution with all its versions, the last of which is in force."""
    return await _public(opened, Constitution, CONSTITUTION, ConstitutionNotFoundError, as_of)


# --------------------------------------------------------------------------- reviews


@router.get("/reviews", responses=lists(Review))
async def list_reviews(
    opened: Open,
    who: Who,
    status: Literal["pending", "approved", "rejected", "expired", "closed"] | None = None,
    mine: Mine = False,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List reviews, the newest first: all of them for the platform, else those of the caller's tenant."""
    wanted = RecordFilter("review", status=status, owner=who.subject if mine else None)
    return await listed(opened, wanted, cursor, limit, who)


@router.get("/reviews/{capsule}", responses=reads(Review))
async def get_review(capsule: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show the review of a capsule, by its address."""
    size = await size_as_of(opened, as_of)
    return _shown(await seen(opened, who, Review, capsule_key(capsule), ReviewNotFoundError, size))


@router.post("/reviews/{capsule}/decisions", responses=shows(Review))
async def decide_review(capsule: Id, body: ReviewDecision, opened: Open, who: Who, sent: Sent) -> Response:  # type: ignore[valid-type]
    """Approve a capsule or reject it; nobody decides on their own."""
    command = completed(DecideReview, body, capsule=capsule)
    try:
        response = await act(opened, reviewing.decide, command, who, sent)
    except LedgerError as refusal:
        telemetry.REVIEW_REFUSALS.labels(refusal.code).inc()
        raise
    found = _fresh(response)
    if found is not None:
        _note_decision(found)
    return response


def _note_decision(review: dict[str, Any]) -> None:
    made = review["decisions"][-1]
    if made["is_override"]:
        telemetry.REVIEW_OVERRIDES.inc()
    if review["status"] != "pending":
        age = telemetry.REVIEW_SECONDS.labels(review["status"])
        age.observe(_seconds(review["opened_at"], made["at"]))


# --------------------------------------------------------------------------- signatures


@router.get("/signings", responses=lists(Signing))
async def list_signings(
    opened: Open,
    who: Who,
    status: Literal["open", "completed"] | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List what is to be signed or was, the newest first: all of it for the platform, else the caller's tenant's."""
    return await listed(opened, RecordFilter("signing", status=status), cursor, limit, who)


@router.get("/signings/{capsule}", responses=reads(Signing))
async def get_signing(capsule: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show what is to be signed for a capsule, and the envelopes that came in."""
    size = await size_as_of(opened, as_of)
    return _shown(await seen(opened, who, Signing, capsule_key(capsule), SigningNotFoundError, size))


REQUEST = object_of(
    payloadType="string",
    payload={"type": "string", "format": "byte"},
    statement=object_of(
        capsule="string", constitution="string", not_after="string", policy="string", purpose="string"
    ),
)


@router.get("/signings/{capsule}/request", responses=answers(REQUEST))
async def signing_request(capsule: Id, opened: Open, who: Who) -> Response:
    """Give the very bytes to sign, and what they say; sign them by DSSE with the payload type."""
    signing = await seen(opened, who, Signing, capsule_key(capsule), SigningNotFoundError, None)
    assert isinstance(signing, Signing)
    statement = signing.statement()
    shown = {"payloadType": PAYLOAD_TYPE, "payload": payload_of(statement), "statement": statement}
    return json_response(msgspec.to_builtins(shown))


@router.post("/signings/{capsule}/signatures", responses=shows(Signing))
async def submit_signature(capsule: Id, body: NewSignature, opened: Open, who: Who, sent: Sent) -> Response:  # type: ignore[valid-type]
    """Bring an envelope; it is kept only if every signature in it counts."""
    command = completed(SubmitSignature, body, capsule=capsule)
    response = await _counted(act(opened, reviewing.sign, command, who, sent))
    found = _fresh(response)
    if found is not None:
        kept = found["kept"][-1]
        telemetry.SIGNATURES.labels("counted").inc(len(kept["signed"]))
        telemetry.SIGNATURE_SECONDS.observe(_seconds(found["opened_at"], kept["at"]))
    return response


VERIFICATION = object_of(
    capsule="string",
    policy="string",
    status={"enum": ["open", "completed"]},
    judged_at="string",
    threshold="integer",
    signed={"type": "array", "items": object_of(name="string", subject="string", public_key="string")},
    missing={"type": "array", "items": {"type": "string"}},
    refused={
        "type": "array",
        "items": object_of(public_key=["string", "null"], name=["string", "null"], reason="string"),
    },
    verified="boolean",
)


@router.get("/signings/{capsule}/verification", responses=answers(VERIFICATION))
async def verify_capsule(capsule: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Say who signed a capsule, whose signature is missing and what was refused: now, or as it was known then."""
    size = await size_as_of(opened, as_of)
    signing = await seen(opened, who, Signing, capsule_key(capsule), SigningNotFoundError, size)
    assert isinstance(signing, Signing)
    stream = f"signer_policy/{signing.policy_name}"
    if size is None:
        policy, now = (await opened.reader.load([stream]))[stream].aggregate, opened.clock()
    else:
        policy = await opened.reader.state_at(stream, size)
        now = decode((await opened.reader.at(size - 1)).record).at
    assert isinstance(policy, SignerPolicy)
    found = msgspec.to_builtins(verify_signing(signing, policy, now))
    about = {"capsule": signing.capsule, "policy": signing.policy, "status": signing.status, "judged_at": now}
    return json_response(about | found)


@router.post("/signings/{capsule}/reopen", responses=shows(Signing))
async def reopen_signing(capsule: Id, opened: Open, who: Who, sent: Sent) -> Response:
    """Ask for signatures anew, where those there are do not suffice any more."""
    command = signatures.OpenSigning(capsule=capsule)
    return await act(opened, signatures.reopen_signing, command, who, sent)


# --------------------------------------------------------------------------- what these routes share


async def _public(
    opened: Runtime, cls: type[A], name: str, missing: type[NotFoundError], as_of: str | None
) -> Response:
    """Print what everybody may see, now or as it was."""
    stream, size = f"{cls.KIND}/{name}", await size_as_of(opened, as_of)
    if size is None:
        loaded = (await opened.reader.load([stream])).get(stream)
        found = loaded.aggregate if loaded else None
    else:
        found = await opened.reader.state_at(stream, size)
    if found is None:
        raise missing(id=name)
    return _shown(found)


def _shown(found: Aggregate) -> Response:
    return json_response(msgspec.to_builtins(found), headers={"ETag": f'"{found.version}"'})


async def _counted(acting: Awaitable[Response]) -> Response:
    """Count what was refused of signatures, by reason."""
    try:
        return await acting
    except LedgerError as refusal:
        if refusal.code in ("signature_refused", "signature_repeated", "threshold_not_met"):
            telemetry.SIGNATURES.labels(refusal.facts.get("reason", refusal.code)).inc()
        raise


def _fresh(response: Response) -> dict[str, Any] | None:
    """Read the aggregate a command came to, unless the answer is that of an earlier request."""
    found: dict[str, Any] = msgspec.json.decode(response.body)
    return None if found["receipt"]["repeated"] or not found["receipt"]["event_count"] else found


def _seconds(start: str, end: str) -> float:
    return (moment_of(end) - moment_of(start)).total_seconds()
