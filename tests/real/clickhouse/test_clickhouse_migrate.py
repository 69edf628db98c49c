"""Migrations of ClickHouse on the real engine: once, in order, refused when edited, run again when cut short."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from domain.errors import MigrationAlteredError, MigrationFailedError, MigrationUnknownError
from ops.clickhouse import ClickHouse
from ops.clickhouse_migrate import applied_to_clickhouse, clickhouse_migrations, migrate_clickhouse
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


def test_usage_of_an_earlier_release_counts_as_it_did(empty: Target, tmp_path: Path) -> None:
    for file in sorted(clickhouse_migrations().glob("000[123]_*.sql")):
        (tmp_path / file.name).write_text(file.read_text())
    taken = (
        "INSERT INTO soma.usage (position, address, at, occurred_at, hour, tenant, source, event_id, provider, model,"
        " status, requests, tokens_in, cost, currency) SELECT number, toString(number), now64(), now64(),"
        " toStartOfHour(now()), 'acme', 'gw', toString(number), 'p', 'm', 'ok', 1, 10, 0.5, 'USD' FROM numbers(3)"
    )

    async def work(clickhouse: ClickHouse) -> None:
        await migrate_clickhouse(clickhouse, directory=tmp_path)
        await clickhouse.command(taken)
        await migrate_clickhouse(clickhouse)
        assert await clickhouse.rows(
            "SELECT count(), sum(tokens_in), sum(cost), max(version) FROM bi.usage"
        ) == await clickhouse.rows("SELECT 3, 30, toDecimal128(1.5, 9), 1")
        # As much of the file as was carried out is carried out again, where a start was cut short.
        await clickhouse.command("TRUNCATE TABLE soma.schema_migrations")
        await migrate_clickhouse(clickhouse)
        # What is put right now takes its place beside what was taken then.
        columns = "position, leg, sign, version, reverses, tenant, provider, model, hour, tokens_in"
        await clickhouse.command(
            f"INSERT INTO soma.usage ({columns}) SELECT 9, 0, -1, 2, position, tenant, provider, model, hour, tokens_in"
            " FROM soma.usage WHERE position = 1"
        )
        assert await clickhouse.rows("SELECT count(), sum(tokens_in) FROM bi.usage") == [(2, 20)]

    run(empty, work)


def test_a_check_that_returns_a_row_refuses(empty: Target, tmp_path: Path) -> None:
    (tmp_path / "0001_one.sql").write_text(TABLE)
    (tmp_path / "0001_one.check.sql").write_text("SELECT 'a row';\n")

    async def work(clickhouse: ClickHouse) -> None:
        with pytest.raises(MigrationFailedError, match="check"):
            await migrate_clickhouse(clickhouse, directory=tmp_path)

    run(empty, work)
