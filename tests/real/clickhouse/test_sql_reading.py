"""What billing teams ask works, and gives what the engine itself gives; limits hold; the dialect is ClickHouse's."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import socket
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet
import pytest

from api.routes.sql import SqlEndpoint
from domain.errors import EngineStartError
from ops.clickhouse import as_reader
from ops.sql_allowed import FUNCTIONS, FUNCTIONS_ANY_CASE, HIGHER_ORDER
from ops.sql_errors import SqlRefusal
from ops.sql_tree import Scope, Walk
from ops.sql_upstream import Locate
from tests.real.clickhouse.sql_world import SqlWorld

QUERIES = [
    "SELECT count(), sum(amount), min(day), max(day) FROM bi.entries",
    (
        "SELECT account, currency, sum(amount) AS total FROM entries GROUP BY account, currency ORDER BY "
        "account, currency"
    ),
    (
        "SELECT toStartOfMonth(day) AS month, currency, sum(revenue) FROM bi.daily GROUP BY month, currency "
        "ORDER BY ALL"
    ),
    (
        "SELECT day, sum(revenue) OVER (PARTITION BY currency ORDER BY day ROWS BETWEEN 6 PRECEDING AND "
        "CURRENT ROW) AS w FROM daily ORDER BY currency, day"
    ),
    (
        "SELECT account, position, row_number() OVER w AS n FROM entries WINDOW w AS (PARTITION BY account "
        "ORDER BY position) ORDER BY account, n LIMIT 50"
    ),
    (
        "SELECT position, lagInFrame(amount) OVER (ORDER BY position) AS before FROM entries ORDER BY position "
        "LIMIT 20"
    ),
    (
        "SELECT a.account, b.revenue FROM bi.entries AS a JOIN bi.daily AS b ON a.day = b.day AND a.currency = "
        "b.currency ORDER BY a.position LIMIT 30"
    ),
    (
        "SELECT e.account, d.day FROM entries e LEFT JOIN daily d USING (day, currency) ORDER BY e.position, "
        "d.day LIMIT 30"
    ),
    "SELECT count() FROM entries AS a ANTI JOIN daily AS b ON a.day = b.day",
    "SELECT count() FROM (SELECT * FROM entries) AS x CROSS JOIN numbers(3) AS n",
    (
        "WITH totals AS (SELECT account, sum(amount) AS s FROM entries GROUP BY account) SELECT account, "
        "round(s / (SELECT sum(s) FROM totals), 6) AS share FROM totals ORDER BY account"
    ),
    (
        "WITH a AS (SELECT day FROM daily), b AS (SELECT day FROM a WHERE day > '2026-02-01') SELECT count() "
        "FROM b"
    ),
    "WITH t AS (SELECT DISTINCT account FROM entries) SELECT count() FROM entries WHERE account IN t",
    (
        "WITH entries AS (SELECT * FROM bi.entries WHERE currency = 'EUR') SELECT count(), entries.currency "
        "FROM entries GROUP BY entries.currency"
    ),
    "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 10) SELECT sum(n) FROM r",
    "WITH 100 AS limit_position SELECT count() FROM entries WHERE position < limit_position",
    "WITH (SELECT max(position) FROM entries) AS last SELECT last",
    "WITH x -> x * 2 AS twice SELECT arrayMap(y -> y * 2, [1, 2, 3])",
    "SELECT tag, count() FROM entries ARRAY JOIN tags AS tag GROUP BY tag ORDER BY tag",
    "SELECT arrayFilter(t -> t != 'x', tags) AS own, count() FROM entries GROUP BY own ORDER BY own",
    "SELECT arraySort(groupUniqArray(account)) FROM entries",
    "SELECT arrayJoin(tags) AS t, uniqExact(position) FROM entries GROUP BY t ORDER BY t",
    "SELECT quantileExact(0.9)(amount), quantilesExact(0.1, 0.5)(position), median(position) FROM entries",
    (
        "SELECT sumIf(amount, currency = 'EUR'), countIf(day > '2026-02-01'), argMax(account, position) FROM "
        "entries"
    ),
    (
        "SELECT account, groupArray(3)(position) FROM (SELECT * FROM entries ORDER BY position) GROUP BY "
        "account ORDER BY 1"
    ),
    (
        "SELECT account, currency, sum(amount) FROM entries GROUP BY GROUPING SETS ((account), (currency)) "
        "ORDER BY ALL"
    ),
    "SELECT currency, sum(revenue) FROM daily GROUP BY currency WITH TOTALS ORDER BY currency",
    "SELECT toDate(at) AS d, toHour(at) AS h, count() FROM entries GROUP BY d, h ORDER BY d, h LIMIT 40",
    (
        "SELECT at, addDays(day, 3), dateDiff('day', day, toDate('2026-12-31')), formatDateTime(at, '%Y-%m') "
        "FROM entries ORDER BY position LIMIT 5"
    ),
    (
        "SELECT day + INTERVAL 1 MONTH, toYYYYMM(day), date_trunc('week', day) FROM daily ORDER BY day, "
        "currency LIMIT 5"
    ),
    (
        "SELECT CAST(amount AS Decimal(20, 2)), amount::Float64, toString(amount), toDecimal64(1.5, 4) FROM "
        "entries ORDER BY position LIMIT 5"
    ),
    (
        "SELECT account, CASE WHEN amount > 200 THEN 'big' WHEN amount > 100 THEN 'mid' ELSE 'small' END AS "
        "size, count() FROM entries GROUP BY account, size ORDER BY account, size"
    ),
    "SELECT * EXCEPT (note, tags) REPLACE (lower(account) AS account) FROM entries ORDER BY position LIMIT 3",
    "SELECT COLUMNS('^(day|currency)$') FROM daily ORDER BY day, currency LIMIT 3",
    "SELECT round(sum(COLUMNS('revenue') APPLY(toFloat64)), 3) FROM daily",
    "SELECT DISTINCT currency FROM daily ORDER BY currency",
    "SELECT day, currency FROM daily ORDER BY day, currency LIMIT 1 BY currency",
    (
        "SELECT day, count() AS n FROM entries GROUP BY day ORDER BY day WITH FILL FROM toDate('2025-12-30') "
        "TO toDate('2026-01-05') STEP 1"
    ),
    "SELECT count() FROM (SELECT currency FROM daily UNION DISTINCT SELECT account FROM entries)",
    "SELECT account FROM (SELECT account FROM entries EXCEPT SELECT 'acc-1') ORDER BY account LIMIT 3",
    (
        "SELECT account FROM entries WHERE account LIKE 'acc-%' AND NOT (account IN ('acc-1', 'acc-2')) ORDER "
        "BY position LIMIT 5"
    ),
    "SELECT count() FROM entries WHERE day BETWEEN '2026-01-10' AND '2026-01-20' AND currency = 'USD'",
    (
        "SELECT count() FROM entries WHERE (account, currency) IN (SELECT account, currency FROM entries WHERE "
        "position < 10)"
    ),
    "SELECT map('a', 1, 'b', 2) AS m, m['a'], mapKeys(m), tuple(1, 'x').2, [1, 2, 3][2]",
    "SELECT JSONExtractString('{\"a\": \"b\"}', 'a'), JSONExtract('{\"a\": 1.5}', 'a', 'Decimal(10, 2)')",
    "SELECT number, toString(number) FROM numbers(5) WHERE number % 2 = 0",
    "SELECT * FROM values('a UInt8, b String', (1, 'x'), (2, 'y')) ORDER BY a",
    "SELECT round(simpleLinearRegression(toFloat64(position), toFloat64(amount)).1, 6) FROM entries",
    (
        "SELECT currency, round(stddevPop(toFloat64(amount)), 6), round(corr(position, toFloat64(amount)), 6) "
        "FROM entries GROUP BY 1 ORDER BY 1"
    ),
    (
        "SELECT if(isNull(nullIf(account, 'acc-1')), 'none', account) AS a, coalesce(NULL, 1) FROM entries "
        "GROUP BY a ORDER BY a"
    ),
    "-- revenue\nSELECT /* of all */ sum(revenue) FROM daily # indeed\n;",
]

FORMATS = [
    "TabSeparated", "TSVWithNamesAndTypes", "CSV", "CSVWithNames", "JSONEachRow", "JSONCompactEachRow",
    "JSONCompactEachRowWithNamesAndTypes", "RowBinary", "RowBinaryWithNamesAndTypes", "Native", "Markdown",
    "PrettyCompact", "Vertical", "Values", "JSONColumns", "JSONCompactColumns", "Null",
]  # fmt: skip


def _only_alpha(sql: str) -> str:
    return sql.replace("bi.", "only_alpha.")


@pytest.mark.parametrize("sql", QUERIES, ids=lambda sql: sql[:60])
def test_a_query_gives_what_the_engine_gives(sql_world: SqlWorld, sql: str) -> None:
    own = sql_world.ask(sql, "alpha", fields={"default_format": "JSONCompactEachRowWithNamesAndTypes"})
    assert own.status_code == 200, own.text
    form = "JSONCompactEachRowWithNamesAndTypes"
    assert own.content == sql_world.direct(_only_alpha(sql), form, database="only_alpha")
    everything = sql_world.ask(sql, "auditor", fields={"default_format": form})
    assert everything.content == sql_world.direct(sql, form, database="bi")


@pytest.mark.parametrize("sql", QUERIES, ids=lambda sql: sql[:60])
def test_an_unknown_key_is_refused_wherever_it_stands_in_a_real_tree(sql_world: SqlWorld, sql: str) -> None:
    told = sql_world.direct(
        "SELECT parseQueryToJSON({q:String})", "TSVRaw", param_q=_escaped(sql.rstrip("; \n"))
    )
    count = len(list(_objects(json.loads(told))))
    assert count > 2
    for place in range(count):
        tree = json.loads(told)
        list(_objects(tree))[place]["unknown_key"] = True
        with pytest.raises(SqlRefusal):
            Walk(Scope("alpha"), {}, frozenset({"file"})).select(tree)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _objects(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _objects(value)


@pytest.mark.parametrize("form", FORMATS)
def test_a_format_is_the_engine_s(sql_world: SqlWorld, form: str) -> None:
    sql = "SELECT account, amount, tags, at FROM bi.entries ORDER BY position LIMIT 100"
    direct = sql_world.direct(_only_alpha(sql), form)
    assert sql_world.ask(sql, fields={"default_format": form}).content == direct
    assert sql_world.ask(sql, headers={"X-ClickHouse-Format": form}).content == direct
    assert sql_world.ask(f"{sql} FORMAT {form.lower()}").content == direct


def test_arrow_and_parquet_are_read_by_their_own_libraries(sql_world: SqlWorld) -> None:
    sql = "SELECT account, position FROM entries ORDER BY position LIMIT 10"
    stream = pa.ipc.open_stream(sql_world.ask(f"{sql} FORMAT ArrowStream").content).read_all()
    parquet = pyarrow.parquet.read_table(io.BytesIO(sql_world.ask(f"{sql} FORMAT Parquet").content))
    assert stream.column("position").to_pylist() == parquet.column("position").to_pylist()
    assert stream.num_rows == 10


def test_parameters_travel_beside_the_statement(sql_world: SqlWorld) -> None:
    sql = "SELECT {a:String} a, {b:Array(String)} b, {c:Decimal(10, 2)} c, {d:DateTime} d FORMAT JSONEachRow"
    fields = {
        "param_a": "it's \\\\ a {x}",
        "param_b": "['p','q\\'']",
        "param_c": "1.5",
        "param_d": "2026-01-02 03:04:05",
    }
    answer = sql_world.ask(sql, fields=fields).json()
    assert answer == {"a": "it's \\ a {x}", "b": ["p", "q'"], "c": 1.5, "d": "2026-01-02 03:04:05"}
    long = "x" * 30_000
    form = {"query": (None, "SELECT length({s:String})"), "param_s": (None, long)}
    assert sql_world.ask(None, files=form).text == "30000\n"


def test_a_statement_may_come_in_the_url_in_the_body_or_in_a_form(sql_world: SqlWorld) -> None:
    sql = "SELECT count() FROM entries"
    assert sql_world.ask(None, fields={"query": sql}, method="GET").text == "2000\n"
    assert sql_world.ask("FROM entries", fields={"query": "SELECT count()"}).text == "2000\n"
    assert sql_world.ask(None, data={"query": sql}).text == "2000\n"
    assert sql_world.ask(None, files={"query": (None, sql)}).text == "2000\n"


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("lz4", lambda data: pa.compress(data, "lz4", asbytes=True)),
        ("zstd", lambda data: pa.compress(data, "zstd", asbytes=True)),
    ],
)
def test_a_packed_request_is_read(sql_world: SqlWorld, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    body = pack(b"SELECT count() FROM entries")
    answer = sql_world.ask(None, content=body, headers={"Content-Encoding": encoding})
    assert answer.text == "2000\n"


def test_an_answer_is_packed_for_who_asks_so(sql_world: SqlWorld) -> None:
    sql = "SELECT * FROM entries ORDER BY position FORMAT JSONEachRow"
    plain = sql_world.ask(sql)
    packed = sql_world.ask(sql, fields={"enable_http_compression": "1"}, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content


@pytest.mark.parametrize("way", ["bearer", "basic", "key", "url"])
def test_a_token_is_taken_wherever_clients_put_a_password(sql_world: SqlWorld, way: str) -> None:
    token = sql_world.tokens["alpha"]
    more = {
        "bearer": {"headers": {"Authorization": f"Bearer {token}"}},
        "basic": {"auth": ("anybody", token)},
        "key": {"headers": {"X-ClickHouse-User": "default", "X-ClickHouse-Key": token}},
        "url": {"fields": {"user": "default", "password": token}},
    }[way]
    assert sql_world.ask("SELECT uniqExact(tenant) FROM entries", None, **more).text == "1\n"


def test_a_health_check_needs_no_token(sql_world: SqlWorld) -> None:
    for path in ("ping", "replicas_status", ""):
        answer = httpx.get(sql_world.url + path)
        assert (answer.status_code, answer.text) == (200, "Ok.\n")
    assert httpx.get(sql_world.url + "metrics").status_code == 404
    assert httpx.request("DELETE", sql_world.url).status_code == 405


def test_errors_of_the_engine_keep_their_codes(sql_world: SqlWorld) -> None:
    expected = {
        "SELECT nope FROM entries": (47, "UNKNOWN_IDENTIFIER"),
        "SELECT * FROM nope": (60, "UNKNOWN_TABLE"),
        "SELECT sum(account) FROM entries": (43, "ILLEGAL_TYPE_OF_ARGUMENT"),
        "SELECT {x:UInt8}": (456, "UNKNOWN_QUERY_PARAMETER"),
        "SELECT toUInt8('x')": (6, "CANNOT_PARSE_TEXT"),
        "SELECT 1 +": (62, "SYNTAX_ERROR"),
    }
    for sql, (code, name) in expected.items():
        answer = sql_world.ask(sql)
        assert answer.status_code >= 400
        assert answer.headers["x-clickhouse-exception-code"] == str(code), answer.text
        assert answer.text.startswith(f"Code: {code}. DB::Exception: ")
        assert answer.text.rstrip().endswith(f"({name})")
        assert "scoped" not in answer.text
        assert "parseQueryToJSON" not in answer.text


def test_a_setting_is_clamped_and_never_raised(sql_world: SqlWorld) -> None:
    asked = sql_world.ask("SELECT number FROM numbers(100)", fields={"max_result_rows": "10"})
    assert asked.headers["x-clickhouse-exception-code"] == "396"
    raised = sql_world.ask("SELECT number FROM numbers(2000000) SETTINGS max_result_rows = 0 FORMAT JSON")
    assert raised.headers["x-clickhouse-exception-code"] == "396"
    shown = sql_world.ask("SELECT name FROM system.settings WHERE readonly = 0 AND name = 'max_threads'")
    assert shown.text == "max_threads\n"


def test_the_query_id_of_the_client_comes_back(sql_world: SqlWorld) -> None:
    answer = sql_world.ask("SELECT 1", fields={"query_id": "report-7"})
    assert answer.headers["x-clickhouse-query-id"] == "report-7"
    assert sql_world.ask("SELECT 1", fields={"query_id": "a b\n"}).headers["x-clickhouse-query-id"] != "a b\n"


def test_native_blocks_of_many_rows_are_streamed(sql_world: SqlWorld) -> None:
    sql = "SELECT number, toString(number) FROM numbers(300000) FORMAT Native"
    with httpx.stream(
        "POST", sql_world.url, content=sql, headers={"X-ClickHouse-Key": sql_world.tokens["alpha"]}
    ) as answer:
        pieces = sum(1 for _ in answer.iter_raw())
    assert pieces > 5


def test_too_many_at_once_are_told_so(sql_world: SqlWorld) -> None:
    slow = "SELECT count() FROM entries AS a, entries AS b, entries AS c, numbers(1000) AS d"

    def ask(_: int) -> str:
        answer = httpx.post(
            sql_world.url, content=slow, headers={"X-ClickHouse-Key": sql_world.tokens["alpha"]}, timeout=60
        )
        return answer.headers["x-clickhouse-exception-code"]

    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(ask, n) for n in range(8)]
        time.sleep(0.5)
        # Half of the places are another tenant's all the same.
        assert sql_world.ask("SELECT 1", "beta").text == "1\n"
        codes = sorted(each.result() for each in waiting)
    assert codes.count("202") >= 4
    assert set(codes) <= {"202", "159", "158", "241"}


@pytest.fixture
def running(sql_world: SqlWorld) -> Callable[[], int]:
    def count() -> int:
        told = sql_world.direct(
            "SELECT count() FROM system.processes WHERE query LIKE '%numbers(97%' AND query NOT LIKE '%processes%'"
        )
        return int(told)

    return count


def test_who_leaves_takes_the_statement_along(sql_world: SqlWorld, running: Callable[[], int]) -> None:
    slow = "SELECT count() FROM entries AS a, entries AS b, numbers(97000) AS c"
    headers = {"X-ClickHouse-Key": sql_world.tokens["alpha"]}

    def leave() -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(sql_world.url, content=slow, headers=headers, timeout=httpx.Timeout(0.8, connect=5))

    leaving = threading.Thread(target=leave)
    leaving.start()
    leaving.join()
    until = time.monotonic() + 3
    while running() and time.monotonic() < until:
        time.sleep(0.05)
    assert running() == 0


def test_without_a_clickhouse_the_answer_says_so(sql_world: SqlWorld) -> None:
    @asynccontextmanager
    async def nowhere() -> AsyncIterator[Sequence[Locate]]:
        raise EngineStartError
        yield ()

    async def ask() -> httpx.Response:
        endpoint = SqlEndpoint(sql_world.settings, sql_world.state.tokens, nowhere)
        headers = {"X-ClickHouse-Key": sql_world.tokens["alpha"]}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(endpoint), base_url="http://sql"
        ) as client:
            return await client.post("/", content="SELECT 1", headers=headers)

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.headers["x-clickhouse-exception-code"]) == (503, "210")
    assert answer.text.startswith("Code: 210. DB::Exception: ")


def test_a_clickhouse_that_has_gone_is_told_as_away(sql_world: SqlWorld) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    gone = (f"http://127.0.0.1:{port}", "x", "y")

    async def ask() -> httpx.Response:
        places = nullcontext((lambda: gone, lambda: gone))
        endpoint = SqlEndpoint(sql_world.settings, sql_world.state.tokens, lambda: places)
        headers = {"X-ClickHouse-Key": sql_world.tokens["alpha"]}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(endpoint), base_url="http://sql"
        ) as client:
            answer = await client.post("/", content="SELECT 1", headers=headers)
        await endpoint.close()
        return answer

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.headers["x-clickhouse-exception-code"]) == (503, "210")
    assert str(port) not in answer.text


def test_the_lists_hold_no_table_function_that_could_stand_right_of_in(sql_world: SqlWorld) -> None:
    told = sql_world.direct("SELECT name FROM system.table_functions").decode().split()
    assert {name for name in told if name in FUNCTIONS or name.lower() in FUNCTIONS_ANY_CASE} == {"format"}


def test_only_the_listed_functions_take_a_bare_name_for_a_function(sql_world: SqlWorld) -> None:
    for name in sorted(FUNCTIONS):
        for arguments in ("toString, [1]", "toString, map(1, 2)"):
            if name.lower() in HIGHER_ORDER:
                continue
            answer = _direct_status(sql_world, f"SELECT {name}({arguments})")
            assert answer != 200, f"{name}({arguments})"


@pytest.mark.parametrize(
    "sql", ["SELECT arrayMap(file, ['@'])", "WITH file AS upper SELECT upper('@')", "SELECT file('@')"]
)
def test_the_reader_s_account_takes_no_name_for_a_function_that_reads_files(
    sql_world: SqlWorld, sql: str
) -> None:
    told = sql_world.direct("SELECT data_paths[1] FROM system.tables WHERE name = 'secrets'").decode().strip()
    kept = next(Path(told).glob("all*/columns.txt"))
    url, user, password = as_reader(sql_world.engine.target)
    answer = httpx.post(
        url,
        content=sql.replace("@", str(kept)),
        headers={"X-ClickHouse-User": user, "X-ClickHouse-Key": password},
    )
    assert answer.headers["x-clickhouse-exception-code"] == "497"


def test_only_in_takes_a_table_for_an_argument(sql_world: SqlWorld) -> None:
    for name in sorted(FUNCTIONS - {"in", "notIn", "globalIn", "globalNotIn"}):
        for arguments in ("bi.entries", "1, bi.entries"):
            assert _direct_status(sql_world, f"SELECT {name}({arguments})") != 200, f"{name}({arguments})"


def _direct_status(world: SqlWorld, sql: str) -> int:
    try:
        world.direct(f"SELECT * FROM ({sql}) FORMAT Null")
    except AssertionError:
        return 400
    return 200


def test_what_was_asked_is_counted_and_written_down_without_values(
    sql_world: SqlWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [
        sql_world.ask(f"SELECT count() FROM entries WHERE account = '{account}'")
        for account in ("very-private-account", "another-private-account")
    ]
    asked = [answer.headers["x-clickhouse-query-id"] for answer in answers]
    written, lines, until = "", [], time.monotonic() + 5
    while len(lines) < 2 and time.monotonic() < until:
        written += capsys.readouterr().out
        # Lines are written after the answer is: one of the test before this one may come late.
        lines = [line for line in written.splitlines() if any(one in line for one in asked)]
    assert len(lines) == 2
    assert all("subject=ann" in line for line in lines)
    assert "private-account" not in written
    assert sql_world.tokens["alpha"] not in written
    assert len({line.partition("shape=")[2][:16] for line in lines}) == 1
