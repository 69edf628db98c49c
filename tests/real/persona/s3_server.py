"""A real S3 server on loopback: Versity's gateway over a directory, built once by the Go toolchain.

It speaks S3 with signed requests, multipart uploads and conditional writes, and keeps an access log in the form of
AWS.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from obstore.store import S3Store

from tests.tools import go_program

MODULE = "github.com/versity/versitygw/cmd/versitygw"
# The first that can be had; the last is whatever is newest.
VERSIONS = ("v1.8.0", "latest")
STARTING_S_MAX = 30.0
ACCESS, SECRET, BUCKET = "soma-test", "soma-test-secret", "soma"
# As AWS writes it: [time] address requester request-id operation key uri status ...
_LINE = re.compile(r"\] \S+ \S+ \S+ s3_(?P<act>\w+) (?P<key>\S+) \S+ (?P<status>[0-9]{3}) ")


class Access(NamedTuple):
    """One request the server answered."""

    act: str
    key: str
    status: int


class S3Server:
    """A running server with one bucket."""

    def __init__(self, url: str, access_log: Path) -> None:
        self.url = url
        self.access_log = access_log

    @property
    def environment(self) -> dict[str, str]:
        """Give the variables by which a service finds it, as for any S3."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def store(self) -> S3Store:
        """Speak to the bucket directly."""
        return S3Store(
            BUCKET,
            endpoint=self.url,
            access_key_id=ACCESS,
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
        )

    def accesses(self) -> list[Access]:
        """Read what was asked of the server so far, from its own log."""
        found = [_LINE.search(line) for line in self.access_log.read_text().splitlines()]
        return [Access(f["act"], unquote(f["key"]), int(f["status"])) for f in found if f]


def program() -> Path:
    """Locate the server, or build it."""
    return go_program("versitygw", MODULE, VERSIONS)


@contextmanager
def s3_server(place: Path) -> Iterator[S3Server]:
    """Run a server over a directory, with an empty bucket in it."""
    buckets = place / "buckets"
    buckets.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    access_log = place / "access.log"
    words = [str(program()), "--port", f"127.0.0.1:{port}", "--quiet", "--access-log", str(access_log)]
    out = (place / "server.out").open("wb")
    with (
        out,
        subprocess.Popen(
            [*words, "posix", "--sidecar", str(_made(place / "sidecar")), str(buckets)],
            env=os.environ | {"ROOT_ACCESS_KEY": ACCESS, "ROOT_SECRET_KEY": SECRET},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        ) as running,
    ):
        try:
            _wait(port, running, place / "server.out")
            (buckets / BUCKET).mkdir()
            yield S3Server(f"http://127.0.0.1:{port}", access_log)
        finally:
            running.terminate()
            running.wait(30)


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def _wait(port: int, running: subprocess.Popen[bytes], said: Path) -> None:
    until = time.monotonic() + STARTING_S_MAX
    while True:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        assert running.poll() is None, f"the S3 server stopped: {said.read_text()[-2_000:]}"
        assert time.monotonic() < until, "the S3 server does not answer"
        time.sleep(0.05)
