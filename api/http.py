"""What routes share: who calls, how a command is carried out, and how its answer is printed."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
import orjson
from fastapi import Depends, Header, Path, Query, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, create_model

from domain.canonical import read_json
from domain.errors import (
    ForbiddenError,
    InvalidAsOfError,
    InvalidCursorError,
    UnauthorizedError,
    UnknownFieldError,
    UnsupportedMediaTypeError,
    VersionMismatchError,
)
from domain.fields import Command
from domain.ledger import Answer, Caller, UseCase
from domain.log.records import Aggregate
from domain.values import moment_of
from ops.runtime import Runtime

C = TypeVar("C", bound=Command)

PAGE_MAX = 500
PAGE = 100
_VERSION = re.compile(r'(?:W/)?"([0-9]{1,15})"|([0-9]{1,15})', re.ASCII)
READERS_OF_ALL = frozenset({"operator", "auditor"})


def runtime(request: Request) -> Runtime:
    """Give the open ledger."""
    opened: Runtime = request.app.state.runtime
    return opened


async def caller(request: Request) -> Caller:
    """Read who calls from the bearer token.

    Errors: unauthorized, unavailable.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise UnauthorizedError
    gate = request.app.state.tokens
    known: Caller | None = gate.recall(token)
    if known is not None:
        return known
    verified: Caller = await asyncio.to_thread(gate.verify, token) if gate.blocks else gate.verify(token)
    return verified


Open = Annotated[Runtime, Depends(runtime)]
Who = Annotated[Caller, Depends(caller)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[ -~]+$",
        description="1 to 255 visible ASCII characters; a repeat hears the first answer.",
    ),
]
IfMatch = Annotated[str | None, Header(alias="If-Match", description='The version expected, such as "3".')]
Id = Annotated[str, Path(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")]
Wish = Annotated[str | None, Query(min_length=1, max_length=128, pattern=r"^[ -~]+$")]
Correlation = Annotated[
    str | None, Header(alias="X-Correlation-ID", max_length=128, pattern=r"^[\x21-\x7e]+$")
]
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX, description="Items on the page.")]
Cursor = Annotated[str | None, Query(max_length=300, description="`next` of the page before.")]


class Envelope:
    """The headers of a write."""

    def __init__(
        self, key: IdempotencyKey = None, if_match: IfMatch = None, correlation: Correlation = None
    ) -> None:
        self.key = key
        self.correlation = correlation
        self.if_match = _version(if_match)


def _version(if_match: str | None) -> int | None:
    if if_match is None or if_match == "*":
        return None
    found = _VERSION.fullmatch(if_match)
    if found is None:
        raise VersionMismatchError('If-Match names a version, such as "3"', if_match=if_match[:64])
    return int(found[1] or found[2])


Sent = Annotated[Envelope, Depends(Envelope)]


async def act(
    opened: Runtime,
    use_case: UseCase,
    command: BaseModel,
    who: Caller,
    sent: Envelope,
    *,
    status: int = 200,
    gather: Callable[[], Awaitable[dict[str, Any]]] | None = None,
) -> Response:
    """Carry a command out and print its answer."""
    answer = await opened.ledger.act(
        use_case,
        command,
        who,
        key=sent.key,
        if_match=sent.if_match,
        correlation=sent.correlation,
        gather=gather,
    )
    return printed(answer, status)


def printed(answer: Answer, status: int = 200, **beside: Any) -> Response:
    """Print the aggregate a command came to, with the receipt of its records and what else is told beside it.

    The aggregate's bytes are what the decision wrote; the rest is added behind them.
    """
    receipt = {"position": answer.position, "event_count": answer.event_count, "repeated": answer.repeated}
    body = answer.body[:-1] + b"," + orjson.dumps(beside | {"receipt": receipt})[1:]
    response = Response(body, status, media_type="application/json")
    version = _version_in(answer.body)
    if version is not None:
        response.headers["ETag"] = f'"{version}"'
    return response


class _Versioned(msgspec.Struct):
    version: int | None = None


def _version_in(body: bytes) -> int | None:
    """Read an aggregate's version; where it is the last member, as it mostly is, nothing is parsed."""
    at = body.rfind(b'"version":')
    if at < 0:
        return None
    last = body[at + 10 : -1]
    return int(last) if last.isdigit() else msgspec.json.decode(body, type=_Versioned).version


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Print any value."""
    return Response(orjson.dumps(value), status, headers, media_type="application/json")


# --------------------------------------------------------------------------- what OpenAPI says

PROBLEM_SCHEMA = {"$ref": "#/components/schemas/Problem"}
PUBLIC: dict[str, Any] = {"security": []}
_STATUSES = {
    400: "malformed",
    401: "no valid token",
    403: "not allowed to this role",
    404: "not found, or another tenant's",
    409: "not possible in the present state",
    412: "not at the version of If-Match",
    413: "too large",
    415: "a body that is not JSON",
    422: "understood, but impossible",
    503: "away for a moment",
}
_READ = (400, 401, 403, 404, 503)


def _problems(statuses: Iterable[int]) -> dict[int | str, dict[str, Any]]:
    content = {"application/problem+json": {"schema": PROBLEM_SCHEMA}}
    return {
        status: {"description": _STATUSES[status].capitalize() + ".", "content": content}
        for status in statuses
    }


READ_PROBLEMS = _problems(_READ)
WRITE_PROBLEMS = _problems(_STATUSES)


def shows(aggregate: type[Aggregate], status: int = 200) -> dict[int | str, dict[str, Any]]:
    """Document the answer of a command: the aggregate, with its receipt."""
    schema = {
        "allOf": [
            {"$ref": f"#/components/schemas/{aggregate.__name__}"},
            {"type": "object", "properties": {"receipt": {"$ref": "#/components/schemas/Receipt"}}},
        ]
    }
    return WRITE_PROBLEMS | _answer(schema, status, "Done.")


def reads(aggregate: type[Aggregate]) -> dict[int | str, dict[str, Any]]:
    """Document the answer of a look at one aggregate."""
    return answers({"$ref": f"#/components/schemas/{aggregate.__name__}"})


def lists(aggregate: type[Aggregate]) -> dict[int | str, dict[str, Any]]:
    """Document a page of aggregates."""
    return answers(page_of({"$ref": f"#/components/schemas/{aggregate.__name__}"}))


def answers(
    schema: dict[str, Any], problems: Mapping[int | str, dict[str, Any]] = READ_PROBLEMS
) -> dict[int | str, dict[str, Any]]:
    """Document an answer by its schema."""
    return {**problems, **_answer(schema, 200, "As asked.")}


def _answer(schema: dict[str, Any], status: int, description: str) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": description, "content": {"application/json": {"schema": schema}}}}


def page_of(item: dict[str, Any]) -> dict[str, Any]:
    """Describe a page of items."""
    return {
        "type": "object",
        "required": ["items", "next"],
        "properties": {"items": {"type": "array", "items": item}, "next": {"type": ["string", "null"]}},
    }


def object_of(**properties: Any) -> dict[str, Any]:
    """Describe an object by its members, all of them present; a member given by a name is of that type."""
    shaped = {
        name: {"type": shape} if isinstance(shape, str | list) else shape
        for name, shape in properties.items()
    }
    return {"type": "object", "required": list(shaped), "properties": shaped}


# --------------------------------------------------------------------------- bodies


def parse_json(data: bytes) -> Any:
    """Read a body.

    Errors: invalid_request.
    """
    return read_json(data)


async def json_bytes(request: Request) -> bytes:
    """Give the bytes of a body that is called JSON, for routes that read it off the loop.

    Errors: body_too_large, unsupported_media_type.
    """
    data = await request.body()
    if data and not _says_json(request.headers.get("content-type", "")):
        raise UnsupportedMediaTypeError
    return data


class _StrictRequest(Request):
    async def json(self) -> Any:
        return parse_json(await self.body())


class JsonRoute(APIRoute):
    """A route whose body is JSON, strictly, and called so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Put the checks of the query and of the body before everything else."""
        answer = super().get_route_handler()
        known = set(_query_names(self.dependant))

        async def handle(request: Request) -> Response:
            # A filter that is misspelt would otherwise filter nothing, and the answer would look right.
            for name in request.query_params:
                if name not in known:
                    raise UnknownFieldError(
                        f"there is no query parameter {name[:100]!r} here",
                        field=name[:100],
                        known=sorted(known),
                    )
            return await answer(request)

        if self.body_field is None:
            return handle

        async def strict(request: Request) -> Response:
            asked = _StrictRequest(request.scope, request.receive)
            # Read here: what the body's limits raise would otherwise reach the caller as a parsing error.
            if await asked.body() and not _says_json(request.headers.get("content-type", "")):
                raise UnsupportedMediaTypeError
            return await handle(asked)

        return strict


def _query_names(dependant: Any) -> Iterator[str]:
    """Name the query parameters of a route, those of what it depends on included."""
    yield from (param.alias for param in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _query_names(inner)


def _says_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def body_of(command: type[C], *path_fields: str) -> type[BaseModel]:
    """Give the body of a command: its fields but those that travel in the path."""
    fields: dict[str, Any] = {
        name: (
            field.annotation if not field.metadata else Annotated[field.annotation, *field.metadata],
            field,
        )
        for name, field in command.model_fields.items()
        if name not in path_fields
    }
    config = ConfigDict(**command.model_config)
    return create_model(f"{command.__name__}Body", __config__=config, __doc__=command.__doc__, **fields)


def completed(command: type[C], body: BaseModel | None, **path_fields: str) -> C:
    """Put the fields of the path beside those of the body."""
    given = {name: getattr(body, name) for name in body.model_fields_set} if body is not None else {}
    return command(**given, **path_fields)


# --------------------------------------------------------------------------- pages and time travel


def page(items: list[dict[str, Any]], limit: int, name: str = "id") -> dict[str, Any]:
    """Cut a list that was read one longer than the page, and say where the next page starts."""
    more = len(items) > limit
    items = items[:limit]
    cursor = base64.urlsafe_b64encode(str(items[-1][name]).encode()).decode() if more else None
    return {"items": items, "next": cursor}


def before_of(cursor: str | None) -> str | None:
    """Read a cursor.

    Errors: invalid_cursor.
    """
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor, altchars=b"-_", validate=True).decode("ascii")
    except (ValueError, UnicodeDecodeError) as error:
        raise InvalidCursorError from error
    if not text or not text.isprintable():
        raise InvalidCursorError
    return text


AsOf = Annotated[
    str | None,
    Query(description="A position in the log (that record included) or an RFC 3339 time.", max_length=40),
]


async def size_as_of(opened: Runtime, as_of: str | None) -> int | None:
    """Turn `as_of` into the size of the log then; None means now.

    Errors: invalid_as_of.
    """
    if as_of is None:
        return None
    if as_of.isascii() and as_of.isdigit() and len(as_of) <= 18:
        return min(int(as_of) + 1, await opened.reader.size())
    try:
        moment = moment_of(as_of)
    except ValueError as error:
        raise InvalidAsOfError(got=as_of) from error
    if moment.tzinfo is None:
        raise InvalidAsOfError(got=as_of)
    return await opened.reader.size_at(moment)


def need_role(who: Caller, *roles: str) -> None:
    """Refuse a caller without one of these roles.

    Errors: forbidden.
    """
    if not who.roles & frozenset(roles):
        raise ForbiddenError(f"this needs one of the roles {', '.join(roles)}", roles=list(roles))


def sees_all(who: Caller) -> bool:
    """Say whether a caller may read every tenant's records."""
    return bool(who.roles & READERS_OF_ALL)
