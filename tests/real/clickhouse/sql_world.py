"""An SQL endpoint on a real port before a real engine: two tenants, and sentinels that must never come out."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import uvicorn

from api.routes.sql import sql_app
from ops.clickhouse import as_reader, as_service
from ops.engine.process import EmbeddedClickHouse
from ops.settings import Settings
from ops.tokens import LocalIssuer, TokenGate

PRIVATE = "PRIVATE-5d1c7e"
OTHER = "OTHERTENANT-5d1c7e"
IN_FILE = "INFILE-5d1c7e"
IN_ENVIRONMENT = "INENVIRONMENT-5d1c7e"
FETCHED = "FETCHED-5d1c7e"
VARIABLE = "SOMA_TEST_SENTINEL"

TABLES = (
    "CREATE DATABASE vault ENGINE = Atomic",
    "CREATE DATABASE bi ENGINE = Atomic",
    "CREATE TABLE vault.secrets (s String, n UInt64) ENGINE = MergeTree ORDER BY n",
    f"INSERT INTO vault.secrets SELECT '{PRIVATE}', 4242424242 FROM numbers(3)",
    """CREATE TABLE vault.entries (tenant LowCardinality(String), account String, currency LowCardinality(String),
       day Date, at DateTime64(3, 'UTC'), amount Decimal(38, 9), tags Array(String), note String, position UInt64)
       ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(day) ORDER BY (tenant, account, currency, day, position)""",
    f"""INSERT INTO vault.entries SELECT if(number % 3 = 0, 'beta', 'alpha'), 'acc-' || toString(number % 7),
       if(number % 2 = 0, 'EUR', 'USD'), toDate('2026-01-01') + number % 60,
       toDateTime64('2026-01-01 00:00:00', 3, 'UTC') + number * 613, toDecimal128(number, 9) / 7,
       [toString(number % 5), 'x'], if(number % 3 = 0, '{OTHER}', toString(number)), number FROM numbers(3000)""",
    """CREATE VIEW bi.entries DEFINER = default SQL SECURITY DEFINER AS SELECT * FROM vault.entries FINAL""",
    """CREATE VIEW bi.daily DEFINER = default SQL SECURITY DEFINER AS SELECT tenant, day, currency,
       sum(amount) AS revenue, count() AS entries, max(note) AS note FROM vault.entries FINAL
       GROUP BY tenant, day, currency""",
    "CREATE DATABASE only_alpha ENGINE = Atomic",
    "CREATE VIEW only_alpha.entries AS SELECT * FROM bi.entries WHERE tenant = 'alpha'",
    "CREATE VIEW only_alpha.daily AS SELECT * FROM bi.daily WHERE tenant = 'alpha'",
)


class Listener(ThreadingHTTPServer):
    """A web server on loopback that counts who comes."""

    hits = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.hits += 1  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(FETCHED.encode() + b"\n")

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None: ...


class SqlWorld:
    """The endpoint, the engine behind it, and tokens."""

    def __init__(self, place: Path, engine: EmbeddedClickHouse, listener: Listener) -> None:
        self.place = place
        self.engine = engine
        self.listener = listener
        self.file = place / "sentinel.txt"
        self.file.write_text(IN_FILE + "\n")
        self.settings = Settings(
            data_dir=place,
            sql_time_s_max=4,
            sql_memory_bytes_max=400_000_000,
            sql_result_bytes_max=50_000_000,
        )
        issuer = LocalIssuer(self.settings)
        self.tokens = {
            "alpha": issuer.mint("ann", "alpha", ["billing"]),
            "beta": issuer.mint("bob", "beta", ["billing"]),
            "auditor": issuer.mint("aud", "audits", ["auditor"]),
            "platform": issuer.mint("pat", "platform", ["billing"]),
            "provider": issuer.mint("pro", "alpha", ["provider"]),
        }
        self.state = SimpleNamespace(
            settings=self.settings,
            tokens=TokenGate(self.settings, issuer),
            clickhouse=(lambda: as_service(engine.target), lambda: as_reader(engine.target)),
        )
        self.port = 0
        self._client = httpx.Client(timeout=60, trust_env=False)

    @classmethod
    @contextmanager
    def open(cls, place: Path) -> Iterator[SqlWorld]:
        """Start everything, and stop it."""
        os.environ[VARIABLE] = IN_ENVIRONMENT
        listener = Listener()
        try:
            with EmbeddedClickHouse.start(place) as engine:
                world = cls(place, engine, listener)
                for statement in TABLES:
                    world.direct(statement)
                with world._served():
                    yield world
        finally:
            listener.shutdown()
            listener.server_close()
            del os.environ[VARIABLE]

    @contextmanager
    def _served(self) -> Iterator[None]:
        bound = socket.create_server(("127.0.0.1", 0))
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = bound.getsockname()[1]
        config = uvicorn.Config(sql_app(self.state), lifespan="on", log_level="critical")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield
        finally:
            self._client.close()
            server.should_exit = True
            thread.join(10)
            bound.close()

    @property
    def url(self) -> str:
        """Tell where the endpoint is."""
        return f"http://127.0.0.1:{self.port}/"

    def ask(
        self,
        sql: str | None,
        who: str | None = "alpha",
        *,
        fields: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        method: str = "POST",
        **more: Any,
    ) -> httpx.Response:
        """Ask the endpoint with a plain HTTP client."""
        token = {"X-ClickHouse-Key": self.tokens[who]} if who else {}
        content = {} if sql is None else {"content": sql.encode()}
        return httpx.request(
            method,
            self.url,
            params=fields,
            headers={**token, **(headers or {})},
            timeout=60,
            **content,
            **more,
        )

    def direct(self, sql: str, form: str = "TabSeparated", **fields: str) -> bytes:
        """Ask the engine itself, as the service."""
        url, user, password = as_service(self.engine.target)
        answer = self._client.post(
            url,
            params={"default_format": form, **fields},
            content=sql.encode(),
            headers={"X-ClickHouse-User": user, "X-ClickHouse-Key": password, "Accept-Encoding": "identity"},
        )
        assert answer.status_code == 200, answer.text
        return answer.content
