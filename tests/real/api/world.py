"""Those who call a running service, and the steps of the market, each over HTTP."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import httpx

from domain.errors import REGISTRY
from domain.ledger import Caller, Case
from domain.trust import reviews, signatures, signers
from domain.values import Money
from tests.real.service import Service
from tests.unit.billing.earning import TELLER, Earn, earn
from tests.unit.trust.trust_maker import a_capsule, policy_terms

ROUND_S_MAX = 60.0
TARGET_ROWS = 60
# Stands for a field that is left out.
MISSING = object()
# The address of nothing anybody has uploaded.
UNSEEN = "sha3-512:" + "0" * 128


class Speaker:
    """Somebody with a token: every request of theirs carries it."""

    def __init__(self, client: httpx.Client, token: str, tenant: str) -> None:
        self.client = client
        self.token = token
        self.tenant = tenant

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        if_match: str | None = None,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> httpx.Response:
        """Send a request; a body that is not None goes as JSON."""
        sent = {"Authorization": f"Bearer {self.token}"} | (headers or {})
        if key is not None:
            sent["Idempotency-Key"] = key
        if if_match is not None:
            sent["If-Match"] = if_match
        if body is not None:
            more["json"] = body
        return self.client.request(method, path, headers=sent, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        """Look at something."""
        return self.ask("GET", path, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """Do something."""
        return self.ask("POST", path, body, **more)

    def patch(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """Change something."""
        return self.ask("PATCH", path, body, **more)

    def made(self, path: str, body: Any = None, **more: Any) -> dict[str, Any]:
        """Do something that must succeed, and give what came of it."""
        return done(self.post(path, body, **more))

    def read(self, path: str, **more: Any) -> dict[str, Any]:
        """Look at something that must be there."""
        return done(self.get(path, **more))


class World:
    """A running service with people at it."""

    def __init__(self, service: Service, client: httpx.Client) -> None:
        self.service = service
        self.client = client
        self.operator = self.speaker("platform", "operator")

    def token(self, tenant: str, *roles: str, subject: str | None = None, ttl_s: int | None = None) -> str:
        """Mint a token."""
        return self.service.token(Caller(subject or f"somebody-of-{tenant}", tenant, frozenset(roles)), ttl_s)

    def speaker(self, tenant: str, *roles: str, subject: str | None = None) -> Speaker:
        """Give somebody a token."""
        return Speaker(self.client, self.token(tenant, *roles, subject=subject), tenant)

    def provider(self, tenant: str) -> Speaker:
        """Give somebody of a provider's."""
        return self.speaker(tenant, "provider")

    def owner(self, tenant: str) -> Speaker:
        """Give somebody of a model owner's."""
        return self.speaker(tenant, "owner")

    @property
    def size(self) -> int:
        """Count the records of the log."""
        return int(done(self.client.get("/ready"))["size"])

    # ------------------------------------------------------------------ steps of the market

    def deposit(self, tenant: str, amount: str, currency: str = "USD") -> dict[str, Any]:
        """Put money into a wallet."""
        return self.operator.made("/v1/deposits", {"tenant": tenant, "amount": money(amount, currency)})

    def dataset(self, seller: Speaker, data: bytes | None = None) -> str:
        """Upload a dataset; give its fingerprint."""
        csv = table(seller.tenant) if data is None else data
        return str(
            seller.made("/v1/datasets", content=csv, headers={"Content-Type": "text/csv"})["fingerprint"]
        )

    def offer(self, seller: Speaker, *, data: bytes | None = None, **fields: Any) -> dict[str, Any]:
        """List an offer, over a dataset that is uploaded for it unless a fingerprint is given."""
        if "dataset_fingerprint" not in fields:
            fields["dataset_fingerprint"] = self.dataset(seller, data)
        return seller.made("/v1/offers", offer_body(seller.tenant) | fields)

    def intent(self, owner: Speaker, **fields: Any) -> dict[str, Any]:
        """Open an intent."""
        return owner.made("/v1/intents", intent_body(owner.tenant) | fields)

    def earn(self, tenant: str, amount: str, currency: str = "USD") -> None:
        """Pay a tenant as if it had sold something."""
        command = Earn(tenant=tenant, amount=Money.parse(amount, currency))
        self.service.run(self.service.runtime.ledger.act(earn, command, TELLER))

    def contract(self, owner: Speaker, *, max_offers: int = 3, **fields: Any) -> dict[str, Any]:
        """Open an intent and match it."""
        intent = self.intent(owner, **fields)
        return owner.made(f"/v1/intents/{intent['id']}/match", {"max_offers": max_offers})

    def funded(self, owner: Speaker, **fields: Any) -> dict[str, Any]:
        """Make a contract and fund it, with money put into the wallet for it."""
        contract = self.contract(owner, **fields)
        total = contract["agreed_price_per_round_total"]
        if float(total["amount"]):
            self.deposit(owner.tenant, total["amount"], total["currency"])
        return owner.made(f"/v1/contracts/{contract['id']}/fund")

    def round(self, owner: Speaker, contract_id: str, **fields: Any) -> dict[str, Any]:
        """Run a round to its end."""
        started = owner.made("/v1/rounds", {"contract_id": contract_id, "communication_rounds": 3} | fields)
        return self.ended(owner, str(started["id"]))

    def ended(self, who: Speaker, round_id: str) -> dict[str, Any]:
        """Wait until a round has ended."""
        until = time.monotonic() + ROUND_S_MAX
        while (found := who.read(f"/v1/rounds/{round_id}"))["status"] == "started":
            assert time.monotonic() < until, "the round does not end"
            time.sleep(0.01)
        return found

    def completed(self, owner: Speaker, **fields: Any) -> dict[str, Any]:
        """Make a contract whose round is completed."""
        contract = self.funded(owner, **fields)
        assert self.round(owner, contract["id"])["status"] == "completed"
        return owner.read(f"/v1/contracts/{contract['id']}")

    def to_be_signed(self, tenant: str, owner: str) -> str:
        """Pin signers, and ask that a capsule of a tenant be reviewed and signed; give its address."""
        self.operator.made("/v1/signer-policies", {"document": policy_terms()})
        capsule = a_capsule()

        def submit(case: Case, _: Any) -> Any:
            in_force = signers.policy_in_force(case)
            reviews.open_review(case, capsule, in_force, [owner], tenant)
            return signatures.open_signing(case, capsule, in_force, a_capsule(0), [owner], tenant)

        who = Caller("olivia", tenant, frozenset({"owner"}))
        ledger = self.service.runtime.ledger
        self.service.run(ledger.act(submit, signatures.OpenSigning(capsule=capsule), who))
        return capsule


def done(response: httpx.Response) -> dict[str, Any]:
    """Give the body of an answer that must be a success."""
    assert response.is_success, f"{response.request.method} {response.request.url}: {response.text[:2000]}"
    found: dict[str, Any] = response.json()
    return found


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check a refusal as every client may rely on it, and give it."""
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["error"] == code
    assert problem["status"] == status == REGISTRY[code].status
    assert problem["type"].endswith(f"/{code}")
    assert problem["message"] == problem["detail"] != ""
    assert problem["title"] == REGISTRY[code].title()
    assert problem["retry"] in ("never", "as-is", "after-read")
    assert isinstance(problem["details"], dict)
    return problem


def money(amount: str, currency: str = "USD") -> dict[str, str]:
    """Write money as it is on the wire."""
    return {"amount": amount, "currency": currency}


def offer_body(tenant: str) -> dict[str, Any]:
    """Give an offer that is complete but for its dataset."""
    return {
        "seller_node_id": f"node-of-{tenant}",
        "title": f"What {tenant} measured",
        "quality_score": "0.9",
        "allowed_tasks": ["classification"],
        "price_per_round": money("10"),
    }


def intent_body(tenant: str) -> dict[str, Any]:
    """Give an intent that is complete."""
    return {"model_owner_id": f"lab-of-{tenant}", "task_type": "classification", "budget_total": money("100")}


def table(seed: str, rows: int = TARGET_ROWS, names: Sequence[str] = ("age", "dose")) -> bytes:
    """Make a small dataset whose target follows from its columns, another one for each seed."""
    shift = sum(seed.encode()) % 17
    lines = [",".join([*names, "target"])]
    for row in range(rows):
        values = [(row * 7 + shift * (column + 3)) % 23 for column in range(len(names))]
        lines.append(",".join(str(value) for value in [*values, int(sum(values) > 11 * len(names))]))
    return ("\n".join(lines) + "\n").encode()


def with_field(body: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """Give a body with one field changed, or taken out."""
    rest = {name: was for name, was in body.items() if name != field}
    return rest if value is MISSING else rest | {field: value}
