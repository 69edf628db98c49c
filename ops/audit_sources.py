"""Where a log to be audited comes from: a directory, an export file, or a server.

A source reads paths of the public layout and bounds what it reads, so that no directory, archive or
server can exhaust the auditor. Every failure of transport is an OSError: the audit names it and goes on.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Protocol

import httpx

TILE_BYTES_MAX = 256 * 32
BUNDLE_BYTES_MAX = 256 * (2 + 65_535)
TEXT_BYTES_MAX = 1_000_000
HISTORY_BYTES_MAX = 512_000_000
TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 16
MEMBERS_MAX = 4_000_000

_PATH = re.compile(
    r"checkpoint|checkpoints|log\.vkey|policy|manifest\.json"
    r"|tile/(?:entries|[0-9]|[1-5][0-9]|6[0-3])(?:/x[0-9]{3})*/[0-9]{3}(?:\.p/[1-9][0-9]{0,2})?",
    re.ASCII,
)

# The second line of a checkpoint.
_SIZE_LINE = re.compile(rb"[^\n]+\n([0-9]{1,16})\n")


def bytes_max(path: str) -> int:
    """Bound what may be read of a path.

    Units: bytes.
    """
    if path.startswith("tile/entries/"):
        return BUNDLE_BYTES_MAX
    if path.startswith("tile/"):
        return TILE_BYTES_MAX
    return HISTORY_BYTES_MAX if path == "checkpoints" else TEXT_BYTES_MAX


class Source(Protocol):
    """A place the public files of a log are read from."""

    is_export: bool

    def read(self, path: str) -> bytes | None:
        """Read a path; None when it is not there; OSError when that cannot be told."""

    def close(self) -> None:
        """Give back what the source holds."""


def open_source(location: str, *, token: str | None = None, timeout_s: float = TIMEOUT_S) -> Source:
    """Open a directory, a .zip export or an http(s) address; OSError when it cannot be opened.

    Units: timeout_s in seconds, for each request.
    """
    if location.startswith(("http://", "https://")):
        return HttpSource(location, token=token, timeout_s=timeout_s)
    path = Path(location.removeprefix("file:"))
    if path.is_dir():
        return DirectorySource(path)
    if path.is_file():
        return ZipSource(path)
    raise FileNotFoundError(f"{location} is neither a directory, an export file nor an http(s) address")


def _known(path: str) -> str:
    if not _PATH.fullmatch(path):
        raise OSError(f"{path[:200]!r} is not a path of a log")
    return path


def _bounded(path: str, body: bytes) -> bytes:
    if len(body) > bytes_max(path):
        raise OSError(f"{path} is larger than {bytes_max(path)} bytes")
    return body


class DirectorySource:
    """Reads the files of a directory."""

    is_export = False

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> bytes | None:
        """Read one file, up to its bound."""
        try:
            with (self._root / _known(path)).open("rb") as file:
                return _bounded(path, file.read(bytes_max(path) + 1))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def close(self) -> None:
        """Hold nothing, give back nothing."""


class ZipSource:
    """Reads the members of an export file; a member that inflates beyond its bound is refused."""

    is_export = True

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
            raise OSError(f"{path} is not an export file: {error}") from error
        self._members = self._checked_members(path)

    def _checked_members(self, path: Path) -> dict[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        for member in self._zip.infolist():
            # Two members of one name would be read differently by different tools.
            if member.filename in members or not _PATH.fullmatch(member.filename):
                self._zip.close()
                raise OSError(f"{path} has a foreign or repeated member {member.filename[:200]!r}")
            members[member.filename] = member
        if len(members) > MEMBERS_MAX:
            self._zip.close()
            raise OSError(f"{path} has more than {MEMBERS_MAX} members")
        return members

    def read(self, path: str) -> bytes | None:
        """Inflate one member, up to its bound."""
        member = self._members.get(_known(path))
        if member is None:
            return None
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise OSError(f"{path} is packed in an unknown way")
        try:
            with self._zip.open(member) as file:
                return _bounded(path, file.read(bytes_max(path) + 1))
        except (
            zipfile.BadZipFile,
            zlib.error,
            ValueError,
            NotImplementedError,
            RuntimeError,
            EOFError,
        ) as error:
            raise OSError(f"{path} cannot be unpacked: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._zip.close()


class HttpSource:
    """Reads a log over HTTP with at most a bearer token; 200 and 404 are the only answers that mean something."""

    is_export = False

    def __init__(
        self,
        location: str,
        *,
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._size: bytes | None = None
        headers = {"accept-encoding": "gzip", "user-agent": "soma-audit"}
        if token:
            headers["authorization"] = f"Bearer {token}"
        try:
            self._client = httpx.Client(
                base_url=location.rstrip("/") + "/", headers=headers, timeout=timeout_s, transport=transport
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise OSError(f"{location} is not an address: {error}") from error

    def read(self, path: str) -> bytes | None:
        """Fetch one path, up to its bound.

        A log grows while it is audited, so its history is asked for up to the checkpoint that was read before.
        """
        params = {"size": self._size.decode()} if path == "checkpoints" and self._size else {}
        try:
            with self._client.stream("GET", _known(path), params=params) as answer:
                if answer.status_code == 404:
                    return None
                if answer.status_code != 200:
                    raise OSError(f"the server answers {answer.status_code}")
                body = self._body(path, answer)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        if path == "checkpoint" and (stated := _SIZE_LINE.match(body)):
            self._size = stated[1]
        return body

    def _body(self, path: str, answer: httpx.Response) -> bytes:
        body = bytearray()
        for chunk in answer.iter_bytes(CHUNK_BYTES):
            body += chunk
            if len(body) > bytes_max(path):
                break
        return _bounded(path, bytes(body))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
