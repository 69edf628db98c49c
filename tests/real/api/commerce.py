"""One of everything that is sold and billed, of a tenant that a test is about."""

from __future__ import annotations

from typing import Any

from domain.billing import credit_notes, invoices
from domain.billing.bills import Terms
from domain.billing.invoices import draw_up
from domain.billing.prices import PerMinute
from domain.ledger import Caller, Case
from domain.persona import renting
from domain.rental import rentals, subscriptions
from domain.rental.purchases import make_purchase
from domain.rental.settling import Sale
from domain.values import Money
from tests.real.api.world import Speaker, World, money

DESK = Caller("ola", "platform", frozenset({"operator"}))
CHARGE = {"id": "calls", "meter": "requests", "price": {"model": "per_unit", "price": "1"}}
CAPSULE = "sha3-512:" + "cd" * 64


def sold_and_billed(world: World, owner: Speaker) -> dict[str, str]:
    """Make a price book, a customer, a payout, an invoice and its credit, a rental and the like; give their names."""
    tenant = owner.tenant
    world.deposit(tenant, "100")
    world.earn(tenant, "5")
    owner.made("/v1/price_books", {"book": "prices", "currency": "USD", "charges": [CHARGE]})
    world.operator.made("/v1/customers", {"tenant": tenant, "book": f"{tenant}.prices"})
    payout = owner.made("/v1/payouts", {"amount": money("1"), "destination": "house bank"})
    names = {"book": f"{tenant}.prices", "number": "1", "payout_id": str(payout["id"])}
    return names | _billed(world, tenant) | _used(world, tenant)


def _billed(world: World, tenant: str) -> dict[str, str]:
    # Its lines are no sums of what is in the log, which the service would rightly call damage; so none is named.
    names = {"invoice_id": f"inv-{tenant}-000777", "credit_note_id": f"cn-{tenant}-000777", "line": "7"}

    def bill(case: Case, _: Any) -> Any:
        drawn = draw_up([], Terms("USD", commitment="3"), case.now).bill
        issued = invoices.Invoice.Issued(
            number=names["invoice_id"].upper(), kind="invoice", corrects=None, period_start=case.now,
            period_end=case.now, zone="UTC", known_at=0, sheets=[], terms=Terms("USD"), bill=drawn,
            evidence=[None], owed=drawn.due, tax=Money.of(0, "USD"), due=Money.of(0, "USD"), due_at=case.now, money=[],
        )  # fmt: skip
        case.create(invoices.Invoice, names["invoice_id"], issued, tenant=tenant)
        noted = credit_notes.CreditNote.Issued(
            number=names["credit_note_id"].upper(), invoice=names["invoice_id"], amount=drawn.due,
            tax=Money.of(0, "USD"), off_due=Money.of(0, "USD"), returned=drawn.due, target="credits",
            reason="an outage", money=[],
        )  # fmt: skip
        return case.create(credit_notes.CreditNote, names["credit_note_id"], noted, tenant=tenant)

    world.service.run(world.service.runtime.ledger.act(bill, invoices.IssueInvoice(tenant=tenant), DESK))
    return names


def _used(world: World, tenant: str) -> dict[str, str]:
    made: dict[str, str] = {}

    def use(case: Case, _: Any) -> Any:
        sale = Sale(persona_id="a-persona", capsule=CAPSULE, seller="a-seller", currency="USD", fee="0.1")
        price = Money.parse("1", "USD")
        plan = subscriptions.Plan(sale=sale, price=price, every="month", zone="UTC", anchor="2026-01-01")
        made["rental_id"] = rentals.request_rental(case, rentals.Terms(sale, PerMinute("0.01")), 10).id
        made["purchase_id"] = make_purchase(case, sale, price).id
        made["subscription_id"] = subscriptions.start_subscription(case, plan).id

    who = Caller("olivia", tenant, frozenset({"owner"}))
    world.service.run(world.service.runtime.ledger.act(use, renting.RentalStep(rental_id="new"), who))
    return made
