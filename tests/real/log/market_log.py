"""A log worth auditing: accounts, money, offers, intents, matches, escrow and refunds, by API and gate."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import httpx

from domain.ledger import Caller
from tests.real.log.served import Served
from tests.real.log.world import OPERATOR, give, member, pay

AUDITOR = Caller("ada", "audits", frozenset(["auditor"]))
LAB = member("lab", "lena")
CLINIC = member("clinic", "carl")
TENANTS = ("lab", "clinic", "shop")


class Told(NamedTuple):
    """What the log is about."""

    contract_id: str
    refunded_id: str
    offer_id: str
    intent_id: str


def ok(answer: httpx.Response) -> dict[str, Any]:
    """Read an answer that must be a good one."""
    assert answer.status_code in (200, 201), answer.text
    found: dict[str, Any] = answer.json()
    return found


def tell(service: Served, transfer_count: int = 300) -> Told:
    """Fill the log of a service: at least two events a transfer, in batches of many sizes."""
    for tenant in TENANTS:
        service.run(give(service.runtime.ledger, tenant, "5000"))
    with service.client(LAB) as lab, service.client(CLINIC) as clinic:
        offer = _offer(clinic)
        first, second = (_contract(lab) for _ in range(2))
        ok(lab.post(f"/v1/contracts/{first[1]}/fund", json={}))
        ok(lab.post(f"/v1/contracts/{second[1]}/fund", json={}))
        service.run(_payments(service, transfer_count))
        ok(lab.post(f"/v1/contracts/{second[1]}/refund", json={"reason": "no round was found"}))
        ok(clinic.post(f"/v1/offers/{offer}/pause"))
    return Told(first[1], second[1], offer, first[0])


def _offer(clinic: httpx.Client) -> str:
    body = {
        "seller_node_id": "node-1",
        "dataset_fingerprint": "sha3-512:" + "ab" * 64,
        "title": "Größe und Alter \u2014 tabular",
        "sample_count": 569,
        "quality_score": "0.9",
        "allowed_tasks": ["classification"],
        "price_per_round": {"amount": "12.50", "currency": "USD"},
    }
    return str(ok(clinic.post("/v1/offers", json=body))["id"])


def _contract(lab: httpx.Client) -> tuple[str, str]:
    wish = {
        "model_owner_id": "lab-model",
        "task_type": "classification",
        "budget_total": {"amount": "40", "currency": "USD"},
    }
    intent = ok(lab.post("/v1/intents", json=wish))["id"]
    return intent, ok(lab.post(f"/v1/intents/{intent}/match", json={}))["id"]


async def _payments(service: Served, count: int) -> None:
    """Pay in rounds of 1, 2, 3 ... callers at once, so that the log has heads of many sizes."""
    ledger, done, width = service.runtime.ledger, 0, 1
    while done < count:
        width = min(width, count - done)
        await asyncio.gather(*(_payment(ledger, done + n) for n in range(width)))
        done, width = done + width, width % 17 + 1


async def _payment(ledger: Any, number: int) -> None:
    if number % 7 == 0:
        await give(ledger, TENANTS[number % 3], f"{number % 50 + 1}.25")
    else:
        payer, payee = TENANTS[number % 3], TENANTS[(number + 1) % 3]
        await pay(ledger, payer, payee, f"{number % 9 + 1}.{number % 100:02d}")


__all__ = ["AUDITOR", "CLINIC", "LAB", "OPERATOR", "TENANTS", "Told", "ok", "tell"]
