"""The stage of the demonstration: a service of its own, actors with tokens, and a note of all that happened.

Actors have the public HTTP API and nothing else.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from rich.console import Console
from rich.table import Table

from ops.settings import Settings, child_environment
from ops.tokens import LocalIssuer

SOMA = [sys.executable, "-m", "api.cli"]
STOP_S_MAX = 30
ANSWER_S_MAX = 60
LOG_LINES_SHOWN = 20


class StoryError(Exception):
    """Something went otherwise than the story goes."""


class Reply(NamedTuple):
    """An answer of the service."""

    status: int
    body: Any
    elapsed_ms: float
    content: bytes

    @property
    def position(self) -> int | None:
        """Give the position of the last record the request wrote: what was opened for it comes before."""
        receipt = self.body.get("receipt", {}) if isinstance(self.body, dict) else {}
        return None if receipt.get("position") is None else receipt["position"] + receipt["event_count"] - 1


class Event(NamedTuple):
    """One line of what happened."""

    step: str
    what: str
    position: int | None
    elapsed_ms: float


def expect(condition: object, message: str) -> None:
    """Stop the story where it does not go as it should."""
    if not condition:
        raise StoryError(message)


class Actor:
    """Somebody with a token."""

    def __init__(self, client: httpx.Client, name: str, tenant: str, token: str) -> None:
        self.name = name
        self.tenant = tenant
        self._client = client
        self._headers = {"Authorization": f"Bearer {token}"}

    def get(self, path: str, **query: Any) -> Reply:
        """Read something."""
        return self._ask("GET", path, params=query)

    def post(
        self, path: str, body: Any = None, *, key: str | None = None, status: int | None = None
    ) -> Reply:
        """Send a command; a status other than a success must be named to be accepted."""
        return self._ask("POST", path, status=status, headers=_keyed(key), json=body)

    def patch(self, path: str, body: Any, *, key: str | None = None) -> Reply:
        """Change something."""
        return self._ask("PATCH", path, headers=_keyed(key), json=body)

    def upload(self, path: str, data: bytes) -> Reply:
        """Send a CSV."""
        return self._ask("POST", path, headers={"Content-Type": "text/csv"}, content=data)

    def _ask(
        self,
        method: str,
        path: str,
        *,
        status: int | None = None,
        headers: dict[str, str] | None = None,
        **given: Any,
    ) -> Reply:
        started = time.perf_counter()
        try:
            answer = self._client.request(method, path, headers=self._headers | (headers or {}), **given)
        except httpx.HTTPError as error:
            raise StoryError(f"{method} {path} got no answer: {error!r}") from error
        elapsed_ms = (time.perf_counter() - started) * 1_000
        typed = answer.headers.get("content-type", "")
        body = answer.json() if "json" in typed and not path.startswith("/v1/log/records") else None
        if answer.status_code != status and (status is not None or not answer.is_success):
            raise StoryError(f"{self.name}: {method} {path} answered {answer.status_code}\n{answer.text}")
        return Reply(answer.status_code, body, elapsed_ms, answer.content)


def _keyed(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}


class Stage:
    """Where the story is played: the service, whoever acts, and the console."""

    def __init__(self, settings: Settings, url: str, console: Console) -> None:
        self.settings = settings
        self.url = url
        self.console = console
        self.events: list[Event] = []
        self.client = httpx.Client(base_url=url, timeout=ANSWER_S_MAX)
        self._issuer = LocalIssuer(settings)

    def actor(self, name: str, tenant: str, *roles: str) -> Actor:
        """Bring somebody on, with a token of the local issuer."""
        return Actor(self.client, name, tenant, self.token(name, tenant, *roles))

    def token(self, name: str, tenant: str, *roles: str) -> str:
        """Make a token with the issuer key of the data directory."""
        return self._issuer.mint(name, tenant, roles)

    def note(self, step: str, what: str, reply: Reply, position: int | None = None) -> None:
        """Write down what happened."""
        self.events.append(
            Event(step, what, reply.position if position is None else position, reply.elapsed_ms)
        )

    def heading(self, number: int, title: str) -> None:
        """Open a step."""
        self.console.print()
        self.console.rule(f"[bold]{number}. {title}[/bold]", align="left")

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table."""
        table = Table(*head, box=None, pad_edge=False, header_style="dim")
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        self.console.print(table)


def soma(*words: str, token: str | None = None, status: int = 0) -> Reply:
    """Run a word of the command line; a token goes by the environment, since others can read arguments."""
    environment = child_environment() if token is None else child_environment(SOMA_TOKEN=token)
    started = time.perf_counter()
    done = subprocess.run([*SOMA, *words], env=environment, capture_output=True, check=False)
    elapsed_ms = (time.perf_counter() - started) * 1_000
    said = f"soma {words[0]} {words[1]} ended with {done.returncode}\n{done.stdout.decode()}\n{done.stderr.decode()}"
    expect(done.returncode == status, said)
    return Reply(done.returncode, None, elapsed_ms, done.stdout + (done.stderr if status else b""))


# --------------------------------------------------------------------------- the service


@contextmanager
def service(
    settings: Settings, url: str | None, console: Console
) -> Iterator[tuple[str, subprocess.Popen[str] | None]]:
    """Give the URL of a service: a running one, or a child process of its own on a free loopback port."""
    if url is not None:
        yield url.rstrip("/"), None
        return
    log_path = settings.data_dir / "service.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("w") as log:
        # In a group of its own, so that Ctrl-C reaches us alone and the service is stopped once, by us.
        child = subprocess.Popen(
            _words(settings),
            stdout=subprocess.PIPE,
            stderr=log,
            stdin=subprocess.DEVNULL,
            text=True,
            process_group=0,
        )
        try:
            assert child.stdout is not None
            found = child.stdout.readline().strip()
            expect(found, f"the service did not start\n{_tail(log_path)}")
            console.print(
                f"service {found}, data {settings.data_dir}, its log {log_path}",
                highlight=False,
                soft_wrap=True,
            )
            yield found, child
        finally:
            _stop(child, log_path)


def _words(settings: Settings) -> list[str]:
    place = ["--data-dir", str(settings.data_dir), "--host", "127.0.0.1", "--port", "0"]
    return [*SOMA, "serve", *place, "--embedded"]


def _stop(child: subprocess.Popen[str], log_path: Path) -> None:
    child.terminate()
    try:
        status = child.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        raise StoryError(f"the service did not stop within {STOP_S_MAX} s\n{_tail(log_path)}") from None
    finally:
        if child.stdout is not None:
            child.stdout.close()
    # When the story failed already, its own words matter more than how the service ended.
    if sys.exception() is None:
        expect(status == 0, f"the service ended with {status}\n{_tail(log_path)}")


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])
