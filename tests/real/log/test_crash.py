"""Killing the service, and the database under it, at every numbered state and at random moments.

After each kill the ledger is opened again and everything the dead one said is held against what is there: acknowledged
commands are in the log once and at their position, the same keys have the same effect once, the money adds up, and
every checkpoint that was handed out is one of this log.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest

from domain.errors import LedgerError
from domain.log.notes import VerifierKey, open_checkpoint
from ops.embedded import EmbeddedPostgres
from ops.runtime import Runtime, open_runtime
from ops.settings import Settings
from tests.real.log.crash_child import BULK_TIMES, asked
from tests.real.log.world import Checked, check_database, settings_for

WRITERS = 32
# Kills at random moments; the full bar is 100.
RUNS = int(os.environ.get("SOMA_CRASH_RUNS", "12"))
RUNS_PER_DATABASE = 4
SERVER_KILLS = max(2, RUNS // 10)


class Child:
    """A service under load in a process of its own, and everything it said before it died."""

    def __init__(self, root: Path, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.said: list[dict[str, Any]] = []
        self._heard = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.real.log.crash_child", json.dumps(plan)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=root,
        )
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self._heard, suppress(json.JSONDecodeError):  # the last line may have been cut short
                self.said.append(json.loads(line))
                self._heard.notify_all()

    def wait_for(self, word: str) -> dict[str, Any]:
        """Wait until the child has said a word; it may not die before."""
        with self._heard:
            found = self._heard.wait_for(lambda: any(word in line for line in self.said), 60)
        assert found, f"the child did not say {word}: {self.process.poll()} {self.said[-3:]}"
        return next(line for line in self.said if word in line)

    def kill(self) -> None:
        """Kill it without a word, and read what it had said."""
        self.process.kill()
        self.end()

    def end(self) -> None:
        """Wait until it is gone."""
        self.process.wait(60)
        self._listener.join()
        assert self.process.stdout
        assert self.process.stderr
        self.process.stdout.close()
        self.process.stderr.close()

    @property
    def acknowledged(self) -> list[dict[str, Any]]:
        return [line for line in self.said if "key" in line]


async def hear_again(rt: Runtime, plan: dict[str, Any], line: dict[str, Any]) -> tuple[Any, ...]:
    """Send a command once more under its key; give what was answered."""
    key, use_case, command, caller = asked(plan["run"], plan["mode"], line["writer"], line["step"])
    assert key == line.get("key", key)
    try:
        answer = await rt.ledger.act(use_case, command, caller, key=key)
    except LedgerError as refusal:
        return ("refused", refusal.code)
    return ("done", answer.position, answer.event_count)


async def retry(settings: Settings, plan: dict[str, Any], acknowledged: list[dict[str, Any]]) -> VerifierKey:
    """Open the ledger again and send everything once more: what was answered, and what each writer was waiting for."""
    async with open_runtime(settings) as rt:
        answers = await asyncio.gather(*(hear_again(rt, plan, line) for line in acknowledged))
        for line, answer in zip(acknowledged, answers, strict=True):
            first = (
                ("refused", line["refused"])
                if "refused" in line
                else ("done", line["position"], line["count"])
            )
            assert answer == first, f"{line} was answered {answer} after the crash"
        last = {
            n: max([line["step"] for line in acknowledged if line["writer"] == n], default=-2)
            for n in range(WRITERS)
        }
        waiting = [{"writer": n, "step": step + 1} for n, step in last.items() if step + 1 < plan["steps"]]
        once = await asyncio.gather(*(hear_again(rt, plan, line) for line in waiting))
        assert once == await asyncio.gather(*(hear_again(rt, plan, line) for line in waiting))
        return rt.signer.key


def check_said(child: Child, checked: Checked, key: VerifierKey) -> None:
    """Hold what the child said against the log."""
    effects = Counter(note_of(record) for record in checked.records)
    for line in child.acknowledged:
        if "refused" in line:
            assert effects[line["key"]] == 0
            continue
        records = checked.records[line["position"] : line["position"] + line["count"]]
        mine = [record for record in records if note_of(record) == line["key"]]
        assert mine, f"{line} is not where it was said to be"
        assert len(mine) == effects[line["key"]], f"{line} is there more than once"
    for line in child.said:
        if "address" in line:
            assert checked.addresses[line["position"]].hex() == line["address"]
        if "checkpoint" in line:
            checkpoint, _ = open_checkpoint(line["checkpoint"].encode(), [key])
            assert checked.roots[checkpoint.size] == checkpoint.root
    times = {effects[note] for note in effects if note is not None}
    assert times <= {1, BULK_TIMES}


def note_of(record: dict[str, Any]) -> str | None:
    """Give the key a record carries: in its memo, its note or its name."""
    data = record["data"]
    if record["type"] == "tally.opened" and not record["stream"].endswith("/hot"):
        return str(record["stream"].partition("/")[2])
    return data.get("memo") or data.get("note")


def aftermath(child: Child, settings: Settings, url: str) -> None:
    """Check what the dead left, bring it back, and check again."""
    before = check_database(url)
    key = asyncio.run(retry(settings, child.plan, child.acknowledged))
    after = check_database(url)
    assert after.addresses[: before.size] == before.addresses
    check_said(child, after, key)


def plan_for(url: str | None, data_dir: Path, run: str, mode: str, **more: Any) -> dict[str, Any]:
    return {
        "url": url,
        "data_dir": str(data_dir),
        "run": run,
        "mode": mode,
        "writers": WRITERS,
        "steps": 400,
        **more,
    }


STATES = [
    (mode, state)
    for mode in ("small", "bulk", "locked")
    for state in (1, 2, 3, 4, 5)
    if (mode, state) != ("small", 3)
]


@pytest.mark.parametrize(("mode", "state"), STATES)
def test_a_service_killed_at_a_numbered_state_loses_and_doubles_nothing(
    database_url: str, tmp_path: Path, repository_root: Path, mode: str, state: int
) -> None:
    child = Child(repository_root, plan_for(database_url, tmp_path, "s", mode, state=state, nth=2))
    try:
        assert child.wait_for("at")["at"] == state
    finally:
        child.kill()
    aftermath(child, settings_for(database_url, tmp_path), database_url)


@pytest.mark.parametrize("block", range(-(-RUNS // RUNS_PER_DATABASE)))
def test_a_service_killed_at_random_moments_loses_and_doubles_nothing(
    database_url: str, tmp_path: Path, repository_root: Path, block: int
) -> None:
    for n in range(block * RUNS_PER_DATABASE, min(RUNS, (block + 1) * RUNS_PER_DATABASE)):
        chance = random.Random(n)
        mode = chance.choice(["small", "bulk", "locked"])
        child = Child(repository_root, plan_for(database_url, tmp_path, f"r{n}", mode))
        try:
            child.wait_for("ready")
            time.sleep(chance.uniform(0, 0.4))
        finally:
            child.kill()
        aftermath(child, settings_for(database_url, tmp_path), database_url)


# --------------------------------------------------------------------------- the database server dies too


def kill_server(data_dir: Path) -> None:
    """Kill the postmaster of a data directory and all of its children, the postmaster first."""
    (lock,) = data_dir.rglob("postmaster.pid")
    postmaster = psutil.Process(int(lock.read_text().split()[0]))
    family = [postmaster, *postmaster.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=30)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Lend a directory for an embedded server of its own."""
    with TemporaryDirectory(prefix="soma-crash-") as place:
        yield Path(place)
        with suppress(ValueError, psutil.NoSuchProcess):
            kill_server(Path(place))


def test_a_database_killed_with_all_its_processes_loses_nothing_that_was_acknowledged(
    data_dir: Path, repository_root: Path
) -> None:
    for n in range(SERVER_KILLS):
        chance = random.Random(1_000 + n)
        mode = ("small", "bulk", "locked")[n % 3]
        child = Child(repository_root, plan_for(None, data_dir, f"d{n}", mode))
        try:
            child.wait_for("ready")
            time.sleep(chance.uniform(0.05, 0.5))
            # Half the time the service survives its database for a moment, half the time it goes first.
            if n % 2:
                child.process.send_signal(signal.SIGKILL)
            kill_server(data_dir)
        finally:
            child.kill()
        with EmbeddedPostgres.start(data_dir) as server:
            aftermath(child, settings_for(server.url, data_dir), server.url)
