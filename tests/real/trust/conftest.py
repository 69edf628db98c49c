"""A running service in which signers are pinned and a constitution is in force, and people with tokens at it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from domain.ledger import Caller, Case
from domain.trust import reviews, signatures, signers
from domain.trust.constitutions import ConstitutionTerms, constitution_wanted, current_constitution
from domain.trust.dsse import Envelope
from domain.trust.signatures import OpenSigning
from domain.trust.verification import Wanted
from tests.real.conftest import lend
from tests.real.service import Service, serving, settings_on
from tests.unit.trust.trust_maker import (
    OWNER,
    SIGNERS,
    constitution_terms,
    envelope,
    policy,
    policy_terms,
    sent,
)

lending = contextmanager(lend)


class World:
    """A service, and clients that speak for people."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._clients: dict[Caller, httpx.Client] = {}

    def ask(self, caller: Caller, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """Ask as somebody."""
        client = self._clients.get(caller)
        if client is None:
            client = self._clients[caller] = self.service.client(caller)
        return client.request(method, path, json=body, **more)

    def done(self, caller: Caller, path: str, body: Any = None, **more: Any) -> Any:
        """Do something that must succeed."""
        answer = self.ask(caller, "POST", path, body, **more)
        assert answer.is_success, answer.text
        return answer.json()

    def read(self, caller: Caller, path: str, **params: Any) -> Any:
        """Read something that must be there."""
        answer = self.ask(caller, "GET", path, params=params)
        assert answer.is_success, answer.text
        return answer.json()

    def heard(self, caller: Caller, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Ask for something; give the status and the code of the refusal."""
        answer = self.ask(caller, method, path, body)
        return answer.status_code, answer.json().get("code", "ok")

    def counted(self, series: str) -> float:
        """Read one figure of what the service counts; what was never counted is zero."""
        with self.service.client() as client:
            lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(series + " "))

    def submitted(
        self,
        capsule: str,
        owners: Sequence[str] = ("olivia",),
        caller: Caller = OWNER,
        sla_s: int | None = None,
    ) -> None:
        """Submit a capsule as far as trust is concerned; a deadline may be nearer than any policy allows."""

        def submit(case: Case, _: Any) -> Any:
            in_force = signers.policy_in_force(case)
            if sla_s is not None:
                hurried = msgspec.structs.replace(in_force.document, review_sla_s=sla_s)
                in_force = msgspec.structs.replace(in_force, document=hurried)
            named = current_constitution(case).address
            reviews.open_review(case, capsule, in_force, owners, caller.tenant)
            return signatures.open_signing(case, capsule, in_force, named, owners, caller.tenant)

        self.service.run(self.service.runtime.ledger.act(submit, OpenSigning(capsule=capsule), caller))

    def signed(self, capsule: str, *names: str) -> Envelope:
        """Have somebody sign what the service asks for."""
        asked = self.read(OWNER, f"/v1/signings/{capsule}/request")["statement"]
        wanted = Wanted("publication", asked["capsule"], asked["policy"], asked["constitution"])
        return envelope(wanted, *names, not_after=asked["not_after"])

    def close(self) -> None:
        """Hang up."""
        for client in self._clients.values():
            client.close()


@pytest.fixture
def bare(database_url: str, tmp_path: Path) -> Iterator[World]:
    """Run a service in which nobody is pinned yet."""
    with serving(settings_on(database_url, tmp_path)) as service:
        world = World(service)
        yield world
        world.close()


@pytest.fixture(scope="module")
def world(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """Run one service for all tests of a file, with a policy and a constitution."""
    place = tmp_path_factory.mktemp("trust")
    with lending(server_url, template_database) as url, serving(settings_on(url, place)) as service:
        made = World(service)
        operator = Caller("oscar", "platform", frozenset(["operator"]))
        made.done(operator, "/v1/signer-policies", {"document": policy_terms()})
        document = ConstitutionTerms.model_validate(constitution_terms()).document()
        wanted = constitution_wanted(document.sealed()[1], policy().address)
        votes = [
            sent(envelope(wanted, name, not_after="2100-01-01T00:00:00.000000Z")) for name in SIGNERS[:2]
        ]
        made.done(operator, "/v1/constitution", {"document": constitution_terms(), "envelopes": votes})
        yield made
        made.close()
