"""Migrations of ClickHouse on the real engine: once, in order, refused when edited, run again when cut short."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from domain.errors import MigrationAlteredError, MigrationFailedError, MigrationUnknownError
from ops.clickhouse import ClickHouse
from ops.clickhouse_migrate import applied_to_clickhouse, migrate_clickhouse
from ops.engine.process import EmbeddedClickHouse, Target
from tests.real.clickhouse.conftest import opened

TABLE = "CREATE TABLE IF NOT EXISTS soma.one (x Int8) ENGINE = MergeTree ORDER BY x;\n"


def run(target: Target, work: Callable[[ClickHouse], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with opened(target) as clickhouse:
            await work(clickhouse)

    asyncio.run(whole())


@pytest.fixture
def empty(engine: EmbeddedClickHouse) -> Target:
    """Lend an engine without our databases."""

    async def drop(clickhouse: ClickHouse) -> None:
        for database in ("bi", "soma"):
            await clickhouse.command(f"DROP DATABASE IF EXISTS {database} SYNC")

    run(engine.target, drop)
    return engine.target


def test_what_ships_is_applied_once(empty: Target) -> None:
    async def work(clickhouse: ClickHouse) -> None:
        first = await migrate_clickhouse(clickhouse)
        assert [one.number for one in first] == list(range(1, len(first) + 1))
        assert await migrate_clickhouse(clickhouse) == []
        assert await applied_to_clickhouse(clickhouse) == first

    run(empty, work)


def test_an_edited_file_and_a_newer_database_are_refused(empty: Target, tmp_path: Path) -> None:
    file = tmp_path / "0001_one.sql"
    file.write_text(TABLE)

    async def work(clickhouse: ClickHouse) -> None:
        await migrate_clickhouse(clickhouse, directory=tmp_path)
        file.write_text(TABLE + "-- edited\n")
        with pytest.raises(MigrationAlteredError):
            await migrate_clickhouse(clickhouse, directory=tmp_path)
        file.unlink()
        with pytest.raises(MigrationUnknownError):
            await migrate_clickhouse(clickhouse, directory=tmp_path)

    run(empty, work)


def test_a_file_that_failed_half_way_is_run_again(empty: Target, tmp_path: Path) -> None:
    file = tmp_path / "0001_one.sql"
    file.write_text(TABLE + "CREATE NONSENSE;\n")

    async def work(clickhouse: ClickHouse) -> None:
        with pytest.raises(MigrationFailedError):
            await migrate_clickhouse(clickhouse, directory=tmp_path)
        assert await applied_to_clickhouse(clickhouse) == []
        file.write_text(TABLE + "INSERT INTO soma.one VALUES (1);\n")
        assert len(await migrate_clickhouse(clickhouse, directory=tmp_path)) == 1
        assert await clickhouse.rows("SELECT x FROM soma.one") == [(1,)]

    run(empty, work)


def test_a_check_that_returns_a_row_refuses(empty: Target, tmp_path: Path) -> None:
    (tmp_path / "0001_one.sql").write_text(TABLE)
    (tmp_path / "0001_one.check.sql").write_text("SELECT 'a row';\n")

    async def work(clickhouse: ClickHouse) -> None:
        with pytest.raises(MigrationFailedError, match="check"):
            await migrate_clickhouse(clickhouse, directory=tmp_path)

    run(empty, work)
