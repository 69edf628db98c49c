"""The engine as ClickHouse's own client sees it: definitions, every kind of insert, streams, forms, compression."""

from __future__ import annotations

import gzip
import http.client
import json
import zlib
from base64 import b64encode
from decimal import Decimal
from typing import Any
from urllib.parse import quote, urlencode

import pandas as pd
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.engine.process import EmbeddedClickHouse, Target
from tests.real.clickhouse.conftest import client_of

COLUMNS = ["id", "word", "sum"]
ROWS = [[1, "one\twith\n\\odd 'marks'", Decimal("1.000000001")], [2, "zwei — ü", Decimal("-99999999999.5")]]
TABLE = pa.table(
    {
        "id": pa.array([row[0] for row in ROWS], pa.uint64()),
        "word": [row[1] for row in ROWS],
        "sum": pa.array([row[2] for row in ROWS], pa.decimal128(38, 9)),
    }
)


@pytest.fixture
def table(service: Client, database: str) -> str:
    """Lend an empty table."""
    name = f"{database}.things"
    service.command(
        f"CREATE TABLE {name} (id UInt64, word String, sum Decimal(38, 9)) ENGINE = MergeTree ORDER BY id"
    )
    return name


def kept(client: Client, table: str) -> list[list[Any]]:
    return [list(row) for row in client.query(f"SELECT * FROM {table} ORDER BY id").result_rows]


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


def ask(
    target: Target,
    method: str = "POST",
    fields: dict[str, str] | None = None,
    body: bytes = b"",
    reader: bool = False,
    path: str = "/",
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    """Send one request as bytes, and give status, headers and body."""
    who = (
        (target.reader_user, target.reader_password)
        if reader
        else (target.service_user, target.service_password)
    )
    given = {
        "Authorization": basic(*who)["Authorization"],
        **{k.replace("_", "-"): v for k, v in headers.items()},
    }
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=60)
    try:
        connection.request(
            method, f"{path}?{urlencode(fields or {})}", body, {k: v for k, v in given.items() if v}
        )
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


# Words in an order that is sometimes a statement; none of these changes or reaches anything.
SQLISH = st.lists(
    st.sampled_from("SELECT INSERT INTO FORMAT Values CSV ( ) ' ` \" 1 , ; -- /* */ FROM numbers(3) x AS WITH SETTINGS "
                    "EXPLAIN SHOW DESCRIBE TABLE \\ \0 {a:UInt8} UNION ALL * = system.one".split()),
    max_size=12,
).map(lambda words: " ".join(words).encode())  # fmt: skip


class TestInserts:
    def test_rows_and_columns_arrive_exactly(self, service: Client, table: str) -> None:
        service.insert(table, ROWS[:1], column_names=COLUMNS)
        service.insert(table, [[row] for row in ROWS[1]], column_names=COLUMNS, column_oriented=True)
        assert kept(service, table) == ROWS

    def test_arrow_arrives_exactly(self, service: Client, table: str) -> None:
        service.insert_arrow(table, TABLE)
        assert kept(service, table) == ROWS

    def test_a_data_frame_arrives_exactly(self, service: Client, table: str) -> None:
        service.insert_df(table, pd.DataFrame(ROWS, columns=COLUMNS))
        assert kept(service, table) == ROWS

    @pytest.mark.parametrize(
        "form",
        [
            "Native",
            "Arrow",
            "ArrowStream",
            "JSONEachRow",
            "CSV",
            "TabSeparated",
            "RowBinary",
            "Parquet",
            "Values",
        ],
    )
    def test_what_was_read_in_a_format_can_be_inserted_in_it(
        self, service: Client, table: str, form: str
    ) -> None:
        service.insert(table, ROWS, column_names=COLUMNS)
        content = service.raw_query(f"SELECT * FROM {table} ORDER BY id", fmt=form)
        service.command(f"TRUNCATE TABLE {table}")
        service.raw_insert(table, COLUMNS, content, fmt=form)
        assert kept(service, table) == ROWS

    @pytest.mark.parametrize("packed", ["gzip", "deflate", "lz4", "zstd"])
    def test_packed_bodies_are_unpacked(
        self, engine: EmbeddedClickHouse, service: Client, table: str, packed: str
    ) -> None:
        lines = b"".join(b'{"id":%d,"word":"w","sum":"0.5"}\n' % n for n in range(1_000))
        fields = {"query": f"INSERT INTO {table} FORMAT JSONEachRow"}
        status, headers, said = ask(
            engine.target, fields=fields, body=pack(lines, packed), Content_Encoding=packed
        )
        assert status == 200, said
        assert json.loads(headers["x-clickhouse-summary"])["written_rows"] == "1000"
        assert service.command(f"SELECT count(), sum(sum) FROM {table}") == ["1000", "500"]

    @pytest.mark.parametrize("packing", [True, "lz4", "zstd", "gzip", False])
    def test_the_client_may_pack_inserts_and_answers(
        self, engine: EmbeddedClickHouse, table: str, packing: bool | str
    ) -> None:
        with client_of(engine.target, compress=packing) as client:
            client.insert(table, [[n, "x" * 50, Decimal(n)] for n in range(50_000)], column_names=COLUMNS)
            assert client.command(f"SELECT count() FROM {table}") == 50_000
            assert len(client.query(f"SELECT * FROM {table}").result_rows) == 50_000

    @pytest.mark.parametrize("count", [1, 70_000, 300_000])
    def test_one_insert_is_one_part(self, service: Client, table: str, count: int) -> None:
        batch = pa.table({"id": pa.array(range(count), pa.uint64()), "word": ["w"] * count}).to_batches(
            max_chunksize=9_999
        )
        service.command(f"SYSTEM STOP MERGES {table}")
        service.insert_arrow(table, pa.Table.from_batches(batch))
        service.insert(table, [[n, "x"] for n in range(count)], column_names=COLUMNS[:2])
        query = "SELECT rows FROM system.parts WHERE active AND concat(database, '.', table) = {table:String}"
        assert service.query(query, parameters={"table": table}).result_rows == [(count,), (count,)]

    def test_a_torn_or_wrong_body_leaves_nothing(self, service: Client, table: str) -> None:
        whole = service.raw_query("SELECT number id, 'x' word FROM numbers(100000)", fmt="Native")
        for form, body in [
            ("Native", whole[:-7]),
            ("JSONEachRow", '{"id":1}\n{"id":"x"}\n'),
            ("CSV", b"1,2,3,4\n"),
        ]:
            with pytest.raises(DatabaseError):
                service.raw_insert(table, COLUMNS[:2], body, fmt=form)
        assert service.command(f"SELECT count() FROM {table}") == 0

    def test_values_and_selects_insert_too(self, service: Client, table: str) -> None:
        service.command(f"INSERT INTO {table} VALUES (1, 'a;b', 2.5), (2, 'FORMAT CSV', 3)")
        service.command(f"INSERT INTO {table} (id) SELECT number + 10 FROM numbers(5)")
        assert service.command(f"SELECT count(), sum(sum) FROM {table}") == ["7", "5.5"]


class TestQueries:
    def test_the_stock_client_connects_and_learns_the_version(self, service: Client) -> None:
        assert int(service.server_version.split(".")[0]) >= 24
        assert str(service.server_tz) in {"UTC", "Etc/UTC"}
        assert service.ping()

    @pytest.mark.parametrize("form_encoded", [False, True])
    def test_parameters_travel_apart_from_the_statement(
        self, engine: EmbeddedClickHouse, form_encoded: bool
    ) -> None:
        word = "it's\ta \\ word\nwith {odd:String} marks ü"
        with client_of(engine.target, form_encode_query_params=form_encoded) as client:
            answer = client.query(
                "SELECT {word:String}, {number:Int64}, {list:Array(String)}",
                parameters={"word": word, "number": -5, "list": ["a", "b'c"]},
            )
        assert answer.result_rows == [(word, -5, ["a", "b'c"])]

    def test_large_answers_stream(self, service: Client) -> None:
        query = "SELECT number, toString(number) AS text FROM numbers(400000)"
        with service.query_row_block_stream(query) as blocks:
            sizes = [len(block) for block in blocks]
        assert sum(sizes) == 400_000
        assert len(sizes) > 1
        with service.query_df_stream(query) as frames:
            assert sum(len(frame) for frame in frames) == 400_000
        with service.query_arrow_stream(query) as tables:
            assert sum(part.num_rows for part in tables) == 400_000

    @pytest.mark.parametrize("packed", ["gzip", "deflate", "lz4", "zstd"])
    def test_answers_are_packed_as_the_client_wishes(self, engine: EmbeddedClickHouse, packed: str) -> None:
        fields = {"query": "SELECT number FROM numbers(300000)", "enable_http_compression": "1"}
        status, headers, body = ask(engine.target, fields=fields, Accept_Encoding=packed)
        assert (status, headers["content-encoding"]) == (200, packed)
        assert unpack(body, packed) == b"".join(b"%d\n" % n for n in range(300_000))
        assert len(body) < 1_500_000

    def test_an_answer_is_plain_unless_packing_is_asked_for(self, engine: EmbeddedClickHouse) -> None:
        _, headers, body = ask(engine.target, fields={"query": "SELECT 1"}, Accept_Encoding="gzip, zstd")
        assert "content-encoding" not in headers
        assert body == b"1\n"

    @pytest.mark.parametrize(
        ("fields", "headers", "body"),
        [
            ({"query": "SELECT 1 AS a FORMAT JSONEachRow"}, {}, b'{"a":1}\n'),
            ({"query": "SELECT 1 AS a", "default_format": "CSVWithNames"}, {}, b'"a"\n1\n'),
            ({"query": "SELECT 1 AS a"}, {"X_ClickHouse_Format": "JSONCompactEachRow"}, b"[1]\n"),
            ({"query": "SELECT 1 AS a FORMAT TSV", "default_format": "JSON"}, {}, b"1\n"),
            ({"query": "SHOW DATABASES LIKE 'system'", "default_format": "JSONEachRow"}, {}, b'{"name":"system"}\n'),
            ({"query": "SELECT max_block_size FROM (SELECT getSetting('max_block_size') AS max_block_size)",
              "max_block_size": "1234"}, {}, b"1234\n"),
            ({"query": "SELECT currentDatabase()", "database": "system"}, {}, b"system\n"),
            ({"query": "SELECT {a:UInt8} + 1", "param_a": "4"}, {}, b"5\n"),
            ({"query": "SELECT 1 WHERE 0"}, {}, b""),
        ],
    )  # fmt: skip
    def test_format_database_settings_and_parameters_are_understood(
        self, engine: EmbeddedClickHouse, fields: dict[str, str], headers: dict[str, str], body: bytes
    ) -> None:
        assert ask(engine.target, fields=fields, **headers)[::2] == (200, body)

    def test_answers_carry_what_clients_look_for(self, engine: EmbeddedClickHouse) -> None:
        _, headers, _ = ask(engine.target, fields={"query": "SELECT 1 FORMAT JSON", "query_id": "my-query:1"})
        assert headers["x-clickhouse-query-id"] == "my-query:1"
        assert headers["x-clickhouse-format"] == "JSON"
        assert headers["x-clickhouse-timezone"] == "UTC"
        assert headers["content-type"].startswith("application/json")
        assert {"read_rows", "written_rows", "elapsed_ns"} <= set(json.loads(headers["x-clickhouse-summary"]))

    @pytest.mark.parametrize("path", ["/ping", "/replicas_status"])
    def test_ping_needs_no_account(self, engine: EmbeddedClickHouse, path: str) -> None:
        assert ask(engine.target, "GET", path=path, Authorization="")[::2] == (200, b"Ok.\n")

    def test_the_body_may_hold_the_statement_or_its_rest(self, engine: EmbeddedClickHouse) -> None:
        assert ask(engine.target, body=b"SELECT 1")[2] == b"1\n"
        assert ask(engine.target, fields={"query": "SELECT"}, body=b"2")[2] == b"2\n"
        form = {"Content_Type": "application/x-www-form-urlencoded"}
        assert ask(engine.target, body=b"SELECT 3", **form)[2] == b"3\n"
        assert ask(engine.target, body=b"query=SELECT%204", **form)[2] == b"4\n"
        assert ask(engine.target)[2] == b"Ok.\n"
        assert ask(engine.target, "HEAD", fields={"query": "SELECT 1"})[::2] == (200, b"")


class TestRefusals:
    @pytest.mark.parametrize(
        ("sql", "status", "code"),
        [
            ("SELECT nosuch", 404, 47),
            ("SELECT * FROM nosuch", 404, 60),
            ("SELEC 1", 400, 62),
            ("SELECT 1; SELECT 2", 400, 62),
            ("CREATE DATABASE one ENGINE = Atomic; DROP DATABASE one", 400, 62),
            ("SELECT throwIf(1)", 500, 395),
            ("SELECT 1 FORMAT NoSuch", 404, 73),
            ("INSERT INTO nosuch.nosuch FORMAT CSV\n1", 404, 81),
            (
                "SELECT sleepEachRow(1) FROM numbers(9) SETTINGS max_execution_time = 0.1, max_block_size = 1",
                408,
                159,
            ),
        ],
    )
    def test_a_refusal_has_its_code_and_status(
        self, engine: EmbeddedClickHouse, sql: str, status: int, code: int
    ) -> None:
        got, headers, body = ask(engine.target, body=sql.encode())
        assert (got, headers["x-clickhouse-exception-code"]) == (status, str(code)), body
        assert body.startswith(b"Code: %d. DB::Exception: " % code)

    @pytest.mark.parametrize(
        ("fields", "code"),
        [({"nosuch": "1"}, 115), ({"config-file": "x"}, 115), ({"database": "nosuch"}, 81), ({"max_threads": "x"}, 27),
         ({"default_format": "No Such"}, 73), ({"compress": "1"}, 48)],
    )  # fmt: skip
    def test_a_wrong_field_is_named(
        self, engine: EmbeddedClickHouse, fields: dict[str, str], code: int
    ) -> None:
        _, headers, body = ask(engine.target, fields={"query": "SELECT 1", **fields})
        assert headers["x-clickhouse-exception-code"] == str(code), body

    @pytest.mark.parametrize(
        "headers",
        [basic("service", "wrong"), basic("reader", ""), basic("", ""), {"Authorization": "Basic ???"}, {},
         {"Authorization": "Bearer x"}, {"X-ClickHouse-User": "service", "X-ClickHouse-Key": "wrong"}],
    )  # fmt: skip
    def test_a_wrong_secret_is_refused(self, engine: EmbeddedClickHouse, headers: dict[str, str]) -> None:
        status, said, _ = ask(engine.target, body=b"SELECT 1", **{"Authorization": "", **headers})
        assert (status, said["x-clickhouse-exception-code"]) == (401, "516")

    def test_an_account_may_be_named_in_each_of_the_three_ways(self, engine: EmbeddedClickHouse) -> None:
        user, key = engine.target.service_user, engine.target.service_password
        assert ask(engine.target, body=b"SELECT 1")[0] == 200
        keyed = {"X_ClickHouse_User": user, "X_ClickHouse_Key": key}
        assert ask(engine.target, body=b"SELECT 1", Authorization="", **keyed)[0] == 200
        fields = {"user": user, "password": key}
        assert ask(engine.target, body=b"SELECT 1", fields=fields, Authorization="")[0] == 200

    def test_a_get_changes_nothing(self, engine: EmbeddedClickHouse) -> None:
        for sql in ["CREATE DATABASE by_get", "SYSTEM FLUSH LOGS"]:
            assert ask(engine.target, "GET", fields={"query": sql})[1]["x-clickhouse-exception-code"] == "164"

    def test_an_error_in_the_middle_of_a_stream_cuts_it_off(
        self, engine: EmbeddedClickHouse, service: Client
    ) -> None:
        sql = "SELECT throwIf(number = 5000000), 'some text' FROM numbers(10000000) SETTINGS max_threads = 1"
        with pytest.raises(http.client.IncompleteRead):
            ask(engine.target, body=f"{sql} FORMAT TSV".encode())
        with pytest.raises(ClickHouseError), service.query_row_block_stream(sql) as blocks:
            for _ in blocks:
                pass
        # Asked to wait for the end, the engine can still tell what happened.
        fields = {"wait_end_of_query": "1"}
        assert ask(engine.target, fields=fields, body=sql.encode())[1]["x-clickhouse-exception-code"] == "395"

    def test_bodies_are_bounded_before_and_after_they_are_unpacked(self, engine: EmbeddedClickHouse) -> None:
        status, headers, _ = ask(engine.target, body=b"SELECT 1 --" + b"x" * 3_000_000, reader=True)
        assert (status, headers["x-clickhouse-exception-code"]) == (413, "131")
        bomb = pack(b" " * 50_000_000, "zstd")
        status, headers, _ = ask(engine.target, body=bomb, reader=True, Content_Encoding="zstd")
        assert (status, headers["x-clickhouse-exception-code"]) == (413, "131")

    @settings(max_examples=150)
    @given(
        method=st.sampled_from(["GET", "POST", "HEAD"]),
        query=st.binary(max_size=60) | st.text(max_size=40).map(str.encode) | SQLISH,
        body=st.binary(max_size=200) | SQLISH,
        headers=st.dictionaries(
            st.sampled_from(["Content-Encoding", "Content-Type", "X-ClickHouse-Format", "Accept-Encoding"]),
            st.sampled_from(["gzip", "lz4", "zstd", "deflate", "br", "multipart/form-data; boundary=x", "Native",
                             "multipart/form-data", "application/x-www-form-urlencoded", "\xff", "a" * 500]),
        ),
        reader=st.booleans(),
    )  # fmt: skip
    def test_garbage_is_refused_with_a_code(
        self,
        engine: EmbeddedClickHouse,
        method: str,
        query: bytes,
        body: bytes,
        headers: dict[str, str],
        reader: bool,
    ) -> None:
        target = engine.target
        who = (
            (target.reader_user, target.reader_password)
            if reader
            else (target.service_user, target.service_password)
        )
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=60)
        url = f"/?query={quote(query)}&" + quote(query, safe="=&")
        connection.request(method, url, body if method == "POST" else b"", {**headers, **basic(*who)})
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        code = answer.getheader("x-clickhouse-exception-code")
        assert answer.status == 200 or (code is not None and code != "1002"), said


def pack(content: bytes, packed: str) -> bytes:
    if packed == "deflate":
        return zlib.compress(content)
    return gzip.compress(content) if packed == "gzip" else frames(content, packed)


def frames(content: bytes, packed: str) -> bytes:
    """Pack in two frames, one after the other, as the stock client does with two blocks."""
    found = []
    for part in (content[: len(content) // 2], content[len(content) // 2 :]):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, packed) as stream:
            stream.write(part)
        found.append(sink.getvalue().to_pybytes())
    return b"".join(found)


def unpack(content: bytes, packed: str) -> bytes:
    if packed == "deflate":
        return zlib.decompress(content)
    with pa.CompressedInputStream(pa.BufferReader(content), packed) as stream:
        return bytes(stream.read())
