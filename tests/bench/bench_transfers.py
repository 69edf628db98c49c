"""Measure transfers through the gate against a function inside the database that does the same double entry."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

import psycopg

from domain.billing import accounts
from domain.ledger import Caller
from domain.values import Money
from tests.bench.figures import Figure, House, Turn, compared, open_house, run, take_turns, tasks, threads

ACCOUNTS = 50
THREADS = (8, 20, 64)
CALIBRATION_S = 1.5
OPENING = Money("1000000.00", "EUR")
AMOUNT = Money("0.01", "EUR")

_SCHEMA = """
CREATE TABLE wallets (account text PRIMARY KEY, balance_nano numeric(38, 0) NOT NULL CHECK (balance_nano >= 0))
    WITH (fillfactor = 50);
CREATE TABLE transfers (id text PRIMARY KEY, memo text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE entries (
    account text NOT NULL, transfer text NOT NULL, amount_nano numeric(38, 0) NOT NULL,
    balance_nano numeric(38, 0) NOT NULL, PRIMARY KEY (account, transfer)
);
CREATE FUNCTION transfer(id_ text, source_ text, target_ text, amount_ numeric, memo_ text) RETURNS numeric
LANGUAGE plpgsql AS $$
DECLARE
    source_after numeric;
    target_after numeric;
BEGIN
    PERFORM FROM wallets WHERE account IN (source_, target_) ORDER BY account FOR UPDATE;
    UPDATE wallets SET balance_nano = balance_nano - amount_ WHERE account = source_
        RETURNING balance_nano INTO STRICT source_after;
    UPDATE wallets SET balance_nano = balance_nano + amount_ WHERE account = target_
        RETURNING balance_nano INTO STRICT target_after;
    INSERT INTO transfers (id, memo) VALUES (id_, memo_);
    INSERT INTO entries VALUES (source_, id_, amount_, source_after), (target_, id_, -amount_, target_after);
    RETURN source_after;
END $$;
"""


def pairs(seed: int) -> Callable[[], tuple[int, int]]:
    """Draw two different accounts at a time, the same ones for the same seed."""
    chance = random.Random(seed)
    return lambda: tuple(chance.sample(range(ACCOUNTS), 2))  # type: ignore[return-value]


def in_database(house: House, callers: int, seconds: float | None = None) -> Turn:
    """Let threads call the function, each on a connection of its own."""
    own, draw, numbers = threading.local(), pairs(1), itertools.count()
    run_name = random.randbytes(6).hex()

    def act(_: int) -> None:
        if not hasattr(own, "connection"):
            own.connection = house.connect_baseline()
        source, target = draw()
        arguments = (f"{run_name}-{next(numbers)}", f"w{source:02d}", f"w{target:02d}", AMOUNT.nano, "")
        own.connection.execute("SELECT transfer(%s, %s, %s, %s, %s)", arguments, prepare=True)

    return threads(act, callers) if seconds is None else threads(act, callers, seconds)


async def best_callers(house: House) -> int:
    """Find the number of threads at which the database does most."""
    tried = {n: (await in_database(house, n, CALIBRATION_S)()).per_s for n in THREADS}
    return max(tried, key=tried.__getitem__)


async def fill(house: House) -> None:
    """Open the accounts on both sides and put money in."""
    teller = Caller("teller", "platform", frozenset({"billing"}))
    for number in range(ACCOUNTS):
        command = accounts.Deposit(tenant=f"tenant-{number:02d}", amount=OPENING)
        await house.runtime.ledger.act(accounts.deposit, command, teller)
    with psycopg.connect(house.baseline_url, autocommit=True) as connection:
        connection.execute(_SCHEMA)
        rows = [(f"w{number:02d}", OPENING.nano) for number in range(ACCOUNTS)]
        connection.cursor().executemany("INSERT INTO wallets VALUES (%s, %s)", rows)


def through_gate(house: House) -> Turn:
    """Let tasks transfer as the tenants whose wallets pay."""
    ledger, draw = house.runtime.ledger, pairs(2)
    callers = [Caller("owner", f"tenant-{n:02d}", frozenset({"owner"})) for n in range(ACCOUNTS)]

    def act(_: int) -> Any:
        source, target = draw()
        command = accounts.TransferMoney(to_tenant=f"tenant-{target:02d}", amount=AMOUNT)
        return ledger.act(accounts.transfer, command, callers[source])

    return tasks(act)


def transfers() -> list[Figure]:
    """Measure 64 callers who move money between 50 accounts."""

    async def measure() -> list[Figure]:
        async with open_house() as house:
            await fill(house)
            best = await best_callers(house)
            theirs, ours = await take_turns(in_database(house, best), through_gate(house))
        return [
            compared("log.transfers", "transfers/s", ours.per_s, theirs.per_s, at_least=5),
            compared("log.transfers_p99_over_p50", "ms", ours.p99_ms, ours.p50_ms),
        ]

    return run(measure)


FIGURES = {"log.transfers": transfers}
