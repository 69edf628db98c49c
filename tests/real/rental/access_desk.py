"""Access asked for over HTTP, at random and right at the end of each rental, and every answer held against the log.

The service is a process whose clock is stepped; `soma timers` are others, which are killed; transfers and usage come in
all the while. Afterwards each answer is compared with the log, and each token with what a gateway would say of it.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import jwt
import psycopg

from domain.ledger import Caller
from domain.rental.rentals import Rental
from domain.values import moment_of
from ops.clock import SET_BACK_NS
from ops.settings import Settings
from ops.tokens import LocalIssuer
from tests.real.rental.rental_desk import RENTER, ROOT, TELLER

TRADERS = ("north", "south")
METERED = 50
ANSWER_S_MAX = 60.0
ASKING_MAX = 16
# So early before the end of a rental somebody begins to ask without a pause.
EDGE_S = 0.03
SECOND_NS = 10**9


class Answer(NamedTuple):
    """What was answered about a rental; `sent_ns` is by a clock that is never ahead of the service's."""

    rental: str
    sent_ns: int
    granted: bool
    checked_at: str
    expires_at: str
    token: str | None


class SteppedService:
    """A service in another process, and its clock as seen from here."""

    def __init__(self, process: subprocess.Popen[str], url: str, settings: Settings) -> None:
        self._process = process
        self._issuer = LocalIssuer(settings)
        # Its clock never goes back: what counts is how far it was ever set forward.
        self._ahead_ns = 0
        self.url = url
        self.steps: list[int] = []

    def token(self, caller: Caller) -> str:
        """Mint a token."""
        return self._issuer.mint(caller.subject, caller.tenant, sorted(caller.roles))

    def client(self, caller: Caller) -> httpx.AsyncClient:
        """Speak for somebody."""
        headers = {"Authorization": f"Bearer {self.token(caller)}"}
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
        return httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=ANSWER_S_MAX, trust_env=False, limits=limits
        )

    def step(self, offset_ns: int) -> None:
        """Set the clock of its machine off by so much from the time there is, and wait until that is so."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{offset_ns}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == f"{offset_ns}\n"
        self._ahead_ns = max(self._ahead_ns, offset_ns)
        self.steps.append(offset_ns)

    def now_ns(self) -> int:
        """Give a time that its clock has passed already."""
        return time.time_ns() + self._ahead_ns

    async def reach(self, moment_ns: int) -> None:
        """Wait until its clock has passed a moment."""
        left_ns = moment_ns - self.now_ns()
        while left_ns > 0:
            # Not longer than half a second at a time: the clock may be set forward meanwhile.
            await asyncio.sleep(min(0.5, left_ns / SECOND_NS))
            left_ns = moment_ns - self.now_ns()


@contextmanager
def stepped_service(settings: Settings) -> Iterator[SteppedService]:
    """Run a service without timers, until the block is left."""
    assert settings.database_url is not None
    words = [settings.database_url.get_secret_value(), str(settings.data_dir)]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.real.rental.service_child", *words],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, "the service does not start"
            yield SteppedService(process, url, settings)
        finally:
            process.kill()


@contextmanager
def soma_timers(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Run `soma timers` as an operator would, until the block is left or somebody kills it."""
    assert settings.database_url is not None
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SOMA_")}
    given = {
        "SOMA_DATABASE_URL": settings.database_url.get_secret_value(),
        "SOMA_DATA_DIR": str(settings.data_dir),
    }
    # In a file, since nobody reads a pipe while it runs.
    log = settings.data_dir / f"timers-{time.monotonic_ns()}.log"
    with (
        log.open("wb") as said,
        subprocess.Popen(
            [sys.executable, "-m", "api.cli", "timers"],
            cwd=ROOT, env=inherited | given, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
        ) as process,
    ):  # fmt: skip
        try:
            while b"timers_started" not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


# --------------------------------------------------------------------------- who asks


class Asking:
    """Asks about rentals, and keeps every answer."""

    def __init__(self, service: SteppedService, client: httpx.AsyncClient, rentals: Sequence[Rental]) -> None:
        self._service = service
        self._client = client
        self._rentals = rentals
        # Many that wait inside the client's own pool would cost more than what they ask.
        self._turns = asyncio.Semaphore(ASKING_MAX)
        self.answers: list[Answer] = []

    async def ask(self, rental: Rental) -> Answer:
        """Ask once."""
        async with self._turns:
            return await self._ask(rental)

    async def _ask(self, rental: Rental) -> Answer:
        try:
            sent_ns = self._service.now_ns()
            answer = await self._client.get(f"/v1/rentals/{rental.id}/entitlement?epoch=1")
        except httpx.TransportError:
            # A connection that was closed while it lay idle is no answer.
            return await self._ask(rental)
        assert answer.status_code == 200, answer.text
        said = answer.json()
        found = Answer(
            rental.id, sent_ns, said["granted"], said["checked_at"], said["expires_at"], said["access_token"]
        )
        self.answers.append(found)
        return found

    async def at_the_edge(self, rental: Rental) -> None:
        """Ask again and again from just before the end until it is over, and once more."""
        end_ns = nanoseconds(str(rental.expires_at))
        await self._service.reach(end_ns - int(EDGE_S * SECOND_NS))
        while (await self.ask(rental)).granted:
            pass
        await self._service.reach(end_ns)
        await self.ask(rental)

    async def at_random(self, over: asyncio.Event, pause_s: float) -> None:
        """Ask about any of them, long before and long after its end."""
        chance = random.Random(11)
        while not over.is_set():
            await self.ask(chance.choice(self._rentals))
            await asyncio.sleep(pause_s)

    async def everywhere(self, over: asyncio.Event, pause_s: float = 0.0) -> None:
        """Ask at the edge of each rental, and at random beside that, until all are over and it is told to stop."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.at_random(over, pause_s))
            for rental in self._rentals:
                group.create_task(self.at_the_edge(rental))


@asynccontextmanager
async def load(service: SteppedService, pause_s: float = 0.0) -> AsyncIterator[list[int]]:
    """Move money between strangers and bring in usage over HTTP meanwhile; gives the counts of both."""
    done = [0, 0]
    async with service.client(TELLER) as teller:
        for name in TRADERS:
            body = {"tenant": name, "amount": {"amount": "1000", "currency": "USD"}}
            (await teller.post("/v1/deposits", json=body)).raise_for_status()

        async def trade() -> None:
            giver = Caller("nora", TRADERS[0], frozenset({"owner"}))
            async with service.client(giver) as client:
                body = {"to_tenant": TRADERS[1], "amount": {"amount": "0.01", "currency": "USD"}}
                while True:
                    with suppress(httpx.TransportError):
                        (await client.post("/v1/transfers", json=body)).raise_for_status()
                        done[0] += 1
                    await asyncio.sleep(pause_s)

        async def meter() -> None:
            gauge = Caller("gauge", RENTER.tenant, frozenset({"service"}))
            async with service.client(gauge) as client:
                while True:
                    body = {"readings": [a_reading(done[1] + number) for number in range(METERED)]}
                    with suppress(httpx.TransportError):
                        answer = (await client.post("/v1/usage", json=body)).raise_for_status().json()
                        assert answer["inserted"] + answer["duplicates"] == METERED, answer
                        done[1] += METERED
                    await asyncio.sleep(pause_s)

        tasks = [asyncio.create_task(trade()), asyncio.create_task(meter())]
        try:
            yield done
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


def a_reading(number: int) -> dict[str, Any]:
    """Write a reading."""
    return {
        "source": "gateway",
        "event_id": f"reading-{number}",
        "occurred_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "provider": "openai",
        "model": "gpt-4o-mini",
        "tokens_in": 100 + number % 7,
        "tokens_out": 10,
        "requests": 1,
    }


# --------------------------------------------------------------------------- what the answers come to


class Verdict(NamedTuple):
    """How many answers there were, and how many of them were wrong, in each way."""

    answers: int
    granted: int
    granted_late: int
    refused_early: int
    tokens: int
    tokens_too_long: int

    @property
    def wrong(self) -> int:
        """Count all that must not be."""
        return self.granted_late + self.refused_early + self.tokens_too_long


def judge(answers: Sequence[Answer], ends: dict[str, str], key: Any) -> Verdict:
    """Hold every answer against the end in the log, and every token as a gateway does that asks nobody."""
    late = sum(one.granted and is_late(one, ends[one.rental]) for one in answers)
    early = sum(not one.granted and one.checked_at < ends[one.rental] for one in answers)
    tokens = [one for one in answers if one.token is not None]
    long = sum(outlives(str(one.token), ends[one.rental], key) for one in tokens)
    return Verdict(len(answers), sum(one.granted for one in answers), late, early, len(tokens), long)


def is_late(answer: Answer, end: str) -> bool:
    """Say whether access was given at or after the end: by the service's own word, or by the clock of who asked.

    What was asked for after the end cannot have been decided before it, whatever the service says of its time; the
    service's clock follows that of the machine within SET_BACK_NS.
    """
    return answer.checked_at >= end or answer.sent_ns >= nanoseconds(end) + SET_BACK_NS


def outlives(token: str, end: str, key: Any) -> bool:
    """Say whether a gateway that checks signature, audience and `exp` would let somebody in at or after the end."""
    claims = jwt.decode(
        token, key, algorithms=["EdDSA"], audience="soma-ledger/access", issuer="soma-ledger",
        options={"verify_exp": False, "verify_iat": False},
    )  # fmt: skip
    return claims["expires_at"] != end or claims["exp"] * SECOND_NS > nanoseconds(end)


def ends_of(database_url: str) -> dict[str, str]:
    """Read from the log when each rental ends."""
    with psycopg.connect(database_url) as conn:
        rows = conn.execute("SELECT id, state::jsonb ->> 'expires_at' FROM records WHERE kind = 'rental'")
        return dict(rows.fetchall())


def nanoseconds(moment: str) -> int:
    """Give a moment in nanoseconds since 1970, exactly."""
    at = moment_of(moment)
    return int(at.replace(microsecond=0).timestamp()) * SECOND_NS + at.microsecond * 1_000


def public_key(service: SteppedService) -> Any:
    """Fetch the key of the service's issuer, as a gateway does."""
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        (key,) = jwt.PyJWKSet.from_dict(client.get("/.well-known/jwks.json").json()).keys
    return key


def data_of(place: Path, database_url: str) -> Settings:
    """Give the settings that all processes share."""
    from pydantic import SecretStr

    return Settings(data_dir=place, database_url=SecretStr(database_url))
