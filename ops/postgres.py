"""Connections to PostgreSQL, and what its errors mean to the house.

Every connection of the service works under the role `soma_service`, which can add to the log and never change it.
Migrations and rebuilds connect as the owner.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from domain.errors import UnavailableError
from ops import arrays

SERVICE_ROLE = "soma_service"
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_MS = 30_000
RECONCILE_TIMEOUT_MS = 3_600_000

_WRITER = f"-c role={SERVICE_ROLE} -c lock_timeout=30s -c idle_in_transaction_session_timeout=60s"
_RECONCILER = f"-c role={SERVICE_ROLE} -c statement_timeout={RECONCILE_TIMEOUT_MS}"
_READER = f"-c role={SERVICE_ROLE} -c statement_timeout={READ_TIMEOUT_MS}"


def connect_writer(url: str) -> psycopg.Connection[Any]:
    """Open the connection commits go through."""
    return psycopg.connect(url, autocommit=True, options=_WRITER, connect_timeout=CONNECT_TIMEOUT_S)


def connect_owner(url: str) -> psycopg.Connection[Any]:
    """Open a connection with the rights of whoever owns the tables."""
    return psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S)


def connect_reconciler(url: str) -> psycopg.Connection[Any]:
    """Open a connection for statements that read the whole log."""
    return psycopg.connect(url, autocommit=True, options=_RECONCILER, connect_timeout=CONNECT_TIMEOUT_S)


async def connect_listener(url: str) -> psycopg.AsyncConnection[Any]:
    """Open the connection that hears of commits; a peer that fell silent is noticed by the kernel."""
    return await psycopg.AsyncConnection.connect(
        url,
        autocommit=True,
        options=_READER,
        connect_timeout=CONNECT_TIMEOUT_S,
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=2,
    )


def connect_reader(url: str) -> psycopg.Connection[Any]:
    """Open a connection that reads the log in large pieces."""
    return psycopg.connect(url, autocommit=True, options=_READER, connect_timeout=CONNECT_TIMEOUT_S)


async def connect_follower(url: str) -> psycopg.AsyncConnection[Any]:
    """Open the connection through which a follower holds its lock and writes its position."""
    options = f"{_READER} -c idle_session_timeout=0"
    return await psycopg.AsyncConnection.connect(
        url,
        autocommit=True,
        options=options,
        connect_timeout=CONNECT_TIMEOUT_S,
        keepalives_idle=5,
        keepalives_interval=3,
        keepalives_count=2,
    )


def library_pool(url: str, size_max: int = 4) -> ConnectionPool[Any]:
    """Make the pool the eventsourcing library reads and listens through; it opens at first use."""
    kwargs = {"autocommit": True, "options": _READER}
    return ConnectionPool(url, min_size=0, max_size=size_max, kwargs=kwargs, open=True)


def reader_pool(url: str, size_max: int) -> AsyncConnectionPool[Any]:
    """Make the pool the service reads through; it must be opened on the loop that uses it."""
    kwargs = {"autocommit": True, "options": _READER, "row_factory": tuple_row}
    return AsyncConnectionPool(
        url, min_size=1, max_size=size_max, kwargs=kwargs, open=False, timeout=10, configure=_take_arrays
    )


async def _take_arrays(connection: psycopg.AsyncConnection[Any]) -> None:
    arrays.register(connection)


@asynccontextmanager
async def reading(pool: AsyncConnectionPool[Any]) -> AsyncIterator[psycopg.AsyncCursor[Any]]:
    """Borrow a cursor; an outage becomes `unavailable`.

    Errors: unavailable.
    """
    try:
        async with pool.connection() as conn, conn.cursor(binary=True) as cursor:
            yield cursor
    except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as outage:
        raise UnavailableError(
            "the database does not answer", internal=str(outage), retry_after_s=1
        ) from outage
