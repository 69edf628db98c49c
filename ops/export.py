"""The audit export: a whole log as one file or one directory, complete in itself, to be verified without us.

The layout is the one `domain/log/audit.py` describes. What was read is written on at once, so memory holds a few
tiles however long the log is. An export appears under its name when it is whole and on the disk, never before:
it is written beside it under a draft's name, which a killed export leaves behind and nobody mistakes for one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import zipfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import httpx
import orjson

from domain.errors import ExportExistsError, ExportFailedError
from domain.log.audit import EXPORT_FORMAT, EXPORT_VERSION
from domain.log.notes import Checkpoint, parse_note
from domain.log.policies import policy_of
from domain.log.tiles import Tile, bundles_of, tiles_of
from domain.values import moment_text
from ops.audit_sources import bytes_max
from ops.reads import Head
from ops.runtime import Runtime

AHEAD = 8
HISTORY_PAGE = 1_000
TIMEOUT_S = 60.0
# Records are text and shrink well even at the quickest level; hashes do not shrink at all.
PACK_LEVEL = 1

Progress = Callable[[int, int], None]


class Exported(NamedTuple):
    """What an export holds."""

    path: Path
    origin: str
    size: int
    file_count: int
    bytes_read: int


class Origin(Protocol):
    """Where a log is exported from."""

    async def checkpoint(self) -> bytes:
        """Read the latest checkpoint; everything else is read as of its size."""

    async def text(self, path: str) -> bytes | None:
        """Read log.vkey or policy."""

    async def tile(self, tile: Tile, size: int) -> bytes:
        """Read a hash tile or a bundle of the tree of a size."""

    def history(self, size: int) -> AsyncIterator[bytes]:
        """Read the lines of `checkpoints` up to a size."""


# --------------------------------------------------------------------------- origins


class DatabaseOrigin:
    """The log of an open runtime."""

    def __init__(self, opened: Runtime) -> None:
        self._opened = opened

    async def checkpoint(self) -> bytes:
        """Read the latest checkpoint with its cosignatures."""
        return await self._opened.cosigned_note(await self._opened.reader.head())

    async def text(self, path: str) -> bytes | None:
        """Read log.vkey or policy."""
        if path == "log.vkey":
            return self._opened.signer.key.text.encode() + b"\n"
        return policy_of(self._opened.signer.key, await self._opened.reader.witnesses()).print()

    async def tile(self, tile: Tile, size: int) -> bytes:
        """Read a tile from the database."""
        if tile.is_entries:
            return await self._opened.reader.bundle(tile.index, tile.width)
        return await self._opened.reader.hash_tile(tile.level, tile.index, tile.width, size)

    def history(self, size: int) -> AsyncIterator[bytes]:
        """Read the checkpoints up to a size, a page at a time."""
        return history_lines(self._opened, size)


async def history_lines(opened: Runtime, size: int) -> AsyncIterator[bytes]:
    """Write a log's checkpoints up to a size as JSON lines, a page at a time."""
    after = -1
    while heads := [head for head in await opened.reader.heads(after, HISTORY_PAGE) if head.size <= size]:
        yield b"".join(_history_line(opened, head) for head in heads)
        after = heads[-1].size


def _history_line(opened: Runtime, head: Head) -> bytes:
    return orjson.dumps({"size": head.size, "note": opened.note(head).decode()}) + b"\n"


class ServerOrigin:
    """A log read over HTTP, with the token of an auditor."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    @classmethod
    def at(cls, url: str, token: str | None = None) -> ServerOrigin:
        """Make the origin of an address."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return cls(httpx.AsyncClient(base_url=url.rstrip("/") + "/", headers=headers, timeout=TIMEOUT_S))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def checkpoint(self) -> bytes:
        """Fetch the latest checkpoint."""
        return await self._whole("checkpoint")

    async def text(self, path: str) -> bytes | None:
        """Fetch log.vkey or policy; what the server lacks is left out."""
        return b"".join([chunk async for chunk in self._chunks(path, absent_ok=True)]) or None

    async def tile(self, tile: Tile, size: int) -> bytes:  # noqa: ARG002 - a path names the tile of any size
        """Fetch a tile."""
        return await self._whole(tile.path)

    def history(self, size: int) -> AsyncIterator[bytes]:
        """Fetch the checkpoints up to a size."""
        return self._chunks("checkpoints", absent_ok=True, size=size)

    async def _whole(self, path: str) -> bytes:
        return b"".join([chunk async for chunk in self._chunks(path)])

    async def _chunks(self, path: str, *, absent_ok: bool = False, **params: int) -> AsyncIterator[bytes]:
        read = 0
        async with self._client.stream("GET", path, params=params) as answer:
            if answer.status_code == 404 and absent_ok:
                return
            if answer.status_code != 200:
                raise ExportFailedError(f"the server answers {answer.status_code} to {path}", path=path)
            async for chunk in answer.aiter_bytes():
                read += len(chunk)
                if read > bytes_max(path):
                    raise ExportFailedError(f"{path} is larger than {bytes_max(path)} bytes", path=path)
                yield chunk


# --------------------------------------------------------------------------- targets


class Target(Protocol):
    """Where files are put; a path is written once."""

    def file(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """Open one file for writing."""

    def close(self) -> None:
        """Bring everything to the disk."""


class ZipTarget:
    """One .zip file."""

    def __init__(self, draft: Path) -> None:
        self._file = draft.open("xb")
        self._zip = zipfile.ZipFile(self._file, "w", compresslevel=PACK_LEVEL)

    @contextmanager
    def file(self, path: str) -> Iterator[IO[bytes]]:
        """Open one member."""
        is_hashes = path.startswith("tile/") and not path.startswith("tile/entries/")
        self._zip.compression = zipfile.ZIP_STORED if is_hashes else zipfile.ZIP_DEFLATED
        with self._zip.open(path, "w", force_zip64=path == "checkpoints") as file:
            yield file

    def close(self) -> None:
        """Write the directory of the file, and bring it to the disk."""
        self._zip.close()
        _synced(self._file)
        self._file.close()


class DirectoryTarget:
    """A directory of plain files, which tools of others read by `file:`."""

    def __init__(self, draft: Path) -> None:
        draft.mkdir()
        self._root = draft

    @contextmanager
    def file(self, path: str) -> Iterator[IO[bytes]]:
        """Open one file."""
        place = self._root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as file:
            yield file
            _synced(file)

    def close(self) -> None:
        """Bring the names of the files to the disk."""
        for folder, _, _ in os.walk(self._root):
            _sync_names(Path(folder))


def _synced(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --------------------------------------------------------------------------- the export


async def export(
    origin: Origin, target: Path, progress: Progress | None = None, *, as_directory: bool = False
) -> Exported:
    """Write the whole log, as it is now, under a name where nothing is yet.

    progress hears (records done, records in all).
    Cost:   every record and hash tile is read once; a few tiles are in memory at a time.
    Errors: export_exists, export_failed.
    """
    target, draft = _names(target)
    try:
        exported = await _written(origin, draft, target, progress or _silent, as_directory)
        # From here on the draft is whole and on the disk; it is an export or it is not, nothing between.
        _appear(draft, target)
    except (OSError, httpx.HTTPError, httpx.StreamError) as outage:
        raise ExportFailedError(f"the export was given up: {outage}", internal=repr(outage)) from outage
    finally:
        _remove(draft)
    return exported


def _names(target: Path) -> tuple[Path, Path]:
    """Give the full name of a target where nothing is yet, and that of its draft."""
    target = target.absolute()
    if os.path.lexists(target):
        raise ExportExistsError(target=target.name)
    return target, target.with_name(f".{target.name}.{os.getpid()}.draft")


def _silent(done: int, total: int) -> None:
    """Say nothing about progress."""


async def _written(
    origin: Origin, draft: Path, target: Path, progress: Progress, as_directory: bool
) -> Exported:
    note = await origin.checkpoint()
    head = Checkpoint.parse(parse_note(note).text)
    put = _Writing(DirectoryTarget(draft) if as_directory else ZipTarget(draft))
    try:
        put.whole("checkpoint", note)
        put.whole("manifest.json", _manifest(head))
        for path in ("log.vkey", "policy"):
            if (body := await origin.text(path)) is not None:
                put.whole(path, body)
        with put.target.file("checkpoints") as file:
            async for lines in origin.history(head.size):
                put.part(file, lines)
        await _copy_tiles(origin, head.size, put, progress)
    finally:
        await asyncio.to_thread(put.target.close)
    return Exported(target, head.origin, head.size, put.file_count, put.bytes_read)


class _Writing:
    """A target, and how much went into it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.file_count = 1  # the history, which is written in parts
        self.bytes_read = 0

    def whole(self, path: str, body: bytes) -> None:
        with self.target.file(path) as file:
            self.part(file, body)
        self.file_count += 1

    def part(self, file: IO[bytes], body: bytes) -> None:
        file.write(body)
        self.bytes_read += len(body)


def _manifest(head: Checkpoint) -> bytes:
    manifest = {
        "created_at": moment_text(datetime.now(UTC)),
        "format": EXPORT_FORMAT,
        "origin": head.origin,
        "size": head.size,
        "version": EXPORT_VERSION,
    }
    return orjson.dumps(manifest)


async def _copy_tiles(origin: Origin, size: int, put: _Writing, progress: Progress) -> None:
    """Copy bundles and hash tiles, reading a few ahead of the one that is written."""
    progress(0, size)
    done = 0
    async for tile, body in _ahead(origin, size, chain(bundles_of(size), tiles_of(size))):
        await asyncio.to_thread(put.whole, tile.path, body)
        if tile.is_entries:
            done += tile.width
            progress(done, size)


async def _ahead(origin: Origin, size: int, tiles: Iterable[Tile]) -> AsyncIterator[tuple[Tile, bytes]]:
    waiting: deque[tuple[Tile, asyncio.Task[bytes]]] = deque()
    coming = iter(tiles)
    try:
        while True:
            while len(waiting) < AHEAD and (tile := next(coming, None)) is not None:
                waiting.append((tile, asyncio.ensure_future(_read(origin.tile(tile, size)))))
            if not waiting:
                return
            tile, task = waiting.popleft()
            yield tile, await task
    finally:
        for _, task in waiting:
            task.cancel()
        await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)


async def _read(reading: Awaitable[bytes]) -> bytes:
    return await reading


# --------------------------------------------------------------------------- appearing


def _appear(draft: Path, target: Path) -> None:
    """Give the draft its name in one step, unless somebody else took the name meanwhile."""
    try:
        if draft.is_dir():
            # rename replaces an empty directory only, and that loses nothing.
            draft.rename(target)
        else:
            # A link, unlike a rename, never replaces anything.
            os.link(draft, target)
    except OSError as error:
        if os.path.lexists(target):
            raise ExportExistsError(target=target.name) from error
        raise
    _sync_names(target.parent)


def _remove(draft: Path) -> None:
    if draft.is_dir():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        draft.unlink(missing_ok=True)
