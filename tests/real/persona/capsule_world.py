"""Capsules on a running service: a platform with signers and a constitution, tenants with personas, each over HTTP."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import httpx
import msgspec

from domain.ledger import Answer, Caller, UseCase
from domain.trust.constitutions import ConstitutionTerms, constitution_wanted
from domain.trust.pinned import PolicyTerms
from domain.trust.signatures import PURPOSE
from domain.trust.verification import Wanted
from tests.real.service import Service
from tests.unit.persona.capsule_maker import Capsule, a_capsule, address_of
from tests.unit.trust.trust_maker import constitution_terms, envelope, policy_terms, sent

OLIVIA = Caller("olivia", "acme", frozenset({"owner"}))
RIVAL = Caller("rolf", "rival", frozenset({"owner"}))
AUDITOR = Caller("aude", "platform", frozenset({"auditor"}))
OPERATOR = Caller("oscar", "platform", frozenset({"operator"}))
NOT_AFTER = "2029-01-01T00:00:00.000000Z"
TRANSFER_S_MAX = 60.0


class CapsuleWorld:
    """A service on which capsules can be exported and imported."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.policy = PolicyTerms.model_validate(policy_terms())
        self.constitution = ConstitutionTerms.model_validate(constitution_terms())

    def do(self, use_case: UseCase, command: Any, caller: Caller) -> Answer:
        """Carry a command out on a service of this process, where no route is under test."""
        answer: Answer = self.service.run(self.service.runtime.ledger.act(use_case, command, caller))
        return answer

    def found(self) -> None:
        """Adopt the signer policy and the constitution."""
        wanted = constitution_wanted(self.constitution_address, self.policy_address)
        envelopes = [sent(envelope(wanted, name)) for name in ("ada", "ben")]
        with self.client(OPERATOR) as client:
            made(client, "/v1/signer-policies", {"document": policy_terms(), "envelopes": []})
            made(client, "/v1/constitution", {"document": constitution_terms(), "envelopes": envelopes})

    @property
    def policy_address(self) -> str:
        return self.policy.document().address

    @property
    def constitution_address(self) -> str:
        return str(self.constitution.document().sealed()[1])

    def capsule(self, persona_id: str = "tax-advisor", version: str = "1.0.0", **how: Any) -> Capsule:
        """Make a capsule under the constitution in force."""
        return a_capsule(persona_id, version, constitution=self.constitution_address, **how)

    def client(self, caller: Caller) -> httpx.Client:
        """Speak for a caller."""
        return self.service.client(caller)

    def prepare(self, capsule: Capsule, caller: Caller = OLIVIA) -> None:
        """Upload the parts of a capsule, and take the persona's id."""
        with self.client(caller) as client:
            for part in capsule.manifest.parts:
                upload(client, part.digest, capsule.data[part.name])
            persona_id = capsule.manifest.metadata.persona_id
            made(client, "/v1/personas", {"persona_id": persona_id, "display_name": "Tax advisor"})

    def asked(self, capsule: Capsule) -> dict[str, Any]:
        """Write the body that asks for an export."""
        manifest = capsule.manifest
        return {"persona_id": manifest.metadata.persona_id, "manifest": manifest.document()}

    def export(self, capsule: Capsule, caller: Caller = OLIVIA) -> dict[str, Any]:
        """Ask for an export and wait for its end."""
        with self.client(caller) as client:
            asked = made(client, "/v1/exports", self.asked(capsule), 202)
            return ended(client, f"/v1/exports/{asked['id']}")

    def attestations(self, capsule: str, signers: Iterable[str] = ("ada", "ben")) -> dict[str, Any]:
        """Have signers vouch for a capsule."""
        wanted = Wanted(PURPOSE, capsule, self.policy_address, self.constitution_address)
        return {
            "schema": "soma/attestations/1",
            "capsule": capsule,
            "policy": msgspec.to_builtins(self.policy.document()),
            "constitution": msgspec.to_builtins(self.constitution.document()),
            "envelopes": [sent(envelope(wanted, *signers, not_after=NOT_AFTER))],
        }

    def import_(
        self, archive: bytes, attestations: dict[str, Any], caller: Caller = RIVAL, **more: Any
    ) -> dict[str, Any]:
        """Upload an archive, ask for its import and wait for its end."""
        with self.client(caller) as client:
            address = upload(client, None, archive)
            body = {"archive": address, "attestations": attestations} | more
            return ended(client, f"/v1/imports/{made(client, '/v1/imports', body, 202)['id']}")


def made(client: httpx.Client, path: str, body: Any, status: int = 201) -> dict[str, Any]:
    """Send what makes something; give what was made."""
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def upload(client: httpx.Client, address: str | None, data: bytes) -> str:
    """Upload an artifact; give its address."""
    address = address or address_of(data)
    answer = client.put(f"/v1/artifacts/{address}", content=data)
    assert answer.status_code == 201, answer.text
    return address


def ended(client: httpx.Client, path: str) -> dict[str, Any]:
    """Wait until a transfer is not under way any more."""
    until = time.monotonic() + TRANSFER_S_MAX
    while True:
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        if found["status"] != "requested":
            return found
        assert time.monotonic() < until, found
        time.sleep(0.02)


def topics_of(service: Service) -> Counter[str]:
    """Count the records of the log by their type."""
    reader = service.runtime.reader
    rows = service.run(reader.span(0, service.run(reader.size())))
    return Counter(msgspec.json.decode(row.record)["type"] for row in rows)
