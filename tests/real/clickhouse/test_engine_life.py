"""The life of an engine: killed, owned, attached to, taken over; and queries whose clients left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import psutil
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from urllib3.exceptions import HTTPError

from domain.errors import ClickHouseRefusedError, EngineStartError, UnavailableError
from ops.clickhouse import ClickHouse, as_service
from ops.engine.process import EmbeddedClickHouse, Target, answers, secrets_path
from tests.real.clickhouse.conftest import client_of
from tests.real.clickhouse.test_engine import basic

SOON_S = 20.0
GONE_S = 2.0

OWNER = """
import sys, time
from pathlib import Path
from ops.engine.process import EmbeddedClickHouse
engine = EmbeddedClickHouse.start(Path(sys.argv[1]))
print("ready", engine.owned, engine.target.port, flush=True)
sys.stdin.read()
engine.stop()
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """Lend a directory for an engine of one test."""
    with TemporaryDirectory(prefix="soma-engine-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def eventually(holds: Callable[[], bool], within_s: float = SOON_S) -> bool:
    """Wait until something holds."""
    until = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@contextmanager
def another(place: Path, root: Path) -> Iterator[tuple[subprocess.Popen[bytes], bool, int]]:
    """Start another process that wants the engine of a directory; tell whether it owns it, and the port."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(place)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env={"PYTHONPATH": str(root), "PATH": os.environ["PATH"], "SECRET_OF_OURS": "leak"},
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        words = next(line.split() for line in process.stdout if line.startswith(b"ready "))
        yield process, words[1] == b"True", int(words[2])


def end(process: subprocess.Popen[bytes]) -> None:
    """Let a process stop by itself."""
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 0


def make_table(client: Client) -> None:
    client.command("CREATE DATABASE IF NOT EXISTS soma ENGINE = Atomic")
    client.command(
        "CREATE TABLE IF NOT EXISTS soma.kept (x UInt64) ENGINE = MergeTree ORDER BY x "
        "SETTINGS fsync_after_insert = 1, fsync_part_directory = 1"
    )


def insert_until_killed(engine: EmbeddedClickHouse, start: int) -> int:
    """Insert numbers from a start on while the engine is killed; tell up to where they were acknowledged."""
    pid = engine.engine_pid
    assert pid is not None
    killer = threading.Timer(0.3, os.kill, [pid, signal.SIGKILL])
    with client_of(engine.target) as client:
        killer.start()
        while not killer.finished.is_set():
            rows = pa.table({"x": pa.array(range(start, start + 500), pa.uint64())})
            with suppress(ClickHouseError, HTTPError, OSError):
                client.insert_arrow("soma.kept", rows)
                start += 500
    assert eventually(lambda: engine.engine_pid != pid)
    return start


class TestOneEngine:
    def test_a_killed_engine_comes_back_on_its_port_with_every_acknowledged_row(self, place: Path) -> None:
        with EmbeddedClickHouse.start(place) as engine:
            target, acknowledged = engine.target, 0
            with client_of(target) as client:
                make_table(client)
            for _ in range(3):
                acknowledged = insert_until_killed(engine, acknowledged)
                assert eventually(lambda: answers(target))
                with client_of(target) as client:
                    found = client.command(f"SELECT uniqExact(x) FROM soma.kept WHERE x < {acknowledged}")
                assert found == acknowledged
            assert engine.target == target

    def test_our_own_door_finds_the_engine_again_by_itself(self, place: Path) -> None:
        async def use(engine: EmbeddedClickHouse) -> None:
            clickhouse = await ClickHouse.open(*as_service(engine.target))
            for _ in range(2):
                assert engine.engine_pid is not None
                os.kill(engine.engine_pid, signal.SIGKILL)
                until = time.monotonic() + SOON_S
                while True:
                    try:
                        assert await clickhouse.rows("SELECT 1") == [(1,)]
                        break
                    except UnavailableError:
                        assert time.monotonic() < until
            with pytest.raises(ClickHouseRefusedError) as refused:
                await clickhouse.command("SELECT nosuch")
            assert refused.value.facts["clickhouse_code"] == 47
            await clickhouse.close()

        with EmbeddedClickHouse.start(place) as engine:
            asyncio.run(use(engine))

    def test_an_engine_that_was_stopped_is_away_and_starts_again_where_it_was(self, place: Path) -> None:
        with EmbeddedClickHouse.start(place) as engine:
            target = engine.target
            with client_of(target) as client:
                make_table(client)
                client.insert("soma.kept", [[7]])

        async def ask_the_dead() -> None:
            await ClickHouse.open(*as_service(target))

        with pytest.raises(UnavailableError):
            asyncio.run(ask_the_dead())
        with EmbeddedClickHouse.start(place) as engine:
            assert engine.target == target
            with client_of(target) as client:
                assert client.command("SELECT x FROM soma.kept") == 7

    def test_secrets_are_written_for_their_owner_only(self, place: Path) -> None:
        with EmbeddedClickHouse.start(place) as engine:
            path = secrets_path(place)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert json.loads(path.read_text())["service"]["password"] == engine.target.service_password
            assert engine.target.service_password not in repr(engine.target)
            assert engine.engine_pid is not None
            process = psutil.Process(engine.engine_pid)
            told = " ".join([*process.cmdline(), *process.environ().values()])
            assert engine.target.service_password not in told
            assert engine.target.reader_password not in told

    def test_an_engine_that_cannot_start_says_why(self, place: Path) -> None:
        (place / "clickhouse").mkdir()
        (place / "clickhouse" / "data").write_text("not a directory")
        with pytest.raises(EngineStartError) as refused:
            EmbeddedClickHouse.start(place)
        assert "Exists" in refused.value.internal
        (place / "clickhouse" / "data").unlink()
        with EmbeddedClickHouse.start(place) as engine:
            assert answers(engine.target)

    def test_a_taken_port_is_given_up_and_the_secrets_are_kept(self, place: Path) -> None:
        with EmbeddedClickHouse.start(place) as engine:
            before = engine.target
        with socket.socket() as thief:
            thief.bind(("127.0.0.1", before.port))
            thief.listen()
            with EmbeddedClickHouse.start(place) as engine:
                assert engine.target.port != before.port
                assert engine.target.service_password == before.service_password
                assert answers(engine.target)


class TestTwoProcesses:
    def test_a_second_process_attaches_and_takes_over_from_a_killed_owner(
        self, place: Path, repository_root: Path
    ) -> None:
        with (
            another(place, repository_root) as (owner, owned, port),
            EmbeddedClickHouse.start(place) as engine,
        ):
            assert (owned, engine.owned, engine.target.port) == (True, False, port)
            with client_of(engine.target) as client:
                make_table(client)
                client.insert("soma.kept", [[5]])
            owner.kill()
            owner.wait()
            assert eventually(lambda: engine.owned and answers(engine.target))
            assert engine.target.port == port
            with client_of(engine.target) as client:
                assert client.command("SELECT x FROM soma.kept") == 5

    def test_a_second_process_takes_over_from_an_owner_that_stops(
        self, place: Path, repository_root: Path
    ) -> None:
        with another(place, repository_root) as (owner, _, port), EmbeddedClickHouse.start(place) as engine:
            end(owner)
            assert eventually(lambda: engine.owned and answers(engine.target))
            assert engine.target.port == port

    def test_no_engine_outlives_its_owner(self, place: Path, repository_root: Path) -> None:
        with another(place, repository_root) as (owner, _, _):
            engines = psutil.Process(owner.pid).children()
            assert [process.is_running() for process in engines] == [True]
            owner.kill()
            owner.wait()
            assert psutil.wait_procs(engines, timeout=SOON_S)[1] == []

    def test_of_several_starters_one_owns(self, place: Path, repository_root: Path) -> None:
        engine = EmbeddedClickHouse.start(place)
        with another(place, repository_root) as one, another(place, repository_root) as two:
            assert [(owned, port) for _, owned, port in (one, two)] == [(False, engine.target.port)] * 2
            end(one[0])
            end(two[0])
        engine.stop()
        engine.stop()


# Within what a reader may read, and still longer than anybody waits.
ENDLESS = "SELECT count() FROM numbers(490000000) WHERE sipHash128(sipHash128(number)) = '1' OR 'marked' = ''"
STREAM = "SELECT number, sipHash64(number) FROM numbers(9900000) WHERE 'marked' = 'marked' FORMAT TSV"


class TestClientsThatLeave:
    @pytest.mark.parametrize("reader", [False, True])
    @pytest.mark.parametrize("sql", [ENDLESS, STREAM], ids=["computing", "streaming"])
    def test_a_query_ends_when_its_client_leaves(
        self, engine: EmbeddedClickHouse, service: Client, sql: str, reader: bool
    ) -> None:
        leave_after_beginning(engine.target, sql, reader, lambda: running(service) == 1)
        assert eventually(lambda: running(service) == 0, GONE_S)

    def test_those_who_leave_take_no_place_from_those_who_stay(
        self, engine: EmbeddedClickHouse, service: Client
    ) -> None:
        for _ in range(12):
            leave_after_beginning(engine.target, STREAM, True, lambda: True)
        with client_of(engine.target, reader=True) as reader:
            assert reader.command("SELECT 1") == 1
        assert eventually(lambda: running(service) == 0, GONE_S)

    def test_too_many_at_once_wait_and_are_told(self, engine: EmbeddedClickHouse, service: Client) -> None:
        sockets = [send(engine.target, STREAM, True) for _ in range(8)]
        try:
            assert eventually(lambda: running(service) == 8)
            ninth = send(engine.target, "SELECT 1", True)
            assert ninth.recv(10_000).startswith(b"HTTP/1.1 503")
            ninth.close()
            # The service has places of its own.
            assert service.command("SELECT 1") == 1
        finally:
            for each in sockets:
                each.close()
        assert eventually(lambda: running(service) == 0, GONE_S)

    def test_a_change_is_finished_though_its_client_left(
        self, engine: EmbeddedClickHouse, service: Client, database: str
    ) -> None:
        service.command(f"CREATE TABLE {database}.t (x UInt64) ENGINE = MergeTree ORDER BY x")
        sql = f"INSERT INTO {database}.t SELECT number + sleepEachRow(0.1) FROM numbers(6) SETTINGS max_block_size = 1"
        leave_after_beginning(engine.target, sql, False, lambda: running(service, "INSERT") == 1)
        assert eventually(lambda: service.command(f"SELECT count() FROM {database}.t") == 6)


def send(target: Target, sql: str, reader: bool) -> socket.socket:
    """Send a query and do not wait."""
    who = (
        (target.reader_user, target.reader_password)
        if reader
        else (target.service_user, target.service_password)
    )
    head = f"POST /?query={quote(sql)} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
    connection = socket.create_connection(("127.0.0.1", target.port), timeout=30)
    connection.sendall(f"{head}Authorization: {basic(*who)['Authorization']}\r\n\r\n".encode())
    return connection


def leave_after_beginning(target: Target, sql: str, reader: bool, begun: Callable[[], bool]) -> None:
    connection = send(target, sql, reader)
    try:
        assert eventually(begun)
    finally:
        connection.close()


def running(service: Client, word: str = "marked") -> int:
    """Count the queries that run, other than this one."""
    query = (
        "SELECT count() FROM system.processes "
        "WHERE position(query, {a:String}) > 0 AND position(query, {b:String}) = 0"
    )
    return int(service.command(query, parameters={"a": word, "b": "system.processes"}))
