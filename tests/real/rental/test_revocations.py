"""The watch over stopped capsules, killed in the middle: what ran is ended and paid once, and noted once."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from domain.fields import Command
from domain.ledger import Caller, Case, allow
from domain.persona.capsules import Capsule
from domain.rental.rentals import Rental, Terms, request_rental
from domain.rental.settling import Sale
from ops.runtime import Runtime, open_runtime
from projections.revocations import RevocationWatch
from tests.real.rental.rental_desk import (
    RENTER,
    RentFor,
    check_books,
    endings,
    open_rentals,
    rich,
    workers,
)
from tests.real.service import settings_on
from tests.unit.rental.rental_maker import SALE, TERMS

COUNT = 120
AUTHOR = Caller("olivia", "maker", frozenset({"owner"}))
OTHER = msgspec.structs.replace(SALE, capsule="sha3-512:" + "ef" * 64)


class Name(Command):
    """Name a capsule."""

    capsule: str = SALE.capsule


@allow()
def make_capsule(case: Case, command: Name) -> Capsule:
    """Write a capsule down."""
    exported = Capsule.Exported(
        persona_id="atlas", version="1.0.0", capsule=command.capsule, manifest={}, archive=command.capsule,
        archive_bytes=1, token_estimate=None, export_id="export-1",
    )  # fmt: skip
    return case.create(Capsule, command.capsule.removeprefix("sha3-512:"), exported)


@allow()
def stop_capsule(case: Case, command: Name) -> Capsule:
    """Revoke a capsule with what runs on it."""
    capsule = case.get(Capsule, command.capsule.removeprefix("sha3-512:"))
    revoked = Capsule.Revoked(
        persona_id="atlas", version="1.0.0", reason="it misled people", rentals="end", claim_id=None
    )
    return case.emit(capsule, revoked)


@allow()
def rent_of(case: Case, command: RentFor, *, sale: Sale = SALE) -> Rental:
    """Rent, and activate at once."""
    rental = request_rental(case, Terms(sale, TERMS.price), int(command.seconds) // 60)
    return case.emit(rental, Rental.Activated(expires_at="2099-01-01T00:00:00.000000Z"))


@allow()
def rent_other(case: Case, command: RentFor) -> Rental:
    """Rent another version of the same persona."""
    return rent_of(case, command, sale=OTHER)


async def prepared(runtime: Runtime) -> Rental:
    """Have many rentals of one capsule run, and one of another."""
    await rich(runtime)
    for capsule in (SALE.capsule, OTHER.capsule):
        await runtime.ledger.act(make_capsule, Name(capsule=capsule), AUTHOR)
    hour = RentFor(seconds=3_600)
    await asyncio.gather(*(runtime.ledger.act(rent_of, hour, RENTER) for _ in range(COUNT)))
    answer = await runtime.ledger.act(rent_other, hour, RENTER)
    return msgspec.json.decode(answer.body, type=Rental)


def notes(database_url: str) -> list[Any]:
    """Read what was noted about stopped capsules."""
    with psycopg.connect(database_url) as conn:
        rows = conn.execute(
            "SELECT convert_from(record, 'UTF8')::jsonb -> 'data' FROM events WHERE type = 'offboarding.completed'"
        ).fetchall()
    return [row[0] for row in rows]


def wait_until_some_ended(database_url: str, watch: subprocess.Popen[str]) -> None:
    """Wait until the watch is in the middle of its work, and kill it."""
    until = time.monotonic() + 30.0
    while open_rentals(database_url) > COUNT:
        assert time.monotonic() < until, "nothing ended"
        time.sleep(0.001)
    watch.send_signal(signal.SIGKILL)
    watch.wait()


def test_a_watch_killed_in_the_middle_ends_everything_once(database_url: str, tmp_path: Path) -> None:
    settings = settings_on(database_url, tmp_path)

    async def story() -> Rental:
        async with open_runtime(settings) as runtime:
            other = await prepared(runtime)
            stopped = msgspec.json.decode(
                (await runtime.ledger.act(stop_capsule, Name(), AUTHOR)).body, type=Capsule
            )
            with workers(database_url, tmp_path, "revocations") as watch:
                await asyncio.to_thread(wait_until_some_ended, database_url, watch)
            # This process has not looked since, and knows nothing of what the other wrote.
            watch_here = RevocationWatch(runtime)
            assert await watch_here.sweep() <= 1
            assert await watch_here.sweep() == 0
            assert open_rentals(database_url) == 1
            await runtime.ledger.act(stop_capsule, Name(capsule=OTHER.capsule), AUTHOR)
            assert await watch_here.sweep() == 1
            assert stopped.stopped_at is not None
            return other

    other = asyncio.run(story())
    ended = endings(database_url)
    assert len(ended) == COUNT + 1
    assert other.id in {one.name for one in ended}
    check_books(database_url, ended)
    assert {(one["capsule"], one["capsule_version"]) for one in notes(database_url)} == {
        (SALE.capsule, 2),
        (OTHER.capsule, 2),
    }
    assert len(notes(database_url)) == 2
