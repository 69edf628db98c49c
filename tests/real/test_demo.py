"""The demonstration, as a newcomer runs it: its own process, its own directory, no manual step."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from api.demo_personas import publish_persona
from api.demo_stage import Stage
from domain.log.audit_proof import verify_receipt
from ops.settings import Settings

SOMA = [sys.executable, "-m", "api.cli"]
END_S_MAX = 240
STEPS = (
    "1. Create offers",
    "2. Create an intent",
    "3. Match a contract",
    "4. Trigger a training round",
    "5. Release the escrow",
    "6. Inspect timeline and metrics",
    "7. Prove it, without trusting the service",
    "8. Seal a persona",
    "9. Nobody publishes alone",
    "10. Verify it without the service",
    "11. Rent it",
    "12. Bill it, and trace a line",
    "What happened",
)


def an_environment() -> dict[str, str]:
    """Give this environment without our settings, and with a database the demonstration must leave alone."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SOMA_")}
    return inherited | {"SOMA_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere", "COLUMNS": "100"}


def run_demo(root: Path, data_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the demonstration without a terminal."""
    return subprocess.run(
        [*SOMA, "demo", "--data-dir", str(data_dir), *words],
        cwd=root,
        env=an_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=END_S_MAX,
        check=False,
    )


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Play it once for the tests of this file."""
    data_dir = tmp_path_factory.mktemp("demo")
    started = time.perf_counter()
    done = run_demo(Path(__file__).resolve().parents[2], data_dir)
    print(f"the demonstration took {time.perf_counter() - started:.1f} s")
    return done, data_dir


Played = tuple[subprocess.CompletedProcess[str], Path]


def test_without_a_terminal_it_ends_by_itself_and_well(played: Played) -> None:
    done, _ = played
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_steps_are_played_in_order(played: Played) -> None:
    out = played[0].stdout
    places = [out.find(step) for step in STEPS]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize(
    "words",
    [
        "budget_rejected 3",
        "It would match with budget at least 35.50",
        "409 contract_already_released",
        "debits 500.00 - credits 500.00 = 0.00",
        "contract waiting for its money: none",
        "inclusion_invalid",
        "every promise holds",
        "house-guide 1.0.0",
        "422 not_approved",
        "With one approval and two of three signatures: published",
        "capsule_tampered in memory.parquet, offline and at the import",
        "a persona that nobody could have published alone, rented, used and billed",
        "0.50 USD for 60 minutes; 90 minutes are 120 begun ones: 1.00 USD",
        "access is over at once; of 1.00 reserved 0.50 were paid and 0.50 are free again",
        "add up to it:",
        "proven in the log",
        "The loop is closed",
    ],
)
def test_it_shows(words: str, played: Played) -> None:
    assert words in played[0].stdout


def test_the_table_of_what_happened_names_positions_and_addresses(played: Played) -> None:
    table = played[0].stdout.split("What happened")[1]
    assert [word for word in ("step", "what", "position", "address", "ms") if word not in table] == []
    assert table.count("sha3-512:") >= 12


def test_the_receipt_it_leaves_behind_is_checked_without_it(played: Played) -> None:
    place = played[1] / "proofs"
    proof = min(place.glob("*.tlog-proof"))  # another test may have played again on the same data
    vkey = subprocess.run(
        [
            *SOMA,
            "audit",
            "receipt",
            str(proof),
            "--record",
            str(proof.with_suffix(".json")),
            "--key",
            "wrong+00+AA==",
        ],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        check=False,
    )
    assert vkey.returncode == 1
    report = verify_receipt(proof.read_bytes(), proof.with_suffix(".json").read_bytes(), _key_in(played))
    assert report.ok, report.findings


def _key_in(played: Played) -> str:
    import zipfile

    export = min((played[1] / "proofs").glob("log-*.zip"))
    with zipfile.ZipFile(export) as archive:
        return archive.read("log.vkey").decode().strip()


def test_it_can_be_played_again_on_the_same_data(played: Played, repository_root: Path) -> None:
    again = run_demo(repository_root, played[1], "--once")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "budget_rejected 3" in again.stdout
    assert "house-guide 1.0.1" in again.stdout


def test_without_the_examples_the_persona_is_left_out_and_the_rest_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("api.demo_personas.__file__", str(tmp_path / "api" / "demo_personas.py"))
    console = Console(file=io.StringIO())
    stage = Stage(Settings(data_dir=tmp_path), "http://127.0.0.1:1", console)
    monkeypatch.setattr(stage, "say", told.append)
    assert not publish_persona(stage)
    assert "left out" in told[0]


def test_a_service_that_cannot_be_reached_is_said_and_the_end_is_not_zero(
    repository_root: Path, tmp_path: Path
) -> None:
    done = run_demo(repository_root, tmp_path, "--url", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert "The story ended early" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_service_that_cannot_start_is_said_with_its_own_words(
    repository_root: Path, tmp_path: Path
) -> None:
    key = tmp_path / "keys" / "log.key"
    key.parent.mkdir()
    key.write_text("not a key")
    key.chmod(0o600)
    done = run_demo(repository_root, tmp_path)
    assert done.returncode == 1
    assert "the service did not start" in done.stdout
    assert "key_file_unusable" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def read_until(terminal: int, wanted: bytes) -> bytes:
    """Read what a terminal shows until it shows this."""
    seen = b""
    until = time.monotonic() + END_S_MAX
    while wanted not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, until - time.monotonic()))
        assert ready, seen.decode(errors="replace")
        seen += os.read(terminal, 65_536)
    return seen


def test_on_a_terminal_it_stays_up_until_it_is_stopped(repository_root: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [*SOMA, "demo", "--data-dir", str(tmp_path)],
        cwd=repository_root,
        env={name: value for name, value in an_environment().items() if name != "CI"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        # A shell that starts the tests in the background lets them inherit an ignored SIGINT; a terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    try:
        seen = read_until(ours, b"Ctrl-C ends it.")
        assert child.poll() is None
        assert b"soma token --data-dir" in seen
        os.killpg(child.pid, signal.SIGINT)  # what a terminal sends on Ctrl-C
        assert child.wait(END_S_MAX) == 0
    finally:
        child.terminate()
        child.wait(END_S_MAX)
        os.close(ours)
