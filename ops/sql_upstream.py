"""The ClickHouse behind the SQL endpoint: the gate asks it as the service, statements run in it as the reader."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import httpx

from domain.errors import LedgerError
from ops.sql_errors import SqlRefusal, denied

Locate = Callable[[], tuple[str, str, str]]

CONNECT_S_MAX = 5.0
ASK_S_MAX = 15.0
# What the engine may take between two pieces beyond the time of the statement, before it is given up.
SILENCE_S_MAX = 15.0
KEPT_MAX = 16
PARAMETERS_IN_URL_MAX = 8_000
ERROR_BYTES_MAX = 65_536
ERROR_CHARS_MAX = 2_000

_CODE = re.compile(r"Code: (\d{1,5})\. DB::Exception: ?")
_NAME = re.compile(r"\(([A-Z][A-Z0-9_]+)\)")
# What follows repeats the statement that was run, or guesses at names the caller may not know.
_ASIDE = re.compile(
    r"(?::? In scope |\.? In query |:? ?While (?:executing|processing) |\.? Maybe you meant)", re.DOTALL
)
_PARSING = {"max_query_size": "20000000", "max_parser_depth": "2000", "max_execution_time": "10"}


class BrokenOffError(Exception):
    """An answer ended before its end: a limit stopped the statement, or ClickHouse went away."""


class Upstream:
    """Two accounts on one ClickHouse."""

    def __init__(self, service: Locate, reader: Locate) -> None:
        self._service = service
        self._reader = reader
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=KEPT_MAX, keepalive_expiry=30)
        # No proxy of the environment stands before an engine.
        self._client = httpx.AsyncClient(limits=limits, trust_env=False, follow_redirects=False)

    async def close(self) -> None:
        """Let go of all connections."""
        await self._client.aclose()

    # ------------------------------------------------------------------- what the gate asks

    async def parse(self, statement: str) -> str:
        """Give the tree of a statement as JSON, or refuse what has none."""
        sql = f"SELECT parseQueryToJSON(base64Decode('{_base64(statement)}')) AS tree FORMAT JSONCompact"
        try:
            return str((await self._ask(sql))[0][0])
        except SqlRefusal as refused:
            if "parseQueryToJSON" in str(refused) or "JSON serialization" in str(refused):
                raise denied(
                    "Only statements that read are allowed: SELECT, DESCRIBE, EXISTS, SHOW TABLES"
                ) from refused
            # What cannot be parsed is the caller's, whatever status the engine gives it.
            refused.status = 400 if refused.code != 210 else refused.status
            raise

    async def print(self, tree: str) -> tuple[str, str]:
        """Print a tree, and give the tree of what was printed."""
        sql = f"SELECT formatQueryFromJSON(base64Decode('{_base64(tree)}')) AS sql, parseQueryToJSON(sql)"
        row = (await self._ask(f"{sql} FORMAT JSONCompact"))[0]
        return str(row[0]), str(row[1])

    async def functions(self) -> Sequence[str]:
        """List the names of all functions of the engine, those of tables included."""
        sql = "SELECT name FROM system.functions UNION ALL SELECT name FROM system.table_functions"
        return [str(row[0]) for row in await self._ask(f"{sql} FORMAT JSONCompact")]

    async def greeting(self) -> tuple[str, str]:
        """Tell the engine's version and time zone."""
        row = (await self._ask("SELECT version(), timezone() FORMAT JSONCompact"))[0]
        return str(row[0]), str(row[1])

    async def kill(self, query_id: str) -> None:
        """End a statement by its id."""
        await self._ask(f"KILL QUERY WHERE query_id = '{_plain(query_id)}' ASYNC FORMAT JSONCompact")

    async def _ask(self, sql: str) -> list[list[object]]:
        """Ask as the service. Texts travel inside as base64, whose letters end no literal, and which no limit cuts."""
        url, user, password = _place(self._service)
        headers = _account(user, password)
        try:
            answer = await self._client.post(
                url, params=_PARSING, content=sql.encode(), headers=headers, timeout=ASK_S_MAX
            )
        except httpx.HTTPError as error:
            raise _away() from error
        if answer.status_code != 200:
            raise refusal_of(answer.status_code, answer.text)
        rows: list[list[object]] = json.loads(answer.content)["data"]
        return rows

    # ------------------------------------------------------------------- what people ask

    @asynccontextmanager
    async def reading(
        self,
        sql: str,
        fields: Mapping[str, str],
        parameters: Mapping[str, str],
        headers: Mapping[str, str],
        time_s_max: float,
    ) -> AsyncIterator[httpx.Response]:
        """Run a checked statement as the reader; its answer comes as it is sent, packed or not.

        Whoever leaves the block early ends the connection, and with it the statement.
        """
        url, user, password = _place(self._reader)
        timeout = httpx.Timeout(CONNECT_S_MAX, read=time_s_max + SILENCE_S_MAX, pool=CONNECT_S_MAX)
        named = {f"param_{name}": value for name, value in parameters.items()}
        own = {"Accept-Encoding": "identity", **headers, **_account(user, password)}
        if sum(len(value) for value in named.values()) > PARAMETERS_IN_URL_MAX:
            form = {name: (None, value.encode()) for name, value in {"query": sql, **named}.items()}
            request = self._client.build_request(
                "POST", url, params=dict(fields), files=form, headers=own, timeout=timeout
            )
        else:
            request = self._client.build_request(
                "POST", url, params={**fields, **named}, content=sql.encode(), headers=own, timeout=timeout
            )
        try:
            answer = await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise _away() from error
        try:
            if answer.status_code != 200:
                raise refusal_of(answer.status_code, await _words(answer))
            yield answer
        finally:
            await answer.aclose()

    @staticmethod
    async def pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
        """Give an answer as it comes, packed as it is."""
        try:
            async for piece in answer.aiter_raw():
                yield piece
        except httpx.HTTPError as error:
            raise BrokenOffError from error


async def _words(answer: httpx.Response) -> str:
    """Read the start of an error."""
    content = b""
    async for piece in answer.aiter_bytes():
        content += piece
        if len(content) > ERROR_BYTES_MAX:
            break
    return content.decode(errors="replace")


def refusal_of(status: int, text: str) -> SqlRefusal:
    """Read an exception of the engine: its code, its words without asides, its name."""
    found = _CODE.search(text)
    if found is None or int(found[1]) in (192, 193, 194, 516):
        # Nobody who asks here can help it if we are not let in.
        return _away()
    names = _NAME.findall(text)
    words = _ASIDE.split(text[found.end() :], maxsplit=1)[0].replace("(embedded engine)", "")
    words = _CODE.sub("", words)
    for name in names:
        words = words.replace(f"({name})", "")
    return SqlRefusal(
        int(found[1]), words.strip(" .\n")[:ERROR_CHARS_MAX], name=names[-1] if names else "", status=status
    )


def _away(why: str = "ClickHouse does not answer at the moment; ask again") -> SqlRefusal:
    return SqlRefusal(210, why)


def _place(locate: Locate) -> tuple[str, str, str]:
    try:
        return locate()
    except LedgerError as error:
        raise _away(error.message) from error
    except OSError as error:
        raise _away() from error


def _account(user: str, password: str) -> dict[str, str]:
    return {"X-ClickHouse-User": user, "X-ClickHouse-Key": password}


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()


def _plain(query_id: str) -> str:
    assert re.fullmatch(r"[A-Za-z0-9-]{1,100}", query_id)
    return query_id
