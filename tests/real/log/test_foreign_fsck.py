"""Programs we did not write, against our log: whole walks by tessera's fsck, and proofs by Go's sumdb/tlog.

They are built once with the Go toolchain, from modules whose sums the Go checksum database vouches for.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import SecretStr

from ops.export import DatabaseOrigin, export
from ops.settings import Settings
from tests.real.conftest import lend
from tests.real.log.market_log import AUDITOR, ok, tell
from tests.real.log.served import Served, serving
from tests.tools import BUILD_S_MAX, CACHE, building, go_program, missing

pytestmark = pytest.mark.slow

FSCK = "github.com/transparency-dev/tessera/cmd/fsck"
# The first that can be had. Release 1.0.4 ends with 0 even when it finds damage, so what it says is what counts.
FSCK_VERSIONS = ("1811ae1a7c40", "v1.0.4")
TLOG = "golang.org/x/mod@v0.29.0"
RUN_S_MAX = 180
SUCCESS = "Successfully fsck'd log"

CHECK_PROOFS = """
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"golang.org/x/mod/sumdb/tlog"
)

type claim struct {
	Kind              string
	Position, From, To int64
	Record            []byte
	FromRoot, ToRoot  []byte
	Hashes            [][]byte
}

func hash(b []byte) (h tlog.Hash) {
	copy(h[:], b)
	return
}

func main() {
	var claims []claim
	if err := json.NewDecoder(os.Stdin).Decode(&claims); err != nil {
		panic(err)
	}
	for i, c := range claims {
		var hashes []tlog.Hash
		for _, h := range c.Hashes {
			hashes = append(hashes, hash(h))
		}
		var err error
		if c.Kind == "inclusion" {
			err = tlog.CheckRecord(hashes, c.To, hash(c.ToRoot), c.Position, tlog.RecordHash(c.Record))
		} else {
			err = tlog.CheckTree(hashes, c.To, hash(c.ToRoot), c.From, hash(c.FromRoot))
		}
		if err == nil {
			fmt.Println(i, "good")
		} else {
			fmt.Println(i, "bad")
		}
	}
}
"""


def go() -> str:
    return shutil.which("go") or str(missing("needs a Go toolchain to build programs of others"))


def built(words: list[str], where: Path, **env: str) -> str | None:
    """Run the Go toolchain; give what it complained of, or None."""
    quiet = os.environ | {"GOFLAGS": "-buildvcs=false"} | env
    try:
        run = subprocess.run(
            [go(), *words], cwd=where, env=quiet, capture_output=True, text=True, timeout=BUILD_S_MAX
        )
    except subprocess.TimeoutExpired:
        return "the build took too long"
    return None if run.returncode == 0 else run.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="session")
def fsck() -> Path:
    """Build fsck of the first version that can be had."""
    return go_program("fsck", FSCK, FSCK_VERSIONS)


@pytest.fixture(scope="session")
def check_proofs() -> Path:
    """Build a checker of proofs around golang.org/x/mod/sumdb/tlog."""
    home = CACHE / f"tlog-{hashlib.sha256((CHECK_PROOFS + TLOG).encode()).hexdigest()[:12]}"
    with building("tlog"):
        if (home / "tlog").exists():
            return home / "tlog"
        home.mkdir(parents=True, exist_ok=True)
        (home / "main.go").write_text(CHECK_PROOFS)
        (home / "go.mod").write_text("module foreign\n\ngo 1.24\n")
        for words in (["get", TLOG], ["build", "-o", "tlog", "."]):
            if (complaint := built(words, home, GOFLAGS="-buildvcs=false -mod=mod")) is not None:
                missing(f"Go's sumdb/tlog cannot be built here: {complaint}")
        return home / "tlog"


class Kept(NamedTuple):
    """A service, the directory form of its export, and a file with its key."""

    service: Served
    directory: Path
    vkey: Path


@pytest.fixture(scope="module")
def kept(server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    here = tmp_path_factory.mktemp("foreign")
    for url in lend(server_url, template_database):
        with serving(Settings(database_url=SecretStr(url), data_dir=here / "data")) as service:
            tell(service, 900)
            service.run(export(DatabaseOrigin(service.runtime), here / "log", as_directory=True))
            (here / "log.vkey").write_text(service.runtime.signer.key.text)
            yield Kept(service, here / "log", here / "log.vkey")


def checked(fsck: Path, kept: Kept, url: str, *more: str) -> tuple[bool, str]:
    """Let fsck walk a log; give whether it found it whole, and what it said."""
    words = [str(fsck), f"--storage_url={url}", f"--public_key={kept.vkey}", "--ui=false", "--N=8", *more]
    try:
        run = subprocess.run(words, capture_output=True, text=True, timeout=RUN_S_MAX)
    except subprocess.TimeoutExpired as hung:
        return False, f"hung: {hung.stderr!r}"
    return run.returncode == 0 and SUCCESS in run.stderr, run.stderr


class TestFsck:
    def test_a_running_service_is_walked_with_a_bearer_token(self, fsck: Path, kept: Kept) -> None:
        token = kept.service.token(AUDITOR)
        whole, said = checked(fsck, kept, kept.service.url + "/", f"--bearer_token={token}")
        assert whole, said

    def test_without_a_token_the_entries_cannot_be_walked(self, fsck: Path, kept: Kept) -> None:
        whole, _ = checked(fsck, kept, kept.service.url + "/")
        assert not whole

    def test_the_directory_form_of_an_export_is_walked(self, fsck: Path, kept: Kept) -> None:
        whole, said = checked(fsck, kept, f"file://{kept.directory}/")
        assert whole, said

    def test_the_key_of_another_log_is_refused(self, fsck: Path, kept: Kept, tmp_path: Path) -> None:
        other = tmp_path / "other.vkey"
        other.write_text("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")
        whole, _ = checked(fsck, kept._replace(vkey=other), f"file://{kept.directory}/")
        assert not whole

    @pytest.mark.parametrize(
        "place", ["checkpoint", "entries/000", "entries/last", "0/001", "0/last", "1/last"]
    )
    def test_one_flipped_bit_is_found_by_both_verifiers(
        self, fsck: Path, kept: Kept, tmp_path: Path, place: str
    ) -> None:
        copy = tmp_path / "log"
        shutil.copytree(kept.directory, copy)
        target = copy / "checkpoint" if place == "checkpoint" else self._file(copy / "tile" / place)
        body = bytearray(target.read_bytes())
        body[len(body) // 2] ^= 1
        target.write_bytes(body)
        whole, said = checked(fsck, kept, f"file://{copy}/")
        assert not whole, said

    @staticmethod
    def _file(place: Path) -> Path:
        """Find a tile; `last` is the partial one at the end of its level."""
        if place.name != "last":
            return place
        (partial,) = [
            path for path in place.parent.rglob("*") if path.is_file() and path.parent.suffix == ".p"
        ]
        return partial


class TestTlog:
    def test_go_accepts_our_proofs_and_refuses_spoiled_ones(self, check_proofs: Path, kept: Kept) -> None:
        claims = self._claims(kept)
        assert self._verdicts(check_proofs, claims) == ["good"] * len(claims)
        spoiled = [self._spoiled(claim) for claim in claims]
        assert self._verdicts(check_proofs, spoiled) == ["bad"] * len(spoiled)

    def _claims(self, kept: Kept) -> list[dict[str, object]]:
        claims: list[dict[str, object]] = []
        with kept.service.client(AUDITOR) as auditor:
            size = int(auditor.get("/checkpoint").text.split("\n")[1])
            for end in (2, 255, 256, 257, 600, size):
                for position in sorted({0, end // 2, end - 1}):
                    asked = {"position": position, "size": end}
                    proof = ok(auditor.get("/v1/log/proofs/inclusion", params=asked))
                    record = auditor.get(f"/v1/log/records/{position}").content
                    claims.append(
                        {
                            "Kind": "inclusion",
                            "Position": position,
                            "To": end,
                            "ToRoot": proof["root"],
                            "Hashes": proof["hashes"],
                            "Record": base64.b64encode(record).decode(),
                        }
                    )
                for start in (1, end // 2, end - 1):
                    proof = ok(auditor.get("/v1/log/proofs/consistency", params={"from": start, "to": end}))
                    claims.append(
                        {
                            "Kind": "consistency",
                            "From": start,
                            "To": end,
                            "FromRoot": proof["from_root"],
                            "ToRoot": proof["to_root"],
                            "Hashes": proof["hashes"],
                        }
                    )
        return claims

    @staticmethod
    def _spoiled(claim: dict[str, object]) -> dict[str, object]:
        root = bytearray(base64.b64decode(str(claim["ToRoot"])))
        root[7] ^= 1
        return claim | {"ToRoot": base64.b64encode(root).decode()}

    @staticmethod
    def _verdicts(check_proofs: Path, claims: list[dict[str, object]]) -> list[str]:
        run = subprocess.run(
            [str(check_proofs)], input=json.dumps(claims), capture_output=True, text=True, timeout=RUN_S_MAX
        )
        assert run.returncode == 0, run.stderr
        return [line.split()[1] for line in run.stdout.splitlines()]
