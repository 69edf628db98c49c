"""Words that speak to a running service: where it is, as whom, and its refusals as our own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import msgspec
import typer

from domain.canonical import read_json
from domain.errors import REGISTRY, InvalidError, LedgerError, UnauthorizedError, UnavailableError

# It is imported where it is used, so that words that stay here do not wait for it.
if TYPE_CHECKING:
    import httpx

ANSWER_S_MAX = 60.0

Url = Annotated[
    str, typer.Option("--url", envvar="SOMA_URL", show_envvar=False, help="The service; SOMA_URL otherwise.")
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        envvar="SOMA_TOKEN",
        show_envvar=False,
        help="Who asks; SOMA_TOKEN otherwise, which no list of processes shows.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
URL = "http://127.0.0.1:8080"


class Remote:
    """A service somewhere, spoken to with one token."""

    def __init__(self, url: str, token: str | None, transport: httpx.BaseTransport | None = None) -> None:
        if not token:
            raise UnauthorizedError("set SOMA_TOKEN; `soma token` prints one of the local issuer")
        import httpx

        headers = {"Authorization": f"Bearer {token}"}
        self.client = httpx.Client(
            base_url=url, headers=headers, timeout=ANSWER_S_MAX, trust_env=False, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def get(self, path: str, **params: Any) -> Any:
        """Read something.

        Errors: those of the service, unavailable.
        """
        return self.ask("GET", path, params={k: v for k, v in params.items() if v is not None})

    def post(self, path: str, body: Any = None) -> Any:
        """Have something done.

        Errors: those of the service, unavailable.
        """
        return self.ask("POST", path, json=body)

    def ask(self, method: str, path: str, **how: Any) -> Any:
        """Ask anything; a refusal of the service is raised as it is.

        Errors: those of the service, unavailable.
        """
        import httpx

        try:
            answer = self.client.request(method, path, **how)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise UnavailableError(f"{self.client.base_url} cannot be reached: {error}") from error
        if answer.is_success:
            return answer.json()
        raise refusal_of(answer)


def refusal_of(answer: httpx.Response) -> LedgerError:
    """Give the refusal that a service answered with."""
    try:
        problem = msgspec.json.decode(answer.content)
        if problem["code"] in REGISTRY:
            return LedgerError.from_problem(problem)
    except (msgspec.MsgspecError, KeyError, TypeError):
        pass
    return UnavailableError(f"{answer.request.url} answered {answer.status_code}")


def read_document(path: Path) -> Any:
    """Read a file of JSON, strictly; `-` is the standard input.

    Errors: invalid_request.
    """
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise InvalidError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return read_json(data)
    except InvalidError as error:
        raise InvalidError(f"{path} {error.message.removeprefix('the body ')}") from error


def print_json(value: Any) -> None:
    """Print a value for other programs."""
    json.dump(msgspec.to_builtins(value), sys.stdout, indent=2, ensure_ascii=False)
    print()
