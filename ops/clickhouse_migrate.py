"""Forward-only migrations of ClickHouse: numbered files of idempotent statements, each file remembered by checksum.

The rules are those of `ops/migrate.py`, with two differences that ClickHouse asks for. Its DDL knows no transactions,
so a file that failed half-way is run again from its first statement, and every statement must bear that (`IF NOT
EXISTS`, `OR REPLACE`). And it has no advisory locks: two migrators at once do the same work twice, and change nothing
by it.

Files name plain engines (`ENGINE = ReplacingMergeTree`). With `clickhouse_cluster` set, tables become Replicated ones
made ON CLUSTER, with the paths of the server's defaults. That covers one shard of many replicas. It was written after
the documentation: no cluster could be run where this was made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from domain.errors import ClickHouseRefusedError, MigrationFailedError
from ops.clickhouse import ClickHouse
from ops.migrate import Applied, Migration, missing, read_migrations

LEDGER_OF_MIGRATIONS = (
    "CREATE DATABASE IF NOT EXISTS soma ENGINE = Atomic",
    """CREATE TABLE IF NOT EXISTS soma.schema_migrations (
    number     UInt32,
    name       String,
    checksum   String,
    applied_at DateTime64(6, 'UTC')
) ENGINE = ReplacingMergeTree
ORDER BY number
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0""",
)

_END = re.compile(r";[ \t]*(?:--[^\n]*)?$", re.MULTILINE)
_COMMENT_LINES = re.compile(r"\A(?:\s*--[^\n]*\n?|\s+)*")
_MAKES = re.compile(
    r"\A((?:CREATE(?:\s+OR\s+REPLACE)?|ALTER|DROP|TRUNCATE|OPTIMIZE)\s+"
    r"(?:DATABASE|TABLE|VIEW|MATERIALIZED\s+VIEW|DICTIONARY)"
    r"(?:\s+IF\s+(?:NOT\s+)?EXISTS)?\s+[\w.`]+)",
    re.IGNORECASE,
)
_EXCHANGES = re.compile(r"\A(?:EXCHANGE\s+TABLES|RENAME\s+TABLE)\s", re.IGNORECASE)
_ENGINE = re.compile(r"\bENGINE\s*=\s*(?!Replicated)(\w*MergeTree)\b", re.IGNORECASE)


def clickhouse_migrations() -> Path:
    """Locate the migrations that ship with this release."""
    return Path(str(files("migrations"))) / "clickhouse"


async def migrate_clickhouse(
    clickhouse: ClickHouse, cluster: str | None = None, directory: Path | None = None
) -> list[Applied]:
    """Apply what is not applied yet, in order.

    Errors: migration_altered, migration_gap, migration_unknown, migration_failed, unavailable.
    """
    wanted = read_migrations(directory or clickhouse_migrations())
    for statement in LEDGER_OF_MIGRATIONS:
        await clickhouse.command(on_cluster(statement, cluster))
    todo = missing(wanted, await applied_to_clickhouse(clickhouse))
    return [await _apply(clickhouse, migration, cluster) for migration in todo]


async def applied_to_clickhouse(clickhouse: ClickHouse) -> list[Applied]:
    """List what is remembered as applied, in order.

    Errors: unavailable.
    """
    query = "SELECT number, name, checksum, applied_at FROM soma.schema_migrations FINAL ORDER BY number"
    return [Applied(*row) for row in await clickhouse.rows(query)]


def statements(sql: str) -> Iterator[str]:
    """Cut a file into its statements, which end with a semicolon at the end of a line."""
    for text in _END.split(sql):
        statement = _COMMENT_LINES.sub("", text).strip()
        if statement:
            yield statement


def on_cluster(statement: str, cluster: str | None) -> str:
    """Write a statement for every replica of a cluster; without a cluster it stays as it is."""
    if cluster is None:
        return statement
    word = f" ON CLUSTER '{cluster}'"
    if _EXCHANGES.match(statement):
        return statement + word
    return _ENGINE.sub(r"ENGINE = Replicated\1", _MAKES.sub(rf"\1{word}", statement, count=1))


async def _apply(clickhouse: ClickHouse, migration: Migration, cluster: str | None) -> Applied:
    try:
        for statement in statements(migration.sql):
            await clickhouse.command(on_cluster(statement, cluster))
        if migration.check is not None:
            await _expect_no_row(clickhouse, migration)
        return await _remember(clickhouse, migration)
    except ClickHouseRefusedError as error:
        words = f"{migration.label} was refused by ClickHouse; the next start runs it again from its first statement"
        raise MigrationFailedError(words, internal=error.internal, **error.facts) from error


async def _expect_no_row(clickhouse: ClickHouse, migration: Migration) -> None:
    for query in statements(migration.check or ""):
        found = await clickhouse.rows(query)
        if found:
            raise MigrationFailedError(f"the check of {migration.label} returned a row", row=repr(found[0]))


async def _remember(clickhouse: ClickHouse, migration: Migration) -> Applied:
    await clickhouse.command(
        "INSERT INTO soma.schema_migrations (number, name, checksum, applied_at) "
        "SELECT {number:UInt32}, {name:String}, {checksum:String}, now64(6, 'UTC')",
        {"number": migration.number, "name": migration.name, "checksum": migration.checksum},
    )
    query = "SELECT applied_at FROM soma.schema_migrations FINAL WHERE number = {number:UInt32}"
    at: datetime = (await clickhouse.rows(query, {"number": migration.number}))[0][0]
    return Applied(migration.number, migration.name, migration.checksum, at)
