"""From a draft to the catalogue and back, over HTTP: with the real policies, the real inspection, and the watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from domain.ledger import Caller
from tests.real.persona.capsule_world import AUDITOR, OLIVIA, OPERATOR, RIVAL, CapsuleWorld
from tests.real.service import Service
from tests.unit.persona.capsule_maker import Capsule

REVIEWER = Caller("rita", "platform", frozenset({"reviewer"}))
SIGNER = Caller("sid", "platform", frozenset({"signer"}))
OTHER_OPERATOR = Caller("opal", "platform", frozenset({"operator"}))
WAIT_S_MAX = 60.0


@pytest.fixture(scope="module")
def world(service: Service) -> CapsuleWorld:
    made = CapsuleWorld(service)
    made.found()
    return made


class Stage:
    """What the people around a capsule do, each with a token of their own."""

    def __init__(self, world: CapsuleWorld) -> None:
        self.world = world
        self.clients = {
            who: world.client(who)
            for who in (OLIVIA, RIVAL, OPERATOR, OTHER_OPERATOR, REVIEWER, SIGNER, AUDITOR)
        }

    def post(self, who: Caller, path: str, body: Any = None) -> httpx.Response:
        return self.clients[who].post(path, json={} if body is None else body)

    def get(self, who: Caller, path: str) -> httpx.Response:
        return self.clients[who].get(path)

    def exported(self, capsule: Capsule) -> str:
        """Export a capsule; give its path."""
        self.world.prepare(capsule)
        assert self.world.export(capsule)["status"] == "completed"
        return f"/v1/capsules/{capsule.address}"

    def inspected(self, path: str) -> dict[str, Any]:
        """Submit a capsule and wait for its inspection."""
        answer = self.post(OLIVIA, f"{path}/submit")
        assert answer.status_code == 202, answer.text
        return until(lambda: self.get(OLIVIA, path).json(), lambda found: found["status"] != "submitted")

    def approved(self, capsule: Capsule, notes: str = "") -> None:
        decision = {"decision": "approve", "notes": notes}
        answer = self.post(REVIEWER, f"/v1/reviews/{capsule.address}/decisions", decision)
        assert answer.status_code == 200, answer.text

    def signed(self, capsule: Capsule, *names: str) -> None:
        request = self.get(SIGNER, f"/v1/signings/{capsule.address}/request").json()
        assert request["statement"]["capsule"] == capsule.address
        envelope = self.world.signed_envelope(request["statement"], *names)
        answer = self.post(SIGNER, f"/v1/signings/{capsule.address}/signatures", {"envelope": envelope})
        assert answer.status_code == 200, answer.text


def until(read: Callable[[], Any], is_so: Callable[[Any], bool]) -> Any:
    """Read until it is so."""
    end = time.monotonic() + WAIT_S_MAX
    while not is_so(found := read()):
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def stage(world: CapsuleWorld) -> Iterator[Stage]:
    opened = Stage(world)
    yield opened
    for client in opened.clients.values():
        client.close()


def test_x(stage):
    c = stage.world.capsule(items=40)
    p = stage.exported(c)
    f = stage.inspected(p)
    print({k: v for k, v in f.items() if k != "manifest"})
    print(stage.get(REVIEWER, f"/v1/signings/{c.address}/request").json())
    print(stage.get(OLIVIA, p + "/preflight").json())
    assert 0
