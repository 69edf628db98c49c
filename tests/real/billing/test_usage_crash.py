"""Killing the service while readings come in by the thousand over HTTP, and sending all of them again.

Whatever the moment: what was acknowledged is there, what is sent again is told apart from what is new, each reading is
in the log once, and the log, its tree and the current states agree.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psycopg
import pytest

from domain.values import moment_text
from ops.tokens import LocalIssuer
from tests.real.log.world import check_database
from tests.real.service import settings_on

TENANT = "metered"
REQUESTS = 6
READINGS = 2_300
# Kills at random moments of one database.
RUNS = max(3, int(os.environ.get("SOMA_CRASH_RUNS", "12")) // 4)
STATES = [(1, 1), (1, 3), (2, 2), (3, 1), (3, 3), (4, 2), (5, 1)]


class Request(NamedTuple):
    """A request of many readings: every second one goes under a key."""

    readings: list[dict[str, Any]]
    key: str | None


def requests(run: int) -> list[Request]:
    """Write the requests of a run; some readings come in two requests, or twice in one."""
    at, chance = moment_text(datetime.now(UTC)), random.Random(run)
    found = []
    for number in range(REQUESTS):
        first = run * 10**6 + number * READINGS
        readings = [
            {
                "source": "gateway", "event_id": f"e{n}", "occurred_at": at, "provider": "openai", "model": "gpt-4o",
                "tokens_in": n % 977, "tokens_out": n % 31, "cost": {"amount": f"0.{n:08d}1", "currency": "USD"},
            }
            for n in range(first, first + READINGS)
        ]  # fmt: skip
        readings += chance.sample(found[-1].readings if found else readings, 100)
        found.append(Request(readings, f"run-{run}-{number}" if number % 2 else None))
    return found


class Service:
    """A service in a process of its own, and how to send readings to it."""

    def __init__(self, process: subprocess.Popen[str], url: str, token: str, armed: Path) -> None:
        self.process = process
        self._armed = armed
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}

    def arm(self) -> None:
        """Wait until it answers; from then on it counts the states it comes to."""
        with httpx.Client(base_url=self._url, timeout=60, trust_env=False) as client:
            assert client.get("/ready").status_code == 200
        self._armed.touch()

    def send(self, asked: Request) -> dict[str, Any] | None:
        """Send readings; None where there was no answer."""
        headers = self._headers | ({} if asked.key is None else {"Idempotency-Key": asked.key})
        try:
            with httpx.Client(base_url=self._url, timeout=60, trust_env=False) as client:
                answer = client.post("/v1/usage", json={"readings": asked.readings}, headers=headers)
        except httpx.TransportError:
            return None
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def send_all(self, asked: list[Request]) -> list[dict[str, Any] | None]:
        """Send requests over two connections."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(self.send, asked))


@contextmanager
def service(url: str, data_dir: Path, root: Path, state: int = 0, nth: int = 1) -> Iterator[Service]:
    """Start a service that dies at a state, or lives until it is killed here."""
    armed = data_dir / "armed"
    armed.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.real.billing.usage_child", url, data_dir, armed, state, nth]
    token = LocalIssuer(settings_on(url, data_dir)).mint("gateway", TENANT, ["service"])
    with subprocess.Popen(
        [str(word) for word in command], cwd=root, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield Service(process, process.stdout.readline().strip(), token, armed)
        finally:
            process.kill()


def counts(answer: dict[str, Any] | None) -> tuple[int, int, int]:
    assert answer is not None, "a service that lives answers"
    return answer["inserted"], answer["duplicates"], len(answer["rejected"])


def taken(url: str) -> set[str]:
    """Read the ids of the readings that are in the log; none of them may be there twice."""
    with psycopg.connect(url) as conn:
        rows = conn.execute(
            "SELECT convert_from(record, 'UTF8')::jsonb #>> '{data,event_id}' FROM events WHERE type = 'usage.metered'"
        ).fetchall()
    assert len({row[0] for row in rows}) == len(rows), "a reading is in the log twice"
    return {row[0] for row in rows}


def aftermath(
    url: str, data_dir: Path, root: Path, asked: list[Request], heard: list[dict[str, Any] | None]
) -> None:
    """Check what the dead left, send everything again to another, and check that it is all there, once."""
    before = check_database(url)
    left = taken(url)
    for request, answer in zip(asked, heard, strict=True):
        if answer is not None:
            assert {one["event_id"] for one in request.readings} <= left, "what was acknowledged is lost"
    with service(url, data_dir, root) as again:
        retried = again.send_all(asked)
        once_more = again.send_all(asked)
    check_retried(asked, heard, retried)
    for request, first, second in zip(asked, retried, once_more, strict=True):
        assert first is not None
        if request.key is None:
            assert counts(second) == (0, len(request.readings), 0), "a duplicate was not found"
        else:
            assert second == dict(first, receipt=dict(first["receipt"], repeated=True))
    sent = {one["event_id"] for request in asked for one in request.readings}
    assert taken(url) == left | sent, "a reading is lost"
    after = check_database(url)
    assert after.addresses[: before.size] == before.addresses


def check_retried(
    asked: list[Request], heard: list[dict[str, Any] | None], retried: list[dict[str, Any] | None]
) -> None:
    """Hold what was answered the second time against the first: the same under a key, else only duplicates."""
    for request, first, second in zip(asked, heard, retried, strict=True):
        assert sum(counts(second)) == len(request.readings)
        assert counts(second)[2] == 0
        if first is not None and request.key is None:
            assert counts(second) == (0, len(request.readings), 0)
        elif first is not None:
            assert second == dict(first, receipt=dict(first["receipt"], repeated=True))


@pytest.mark.parametrize(("state", "nth"), STATES)
def test_readings_sent_to_a_service_that_dies_at_a_state_are_taken_once_when_sent_again(
    database_url: str, tmp_path: Path, repository_root: Path, state: int, nth: int
) -> None:
    asked = requests(1)
    with service(database_url, tmp_path, repository_root, state, nth) as dying:
        dying.arm()
        heard = dying.send_all(asked)
        assert dying.process.wait(60) == -9, "it was to die at a state"
    assert None in heard
    aftermath(database_url, tmp_path, repository_root, asked, heard)


def test_readings_sent_to_a_service_killed_at_random_moments_are_taken_once_when_sent_again(
    database_url: str, tmp_path: Path, repository_root: Path
) -> None:
    for run in range(2, 2 + RUNS):
        asked, chance = requests(run), random.Random(run)
        with service(database_url, tmp_path, repository_root) as dying:
            dying.arm()
            with ThreadPoolExecutor(1) as pool:
                sending = pool.submit(dying.send_all, asked)
                # Most of what may happen happens within this time on any machine; where it ends is no condition.
                time.sleep(chance.uniform(0, 1.5))
                dying.process.kill()
                heard = sending.result()
        aftermath(database_url, tmp_path, repository_root, asked, heard)
