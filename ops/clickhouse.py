"""The door to ClickHouse, by its HTTP protocol: a server's, a cluster's or the embedded engine's, the same code.

A ClickHouse here is stateless HTTP: a server that was restarted is simply asked again. Calls of one object are carried
out one after the other, in a thread of its own; who needs two at once opens two.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError
from clickhouse_connect.driver.httputil import get_pool_manager
from urllib3.exceptions import HTTPError

from domain.errors import ClickHouseRefusedError, UnavailableError
from ops.engine.process import EmbeddedClickHouse, Target
from ops.settings import Settings

# What it logs as an error it raises as well, and here that is told once, by us.
logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)

CONNECT_S_MAX = 10
# Rebuilding statements of a large table take minutes.
ANSWER_S_MAX = 3_600
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

# ClickHouse cuts what is inserted into blocks, and makes one part of each block (per partition): the rows of one insert
# appear together or not at all only while they are one block. Deduplication by the server is off, since its tokens lose
# batches when a server is killed; what is sent twice collapses in the table.
ONE_PART = {
    "async_insert": 0,
    "deduplicate_insert": "disable",
    "insert_deduplicate": 0,
    "max_insert_block_size": 10_000_000,
    "min_insert_block_size_rows": 10_000_000,
    "min_insert_block_size_bytes": 4_000_000_000,
    "input_format_parallel_parsing": 0,
}
# Refusals that pass: too many queries at once, a peer or a keeper that is away, memory of the moment, a shutdown.
PASSING = frozenset({159, 202, 209, 210, 241, 242, 252, 279, 319, 394, 425, 439, 999})

Locate = Callable[[], tuple[str, str, str]]
T = TypeVar("T")


class ClickHouse:
    """One account on one ClickHouse."""

    def __init__(self, locate: Locate) -> None:
        self._locate = locate
        self._client: Client | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clickhouse")

    @classmethod
    async def open(cls, target_url: str, user: str, password: str) -> ClickHouse:
        """Connect to an account; an outage later on is overcome at the next call.

        Errors: unavailable, clickhouse_refused.
        """
        return await cls.found(lambda: (target_url, user, password))

    @classmethod
    async def found(cls, locate: Locate) -> ClickHouse:
        """Connect to an account whose place may change; after each outage it is looked up again.

        Errors: unavailable, clickhouse_refused.
        """
        opened = cls(locate)
        try:
            await opened._do(lambda _client: None)
        except BaseException:
            await opened.close()
            raise
        return opened

    async def command(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """Carry out one statement; a short answer is given back.

        Errors: unavailable, clickhouse_refused.
        """
        return await self._do(lambda client: client.command(sql, parameters=_given(parameters)))

    async def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Read all rows of an answer.

        Errors: unavailable, clickhouse_refused.
        """
        return await self._do(
            lambda client: [
                tuple(row) for row in client.query(sql, parameters=_given(parameters)).result_rows
            ]
        )

    async def blocks(
        self, sql: str, parameters: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[list[tuple[Any, ...]], None]:
        """Read an answer block by block, as the reader asks for them.

        Errors: unavailable, clickhouse_refused.
        """
        stream = await self._do(
            lambda client: client.query_row_block_stream(sql, parameters=_given(parameters)).__enter__()
        )
        try:
            while (block := await self._do(lambda _client: next(iter(stream), None))) is not None:
                yield [tuple(row) for row in block]
        finally:
            await self._do(lambda _client: stream.__exit__(None, None, None))

    async def arrow(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Read an answer as columns.

        Errors: unavailable, clickhouse_refused.
        """
        return await self._do(lambda client: client.query_arrow(sql, parameters=_given(parameters)))

    async def insert(self, table: str, rows: pa.Table) -> None:
        """Insert rows as one part for each partition they fall into; sending them twice must change nothing.

        Errors: unavailable (whether they are there is not known), clickhouse_refused.
        """
        await self._do(lambda client: client.insert_arrow(table, rows, settings=_known(client, ONE_PART)))

    async def recompute(self, sql: str) -> None:
        """Carry out an `INSERT ... SELECT` under the same settings; doing it twice must change nothing.

        Errors: unavailable (whether it is done is not known), clickhouse_refused.
        """
        await self._do(lambda client: client.command(sql, settings=_known(client, ONE_PART)))

    async def close(self) -> None:
        """Let go of the connection; a call that runs is finished first."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._forget)
        self._thread.shutdown(wait=False)

    async def _do(self, work: Callable[[Client], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._try, work)

    def _try(self, work: Callable[[Client], T]) -> T:
        try:
            if self._client is None:
                self._client = _connected(*self._locate())
            return work(self._client)
        except DatabaseError as error:
            raise self._meaning(error) from error
        except (ClickHouseError, HTTPError, OSError) as error:
            self._forget()
            raise _away(error) from error

    def _meaning(self, error: DatabaseError) -> Exception:
        code = getattr(error, "code", None)
        if code is None or code == 516:
            # Whoever answers there is no ClickHouse, or not the one we knew.
            self._forget()
        if code is None or code in PASSING:
            return _away(error)
        return ClickHouseRefusedError(clickhouse_code=code, internal=str(error))

    def _forget(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):
                client.close()


def _away(error: Exception) -> UnavailableError:
    return UnavailableError("ClickHouse does not answer", internal=str(error), retry_after_s=1)


def _given(parameters: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return dict(parameters) if parameters else None


def _known(client: Client, settings: Mapping[str, Any]) -> dict[str, Any]:
    # `deduplicate_insert` is younger than some servers; an older one knows `insert_deduplicate` only.
    return {name: value for name, value in settings.items() if name in client.server_settings}


def _connected(url: str, user: str, password: str) -> Client:
    parts = urlsplit(url)
    host = parts.hostname or ""
    near = host in LOOPBACK
    return clickhouse_connect.get_client(
        host=host,
        port=parts.port or (8443 if parts.scheme == "https" else 8123),
        interface=parts.scheme,
        username=user,
        password=password,
        # Packing costs more than loopback does, and no proxy of the environment stands before it.
        compress=not near,
        pool_mgr=get_pool_manager() if near else None,
        connect_timeout=CONNECT_S_MAX,
        send_receive_timeout=ANSWER_S_MAX,
        autogenerate_session_id=False,
        client_name="soma-ledger",
    )


# --------------------------------------------------------------------------- where it is


def locate_url(url: str) -> tuple[str, str, str]:
    """Take a URL with an account in it apart."""
    parts = urlsplit(url)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return bare, unquote(parts.username or "default"), unquote(parts.password or "")


def _reader_by_url(settings: Settings) -> tuple[str, str, str]:
    if settings.clickhouse_reader_url is None:
        raise UnavailableError("no account for readers is named: set SOMA_CLICKHOUSE_READER_URL")
    return locate_url(settings.clickhouse_reader_url.get_secret_value())


def as_service(target: Target) -> tuple[str, str, str]:
    """Name the service's account of an embedded engine."""
    return target.url, target.service_user, target.service_password


def as_reader(target: Target) -> tuple[str, str, str]:
    """Name the reader's account of an embedded engine."""
    return target.url, target.reader_user, target.reader_password


@asynccontextmanager
async def clickhouse_places(settings: Settings) -> AsyncIterator[Sequence[Locate]]:
    """Tell where ClickHouse is, as the service and as the reader; without a URL, hold the embedded engine up meanwhile.

    On a server the reader is an account of its own, which may do nothing but read the documented views.
    Errors: engine_start_failed; the reader's place answers unavailable where no account is named.
    """
    if settings.clickhouse_url is not None:
        place = locate_url(settings.clickhouse_url.get_secret_value())
        yield (lambda: place, lambda: _reader_by_url(settings))
        return
    embedded = await asyncio.to_thread(EmbeddedClickHouse.start, settings.data_dir)
    try:
        yield (lambda: as_service(embedded.target), lambda: as_reader(embedded.target))
    finally:
        await asyncio.to_thread(embedded.stop)


@asynccontextmanager
async def open_clickhouse(settings: Settings) -> AsyncIterator[ClickHouse]:
    """Give the service's ClickHouse: the one of the settings, or the embedded engine.

    Errors: engine_start_failed, unavailable, clickhouse_refused.
    """
    async with clickhouse_places(settings) as (service, _reader):
        clickhouse = await ClickHouse.found(service)
        try:
            yield clickhouse
        finally:
            await clickhouse.close()
