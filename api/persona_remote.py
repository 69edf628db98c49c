"""What the persona words ask of a service: bringing files in pieces, waiting for its workers, taking archives away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from api.cli_remote import Remote, refusal_of
from api.persona_files import CHUNK_BYTES, PersonaFiles
from domain.errors import (
    REGISTRY,
    ArtifactMismatchError,
    ExportNotFoundError,
    InvalidError,
    PersonaNotFoundError,
    UnavailableError,
)

PIECE_BYTES = 8 << 20
PAUSE_S = 0.3
# Sizes are told as they grow: what, how far, and how much it is.
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


# --------------------------------------------------------------------------- bringing


def upload(remote: Remote, path: Path, address: str, progress: Progress = silent) -> None:
    """Bring a file as an artifact; one that is there already is not sent, a part of one is gone on with.

    Errors: those of the service, unavailable.
    """
    size, name = path.stat().st_size, path.name
    offset, complete = _kept(remote, address)
    while not complete:
        progress(name, offset, size)
        piece = _piece(path, offset)
        answer = remote.ask(
            "PUT",
            f"/v1/artifacts/{address}",
            params={"offset": offset, "size": size},
            content=piece,
            headers={"Content-Type": "application/octet-stream"},
        )
        offset += len(piece)
        complete = "upload_offset" not in answer
    progress(name, size, size)


def _piece(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(PIECE_BYTES)


def _kept(remote: Remote, address: str) -> tuple[int, bool]:
    import httpx

    try:
        answer = remote.client.head(f"/v1/artifacts/{address}")
    except httpx.TransportError as error:
        raise UnavailableError(f"{remote.client.base_url} cannot be reached: {error}") from error
    if answer.status_code == HTTPStatus.NOT_FOUND:
        return 0, False
    if not answer.is_success:
        # A refusal of HEAD has no body to say why; the same path by GET has.
        raise refusal_of(remote.client.get(f"/v1/artifacts/{address}"))
    return int(answer.headers["upload-offset"]), answer.headers["upload-complete"] == "?1"


def bring(remote: Remote, files: PersonaFiles, progress: Progress = silent) -> None:
    """Bring every part of a persona."""
    for part in files.manifest.parts:
        upload(remote, files.paths[part.name], part.digest, progress)


# --------------------------------------------------------------------------- waiting


def waited(remote: Remote, path: str, pending: str, seconds_max: float, progress: Progress = silent) -> Any:
    """Look at something until its status is no longer the one it waits in.

    Errors: those of the service, unavailable.
    """
    until = time.monotonic() + seconds_max
    while True:
        found = remote.get(path)
        if found["status"] != pending:
            return found
        told = found.get("progress") or {}
        progress(found["status"], told.get("bytes_done", 0), told.get("bytes_total") or 0)
        if time.monotonic() > until:
            raise UnavailableError(f"{path} is still {pending}; the same command goes on with it later")
        time.sleep(PAUSE_S)


def raise_problem(problem: dict[str, Any]) -> None:
    """Raise what a worker wrote down as the reason of a refusal or a failure."""
    error = REGISTRY.get(problem.get("code", ""), InvalidError)(problem.get("detail", ""))
    error.facts = problem.get("facts", {})
    raise error


def sealed(
    remote: Remote, files: PersonaFiles, fence: int | None, seconds_max: float, progress: Progress = silent
) -> str:
    """Have a persona exported: its parts are brought, sealed by a worker, and the capsule's address comes back.

    Errors: those of the service, unavailable.
    """
    manifest = files.manifest
    ensure_persona(remote, files)
    bring(remote, files, progress)
    body = {"persona_id": manifest.metadata.persona_id, "manifest": manifest.document()}
    asked = remote.post("/v1/exports", body if fence is None else body | {"fence": fence})
    done = waited(remote, f"/v1/exports/{asked['id']}", "requested", seconds_max, progress)
    if done["status"] != "completed":
        raise_problem(done.get("problem") or {"code": ExportNotFoundError.code})
    if done["capsule"] != manifest.address:
        raise ArtifactMismatchError(
            "the service sealed another manifest than this one",
            expected=manifest.address,
            found=done["capsule"],
        )
    return str(done["capsule"])


def ensure_persona(remote: Remote, files: PersonaFiles) -> None:
    """Take the persona's id, unless it is the caller's already."""
    about = files.manifest.metadata
    try:
        remote.get(f"/v1/personas/{about.persona_id}")
    except PersonaNotFoundError:
        remote.post("/v1/personas", {"persona_id": about.persona_id, "display_name": about.display_name})


# --------------------------------------------------------------------------- taking away


def download(remote: Remote, path: str, file: Path, progress: Progress = silent) -> int:
    """Write an answer into a file that is not there yet; give its size. A broken one leaves nothing behind.

    Errors: those of the service, invalid_request, unavailable.
    """
    import httpx

    if file.exists():
        raise InvalidError(f"{file} exists already; nothing is ever written over")
    part = file.with_name(file.name + ".part")
    try:
        size = _written(part, _streamed(remote, path, progress))
        part.rename(file)
    except httpx.TransportError as error:
        raise UnavailableError(f"{remote.client.base_url} broke off: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return size


def _streamed(remote: Remote, path: str, progress: Progress) -> Iterator[bytes]:
    done = 0
    with remote.client.stream("GET", path) as answer:
        if not answer.is_success:
            answer.read()
            raise refusal_of(answer)
        total = int(answer.headers.get("content-length", 0))
        for chunk in answer.iter_bytes(CHUNK_BYTES):
            done += len(chunk)
            progress("archive", done, total)
            yield chunk


def _written(file: Path, chunks: Iterator[bytes]) -> int:
    size = 0
    with file.open("wb") as out:
        for chunk in chunks:
            out.write(chunk)
            size += len(chunk)
    return size
