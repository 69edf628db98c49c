"""The way out over real sockets and real TLS: to the address that was judged, under the name that was asked for."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ops.outbound import Outbound, Outcome

NAME = "receiver.example"


def certificate(place: Path) -> Path:
    """Make a certificate for NAME that signs itself, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = place / "receiver.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


Handle = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def server(handle: Handle, pem: Path | None = None) -> Iterator[int]:
    """Run a server that answers as told; give its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            handle(self)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Say nothing of those who hang up."""

    with Server(("127.0.0.1", 0), Handler) as running:
        if pem is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pem)
            running.socket = context.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running.server_address[1]
        running.shutdown()
        thread.join()


def post(url: str, *found: str, timeout_s: float = 5.0, pem: Path | None = None) -> tuple[Outcome, list[str]]:
    """Send one message, with every name leading to these addresses; give also what was looked up."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return found or ["127.0.0.1"]

    tls = ssl.create_default_context(cafile=str(pem)) if pem else None

    async def scene() -> Outcome:
        async with Outbound(timeout_s=timeout_s, allow_private=True, resolve=resolve, tls=tls) as outbound:
            return await outbound.post(url, {"content-type": "application/json"}, b"{}")

    return asyncio.run(scene()), asked


def test_the_connection_goes_to_the_address_that_was_judged(tmp_path: Path) -> None:
    seen: list[str] = []

    def handle(request: BaseHTTPRequestHandler) -> None:
        seen.append(request.headers["host"])
        request.send_response(204)
        request.end_headers()

    pem = certificate(tmp_path)
    with server(handle, pem) as port:
        outcome, asked = post(f"https://{NAME}:{port}/", pem=pem)
        assert outcome.delivered, outcome
        # The name was looked up once, leads nowhere by itself, and is what TLS and the request speak of.
        assert asked == [NAME]
        assert seen == [f"{NAME}:{port}"]


def test_a_certificate_of_another_name_is_refused(tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    with server(lambda request: None, pem) as port:
        outcome, _ = post(f"https://elsewhere.example:{port}/", pem=pem)
    assert outcome.status is None
    assert "certificate" in outcome.error.lower()


def test_the_next_address_is_tried_where_nobody_answers() -> None:
    def handle(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()

    with server(handle) as port:
        outcome, _ = post(f"http://{NAME}:{port}/", "127.0.0.2", "127.0.0.1")
    assert outcome.status == 200


def test_a_redirect_is_an_answer_and_not_a_way() -> None:
    followed: list[str] = []

    def handle(request: BaseHTTPRequestHandler) -> None:
        followed.append(request.path)
        request.send_response(307)
        request.send_header("location", "/elsewhere")
        request.end_headers()

    with server(handle) as port:
        outcome, _ = post(f"http://{NAME}:{port}/here")
    assert (outcome.status, outcome.delivered, outcome.error) == (307, False, "answered 307")
    assert followed == ["/here"]


def test_an_answer_without_end_is_read_to_a_bound() -> None:
    def handle(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(b"x" * 65_536)

    with server(handle) as port:
        outcome, _ = post(f"http://{NAME}:{port}/")
    assert outcome.delivered


@pytest.mark.parametrize("slow", ["head", "body"])
def test_a_receiver_that_takes_its_time_has_only_so_much(slow: str) -> None:
    released = threading.Event()

    def handle(request: BaseHTTPRequestHandler) -> None:
        if slow == "body":
            request.send_response(200)
            request.end_headers()
            request.wfile.write(b"x")
        released.wait(20)

    with server(handle) as port:
        outcome, _ = post(f"http://{NAME}:{port}/", timeout_s=0.3)
        released.set()
    assert outcome.status is None
    assert outcome.error == "no answer within 0.3 s"


def test_nobody_there_is_an_outcome_too() -> None:
    with server(lambda request: None) as port:
        pass
    outcome, _ = post(f"http://{NAME}:{port}/")
    assert outcome.status is None
    assert outcome.error
