"""The log over HTTP: its events, streams and timelines, now and as they were, and the proofs of all of it.

Records belong to tenants: a caller sees those of its own, auditors and operators see all, and what a caller may not
see is as good as absent. What proves the log - checkpoints, consistency, witnesses - is public, as tiles are.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import orjson
from fastapi import APIRouter, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import Field, ValidationError

from api import timelines
from api.http import (
    READ_PROBLEMS,
    WRITE_PROBLEMS,
    AsOf,
    Limit,
    Open,
    Who,
    json_response,
    need_role,
    sees_all,
    size_as_of,
)
from api.routes import log_files
from domain.errors import (
    AddressNotFoundError,
    CosignatureInvalidError,
    InvalidFieldError,
    KeyMalformedError,
    MissingFieldError,
    PolicyMalformedError,
    PositionNotFoundError,
    StreamNotFoundError,
    WitnessExistsError,
)
from domain.fields import Command
from domain.ledger import Caller
from domain.log.hashes import leaf_hash
from domain.log.notes import (
    ED25519_COSIGNATURE,
    Checkpoint,
    Verified,
    VerifierKey,
    check_cosignature,
    parse_note,
    print_base64,
)
from domain.log.policies import parse_policy, policy_of
from domain.log.proof_files import FILE_SUFFIX
from domain.log.records import address_text, encode_state, parse_address
from domain.values import moment_text
from ops import proofs, telemetry
from ops.reads import Head, Stored
from ops.runtime import Runtime

log = telemetry.logger(__name__)

router = APIRouter(tags=["log"])
v1 = APIRouter(prefix="/v1/log")

POSITION_MAX = 2**53
SCAN_RECORDS_MAX = 10_000
PROOF_TYPE = "text/plain; charset=utf-8"

_PUBLIC: dict[str, Any] = {"security": []}
_WORD = r"^[\x21-\x7e]+$"

Position = Annotated[int, Path(ge=0, le=POSITION_MAX)]
Address = Annotated[str, Path(max_length=160, description="`sha3-512:` and 128 hex digits.")]
Size = Annotated[int, Path(ge=0, le=POSITION_MAX)]
AtSize = Annotated[
    int | None, Query(ge=0, le=POSITION_MAX, description="A size of the tree; the latest without it.")
]
Kind = Annotated[str, Path(min_length=1, max_length=64, pattern=_WORD)]
Name = Annotated[str, Path(alias="id", min_length=1, max_length=200, pattern=_WORD)]
Wish = Annotated[str | None, Query(max_length=128, pattern=_WORD)]
WishedType = Annotated[str | None, Query(alias="type", max_length=128, pattern=_WORD)]
After = Annotated[int, Query(ge=-1, le=POSITION_MAX, description="The `next` of the page before.")]
AfterVersion = Annotated[int, Query(ge=0, le=POSITION_MAX, description="The `next` of the page before.")]
Raw = Annotated[bool, Query(description="Add the exact bytes of each record as text.")]


class _Stated(msgspec.Struct):
    """What the pages need of a record; its data is passed on as it is."""

    actor: str
    at: str
    data: msgspec.Raw
    tenant: str
    type: str
    version: int


_stated = msgspec.json.Decoder(_Stated)


# --------------------------------------------------------------------------- events


@v1.get("/events", responses=READ_PROBLEMS)
async def list_events(
    opened: Open, who: Who, after: After = -1, limit: Limit = 100,
    wire_type: WishedType = None, tenant: Wish = None, actor: Wish = None, raw: Raw = False,
) -> Response:  # fmt: skip
    """List events in log order, behind a position, narrowed by wire type, tenant or actor.

    At most 10,000 records are looked at for one page, so a page may be short, or empty, and still have a `next`;
    `next` is null at the end of the log, whose size then is `size`: a reader that waits for more goes on after
    `size - 1`.
    """
    size = await opened.reader.size()
    if not sees_all(who):
        if tenant not in (None, who.tenant):
            return json_response({"items": [], "next": None, "size": size})
        tenant = who.tenant
    found, looked_to = await opened.reader.search(
        after=after,
        limit=limit,
        scan=SCAN_RECORDS_MAX,
        size=size,
        tenant=tenant,
        wire_type=wire_type,
        actor=actor,
    )
    more = looked_to < size - 1
    items = [event(stored, raw) for stored in found]
    return json_response({"items": items, "next": looked_to if more else None, "size": size})


@v1.get("/events/{position}", responses=READ_PROBLEMS)
async def show_event(position: Position, opened: Open, who: Who, raw: Raw = False) -> Response:
    """Show the event at a position."""
    return json_response(event(await seen_at(opened, who, position), raw))


@v1.get("/events/by-address/{address}", responses=READ_PROBLEMS)
async def show_event_by_address(address: Address, opened: Open, who: Who, raw: Raw = False) -> Response:
    """Show the event of an address."""
    return json_response(event(await seen_under(opened, who, address), raw))


@v1.get("/records/{position}", responses=READ_PROBLEMS | {
    200: {"description": "The bytes.", "content": {"application/json": {"schema": {"type": "object"}}}}
})  # fmt: skip
async def show_record(position: Position, opened: Open, who: Who) -> Response:
    """Show the exact bytes of a record, which are what its address and its proof are about."""
    stored = await seen_at(opened, who, position)
    headers = {
        "ETag": f'"{address_text(stored.address)}"',
        "Cache-Control": "private, max-age=31536000, immutable",
    }
    return Response(stored.record, headers=headers, media_type="application/json")


def event(stored: Stored, raw: bool = False) -> dict[str, Any]:
    """Print an event: where it is, its address, and its record, whose bytes are JSON already."""
    shown: dict[str, Any] = {
        "position": stored.position,
        "address": address_text(stored.address),
        "record": orjson.Fragment(stored.record),
    }
    return shown | {"raw": stored.record.decode()} if raw else shown


def may_see(who: Caller, stored: Stored) -> bool:
    """Say whether a record is the caller's tenant's, or the caller sees all."""
    return sees_all(who) or _stated.decode(stored.record).tenant == who.tenant


async def seen_at(opened: Runtime, who: Caller, position: int) -> Stored:
    """Read a record the caller may see.

    Errors: position_not_found.
    """
    stored = await opened.reader.at(position)
    if not may_see(who, stored):
        raise PositionNotFoundError(position=position)
    return stored


async def seen_under(opened: Runtime, who: Caller, address: str) -> Stored:
    """Read a record the caller may see by its address.

    Errors: address_not_found, invalid_address.
    """
    stored = await opened.reader.addressed(parse_address(address))
    if not may_see(who, stored):
        raise AddressNotFoundError
    return stored


# --------------------------------------------------------------------------- streams and time travel


@v1.get("/streams/{kind}/{id}", responses=READ_PROBLEMS)
async def show_stream(
    kind: Kind, name: Name, opened: Open, who: Who,
    as_of: AsOf = None, after: AfterVersion = 0, limit: Limit = 100, raw: Raw = False,
) -> Response:  # fmt: skip
    """List the events of one stream, now or as they were."""
    found, more = await _stream_page(opened, who, f"{kind}/{name}", as_of, after, limit)
    following = _stated.decode(found[-1].record).version if more else None
    return json_response({"items": [event(stored, raw) for stored in found], "next": following})


@v1.get("/streams/{kind}/{id}/state", responses=READ_PROBLEMS)
async def show_state(kind: Kind, name: Name, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show what a stream's events come to, now or at an earlier position or time."""
    stream = f"{kind}/{name}"
    size = await size_as_of(opened, as_of)
    if size is None:
        loaded = (await opened.reader.load([stream])).get(stream)
        found = loaded.aggregate if loaded else None
    else:
        found = await opened.reader.state_at(stream, size)
    if found is None or not (sees_all(who) or found.tenant == who.tenant):
        raise StreamNotFoundError(stream=stream)
    state = orjson.Fragment(encode_state(found))
    shown = {"stream": stream, "version": found.version, "as_of_size": size, "state": state}
    return json_response(shown, headers={"ETag": f'"{found.version}"'})


@v1.get("/timeline/{kind}/{id}", responses=READ_PROBLEMS)
async def show_timeline(
    kind: Kind,
    name: Name,
    opened: Open,
    who: Who,
    as_of: AsOf = None,
    after: AfterVersion = 0,
    limit: Limit = 100,
) -> Response:
    """Tell what happened to one thing, in order."""
    found, more = await _stream_page(opened, who, f"{kind}/{name}", as_of, after, limit)
    entries = [timelines.entry(stored) for stored in found]
    following = entries[-1]["version"] if more else None
    return json_response({"stream": f"{kind}/{name}", "entries": entries, "next": following})


async def _stream_page(
    opened: Runtime, who: Caller, stream: str, as_of: str | None, after: int, limit: int
) -> tuple[list[Stored], bool]:
    """Read a page of a stream the caller may see; a stream has one tenant, that of its first record."""
    size = await size_as_of(opened, as_of)
    first = await opened.reader.stream(stream, size=size, limit=1)
    if not first or not may_see(who, first[0]):
        raise StreamNotFoundError(stream=stream)
    found = await opened.reader.stream(stream, size=size, after=after, limit=limit + 1)
    return found[:limit], len(found) > limit


# --------------------------------------------------------------------------- proofs


@v1.get("/proofs/inclusion", responses=READ_PROBLEMS)
async def prove_inclusion(
    opened: Open, who: Who,
    position: Annotated[int | None, Query(ge=0, le=POSITION_MAX)] = None,
    address: Annotated[str | None, Query(max_length=160)] = None,
    size: AtSize = None,
) -> Response:  # fmt: skip
    """Prove that a record, named by position or by address, is in the tree of a size.

    Source: RFC 9162, section 2.1.3.
    """
    if (position is None) == (address is None):
        raise MissingFieldError("name the record by position or by address, one of them")
    if address is not None:
        stored = await seen_under(opened, who, address)
    else:
        assert position is not None
        stored = await seen_at(opened, who, position)
    at = (await opened.reader.head()).size if size is None else size
    hashes = await proofs.inclusion(opened.reader, stored.position, at)
    proof = {
        "position": stored.position,
        "address": address_text(stored.address),
        "leaf_hash": print_base64(leaf_hash(stored.record)),
        "size": at,
        "root": print_base64(await proofs.root(opened.reader, at)),
        "hashes": [print_base64(one) for one in hashes],
    }
    return json_response(proof)


@v1.get("/proofs/consistency", responses=READ_PROBLEMS, openapi_extra=_PUBLIC)
async def prove_consistency(
    opened: Open,
    start: Annotated[int, Query(alias="from", ge=0, le=POSITION_MAX, description="The earlier size.")],
    to: AtSize = None,
) -> Response:
    """Prove that the tree of one size is the beginning of the tree of a later one.

    Source: RFC 9162, section 2.1.4.
    """
    end = (await opened.reader.head()).size if to is None else to
    hashes = await proofs.consistency(opened.reader, start, end)
    proof = {
        "from": start,
        "to": end,
        "from_root": print_base64(await proofs.root(opened.reader, start)),
        "to_root": print_base64(await proofs.root(opened.reader, end)),
        "hashes": [print_base64(one) for one in hashes],
    }
    return json_response(proof)


@v1.get("/receipts/{position}", responses=READ_PROBLEMS | {
    200: {"description": "A C2SP tlog-proof.", "content": {PROOF_TYPE: {"schema": {"type": "string"}}}}
})  # fmt: skip
async def show_receipt(position: Position, opened: Open, who: Who, size: AtSize = None) -> Response:
    """Show the receipt of a record: its proof with a signed checkpoint, to be kept and checked offline.

    Without a size it leads to the latest checkpoint a witness cosigned, else to the latest.
    Source: c2sp.org/tlog-proof.
    """
    stored = await seen_at(opened, who, position)
    proof = await proofs.receipt(opened, stored.position, size)
    named = f'attachment; filename="{position}{FILE_SUFFIX}"'
    return Response(proof.to_bytes(), headers={"Content-Disposition": named}, media_type=PROOF_TYPE)


# --------------------------------------------------------------------------- checkpoints and witnesses


@v1.get("/checkpoints", responses=READ_PROBLEMS, openapi_extra=_PUBLIC)
async def list_checkpoints(opened: Open, after: After = -1, limit: Limit = 100) -> Response:
    """List the checkpoints that were ever signed, behind a size."""
    heads = await opened.reader.heads(after, limit + 1)
    items = [_checkpoint(head, opened.note(head)) for head in heads[:limit]]
    return json_response({"items": items, "next": items[-1]["size"] if len(heads) > limit else None})


@v1.get("/checkpoints/{size}", responses=READ_PROBLEMS, openapi_extra=_PUBLIC)
async def show_checkpoint(size: Size, opened: Open) -> Response:
    """Show the checkpoint of a size, with the cosignatures of witnesses under it."""
    head = await opened.reader.head(size)
    lines = await opened.reader.cosignatures(size)
    return json_response(_checkpoint(head, await opened.cosigned_note(head)) | {"cosignatures": lines})


def _checkpoint(head: Head, note: bytes) -> dict[str, Any]:
    return {
        "size": head.size,
        "root": print_base64(head.root),
        "committed_at": moment_text(head.committed_at),
        "note": note.decode(),
    }


class Cosignature(Command):
    """A witness's signature line over the checkpoint of a size."""

    size: int = Field(ge=0, le=POSITION_MAX)
    line: str = Field(min_length=1, max_length=4_000)


class NewWitness(Command):
    """A witness whose cosignatures are taken from now on."""

    vkey: str = Field(min_length=1, max_length=2_000)
    url: str | None = Field(None, max_length=500, pattern=r"^https?://[\x21-\x7e]+$")


_COSIGNATURE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": Cosignature.model_json_schema()},
            "text/plain": {
                "schema": {"type": "string", "description": "The checkpoint with signature lines."}
            },
        },
    }
}


@v1.post("/cosignatures", responses=WRITE_PROBLEMS, openapi_extra=_PUBLIC | _COSIGNATURE_BODY)
async def add_cosignatures(request: Request, opened: Open) -> Response:
    """Keep cosignatures of known witnesses: one line with its size, or a checkpoint with lines below it.

    No token is needed, for what counts is the witness's signature. A line that is known already changes nothing.
    """
    body = await request.body()
    witnesses = [VerifierKey.parse(vkey) for _, vkey, _ in await opened.reader.witnesses()]
    if request.headers.get("content-type", "").partition(";")[0].strip() == "application/json":
        size, verified = await _from_line(opened, _parsed(body), witnesses)
    else:
        size, verified = await _from_note(opened, body, witnesses)
    added = 0
    for one in verified:
        added += await opened.reader.add_cosignature(
            size, one.key.text, one.signature.line, _stated_time(one)
        )
    lines = await opened.reader.cosignatures(size)
    return json_response({"size": size, "added": added, "cosignatures": lines})


def _parsed(body: bytes) -> Cosignature:
    try:
        return Cosignature.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(
            [{**fault, "loc": ("body", *fault["loc"])} for fault in faults]
        ) from error


async def _from_line(
    opened: Runtime, sent: Cosignature, witnesses: list[VerifierKey]
) -> tuple[int, list[Verified]]:
    head = await opened.reader.head(sent.size)
    text = Checkpoint(opened.signer.name, head.size, head.root).text
    return sent.size, [check_cosignature(text, sent.line, witnesses)]


async def _from_note(
    opened: Runtime, body: bytes, witnesses: list[VerifierKey]
) -> tuple[int, list[Verified]]:
    """Take the lines of known witnesses from a note that is word for word a checkpoint of this log."""
    note = parse_note(body)
    stated = Checkpoint.parse(note.text)
    if stated.origin != opened.signer.name:
        raise CosignatureInvalidError("the checkpoint is of another log", origin=stated.origin)
    head = await opened.reader.head(stated.size)
    if stated.root != head.root:
        # A witness may have been shown another history under our name: somebody must look at this.
        log.error("fork", size=stated.size, root=print_base64(stated.root), ours=print_base64(head.root))
        raise CosignatureInvalidError("this log has another root at that size", size=stated.size)
    known = {(key.name, key.key_id) for key in witnesses}
    lines = [one.line for one in note.signatures if (one.name, one.key_id) in known]
    if not lines:
        raise CosignatureInvalidError(
            "no witness of this log signed", names=[one.name for one in note.signatures]
        )
    return stated.size, [check_cosignature(note.text, line, witnesses) for line in lines]


def _stated_time(verified: Verified) -> datetime:
    try:
        return datetime.fromtimestamp(verified.time_s or 0, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise CosignatureInvalidError(
            "the time of the cosignature is out of range", time_s=verified.time_s
        ) from error


@v1.get("/witnesses", responses=READ_PROBLEMS, openapi_extra=_PUBLIC)
async def list_witnesses(opened: Open) -> Response:
    """List the witnesses whose cosignatures this log takes."""
    known = await opened.reader.witnesses()
    return json_response({"items": [{"name": name, "vkey": vkey, "url": url} for name, vkey, url in known]})


@v1.post("/witnesses", status_code=201, responses=WRITE_PROBLEMS)
async def add_witness(body: NewWitness, opened: Open, who: Who) -> Response:
    """Take cosignatures of a witness from now on; one that is known already is left as it is."""
    need_role(who, "operator")
    key = VerifierKey.parse(body.vkey)
    if key.kind != ED25519_COSIGNATURE:
        raise KeyMalformedError("a witness signs with an Ed25519 cosignature key, type 4", kind=key.kind)
    witness = (key.name, key.text, body.url)
    known = await opened.reader.witnesses()
    if witness not in known:
        _check_fits(opened, known, witness)
        await opened.reader.add_witness(*witness)
        log.info("witness added", witness=key.name, by=who.subject)
    return json_response({"name": key.name, "vkey": key.text, "url": body.url}, 201)


Known = tuple[str, str, str | None]
"""A witness: name, verifier key, URL."""


def _check_fits(opened: Runtime, known: list[Known], witness: Known) -> None:
    """Refuse a witness with which the published policy could not be read any more.

    Errors: witness_exists, invalid_field.
    """
    key = VerifierKey.parse(witness[1])
    if any(witness[0] == name or key.public == VerifierKey.parse(text).public for name, text, _ in known):
        raise WitnessExistsError(name=witness[0])
    try:
        parse_policy(policy_of(opened.signer.key, [*known, witness]).print())
    except PolicyMalformedError as error:
        raise InvalidFieldError(
            f"no policy can name this witness: {error.message}", name=witness[0]
        ) from error


router.include_router(log_files.router)
router.include_router(v1)
