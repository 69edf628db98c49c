"""ClickHouse's HTTP dialect in front of the opened database."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ops.engine.accounts import Account, Accounts
from ops.engine.database import Database, Session
from ops.engine.reading import check_reader, check_reader_database
from ops.engine.refusals import Refused
from ops.engine.requests import Asked, compressed, query_id, read_fields, read_request
from ops.engine.statements import Insert, Reading, Statement, is_blank, read_statement

log = logging.getLogger(__name__)

# What one account may do at once, and how long others wait for it.
AT_ONCE = {Account.SERVICE: 16, Account.READER: 8}
WAIT_S_MAX = 10.0
BODY_BYTES_MAX = {Account.SERVICE: 256_000_000, Account.READER: 2_000_000}
# A body is bounded before and after it is unpacked.
UNPACKED_BYTES_MAX = {Account.SERVICE: 1_000_000_000, Account.READER: 2_000_000}
# A reader that takes nothing for so long holds a session for nobody.
SEND_S_MAX = 120.0
KILL_INTERVAL_S = 0.05
PIECE_BYTES = 1 << 18

# Each block of these can follow the one before; of other formats every block would be a document of its own.
STREAMED = frozenset(
    "Native TabSeparated TSV CSV RowBinary JSONEachRow NDJSON JSONLines JSONCompactEachRow".split()
)
MEDIA = {
    "TabSeparated": "text/tab-separated-values; charset=UTF-8",
    "TSV": "text/tab-separated-values; charset=UTF-8",
    "CSV": "text/csv; charset=UTF-8; header=absent",
    "CSVWithNames": "text/csv; charset=UTF-8; header=present",
    "JSONEachRow": "application/x-ndjson; charset=UTF-8",
    "JSON": "application/json; charset=UTF-8",
    "JSONCompact": "application/json; charset=UTF-8",
    "ArrowStream": "application/vnd.apache.arrow.stream",
    **dict.fromkeys(("Native", "RowBinary", "Arrow", "Parquet", "ORC"), "application/octet-stream"),
}

T = TypeVar("T")


class ClientLeftError(Exception):
    """The client closed its connection; there is nobody to answer."""


class Engine:
    """The endpoint, and the threads its queries run in."""

    def __init__(self, database: Database, accounts: Accounts) -> None:
        self.database = database
        self.accounts = accounts
        self.slots = {account: asyncio.Semaphore(count) for account, count in AT_ONCE.items()}
        self.threads = ThreadPoolExecutor(sum(AT_ONCE.values()), thread_name_prefix="query")
        # Ending a query must never wait for one.
        self.control = ThreadPoolExecutor(4, thread_name_prefix="control")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        headers = {"X-ClickHouse-Query-Id": ""}
        try:
            fields = read_fields(scope["query_string"])
            headers["X-ClickHouse-Query-Id"] = query_id(fields)
            account = self.accounts.who(request.headers, fields)
            body = await _body(request, BODY_BYTES_MAX[account])
            asked = await self._off(read_request, fields, request.headers, body, UNPACKED_BYTES_MAX[account])
            if is_blank(asked.text):
                await PlainTextResponse("Ok.\n", headers=headers)(scope, receive, send)
                return
            async with self._slot(account):
                safe = scope["method"] != "POST"
                await Exchange(self, account, asked, receive, send, headers).run(safe=safe)
        except (ClientLeftError, ClientDisconnect):
            log.debug("a client left")
        except Exception as error:  # noqa: BLE001 - whatever goes wrong has a code, and never a trace for the client
            await _refuse(error, headers)(scope, receive, send)

    @asynccontextmanager
    async def _slot(self, account: Account) -> AsyncIterator[None]:
        try:
            await asyncio.wait_for(self.slots[account].acquire(), WAIT_S_MAX)
        except TimeoutError:
            words = f"Too many simultaneous queries of {account}. Maximum: {AT_ONCE[account]}"
            raise Refused(202, words, "TOO_MANY_SIMULTANEOUS_QUERIES") from None
        try:
            yield
        finally:
            self.slots[account].release()

    async def _off(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.control, work, *arguments)


class Exchange:
    """One statement carried out for one client, and ended when the client leaves."""

    def __init__(
        self,
        engine: Engine,
        account: Account,
        asked: Asked,
        receive: Receive,
        send: Send,
        headers: dict[str, str],
    ) -> None:
        self._engine = engine
        self._account = account
        self._asked = asked
        self._send = send
        self._headers = headers
        self._left = asyncio.ensure_future(_leaving(receive))
        self._began = time.monotonic_ns()
        self._started = False
        self._session: Session | None = None

    async def run(self, *, safe: bool) -> None:
        """Carry out the statement and send its answer.

        An error before the first piece is answered with its status; one after it cuts the answer off, which every
        client notices by the missing end.
        """
        try:
            statement = await self._work(self._open, safe, killable=False)
            await self._answer(statement)
        except Exception as error:
            if not self._started:
                raise
            log.warning("an answer was cut off: %s", Refused.of(error).text.strip())
        finally:
            self._left.cancel()
            if self._session is not None:
                await asyncio.shield(self._engine._off(self._session.close))

    def _open(self, safe: bool) -> Statement:
        statement = read_statement(self._asked.text)
        if self._account is Account.READER:
            check_reader_database(self._asked.database)
            check_reader(self._engine.database, statement)
        elif not isinstance(statement, Insert) and ";" in statement.sql.rstrip("; \t\r\n"):
            # chDB would carry out all of them.
            self._engine.database.single(statement.sql)
        asked = self._asked
        self._session = self._engine.database.open(self._account, asked.settings, asked.database, safe=safe)
        return statement

    async def _answer(self, statement: Statement) -> None:
        assert self._session is not None
        if isinstance(statement, Insert):
            rows = await self._work(self._session.insert, statement, killable=False)
            await self._start("TabSeparated", written_rows=rows)
            await self._piece(b"", more=False)
            return
        form = statement.format or self._asked.format
        reading = isinstance(statement, Reading)
        pieces = compressed(self._pieces(statement, form), self._asked.compression)
        content: bytes | None = await self._work(next, pieces, None, killable=reading)
        if self._asked.whole:
            rest = await self._work(lambda: b"".join(pieces), killable=reading)
            content, pieces = (content or b"") + rest, iter(())
        await self._start(form)
        while content is not None:
            await self._piece(content, more=True)
            content = await self._work(next, pieces, None, killable=reading)
        await self._piece(b"", more=False)

    def _pieces(self, statement: Statement, form: str) -> Iterator[bytes]:
        assert self._session is not None
        assert not isinstance(statement, Insert)
        if isinstance(statement, Reading) and statement.streamable and form in STREAMED:
            yield from self._session.stream(statement.sql, form, self._asked.params)
            return
        whole = memoryview(self._session.run(statement.sql, form, self._asked.params))
        for start in range(0, len(whole), PIECE_BYTES):
            yield bytes(whole[start : start + PIECE_BYTES])

    async def _work(self, work: Callable[..., T], *arguments: Any, killable: bool) -> T:
        """Run something in a thread; when the client leaves meanwhile, end what it runs.

        A statement that changes something is finished: its client cannot know how far it came.
        """
        future = asyncio.get_running_loop().run_in_executor(self._engine.threads, work, *arguments)
        both: set[asyncio.Future[Any]] = {future, self._left}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        while killable and self._left.done() and not future.done():
            assert self._session is not None
            with suppress(Exception):
                # The query may not have been registered yet, so it is asked again.
                await self._engine._off(self._engine.database.kill, self._session.mark)
            await asyncio.wait({future}, timeout=KILL_INTERVAL_S)
        await asyncio.wait({future})
        if killable and self._left.done():
            future.exception()
            raise ClientLeftError
        return future.result()

    async def _start(self, form: str, **counts: int) -> None:
        elapsed_ns = time.monotonic_ns() - self._began
        counted = {"read_rows": 0, "read_bytes": 0, "written_rows": 0, "written_bytes": 0, "result_rows": 0}
        summary = {name: str(n) for name, n in {**counted, **counts, "elapsed_ns": elapsed_ns}.items()}
        headers = {
            **self._headers,
            "Content-Type": MEDIA.get(form, "text/plain; charset=UTF-8"),
            "X-ClickHouse-Format": form,
            "X-ClickHouse-Timezone": self._engine.database.timezone,
            "X-ClickHouse-Server-Display-Name": "embedded",
            "X-ClickHouse-Summary": json.dumps(summary),
            "Cache-Control": "no-store",
        }
        if self._asked.compression:
            headers["Content-Encoding"] = self._asked.compression
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        self._started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _piece(self, content: bytes, *, more: bool) -> None:
        if self._left.done():
            raise ClientLeftError
        async with asyncio.timeout(SEND_S_MAX):
            await self._send({"type": "http.response.body", "body": content, "more_body": more})


async def _leaving(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, bytes_max: int) -> bytes:
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > bytes_max:
            raise Refused(131, f"the body is larger than {bytes_max} bytes", "TOO_LARGE_STRING_SIZE")
        pieces.append(piece)
    return b"".join(pieces)


def _refuse(error: Exception, headers: dict[str, str]) -> PlainTextResponse:
    refused = Refused.of(error)
    if refused.code == 1002:
        log.error("a request failed", exc_info=error)
    extra = {"X-ClickHouse-Exception-Code": str(refused.code)}
    if refused.status == 401:
        extra["WWW-Authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
    return PlainTextResponse(refused.text, refused.status, {**headers, **extra})


async def _ping(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("Ok.\n")


def application(engine: Engine) -> Starlette:
    """Make the application of one engine."""
    return Starlette(
        routes=[
            Route("/ping", _ping, methods=["GET", "HEAD"]),
            Route("/replicas_status", _ping, methods=["GET", "HEAD"]),
            Route("/", engine, methods=["GET", "HEAD", "POST"]),
        ]
    )
