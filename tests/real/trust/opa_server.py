"""A real Open Policy Agent on loopback, built once by the Go toolchain.

It is kept under SOMA_TOOLS_CACHE or var/cache; building it takes a minute or two.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT

MODULE = "github.com/open-policy-agent/opa"
# The first that can be had; the last is whatever is newest.
VERSIONS = ("v1.22.2", "latest")
CACHE = Path(os.environ.get("SOMA_TOOLS_CACHE", ROOT / "var" / "cache"))
BUILD_S_MAX = 900
STARTING_S_MAX = 30.0


def program() -> Path:
    """Locate OPA, or build it.

    Where there is no Go a laptop skips, and CI fails: that both engines say the same is shown there at least.
    """
    for version in VERSIONS:
        if (path := CACHE / f"opa-{version}" / "opa").exists():
            return path
    go = shutil.which("go")
    if go is None:
        return _missing("a Go toolchain is needed to build OPA")
    complaints = []
    for version in VERSIONS:
        home = CACHE / f"opa-{version}"
        home.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [go, "install", f"{MODULE}@{version}"],
            env=os.environ | {"GOBIN": str(home), "GOFLAGS": "-buildvcs=false"},
            capture_output=True,
            text=True,
            timeout=BUILD_S_MAX,
            check=False,
        )
        if done.returncode == 0:
            return home / "opa"
        home.rmdir()
        complaints.append(done.stderr.strip()[-300:])
    return _missing(f"OPA cannot be built here: {'; '.join(complaints)}")


def _missing(why: str) -> Path:
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


@contextmanager
def opa_server(place: Path, *words: str) -> Iterator[str]:
    """Run OPA with the policies given by words, and give its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        str(program()),
        "run",
        "--server",
        "--addr",
        f"127.0.0.1:{port}",
        "--disable-telemetry",
        *words,
    ]
    said = place / "opa.out"
    with (
        said.open("wb") as out,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out) as running,
    ):
        try:
            _wait(f"http://127.0.0.1:{port}/health", running, said)
            yield f"http://127.0.0.1:{port}"
        finally:
            running.terminate()
            running.wait(30)


def _wait(url: str, running: subprocess.Popen[bytes], said: Path) -> None:
    until = time.monotonic() + STARTING_S_MAX
    while time.monotonic() < until and running.poll() is None:
        with suppress(httpx.HTTPError):
            # Any answer will do: one that asks for a token is running too.
            httpx.get(url, trust_env=False)
            return
        time.sleep(0.05)
    raise AssertionError(f"OPA does not start: {said.read_text()}")
