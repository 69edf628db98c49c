"""Migrations: once, in order, whole or not at all, and never edited afterwards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from domain.errors import (
    MigrationAlteredError,
    MigrationFailedError,
    MigrationGapError,
    MigrationUnknownError,
    UnavailableError,
)
from ops.migrate import migrate, pending, postgres_migrations, read_migrations


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Write two migrations that belong together."""
    (tmp_path / "0001_trees.sql").write_text("CREATE TABLE trees (name text); CREATE INDEX ON trees (name);")
    (tmp_path / "0002_oak.sql").write_text("INSERT INTO trees VALUES ('100 % oak');")
    return tmp_path


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    """Ask one question of a database."""
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()  # type: ignore[arg-type]


def test_each_migration_is_applied_once_and_in_order(empty_database_url: str, files: Path) -> None:
    assert [m.label for m in pending(empty_database_url, files)] == ["0001_trees", "0002_oak"]
    assert [(was.number, was.name) for was in migrate(empty_database_url, files)] == [
        (1, "trees"),
        (2, "oak"),
    ]
    assert migrate(empty_database_url, files) == []
    assert pending(empty_database_url, files) == []
    assert rows(empty_database_url, "SELECT name FROM trees") == [("100 % oak",)]


def test_asking_what_is_pending_changes_nothing(empty_database_url: str, files: Path) -> None:
    pending(empty_database_url, files)
    assert rows(empty_database_url, "SELECT to_regclass('schema_migrations')") == [(None,)]


def test_an_edited_file_is_refused_by_its_checksum(empty_database_url: str, files: Path) -> None:
    migrate(empty_database_url, files)
    (files / "0001_trees.sql").write_text("CREATE TABLE trees (name text, height_m int);")
    for act in (migrate, pending):
        with pytest.raises(MigrationAlteredError) as refusal:
            act(empty_database_url, files)
        assert refusal.value.facts["migration"] == "0001_trees"


@pytest.mark.parametrize(
    "name", ["0004_late.sql", "0002_twice.sql", "0000_early.sql", "3_short.sql", "0009_x.check.sql"]
)
def test_a_gap_a_double_and_a_stray_file_are_refused(files: Path, name: str) -> None:
    (files / name).write_text("SELECT 1;")
    with pytest.raises(MigrationGapError):
        read_migrations(files)


def test_a_gap_in_the_database_is_refused(empty_database_url: str, files: Path) -> None:
    migrate(empty_database_url, files)
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("DELETE FROM schema_migrations WHERE number = 1")
    with pytest.raises(MigrationGapError):
        migrate(empty_database_url, files)


def test_a_database_of_a_newer_release_is_refused(empty_database_url: str, files: Path) -> None:
    migrate(empty_database_url, files)
    (files / "0002_oak.sql").unlink()
    with pytest.raises(MigrationUnknownError):
        migrate(empty_database_url, files)


def test_a_failing_migration_leaves_no_trace_and_those_before_it_stay(
    empty_database_url: str, files: Path
) -> None:
    (files / "0003_half.sql").write_text("CREATE TABLE half (n int); SELECT 1 / 0;")
    with pytest.raises(MigrationFailedError) as refusal:
        migrate(empty_database_url, files)
    assert refusal.value.facts["migration"] == "0003_half"
    assert rows(empty_database_url, "SELECT to_regclass('half')") == [(None,)]
    assert rows(empty_database_url, "SELECT max(number) FROM schema_migrations") == [(2,)]


def test_a_check_that_returns_a_row_undoes_its_migration(empty_database_url: str, files: Path) -> None:
    check = files / "0002_oak.check.sql"
    check.write_text("SELECT name FROM trees WHERE name LIKE '%oak'")
    with pytest.raises(MigrationFailedError) as refusal:
        migrate(empty_database_url, files)
    assert "100 % oak" in refusal.value.facts["row"]
    assert rows(empty_database_url, "SELECT name FROM trees") == []
    check.write_text("SELECT name FROM trees WHERE name NOT LIKE '%oak'")
    assert [was.name for was in migrate(empty_database_url, files)] == ["oak"]


def test_starters_at_the_same_time_migrate_once(empty_database_url: str, files: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        done = [did.result() for did in [pool.submit(migrate, empty_database_url, files) for _ in range(8)]]
    assert sorted(len(applied) for applied in done) == [0] * 7 + [2]
    assert rows(empty_database_url, "SELECT count(*) FROM trees") == [(1,)]


def test_a_migration_does_not_wait_behind_a_busy_table_for_ever(
    empty_database_url: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(empty_database_url, files)
    (files / "0003_height.sql").write_text("ALTER TABLE trees ADD COLUMN height_m int;")
    monkeypatch.setattr("ops.migrate.LOCK_TIMEOUT", "50ms")
    with psycopg.connect(empty_database_url) as reader:
        reader.execute("SELECT * FROM trees")
        with pytest.raises(UnavailableError):
            migrate(empty_database_url, files)
    reader.close()
    assert [was.name for was in migrate(empty_database_url, files)] == ["height"]


def test_a_migration_that_runs_too_long_is_stopped(
    empty_database_url: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "0003_slow.sql").write_text("SELECT pg_sleep(60);")
    monkeypatch.setattr("ops.migrate.STATEMENT_TIMEOUT", "50ms")
    with pytest.raises(MigrationFailedError):
        migrate(empty_database_url, files)


def test_a_server_that_is_away_is_an_outage(files: Path) -> None:
    with pytest.raises(UnavailableError):
        migrate("postgresql://nobody@127.0.0.1:1/none?connect_timeout=2", files)


def test_the_migrations_of_this_release_are_all_in_the_template(database_url: str) -> None:
    assert pending(database_url) == []
    assert (
        len(read_migrations(postgres_migrations()))
        == rows(database_url, "SELECT count(*) FROM schema_migrations")[0][0]
    )
