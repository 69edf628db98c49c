"""Forward-only migrations of PostgreSQL: numbered files, each applied once, in order, whole or not at all.

`0007_rental_deadlines.sql` is one transaction; `0007_rental_deadlines.check.sql`, where there is one, runs at its end
and must return no row. What was applied is remembered by checksum: an edited file is refused, since two databases of
one number would then differ. There is no way back but a new number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha3_512
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import TupleRow, class_row

from domain.errors import (
    MigrationAlteredError,
    MigrationFailedError,
    MigrationGapError,
    MigrationUnknownError,
    UnavailableError,
)

# One number for all of our processes: whoever holds this advisory lock migrates, the others wait and find it done.
LOCK_KEY = 0x50_4D_41_4D_49_47

# A migration that waits for a table would make everybody behind it wait too: better to fail and be started again.
LOCK_TIMEOUT = "4s"
# A migration that needs longer says so itself, with SET LOCAL statement_timeout.
STATEMENT_TIMEOUT = "60s"

LEDGER_OF_MIGRATIONS = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number     integer PRIMARY KEY CHECK (number >= 1),
    name       text NOT NULL,
    checksum   text NOT NULL CHECK (checksum ~ '^[0-9a-f]{128}$'),
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)
"""

_FILE = re.compile(r"(?P<number>[0-9]{4})_(?P<name>[a-z0-9_]+)\.sql\Z", re.ASCII)

Connection = psycopg.Connection[TupleRow]


@dataclass(frozen=True)
class Migration:
    """One numbered file as it lies on the disk."""

    number: int
    name: str
    sql: str
    checksum: str
    check: str | None

    @property
    def label(self) -> str:
        """Name the migration as its file does."""
        return f"{self.number:04d}_{self.name}"


@dataclass(frozen=True)
class Applied:
    """One migration as the database remembers it."""

    number: int
    name: str
    checksum: str
    applied_at: datetime


def postgres_migrations() -> Path:
    """Locate the migrations that ship with this release."""
    return Path(str(files("migrations"))) / "postgres"


def read_migrations(directory: Path) -> list[Migration]:
    """Read the numbered files of a directory, in order.

    Errors: migration_gap.
    """
    found = [
        _read(path, match) for path in sorted(directory.glob("*.sql")) if (match := _FILE.match(path.name))
    ]
    numbers = [migration.number for migration in found]
    if numbers != list(range(1, len(found) + 1)):
        raise MigrationGapError(numbers=numbers)
    checks = {path.name.removesuffix(".check.sql") for path in directory.glob("*.check.sql")}
    strays = {path.name for path in directory.glob("*.sql")}
    strays -= {f"{m.label}.sql" for m in found} | {f"{m.label}.check.sql" for m in found if m.label in checks}
    if strays:
        raise MigrationGapError("a file here is not named like a migration", files=sorted(strays))
    return found


def migrate(url: str, directory: Path | None = None) -> list[Applied]:
    """Apply what is not applied yet; concurrent starters wait for each other, and one does the work.

    Errors: migration_altered, migration_gap, migration_unknown, migration_failed, unavailable.
    """
    wanted = read_migrations(directory or postgres_migrations())
    with _connected(url) as connection:
        # A session lock goes with its connection, so a killed migrator leaves nothing locked.
        connection.execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
        connection.execute(LEDGER_OF_MIGRATIONS)
        return [_apply(connection, migration) for migration in missing(wanted, _applied(connection))]


def pending(url: str, directory: Path | None = None) -> list[Migration]:
    """Name what `migrate` would apply, and change nothing.

    Errors: migration_altered, migration_gap, migration_unknown, unavailable.
    """
    wanted = read_migrations(directory or postgres_migrations())
    with _connected(url) as connection:
        known = connection.execute("SELECT to_regclass('schema_migrations') IS NOT NULL").fetchone()
        return missing(wanted, _applied(connection) if known and known[0] else [])


def applied(url: str) -> list[Applied]:
    """List what a database remembers as applied, in order, and change nothing.

    Errors: unavailable.
    """
    with _connected(url) as connection:
        known = connection.execute("SELECT to_regclass('schema_migrations') IS NOT NULL").fetchone()
        return _applied(connection) if known and known[0] else []


def _read(path: Path, match: re.Match[str]) -> Migration:
    content = path.read_bytes()
    check = path.with_suffix(".check.sql")
    return Migration(
        number=int(match["number"]),
        name=match["name"],
        sql=content.decode(),
        checksum=sha3_512(content).hexdigest(),
        check=check.read_text() if check.exists() else None,
    )


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    try:
        with psycopg.connect(url, autocommit=True, application_name="soma migrate") as connection:
            yield connection
    except psycopg.OperationalError as error:
        raise UnavailableError("the database does not answer", internal=str(error)) from error


def _applied(connection: Connection) -> list[Applied]:
    with connection.cursor(row_factory=class_row(Applied)) as cursor:
        query = "SELECT number, name, checksum, applied_at FROM schema_migrations ORDER BY number"
        return cursor.execute(query).fetchall()


def missing(wanted: Sequence[Migration], applied: Sequence[Applied]) -> list[Migration]:
    """Name what is wanted and not applied, if the two fit together.

    Errors: migration_altered, migration_gap, migration_unknown.
    """
    if [was.number for was in applied] != list(range(1, len(applied) + 1)):
        raise MigrationGapError(numbers=[was.number for was in applied])
    if len(applied) > len(wanted):
        raise MigrationUnknownError(applied=len(applied), known=len(wanted))
    for file, was in zip(wanted, applied, strict=False):
        if file.checksum != was.checksum:
            raise MigrationAlteredError(migration=file.label, applied=was.checksum, now=file.checksum)
    return list(wanted[len(applied) :])


def _apply(connection: Connection, migration: Migration) -> Applied:
    try:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            connection.execute(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'")
            connection.execute(_verbatim(migration.sql))
            _expect_no_row(connection, migration)
            return _remember(connection, migration)
    except psycopg.errors.LockNotAvailable as error:
        raise UnavailableError(f"{migration.label} waited for a lock for {LOCK_TIMEOUT}") from error
    except psycopg.OperationalError as error:
        # A lost connection is an outage; anything else of this family, such as a timeout, is this file's doing.
        if connection.broken:
            raise
        raise MigrationFailedError(migration=migration.label, why=str(error)) from error
    except psycopg.Error as error:
        raise MigrationFailedError(migration=migration.label, why=str(error)) from error


def _expect_no_row(connection: Connection, migration: Migration) -> None:
    if migration.check is None:
        return
    row = connection.execute(_verbatim(migration.check)).fetchone()
    if row is not None:
        raise MigrationFailedError(f"the check of {migration.label} returned a row", row=repr(row))


def _remember(connection: Connection, migration: Migration) -> Applied:
    with connection.cursor(row_factory=class_row(Applied)) as cursor:
        cursor.execute(
            "INSERT INTO schema_migrations (number, name, checksum) VALUES (%s, %s, %s) "
            "RETURNING number, name, checksum, applied_at",
            [migration.number, migration.name, migration.checksum],
        )
        row = cursor.fetchone()
    assert row is not None
    return row


def _verbatim(sql: str) -> Any:
    # psycopg asks for literal strings as a guard against injection; these come from files that ship with the release.
    return sql
