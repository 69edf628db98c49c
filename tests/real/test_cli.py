"""The command line as a process: what it prints, where, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import jwt
import pytest

from ops.settings import Settings
from ops.tokens import LocalIssuer, TokenGate

SOMA = [sys.executable, "-m", "api.cli"]
ROOT = Path(__file__).resolve().parents[2]
END_S_MAX = 60


def an_environment(**given: str) -> dict[str, str]:
    """Give this environment with these of our settings only."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SOMA_")}
    return inherited | {"COLUMNS": "120"} | {f"SOMA_{name.upper()}": value for name, value in given.items()}


def soma(*words: str, **given: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*SOMA, *words],
        cwd=ROOT, env=an_environment(**given), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=END_S_MAX, check=False,
    )  # fmt: skip


def lines_of(table: str) -> dict[str, str]:
    """Read the doctor's table: part -> the rest of its line."""
    parts = (
        "settings|data directory|database|migrations|log identity|log key|issuer key|object store|clickhouse|kafka"
        "|address|disk"
    )
    found = {}
    for line in table.splitlines():
        for part in parts.split("|"):
            if line.strip().startswith(f"{part} "):
                found[part] = line.strip().removeprefix(part).strip()
    return found


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a data directory in which a service has run once."""
    place = tmp_path_factory.mktemp("house")
    with _running(place) as (child, _):
        child.terminate()
        assert child.wait(END_S_MAX) == 0
    return place


class _running:  # noqa: N801 - it reads as a word
    """A service on a free port, with the URL it prints."""

    def __init__(self, place: Path, word: str = "serve", **given: str) -> None:
        self._words = [*SOMA, word, "--data-dir", str(place), "--port", "0"]
        self._given = given

    def __enter__(self) -> tuple[subprocess.Popen[str], str]:
        self._child = subprocess.Popen(
            self._words,
            cwd=ROOT, env=an_environment(**self._given), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._child.stdout is not None
        first = self._child.stdout.readline().split()
        assert first, self._child.communicate()[1]
        return self._child, first[-1]

    def __exit__(self, *_: object) -> None:
        self._child.terminate()
        self._child.communicate(timeout=END_S_MAX)


class TestServing:
    def test_serve_prints_its_url_and_answers(self, tmp_path: Path) -> None:
        with _running(tmp_path) as (_, url):
            assert httpx.get(f"{url}/ready").json()["status"] == "ready"

    def test_up_says_what_is_on_and_how_to_get_a_token(self, data_dir: Path) -> None:
        with _running(data_dir, "up") as (child, url):
            assert httpx.get(f"{url}/health").status_code == 200
            child.terminate()
            assert child.stdout is not None
            out = child.stdout.read()
        assert "soma-ledger.local/log+" in out
        assert f"soma token --data-dir {data_dir} --tenant acme --role owner\n" in out

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_in_order(self, number: signal.Signals, data_dir: Path) -> None:
        with _running(data_dir) as (child, _):
            child.send_signal(number)
            _, err = child.communicate(timeout=END_S_MAX)
        assert child.returncode == 0
        assert '"stopped"' in err.splitlines()[-1]
        assert "Traceback" not in err

    def test_what_was_begun_is_finished_and_found_again(self, tmp_path: Path) -> None:
        with _running(tmp_path) as (child, url):
            token = soma(
                "token", "--tenant", "acme", "--role", "owner", "--data-dir", str(tmp_path)
            ).stdout.strip()
            with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client:
                made = [client.post("/v1/accounts", json={"currency": c}) for c in ("USD", "EUR", "JPY")]
            assert [answer.status_code for answer in made] == [201, 201, 201]
            child.terminate()
            assert child.wait(END_S_MAX) == 0
        with _running(tmp_path) as (_, url):
            assert httpx.get(f"{url}/ready").json()["size"] == 3

    def test_a_taken_port_is_said_before_anything_is_touched(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            done = soma("serve", "--data-dir", str(tmp_path / "new"), "--port", port)
        assert done.returncode == 2
        assert done.stderr.startswith("cannot_listen: ")
        assert "  -> Stop what listens there" in done.stderr
        assert not (tmp_path / "new" / "postgres").exists()

    def test_a_taken_port_of_metrics_is_said_before_anything_is_touched(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            done = soma("follow", "webhooks", "--data-dir", str(tmp_path / "new"), "--metrics-port", port)
        assert done.returncode == 2
        assert done.stderr.startswith("cannot_listen: ")
        assert not (tmp_path / "new" / "postgres").exists()

    def test_a_follower_that_is_not_there_is_told_with_those_that_are(self, tmp_path: Path) -> None:
        done = soma("follow", "nonsense", "--data-dir", str(tmp_path / "new"))
        assert done.returncode == 2
        assert "follower_unknown: " in done.stderr
        assert "  known: clickhouse.records, " in done.stderr
        assert "  -> Choose one that is known" in done.stderr


class TestRefusals:
    def test_a_refusal_has_a_code_a_sentence_and_a_remedy_but_no_traceback(self, tmp_path: Path) -> None:
        done = soma(
            "serve", "--port", "0", data_dir=str(tmp_path), database_url="postgresql://u:hidden@127.0.0.1:1/d"
        )
        assert done.returncode == 2
        assert done.stderr.startswith("unavailable: the database does not answer\n")
        assert "Connection refused" in done.stderr
        assert "\n  -> " in done.stderr
        assert "Traceback" not in done.stderr
        assert "hidden" not in done.stdout + done.stderr

    def test_a_setting_that_cannot_be_is_named_without_its_value(self) -> None:
        done = soma("settings", database_url="mysql://u:hidden@h/d", port="many")
        assert done.returncode == 2
        assert done.stderr.startswith("invalid_settings: ")
        assert "SOMA_DATABASE_URL" in done.stderr
        assert "SOMA_PORT" in done.stderr
        assert "hidden" not in done.stdout + done.stderr

    def test_an_unknown_word_ends_with_two(self) -> None:
        assert soma("frobnicate").returncode == 2


class TestSettings:
    def test_no_secret_is_printed(self) -> None:
        done = soma("settings", database_url="postgresql://u:hidden@h/d", data_dir="elsewhere")
        assert done.returncode == 0
        assert "hidden" not in done.stdout + done.stderr
        assert "***" in done.stdout
        [line] = [line for line in done.stdout.splitlines() if "SOMA_DATA_DIR" in line]
        assert line.split() == ["SOMA_DATA_DIR", "environment", "elsewhere"]

    def test_the_reference_is_printed_as_markdown(self) -> None:
        printed = soma("settings", "--markdown").stdout
        assert printed == (ROOT / "docs" / "reference" / "settings.md").read_text()


class TestToken:
    def test_a_token_and_nothing_else_is_printed(self, tmp_path: Path) -> None:
        words = (
            "--tenant",
            "acme",
            "--role",
            "owner",
            "--role",
            "provider",
            "--subject",
            "lea",
            "--ttl",
            "120",
        )
        done = soma("token", *words, "--data-dir", str(tmp_path))
        assert done.returncode == 0
        assert done.stderr == ""
        token = done.stdout.removesuffix("\n")
        settings = Settings(data_dir=tmp_path)
        caller = TokenGate(settings, LocalIssuer(settings)).verify(token)
        assert (caller.subject, caller.tenant, caller.roles) == ("lea", "acme", {"owner", "provider"})
        claims = jwt.decode(token, options={"verify_signature": False})
        assert claims["exp"] - claims["iat"] == 120

    def test_a_role_nobody_has_is_refused(self, tmp_path: Path) -> None:
        done = soma("token", "--tenant", "acme", "--role", "king", "--data-dir", str(tmp_path))
        assert done.returncode == 2
        assert done.stdout == ""
        assert "king" in done.stderr

    def test_a_tenant_the_service_would_refuse_is_refused_here(self, tmp_path: Path) -> None:
        done = soma("token", "--tenant", "Not A Tenant", "--role", "owner", "--data-dir", str(tmp_path))
        assert (done.returncode, done.stdout) == (2, "")

    def test_where_another_issuer_is_set_none_is_made(self, tmp_path: Path) -> None:
        words = ("--tenant", "acme", "--role", "owner", "--data-dir", str(tmp_path))
        done = soma("token", *words, jwks_url="https://issuer.example/jwks.json")
        assert (done.returncode, done.stdout) == (2, "")
        assert "invalid_settings" in done.stderr


class TestMigrate:
    def test_pending_migrations_are_listed_applied_and_listed_again(self, empty_database_url: str) -> None:
        before = soma("migrate", "--check", database_url=empty_database_url)
        assert before.returncode == 1
        assert "0001_log" in before.stdout
        assert "pending" in before.stdout
        during = soma("migrate", database_url=empty_database_url)
        assert during.returncode == 0
        assert "applied now" in during.stdout
        after = soma("migrate", "--check", database_url=empty_database_url)
        assert after.returncode == 0
        assert "pending" not in after.stdout
        assert "now" not in after.stdout


class TestDoctor:
    def test_a_fresh_directory_is_well_and_left_untouched(self, tmp_path: Path) -> None:
        done = soma("doctor", "--data-dir", str(tmp_path / "new"), "--port", "0")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "FAILED" not in done.stdout
        assert not (tmp_path / "new").exists()

    def test_a_house_that_ran_is_well_in_every_part(self, data_dir: Path) -> None:
        done = soma("doctor", "--data-dir", str(data_dir), "--port", "0")
        found = lines_of(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(found) == 12
        # Its service ran without followers, who make the engine's directory when they first start.
        assert [part for part, line in found.items() if not line.startswith("ok ")] == ["clickhouse"]
        assert found["clickhouse"].startswith("not yet")
        assert "mode 600" in found["log key"]

    def test_a_running_service_on_the_port_is_well(self, data_dir: Path) -> None:
        with _running(data_dir) as (_, url):
            done = soma("doctor", "--data-dir", str(data_dir), "--port", url.rsplit(":", 1)[1])
        assert done.returncode == 0, done.stdout
        assert "soma-ledger.local/log answers" in lines_of(done.stdout)["address"]

    def test_a_stranger_on_the_port_is_not(self, data_dir: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            done = soma("doctor", "--data-dir", str(data_dir), "--port", str(taken.getsockname()[1]))
        assert done.returncode == 1
        assert lines_of(done.stdout)["address"].startswith("FAILED")

    def test_a_key_others_can_read_is_found(self, data_dir: Path) -> None:
        key = data_dir / "keys" / "log.key"
        key.chmod(0o644)
        try:
            done = soma("doctor", "--data-dir", str(data_dir), "--port", "0")
        finally:
            key.chmod(0o600)
        assert done.returncode == 1
        assert lines_of(done.stdout)["log key"].startswith("FAILED")

    def test_a_key_of_another_log_is_found(self, data_dir: Path, tmp_path: Path) -> None:
        stranger = tmp_path / "log.key"
        from ops.keys import log_signer

        log_signer(stranger, "soma-ledger.local/log")
        done = soma("doctor", "--data-dir", str(data_dir), "--port", "0", log_key_file=str(stranger))
        assert done.returncode == 1
        assert lines_of(done.stdout)["log identity"].startswith("FAILED")

    def test_a_database_that_does_not_answer_is_found_and_the_rest_is_still_looked_at(
        self, tmp_path: Path
    ) -> None:
        done = soma(
            "doctor",
            "--data-dir",
            str(tmp_path),
            "--port",
            "0",
            database_url="postgresql://u:hidden@127.0.0.1:1/d",
        )
        assert done.returncode == 1
        found = lines_of(done.stdout)
        assert found["database"].startswith("FAILED")
        assert "disk" in found
        assert "hidden" not in done.stdout + done.stderr

    def test_pending_migrations_of_a_used_database_are_found(self, database_url: str, tmp_path: Path) -> None:
        import psycopg

        with psycopg.connect(database_url) as connection:
            connection.execute(
                "DELETE FROM schema_migrations WHERE number = (SELECT max(number) FROM schema_migrations)"
            )
        done = soma("doctor", "--data-dir", str(tmp_path), "--port", "0", database_url=database_url)
        assert done.returncode == 1
        assert lines_of(done.stdout)["migrations"].startswith("FAILED")


def test_the_first_word_comes_fast() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, api.cli; print(*sorted({n.split('.')[0] for n in sys.modules}))"],
        cwd=ROOT, env=an_environment(), capture_output=True, text=True, timeout=END_S_MAX, check=True,
    ).stdout.split()  # fmt: skip
    heavy = "fastapi uvicorn numpy scipy sklearn psycopg eventsourcing pydantic obstore httpx".split()
    assert [name for name in heavy if name in loaded] == []
