"""One embedded engine for the whole run; the databases `soma` and `bi` are dropped and made again for who asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client

from ops.clickhouse import ClickHouse, as_reader, as_service
from ops.clickhouse_migrate import migrate_clickhouse
from ops.engine.process import EmbeddedClickHouse, Target
from tests.real.api.world import World
from tests.real.clickhouse.sql_world import SqlWorld
from tests.real.clickhouse.warehouse_world import tell_market
from tests.real.conftest import lend
from tests.real.service import serving, settings_on


def client_of(target: Target, *, reader: bool = False, **options: Any) -> Client:
    """Connect the real client, as one of the two accounts."""
    url, user, password = (as_reader if reader else as_service)(target)
    options = {"autogenerate_session_id": False, **options}
    return clickhouse_connect.get_client(dsn=url, username=user, password=password, **options)


@asynccontextmanager
async def opened(target: Target) -> AsyncIterator[ClickHouse]:
    """Open our own door to an engine."""
    clickhouse = await ClickHouse.open(*as_service(target))
    try:
        yield clickhouse
    finally:
        await clickhouse.close()


async def migrate_afresh(target: Target) -> None:
    """Drop both databases with all that is in them, and migrate."""
    async with opened(target) as clickhouse:
        for database in ("bi", "soma"):
            await clickhouse.command(f"DROP DATABASE IF EXISTS {database} SYNC")
        await migrate_clickhouse(clickhouse)


@pytest.fixture(scope="session")
def engine() -> Iterator[EmbeddedClickHouse]:
    """Lend the engine of this run."""
    with TemporaryDirectory(prefix="soma-engine-") as place, EmbeddedClickHouse.start(Path(place)) as running:
        yield running


@pytest.fixture
def migrated(engine: EmbeddedClickHouse) -> Target:
    """Lend the engine with `soma` and `bi` as a first start leaves them."""
    asyncio.run(migrate_afresh(engine.target))
    return engine.target


@pytest.fixture
def service(engine: EmbeddedClickHouse) -> Iterator[Client]:
    """Lend the real client, connected as the service."""
    with client_of(engine.target) as client:
        yield client


@pytest.fixture
def database(service: Client) -> Iterator[str]:
    """Lend an empty database to one test."""
    name = f"test_{uuid4().hex[:12]}"
    service.command(f"CREATE DATABASE {name} ENGINE = Atomic")
    yield name
    service.command(f"DROP DATABASE IF EXISTS {name} SYNC")


@pytest.fixture(scope="session")
def sql_world() -> Iterator[SqlWorld]:
    """Lend an SQL endpoint before an engine of its own, with rows of two tenants and things nobody may see."""
    with TemporaryDirectory(prefix="soma-sql-") as place, SqlWorld.open(Path(place)) as world:
        yield world


@pytest.fixture(scope="session")
def market(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Lend a database whose log holds every part of the market; nobody writes to it any more."""
    with contextmanager(lend)(server_url, template_database) as url:
        settings = settings_on(url, tmp_path_factory.mktemp("market"))
        with serving(settings) as running, running.client() as client:
            tell_market(World(running, client))
        yield url
