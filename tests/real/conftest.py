"""A real PostgreSQL for every test: one server and one migrated template a run, one clone a test.

The server is an embedded one in a temporary directory, or the one SOMA_TEST_DATABASE_URL names, where the tests make
and drop databases of their own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from ops.embedded import EmbeddedPostgres
from ops.migrate import migrate

CLOSING_S_MAX = 5.0


def beside(url: str, database: str) -> str:
    """Name another database of the same server."""
    return urlsplit(url)._replace(path=f"/{database}").geturl()


def command(server_url: str, sql: str, *names: str) -> None:
    """Run one statement on databases, outside any transaction."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(SQL(sql).format(*map(Identifier, names)))


def connections_left(server_url: str, database: str) -> list[str]:
    """Name the connections that are still open once a closing one has had time to go."""
    query = (
        "SELECT format('%%s: %%s', application_name, left(query, 80)) FROM pg_stat_activity "
        "WHERE datname = %s AND backend_type = 'client backend'"
    )
    until = time.monotonic() + CLOSING_S_MAX
    with psycopg.connect(server_url, autocommit=True) as connection:
        while True:
            left = [row[0] for row in connection.execute(query, [database])]
            if not left or time.monotonic() > until:
                return left
            time.sleep(0.005)


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """Give the URL of a server on which this run may make databases."""
    given = os.environ.get("SOMA_TEST_DATABASE_URL")
    if given:
        yield given
        return
    # Not under pytest's own directory: another run of pytest shuts that to all users but its own.
    with TemporaryDirectory(prefix="soma-tests-") as place, EmbeddedPostgres.start(Path(place)) as server:
        yield server.url


@pytest.fixture(scope="session")
def template_database(server_url: str) -> Iterator[str]:
    """Migrate one database, from which all others are cloned."""
    name = f"soma_template_{uuid4().hex[:12]}"
    command(server_url, "CREATE DATABASE {} TEMPLATE template0", name)
    try:
        migrate(beside(server_url, name))
        yield name
    finally:
        command(server_url, "DROP DATABASE {} WITH (FORCE)", name)


def lend(server_url: str, template: str) -> Iterator[str]:
    """Lend a clone of a database, and see that nothing keeps hold of it."""
    name = f"soma_test_{uuid4().hex[:12]}"
    command(server_url, "CREATE DATABASE {} TEMPLATE {}", name, template)
    try:
        yield beside(server_url, name)
        left = connections_left(server_url, name)
    finally:
        command(server_url, "DROP DATABASE {} WITH (FORCE)", name)
    assert not left, f"connections were left open: {left}"


@pytest.fixture
def database_url(server_url: str, template_database: str) -> Iterator[str]:
    """Lend a migrated database of its own to one test."""
    yield from lend(server_url, template_database)


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """Lend a database without any table to one test."""
    yield from lend(server_url, "template0")


@pytest.fixture
def repository_root() -> Path:
    """Locate the project, for tests that start processes of their own."""
    return Path(__file__).resolve().parents[2]
