"""What the database itself refuses, whoever asks: the log can be added to, and never changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from ops.runtime import open_runtime
from ops.settings import Settings
from tests.real.conftest import lend
from tests.real.log.world import Add, OpenTally, add, check_database, give, member, open_tally, settings_for

LOG_TABLES = ["events", "tiles", "checkpoints", "keys", "cosignatures", "log_identity"]
FOLLOWERS = ["records", "accounts", "holds", "postings", "snapshots"]

# A column of each table that an update could change.
COLUMN = {
    "events": "tenant = 'x'",
    "tiles": "root = sha256('x')",
    "checkpoints": "committed_at = now()",
    "keys": "status = 200",
    "cosignatures": "line = 'x'",
    "log_identity": "origin = 'x'",
}

AS_OWNER = ""
AS_SERVICE = "-c role=soma_service"


@pytest.fixture(scope="module")
def written(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Lend a log that has a full tile, keys and a cosignature; every test is refused, so all may share it."""
    lent = lend(server_url, template_database)
    url = next(lent)

    async def write() -> None:
        async with open_runtime(settings_for(url, tmp_path_factory.mktemp("keys"))) as rt:
            await rt.ledger.act(open_tally, OpenTally(name="t"), member("acme"))
            await rt.ledger.act(add, Add(name="t", times=300), member("acme"), key="k")
            await give(rt.ledger, "acme", "1")

    asyncio.run(write())
    with psycopg.connect(url) as conn:
        conn.execute("INSERT INTO witnesses VALUES ('w', 'w+1+k', NULL)")
        conn.execute("INSERT INTO cosignatures SELECT max(size), 'w+1+k', 'line', now() FROM checkpoints")
    before = check_database(url)
    yield url
    assert check_database(url) == before
    assert next(lent, None) is None


def refused(url: str, options: str, statement: str) -> psycopg.Error:
    """Run a statement that must be refused, and give the refusal."""
    with psycopg.connect(url, options=options) as conn, pytest.raises(psycopg.Error) as refusal:
        conn.execute(statement)
    return refusal.value


@pytest.mark.parametrize("table", LOG_TABLES)
def test_the_service_and_the_owner_can_neither_update_nor_delete_nor_truncate_the_log(
    written: str, table: str
) -> None:
    statements = [f"UPDATE {table} SET {COLUMN[table]}", f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"]
    for statement in statements:
        service = refused(written, AS_SERVICE, statement)
        assert isinstance(service, psycopg.errors.InsufficientPrivilege)
        owner = refused(written, AS_OWNER, statement)
        assert isinstance(owner, psycopg.errors.RestrictViolation)
        assert "immutable" in str(owner)


@pytest.mark.parametrize("table", LOG_TABLES)
def test_an_update_cannot_hide_in_an_insert_or_a_merge(written: str, table: str) -> None:
    with psycopg.connect(written) as conn:
        rows = conn.execute(
            "SELECT a.attname FROM pg_index i"
            " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)"
            " WHERE i.indrelid = %s::regclass AND i.indisprimary",
            [table],
        ).fetchall()
    key = ", ".join(name for (name,) in rows)
    upsert = f"INSERT INTO {table} SELECT * FROM {table} ON CONFLICT ({key}) DO UPDATE SET {COLUMN[table]}"
    merge = f"MERGE INTO {table} USING (SELECT 1) one ON true WHEN MATCHED THEN DELETE"
    for statement in (upsert, merge):
        assert isinstance(refused(written, AS_SERVICE, statement), psycopg.errors.InsufficientPrivilege)
        assert isinstance(refused(written, AS_OWNER, statement), psycopg.errors.RestrictViolation)


@pytest.mark.parametrize("table", [*LOG_TABLES, *FOLLOWERS, "log_head", "witnesses", "schema_migrations"])
def test_the_service_can_delete_from_nothing_and_drop_or_alter_nothing(written: str, table: str) -> None:
    statements = [
        f"DELETE FROM {table}",
        f"TRUNCATE {table}",
        f"DROP TABLE {table} CASCADE",
        f"ALTER TABLE {table} DISABLE TRIGGER ALL",
        f"ALTER TABLE {table} RENAME TO elsewhere",
        f"ALTER TABLE {table} ADD COLUMN extra text",
        f"CREATE TRIGGER mine BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_change()",
        f"CREATE RULE mine AS ON INSERT TO {table} DO INSTEAD NOTHING",
    ]
    if table in LOG_TABLES:
        statements.append(f"DROP TRIGGER immutable ON {table}")
    for statement in statements:
        assert isinstance(refused(written, AS_SERVICE, statement), psycopg.errors.InsufficientPrivilege), (
            statement
        )


def test_the_service_cannot_get_around_the_triggers(written: str) -> None:
    for statement in (
        "SET session_replication_role = replica",
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "DROP FUNCTION refuse_change() CASCADE",
        "CREATE TABLE mine (x int)",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER ROLE soma_service SUPERUSER",
        "COPY events TO PROGRAM 'cat'",
    ):
        assert isinstance(refused(written, AS_SERVICE, statement), psycopg.errors.InsufficientPrivilege), (
            statement
        )


def test_postings_and_snapshots_are_only_ever_added_by_the_service(written: str) -> None:
    for statement in ("UPDATE postings SET leg = leg", "UPDATE snapshots SET state = state"):
        assert isinstance(refused(written, AS_SERVICE, statement), psycopg.errors.InsufficientPrivilege)


def test_the_service_itself_works_under_the_role_that_is_refused(settings: Settings) -> None:
    async def roles() -> set[str]:
        async with open_runtime(settings) as rt:
            await rt.ledger.act(open_tally, OpenTally(), member("acme"))
            rt.recorder.max_notification_id()
            found = [(await rt.reader._one("SELECT current_user"))[0]]
            conn = rt.recorder._committer._conn
            assert conn is not None
            found += conn.execute("SELECT current_user").fetchone() or ()
            with rt.recorder.pool.connection() as listening:
                found += listening.execute("SELECT current_user").fetchone() or ()
            return set(found)

    assert asyncio.run(roles()) == {"soma_service"}
