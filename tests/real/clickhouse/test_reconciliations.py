"""Reconciliations as acts: events and metrics, every night once, over HTTP and on the command line."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from domain.errors import ForbiddenError
from domain.ledger import Caller
from ops import telemetry
from ops.engine.process import EmbeddedClickHouse, Target
from ops.reads import RecordFilter
from projections.nightly import Nightly
from projections.reconcile import WHOLE, Scope
from projections.reconciliations import Reconciled, last, reconcile
from tests.real.clickhouse.reconciled import TELLER, World, world
from tests.real.service import serving, settings_on

Story = Callable[[World], Awaitable[None]]
Tell = Callable[[Story], None]

AUDITOR = Caller("ada", "audits", frozenset({"auditor"}))
OWNER = Caller("olga", "acme", frozenset({"owner"}))
NOW = datetime(2031, 3, 9, 12, 0, tzinfo=UTC)


@pytest.fixture
def tell(database_url: str, tmp_path: Path, engine: EmbeddedClickHouse) -> Tell:
    """Play a story in a world of its own."""

    def play(story: Story) -> None:
        async def run() -> None:
            async with world(database_url, tmp_path, engine.target, payments=60) as told:
                await story(told)

        asyncio.run(run())

    return play


async def kept(told: World, **contains: Any) -> list[dict[str, Any]]:
    """List the reconciliations in the log, the newest first."""
    wanted = RecordFilter("reconciliation", contains=contains or None)
    return await told.runtime.reader.records(wanted, before=None, limit=100)


def metric(name: str, **labels: str) -> float | None:
    return telemetry.REGISTRY.get_sample_value(name, labels)


# --------------------------------------------------------------------------- events


def test_a_reconciliation_is_an_event_that_says_what_was_compared(tell: Tell) -> None:
    async def story(told: World) -> None:
        size = await told.runtime.reader.size()
        done = await reconcile(told.runtime, told.clickhouse, WHOLE, TELLER)
        assert done.position == size
        (state,) = await kept(told)
        assert (state["clean"], state["bound"], state["log_size"], state["records"]) == (
            True,
            size,
            size,
            size,
        )
        assert (state["difference_count"], state["differences"], state["tenant"]) == (0, [], "platform")
        stored = json.loads((await told.runtime.reader.at(size)).record)
        assert (stored["type"], stored["actor"]) == ("reconciliation.completed", TELLER.subject)
        # The record of it is one more record, which the next one compares too.
        await told.follow()
        again = await reconcile(told.runtime, told.clickhouse, WHOLE, TELLER)
        assert again.comparison.is_clean
        assert again.comparison.bound == size + 1

    tell(story)


def test_what_differs_is_in_the_event_and_in_the_metrics(tell: Tell) -> None:
    async def story(told: World) -> None:
        await told.replace("records", "position >= 20 AND position < 60", actor="repeat('ü', 500)")
        done = await reconcile(told.runtime, told.clickhouse, WHOLE, TELLER)
        (state,) = await kept(told)
        assert state["difference_count"] == done.comparison.found.count == 40
        assert 10 <= len(state["differences"]) <= 20
        first = state["differences"][0]
        assert (first["kind"], first["position"], first["changes"][0]["column"]) == ("altered", 20, "actor")
        assert metric("soma_reconciliation_drift") == 40
        assert metric("soma_reconciliation_differences", kind="altered") == len(state["differences"])
        clean_at = metric("soma_reconciliation_last_clean_timestamp_seconds") or 0
        assert (metric("soma_reconciliation_last_timestamp_seconds") or 0) > clean_at

    tell(story)


def test_a_look_writes_nothing_and_strangers_may_not_ask(tell: Tell) -> None:
    async def story(told: World) -> None:
        size = await told.runtime.reader.size()
        looked = await reconcile(told.runtime, told.clickhouse, WHOLE, TELLER, written=False)
        assert looked.comparison.is_clean
        with pytest.raises(ForbiddenError):
            await reconcile(told.runtime, told.clickhouse, WHOLE, OWNER)
        assert await told.runtime.reader.size() == size
        await reconcile(told.runtime, told.clickhouse, Scope(account="wallet.acme.USD"), AUDITOR)
        assert [state["scope"] for state in await kept(told)] == ["account wallet.acme.USD"]

    tell(story)


# --------------------------------------------------------------------------- nights


def test_a_night_is_reconciled_once_whatever_is_started_again(tell: Tell) -> None:
    async def story(told: World) -> None:
        # The log is younger than the last hour of the settings, so that night is none of its own.
        assert await Nightly(told.runtime, told.clickhouse).look(datetime.now(UTC)) is None
        now = datetime.now(UTC) + timedelta(days=1)
        assert await Nightly(told.runtime, told.clickhouse).look(now) is not None
        for _ in range(3):
            assert await Nightly(told.runtime, told.clickhouse).look(now) is None
        assert len(await kept(told, occasion="nightly")) == 1
        tomorrow = now + timedelta(days=1)
        # Two processes at the same hour: one compares, the other sees that or finds the record of the night.
        both = await asyncio.gather(
            *(Nightly(told.runtime, told.clickhouse).look(tomorrow) for _ in range(2))
        )
        assert any(done is not None for done in both)
        assert len(await kept(told, occasion="nightly")) == 2

    tell(story)


def test_one_that_was_asked_for_does_not_take_the_place_of_a_night(tell: Tell) -> None:
    async def story(told: World) -> None:
        await reconcile(told.runtime, told.clickhouse, WHOLE, TELLER)
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        done: Reconciled | None = await Nightly(told.runtime, told.clickhouse).look(tomorrow)
        assert done is not None
        known = await last(told.runtime, scope="all", occasion="nightly")
        assert known is not None
        assert known.id.endswith("-nightly")

    tell(story)


def test_a_restart_remembers_when_the_last_one_was(tell: Tell) -> None:
    async def story(told: World) -> None:
        done = await reconcile(told.runtime, told.clickhouse, WHOLE, TELLER, occasion="nightly")
        for gauge in (telemetry.RECONCILED_AT, telemetry.RECONCILED_CLEAN_AT, telemetry.DEAD_LETTERS_OPEN):
            gauge.set(-1)
        task = asyncio.create_task(Nightly(told.runtime, told.clickhouse).run())
        until = time.monotonic() + 20
        while metric("soma_dead_letters_open") != 0 and time.monotonic() < until:  # noqa: ASYNC110 - a metric tells nobody
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        assert done.record is not None
        at_s = datetime.fromisoformat(done.record.created_at).timestamp()
        assert metric("soma_reconciliation_last_timestamp_seconds") == at_s
        assert metric("soma_reconciliation_last_clean_timestamp_seconds") == at_s
        assert metric("soma_dead_letters_open") == 0

    tell(story)


# --------------------------------------------------------------------------- HTTP and the command line


def url_of(target: Target) -> str:
    """Name an engine and its service's account in one URL."""
    return target.url.replace("://", f"://{target.service_user}:{target.service_password}@")


def test_over_http_one_is_begun_found_and_listed(
    database_url: str, tmp_path: Path, engine: EmbeddedClickHouse, tell: Tell
) -> None:
    async def story(told: World) -> None:
        await told.replace("records", "position = 30", actor="'mallory'")

    tell(story)
    given = settings_on(database_url, tmp_path, clickhouse_url=SecretStr(url_of(engine.target)))
    with serving(given) as service, service.client(AUDITOR) as auditor, service.client(OWNER) as owner:
        path = "/v1/billing/reconciliations"
        assert owner.post(path, json={}).status_code == owner.get(path).status_code == 403
        assert auditor.post(path, json={"as_of": -1}).status_code == 400
        begun = auditor.post(path, json={})
        assert begun.status_code == 202
        second = auditor.post(path, json={})
        assert second.status_code in (202, 409)
        state = auditor.get(begun.headers["location"]).json()
        until = time.monotonic() + 30
        while state.get("status") == "running" and time.monotonic() < until:
            state = auditor.get(begun.headers["location"]).json()
        assert state["differences"][0]["position"] == 30
        assert auditor.get(path).json()["items"][-1]["id"] == begun.json()["id"]
        assert auditor.get(path, params={"status": "clean"}).json()["items"] == []
        assert auditor.get(f"{path}/reconciliation-0").json()["code"] == "reconciliation_not_found"


def soma(database_url: str, data_dir: Path, target: Target, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line on this database and this engine."""
    there = {
        "SOMA_DATABASE_URL": database_url,
        "SOMA_CLICKHOUSE_URL": url_of(target),
        "SOMA_DATA_DIR": str(data_dir),
    }
    command = [sys.executable, "-m", "api.cli", "billing", "reconcile", *words]
    return subprocess.run(command, env=os.environ | there, capture_output=True, text=True, timeout=120)


def test_the_command_line_says_clean_with_0_and_names_what_differs_with_1(
    database_url: str, tmp_path: Path, engine: EmbeddedClickHouse, tell: Tell
) -> None:
    async def story(told: World) -> None:
        clean = await asyncio.to_thread(soma, database_url, tmp_path, engine.target, "--dry-run")
        assert clean.returncode == 0, clean.stderr
        assert "clean" in clean.stdout
        position = (await told.legs_of("wallet.bolt.USD"))[3]
        where = f"position = {position} AND account = 'wallet.bolt.USD'"
        await told.replace("entries", where, amount="amount + 1")
        found = await asyncio.to_thread(soma, database_url, tmp_path, engine.target, "--json")
        assert found.returncode == 1, found.stderr
        said = json.loads(found.stdout)
        assert (said["clean"], said["difference_count"], said["repaired"]) == (False, 1, [])
        assert said["differences"][0]["position"] == position
        assert said["position"] == said["log_size"]
        table = await asyncio.to_thread(soma, database_url, tmp_path, engine.target, "--dry-run", "--deep")
        assert f"position {position}" in table.stdout
        assert "altered" in table.stdout

    tell(story)
