"""Artifacts over HTTP: bytes of any size into the vault and back, under the address they hash to.

An upload in pieces is crash-safe at each of these states; HEAD says where it stands, and the same piece may be sent
until it is acknowledged:

    1  nothing is kept                       4  the object is in the vault in full
    2  pieces up to `Upload-Offset` are      5  `artifact.uploaded` is in the log
    3  the last piece is                     6  the pieces are gone
"""

from __future__ import annotations

import asyncio
import re
from itertools import chain
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response, StreamingResponse

from api.http import (
    READ_PROBLEMS,
    Cursor,
    JsonRoute,
    Limit,
    Open,
    Sent,
    Who,
    act,
    json_response,
    lists,
    need_role,
    sees_all,
    shows,
)
from api.routes.market import listed, seen
from domain.errors import (
    AddressInvalidError,
    ArtifactMismatchError,
    ArtifactNotFoundError,
    ArtifactOffsetError,
    BodyTooLargeError,
    InvalidError,
    LogDamagedError,
    ObjectNotFoundError,
)
from domain.ledger import Caller
from domain.log.records import ADDRESS_PREFIX, parse_address
from domain.persona.artifacts import Artifact, RegisterArtifact, artifact_id, register_artifact
from ops.reads import RecordFilter
from ops.runtime import Runtime
from ops.vault import FRAME_BYTES, Kept, Vault

PREFIX = "/v1/artifacts"
PIECE_BYTES_MAX = 8 << 20
SIZE_MAX = 10**12
Documented = dict[int | str, dict[str, Any]]
_RANGE = re.compile(r"bytes=([0-9]{1,13})-", re.ASCII)

router = APIRouter(prefix=PREFIX, tags=["artifacts"], route_class=JsonRoute)

Address = Annotated[
    str,
    Path(
        max_length=200,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$",
        description="SHA3-512 of the bytes in hexadecimal, with or without `sha3-512:`.",
    ),
]
Offset = Annotated[
    int | None,
    Query(ge=0, le=SIZE_MAX, description="Where this piece begins; left out, the body is all there is."),
]
Size = Annotated[
    int | None, Query(ge=0, le=SIZE_MAX, description="Bytes of the whole, told with each piece.")
]

_RAW = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_UPLOAD = {
    "Upload-Offset": {"description": "Bytes that are kept.", "schema": {"type": "integer"}},
    "Upload-Complete": {
        "description": "`?1` once the artifact is there, `?0` before.",
        "schema": {"type": "string"},
    },
}
PIECE_KEPT: Documented = {202: {"description": "A piece is kept; more are to come.", "headers": _UPLOAD}}
STANDS: Documented = {200: {"description": "How far it is.", "headers": _UPLOAD}}
BYTES: Documented = {
    200: {"description": "The bytes.", "content": _RAW},
    206: {"description": "The bytes from the one asked for on.", "content": _RAW},
}


@router.put(
    "/{address}",
    status_code=201,
    responses={**shows(Artifact, 201), **PIECE_KEPT},
    openapi_extra={"requestBody": {"required": True, "content": _RAW}},
)
async def upload_artifact(
    address: Address,
    request: Request,
    opened: Open,
    who: Who,
    sent: Sent,
    offset: Offset = None,
    size: Size = None,
) -> Response:
    """Upload an artifact as it is, in one go or in pieces of 8 MiB at most; bytes of another address are refused."""
    need_role(who, *register_artifact.roles)  # type: ignore[attr-defined]
    address = _full(address)
    if offset is None and size is None:
        kept = await _whole(opened.vault, request, address)
    elif offset is None or size is None:
        raise InvalidError("a piece is sent with both `offset` and `size`")
    else:
        if size > opened.settings.artifact_bytes_max:
            raise BodyTooLargeError(bytes_max=opened.settings.artifact_bytes_max)
        end = await _piece(opened.vault, request, who.tenant, address, offset, size)
        if end < size:
            return json_response({"address": address, "upload_offset": end}, 202, _upload(end, done=False))
        # State 3: whoever sends an empty piece at the end has the rest done, after a crash too.
        kept = await asyncio.to_thread(_assembled, opened.vault, who.tenant, address, size)
    # State 4: the object is there; without its event nobody holds it.
    command = RegisterArtifact(address=kept.address, size_bytes=kept.size_bytes)
    answer = await act(opened, register_artifact, command, who, sent, status=201)
    # State 5: what follows is tidying up.
    if offset is not None:
        await asyncio.to_thread(opened.vault.drop_pieces, who.tenant, address)
    answer.headers.update(_upload(kept.size_bytes, done=True))
    return answer


@router.head("/{address}", responses={**READ_PROBLEMS, **STANDS})
async def artifact_offset(address: Address, opened: Open, who: Who) -> Response:
    """Say how much of an artifact is kept, and whether it is complete."""
    address = _known(address)
    try:
        found = await _own(opened, who, address)
        return Response(headers=_upload(found.size_bytes, done=True))
    except ArtifactNotFoundError:
        pieces = await asyncio.to_thread(opened.vault.pieces, who.tenant, address)
        if not pieces:
            raise
        return Response(headers=_upload(sum(pieces[-1]), done=False))


@router.get("", responses=lists(Artifact))
async def list_artifacts(opened: Open, who: Who, limit: Limit = 100, cursor: Cursor = None) -> Response:
    """List the artifacts of the caller's tenant, the newest id first."""
    wanted = RecordFilter("artifact", tenant=None if sees_all(who) else who.tenant)
    return await listed(opened, wanted, cursor, limit)


@router.get("/{address}", responses={**READ_PROBLEMS, **BYTES}, response_class=StreamingResponse)
async def download_artifact(address: Address, request: Request, opened: Open, who: Who) -> Response:
    """Send an artifact of the caller's tenant back; `Range: bytes=N-` sends it from a byte on."""
    found = await _own(opened, who, _known(address))
    return await stream_of(opened.vault, found.address, found.size_bytes, request)


async def stream_of(vault: Vault, address: str, size_bytes: int, request: Request) -> Response:
    """Stream an object out of the vault, from the byte a range asks for.

    What is damaged at its beginning, and any small object that is, ends as a refusal and not as a broken answer.
    Errors: encryption_key_missing, log_damaged, object_not_found.
    """
    wish = _RANGE.fullmatch(request.headers.get("range", ""))
    start = int(wish[1]) if wish and int(wish[1]) < size_bytes else 0
    frames = await asyncio.to_thread(vault.read, address, start)
    first = await asyncio.to_thread(next, frames, b"")
    headers = {
        "Content-Length": str(size_bytes - start),
        "Content-Disposition": "attachment",
        "X-Content-Type-Options": "nosniff",
        "Accept-Ranges": "bytes",
        "ETag": f'"{address}"',
    }
    if start:
        headers["Content-Range"] = f"bytes {start}-{size_bytes - 1}/{size_bytes}"
    return StreamingResponse(
        chain([first], frames), 206 if start else 200, headers, media_type="application/octet-stream"
    )


async def _whole(vault: Vault, request: Request, address: str) -> Kept:
    """Take a body in as it comes; nothing of it is kept unless it hashes to its address."""
    body = await asyncio.to_thread(vault.writing, address)
    waiting = bytearray()
    try:
        async for chunk in request.stream():
            waiting += chunk
            if len(waiting) >= FRAME_BYTES:
                await asyncio.to_thread(body.write, bytes(waiting))
                waiting.clear()
        await asyncio.to_thread(body.write, bytes(waiting))
        return await asyncio.to_thread(body.keep)
    finally:
        await asyncio.to_thread(body.drop)


async def _piece(vault: Vault, request: Request, tenant: str, address: str, offset: int, size: int) -> int:
    """Keep a piece that begins where the upload ends; give where it ends then.

    Errors: artifact_offset, body_too_large.
    """
    data = await _limited(request, min(PIECE_BYTES_MAX, max(0, size - offset)))
    pieces = await asyncio.to_thread(vault.pieces, tenant, address)
    end = sum(pieces[-1]) if pieces else 0
    if offset != end:
        raise ArtifactOffsetError(offset=offset, upload_offset=end)
    if data and not await asyncio.to_thread(vault.put_piece, tenant, address, offset, data):
        raise ArtifactOffsetError("this piece was sent twice at once", offset=offset, upload_offset=end)
    # State 2: the piece is kept.
    return end + len(data)


async def _limited(request: Request, bytes_max: int) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > bytes_max:
            raise BodyTooLargeError(f"this piece may hold {bytes_max:,} bytes at most", bytes_max=bytes_max)
    return bytes(data)


def _assembled(vault: Vault, tenant: str, address: str, size: int) -> Kept:
    """Make one object of the pieces; those of other bytes than promised are forgotten.

    Errors: artifact_mismatch, artifact_offset.
    """
    pieces = _all_of(vault, tenant, address, size)
    try:
        return vault.put(vault.read_pieces(tenant, address), address)
    except (ArtifactMismatchError, LogDamagedError, ObjectNotFoundError):
        # Had somebody finished the same upload and tidied its pieces away, these bytes were not wrong.
        if _all_of(vault, tenant, address, size) == pieces:
            vault.drop_pieces(tenant, address)
        raise


def _all_of(vault: Vault, tenant: str, address: str, size: int) -> list[tuple[int, int]]:
    pieces = vault.pieces(tenant, address)
    if (end := sum(count for _, count in pieces)) != size:
        raise ArtifactOffsetError(
            "the pieces are not, or no longer, all there", offset=size, upload_offset=end
        )
    return pieces


async def _own(opened: Runtime, who: Caller, address: str) -> Artifact:
    """Read an artifact the caller's tenant holds; another tenant's is as good as absent.

    Errors: artifact_not_found.
    """
    name = artifact_id(who.tenant, address)
    found = await seen(opened, who, Artifact, name, ArtifactNotFoundError, None)
    assert isinstance(found, Artifact)
    return found


def _known(address: str) -> str:
    """Read the address of something that should be there; nothing is under what is no address.

    Errors: artifact_not_found.
    """
    try:
        parse_address(_full(address))
    except AddressInvalidError as error:
        raise ArtifactNotFoundError(id=address) from error
    return _full(address)


def _full(address: str) -> str:
    return ADDRESS_PREFIX + address.removeprefix(ADDRESS_PREFIX)


def _upload(offset: int, *, done: bool) -> dict[str, str]:
    return {"Upload-Offset": str(offset), "Upload-Complete": "?1" if done else "?0"}
