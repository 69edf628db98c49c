"""Logs to be audited, read from a directory, an export file and a server."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.log.audit import audit
from ops.audit_sources import TILE_BYTES_MAX, HttpSource, open_source
from tests.unit.log import log_maker as made

VKEY = made.Signer().vkey
Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return made.a_log(made.chained(made.sample_events(300)), history=(100, 300))


def packed(path: Path, files: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as export:
        for name, body in files.items():
            export.writestr(name, body)
    return path


def server_of(files: dict[str, bytes], token: str = "") -> Wsgi:
    """A server of the files, which wants the token and packs what it sends."""

    def serve(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        body = files.get(environ["PATH_INFO"].removeprefix("/log/"))
        if token and environ.get("HTTP_AUTHORIZATION") != f"Bearer {token}":
            start("403 Forbidden", [])
            return [b""]
        start("404 Not Found" if body is None else "200 OK", [("content-encoding", "gzip")])
        return [gzip.compress(body or b"")]

    return serve


def http_source(app: Wsgi, token: str | None = None) -> HttpSource:
    return HttpSource("http://log.example/log", token=token, transport=httpx.WSGITransport(app))


class TestSources:
    def test_a_directory_is_audited(self, tmp_path: Path, files: dict[str, bytes]) -> None:
        for name, body in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(body)
        source = open_source(str(tmp_path))
        assert audit(source.read, vkey=VKEY, manifest_required=source.is_export).ok
        source.close()

    @pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_an_export_file_is_audited(self, tmp_path: Path, files: dict[str, bytes], how: int) -> None:
        source = open_source(str(packed(tmp_path / "log.zip", files, how)))
        assert source.is_export
        assert audit(source.read, vkey=VKEY, manifest_required=True).ok
        source.close()

    def test_a_server_is_audited_with_a_token(self, files: dict[str, bytes]) -> None:
        source = http_source(server_of(files, "secret"), "secret")
        assert audit(source.read, vkey=VKEY).ok
        source.close()

    def test_an_answer_that_is_neither_200_nor_404_is_a_failure(self, files: dict[str, bytes]) -> None:
        source = http_source(server_of(files, "secret"))
        with pytest.raises(OSError, match="403"):
            source.read("checkpoint")
        report = audit(source.read, vkey=VKEY)
        assert {one.code for one in report.findings} == {"unreadable"}

    def test_nothing_larger_than_its_bound_is_read(self, tmp_path: Path, files: dict[str, bytes]) -> None:
        bomb = files | {"tile/0/000": b"\0" * (TILE_BYTES_MAX + 1)}
        for source in (open_source(str(packed(tmp_path / "bomb.zip", bomb))), http_source(server_of(bomb))):
            with pytest.raises(OSError, match="larger"):
                source.read("tile/0/000")
            source.close()

    def test_an_export_file_with_foreign_members_or_flipped_bytes_is_refused(
        self, tmp_path: Path, files: dict[str, bytes]
    ) -> None:
        with pytest.raises(OSError, match="foreign"):
            open_source(str(packed(tmp_path / "more.zip", files | {"../evil": b""})))
        path = packed(tmp_path / "flipped.zip", files, zipfile.ZIP_STORED)
        body = bytearray(path.read_bytes())
        body[body.index(files["tile/0/000"]) + 5] ^= 1
        path.write_bytes(body)
        source = open_source(str(path))
        report = audit(source.read, vkey=VKEY)
        assert [(one.code, one.path) for one in report.findings] == [("unreadable", "tile/0/000")]
        source.close()

    @pytest.mark.parametrize(
        "path", ["../secret", "tile/0/1", "tile/0/x001/1", "/etc/passwd", "tile/64/000", ""]
    )
    def test_only_paths_of_a_log_are_read(self, tmp_path: Path, path: str) -> None:
        with pytest.raises(OSError, match="not a path"):
            open_source(str(tmp_path)).read(path)

    def test_what_is_not_there_cannot_be_opened(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            open_source(str(tmp_path / "absent"))
        (tmp_path / "text.zip").write_text("no archive")
        with pytest.raises(OSError, match="not an export"):
            open_source(str(tmp_path / "text.zip"))
