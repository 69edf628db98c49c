"""A real Open Policy Agent on loopback, built once by the Go toolchain."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tests.tools import go_program

MODULE = "github.com/open-policy-agent/opa"
# The first that can be had; the last is whatever is newest.
VERSIONS = ("v1.22.2", "latest")
STARTING_S_MAX = 30.0


def program() -> Path:
    """Locate OPA, or build it."""
    return go_program("opa", MODULE, VERSIONS)


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
