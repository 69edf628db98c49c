"""Exports of a real log: whole or not there at all, and whatever is done to them is found and named."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from pydantic import SecretStr

from domain.errors import ExportExistsError, ExportFailedError
from domain.log.audit import Report, audit
from domain.log.notes import Checkpoint, Signer
from domain.log.tiles import decode_bundle, encode_bundle
from ops.audit_sources import open_source
from ops.export import DatabaseOrigin, ServerOrigin, export
from ops.settings import Settings
from tests.real.conftest import lend
from tests.real.log.market_log import AUDITOR, tell
from tests.real.log.served import Served, serving
from tests.real.log.world import give

Files = dict[str, bytes]


class Exports(NamedTuple):
    """A service, and its log exported in both forms."""

    service: Served
    file: Path
    directory: Path
    files: Files

    @property
    def vkey(self) -> str:
        """The key an auditor was given beforehand."""
        return self.service.runtime.signer.key.text


@pytest.fixture(scope="module")
def exports(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Exports]:
    here = tmp_path_factory.mktemp("exports")
    for url in lend(server_url, template_database):
        with serving(Settings(database_url=SecretStr(url), data_dir=here / "data")) as service:
            tell(service, 600)
            origin = DatabaseOrigin(service.runtime)
            service.run(export(origin, here / "log.zip"))
            service.run(export(origin, here / "log", as_directory=True))
            yield Exports(service, here / "log.zip", here / "log", _files(here / "log.zip"))


def _files(path: Path) -> Files:
    with zipfile.ZipFile(path) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def run(files: Files, vkey: str | None) -> Report:
    return audit(files.get, vkey=vkey, manifest_required=True)


def codes(report: Report) -> set[str]:
    return {finding.code for finding in report.findings}


class TestExport:
    def test_an_untouched_export_has_no_finding_in_either_form(self, exports: Exports) -> None:
        digests = set()
        for place in (exports.file, exports.directory):
            source = open_source(str(place))
            report = audit(source.read, vkey=exports.vkey, manifest_required=True)
            source.close()
            assert report.findings == []
            assert report.records == json.loads(exports.files["manifest.json"])["size"] > 512
            assert report.accounts >= 4
            assert report.checkpoints > 50
            digests.add(report.digest)
        assert len(digests) == 1

    def test_the_two_forms_hold_the_same_files(self, exports: Exports) -> None:
        found = {
            str(path.relative_to(exports.directory)): path.read_bytes()
            for path in exports.directory.rglob("*")
            if path.is_file()
        }
        manifest = json.loads(found.pop("manifest.json"))
        other = dict(exports.files)
        assert manifest.keys() == json.loads(other.pop("manifest.json")).keys()
        assert found == other

    def test_an_export_never_writes_over_anything(self, exports: Exports, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"mine")
        (tmp_path / "directory").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        origin = DatabaseOrigin(exports.service.runtime)
        for name in ("file", "directory", "link"):
            for as_directory in (False, True):
                with pytest.raises(ExportExistsError):
                    exports.service.run(export(origin, tmp_path / name, as_directory=as_directory))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "file", "link"]
        assert (tmp_path / "file").read_bytes() == b"mine"

    @pytest.mark.parametrize("as_directory", [False, True])
    def test_a_server_that_refuses_leaves_nothing_behind(
        self, exports: Exports, tmp_path: Path, as_directory: bool
    ) -> None:
        async def without_token() -> None:
            origin = ServerOrigin.at(exports.service.url)
            try:
                await export(origin, tmp_path / "log", as_directory=as_directory)
            finally:
                await origin.close()

        with pytest.raises(ExportFailedError):
            exports.service.run(without_token())
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("as_directory", [False, True])
    @pytest.mark.parametrize("after", [0, 256, 512])
    def test_a_killed_export_leaves_nothing_under_its_name(
        self, exports: Exports, tmp_path: Path, as_directory: bool, after: int
    ) -> None:
        target = tmp_path / "log.out"
        env = os.environ | {"EXPORT_TOKEN": exports.service.token(AUDITOR)}
        words = [exports.service.url, str(target), "1" if as_directory else "", str(after)]
        child = subprocess.run([sys.executable, "-c", KILLED, *words], env=env, cwd=Path(__file__).parents[3])
        assert child.returncode == -signal.SIGKILL
        assert not os.path.lexists(target)
        # What the killed one left does not stand in the way of the next.
        exports.service.run(
            export(DatabaseOrigin(exports.service.runtime), target, as_directory=as_directory)
        )
        assert target.exists()

    def test_a_log_that_grows_meanwhile_is_exported_as_it_was_at_the_beginning(
        self, exports: Exports, tmp_path: Path
    ) -> None:
        runtime = exports.service.runtime
        size = exports.service.run(runtime.reader.size())

        async def export_while_writing() -> int:
            origin = _Growing(DatabaseOrigin(runtime), runtime)
            return (await export(origin, tmp_path / "log.zip")).size

        assert exports.service.run(export_while_writing()) == size
        assert run(_files(tmp_path / "log.zip"), exports.vkey).findings == []
        assert exports.service.run(runtime.reader.size()) > size


class _Growing:
    """An origin whose log grows as soon as its checkpoint was read."""

    def __init__(self, origin: DatabaseOrigin, runtime) -> None:
        self._runtime = runtime
        self.text, self.tile, self.history = origin.text, origin.tile, origin.history
        self._checkpoint = origin.checkpoint

    async def checkpoint(self) -> bytes:
        note = await self._checkpoint()
        for amount in ("1", "2", "3"):
            await give(self._runtime.ledger, "lab", amount)
        return note


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from ops.export import ServerOrigin, export
url, target, as_directory, after = sys.argv[1:]
def progress(done, total):
    if done >= int(after):
        os.kill(os.getpid(), signal.SIGKILL)
origin = ServerOrigin.at(url, os.environ["EXPORT_TOKEN"])
asyncio.run(export(origin, Path(target), progress, as_directory=bool(as_directory)))
"""


# --------------------------------------------------------------------------- mutations


def flipped(body: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(body))
    return body[:at] + bytes([body[at] ^ 1 << dice.randrange(8)]) + body[at + 1 :]


def bundles(files: Files) -> list[str]:
    return sorted(path for path in files if path.startswith("tile/entries/"))


def changed_records(files: Files, path: str, records: list[bytes]) -> Files:
    return files | {path: encode_bundle(records)}


def parts(files: Files, dice: random.Random) -> tuple[str, list[bytes], int]:
    """Choose a bundle and a place in it."""
    path = dice.choice(bundles(files))
    records = list(decode_bundle(files[path]))
    return path, records, dice.randrange(len(records) - 1)


class TestMutations:
    """Each was done to an export of a log with offers, contracts, escrow and hundreds of transfers."""

    @pytest.mark.parametrize("seed", range(12))
    def test_a_flipped_bit_in_a_record_names_the_record(self, exports: Exports, seed: int) -> None:
        dice = random.Random(seed)
        path, records, at = parts(exports.files, dice)
        records[at] = flipped(records[at], dice)
        report = run(changed_records(exports.files, path, records), exports.vkey)
        first = report.first
        assert first is not None
        assert (first.code, first.position) == (
            "record_altered",
            bundles(exports.files).index(path) * 256 + at,
        )

    @pytest.mark.parametrize("seed", range(8))
    def test_an_amount_made_larger_names_the_record(self, exports: Exports, seed: int) -> None:
        dice = random.Random(seed)
        while True:
            path, records, at = parts(exports.files, dice)
            raised = records[at].replace(b'"amount":"', b'"amount":"9')
            if raised != records[at]:
                break
        records[at] = raised
        report = run(changed_records(exports.files, path, records), exports.vkey)
        assert report.first is not None
        assert report.first.code == "record_altered"
        assert report.first.position == bundles(exports.files).index(path) * 256 + at

    @pytest.mark.parametrize("seed", range(10))
    def test_a_flipped_bit_in_a_hash_tile_names_the_tile(self, exports: Exports, seed: int) -> None:
        dice = random.Random(seed)
        tiles = sorted(exports.files.keys() - set(bundles(exports.files)))
        path = dice.choice([path for path in tiles if path.startswith("tile/")])
        report = run(exports.files | {path: flipped(exports.files[path], dice)}, exports.vkey)
        assert [(one.code, one.path) for one in report.findings] == [("tile_altered", path)]

    @pytest.mark.parametrize("seed", range(4))
    def test_a_record_taken_out_is_found(self, exports: Exports, seed: int) -> None:
        path, records, at = parts(exports.files, random.Random(seed))
        del records[at]
        report = run(changed_records(exports.files, path, records), exports.vkey)
        assert not report.ok
        assert report.first is not None
        assert report.first.position is not None

    @pytest.mark.parametrize("seed", range(4))
    def test_a_record_put_in_twice_is_found(self, exports: Exports, seed: int) -> None:
        path, records, at = parts(exports.files, random.Random(seed))
        records.insert(at, records[at])
        assert not run(changed_records(exports.files, path, records[:256]), exports.vkey).ok
        assert not run(changed_records(exports.files, path, records), exports.vkey).ok

    @pytest.mark.parametrize("seed", range(4))
    def test_two_records_that_change_places_are_found(self, exports: Exports, seed: int) -> None:
        path, records, at = parts(exports.files, random.Random(seed))
        records[at], records[at + 1] = records[at + 1], records[at]
        report = run(changed_records(exports.files, path, records), exports.vkey)
        assert report.first is not None
        assert report.first.position == bundles(exports.files).index(path) * 256 + at

    def test_every_file_that_is_missing_is_named(self, exports: Exports) -> None:
        for path in exports.files:
            files = {name: body for name, body in exports.files.items() if name != path}
            report = run(files, exports.vkey)
            if path in ("log.vkey", "policy", "checkpoints"):
                # The auditor brought the key; without the others there is less to check, and the count says so.
                assert report.ok
                assert path != "checkpoints" or report.checkpoints == 0
            else:
                assert path in {finding.path for finding in report.findings}, path

    @pytest.mark.parametrize("seed", range(6))
    def test_a_flipped_bit_in_the_checkpoint_or_history_is_found(self, exports: Exports, seed: int) -> None:
        dice = random.Random(seed)
        path = ("checkpoint", "checkpoints")[seed % 2]
        report = run(exports.files | {path: flipped(exports.files[path], dice)}, exports.vkey)
        assert report.first is not None
        assert (report.first.path or "").startswith(path)

    def test_a_log_cut_off_and_signed_anew_by_its_own_key_is_found_by_its_history(
        self, exports: Exports
    ) -> None:
        """The owner of the key shortens the log; the checkpoints handed out before tell of it."""
        signer = exports.service.runtime.signer
        lines = [json.loads(line) for line in exports.files["checkpoints"].splitlines()]
        older = next(line for line in lines if line["size"] > 256)
        manifest = json.loads(exports.files["manifest.json"]) | {"size": older["size"]}
        files = exports.files | {
            "checkpoint": older["note"].encode(),
            "manifest.json": json.dumps(manifest, separators=(",", ":")).encode(),
        }
        assert "truncated" in codes(run(files, signer.key.text))
        files["checkpoints"] = b""
        kept = exports.files["checkpoint"].decode()
        assert "truncated" in codes(audit(files.get, vkey=signer.key.text, since=[kept]))

    def test_a_whole_log_signed_by_another_key_is_found(self, exports: Exports) -> None:
        checkpoint = Checkpoint.parse(exports.files["checkpoint"].decode().partition("\n\n")[0] + "\n")
        forger = Signer(checkpoint.origin, b"f" * 32)
        files = exports.files | {
            "checkpoint": checkpoint.sign(forger),
            "log.vkey": forger.key.text.encode() + b"\n",
            "checkpoints": b"",
        }
        found = codes(run(files, exports.vkey))
        assert found >= {"key_mismatch", "key_unknown"}


# --------------------------------------------------------------------------- in transit


class _Tampering(BaseHTTPRequestHandler):
    """Passes requests on, and spoils one bit of one path's answer."""

    upstream = ""
    spoiled = ""

    def do_GET(self) -> None:
        headers = {"authorization": self.headers["authorization"], "accept-encoding": "identity"}
        answer = httpx.get(self.upstream + self.path, headers=headers)
        body = bytearray(answer.content)
        if self.path.partition("?")[0] == self.spoiled:
            body[len(body) // 2] ^= 1
        self.send_response(answer.status_code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Say nothing."""


class TestTransit:
    @pytest.fixture
    def proxy(self, exports: Exports) -> Iterator[ThreadingHTTPServer]:
        handler = type("Tampering", (_Tampering,), {"upstream": exports.service.url})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield server
            server.shutdown()
            thread.join()

    @pytest.mark.parametrize(
        "path",
        ["tile/entries/000", "tile/entries/001", "tile/0/001", "checkpoint", "checkpoints", "log.vkey"],
    )
    def test_what_is_changed_on_the_way_is_found(
        self, exports: Exports, proxy: ThreadingHTTPServer, path: str
    ) -> None:
        first = self._report(exports, proxy, path).first
        assert first is not None
        if path.startswith("tile/entries/"):
            assert first.code in ("record_altered", "bundle_malformed")
            assert first.position is not None
            assert first.position // 256 == int(path[-3:])
        else:
            assert (first.path or "").startswith(path)

    def test_what_is_passed_on_unchanged_has_no_finding(
        self, exports: Exports, proxy: ThreadingHTTPServer
    ) -> None:
        assert self._report(exports, proxy, "").findings == []

    def _report(self, exports: Exports, proxy: ThreadingHTTPServer, spoiled: str) -> Report:
        proxy.RequestHandlerClass.spoiled = f"/{spoiled}"  # type: ignore[attr-defined]
        source = open_source(
            f"http://127.0.0.1:{proxy.server_address[1]}/", token=exports.service.token(AUDITOR)
        )
        report = audit(source.read, vkey=exports.vkey)
        source.close()
        return report
