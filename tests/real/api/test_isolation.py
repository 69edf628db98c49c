"""Who may see and do what: every route of the document, with no token, with a stranger's, and with each wrong role."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import httpx
import pytest

from domain.billing import (
    accounts,
    budgeting,
    credit_notes,
    customers,
    grants,
    invoices,
    payouts,
    price_books,
    usage,
)
from domain.billing.bills import Terms
from domain.billing.invoices import draw_up
from domain.billing.prices import PerMinute
from domain.billing.reconciliation import CompleteReconciliation, complete_reconciliation
from domain.feeds import webhooks
from domain.ledger import Caller, Case, UseCase
from domain.market import contracts, disputes, intents, offers, rounds
from domain.persona import (
    artifacts,
    capsules,
    claims,
    evaluations,
    personas,
    publication,
    renting,
    reviewing,
    standing,
)
from domain.persona.capsules import Capsule
from domain.persona.manifest import capsule_id
from domain.persona.personas import Persona
from domain.rental import rentals, subscriptions
from domain.rental.purchases import make_purchase
from domain.rental.settling import Sale
from domain.trust import constitutions, signatures, signers, training
from domain.trust.verification import Wanted
from domain.values import Money, moment_text
from ops.dead_letters import DeadLetters, Letter
from ops.tokens import ROLES
from tests.real.api.world import UNSEEN, Speaker, World, intent_body, money, offer_body
from tests.unit.trust.trust_maker import a_capsule, constitution_terms, envelope, pin, policy_terms, sent

ADDRESS, HIDDEN = a_capsule(0), a_capsule(7)
OWNER, SELLER, STRANGER = "alpha-lab", "beta-clinic", "omega-corp"
STRANGER_ROLES = sorted(ROLES - {"operator", "auditor", "billing", "reviewer"})

# An address is nobody's secret and no way in: see tests/real/persona/test_artifacts.py.
BY_CONTENT = "/v1/artifacts/{address}"
# What is named here is a table everybody has, of what is their own: see tests/real/billing/test_documents.py.
BY_TABLE = "/v1/billing/exports/{table}"
# Records anybody with a token may see: what is offered is on show.
ON_SHOW = (
    "/v1/offers", "/v1/offers/{offer_id}", "/v1/signer-policies/{name}", "/v1/policies/{package}",
    "/v1/policies/{package}/evaluate",
)  # fmt: skip


class Route(NamedTuple):
    """An operation of the document."""

    method: str
    path: str
    needs_token: bool


class Things(NamedTuple):
    """One of everything, of two tenants that trade with each other."""

    owner: Speaker
    seller: Speaker
    names: dict[str, Any]
    words: tuple[str, ...]


@pytest.fixture(scope="module")
def things(world: World) -> Things:
    """Make one of everything."""
    owner, seller = world.owner(OWNER), world.provider(SELLER)
    offer = world.offer(seller, title="beta-words")
    done = world.completed(owner, task_type="classification")
    dispute = owner.made(f"/v1/contracts/{done['id']}/disputes", {"reason": "alpha-words"})
    world.deposit(OWNER, "50")
    world.owner("gamma").made("/v1/accounts", {"currency": "USD"})
    transfer = owner.made("/v1/transfers", {"to_tenant": "gamma", "amount": money("1"), "memo": "alpha-memo"})
    owner.made("/v1/training/enable", {"reason": "alpha-reason"})
    event = world.operator.read(f"/v1/log/streams/contract/{done['id']}")["items"][0]
    world.speaker(OWNER, "service").made("/v1/usage", {"readings": [reading(persona_id="alpha-persona")]})
    used = owner.read("/v1/usage")["items"][0]
    hook = owner.made("/v1/webhooks", {"url": "https://127.0.0.1/alpha-words"})
    letter = Letter(
        "message", "kafka.ingest", "slm.metrics", 0, 1, b"alpha-words", "message_not_json", "alpha-words"
    )
    world.service.run(DeadLetters(world.service.runtime.reader.pool).add([letter]))
    (letter_id,) = [one["id"] for one in world.operator.read("/v1/dead_letters")["items"]]
    names = {
        "offer_id": offer["id"],
        "intent_id": done["round_intent_id"],
        "contract_id": done["id"],
        "dispute_id": dispute["id"],
        "round_id": done["execution_round"],
        "transfer_id": transfer["id"],
        "account": f"wallet.{OWNER}.USD",
        "tenant": OWNER,
        "position": event["position"],
        "address": event["address"],
        "kind": "contract",
        "id": done["id"],
        "size": 1,
        "path": "entries/000.p/1",
        "usage_id": used["id"],
        "letter_id": letter_id,
        "webhook_id": hook["id"],
        "reconciliation_id": reconciled(world),
        "export_id": attempted(owner, "exports", {"persona_id": "alpha-words", "manifest": {}}),
        "import_id": attempted(owner, "imports", {"archive": "alpha-words", "attestations": {}}),
        "name": "publication",
        "evaluation_id": evaluated(world),
        "suite": "baseline",
        "capsule": world.to_be_signed(OWNER, "alpha-words"),
        **hidden_capsule(world),
        **in_use(world),
        **billed(world),
        "package": "soma.publish",
        "table": "invoice_lines",
    }
    words = (
        OWNER,
        SELLER,
        "alpha-words",
        "beta-words",
        "alpha-memo",
        "alpha-reason",
        "alpha-persona",
        done["id"],
        dispute["id"],
    )
    return Things(owner, seller, names, words)


def attempted(owner: Speaker, kind: str, body: dict[str, Any]) -> str:
    """Have a transfer refused, which is written down; give its name."""
    assert owner.post(f"/v1/{kind}", body).status_code in (400, 404)
    return str(owner.read(f"/v1/{kind}")["items"][0]["id"])


def evaluated(world: World) -> str:
    """Write down an evaluation of the others that failed; give its name."""

    def fail(case: Case, _: Any) -> Any:
        requested = evaluations.EvaluationRun.Requested(
            persona_id="alpha-persona", version="1.0.0", suite="baseline", subject=ADDRESS, constitution=ADDRESS,
            manifest={"note": "alpha-words"},
        )  # fmt: skip
        run = case.create(evaluations.EvaluationRun, "evaluation-alpha", requested)
        return case.emit(
            run, evaluations.EvaluationRun.Failed(code="evaluation_failed", detail="alpha-words")
        )

    who = Caller("olivia", OWNER, frozenset({"owner"}))
    command = evaluations.EvaluationStep(evaluation_id="evaluation-alpha")
    world.service.run(world.service.runtime.ledger.act(fail, command, who))
    return "evaluation-alpha"


def hidden_capsule(world: World) -> dict[str, str]:
    """Write down a draft, a capsule that nobody else may see, and a claim between others; give their names."""

    def hide(case: Case, _: Any) -> Any:
        case.create(
            Persona, "alpha-draft", Persona.Created(display_name="alpha-words", summary="", domains=[])
        )
        exported = Capsule.Exported(
            persona_id="alpha-draft", version="1.0.0", capsule=HIDDEN, manifest={"note": "alpha-words"},
            archive=ADDRESS, archive_bytes=1, token_estimate=None, export_id="export-alpha",
        )  # fmt: skip
        case.create(Capsule, capsule_id(HIDDEN), exported)
        opened = claims.Claim.Opened(
            capsule=HIDDEN, persona_id="alpha-draft", claimant=SELLER, reporter="bea", right="alpha-words",
            reason="alpha-words", evidence={}, asks_suspension=False, parties=[OWNER, SELLER, "platform"],
        )  # fmt: skip
        return case.create(claims.Claim, "claim-alpha", opened)

    who = Caller("olivia", OWNER, frozenset({"owner"}))
    step = capsules.CapsuleStep(capsule_id=HIDDEN)
    world.service.run(world.service.runtime.ledger.act(hide, step, who))
    return {"persona_id": "alpha-draft", "capsule_id": HIDDEN, "claim_id": "claim-alpha"}


def billed(world: World) -> dict[str, str]:
    """Write down prices, a customer, an invoice and what follows one; give their names."""
    owner = world.provider(OWNER)
    charge = {"id": "alpha-words", "meter": "requests", "price": {"model": "per_unit", "price": "1"}}
    owner.made("/v1/price_books", {"book": "alpha-words", "currency": "USD", "charges": [charge]})
    world.operator.made("/v1/customers", {"tenant": OWNER, "book": f"{OWNER}.alpha-words"})
    limits = [{"id": "alpha-words", "amount": money("9")}]
    assert world.operator.ask("PUT", f"/v1/quotas/{OWNER}", {"limits": limits}).is_success
    asked = {"provider": "alpha-words", "model": "m"}
    reserved = owner.made(f"/v1/quotas/{OWNER}/reservations", asked)["reservation"]["id"]
    world.earn(OWNER, "5")
    payout = owner.made("/v1/payouts", {"amount": money("1"), "destination": "alpha-words"})

    def bill(case: Case, _: Any) -> Any:
        drawn = draw_up([], Terms("USD", commitment="3"), case.now).bill
        issued = invoices.Invoice.Issued(
            number="INV-ALPHA", kind="invoice", corrects=None, period_start=case.now, period_end=case.now, zone="UTC",
            known_at=0, sheets=[], terms=Terms("USD"), bill=drawn, evidence=[None], owed=drawn.due, tax=drawn.due,
            due=Money.of(0, "USD"), due_at=case.now, money=[],
        )  # fmt: skip
        case.create(invoices.Invoice, "inv-alpha", issued, tenant=OWNER)
        noted = credit_notes.CreditNote.Issued(
            number="CN-ALPHA", invoice="inv-alpha", amount=drawn.due, tax=drawn.due, off_due=drawn.due,
            returned=drawn.due, target="credits", reason="alpha-words", money=[],
        )  # fmt: skip
        return case.create(credit_notes.CreditNote, "cn-alpha", noted, tenant=OWNER)

    who = Caller("ola", "platform", frozenset({"operator"}))
    world.service.run(world.service.runtime.ledger.act(bill, invoices.IssueInvoice(tenant=OWNER), who))
    return {
        "book": f"{OWNER}.alpha-words", "number": "1", "invoice_id": "inv-alpha", "line": "0",
        "credit_note_id": "cn-alpha", "payout_id": payout["id"], "reservation_id": reserved,
    }  # fmt: skip


def in_use(world: World) -> dict[str, str]:
    """Write down a rental, a purchase and a subscription of the others; give their names."""
    made: dict[str, str] = {}

    def use(case: Case, _: Any) -> Any:
        sale = Sale(persona_id="alpha-persona", capsule=HIDDEN, seller=SELLER, currency="USD", fee="0.1")
        price = Money.parse("1", "USD")
        plan = subscriptions.Plan(sale=sale, price=price, every="month", zone="UTC", anchor="2026-01-01")
        made["rental_id"] = rentals.request_rental(case, rentals.Terms(sale, PerMinute("0.01")), 10).id
        made["purchase_id"] = make_purchase(case, sale, price).id
        made["subscription_id"] = subscriptions.start_subscription(case, plan).id

    who = Caller("olivia", OWNER, frozenset({"owner"}))
    world.service.run(world.service.runtime.ledger.act(use, renting.RentalStep(rental_id="new"), who))
    return made


def reconciled(world: World) -> str:
    """Write a reconciliation down that found something about the others; give its name."""
    difference = {
        "kind": "altered", "table": "entries", "key": f"wallet.{OWNER}.USD alpha-words", "position": 1, "last": 1,
        "rows": 1, "address": None, "stream": None, "changes": [],
    }  # fmt: skip
    command = CompleteReconciliation(
        bound=1, log_size=1, records=1, entries=1, groups=1, difference_count=1, harmful_count=1,
        differences=[difference], duration_ms=1, scope="all", deep=False, occasion="asked",
    )  # fmt: skip
    who = Caller("ola", "platform", frozenset({"operator"}))
    world.service.run(world.service.runtime.ledger.act(complete_reconciliation, command, who))
    return str(world.operator.read("/v1/billing/reconciliations")["items"][0]["id"])


def reading(**members: Any) -> dict[str, Any]:
    """Make a reading of usage of now."""
    now = moment_text(datetime.now(UTC))
    said = {"source": "s", "event_id": "e", "occurred_at": now, "provider": "p", "model": "m"}
    return said | {"tokens_in": 1, "tokens_out": 1} | members


def routes(world: World) -> Iterator[Route]:
    """List the routes of the document the service gives."""
    for path, operations in world.client.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            open_to_all = operation.get("security", [{"bearer": []}])
            yield Route(method.upper(), path, bool(open_to_all) and {} not in open_to_all)


def body_for(route: Route, things: Things) -> Any:
    """Give a body that is well formed, and about what is the others'."""
    contract_id = things.names["contract_id"]
    bodies: dict[str, Any] = {
        "/v1/offers": offer_body(STRANGER) | {"dataset_fingerprint": UNSEEN},
        "/v1/offers/{offer_id}": {"title": "mine now"},
        "/v1/intents": intent_body(STRANGER),
        "/v1/intents/{intent_id}": {"task_type": "mine-now"},
        "/v1/policy/preview": {"round_intent_id": things.names["intent_id"]},
        "/v1/contracts/{contract_id}/disputes": {"reason": "mine"},
        "/v1/disputes/{dispute_id}/resolve": {"outcome": "refund", "resolution": "mine"},
        "/v1/disputes/{dispute_id}/reject": {"resolution": "mine"},
        "/v1/accounts": {"currency": "USD"},
        "/v1/deposits": {"tenant": STRANGER, "amount": money("1000")},
        "/v1/withdrawals": {"tenant": OWNER, "amount": money("1")},
        "/v1/transfers": {"to_tenant": OWNER, "amount": money("1")},
        "/v1/earnings/transfers": {"amount": money("1")},
        "/v1/rounds": {"contract_id": contract_id},
        "/v1/training/enable": {"tenant": OWNER, "reason": "mine"},
        "/v1/training/disable": {"tenant": OWNER},
        "/v1/log/witnesses": {"vkey": "x"},
        "/v1/billing/reconciliations": {"account": f"wallet.{OWNER}.USD"},
        "/v1/usage": {"readings": [reading(tenant=OWNER)]},
        "/v1/usage/{usage_id}/corrections": {"replaces": 1, "reason": "mine", "tokens_in": 0},
        "/v1/price_books": {
            "book": "mine",
            "currency": "USD",
            "charges": [{"id": "a", "meter": "requests", "price": {"model": "per_unit", "price": "1"}}],
        },
        "/v1/customers": {"tenant": STRANGER, "book": things.names["book"]},
        "/v1/customers/{tenant}/plan": {"book": things.names["book"]},
        "/v1/customers/{tenant}/coupons": {"code": "mine", "share": "1"},
        "/v1/customers/{tenant}/credits": {"amount": money("1"), "source": "promotion"},
        "/v1/quotes": {"tenant": OWNER},
        "/v1/invoices": {"tenant": OWNER},
        "/v1/quotas/{tenant}": {"limits": []},
        "/v1/quotas/{tenant}/reservations": {"provider": "mine", "model": "mine"},
        "/v1/invoices/{invoice_id}/credit_notes": {"amount": money("1"), "reason": "mine"},
        "/v1/payouts": {"amount": money("1"), "destination": "mine"},
        "/v1/payouts/{payout_id}/confirm": {"reference": "mine"},
        "/v1/payouts/{payout_id}/fail": {"reason": "mine"},
        "/v1/dead_letters/{letter_id}/requeue": {"reading": reading(tenant=OWNER)},
        "/v1/dead_letters/{letter_id}/discard": {"reason": "mine"},
        "/v1/signer-policies": {"document": policy_terms()},
        "/v1/signer-policies/{name}/recovery": {"document": policy_terms(), "reason": "mine"},
        "/v1/signer-policies/{name}/revocations": {"public_key": pin("ada")["public_key"], "reason": "mine"},
        "/v1/constitution": {"document": constitution_terms()},
        "/v1/reviews/{capsule}/decisions": {"decision": "approve"},
        "/v1/signings/{capsule}/signatures": {
            "envelope": sent(envelope(Wanted("publication", ADDRESS, ADDRESS, ADDRESS), "ada"))
        },
        "/v1/evaluations": {"manifest": {}},
        "/v1/policies/{package}/evaluate": {"input": {}},
        "/v1/personas": {"persona_id": "mine-now", "display_name": "Mine"},
        "/v1/personas/{persona_id}": {"summary": "mine now"},
        "/v1/capsules/{capsule_id}/suspend": {"reason": "mine"},
        "/v1/capsules/{capsule_id}/reinstate": {"reason": "mine"},
        "/v1/capsules/{capsule_id}/revoke": {"reason": "mine", "rentals": "end"},
        "/v1/capsules/{capsule_id}/degrade": {"mark": "mine"},
        "/v1/capsules/{capsule_id}/recover": {"mark": "mine"},
        "/v1/capsules/{capsule_id}/claims": {"right": "mine", "reason": "mine"},
        "/v1/claims/{claim_id}/uphold": {"resolution": "mine"},
        "/v1/claims/{claim_id}/reject": {"resolution": "mine"},
        "/v1/personas/{persona_id}/rent": {"minutes": 10},
        "/v1/personas/{persona_id}/rent/quote": {"minutes": 10},
        "/v1/rentals/{rental_id}/extend": {"minutes": 10},
        "/v1/webhooks": {"url": "https://127.0.0.1/mine"},
        "/v1/webhooks/{webhook_id}": {"description": "mine now"},
        "/v1/webhooks/{webhook_id}/pause": {"reason": "mine"},
        "/v1/webhooks/{webhook_id}/redeliver": {"position": 0},
    }
    return bodies.get(route.path) if route.method in ("POST", "PATCH", "PUT") else None


def ask(speaker: Speaker | None, world: World, route: Route, things: Things) -> httpx.Response:
    """Send a request to a route, with the others' names in its path and its parameters."""
    path = route.path.format(**things.names)
    params = {"position": things.names["position"], "first": 1, "second": 1} if "/proofs/" in path else {}
    if route.path == "/v1/log/feed":
        params = {"from": 0, "follow": "false"}
    if route.path.endswith("/comparison"):
        params = {"baseline": things.names["evaluation_id"]}
    body = body_for(route, things)
    if route.path == "/v1/datasets" and route.method == "POST":
        content = b"a,target\n1,1\n2,0\n"
        headers = {"Content-Type": "text/csv"}
    else:
        content, headers = None, {}
    if speaker is None:
        return world.client.request(
            route.method, path, params=params, json=body, content=content, headers=headers
        )
    return speaker.ask(
        route.method, path, body, params=params, headers=headers, **({"content": content} if content else {})
    )


def everything(world: World) -> dict[str, Any]:
    """Read all that belongs to anybody, as the operator sees it."""
    kinds = ("offers", "intents", "contracts", "disputes", "rounds", "datasets", "transfers")
    found = {kind: world.operator.read(f"/v1/{kind}", params={"limit": 500})["items"] for kind in kinds}
    accounts = {a["account"]: a for a in world.operator.read("/v1/accounts")["items"]}
    lock = world.operator.read(f"/v1/training/status/{OWNER}")
    mine = (STRANGER, f"wallet.{STRANGER}.USD", f"earnings.{STRANGER}.USD")
    kept = {kind: [one for one in items if one["tenant"] not in mine] for kind, items in found.items()}
    kept["usage"] = world.operator.read(f"/v1/usage?tenant={OWNER}")["items"]
    hooks = world.operator.read("/v1/webhooks", params={"limit": 500})["items"]
    kept["webhooks"] = [one for one in hooks if one["tenant"] != STRANGER]
    for kind in ("price_books", "customers", "invoices", "credit_notes", "payouts", "quotas"):
        items = world.operator.read(f"/v1/{kind}", params={"limit": 500})["items"]
        kept[kind] = [one for one in items if one["tenant"] != STRANGER]
    uses = ("rentals", "purchases", "subscriptions")
    for kind in ("signer-policies", "reviews", "signings", "capsules", "claims", *uses):
        kept[kind] = world.operator.read(f"/v1/{kind}", params={"limit": 500})["items"]
    kept["letters"] = world.operator.read("/v1/dead_letters?state=all")["items"]
    return kept | {"accounts": {name: a for name, a in accounts.items() if name not in mine}, "lock": lock}


def test_the_document_knows_every_route_there_is(world: World) -> None:
    found = {(route.method, route.path) for route in routes(world)}
    assert len(found) > 60
    assert {("POST", "/v1/contracts/{contract_id}/release"), ("GET", "/v1/log/events")} <= found


def test_without_a_token_nothing_that_needs_one_answers(world: World, things: Things) -> None:
    size = world.size
    for route in routes(world):
        answer = ask(None, world, route, things)
        if route.needs_token:
            assert answer.status_code == 401, f"{route}: {answer.text}"
            assert route.method == "HEAD" or answer.json()["code"] == "unauthorized"
            assert answer.headers["www-authenticate"] == "Bearer"
        else:
            assert answer.status_code < 500, f"{route}: {answer.text}"
            if route.method == "GET" and answer.is_success:
                assert not [word for word in things.words if word in answer.text], route
    assert world.size == size


def test_a_stranger_sees_nothing_of_others_and_changes_nothing(world: World, things: Things) -> None:
    stranger = world.speaker(STRANGER, *STRANGER_ROLES)
    before = everything(world)
    for route in routes(world):
        answer = ask(stranger, world, route, things)
        assert answer.status_code < 500, f"{route}: {answer.text}"
        if route.path in ON_SHOW or (route.method, route.path) == ("PUT", BY_CONTENT):
            continue
        if answer.is_success:
            own = route.path == "/v1/transfers" and route.method == "POST"
            assert own or not [word for word in things.words if word in answer.text], (
                f"{route}: {answer.text[:300]}"
            )
        elif route.needs_token and "{" in route.path:
            assert answer.status_code in (403, 404), f"{route}: {answer.text}"
            assert not {"selected_offers", "alpha-words", "beta-words"} & set(answer.text.split('"')), route
    assert everything(world) == before


def test_names_of_others_are_as_good_as_absent(world: World, things: Things) -> None:
    stranger = world.speaker(STRANGER, *STRANGER_ROLES)
    for route in routes(world):
        if "{" not in route.path or not route.needs_token or route.path in ON_SHOW or "/log/" in route.path:
            continue
        if (route.path == BY_CONTENT and route.method != "GET") or route.path == BY_TABLE:
            continue
        there = ask(stranger, world, route, things)
        names = dict.fromkeys(things.names, "nothing-of-this-name")
        absent = ask(stranger, world, route, things._replace(names=things.names | names))
        assert (there.status_code, there.json()["code"]) == (absent.status_code, absent.json()["code"]), route


def test_parties_see_what_they_share_and_nothing_else(world: World, things: Things) -> None:
    for path in ("contracts/{contract_id}", "rounds/{round_id}", "disputes/{dispute_id}"):
        for party in (things.owner, things.seller):
            assert party.get(f"/v1/{path.format(**things.names)}").status_code == 200
    assert things.seller.get(f"/v1/intents/{things.names['intent_id']}").status_code == 404
    assert things.seller.get(f"/v1/accounts/{things.names['account']}").status_code == 404
    assert things.seller.post(f"/v1/contracts/{things.names['contract_id']}/release").status_code == 403
    both = world.speaker(SELLER, "provider", "owner")
    assert both.post(f"/v1/contracts/{things.names['contract_id']}/release").status_code == 404
    assert both.post(f"/v1/contracts/{things.names['contract_id']}/refund", {}).status_code == 404


def test_lists_of_a_stranger_are_empty(world: World, things: Things) -> None:
    newcomer = world.speaker("newcomer", *STRANGER_ROLES)
    kinds = ("intents", "contracts", "disputes", "rounds", "datasets", "transfers", "accounts")
    kinds += ("price_books", "customers", "invoices", "credit_notes", "payouts", "quotas")
    uses = ("rentals", "purchases", "subscriptions")
    for kind in (*kinds, *uses, "artifacts", "evaluations", "exports", "imports", "capsules", "claims"):
        assert newcomer.read(f"/v1/{kind}") == {"items": [], "next": None}
    summary = newcomer.read("/v1/metrics_summary")
    assert summary["marketplace"]["contracts_total"] == summary["governance"]["disputes_total"] == 0
    assert newcomer.read("/v1/training/status")["marketplace_pending_contract"] is None


def test_a_name_in_the_wrong_place_is_not_found(world: World, things: Things) -> None:
    """An id of one kind is nothing in another kind's path, and what is typed wrong is not an error of ours."""
    names = things.names
    for path in ("offers", "intents", "contracts", "disputes", "rounds", "transfers"):
        for name in (names["offer_id"], names["contract_id"], names["intent_id"]):
            if not name.startswith(path[:-1]):
                assert world.operator.get(f"/v1/{path}/{name}").status_code == 404
    answer = things.owner.post("/v1/policy/preview", {"round_intent_id": names["contract_id"]})
    assert (answer.status_code, answer.json()["code"]) == (404, "round_intent_not_found")


# --------------------------------------------------------------------------- roles

MAKES: dict[tuple[str, str], UseCase] = {
    ("POST", "/v1/datasets"): offers.register_dataset,
    ("POST", "/v1/offers"): offers.list_offer,
    ("PATCH", "/v1/offers/{offer_id}"): offers.revise_offer,
    ("POST", "/v1/offers/{offer_id}/pause"): offers.pause_offer,
    ("POST", "/v1/offers/{offer_id}/resume"): offers.resume_offer,
    ("POST", "/v1/offers/{offer_id}/retire"): offers.retire_offer,
    ("POST", "/v1/intents"): intents.open_intent,
    ("PATCH", "/v1/intents/{intent_id}"): intents.amend_intent,
    ("POST", "/v1/intents/{intent_id}/cancel"): intents.cancel_intent,
    ("POST", "/v1/intents/{intent_id}/close"): intents.close_intent,
    ("POST", "/v1/intents/{intent_id}/match"): intents.match_intent,
    ("POST", "/v1/contracts/{contract_id}/fund"): contracts.fund_contract,
    ("POST", "/v1/contracts/{contract_id}/release"): contracts.release_escrow,
    ("POST", "/v1/contracts/{contract_id}/refund"): contracts.refund_escrow,
    ("POST", "/v1/contracts/{contract_id}/disputes"): disputes.open_dispute,
    ("POST", "/v1/disputes/{dispute_id}/review"): disputes.review_dispute,
    ("POST", "/v1/disputes/{dispute_id}/resolve"): disputes.resolve_dispute,
    ("POST", "/v1/disputes/{dispute_id}/reject"): disputes.reject_dispute,
    ("POST", "/v1/accounts"): accounts.open_wallet,
    ("POST", "/v1/deposits"): accounts.deposit,
    ("POST", "/v1/withdrawals"): accounts.withdraw,
    ("POST", "/v1/transfers"): accounts.transfer,
    ("POST", "/v1/earnings/transfers"): accounts.transfer_earnings,
    ("POST", "/v1/usage"): usage.meter_usage,
    ("POST", "/v1/usage/{usage_id}/corrections"): usage.correct_usage,
    ("POST", "/v1/price_books"): price_books.publish_prices,
    ("POST", "/v1/customers"): customers.enroll,
    ("POST", "/v1/customers/{tenant}/plan"): customers.replan,
    ("POST", "/v1/customers/{tenant}/coupons"): customers.redeem_coupon,
    ("POST", "/v1/customers/{tenant}/credits"): grants.grant,
    ("POST", "/v1/invoices"): invoices.issue_invoice,
    ("POST", "/v1/invoices/{invoice_id}/correct"): invoices.correct_invoice,
    ("POST", "/v1/invoices/{invoice_id}/pay"): invoices.pay_invoice,
    ("POST", "/v1/invoices/{invoice_id}/credit_notes"): credit_notes.credit_invoice,
    ("PUT", "/v1/quotas/{tenant}"): budgeting.set_quota,
    ("POST", "/v1/quotas/{tenant}/reservations"): budgeting.reserve,
    ("POST", "/v1/quotas/{tenant}/reservations/{reservation_id}/release"): budgeting.release_reservation,
    ("POST", "/v1/payouts"): payouts.request_payout,
    ("POST", "/v1/payouts/{payout_id}/confirm"): payouts.confirm_payout,
    ("POST", "/v1/payouts/{payout_id}/fail"): payouts.fail_payout,
    ("POST", "/v1/rounds"): rounds.start_round,
    ("POST", "/v1/training/enable"): training.enable_training,
    ("POST", "/v1/training/disable"): training.disable_training,
    ("POST", "/v1/signer-policies"): signers.adopt_policy,
    ("POST", "/v1/signer-policies/{name}/recovery"): signers.recover_policy,
    ("POST", "/v1/signer-policies/{name}/revocations"): signers.revoke_key,
    ("POST", "/v1/constitution"): constitutions.adopt_constitution,
    ("POST", "/v1/reviews/{capsule}/decisions"): reviewing.decide,
    ("POST", "/v1/signings/{capsule}/signatures"): reviewing.sign,
    ("POST", "/v1/signings/{capsule}/reopen"): signatures.reopen_signing,
    ("PUT", BY_CONTENT): artifacts.register_artifact,
    ("POST", "/v1/evaluations"): evaluations.request_evaluation,
    ("POST", "/v1/personas"): personas.create_persona,
    ("PATCH", "/v1/personas/{persona_id}"): personas.describe_persona,
    ("POST", "/v1/capsules/{capsule_id}/submit"): capsules.submit_capsule,
    ("POST", "/v1/capsules/{capsule_id}/publish"): publication.publish_capsule,
    ("POST", "/v1/capsules/{capsule_id}/reinstate"): publication.reinstate_capsule,
    ("POST", "/v1/capsules/{capsule_id}/suspend"): standing.suspend_capsule,
    ("POST", "/v1/capsules/{capsule_id}/revoke"): standing.revoke_capsule,
    ("POST", "/v1/capsules/{capsule_id}/withdraw"): standing.withdraw_capsule,
    ("POST", "/v1/capsules/{capsule_id}/degrade"): standing.mark_degraded,
    ("POST", "/v1/capsules/{capsule_id}/recover"): standing.clear_degraded,
    ("POST", "/v1/capsules/{capsule_id}/claims"): claims.open_claim,
    ("POST", "/v1/claims/{claim_id}/review"): claims.review_claim,
    ("POST", "/v1/claims/{claim_id}/uphold"): claims.uphold_claim,
    ("POST", "/v1/claims/{claim_id}/reject"): claims.reject_claim,
    ("POST", "/v1/claims/{claim_id}/withdraw"): claims.withdraw_claim,
    ("POST", "/v1/personas/{persona_id}/rent"): renting.rent,
    ("POST", "/v1/personas/{persona_id}/rent/quote"): renting.quote_rental,
    ("POST", "/v1/personas/{persona_id}/purchase"): renting.purchase,
    ("POST", "/v1/personas/{persona_id}/subscribe"): renting.subscribe,
    ("POST", "/v1/rentals/{rental_id}/activate"): renting.activate,
    ("POST", "/v1/rentals/{rental_id}/extend"): renting.extend,
    ("POST", "/v1/rentals/{rental_id}/end"): renting.end,
    ("POST", "/v1/purchases/{purchase_id}/return"): renting.give_back,
    ("POST", "/v1/subscriptions/{subscription_id}/cancel"): renting.cancel,
    ("POST", "/v1/subscriptions/{subscription_id}/resume"): renting.resume,
    ("POST", "/v1/subscriptions/{subscription_id}/change"): renting.change_plan,
    ("POST", "/v1/webhooks"): webhooks.register_webhook,
    ("PATCH", "/v1/webhooks/{webhook_id}"): webhooks.change_webhook,
    ("DELETE", "/v1/webhooks/{webhook_id}"): webhooks.delete_webhook,
    ("POST", "/v1/webhooks/{webhook_id}/pause"): webhooks.pause_webhook,
    ("POST", "/v1/webhooks/{webhook_id}/resume"): webhooks.resume_webhook,
    ("POST", "/v1/webhooks/{webhook_id}/rotate"): webhooks.rotate_secret,
    ("POST", "/v1/webhooks/{webhook_id}/ping"): webhooks.pause_webhook,
    ("POST", "/v1/webhooks/{webhook_id}/redeliver"): webhooks.pause_webhook,
}
# What changes nothing of the market's, or is told in the tests of the log.
OTHERS = {
    ("POST", "/v1/policy/preview"),
    # Draws up a bill that nobody owes: see tests/real/billing.
    ("POST", "/v1/quotes"),
    ("POST", "/v1/policies/{package}/evaluate"),
    ("POST", "/v1/log/cosignatures"),
    ("POST", "/v1/log/witnesses"),
    ("POST", "/v1/dead_letters/{letter_id}/requeue"),
    ("POST", "/v1/dead_letters/{letter_id}/discard"),
    ("POST", "/v1/billing/reconciliations"),
    # Refused attempts of these are written down too: see tests/real/persona/test_transfers.py.
    ("POST", "/v1/exports"),
    ("POST", "/v1/imports"),
}


def test_every_route_that_writes_is_in_the_table(world: World) -> None:
    writing = {(route.method, route.path) for route in routes(world) if route.method not in ("GET", "HEAD")}
    assert writing == set(MAKES) | OTHERS


def test_every_route_that_writes_names_its_roles() -> None:
    for place, use_case in MAKES.items():
        roles: frozenset[str] = use_case.roles  # type: ignore[attr-defined]
        assert roles, f"{place} is open to everybody"
        assert roles <= ROLES
        # Gateways send usage, programs hold webhooks, monitors mark what got worse; all else that programs do is
        # the service's own.
        # Of programs only the platform's own bill: tests/real/billing/test_billing_http.py.
        marks = (
            "/v1/usage",
            "/v1/usage/{usage_id}/corrections",
            "/v1/quotas/{tenant}/reservations",
            "/v1/quotas/{tenant}/reservations/{reservation_id}/release",
            "/v1/invoices",
            "/v1/invoices/{invoice_id}/pay",
            "/v1/invoices/{invoice_id}/correct",
            "/v1/capsules/{capsule_id}/degrade",
            "/v1/capsules/{capsule_id}/recover",
        )
        open_to_programs = place[1] in marks or place[1].startswith("/v1/webhooks")
        assert "service" not in roles or open_to_programs, f"{place} is for the service itself"


@pytest.mark.parametrize("role", sorted(ROLES))
def test_a_role_that_may_not_is_refused_even_at_home(world: World, things: Things, role: str) -> None:
    before, size = everything(world), world.size
    at_home = world.speaker(OWNER, role, subject="somebody-else")
    for (method, path), use_case in MAKES.items():
        roles: frozenset[str] = use_case.roles  # type: ignore[attr-defined]
        if role not in roles:
            answer = ask(at_home, world, Route(method, path, True), things)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), (
                f"{method} {path}: {answer.text}"
            )
    assert world.size == size
    assert everything(world) == before


def test_the_lock_of_training_is_given_back_by_its_holder_only(world: World, things: Things) -> None:
    other = world.speaker(OWNER, "owner", subject="not-the-holder")
    answer = other.post("/v1/training/disable", {})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert things.owner.read(f"/v1/training/status/{OWNER}")["enabled"] is True
