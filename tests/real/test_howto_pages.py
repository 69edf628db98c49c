"""How-to pages are followed: their curl blocks, as they stand but for the port, against a service of their own."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.real.test_first_ten_minutes import a_free_port, a_path

ROOT = Path(__file__).resolve().parents[2]
START_S_MAX = 120
END_S_MAX = 60
STORY_S_MAX = 900
FIRST = (
    "curl --retry 60 --retry-delay 1 --retry-all-errors http://127.0.0.1:8080/clickhouse"
    " -d 'SELECT count() FROM bi.records'"
)


def curls(page: Path) -> str:
    """Join the shell blocks of a page that need nothing from elsewhere."""
    found = re.findall(
        r"^( *)```sh\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return "\n".join(textwrap.dedent(block) for _, block in found)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """Start the service as `soma up` does and give its port and an environment in which `soma` is a word."""
    root = tmp_path_factory.mktemp("howto")
    port = str(a_free_port())
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SOMA_")}
    environment = inherited | {
        "PATH": a_path(root / "bin", ROOT),
        "SOMA_PORT": port,
        "SOMA_DATA_DIR": str(root / "data"),
    }
    with (root / "soma.log").open("wb") as said:
        service = subprocess.Popen(
            [str(root / "bin" / "soma"), "up"], env=environment, stdout=said, stderr=said, cwd=root
        )
    try:
        await_ready(f"http://127.0.0.1:{port}/ready")
        # The views are there once the followers have made them.
        follow(f"{FIRST} -u me:$(soma token --tenant platform --role billing)", port, environment)
        yield port, environment
    finally:
        service.terminate()
        service.wait(END_S_MAX)


def await_ready(url: str) -> None:
    """Ask until the service answers."""
    until = time.monotonic() + START_S_MAX
    while time.monotonic() < until:
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail("the service did not start")


def follow(script: str, port: str, environment: dict[str, str], seconds_max: float = END_S_MAX) -> str:
    """Run a script with the port of this service; curl fails where the service refuses, and never waits for ever."""
    fails = 'curl() { command curl --silent --show-error --fail-with-body --max-time 20 "$@"; }\n'
    done = subprocess.run(
        ["bash", "-c", "set -euo pipefail\n" + fails + script.replace(":8080", f":{port}")],
        env=environment,
        # Pages begin in a checkout, and write elsewhere.
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds_max,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_the_page_about_sql_is_followed(place: tuple[str, dict[str, str]]) -> None:
    said = follow(curls(ROOT / "docs/howto/query-with-sql.md"), *place)
    assert '"rows": 1' in said


def test_the_statement_of_the_readme_is_understood(place: tuple[str, dict[str, str]]) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"-d '(SELECT [^']+)'", page)
    assert found is not None
    token = "$(soma token --tenant platform --role billing)"
    follow(f"curl http://127.0.0.1:8080/clickhouse -u me:{token} -d '{found[1]}'", *place)


def test_the_page_about_http_is_followed(place: tuple[str, dict[str, str]]) -> None:
    # The feed of the page waits for ever, as it should; here it ends where the log does.
    script = curls(ROOT / "docs/howto/follow-over-http.md").replace("feed?", "feed?follow=false&")
    said = follow(script, *place)
    assert "event: end_of_log" in said
    assert '"secret":"whsec_' in said


def test_the_page_about_limits_is_followed(place: tuple[str, dict[str, str]]) -> None:
    said = follow(curls(ROOT / "docs/howto/limit-spend.md"), *place)
    for words in (
        '"code": "quota_exceeded"',
        "; refused",
        '"inserted":1',
        "5.20",
        "event: quota.threshold_crossed",
    ):
        assert words in said, words


def test_the_pages_about_personas_are_followed_one_after_the_other(place: tuple[str, dict[str, str]]) -> None:
    pages = (
        "docs/howto/publish-a-persona.md",
        "docs/howto/rent-a-persona.md",
        "docs/runbooks/timers.md",
        "docs/runbooks/marketplace_operations.md",
    )
    said = follow("\n".join(curls(ROOT / page) for page in pages), *place, STORY_S_MAX)
    told = (
        "ended with 3: it waits for others",
        "ended with 2",
        "0.60 EUR",
        "ended with 1: not activated",
        "harbour-pilot until",
        '"granted":true',
        '"inserted":1',
        "ended with 1: over",
        '"account":"earnings.acme.EUR"',
        "ended with 2: once",
        "soma_timer_leader 1.0",
        '"status":"suspended"',
        '"status":"rejected"',
        "too few signatures are left",
        "2 of 2: the threshold is met",
        "retired: 1",
        "every promise holds",
        '"status":"revoked"',
        "refused: it was revoked",
    )
    at = 0
    for words in told:
        assert words in said[at:], f"{words!r} is not said after {said[max(0, at - 500) : at]}"
        at = said.index(words, at)
