"""The embedded PostgreSQL: shared, durable, and back after any kind of death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from domain.errors import DatabaseStartError
from ops import embedded
from ops.embedded import EmbeddedPostgres

# Starts a server, writes one row, says so, and waits to be told to end.
ANOTHER_PROCESS = """
import sys
from pathlib import Path
import psycopg
from ops.embedded import EmbeddedPostgres

server = EmbeddedPostgres.start(Path(sys.argv[1]))
with psycopg.connect(server.url) as connection:
    connection.execute("SELECT pg_advisory_xact_lock(1)")
    connection.execute("CREATE TABLE IF NOT EXISTS kept (word text)")
    connection.execute("INSERT INTO kept VALUES (%s)", [sys.argv[2]])
print("written", flush=True)
sys.stdin.readline()
"""

Started = Callable[[str], "subprocess.Popen[str]"]


def words(server: EmbeddedPostgres) -> list[str]:
    """Read what the other processes wrote."""
    with psycopg.connect(server.url) as connection:
        return [row[0] for row in connection.execute("SELECT word FROM kept ORDER BY word")]


def postmaster_pid(data_dir: Path) -> int:
    """Read the number of the running server."""
    return int((data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])


@pytest.fixture
def another(tmp_path: Path, repository_root: Path) -> Iterator[Started]:
    """Start processes that use the server of `tmp_path`, and leave none behind."""
    started: list[subprocess.Popen[str]] = []

    def start(word: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", ANOTHER_PROCESS, str(tmp_path), word],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=repository_root,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    EmbeddedPostgres.start(tmp_path).stop()
    assert not (tmp_path / "postgres" / "postmaster.pid").exists()


def end(process: subprocess.Popen[str]) -> None:
    """Let a process end as processes should."""
    process.communicate("\n")
    assert process.returncode == 0


def test_a_commit_is_on_the_disk_before_it_is_acknowledged(tmp_path: Path) -> None:
    promised = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "data_checksums": "on"}
    with EmbeddedPostgres.start(tmp_path) as server, psycopg.connect(server.url) as connection:
        for setting, value in promised.items():
            assert connection.execute("SELECT current_setting(%s)", [setting]).fetchone() == (value,)


def test_the_server_listens_on_no_network_and_only_its_user_reaches_the_socket(tmp_path: Path) -> None:
    with EmbeddedPostgres.start(tmp_path) as server, psycopg.connect(server.url) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        directory = Path(connection.info.host)
        assert directory.stat().st_mode & 0o077 == 0


def test_what_was_committed_is_there_after_a_restart(tmp_path: Path, another: Started) -> None:
    process = another("first")
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    end(process)
    assert not (tmp_path / "postgres" / "postmaster.pid").exists()
    with EmbeddedPostgres.start(tmp_path) as server:
        assert words(server) == ["first"]


def test_a_stop_leaves_the_server_to_those_who_still_use_it(tmp_path: Path) -> None:
    first, second = EmbeddedPostgres.start(tmp_path), EmbeddedPostgres.start(tmp_path)
    first.stop()
    first.stop()
    with psycopg.connect(second.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    connection.close()
    second.stop()
    assert not (tmp_path / "postgres" / "postmaster.pid").exists()


def test_processes_that_start_together_on_an_empty_directory_share_one_server(
    tmp_path: Path, another: Started
) -> None:
    processes = [another(word) for word in "abcd"]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
    server = EmbeddedPostgres.start(tmp_path)
    assert words(server) == list("abcd")
    server.stop()
    for process in processes[:-1]:
        end(process)
        assert psutil.pid_exists(postmaster_pid(tmp_path))
    end(processes[-1])
    assert not (tmp_path / "postgres" / "postmaster.pid").exists()


def test_a_killed_process_neither_takes_the_server_down_nor_holds_it_up(
    tmp_path: Path, another: Started
) -> None:
    process = another("mine")
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait()
    server = EmbeddedPostgres.start(tmp_path)
    assert words(server) == ["mine"]
    server.stop()
    assert not (tmp_path / "postgres" / "postmaster.pid").exists()


def test_a_killed_server_recovers_every_commit_at_the_next_start(tmp_path: Path, another: Started) -> None:
    process = another("safe")
    assert process.stdout is not None
    process.stdout.readline()
    killed = psutil.Process(postmaster_pid(tmp_path))
    family = [killed, *killed.children(recursive=True)]
    killed.send_signal(signal.SIGKILL)
    process.kill()
    process.wait()
    psutil.wait_procs(family, timeout=30)
    with EmbeddedPostgres.start(tmp_path) as server:
        assert words(server) == ["safe"]


def test_the_number_of_a_dead_server_may_belong_to_another_program_by_now(tmp_path: Path) -> None:
    EmbeddedPostgres.start(tmp_path).stop()
    stale = [
        str(os.getpid()),
        str(tmp_path / "postgres"),
        "1700000000",
        "5432",
        str(tmp_path / "postgres"),
        "",
        "",
        "ready",
    ]
    for lock in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        (tmp_path / "postgres" / lock).write_text("\n".join(stale) + "\n")
    with EmbeddedPostgres.start(tmp_path):
        assert postmaster_pid(tmp_path) != os.getpid()


def test_a_first_start_that_was_cut_short_is_begun_again(tmp_path: Path) -> None:
    draft = tmp_path / "postgres.new-abc"
    draft.mkdir()
    (draft / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres.start(tmp_path) as server, psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not draft.exists()


def test_a_path_too_long_for_a_socket_gets_a_short_private_one(tmp_path: Path) -> None:
    deep = tmp_path / ("long" * 20) / ("path" * 20)
    with EmbeddedPostgres.start(deep) as server, psycopg.connect(server.url) as connection:
        directory = Path(connection.info.host)
        assert len(str(directory)) <= embedded.SOCKET_DIR_BYTES_MAX
        assert directory.stat().st_mode & 0o077 == 0
    directory.rmdir()


def test_a_directory_that_is_no_cluster_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    with pytest.raises(DatabaseStartError) as refusal:
        EmbeddedPostgres.start(tmp_path)
    assert refusal.value.internal
