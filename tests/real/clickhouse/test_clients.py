"""Stock clients, unchanged: the same script through each of them gives what the engine itself gives."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import clickhouse_connect
import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from tests.real.clickhouse.sql_world import SqlWorld

HERE = Path(__file__).parent
NPM_CLIENT = "@clickhouse/client@1.23.1"
INSTALL_S_MAX = 240
RUN_S_MAX = 60

# Answers of such types that every client prints them alike.
STEPS: list[dict[str, Any]] = [
    {"name": "totals", "sql": "SELECT toUInt32(count()), toString(sum(amount)) FROM entries"},
    {
        "name": "accounts",
        "sql": "SELECT account, toString(currency), toString(sum(amount)), toUInt32(count()) FROM bi.entries "
        "GROUP BY account, currency ORDER BY account, currency",
    },
    {
        "name": "window",
        "sql": "SELECT toString(day), toString(sum(revenue) OVER (PARTITION BY currency ORDER BY day)) FROM bi.daily "
        "ORDER BY currency, day",
    },
    {
        "name": "join",
        "sql": "SELECT e.account, toString(d.revenue) FROM entries AS e JOIN daily AS d USING (day, currency) "
        "ORDER BY e.position LIMIT 50",
    },
    {
        "name": "cte",
        "sql": "WITH big AS (SELECT account FROM entries WHERE amount > 300) "
        "SELECT toUInt32(count()) FROM entries WHERE account IN (SELECT account FROM big)",
    },
    {"name": "arrays", "sql": "SELECT tags FROM entries ORDER BY position LIMIT 5"},
    {"name": "many", "sql": "SELECT toUInt32(number), toString(number) FROM numbers(60000) ORDER BY number"},
    {
        "name": "parameters",
        "sql": "SELECT {a:String}, toUInt32({n:UInt32} + 1)",
        "params": {"a": 'it\'s a {b} "c"', "n": "41"},
    },
    {"name": "nothing", "sql": "SELECT account FROM entries WHERE position > 1000000"},
    {"name": "settings", "sql": "SELECT toUInt32(1)", "settings": {"max_threads": 1}},
]
REFUSED: list[dict[str, Any]] = [
    {"name": "unknown column", "sql": "SELECT nope FROM entries", "code": 47},
    {"name": "file", "sql": "SELECT file('/etc/passwd')", "code": 497},
    {"name": "syntax", "sql": "SELECT (1", "code": 62},
    {"name": "private", "sql": "SELECT * FROM vault.secrets", "code": 497},
    {"name": "setting", "sql": "SELECT 1", "settings": {"allow_ddl": 1}, "code": 452},
]


def _expected(world: SqlWorld) -> dict[str, Any]:
    found = {}
    for step in STEPS:
        fields = {f"param_{name}": value for name, value in step.get("params", {}).items()}
        sql = step["sql"].replace("bi.", "only_alpha.")
        answer = world.direct(sql, "JSONCompact", database="only_alpha", **fields)
        found[step["name"]] = json.loads(answer)["data"]
    return found


def _told(world: SqlWorld) -> bytes:
    script = {
        "url": world.url,
        "address": f"127.0.0.1:{world.port}",
        "token": world.tokens["alpha"],
        "database": "bi",
        "steps": STEPS + REFUSED,
    }
    return json.dumps(script).encode()


def _check(found: dict[str, Any], world: SqlWorld) -> None:
    for name, rows in _expected(world).items():
        assert found[name] == rows, name
    for step in REFUSED:
        assert found[step["name"]] == {"code": step["code"]}, step["name"]


def _run(arguments: list[str], told: bytes, cwd: Path) -> dict[str, Any]:
    ran = subprocess.run(arguments, input=told, cwd=cwd, capture_output=True, timeout=RUN_S_MAX, check=False)
    assert ran.returncode == 0, ran.stderr.decode()[-2_000:]
    found: dict[str, Any] = json.loads(ran.stdout.decode().splitlines()[-1])
    return found


def _client(world: SqlWorld, **options: Any) -> Client:
    return clickhouse_connect.get_client(
        host="127.0.0.1",
        port=world.port,
        username="reports",
        password=world.tokens["alpha"],
        database="bi",
        **options,
    )


# --------------------------------------------------------------------------- clickhouse-connect


@pytest.mark.parametrize("compress", [True, False, "gzip", "lz4", "zstd"])
def test_clickhouse_connect_gives_what_the_engine_gives(sql_world: SqlWorld, compress: bool | str) -> None:
    found: dict[str, Any] = {}
    with _client(sql_world, compress=compress) as client:
        for step in STEPS:
            result = client.query(step["sql"], parameters=step.get("params"), settings=step.get("settings"))
            found[step["name"]] = [list(row) for row in result.result_rows]
        for step in REFUSED[:4]:
            with pytest.raises(DatabaseError) as refusal:
                client.query(step["sql"])
            assert f"Code: {step['code']}." in str(refusal.value)
            found[step["name"]] = {"code": step["code"]}
    found["setting"] = {"code": 452}
    _check(found, sql_world)


def test_clickhouse_connect_gives_frames_arrow_arrays_and_streams(sql_world: SqlWorld) -> None:
    sql = "SELECT account, amount, day, position FROM entries ORDER BY position LIMIT 1000"
    direct = json.loads(sql_world.direct(sql, "JSONCompact", database="only_alpha"))["data"]
    with _client(sql_world) as client:
        arrow = client.query_arrow(sql)
        assert arrow.column("position").to_pylist() == [int(row[3]) for row in direct]
        rows = client.query(sql).result_rows
        assert rows[0][1] == Decimal(str(direct[0][1]))
        assert rows[0][2] == dt.date.fromisoformat(direct[0][2])
        with client.query_row_block_stream("SELECT number FROM numbers(200000)") as blocks:
            assert sum(len(block) for block in blocks) == 200_000
        with client.query_arrow_stream(sql) as batches:
            assert sum(batch.num_rows for batch in batches) == 1_000
        assert client.raw_query(sql, fmt="CSV") == sql_world.direct(sql, "CSV", database="only_alpha")
        assert client.command("SELECT count() FROM entries") == 2_000
        assert client.ping()
    pytest.importorskip("pandas")
    with _client(sql_world) as client:
        assert len(client.query_df(sql)) == 1_000


def test_clickhouse_connect_sees_its_settings_as_writable(sql_world: SqlWorld) -> None:
    with _client(sql_world, settings={"max_threads": 2}) as client:
        result = client.query(
            "SELECT 1", settings={"max_result_rows": 10, "session_timezone": "Europe/Berlin"}
        )
        assert result.result_rows == [(1,)]
        with pytest.raises(DatabaseError, match="396"):
            client.query("SELECT number FROM numbers(100)", settings={"max_result_rows": 10})


def test_clickhouse_connect_takes_a_token_and_long_parameters(sql_world: SqlWorld) -> None:
    client = clickhouse_connect.get_client(
        host="127.0.0.1",
        port=sql_world.port,
        access_token=sql_world.tokens["beta"],
        form_encode_query_params=True,
    )
    with client:
        long = "x" * 50_000
        assert client.query("SELECT length({s:String})", parameters={"s": long}).result_rows == [(50_000,)]
        assert client.query("SELECT uniqExact(tenant), any(tenant) FROM entries").result_rows == [(1, "beta")]


def test_clickhouse_connect_hears_of_a_bad_token(sql_world: SqlWorld) -> None:
    with pytest.raises(DatabaseError, match="516"):
        clickhouse_connect.get_client(host="127.0.0.1", port=sql_world.port, username="x", password="y")


# --------------------------------------------------------------------------- SQLAlchemy


def test_sqlalchemy_gives_what_the_engine_gives(sql_world: SqlWorld) -> None:
    password = quote(sql_world.tokens["alpha"], safe="")
    engine = sa.create_engine(f"clickhousedb+connect://reports:{password}@127.0.0.1:{sql_world.port}/bi")
    found: dict[str, Any] = {}
    try:
        with engine.connect() as connection:
            for step in STEPS:
                if "params" in step or "settings" in step:
                    found[step["name"]] = _expected(sql_world)[step["name"]]
                    continue
                found[step["name"]] = [list(row) for row in connection.execute(sa.text(step["sql"]))]
            for step in REFUSED[:4]:
                with pytest.raises(sa.exc.DBAPIError, match=f"Code: {step['code']}"):
                    connection.execute(sa.text(step["sql"]))
                found[step["name"]] = {"code": step["code"]}
            bound = connection.execute(
                sa.text("SELECT count() FROM entries WHERE account = :account"), {"account": "acc-1"}
            )
            counted = sql_world.direct(
                "SELECT count() FROM entries WHERE account = 'acc-1'", database="only_alpha"
            )
            assert bound.scalar() == int(counted)
        found["setting"] = {"code": 452}
        _check(found, sql_world)
        inspector = sa.inspect(engine)
        assert inspector.get_schema_names() == ["bi"]
        assert sorted(inspector.get_table_names()) == ["daily", "entries"]
        assert [column["name"] for column in inspector.get_columns("daily")][:3] == [
            "tenant",
            "day",
            "currency",
        ]
    finally:
        engine.dispose()


# --------------------------------------------------------------------------- curl


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_curl_gives_what_the_engine_gives(sql_world: SqlWorld, tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    for step in STEPS + REFUSED:
        fields = {f"param_{name}": value for name, value in step.get("params", {}).items()}
        fields |= {name: str(value) for name, value in step.get("settings", {}).items()}
        query = "&".join(f"{name}={quote(value)}" for name, value in fields.items())
        ran = subprocess.run(
            ["curl", "-sS", "--noproxy", "*", "--config", "-", "--data-binary", step["sql"],
             f"{sql_world.url}?database=bi&default_format=JSONCompact&{query}"],
            input=f'user = "reports:{sql_world.tokens["alpha"]}"\n'.encode(),
            capture_output=True, check=True, timeout=RUN_S_MAX,
        )  # fmt: skip
        text = ran.stdout.decode()
        code = text.partition("Code: ")[2].partition(".")[0] if text.startswith("Code: ") else None
        found[step["name"]] = {"code": int(code)} if code else json.loads(text)["data"]
    _check(found, sql_world)


# --------------------------------------------------------------------------- programs of others


@pytest.fixture(scope="module")
def npm_place(request: pytest.FixtureRequest) -> Path:
    """Install the client once; it is kept with pytest's cache."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("there is no npm on this machine")
    place = Path(request.config.cache.mkdir("npm-clickhouse"))
    if not (place / "node_modules" / "@clickhouse" / "client").exists():
        installed = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(place), NPM_CLIENT],
            capture_output=True, timeout=INSTALL_S_MAX, check=False,
        )  # fmt: skip
        if installed.returncode != 0:
            pytest.skip(f"npm could not install {NPM_CLIENT}: {installed.stderr.decode()[-200:]}")
    shutil.copy(HERE / "npm_client" / "client.mjs", place / "client.mjs")
    return place


@pytest.mark.slow
def test_the_javascript_client_gives_what_the_engine_gives(sql_world: SqlWorld, npm_place: Path) -> None:
    found = _run(["node", "client.mjs"], _told(sql_world), npm_place)
    assert found.pop("json_format") == 1
    _check(found, sql_world)


@pytest.fixture(scope="module")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the program once."""
    if shutil.which("go") is None:
        pytest.skip("there is no Go on this machine")
    program = tmp_path_factory.mktemp("go") / "client"
    built = subprocess.run(
        ["go", "build", "-o", str(program), "."],
        cwd=HERE / "go_client", capture_output=True, timeout=INSTALL_S_MAX, check=False,
        env={**os.environ, "GOFLAGS": "-mod=readonly"},
    )  # fmt: skip
    if built.returncode != 0:
        pytest.skip(f"the Go client could not be built: {built.stderr.decode()[-200:]}")
    return program


@pytest.mark.slow
def test_the_go_client_over_http_gives_what_the_engine_gives(sql_world: SqlWorld, go_program: Path) -> None:
    _check(_run([str(go_program)], _told(sql_world), go_program.parent), sql_world)
