"""The words `soma dead-letters` as processes, on a database that somebody else may be using."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from domain.values import moment_text
from ops.dead_letters import DeadLetters, Letter
from ops.runtime import open_runtime
from tests.real.service import settings_on
from tests.real.test_cli import soma

READING = {
    "tenant": "acme", "source": "gateway-eu", "event_id": "e1", "provider": "openai", "model": "gpt-4o-mini",
    "tokens_in": 10, "tokens_out": -5, "occurred_at": moment_text(datetime.now(UTC)),
}  # fmt: skip


@pytest.fixture
def given(database_url: str, tmp_path: Path) -> dict[str, str]:
    """Keep two letters: a reading with a fault, and noise; give the settings under which they are found."""

    async def add() -> None:
        async with open_runtime(settings_on(database_url, tmp_path)) as opened:
            letters = [
                Letter("message", "kafka.ingest", "slm.metrics", 2, n, payload, code, "as it was")
                for n, (payload, code) in enumerate(
                    [(json.dumps(READING).encode(), "invalid_field"), (b"\0noise", "message_not_json")]
                )
            ]
            await DeadLetters(opened.reader.pool).add(letters)

    asyncio.run(add())
    return {"database_url": database_url, "data_dir": str(tmp_path), "log_level": "error"}


def test_letters_are_listed_shown_mended_and_discarded(given: dict[str, str], tmp_path: Path) -> None:
    listed = json.loads(soma("dead-letters", "list", "--json", **given).stdout)
    assert [(one["code"], one["state"]) for one in listed] == [
        ("message_not_json", "open"),
        ("invalid_field", "open"),
    ]
    noise, faulty = (str(one["id"]) for one in listed)
    table = soma("dead-letters", "list", **given).stdout
    assert "2/0" in table
    assert "invalid_field" in table
    shown = json.loads(soma("dead-letters", "show", faulty, **given).stdout)
    assert json.loads(shown["payload"]) == READING

    still = soma("dead-letters", "requeue", faulty, **given)
    assert (still.returncode, still.stdout) == (2, "")
    assert still.stderr.startswith("dead_letter_not_taken: tokens_out")
    mended = tmp_path / "mended.json"
    mended.write_text(json.dumps(READING | {"tokens_out": 5}))
    done = soma("dead-letters", "requeue", faulty, "--reading", str(mended), **given)
    assert json.loads(done.stdout)["state"] == "requeued", done.stderr
    with psycopg.connect(given["database_url"]) as conn:
        rows = conn.execute("SELECT tenant, type FROM events").fetchall()
    assert rows == [("acme", "usage.metered")]

    gone = soma("dead-letters", "discard", noise, "--reason", "a load test", **given)
    assert json.loads(gone.stdout)["note"] == "a load test"
    assert json.loads(soma("dead-letters", "list", "--json", **given).stdout) == []
    every = json.loads(soma("dead-letters", "list", "--state", "all", "--json", **given).stdout)
    assert [one["state"] for one in every] == ["discarded", "requeued"]


def test_a_letter_that_is_not_there_and_a_state_that_is_none_are_refused(given: dict[str, str]) -> None:
    missing = soma("dead-letters", "show", "999", **given)
    assert missing.returncode == 2
    assert missing.stderr.startswith("dead_letter_not_found")
    assert soma("dead-letters", "list", "--state", "lost", **given).returncode == 2
