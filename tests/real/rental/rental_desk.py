"""Many rentals on a real log, with durations of seconds, and the timers in processes of their own."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from domain.billing.accounts import Deposit, deposit
from domain.fields import Command
from domain.ledger import Caller, Case, allow
from domain.rental.rentals import Rental, cost_nano, request_rental
from domain.values import Money, moment_of, moment_text
from ops.runtime import Runtime
from tests.unit.rental.rental_maker import TERMS

RENTER = Caller("rick", "acme", frozenset({"owner"}))
TELLER = Caller("tess", "platform", frozenset({"billing", "operator"}))
ROOT = Path(__file__).resolve().parents[3]


class RentFor(Command):
    """Rent for so many seconds, which no price list offers: the end is written as it is."""

    seconds: float


@allow()
def rent_for(case: Case, command: RentFor) -> Rental:
    """Reserve whole minutes, and let the time end where the test wants it."""
    rental = request_rental(case, TERMS, int(command.seconds) // 60 + 1)
    end = moment_text(moment_of(case.now) + timedelta(seconds=command.seconds))
    return case.emit(rental, Rental.Activated(expires_at=end))


async def rich(runtime: Runtime, amount: str = "100000") -> None:
    """Put money into the renter's wallet."""
    command = Deposit(tenant=RENTER.tenant, amount=Money.parse(amount, "USD"))
    await runtime.ledger.act(deposit, command, TELLER)


async def rented(runtime: Runtime, seconds: float) -> Rental:
    """Rent, and activate at once."""
    answer = await runtime.ledger.act(rent_for, RentFor(seconds=seconds), RENTER)
    return msgspec.json.decode(answer.body, type=Rental)


async def rented_many(
    runtime: Runtime, count: int, shortest_s: float, longest_s: float, seed: int = 5
) -> list[Rental]:
    """Rent many times, with durations by chance, over about a second for each two hundred."""
    chance = random.Random(seed)
    made: list[Rental] = []
    for _ in range(0, count, 50):
        durations = [chance.uniform(shortest_s, longest_s) for _ in range(min(50, count - len(made)))]
        made += await asyncio.gather(*(rented(runtime, seconds) for seconds in durations))
        await asyncio.sleep(0.05)
    return made


def timers(database_url: str, data_dir: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run timers in a process of their own, and kill it at the end if nobody has."""
    return workers(database_url, data_dir, "timers")


@contextmanager
def workers(database_url: str, data_dir: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    """Run one of the workers in a process of its own, and kill it at the end if nobody has."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.real.rental.timer_child", kind, database_url, str(data_dir)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "up\n", "the worker did not start"
            yield child
        finally:
            child.kill()


def open_rentals(database_url: str) -> int:
    """Count what is not settled yet."""
    with psycopg.connect(database_url) as conn:
        row = conn.execute(
            "SELECT count(*) FROM records WHERE kind = 'rental' AND status IN ('requested', 'active')"
        ).fetchone()
    assert row is not None
    return int(row[0])


def wait_settled(database_url: str, longest_s: float) -> float:
    """Wait until nothing is left that could end; give how long it took."""
    started = time.monotonic()
    while open_rentals(database_url):
        assert time.monotonic() - started < longest_s, f"{open_rentals(database_url)} rentals are still open"
        time.sleep(0.05)
    return time.monotonic() - started


class Ending(msgspec.Struct):
    """How a rental ended."""

    name: str
    expires_at: str
    ended_at: str
    charged: Money
    used_s: int

    @property
    def lateness_s(self) -> float:
        """Give the time from the deadline to the decision of the ending."""
        return (moment_of(self.ended_at) - moment_of(self.expires_at)).total_seconds()


def endings(database_url: str) -> list[Ending]:
    """Read how every rental ended; each has ended once."""
    with psycopg.connect(database_url) as conn:
        events = conn.execute(
            "SELECT stream, convert_from(record, 'UTF8')::jsonb ->> 'at' FROM events WHERE type = 'rental.ended'"
        ).fetchall()
        rows = conn.execute("SELECT id, state::text FROM records WHERE kind = 'rental'").fetchall()
    counts = Counter(stream for stream, _ in events)
    assert set(counts.values()) <= {1}, "a rental ended twice"
    at = {stream.removeprefix("rental/"): moment for stream, moment in events}
    found = []
    for name, state in rows:
        rental = msgspec.json.decode(state, type=Rental)
        assert rental.charged is not None, f"{name} is {rental.status}"
        assert rental.expires_at is not None
        assert rental.used_s is not None
        found.append(Ending(name, rental.expires_at, at[name], rental.charged, rental.used_s))
    return found


def check_books(database_url: str, ended: list[Ending]) -> None:
    """Hold the money against the endings: every hold settled once, every rental paid for what was used."""
    charged = sum(one.charged.nano for one in ended)
    assert all(one.charged.nano == cost_nano(TERMS, one.used_s) for one in ended)
    with psycopg.connect(database_url) as conn:
        holds: Any = conn.execute("SELECT status, count(*) FROM holds GROUP BY status").fetchall()
        sums: Any = conn.execute("SELECT sum(amount_nano) FROM postings WHERE hold IS NULL").fetchone()
        paid: Any = conn.execute(
            "SELECT sum(balance_nano), sum(held_nano) FROM accounts WHERE account IN"
            " ('earnings.maker.USD', 'fees.platform.USD')"
        ).fetchone()
        left: Any = conn.execute(
            "SELECT balance_nano, held_nano FROM accounts WHERE account = 'wallet.acme.USD'"
        ).fetchone()
    assert "pending" not in dict(holds), holds
    assert sum(dict(holds).values()) == len(ended)
    assert (int(paid[0]), int(paid[1])) == (charged, 0)
    assert (int(left[0]), int(left[1])) == (100_000 * 10**9 - charged, 0)
    assert sums is not None


def quantile(values: list[float], share: float) -> float:
    """Give the value below which a share of all lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
