"""SQL for billing teams: ClickHouse's HTTP dialect, read-only, over the documented views.

Stock clients connect to it unchanged; the password is a token of ours. A statement passes the gate, runs as the
reader's account with limits, and its answer is passed on as it comes. Errors are ClickHouse's: a code, a status and a
sentence. Who leaves takes the statement along.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from api.routes.sql_hello import hello, is_hello
from api.routes.sql_request import QUERY_ID, Asked, read_body, read_fields, read_request, token_of
from domain.errors import LedgerError, UnauthorizedError
from domain.ledger import Caller
from ops import telemetry
from ops.clickhouse import clickhouse_places
from ops.settings import Settings
from ops.sql_allowed import DATABASE
from ops.sql_errors import SqlRefusal, denied
from ops.sql_gate import Checked, Gate, Limits, format_name
from ops.sql_tree import Scope as Rows
from ops.sql_upstream import BrokenOffError, Locate, Upstream
from ops.tokens import TokenGate

log = telemetry.logger(__name__)

ROLES = frozenset({"billing", "auditor", "operator"})
READERS_OF_ALL = frozenset({"auditor", "operator"})
# The tenant of those who run the market; its billing team sees all of it.
PLATFORM = "platform"
PATHS = ("/clickhouse", "/clickhouse/")
SERVER_NAME = "soma-ledger"
WAIT_S_MAX = 2.0
SEND_S_MAX = 60.0

_PASSED_ON = (
    "content-type",
    "content-encoding",
    "x-clickhouse-format",
    "x-clickhouse-timezone",
    "x-clickhouse-exception-tag",
)
_COMPRESSIONS = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "lz4", "identity"})


Places = Callable[[], AbstractAsyncContextManager[Sequence[Locate]]]


class ClientLeftError(Exception):
    """The client closed its connection; there is nobody to answer."""


@dataclass
class Account:
    """What is written down about one statement."""

    caller: Caller | None = None
    outcome: str = "refused"
    code: int = 0
    sent_bytes: int = 0
    rows: int | None = None
    shape: str = ""


class SqlEndpoint:
    """The endpoint as an ASGI application.

    `places` opens a ClickHouse and tells where it is, for the service and for the reader. It is opened by the first
    statement, so that a service nobody asks in SQL starts no engine.
    """

    def __init__(self, settings: Settings, tokens: TokenGate, places: Places | None = None) -> None:
        self._settings = settings
        self._tokens = tokens
        self._places = places or (lambda: clickhouse_places(settings))
        self._limits = Limits(
            settings.sql_time_s_max,
            settings.sql_rows_max,
            settings.sql_memory_bytes_max,
            settings.sql_result_bytes_max,
        )
        self._opened: tuple[Upstream, Gate] | None = None
        self._opening = asyncio.Lock()
        self._held = AsyncExitStack()
        self._slots = Slots(settings.sql_concurrency_max)

    async def close(self) -> None:
        """Let go of ClickHouse."""
        async with self._opening:
            self._opened = None
            await self._held.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            return
        path = scope["path"].removeprefix("/clickhouse")
        if path in ("/ping", "/replicas_status") and scope["method"] in ("GET", "HEAD"):
            await _ok({})(scope, receive, send)
        elif path not in ("", "/"):
            await _refused(SqlRefusal(48, "There is nothing here", status=404), {})(scope, receive, send)
        elif scope["method"] not in ("GET", "HEAD", "POST"):
            await _refused(SqlRefusal(48, "Ask by GET or POST", status=405), {})(scope, receive, send)
        else:
            await Exchange(self, scope, receive, send).run()

    async def _live(self, receive: Receive, send: Send) -> None:
        """Open and close as an application of its own."""
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def upstream(self) -> tuple[Upstream, Gate]:
        """Give the ClickHouse behind this, and the gate before it."""
        async with self._opening:
            if self._opened is None:
                try:
                    service, reader = await self._held.enter_async_context(self._places())
                except LedgerError as error:
                    raise SqlRefusal(
                        210, "There is no ClickHouse behind this service at the moment"
                    ) from error
                upstream = Upstream(service, reader)
                self._held.push_async_callback(upstream.close)
                self._opened = (upstream, Gate(upstream, self._limits))
        return self._opened

    async def caller(self, headers: Headers, fields: dict[str, str]) -> Caller:
        """Verify who asks, and that SQL is for them."""
        token = token_of(headers, fields)
        known = self._tokens.recall(token)
        if known is None:
            try:
                verify = self._tokens.verify
                known = await asyncio.to_thread(verify, token) if self._tokens.blocks else verify(token)
            except UnauthorizedError as error:
                raise SqlRefusal(516, "Authentication failed: the token is not valid") from error
            except LedgerError as error:
                raise SqlRefusal(210, "The token cannot be checked at the moment") from error
        if not known.roles & ROLES:
            raise denied(f"Not enough privileges: SQL needs one of the roles {', '.join(sorted(ROLES))}")
        return known


class Slots:
    """How many statements run at once, altogether and of one tenant, who may take half."""

    def __init__(self, concurrency_max: int) -> None:
        self._each = max(1, (concurrency_max + 1) // 2)
        self._all = asyncio.Semaphore(concurrency_max)
        self._tenants: dict[str, asyncio.Semaphore] = {}
        self._users: dict[str, int] = {}

    @asynccontextmanager
    async def one(self, tenant: str) -> AsyncIterator[None]:
        """Hold one place, waited for a moment only."""
        own = self._tenants.setdefault(tenant, asyncio.Semaphore(self._each))
        self._users[tenant] = self._users.get(tenant, 0) + 1
        try:
            async with _held(own), _held(self._all):
                yield
        finally:
            self._users[tenant] -= 1
            if not self._users[tenant]:
                del self._users[tenant], self._tenants[tenant]


@asynccontextmanager
async def _held(semaphore: asyncio.Semaphore) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(WAIT_S_MAX):
            await semaphore.acquire()
    except TimeoutError as error:
        raise SqlRefusal(202, "Too many simultaneous queries; ask again in a moment") from error
    try:
        yield
    finally:
        semaphore.release()


class Exchange:
    """One request and its answer."""

    def __init__(self, endpoint: SqlEndpoint, scope: Scope, receive: Receive, send: Send) -> None:
        self._endpoint = endpoint
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers = Headers(scope=scope)
        self._id = str(uuid4())
        self._account = Account()
        self._began = False

    async def run(self) -> None:
        """Answer, count and write down, whatever happens."""
        started = time.perf_counter()
        try:
            await self._answer()
        except SqlRefusal as refusal:
            await self._fail(refusal)
        except (ClientLeftError, ClientDisconnect):
            self._account.outcome = "left"
        except BrokenOffError:
            # Nothing more can be told: the client notices by the missing end.
            self._account.outcome = "failed"
        except Exception as error:
            self._account.outcome, self._account.code = "bug", 1001
            log.error("sql failed", query_id=self._id, exc_info=error)
            if self._began:
                raise
            await self._respond(
                SqlRefusal(1001, "The service made a mistake", name="STD_EXCEPTION", status=500)
            )
        finally:
            self._written(time.perf_counter() - started)

    async def _fail(self, refusal: SqlRefusal) -> None:
        if self._account.outcome != "failed":
            self._account.outcome = "busy" if refusal.code == 202 else "refused"
        self._account.code = refusal.code
        if not self._began:
            await self._respond(refusal)

    async def _respond(self, refusal: SqlRefusal) -> None:
        await _refused(refusal, self._own_headers())(self._scope, self._receive, self._send)

    def _written(self, seconds: float) -> None:
        account = self._account
        telemetry.SQL_QUERIES.labels(account.outcome).inc()
        telemetry.SQL_QUERY_SECONDS.observe(seconds)
        telemetry.SQL_ANSWER_BYTES.inc(account.sent_bytes)
        if account.caller is None:
            return
        log.info(
            "sql", tenant=account.caller.tenant, subject=account.caller.subject, outcome=account.outcome,
            code=account.code, duration_s=round(seconds, 4), rows=account.rows, sent_bytes=account.sent_bytes,
            shape=account.shape, query_id=self._id,
        )  # fmt: skip

    # ------------------------------------------------------------------- the answer

    async def _answer(self) -> None:
        fields = read_fields(self._scope)
        if (chosen := fields.get("query_id")) and QUERY_ID.fullmatch(chosen):
            self._id = chosen
        if self._scope["method"] != "POST" and not fields.get("query", "").strip():
            await _ok(self._own_headers())(self._scope, self._receive, self._send)
            return
        self._account.caller = caller = await self._endpoint.caller(self._headers, fields)
        body = await read_body(self._receive) if self._scope["method"] == "POST" else b""
        asked = await asyncio.to_thread(read_request, fields, self._headers, body)
        async with self._endpoint._slots.one(caller.tenant):
            leaving = asyncio.ensure_future(_leaving(self._receive))
            work = asyncio.ensure_future(self._run(asked, caller))
            try:
                await asyncio.wait({leaving, work}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    raise ClientLeftError
                await work
            finally:
                leaving.cancel()
                work.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await work

    async def _run(self, asked: Asked, caller: Caller) -> None:
        upstream, gate = await self._endpoint.upstream()
        everybody = bool(caller.roles & READERS_OF_ALL) or caller.tenant == PLATFORM
        settings: dict[str, str] = {}
        for name, value in asked.settings.items():
            gate.set(name, value, settings)
        if asked.flag("compress"):
            raise SqlRefusal(48, "Framed answers (compress=1) are not given here; use Accept-Encoding")
        if not self._of_server and is_hello(asked):
            await self._greet(upstream)
            return
        checked = await gate.check(asked.statement, Rows(None if everybody else caller.tenant))
        self._account.shape = checked.shape
        form = checked.format or format_name(asked.format) or "TabSeparated"
        query_id = f"soma-sql-{uuid4()}"
        fields = self._fields(asked, checked, settings, form, query_id, everybody)
        # From here on the statement runs; until now nothing of it has.
        self._account.outcome = "failed"
        reading = upstream.reading(
            checked.sql, fields, asked.parameters, self._accepted(asked), self._endpoint._limits.time_s_max
        )
        try:
            async with reading as answer:
                await self._relay(answer, everybody)
        except asyncio.CancelledError:
            if self._of_server:
                # A server may not notice that its client has gone; the embedded engine does.
                with contextlib.suppress(SqlRefusal):
                    await asyncio.shield(upstream.kill(query_id))
            raise
        self._account.outcome = "done"

    @property
    def _of_server(self) -> bool:
        return self._endpoint._settings.clickhouse_url is not None

    async def _greet(self, upstream: Upstream) -> None:
        body = hello(SERVER_NAME, *await upstream.greeting())
        self._began = True
        self._account.outcome, self._account.sent_bytes = "done", len(body)
        headers = {
            **self._own_headers(),
            "Content-Type": "application/octet-stream",
            "X-ClickHouse-Format": "Native",
        }
        await Response(body, headers=headers)(self._scope, self._receive, self._send)

    def _fields(
        self,
        asked: Asked,
        checked: Checked,
        settings: dict[str, str],
        form: str,
        query_id: str,
        everybody: bool,
    ) -> dict[str, str]:
        limits = self._endpoint._limits
        bounds = {
            "max_execution_time": limits.time_s_max,
            "max_result_rows": limits.rows_max,
            "max_result_bytes": limits.result_bytes_max,
            "max_memory_usage": limits.memory_bytes_max,
        }
        fields = {name: str(bound) for name, bound in bounds.items()} | settings | dict(checked.settings)
        if not everybody:
            # It would count rows that were read, of every tenant.
            fields["output_format_write_statistics"] = "0"
        if self._of_server:
            # Whatever else that account may do, for this statement it is a reader's.
            fields |= {"readonly": "2", "cancel_http_readonly_queries_on_client_close": "1"}
        for name in ("wait_end_of_query", "enable_http_compression"):
            if asked.flag(name):
                fields[name] = "1"
        if self._of_server and (version := asked.fields.get("client_protocol_version")):
            fields["client_protocol_version"] = version
        return fields | {"database": DATABASE, "default_format": form, "query_id": query_id}

    def _accepted(self, asked: Asked) -> dict[str, str]:
        """Pass on how the answer may be packed, in known words only."""
        if not asked.flag("enable_http_compression"):
            return {}
        words = [
            word.split(";")[0].strip().lower() for word in self._headers.get("accept-encoding", "").split(",")
        ]
        known = [word for word in words if word in _COMPRESSIONS]
        return {"Accept-Encoding": ", ".join(known) or "identity"}

    async def _relay(self, answer: Any, everybody: bool) -> None:
        """Pass the answer on piece by piece, as it is packed, up to the bound."""
        headers = self._own_headers()
        headers |= {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}
        summary = answer.headers.get("x-clickhouse-summary")
        if summary is not None and everybody:
            headers["X-ClickHouse-Summary"] = summary
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        self._began = True
        await self._piece({"type": "http.response.start", "status": 200, "headers": raw})
        async for piece in Upstream.pieces(answer):
            self._account.sent_bytes += len(piece)
            if self._account.sent_bytes > self._endpoint._limits.result_bytes_max:
                raise SqlRefusal(396, "The answer is too big", name="TOO_MANY_ROWS_OR_BYTES")
            await self._piece({"type": "http.response.body", "body": piece, "more_body": True})
        await self._piece({"type": "http.response.body", "body": b"", "more_body": False})

    async def _piece(self, message: Message) -> None:
        try:
            async with asyncio.timeout(SEND_S_MAX):
                await self._send(message)
        except TimeoutError as error:
            raise ClientLeftError from error

    def _own_headers(self) -> dict[str, str]:
        return {
            "X-ClickHouse-Query-Id": self._id,
            "X-ClickHouse-Server-Display-Name": SERVER_NAME,
            "Cache-Control": "no-store",
        }


async def _leaving(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _ok(headers: dict[str, str]) -> PlainTextResponse:
    return PlainTextResponse("Ok.\n", headers=headers)


def _refused(refusal: SqlRefusal, headers: dict[str, str]) -> PlainTextResponse:
    headers = {**headers, "X-ClickHouse-Exception-Code": str(refusal.code)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="Soma Ledger: any name, a token as password"'
    if refusal.status == 503:
        headers["Retry-After"] = "1"
    return PlainTextResponse(refusal.text, refusal.status, headers)


# --------------------------------------------------------------------------- where it is found


def sql_app(state: Any) -> SqlEndpoint:
    """Make the endpoint of an application, once: `state` has its settings and tokens.

    Where `state.clickhouse` is given, it is where ClickHouse is, for the service and for the reader; otherwise the
    endpoint opens the ClickHouse of the settings itself. Whoever runs the application closes it in the end.
    """
    if getattr(state, "sql", None) is None:
        given = getattr(state, "clickhouse", None)
        state.sql = SqlEndpoint(
            state.settings, state.tokens, None if given is None else lambda: nullcontext(given)
        )
    endpoint: SqlEndpoint = state.sql
    return endpoint


class Mounted:
    """The endpoint under /clickhouse of the API's own port."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = _MEASURED_AS
        await sql_app(scope["app"].state)(scope, receive, send)


# What requests are counted under.
_MEASURED_AS = SimpleNamespace(path="/clickhouse")


routes = tuple(
    Route(path, Mounted(), include_in_schema=False)
    for path in (*PATHS, "/clickhouse/ping", "/clickhouse/replicas_status")
)
