"""Files of ClickHouse statements: cut at the right places, and written for a cluster."""

from __future__ import annotations

import pytest

from ops.clickhouse import locate_url
from ops.clickhouse_migrate import clickhouse_migrations, on_cluster, statements
from ops.migrate import read_migrations


def test_a_file_is_cut_at_semicolons_that_end_a_line() -> None:
    text = "-- Why: a; remark\n\nCREATE TABLE a (x Int8); -- done\nSELECT ';',\n  1;\n\n-- the end\n"
    assert list(statements(text)) == ["CREATE TABLE a (x Int8)", "SELECT ';',\n  1"]


@pytest.mark.parametrize("text", ["", "-- only a remark;\n", "\n\n"])
def test_a_file_without_statements_has_none(text: str) -> None:
    assert list(statements(text)) == []


def test_every_statement_that_ships_can_be_repeated() -> None:
    for migration in read_migrations(clickhouse_migrations()):
        for statement in statements(migration.sql):
            assert "IF NOT EXISTS" in statement or "IF EXISTS" in statement or "OR REPLACE" in statement, (
                statement
            )


def test_without_a_cluster_a_statement_stays_as_it_is() -> None:
    assert on_cluster("CREATE TABLE a (x Int8) ENGINE = MergeTree", None).endswith("ENGINE = MergeTree")


@pytest.mark.parametrize(
    ("plain", "clustered"),
    [
        ("CREATE DATABASE IF NOT EXISTS soma ENGINE = Atomic",
         "CREATE DATABASE IF NOT EXISTS soma ON CLUSTER 'main' ENGINE = Atomic"),
        ("CREATE TABLE IF NOT EXISTS soma.a (x Int8) ENGINE = ReplacingMergeTree(x)",
         "CREATE TABLE IF NOT EXISTS soma.a ON CLUSTER 'main' (x Int8) ENGINE = ReplicatedReplacingMergeTree(x)"),
        ("CREATE OR REPLACE VIEW bi.v DEFINER = CURRENT_USER AS SELECT 1",
         "CREATE OR REPLACE VIEW bi.v ON CLUSTER 'main' DEFINER = CURRENT_USER AS SELECT 1"),
        ("ALTER TABLE soma.a ADD COLUMN IF NOT EXISTS y Int8",
         "ALTER TABLE soma.a ON CLUSTER 'main' ADD COLUMN IF NOT EXISTS y Int8"),
        ("EXCHANGE TABLES soma.a AND soma.b", "EXCHANGE TABLES soma.a AND soma.b ON CLUSTER 'main'"),
        ("DROP TABLE IF EXISTS soma.a SYNC", "DROP TABLE IF EXISTS soma.a ON CLUSTER 'main' SYNC"),
        ("SELECT 1", "SELECT 1"),
    ],
)  # fmt: skip
def test_with_a_cluster_every_replica_is_named(plain: str, clustered: str) -> None:
    assert on_cluster(plain, "main") == clustered


def test_a_url_is_parted_from_its_account() -> None:
    assert locate_url("https://me:p%40ss@host:8443/x") == ("https://host:8443/x", "me", "p@ss")
    assert locate_url("http://host:8123") == ("http://host:8123", "default", "")
