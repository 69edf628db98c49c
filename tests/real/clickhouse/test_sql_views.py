"""The documented views through the endpoint: every one of them is scoped, and every column can be asked for plainly."""

from __future__ import annotations

import asyncio
import re
from contextlib import nullcontext
from pathlib import Path

import httpx
import pytest

from api.routes.sql import SqlEndpoint
from domain.ledger import Caller
from ops.clickhouse import as_reader, as_service
from ops.engine.process import Target
from ops.settings import Settings
from ops.tokens import LocalIssuer, TokenGate
from tests.real.clickhouse.conftest import client_of
from tests.real.service import serving, settings_on

ANN = Caller("ann", "alpha", frozenset({"billing"}))


@pytest.fixture
def answers(migrated: Target, tmp_path: Path) -> object:
    settings = Settings(data_dir=tmp_path)
    issuer = LocalIssuer(settings)
    token = issuer.mint(ANN.subject, ANN.tenant, sorted(ANN.roles))

    def ask(statements: list[str]) -> list[httpx.Response]:
        async def all_of_them() -> list[httpx.Response]:
            places = nullcontext((lambda: as_service(migrated), lambda: as_reader(migrated)))
            endpoint = SqlEndpoint(settings, TokenGate(settings, issuer), lambda: places)
            headers = {"X-ClickHouse-Key": token}
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(endpoint), base_url="http://sql"
            ) as client:
                found = [await client.post("/", content=each, headers=headers) for each in statements]
            await endpoint.close()
            return found

        return asyncio.run(all_of_them())

    return ask


def test_every_documented_view_has_a_tenant_and_can_be_asked_for_each_column(
    migrated: Target, answers: object
) -> None:
    with client_of(migrated) as service:
        told = service.query(
            "SELECT table, groupArray(name) FROM system.columns WHERE database = 'bi' GROUP BY table"
        )
    assert told.result_rows
    assert not [table for table, columns in told.result_rows if "tenant" not in columns]
    statements = [f"SELECT {', '.join(columns)} FROM {table} LIMIT 5" for table, columns in told.result_rows]
    statements += [f"SELECT count() FROM bi.{table} WHERE tenant != 'alpha'" for table, _ in told.result_rows]
    statements += [f"DESCRIBE TABLE bi.{table}" for table, _ in told.result_rows]
    for statement, answer in zip(statements, answers(statements), strict=True):  # type: ignore[operator]
        assert answer.status_code == 200, f"{statement}: {answer.text}"
        if "count()" in statement:
            assert answer.text == "0\n"


def test_the_statements_of_the_guide_are_answered(answers: object) -> None:
    guide = (Path(__file__).parents[3] / "docs" / "howto" / "query-with-sql.md").read_text()
    code = "\n".join(re.findall(r"```\w+\n(.*?)```", guide, re.DOTALL))
    statements = [found[1] for found in re.finditer(r"""["'](SELECT .*?)["']""", code)]
    statements += ["DESCRIBE TABLE balances", "SHOW TABLES", "EXISTS balances"]
    assert len(statements) >= 7
    filled = [re.sub(r"\{\w+:String\}", "'EUR'", each) for each in statements]
    for statement, answer in zip(filled, answers(filled), strict=True):  # type: ignore[operator]
        assert answer.status_code == 200, f"{statement}: {answer.text}"


def test_the_endpoint_is_mounted_on_the_port_of_the_api(
    migrated: Target, database_url: str, tmp_path: Path
) -> None:
    with serving(settings_on(database_url, tmp_path)) as service:
        service.app.state.clickhouse = (lambda: as_service(migrated), lambda: as_reader(migrated))
        with service.client(ANN) as client:
            assert client.get("/clickhouse/ping").text == "Ok.\n"
            assert client.get("/clickhouse").text == "Ok.\n"
            assert client.post("/clickhouse/", content="SELECT 1 + 1").text == "2\n"
            assert (
                client.get("/clickhouse", params={"query": "SELECT count() FROM bi.balances"}).text == "0\n"
            )
            refused = client.post("/clickhouse", content="SELECT * FROM soma.entries")
            assert refused.headers["x-clickhouse-exception-code"] == "497"
            metrics = client.get("/metrics").text
        assert 'soma_sql_queries_total{outcome="done"}' in metrics
        assert 'route="/clickhouse"' in metrics
        with service.client() as nobody:
            assert nobody.post("/clickhouse", content="SELECT 1").status_code == 401
