"""The log as files: what C2SP tlog-tiles asks of a server, so that clients we did not write can walk it.

Hash tiles, checkpoints and keys are public. Entry bundles hold records of every tenant; they are for auditors and
operators, unless the settings make the log's entries public. Beyond a missing or wrong token, the only answers are
200, 304 and 404.

Source: c2sp.org/tlog-tiles.
"""

from __future__ import annotations

import asyncio
import gzip
from hashlib import sha256
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse

from api.http import READ_PROBLEMS, Open, caller, need_role
from domain.errors import TileNotFoundError
from domain.log.policies import policy_of
from domain.log.tiles import parse_tile_path
from ops.export import history_lines

router = APIRouter(tags=["log"])

NOTE_TYPE = "text/plain; charset=utf-8"
TILE_TYPE = "application/octet-stream"
FRESH = "no-cache"
FOREVER = "max-age=31536000, immutable"
PACKED_BYTES_MIN = 1_024

_PUBLIC: dict[str, Any] = {"security": []}
# A token is needed for records only, and only where the settings do not make them public.
_PUBLIC_OR_NOT: dict[str, Any] = {"security": [{}, {"bearer": []}]}
_UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "Not changed."}}
_ANSWERS = _UNCHANGED | {status: READ_PROBLEMS[status] for status in (404, 503)}
_HISTORY: dict[int | str, dict[str, Any]] = READ_PROBLEMS | {
    200: {"description": "JSON lines.", "content": {"application/jsonl": {"schema": {"type": "string"}}}}
}


def _shows(media_type: str) -> dict[int | str, dict[str, Any]]:
    schema = {"type": "string"} if media_type == NOTE_TYPE else {"type": "string", "format": "binary"}
    return _ANSWERS | {200: {"description": "The file.", "content": {media_type: {"schema": schema}}}}


def file_answer(request: Request, body: bytes, media_type: str, cache: str, **headers: str) -> Response:
    """Print a file with the digest of its bytes as ETag; who has those bytes already hears 304."""
    etag = f'"{sha256(body).hexdigest()}"'
    sent = {"Cache-Control": cache, "ETag": etag, "Access-Control-Allow-Origin": "*", **headers}
    known = request.headers.get("if-none-match", "")
    if known == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=sent)
    return Response(body, headers=sent, media_type=media_type)


@router.head("/checkpoint", include_in_schema=False)
@router.get("/checkpoint", responses=_shows(NOTE_TYPE), openapi_extra=_PUBLIC)
async def checkpoint(request: Request, opened: Open) -> Response:
    """Show the latest signed checkpoint, with the cosignatures of witnesses under it."""
    note = await opened.cosigned_note(await opened.reader.head())
    return file_answer(request, note, NOTE_TYPE, FRESH)


@router.head("/log.vkey", include_in_schema=False)
@router.get("/log.vkey", responses=_shows(NOTE_TYPE), openapi_extra=_PUBLIC)
async def verifier_key(request: Request, opened: Open) -> Response:
    """Show the key that checkpoints are verified by."""
    return file_answer(request, opened.signer.key.text.encode() + b"\n", NOTE_TYPE, FRESH)


@router.head("/policy", include_in_schema=False)
@router.get("/policy", responses=_shows(NOTE_TYPE), openapi_extra=_PUBLIC)
async def policy(request: Request, opened: Open) -> Response:
    """Show the log's own trust policy: its key, the witnesses it knows, and that any one of them is enough."""
    own = policy_of(opened.signer.key, await opened.reader.witnesses())
    return file_answer(request, own.print(), NOTE_TYPE, FRESH)


# --------------------------------------------------------------------------- tiles


@router.head("/tile/{path:path}", include_in_schema=False)
@router.get("/tile/{path:path}", responses=READ_PROBLEMS | _shows(TILE_TYPE), openapi_extra=_PUBLIC_OR_NOT)
async def tile(path: str, request: Request, opened: Open) -> Response:
    """Show a hash tile, or under `entries/` a bundle of records; a path that is not canonical is not there."""
    found = parse_tile_path(f"tile/{path}")
    # A path has one spelling, so an escaped one is another path.
    if found is None or b"%" in request.scope.get("raw_path", b""):
        raise TileNotFoundError
    if found.is_entries:
        cache = await _entries_cache(request)
        return await _bundle_answer(request, await opened.reader.bundle(found.index, found.width), cache)
    hashes = await opened.reader.hash_tile(found.level, found.index, found.width)
    return file_answer(request, hashes, TILE_TYPE, f"public, {FOREVER}")


async def _entries_cache(request: Request) -> str:
    """Let auditors and operators through, and say who may keep what they read.

    Errors: unauthorized, forbidden.
    """
    if request.app.state.settings.public_log_entries:
        return f"public, {FOREVER}"
    need_role(await caller(request), "auditor", "operator")
    return f"private, {FOREVER}"


async def _bundle_answer(request: Request, body: bytes, cache: str) -> Response:
    """Print a bundle, packed for those who can unpack it; a bundle may have 16 MB, so that is done aside."""
    if len(body) < PACKED_BYTES_MIN or not _takes_gzip(request.headers.get("accept-encoding", "")):
        return file_answer(request, body, TILE_TYPE, cache, Vary="Accept-Encoding")
    packed = await asyncio.to_thread(gzip.compress, body, 1, mtime=0)
    return file_answer(
        request, packed, TILE_TYPE, cache, Vary="Accept-Encoding", **{"Content-Encoding": "gzip"}
    )


def _takes_gzip(accepted: str) -> bool:
    for choice in accepted.lower().split(","):
        coding, _, weight = choice.partition(";")
        if coding.strip() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


# --------------------------------------------------------------------------- the history of heads


@router.get("/checkpoints", responses=_HISTORY, openapi_extra=_PUBLIC_OR_NOT)
async def history(
    request: Request,
    opened: Open,
    size: Annotated[
        int | None, Query(ge=0, le=2**53, description="Leave out checkpoints of larger sizes.")
    ] = None,
) -> Response:
    """Show every checkpoint that was ever signed, one a line: `{"size":3,"note":"..."}`."""
    cache = await _entries_cache(request)
    end = (await opened.reader.head()).size if size is None else size
    kept = "no-store" if cache.startswith("private") else FRESH
    headers = {"Cache-Control": kept, "Access-Control-Allow-Origin": "*"}
    return StreamingResponse(history_lines(opened, end), headers=headers, media_type="application/jsonl")
