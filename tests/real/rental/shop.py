"""A shop: a service whose clock the test moves, a persona on show in it, and people with tokens and money."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from domain.ledger import Caller
from ops.clock import Clock
from tests.real.persona.capsule_world import OPERATOR, CapsuleWorld
from tests.real.persona.test_publication_http import Stage
from tests.real.service import Service, serving, settings_on
from tests.unit.persona.capsule_maker import Capsule

RENTER = Caller("rick", "renters", frozenset({"owner"}))
SELLER = Caller("olivia", "acme", frozenset({"owner"}))
STRANGER = Caller("sam", "strange", frozenset({"owner", "provider"}))
TELLER = Caller("tess", "platform", frozenset({"operator", "billing"}))
HOUR_S = 3_600


class Shop(NamedTuple):
    """A service whose clock the test moves, and a persona that is on show there."""

    service: Service
    stage: Stage
    capsule: Capsule
    clients: dict[Caller, httpx.Client]
    offset: list[int]

    def wait(self, seconds: float) -> None:
        """Let time pass, at once."""
        self.offset[0] += int(seconds * 10**9)

    def post(self, who: Caller, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """Do something."""
        return self.clients[who].post(path, json={} if body is None else body, headers=headers)

    def made(self, who: Caller, path: str, body: Any = None, **headers: str) -> Any:
        """Do something that must succeed."""
        answer = self.post(who, path, body, **headers)
        assert answer.is_success, answer.text
        return answer.json()

    def read(self, who: Caller, path: str) -> Any:
        """Look at something that must be there."""
        answer = self.clients[who].get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wallet(self, tenant: str) -> tuple[str, str]:
        """Give the balance of a wallet and what is held of it."""
        found = self.read(OPERATOR, f"/v1/accounts/wallet.{tenant}.USD")
        return found["balance"], found["held"]


def priced(document: dict[str, Any]) -> None:
    """Offer the persona in every way."""
    ways = (("rental", "0.50", 60), ("subscription", "30.00", 43_200), ("purchase", "90.00", None))
    document["pricing"] = [
        {"model": model, "price": {"amount": amount, "currency": "USD"}, "billing_period_minutes": minutes,
         "price_book": None, "notes": ""}
        for model, amount, minutes in ways
    ]  # fmt: skip


@contextmanager
def open_shop(database_url: str, place: Path, **given: Any) -> Iterator[Shop]:
    """Put a persona on show, and money into the renter's wallet; settings may be given."""
    offset = [0]
    clock = Clock(lambda: time.time_ns() + offset[0])
    with serving(settings_on(database_url, place, **given), clock) as service:
        world = CapsuleWorld(service)
        world.found()
        stage = Stage(world)
        clients = {who: world.client(who) for who in (RENTER, SELLER, STRANGER, TELLER, OPERATOR)}
        opened = Shop(service, stage, published(stage, "harbour-pilot"), clients, offset)
        opened.made(
            TELLER, "/v1/deposits", {"tenant": "renters", "amount": {"amount": "500", "currency": "USD"}}
        )
        try:
            yield opened
        finally:
            for client in [*clients.values(), *stage.clients.values()]:
                client.close()


def published(stage: Stage, persona_id: str) -> Capsule:
    """Bring a persona on show."""
    capsule = stage.world.capsule(persona_id, items=20, change=priced)
    path = stage.exported(capsule)
    stage.inspected(path)
    stage.approved(capsule)
    stage.signed(capsule, "ada", "ben")
    answer = stage.post(SELLER, f"{path}/publish")
    assert answer.status_code == 200, answer.text
    return capsule
