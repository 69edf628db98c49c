"""Access over HTTP is never given at or after the end: under load, clock steps, kills and an outage, exactly."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from domain.rental.rentals import Rental
from ops.clock import Clock
from ops.runtime import open_runtime
from projections.timers import Timers
from tests.real.rental.access_desk import (
    SECOND_NS,
    Answer,
    Asking,
    data_of,
    ends_of,
    judge,
    load,
    nanoseconds,
    outlives,
    public_key,
    soma_timers,
    stepped_service,
)
from tests.real.rental.rental_desk import (
    RENTER,
    RentFor,
    check_books,
    endings,
    rent_for,
    rented_many,
    rich,
    wait_settled,
)
from tests.real.service import serving, settings_on

COUNT = 40
HOUR_NS = 3_600 * SECOND_NS
APART_NS = 7_000
ZONES = (-1_000, 0, 1_000)


def test_nobody_is_let_in_too_long_under_load_with_clock_steps_kills_and_an_outage(
    database_url: str, tmp_path: Path
) -> None:
    settings = data_of(tmp_path, database_url)
    answers: list[Answer] = []

    async def story() -> None:
        async with open_runtime(settings) as runtime:
            await rich(runtime)
            with ExitStack() as living:
                service = living.enter_context(stepped_service(settings))
                leader, standby = (living.enter_context(soma_timers(settings)) for _ in range(2))
                async with service.client(RENTER) as client, load(service, 0.05) as done:
                    made = await rented_many(runtime, COUNT, 3.0, 9.0)
                    asking, over = Asking(service, client, made), asyncio.Event()
                    asked = asyncio.create_task(asking.everywhere(over, 0.02))
                    last = max(nanoseconds(str(one.expires_at)) for one in made)
                    # The clock is set back, put right, set forward; timers die meanwhile, and then there are none.
                    for step_ns, kill in ((-HOUR_NS, leader), (0, None), (SECOND_NS, standby), (0, None)):
                        await asyncio.to_thread(service.step, step_ns)
                        if kill is not None:
                            kill.send_signal(signal.SIGKILL)
                        await asyncio.sleep(0.5)
                    await service.reach(last)
                    over.set()
                    await asked
                    answers.extend(asking.answers)
                key = public_key(service)
                living.enter_context(soma_timers(settings))
                await asyncio.to_thread(wait_settled, database_url, 60.0)
        found = judge(answers, ends_of(database_url), key)
        print(found, done)
        assert (found.granted_late, found.refused_early, found.tokens_too_long) == (0, 0, 0), found
        # Some were let in, and everybody was asked about after the end.
        assert found.granted > 0
        assert {one.rental for one in answers if not one.granted} == {one.id for one in made}
        assert found.tokens == found.granted
        assert min(done) > 0

    asyncio.run(story())
    ended = endings(database_url)
    assert len(ended) == COUNT
    check_books(database_url, ended)


def test_access_ends_at_the_microsecond_and_the_timers_wait_for_it(database_url: str, tmp_path: Path) -> None:
    at = [time.time_ns() // 1_000_000_000 * 1_000_000_000]
    clock = Clock(lambda: at[0], lambda: at[0])
    with serving(settings_on(database_url, tmp_path, timers=False), clock) as service:
        runtime = service.runtime
        service.run(rich(runtime))
        made = []
        for number in range(24):
            command = RentFor(seconds=60 + number * APART_NS / SECOND_NS)
            answer = service.run(runtime.ledger.act(rent_for, command, RENTER))
            made.append(msgspec.json.decode(answer.body, type=Rental))
        timer = Timers(runtime)
        with service.client(RENTER) as client:
            for rental in made:
                end_ns = nanoseconds(str(rental.expires_at))
                said = []
                for off_ns in ZONES:
                    at[0] = end_ns + off_ns
                    found = client.get(f"/v1/rentals/{rental.id}/entitlement?epoch=1").json()
                    assert found["granted"] == (found["checked_at"] < str(rental.expires_at))
                    service.run(timer.look())
                    status = client.get(f"/v1/rentals/{rental.id}").json()["status"]
                    said.append((found["granted"], status))
                assert said == [(True, "active"), (False, "expired"), (False, "expired")]
        service.run(timer.close())


def test_a_token_of_access_names_the_end_and_a_gateway_lets_nobody_in_after_it(
    database_url: str, tmp_path: Path
) -> None:
    with serving(settings_on(database_url, tmp_path, timers=False)) as service:
        service.run(rich(service.runtime))
        answer = service.run(service.runtime.ledger.act(rent_for, RentFor(seconds=600.5), RENTER))
        rental = msgspec.json.decode(answer.body, type=Rental)
        end = str(rental.expires_at)
        with service.client(RENTER) as client:
            token = client.get(f"/v1/rentals/{rental.id}/entitlement").json()["access_token"]
        key = public_key(service)
        assert outlives(token, end, key) is False
        # The check can fail: a token that says another end, or lives longer than what it names.
        issuer = service.app.state.issuer
        claims = {"rental": rental.id, "epoch": 1, "expires_at": end}
        later = f"{int(end[:4]) + 1}{end[4:]}"
        assert outlives(issuer.mint_access(RENTER.tenant, claims, later), end, key) is True
        other = claims | {"expires_at": later}
        assert outlives(issuer.mint_access(RENTER.tenant, other, end), end, key) is True


@pytest.mark.parametrize("is_granted", [True, False])
def test_a_wrong_answer_would_be_noticed(is_granted: bool) -> None:
    end = "2026-03-01T12:00:00.000000Z"
    ends = {"r": end}
    right = nanoseconds(end) - SECOND_NS
    at_it, before = end, "2026-03-01T11:59:59.999999Z"

    def wrong(checked_at: str, sent_ns: int) -> Sequence[int]:
        found = judge([Answer("r", sent_ns, is_granted, checked_at, end, None)], ends, None)
        return (found.granted_late, found.refused_early)

    assert wrong(before, right) == ((0, 0) if is_granted else (0, 1))
    assert wrong(at_it, right) == ((1, 0) if is_granted else (0, 0))
    # Whoever says another time than there is does not get away with it.
    assert wrong(before, nanoseconds(end) + SECOND_NS) == ((1, 0) if is_granted else (0, 1))
