"""What the reader's account cannot do, and what nobody can make the engine do: files, environment, network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from ops.engine.confinement import has_landlock
from ops.engine.process import EmbeddedClickHouse, Target, secrets_path
from tests.real.clickhouse.conftest import client_of
from tests.real.clickhouse.test_engine import ask

REFUSED = [
    "SELECT * FROM soma.hidden",
    "SELECT * FROM merge('soma', 'hidden')",
    "SELECT * FROM cluster('default', soma.hidden)",
    "SELECT * FROM remote('127.0.0.1', soma.hidden)",
    "SELECT * FROM bi.shown WHERE amount IN (SELECT amount FROM soma.hidden)",
    "SELECT amount IN soma.hidden FROM bi.shown",
    "SELECT * FROM {table:Identifier}",
    "SELECT file('/etc/passwd')",
    "SELECT FiLe('/etc/passwd')",
    "SELECT * APPLY(file) FROM (SELECT '/etc/passwd')",
    "SELECT * APPLY(x -> file(x)) FROM (SELECT '/etc/passwd')",
    "SELECT arrayMap(x -> file(x), ['/proc/self/environ'])",
    "WITH (SELECT file('/etc/passwd')) AS x SELECT x",
    "SELECT * FROM view(SELECT file('/etc/passwd'))",
    "SELECT * FROM bi.shown ORDER BY file('/etc/passwd')",
    "SELECT * FROM file('/etc/passwd', 'LineAsString')",
    "SELECT * FROM default.`/etc/passwd`",
    "SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a String')",
    "SELECT * FROM s3('http://127.0.0.1:1/', 'CSV', 'a String')",
    "SELECT * FROM postgresql('127.0.0.1:1', 'a', 'b', 'c', 'd')",
    "SELECT * FROM executable('x', 'TSV', 'a String')",
    "SELECT * FROM Python(reader)",
    "SELECT 1 INTO OUTFILE 'stolen.tsv'",
    "SELECT 1 INTO OUTFILE 'stolen.tsv' TRUNCATE FORMAT TSV",
    "DESCRIBE url('http://127.0.0.1:1/', 'CSV')",
    "DESCRIBE TABLE soma.hidden",
    "EXPLAIN SELECT 1",
    "EXPLAIN AST SELECT file('/etc/passwd')",
    "SELECT * FROM system.processes",
    "SELECT * FROM system.query_log",
    "SELECT * FROM system.disks",
    "SELECT * FROM system.users",
    "SELECT * FROM system.server_settings",
    "SELECT getServerSetting('users_config')",
    "INSERT INTO bi.shown VALUES (1)",
    "INSERT INTO bi.shown FORMAT CSV\n1",
    "INSERT INTO FUNCTION file('stolen.csv') SELECT 1",
    "CREATE TABLE bi.mine (a Int8) ENGINE = Memory",
    "CREATE TEMPORARY TABLE mine (a Int8)",
    "CREATE VIEW bi.mine AS SELECT 1",
    "CREATE FUNCTION mine AS x -> x",
    "CREATE USER mine",
    "GRANT SELECT ON soma.* TO default",
    "ALTER TABLE soma.hidden DELETE WHERE 1",
    "DROP VIEW bi.shown",
    "TRUNCATE TABLE soma.hidden",
    "RENAME TABLE bi.shown TO bi.other",
    "EXCHANGE TABLES bi.shown AND soma.hidden",
    "OPTIMIZE TABLE soma.hidden",
    "BACKUP DATABASE soma TO File('stolen')",
    "SYSTEM SHUTDOWN",
    "SYSTEM KILL",
    "KILL QUERY WHERE 1",
    "SET readonly = 0",
    "SET ROLE soma_service",
    "SET ROLE ALL",
    "USE soma",
    "SELECT 1; SELECT 2",
    "SELECT 1; SET ROLE ALL; SELECT * FROM soma.hidden",
    "SELECT 1 SETTINGS readonly = 0",
    "SELECT 1 SETTINGS max_execution_time = 100000",
    "SELECT 1 SETTINGS allow_ddl = 1",
    "ATTACH TABLE bi.mine FROM 'stolen' (a Int8) ENGINE = File(TSV)",
    "EXECUTE AS default SELECT 1",
    "BEGIN TRANSACTION",
]


@pytest.fixture(scope="module")
def world(engine: EmbeddedClickHouse) -> Target:
    """Make a table nobody may see, and a view of some of it."""
    with client_of(engine.target) as client:
        for database in ("bi", "soma"):
            client.command(f"DROP DATABASE IF EXISTS {database} SYNC")
            client.command(f"CREATE DATABASE {database} ENGINE = Atomic")
        client.command(
            "CREATE TABLE soma.hidden (amount Int64, secret String) ENGINE = MergeTree ORDER BY amount"
        )
        client.insert("soma.hidden", [[5, "hidden words"]])
        client.command(
            "CREATE OR REPLACE VIEW bi.shown DEFINER = CURRENT_USER SQL SECURITY DEFINER "
            "AS SELECT amount FROM soma.hidden"
        )
    return engine.target


class TestTheReader:
    def test_reads_the_views_through_the_stock_client(self, world: Target) -> None:
        with client_of(world, reader=True) as reader:
            assert reader.query("SELECT * FROM bi.shown").result_rows == [(5,)]
            assert reader.query(
                "SELECT * FROM shown WHERE amount > {a:Int64}", parameters={"a": 1}
            ).result_rows
            assert reader.query_arrow("SELECT * FROM bi.shown").num_rows == 1
            assert reader.command("SHOW TABLES") == "shown"
            assert reader.command("EXISTS bi.shown") == 1
            assert reader.query("DESCRIBE TABLE bi.shown").result_rows[0][:2] == ("amount", "Int64")

    @pytest.mark.parametrize("sql", REFUSED)
    def test_is_refused(self, world: Target, sql: str) -> None:
        status, headers, body = ask(
            world, body=sql.encode(), reader=True, fields={"param_table": "soma.hidden"}
        )
        assert status in {400, 403, 404, 500, 501}, body
        assert int(headers["x-clickhouse-exception-code"]) != 1002
        assert b"hidden words" not in body
        assert b"root:" not in body
        assert ask(world, body=b"SELECT * FROM bi.shown", reader=True)[2] == b"5\n"

    @pytest.mark.parametrize("name", ["soma", "system", "information_schema"])
    def test_works_in_no_other_database(self, world: Target, name: str) -> None:
        assert ask(world, body=b"SELECT * FROM hidden", fields={"database": name}, reader=True)[0] == 403

    @pytest.mark.parametrize(
        ("name", "value"),
        [("readonly", "0"), ("max_execution_time", "0"), ("max_execution_time", "99999"), ("max_memory_usage", "nan"),
         ("max_threads", "-1"), ("max_result_rows", "0")],
    )  # fmt: skip
    def test_cannot_raise_a_limit(self, world: Target, name: str, value: str) -> None:
        query = "SELECT value FROM system.settings WHERE name = {name:String}"
        usual = ask(world, fields={"query": query, "param_name": name}, reader=True)[2]
        assert ask(world, fields={"query": query, "param_name": name, name: value}, reader=True)[2] == usual

    @pytest.mark.parametrize(
        "name", ["allow_ddl", "role", "log_comment", "profile", "format_schema_path", "dialect"]
    )
    def test_cannot_change_what_is_not_a_limit(self, world: Target, name: str) -> None:
        query = "SELECT currentRoles()[1], getSetting('readonly') FORMAT TSV"
        status, _, body = ask(world, fields={"query": query, name: "1"}, reader=True)
        assert status != 200 or body == b"soma_reader\t1\n"

    def test_can_lower_a_limit(self, world: Target) -> None:
        fields = {"query": "SELECT count() FROM numbers(1000000)", "max_rows_to_read": "10"}
        assert ask(world, fields=fields, reader=True)[1]["x-clickhouse-exception-code"] == "158"

    @pytest.mark.parametrize(
        "sql",
        [
            "SELECT groupArray(toString(number)) FROM numbers(100000000)",
            "SELECT * FROM numbers(11000000)",
            "SELECT count() FROM numbers(600000000)",
            "SELECT count() FROM numbers(100000) a, numbers(100000) b WHERE a.number > b.number",
        ],
    )
    def test_is_bounded(self, world: Target, sql: str) -> None:
        fields = {"wait_end_of_query": "1", "max_execution_time": "3"}
        _, headers, _ = ask(world, fields=fields, body=sql.encode(), reader=True)
        assert headers["x-clickhouse-exception-code"] in {"158", "159", "160", "191", "241", "307", "396"}


@pytest.mark.skipif(not has_landlock(), reason="needs Landlock: Linux from 5.13 on, with it enabled")
class TestTheConfinement:
    """Even the service's account, which may say anything, cannot make the engine leave its directory."""

    @pytest.mark.parametrize(
        "path",
        ["/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/1/environ", "/proc/self/cmdline", "{secrets}",
         "{engine}/engine.log", __file__],
    )  # fmt: skip
    def test_no_file_outside_is_read(self, engine: EmbeddedClickHouse, service: Client, path: str) -> None:
        path = path.format(secrets=secrets_path(engine.data_dir), engine=engine.data_dir / "clickhouse")
        for sql in [f"SELECT file('{path}')", f"SELECT * FROM file('{path}', 'LineAsString')"]:
            with pytest.raises(DatabaseError):
                service.query(sql)

    def test_nothing_is_written_outside(
        self, engine: EmbeddedClickHouse, service: Client, tmp_path: Path
    ) -> None:
        inside = engine.data_dir / "clickhouse" / "configuration" / "users.xml"
        before = inside.read_text()
        for path in (
            tmp_path / "stolen",
            inside,
            Path(sys.prefix) / "stolen",
            engine.data_dir / "keys" / "stolen",
        ):
            with pytest.raises(DatabaseError):
                service.command(f"SELECT 1 INTO OUTFILE '{path}' TRUNCATE FORMAT TSV")
            assert path == inside or not path.exists()
        assert inside.read_text() == before

    def test_no_connection_leaves(self, engine: EmbeddedClickHouse, service: Client) -> None:
        # The engine's own port answers everybody, so that a refusal can only be the kernel's.
        for sql in [
            f"SELECT * FROM url('{engine.target.url}/ping', 'LineAsString', 'line String')",
            f"SELECT * FROM remote('127.0.0.1:{engine.target.port}', system.one)",
        ]:
            with pytest.raises(DatabaseError) as refused:
                service.query(sql, settings={"http_max_tries": 1, "connections_with_failover_max_tries": 1})
            assert "Permission denied" in str(refused.value) or "NETWORK" in str(refused.value)

    def test_no_program_is_started(self, service: Client) -> None:
        with pytest.raises(DatabaseError):
            service.query("SELECT * FROM executable('id', 'LineAsString', 'line String')")
